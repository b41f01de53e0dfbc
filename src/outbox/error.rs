//! Why the outbox refuses or fails.

use super::codec::CodecError;
use super::store::StoreError;
use crate::event::{Lane, MAX_EVENT_BYTES};

use super::queue::{MAX_COMMIT_BYTES, MAX_COMMIT_EVENTS, MAX_SOURCE_BYTES, MAX_SOURCES};
use super::record::Position;

/// An operation on the outbox did not happen. Nothing of it is kept, except where
/// [`OutboxError::Failed`] says that this is unknown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OutboxError {
    /// The event is larger than what is taken; the caller sends less.
    #[error(
        "event `{id}` has {bytes} bytes as JSON and at most {MAX_EVENT_BYTES} are taken: send less data"
    )]
    EventTooLarge {
        /// The event's `id`.
        id: String,
        /// Its size in structured JSON.
        bytes: usize,
    },
    /// The attribute `source` is longer than a counter can be kept for.
    #[error(
        "event `{id}` has a `source` of {bytes} bytes and at most {MAX_SOURCE_BYTES} are taken: shorten it"
    )]
    SourceTooLong {
        /// The event's `id`.
        id: String,
        /// The length of its source.
        bytes: usize,
    },
    /// A counter is kept for each source for good, and there are as many as are kept.
    #[error(
        "source `{source_name}` would be more than the {MAX_SOURCES} that the outbox counts: use fewer distinct sources"
    )]
    TooManySources {
        /// The source that is one too many.
        source_name: String,
    },
    /// More than one commit takes; the caller splits it.
    #[error(
        "a batch of {events} events with {bytes} bytes is more than the {MAX_COMMIT_EVENTS} events or {MAX_COMMIT_BYTES} bytes that are taken at once: split it"
    )]
    BatchTooLarge {
        /// Events in the batch.
        events: usize,
        /// Their bytes in structured JSON.
        bytes: usize,
    },
    /// A part of the agent wants more remembered than fits: its mistake.
    #[error("memo `{name}` has {bytes} bytes, more than is kept")]
    MemoTooLarge {
        /// Its name.
        name: String,
        /// Its size.
        bytes: usize,
    },
    /// A memo is not what was written.
    #[error("memo `{name}` is damaged: {cause}")]
    MemoDamaged {
        /// Its name.
        name: String,
        /// What is wrong with it.
        cause: String,
    },
    /// The events do not fit beside what the group holds already: commit it and begin another.
    #[error("the group commit is full: commit it first")]
    GroupFull,
    /// The store cannot be read. Nothing was changed.
    #[error("read outbox: {0}")]
    Read(StoreError),
    /// What is stored is not what was written.
    #[error("outbox record {lane}/{position} is damaged: {cause}")]
    Damaged {
        /// The lane of the record.
        lane: Lane,
        /// Its position.
        position: Position,
        /// What is wrong with it.
        cause: String,
    },
    /// The counters are not what was written, or contradict the records.
    #[error("the outbox's own state is damaged: {cause}")]
    StateDamaged {
        /// What is wrong with it.
        cause: String,
    },
    /// More urgent events fill the outbox. Nothing was changed; the caller tries later.
    #[error(
        "the outbox is full: of its {bytes} bytes no room is left for lane {lane}; what is stored must be delivered first"
    )]
    Full {
        /// The lane that was asked for.
        lane: Lane,
        /// The limit.
        bytes: u64,
    },
    /// The disk is full, and its last room is kept for what is urgent. Nothing was changed; the
    /// caller tries later.
    #[error("the disk is full: telemetry is refused until there is room again; free some")]
    DiskFull,
    /// An event of the outbox's own could not be made. Nothing was changed.
    #[error("make an event of the outbox: {cause}")]
    Report {
        /// Why.
        cause: String,
    },
    /// A record or counter could not be encoded. Nothing was changed.
    #[error("encode outbox record: {0}")]
    Encode(CodecError),
    /// A commit failed, now or earlier: whether it is on the disk is unknown, so nothing more is
    /// taken until the outbox is opened again.
    #[error(
        "the outbox takes nothing more since a commit failed ({cause}): restart hark, which keeps all that was accepted"
    )]
    Failed {
        /// Why the first failed commit failed.
        cause: String,
    },
    /// The thread that writes the outbox has ended.
    #[error("the outbox is closed: hark is shutting down")]
    Closed,
}
