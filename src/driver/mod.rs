//! What touches the world: disk, sound card, sockets, kernel, service manager.

pub mod audio_file;
pub mod audio_stream;
pub mod microphone;
pub mod models;
pub mod wav_source;
