//! What touches the world: disk, sound card, sockets, kernel, service manager.

pub mod audio_file;
pub mod audio_stream;
pub mod ballast;
pub mod host;
pub mod ingest;
mod marks;
pub mod memory_file;
pub mod microphone;
pub mod models;
pub mod net;
pub mod ops;
pub mod outbox_admin;
pub mod outbox_disk;
mod outbox_http;
pub mod outbox_offline;
pub mod outbox_open;
pub mod outbox_renew;
pub mod outbox_writer;
pub mod sensors;
pub mod sled_store;
pub mod sys;
pub mod uplink;
pub mod wav_source;
