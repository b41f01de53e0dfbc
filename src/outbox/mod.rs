//! The outbox: the durable queue between "this happened" and "the broker has it".
//!
//! # Purpose
//! An event is **accepted** once its record is on stable storage, and from then on it is kept
//! until it is removed by name. Whoever is told `accepted` may forget the event; this module may
//! not.
//!
//! # Invariants
//! - Nothing is reported accepted before [`Store::commit`] has returned, and that returns only
//!   once everything in the batch is on stable storage.
//! - A commit is whole or absent: its records, the counters they advance and the removals that
//!   ride along are one atomic batch.
//! - `sequence` starts at 1 and has no gap for each pair of source and lane, across restarts and
//!   while the outbox is empty.
//! - A position is given once in the life of a lane and only grows.
//! - After the first commit that fails the outbox refuses everything, since what is on the disk
//!   is unknown from then on: the process ends and opens it afresh.
//! - Everything has a bound: events and bytes a commit, sources, bytes a page.
//!
//! # Terms
//! - *lane*: priority class, drained in order. *position*: the place of a record in its lane.
//! - *sequence*: the number that consumers see, counted for each source and lane.
//! - *record*: an event with its lane, position, sequence and time of acceptance. *frame*: the
//!   bytes of a record with version and checksum ([`codec`]). *part*: a bounded piece of a frame,
//!   which is what the store holds ([`keys`]).
//!
//! # How it works
//! ```text
//! begin(now) ─► Group ── append(events) ─┐
//!                 │  └── remove(records) ┤ staged in memory, nothing visible
//!                 ▼                      │
//!              commit() ── one Batch ────┴─► Store::commit ─► Vec<Accepted>
//! ```
//! The group is how several callers share one sync (group commit). Reading is by
//! [`Outbox::page`], oldest first, bounded in records and bytes; the backlog is never in memory.
//! Depths are counters in the committed state, so that opening reads a few small values however
//! long the backlog is.
//!
//! What is lost is told by events of the outbox's own, in the commit that loses it: records that
//! give way to others or become too old ([`room`]), records that turn out to be damaged when they
//! are read ([`Group::set_aside`]), and what a damaged store does not give back ([`salvage`]).
//!
//! What cannot be delivered is set aside as a dead letter with its reason ([`Group::deadletter`]).
//!
//! What other parts of the agent must remember as long as the world was told of it becomes durable in
//! the same commit ([`Memo`]).
//!
//! Times that were taken from a wrong clock are corrected in what is read, once they are known (`times`).
//!
//! `docs/outbox.md` draws the bytes and says how each claim is tested.
//!
//! # Deliberately absent
//! No IO, no clock, no thread: the store is handed in ([`Store`]), so is the time.

pub mod codec;
mod dead;
mod error;
mod group;
pub mod keys;
mod memo;
pub mod memory;
mod page;
mod queue;
mod record;
pub mod room;
pub mod salvage;
mod seen;
mod store;
mod times;

pub use dead::{DeadLetter, MAX_DEAD_LETTERS};
pub use error::OutboxError;
pub use group::Group;
pub use memo::{MAX_MEMO_BYTES, Memo, check_memo};
pub use page::{Damage, Page, Placed};
pub use queue::{
    Chronicle, MAX_COMMIT_BYTES, MAX_COMMIT_EVENTS, MAX_SOURCE_BYTES, MAX_SOURCES, Outbox,
    Salvaged, check_batch, event_bytes,
};
pub use record::{Accepted, Levels, PageLimit, Position, Record, Structured, sequence_text};
pub use room::Limits;
pub use store::{Batch, Pair, Store, StoreError};
