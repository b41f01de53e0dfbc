//! CloudEvents 1.0.2: the envelope that keeps what it was given, its rules, and the lanes.
//!
//! - [`Event`]: context attributes and the data bytes exactly as they came. `id`, `source`, `time`
//!   and data are never rewritten; the agent only adds attributes (`lane`, `sequence`, `clock`).
//! - [`json`]: the structured-mode JSON format, in both directions.
//! - [`mqtt`], [`http`]: the protocol bindings, structured and binary.
//! - [`catalogue`]: the events that the agent itself makes.
//!
//! The validation is ours, since the SDK's is too lenient for an oracle (`docs/adr/0003`); the
//! SDK's builder makes the agent's own events, and its parser reads ours in the tests.
//!
//! Absent: batches beyond splitting one ([`json::parse_batch`]).

pub mod catalogue;
mod envelope;
pub mod http;
pub mod json;
mod lane;
mod losses;
mod moment;
pub mod mqtt;
mod rules;
mod sdk;

pub use envelope::{Data, DataRef, Event, Name, Value, ValueRef};
pub use lane::{Lane, UnknownLane};
pub use losses::{Losses, MAX_RANGES, SequenceRange};
pub use moment::{Moment, Noted};
pub use rules::EventError;

/// The largest event in structured JSON that is taken, in bytes: what CloudEvents 1.0.2
/// (§ Size Limits) asks every intermediary to forward.
pub const MAX_EVENT_BYTES: usize = 64 * 1024;
