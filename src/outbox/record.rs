//! What the outbox takes and gives, and how much of it there is.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::event::{Event, Lane, json};

/// The place of a record in its lane: given once, growing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Position(pub u64);

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An event as it is kept, and what was noted at its acceptance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its lane.
    pub lane: Lane,
    /// Its place there.
    pub position: Position,
    /// Its number among those of its source and lane, from 1.
    pub sequence: u64,
    /// Wall time of acceptance, milliseconds since 1970; as wrong as the clock was then, unless that is known.
    pub accepted_ms: u64,
    /// The event, with `lane` and `sequence`.
    pub event: Event,
}

/// A record in the form in which it is published: structured mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Structured {
    /// Its lane.
    pub lane: Lane,
    /// Its place there.
    pub position: Position,
    /// The event's `id`.
    pub id: Arc<str>,
    /// The event's `source`.
    pub source: Arc<str>,
    /// The event's `expirytime`, if it has one.
    pub expirytime: Option<String>,
    /// The event, as [`json::to_vec`] writes it. Several share a buffer.
    pub json: Bytes,
}

impl From<&Record> for Structured {
    fn from(Record { lane, position, event, .. }: &Record) -> Self {
        let expirytime = event.attribute("expirytime").and_then(|value| value.as_str());
        Self {
            lane: *lane,
            position: *position,
            id: event.id().into(),
            source: event.source().into(),
            expirytime: expirytime.map(str::to_owned),
            json: json::to_vec(event).into(),
        }
    }
}

/// The outbox's word that an event is on stable storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// The event's `id`.
    pub id: String,
    /// The lane in which it stands.
    pub lane: Lane,
    /// Its sequence; [`sequence_text`] is how the event carries it.
    pub sequence: u64,
    /// Its position, by which it is removed.
    pub position: Position,
}

/// The value of the extension `sequence`: 20 digits, so that text sorts as numbers do.
pub fn sequence_text(sequence: u64) -> String {
    format!("{sequence:020}")
}

/// How much [`Outbox::page`](super::Outbox::page) may return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageLimit {
    /// At most so many records.
    pub records: usize,
    /// At most so many bytes of frames, except that one record always fits.
    pub bytes: usize,
}

/// The state of the lanes. Index of both: [`Lane::index`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Levels {
    /// Records in each lane.
    pub records: [u64; 3],
    /// Dead letters of each lane.
    pub dead: [u64; 3],
    /// The position given last in each lane; the record may be removed already.
    pub tails: [Option<Position>; 3],
    /// The disk is so full that telemetry is refused.
    pub short: bool,
    /// Telemetry that was refused for want of room since the process began.
    pub refused: u64,
    /// How often the outbox was opened since the process began: what was read of it before the last
    /// time may be out of date.
    pub opened: u64,
}

impl Levels {
    /// Records in all lanes.
    pub fn total(&self) -> u64 {
        self.records.iter().sum()
    }
}
