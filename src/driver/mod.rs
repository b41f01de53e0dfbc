//! What touches the world: disk, sound card, sockets, kernel, service manager.

pub mod audio_file;
pub mod models;
