//! What of an alarm is kept, and time that survives a reboot.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Kind, Now, Open, Trigger};
use crate::clock::ClockState;

/// The memo of the real alarm.
pub const REAL_MEMO: &str = "alarm.real";
/// The memo of the test alarm.
pub const TEST_MEMO: &str = "alarm.test";

/// Triggers that are kept by name: the first, and the latest of the others.
const TRIGGERS_KEPT: usize = 5;
/// Raised events whose receipt acknowledges.
const RAISED_KEPT: usize = 4;
/// Bytes of a text or an id in a memo.
const TEXT_BYTES: usize = 80;

/// What was read back at the start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Restored {
    /// The memo [`REAL_MEMO`].
    pub real: Option<Vec<u8>>,
    /// The memo [`TEST_MEMO`].
    pub test: Option<Vec<u8>>,
}

/// Where an open alarm stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    Pending,
    Raised,
    Acknowledged,
}

impl State {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Raised => "raised",
            Self::Acknowledged => "acknowledged",
        }
    }
}

/// A point in time by both clocks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Moment {
    boot: String,
    mono_ms: u64,
    pub(super) wall_ms: u64,
    synced: bool,
}

impl Moment {
    pub(super) fn new(boot: &str, now: Now) -> Self {
        Self {
            boot: boot.to_owned(),
            mono_ms: ms(now.mono),
            wall_ms: now.wall.unix_ms,
            synced: now.wall.state == ClockState::Synced,
        }
    }

    /// How long ago this was; `None` where nobody can tell.
    pub(super) fn elapsed(&self, boot: &str, now: Now) -> Option<Duration> {
        if self.boot == boot {
            // Monotonic time of one boot cannot run backwards; if it seems to, the store is wrong.
            return ms(now.mono).checked_sub(self.mono_ms).map(Duration::from_millis);
        }
        if !self.synced || now.wall.state != ClockState::Synced {
            return None;
        }
        now.wall.unix_ms.checked_sub(self.wall_ms).map(Duration::from_millis)
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// When something is due: so long after a moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Deadline {
    since: Moment,
    lasts_ms: u64,
}

impl Deadline {
    pub(super) fn new(boot: &str, now: Now, lasts: Duration) -> Self {
        Self { since: Moment::new(boot, now), lasts_ms: ms(lasts) }
    }

    /// How long it is until then; nothing where nobody can tell.
    pub(super) fn left(&self, boot: &str, now: Now) -> Duration {
        let lasts = Duration::from_millis(self.lasts_ms);
        self.since.elapsed(boot, now).map_or(Duration::ZERO, |past| lasts.saturating_sub(past))
    }
}

/// A trigger, as it is kept and told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Joined {
    pub(super) kind: Kind,
    pub(super) cause: Option<String>,
    pub(super) at_ms: u64,
    pub(super) text: String,
}

/// The call that was made last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LastCall {
    /// Which of the alarm, from 1.
    pub(super) number: u32,
    pub(super) contact: String,
    /// `None`: the dialler has not ended, as far as is known.
    pub(super) outcome: Option<String>,
    pub(super) failed: bool,
}

/// How far the contacts are walked through.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Walk {
    /// Calls that were made since the alarm was raised last.
    pub(super) made: u32,
    pub(super) round_began: Option<Moment>,
    pub(super) exhausted: bool,
}

/// An open alarm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Alarm {
    pub(super) id: String,
    pub(super) test: bool,
    pub(super) state: State,
    pub(super) opened_ms: u64,
    pub(super) triggers: Vec<Joined>,
    /// All triggers, also those that are not kept by name.
    pub(super) joined: u32,
    /// The last step.
    pub(super) step: Moment,
    /// Its event.
    pub(super) last_event: String,
    /// Events of having been raised.
    pub(super) raised_events: Vec<String>,
    pub(super) raised: u32,
    pub(super) deadline: Option<Deadline>,
    pub(super) walk: Walk,
    pub(super) last_call: Option<LastCall>,
    pub(super) calls: u32,
    /// Who acknowledged it.
    pub(super) seen_by: Option<String>,
}

impl Alarm {
    pub(super) fn join(&mut self, trigger: &Trigger, now: Now) {
        self.joined = self.joined.saturating_add(1);
        if self.triggers.len() >= TRIGGERS_KEPT {
            self.triggers.remove(1);
        }
        self.triggers.push(Joined {
            kind: trigger.kind,
            cause: trigger.cause.as_deref().map(short),
            at_ms: now.wall.unix_ms,
            text: short(&trigger.text),
        });
    }

    pub(super) fn was_raised(&mut self, event: String) {
        self.raised = self.raised.saturating_add(1);
        if self.raised_events.len() >= RAISED_KEPT {
            self.raised_events.remove(0);
        }
        self.raised_events.push(event);
    }

    pub(super) fn open(&self) -> Open<'_> {
        let calling = self.state == State::Raised && self.walk.made > 0 && !self.walk.exhausted;
        let call = self.last_call.as_ref().filter(|last| calling && !last.failed);
        Open {
            id: &self.id,
            state: self.state.as_str(),
            test: self.test,
            opened_ms: self.opened_ms,
            contact: call.map(|last| last.contact.as_str()),
        }
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// A text that fits, in one line.
pub(super) fn short(text: &str) -> String {
    let mut short = String::new();
    for c in text.chars() {
        let c = if c.is_control() { ' ' } else { c };
        if short.len() + c.len_utf8() > TEXT_BYTES {
            break;
        }
        short.push(c);
    }
    short
}
