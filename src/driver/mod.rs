//! What touches the world: disk, sound card, sockets, kernel, service manager.
