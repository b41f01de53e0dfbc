//! What the agent tells whoever watches it: the simulator, tests, its own status.

use std::sync::Arc;

use crate::event::Lane;

/// What happens inside, for whoever watches: the simulator's terminal, tests.
#[derive(Debug, Clone, PartialEq)]
pub enum Happening {
    /// The microphone or file is open.
    Listening(String),
    /// Loudness of the last 100 ms, dBFS.
    Level(f32),
    /// A keyphrase was heard.
    Detected {
        /// The phrase.
        phrase: String,
        /// How sure the detector is, 0..=1.
        score: f32,
        /// Where the phrase ends, from the start of the stream.
        at: std::time::Duration,
    },
    /// A sensor has told a value.
    Reading {
        /// The sensor.
        sensor: String,
        /// What it measures.
        quantity: String,
        /// How much.
        value: f64,
        /// Of what.
        unit: &'static str,
    },
    /// A threshold is exceeded, or no longer.
    Threshold {
        /// The sensor.
        sensor: String,
        /// Which of its thresholds.
        threshold: String,
        /// Which of the two.
        exceeded: bool,
        /// The value that decided.
        value: f64,
        /// Of what.
        unit: &'static str,
    },
    /// Nobody has been about for too long, or somebody is again.
    Inactivity {
        /// Which of the two.
        detected: bool,
        /// For people.
        explanation: String,
    },
    /// An alarm has taken a step.
    Alarm {
        /// The alarm's id.
        alarm: String,
        /// Which: `pending`, `raised`, …
        step: &'static str,
        /// It is only a test.
        test: bool,
    },
    /// On stable storage.
    Accepted {
        /// The event's id.
        id: Arc<str>,
        /// Its lane.
        lane: Lane,
        /// Its type.
        event_type: String,
        /// Its sequence.
        sequence: u64,
    },
    /// Handed to the network.
    Published {
        /// The event's id.
        id: Arc<str>,
        /// Its lane.
        lane: Lane,
        /// Not for the first time.
        again: bool,
    },
    /// The broker has it.
    Acknowledged {
        /// The event's id.
        id: Arc<str>,
        /// Its lane.
        lane: Lane,
    },
    /// The broker has it; it is kept until the consumer's receipt.
    Unconfirmed {
        /// The event's id.
        id: Arc<str>,
        /// Its lane.
        lane: Lane,
    },
    /// The consumer has it.
    Received {
        /// The event's id.
        id: Arc<str>,
        /// Its lane.
        lane: Lane,
    },
    /// The broker refused it; it is offered again.
    Deferred {
        /// The event's id.
        id: Arc<str>,
        /// Why.
        reason: String,
    },
    /// There is a session with a broker.
    Connected,
    /// There is none any more.
    Disconnected,
    /// News of the connection, in one line.
    Uplink(String),
    /// A part failed.
    Fault {
        /// Which.
        part: String,
        /// Why.
        problem: String,
    },
    /// A part works again.
    Mended(String),
    /// Events in the outbox, by lane. Index: [`Lane::index`].
    Waiting([u64; 3]),
}
