//! What touches the world: disk, sound card, sockets, kernel, service manager.

pub mod outbox_writer;
pub mod sled_store;
pub mod sys;
