//! From a trigger to help: the life of an alarm.
//!
//! ```text
//!             trigger                 window over, long press            command, receipt
//!   (nothing) ───────▶ pending ──────────────────────────▶ raised ──────────────────▶ acknowledged ─▶ resolved
//!                         │                            ▲   │   ▲                            │      command
//!                         │ short press, command       │   └───┘ escalated:                 │
//!                         ▼                            │         contact after contact      │
//!                     cancelled                        └────────────────────────────────────┘
//!                                                                 triggered again, later
//! ```
//!
//! # Invariants
//! - A trigger opens an alarm or joins the one that is open; there is at most one real alarm and at
//!   most one test alarm, and a real trigger never joins a test.
//! - An alarm that was opened ends only as cancelled (from pending) or resolved (once acknowledged).
//!   One that nobody acknowledges stays raised, also after the last contact was called in vain.
//! - Every step is an event, and nothing happens before it: the caller puts [`Told::occurrences`] and
//!   [`Alarms::memos`] into one commit, and only then lets the tone sound or a call go out.
//! - Deadlines go by monotonic time. Across a reboot they go by wall time where both readings can be
//!   believed, and are over where not: an alarm is rather raised too early than too late.
//!
//! # Terms
//! *window*: how long a pending alarm can be called off on the spot. *walk*: the calling of one contact
//! after the other, `rounds` times. *joined*: a trigger that came while its alarm was open.
//!
//! # How it works
//! [`Alarms::handle`] and [`Alarms::tick`] take what happened and the time, change the state and return
//! what is to be told and done. The state is two [memos](crate::outbox) of JSON; [`Alarms::restore`] makes
//! it again from them.
//!
//! # Deliberately absent
//! The dialler, the light and the tone (`driver`), the wording of commands (`downlink`), a history of
//! alarms that are over: it is at the broker.

mod durable;
mod machine;
mod schedule;
mod signal;
mod walk;

use std::time::Duration;

use crate::clock::WallTime;
use crate::event::catalogue::Occurrence;

pub use durable::{REAL_MEMO, Restored, TEST_MEMO};
pub use machine::Alarms;
pub use schedule::{Local, Schedule};
pub use signal::{Beep, Blink, Player, Signal};

/// Contacts at most.
pub const MAX_CONTACTS: usize = 5;

/// How alarms are dealt with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How long a pending alarm can be called off.
    pub cancel_window: Duration,
    /// How long a raised alarm waits for its acknowledgement before the walk begins; also the
    /// shortest time between the beginnings of two rounds.
    pub receipt_timeout: Duration,
    /// How often the contacts are walked through.
    pub rounds: u32,
    /// A trigger that joins an alarm on whose account nobody is called any more (acknowledged, or
    /// walked through) raises it again if its last step is so long ago.
    pub again_after: Duration,
    /// Whom to call, in this order.
    pub contacts: Vec<Contact>,
}

/// Whom to call, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contact {
    /// As it stands in events.
    pub name: String,
    /// How long to wait for an acknowledgement before the next is called; the dialler is ended then.
    pub timeout: Duration,
    /// Program and arguments.
    pub exec: Vec<String>,
}

/// The two clocks. Monotonic time counts from this boot, so that it holds across a restart of the
/// process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Since the device booted.
    pub mono: Duration,
    /// As wrong as it may be.
    pub wall: WallTime,
}

/// What makes an alarm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A keyphrase was heard.
    Keyphrase,
    /// A button was pressed.
    Button,
    /// A sensor is beyond its threshold.
    Threshold,
    /// Nobody has moved for longer than usual.
    Inactivity,
    /// Another program has handed in an event.
    Ingest,
    /// The care side asked for it.
    Command,
    /// The time of a test has come.
    Schedule,
}

impl Kind {
    /// As it stands in events and in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Keyphrase => "keyphrase",
            Self::Button => "button",
            Self::Threshold => "threshold",
            Self::Inactivity => "inactivity",
            Self::Ingest => "ingest",
            Self::Command => "command",
            Self::Schedule => "schedule",
        }
    }
}

/// The decision to alarm, and on what evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trigger {
    /// What it was.
    pub kind: Kind,
    /// The `id` of the event that tells of it.
    pub cause: Option<String>,
    /// Only a test.
    pub test: bool,
    /// Without a window: whoever asks so cannot mean it otherwise.
    pub at_once: bool,
    /// For people, in a few words.
    pub text: String,
}

impl Trigger {
    /// A real one that leaves the window open.
    pub fn new(kind: Kind, cause: Option<String>, text: impl Into<String>) -> Self {
        Self { kind, cause, test: false, at_once: false, text: text.into() }
    }
}

/// Who takes a step that a person takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// `button`, `command` or `receipt`.
    pub via: &'static str,
    /// The button's name, or the `source` of the command or receipt.
    pub who: String,
    /// The person, where the command names one.
    pub name: Option<String>,
    /// What was said to it.
    pub note: Option<String>,
    /// When, by the clock of the care side.
    pub at: Option<String>,
    /// The `id` of the press, command or receipt.
    pub cause: String,
}

/// A step that a person asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Call a pending alarm off.
    Cancel,
    /// Somebody sees to a raised alarm.
    Acknowledge,
    /// It is over.
    Resolve,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Something wants help.
    Trigger(Trigger),
    /// Somebody asks for a step; of the alarm named, or of the one for which it can be meant.
    Request {
        /// Which step.
        step: Request,
        /// The alarm's id.
        alarm: Option<String>,
        /// Not of an alarm that was opened after this wall time, milliseconds since 1970: who asked
        /// did not know of it.
        not_after_ms: Option<u64>,
        /// Who.
        actor: Actor,
    },
    /// The consumer has events with these ids; among them may be that of a raised alarm.
    Receipt {
        /// Their ids.
        ids: Vec<String>,
        /// Who says so.
        actor: Actor,
    },
    /// A dialler ended.
    Dialled {
        /// For this alarm.
        alarm: String,
        /// Which call of it.
        call: u32,
        /// `Ok` if the call went out, and what is said of it.
        outcome: Result<String, String>,
    },
}

/// An open alarm, for whoever asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Open<'a> {
    /// Its id.
    pub id: &'a str,
    /// `pending`, `raised` or `acknowledged`.
    pub state: &'static str,
    /// It is only a test.
    pub test: bool,
    /// When it was opened, milliseconds since 1970.
    pub opened_ms: u64,
    /// Who is being called: the call went out, or is on its way, and nobody has acknowledged yet.
    pub contact: Option<&'a str>,
}

/// Why a step was not taken, in one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(pub String);

/// What a change brings about, once it is durable.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Told {
    /// Events with their ids, in their order.
    pub occurrences: Vec<(String, Occurrence)>,
    /// Calls to make.
    pub calls: Vec<Call>,
    /// The alarm that was opened, joined or changed.
    pub alarm: Option<String>,
}

impl Told {
    /// Adds what a later change of the same commit brings about.
    pub fn join(&mut self, later: Self) {
        self.occurrences.extend(later.occurrences);
        self.calls.extend(later.calls);
        self.alarm = later.alarm.or(self.alarm.take());
    }
}

/// A call to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// For this alarm.
    pub alarm: String,
    /// Which call of it, from 1.
    pub number: u32,
    /// Whom.
    pub contact: Contact,
    /// The alarm as JSON, for the dialler's standard input.
    pub json: String,
}

#[cfg(test)]
mod random_tests;
#[cfg(test)]
mod tests;
