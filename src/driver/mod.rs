//! What touches the world: disk, sound card, sockets, kernel, service manager.

pub mod net;
pub mod uplink;
