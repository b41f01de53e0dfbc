//! What the forwarder is told, and what it answers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::event::Lane;
use crate::outbox::{PageLimit, Position};
use crate::uplink::{Outgoing, Refusal};

/// What ends the forwarder's care for the records of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Confirm {
    /// The broker's PUBACK.
    #[default]
    Broker,
    /// The consumer's receipt.
    Receipt,
}

/// How events stand in a PUBLISH over MQTT 5; over 3.1.1 always structured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// The whole event is JSON in the payload.
    #[default]
    Structured,
    /// The data are the payload, the attributes stand beside it.
    Binary,
}

/// What the forwarder is told once.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// By lane. Index: [`Lane::index`].
    pub confirm: [Confirm; 3],
    /// How long a record waits for its receipt before it is published again. By lane, as above.
    pub receipt_timeout: [Duration; 3],
    /// How events are written.
    pub mode: Mode,
}

impl Default for Rules {
    fn default() -> Self {
        let receipt_timeout = [Duration::from_secs(60); 3];
        Self { confirm: Default::default(), receipt_timeout, mode: Mode::default() }
    }
}

/// A page that is to be read from the outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Of this lane,
    pub lane: Lane,
    /// the records behind this position (`None`: from the first),
    pub after: Option<Position>,
    /// so many.
    pub limit: PageLimit,
    /// The one record at this position, for which no receipt came.
    pub(super) again: Option<Position>,
    /// How far the lane reached when this was wanted.
    pub(super) tail: Option<Position>,
    /// And how often it had been read anew.
    pub(super) rewinds: u64,
}

/// A record on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flight {
    /// Its lane.
    pub lane: Lane,
    /// Its position there.
    pub position: Position,
    /// The event's id.
    pub id: Arc<str>,
    pub(super) source: Arc<str>,
    pub(super) outgoing: Outgoing,
    pub(super) refusals: u32,
    pub(super) final_refusals: u32,
    /// Silences between which others were acknowledged, and how many were at the last of them.
    pub(super) silences: (u32, u64),
    /// How often it was published before without a receipt.
    pub(super) rounds: u32,
    /// When this connection sent it.
    pub(super) sent: Option<Instant>,
    /// Its receipt came before its PUBACK.
    pub(super) received: bool,
}

impl Flight {
    pub(super) fn bytes(&self) -> usize {
        let binary = self.outgoing.binary.as_ref().map_or(0, |binary| binary.payload.len());
        self.outgoing.payload.len().max(binary)
    }
}

/// What a notice means for a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// Handed to the network; `again` if it had been before.
    Published {
        /// The event's id.
        id: Arc<str>,
        /// Its lane.
        lane: Lane,
        /// On an earlier connection, or since no receipt came.
        again: bool,
    },
    /// The broker has it, and its lane asks for no more or the receipt is there: remove it from the
    /// outbox.
    Delivered(Flight),
    /// The broker has it; it stays until the consumer's receipt.
    Unconfirmed {
        /// The event's id.
        id: Arc<str>,
        /// Its lane.
        lane: Lane,
        /// The broker says that nobody subscribes: no receipt can come.
        no_subscribers: bool,
    },
    /// The broker refused it; it stays and is offered again after the pause.
    Deferred {
        /// The event's id.
        id: Arc<str>,
        /// Its lane.
        lane: Lane,
        /// Why, in one line.
        reason: String,
        /// Until the next attempt.
        pause: Duration,
    },
    /// Refused [`FINAL_REFUSALS`](super::FINAL_REFUSALS) times for a reason that will not pass, or answered by silence
    /// [`SILENT_REFUSALS`](super::SILENT_REFUSALS) times while others got through. It is the caller's now: set
    /// it aside and remove it, or hand it back ([`Forwarder::defer`](super::Forwarder::defer)).
    Poisoned {
        /// The record.
        flight: Flight,
        /// Why.
        reason: Refusal,
    },
}

/// Records for which no receipt came in time; they are published again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overdue {
    /// How many.
    pub count: usize,
    /// The lane of the first,
    pub lane: Lane,
    /// and its event's id.
    pub id: Arc<str>,
}

/// A record that is to be removed from the outbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// Its lane.
    pub lane: Lane,
    /// Its position there.
    pub position: Position,
    /// The event's id.
    pub id: Arc<str>,
}
