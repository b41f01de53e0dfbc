//! When something was, by a clock that cannot be wrong: so long after a boot.
//!
//! A wall clock that nobody has set says 1970, or when the device was last switched off. Beside such a time the
//! outbox notes the monotonic clock, and once the wall clock of that boot is known, the time can be told.

use super::{Event, Value};
use crate::clock::{ClockState, WallTime};

/// A moment of one boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moment {
    /// The kernel's id of the boot.
    pub boot: String,
    /// Since it, milliseconds.
    pub ms: u64,
}

/// What is noted of an event that is accepted while the wall clock cannot be believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Noted {
    /// When it was accepted.
    pub accepted: Moment,
    /// Since the same boot: when its `time` was taken. `None`: `time` is not ours to correct.
    pub taken_ms: Option<u64>,
}

/// Longer than any event of the agent's own waits between its `time` and its acceptance. If it seems longer,
/// the wall clock was set meanwhile.
const LONGEST_WAIT_MS: u64 = 60_000;

impl Noted {
    /// What is to be noted of an event that is accepted now, if anything is.
    pub fn new(event: &Event, now: WallTime, accepted: &Moment) -> Option<Self> {
        let doubtful = now.state != ClockState::Synced;
        if !doubtful && !event.is_doubtful() {
            return None;
        }
        let taken_ms = event.is_doubtful().then(|| {
            let waited = event.time_ms().and_then(|time| now.unix_ms.checked_sub(time));
            let waited = waited.filter(|waited| doubtful && *waited <= LONGEST_WAIT_MS);
            accepted.ms.saturating_sub(waited.unwrap_or(0))
        });
        Some(Self { accepted: accepted.clone(), taken_ms })
    }

    /// One line, without spaces.
    pub fn to_text(&self) -> String {
        let Self { accepted: Moment { boot, ms }, taken_ms } = self;
        match taken_ms {
            None => format!("{boot}/{ms}"),
            Some(taken) => format!("{boot}/{ms}/{taken}"),
        }
    }

    /// Reads what [`Self::to_text`] wrote.
    pub fn from_text(text: &str) -> Option<Self> {
        let mut parts = text.split('/');
        let (boot, ms) = (parts.next()?.to_owned(), parts.next()?.parse().ok()?);
        let taken_ms = parts.next().map(str::parse).transpose().ok()?;
        Some(Self { accepted: Moment { boot, ms }, taken_ms })
    }
}

impl Event {
    /// Whether its `time` was taken by us from a clock that cannot be believed.
    pub fn is_doubtful(&self) -> bool {
        self.doubtful
    }

    /// What was noted at its acceptance.
    pub fn noted(&self) -> Option<&Noted> {
        self.noted.as_deref()
    }

    pub(super) fn doubt(&mut self) {
        self.doubtful = true;
    }

    /// Attaches what was noted, which is no part of the event and never published.
    pub fn note(&mut self, noted: Noted) {
        self.doubtful = noted.taken_ms.is_some();
        self.noted = Some(Box::new(noted));
    }

    /// Gives an event whose `time` is doubtful the time that it really was: `clock` = `corrected`, and
    /// `recordedtime` keeps what the clock said. Everything else stays.
    pub fn correct(&mut self, unix_ms: u64) {
        if !self.doubtful {
            return;
        }
        let time = WallTime { unix_ms, state: ClockState::Synced }.to_rfc3339();
        if let Some(recorded) = self.attributes.insert("time".into(), time.into()) {
            self.attributes.insert("recordedtime".into(), recorded);
        }
        self.attributes.insert("clock".into(), Value::from("corrected"));
        self.doubtful = false;
    }

    fn time_ms(&self) -> Option<u64> {
        let time = self.attribute("time")?.as_str()?;
        let time = chrono::DateTime::parse_from_rfc3339(time).ok()?;
        u64::try_from(time.timestamp_millis()).ok()
    }
}
