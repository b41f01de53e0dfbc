//! Notices that nobody has been about for longer than is usual at this hour of the week.
//!
//! ```text
//! signs of activity ─ silence ─┬─ longer than the limit of this hour? ─ detected ─ next sign ─ cleared
//!                              └─ longest silence of each hour ─ rhythm (learned) ─ limit
//! ```
//!
//! Terms: a *sign* is whatever shows that somebody is about. The *silence* is how long ago the last one
//! was. The *rhythm* holds, for each of the 168 hours of the week by local time, the longest silence in
//! each of its last weeks; the *limit* of an hour follows from it (`rhythm.rs`). Somebody is *out* when the last
//! sign came from the front door and none from within has followed.
//!
//! - **Learning**: until so many hours have been observed as `learning` has, and whenever the wall clock is
//!   not synchronised, the limit is the fixed `max_silence`.
//! - **Out**: the limit is at least `max_silence`, since somebody who left is silent for a reason. Nothing
//!   is learned of it.
//! - **Away** (holiday): nothing is detected and nothing learned, until it is called off or its time is over.
//! - **Restart**: silence goes on from the last sign before it, so that a fall in a power cut is
//!   noticed; but nothing is detected before somebody had [`GRACE`] to show himself. Silence over a pause that was
//!   not observed is not learned. A sign as long before it as `FORGET` is forgotten, and silence begins anew.
//!
//! Invariants: detected and cleared come in turn; while it is not away, a silence of [`LONGEST`] is
//! detected whatever was learned; what was learned of an hour is at most its limit, so that an
//! unnoticed accident does not become usual at once.
//!
//! Absent: who is about (a cleaner, a pet), and where; several persons in one home are one rhythm.

mod memory;
mod rhythm;

use std::time::{Duration, Instant};

use crate::clock::{ClockState, Local, WallTime, Zone};
use crate::config;
pub use memory::{Away, Memory, MemoryError};
use rhythm::Rhythm;

/// Whatever was learned, a silence as long as this is detected.
pub const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// After a start nothing is detected for so long.
pub const GRACE: Duration = Duration::from_secs(30 * 60);
/// A sign as long as this before the start says nothing any more.
const FORGET: Duration = Duration::from_secs(24 * 3600);
/// An hour counts as observed with so much of it.
const OBSERVED: Duration = Duration::from_secs(45 * 60);
/// The longest step between two looks that counts as observed.
const STEP: Duration = Duration::from_secs(5 * 60);

/// Why the limit is what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// The learned rhythm.
    Rhythm,
    /// Too little is learned yet: the fixed limit.
    Learning,
    /// The hour is not known: the fixed limit.
    ClockUnknown,
    /// Somebody left by the front door: at least the fixed limit.
    Out,
}

impl Basis {
    /// The word in events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rhythm => "rhythm",
            Self::Learning => "learning",
            Self::ClockUnknown => "clock-unknown",
            Self::Out => "out",
        }
    }
}

/// A silence that is too long, or was.
#[derive(Debug, Clone, PartialEq)]
pub struct Silence {
    /// How long it is, or was.
    pub lasted: Duration,
    /// How long it might have been.
    pub limit: Duration,
    /// Why.
    pub basis: Basis,
    /// For people: "no activity since 07:10; usually by 08:00 on Sundays".
    pub explanation: String,
}

/// What is to be told.
#[derive(Debug, Clone, PartialEq)]
pub enum Finding {
    /// Nobody has been about for too long.
    Detected(Silence),
    /// Somebody is about again, as this sign shows.
    Cleared(Silence, String),
    /// How much of the learning phase is over, in percent; 100 is its end.
    Learned(u32),
}

/// The state of the watch over one home.
#[derive(Debug, Clone)]
pub struct Inactivity {
    settings: config::Activity,
    zone: Zone,
    rhythm: Rhythm,
    began: Instant,
    /// The moment of the last sign, or of the start.
    last: Instant,
    /// What of the silence was before `last`, and not observed.
    before: Duration,
    /// When the last sign of the run before was; until the clock tells how long ago that is.
    restored: Option<u64>,
    out: bool,
    detected: bool,
    away: Option<Away>,
    hour: Option<Hour>,
    percent_told: Option<u32>,
}

/// The hour that is being observed.
#[derive(Debug, Clone)]
struct Hour {
    at: Local,
    longest: Duration,
    observed: Duration,
    seen: Instant,
    /// Something in it must not be learned.
    spoiled: bool,
}

impl Inactivity {
    /// Goes on with what is remembered; without, learning begins.
    pub fn new(
        settings: config::Activity,
        zone: Zone,
        memory: Option<Memory>,
        now: Instant,
    ) -> Self {
        let memory = memory.unwrap_or_default();
        Self {
            settings,
            zone,
            rhythm: Rhythm::from(memory.cells),
            began: now,
            last: now,
            before: Duration::ZERO,
            restored: memory.last_sign_ms,
            out: memory.out,
            detected: memory.detected,
            away: memory.away,
            hour: None,
            percent_told: None,
        }
    }

    /// What is to be remembered. Of a clock that is not synchronised no time is kept.
    pub fn memory(&self, now: Instant, wall: WallTime) -> Memory {
        let silence_ms = u64::try_from(self.silence(now).as_millis()).unwrap_or(u64::MAX);
        let last_sign_ms = match wall.state {
            ClockState::Synced if self.restored.is_none() => {
                Some(wall.unix_ms.saturating_sub(silence_ms))
            }
            _ => self.restored,
        };
        Memory {
            cells: self.rhythm.cells(),
            last_sign_ms,
            out: self.out,
            detected: self.detected,
            away: self.away,
        }
    }

    /// Whether and until when nobody is expected to be at home.
    pub fn away(&self) -> Option<Away> {
        self.away
    }

    /// Begins or ends a holiday. Silence begins anew with its end; one that was detected is over with its
    /// beginning.
    pub fn set_away(
        &mut self,
        away: Option<Away>,
        now: Instant,
        wall: WallTime,
    ) -> Option<Finding> {
        if self.away.is_some() && away.is_none() {
            self.start_anew(now);
        }
        self.away = away;
        self.hour = None;
        let over = away.is_some() && std::mem::take(&mut self.detected);
        over.then(|| Finding::Cleared(self.describe(now, wall), "away".to_owned()))
    }

    fn start_anew(&mut self, now: Instant) {
        (self.last, self.before, self.restored) = (now, Duration::ZERO, None);
        (self.out, self.hour) = (false, None);
    }

    /// How long ago the last sign was.
    pub fn silence(&self, now: Instant) -> Duration {
        now.duration_since(self.last) + self.before
    }

    /// How much of the learning phase is over, in percent.
    pub fn percent_learned(&self) -> u32 {
        let wanted = (self.settings.learning.as_secs() / 3600).max(1);
        u32::try_from(u64::from(self.rhythm.hours()) * 100 / wanted).unwrap_or(100).min(100)
    }

    /// How long a silence may be now, and why.
    pub fn limit(&self, wall: WallTime) -> (Duration, Basis) {
        let fixed = self.settings.max_silence;
        if wall.state != ClockState::Synced {
            return (fixed, Basis::ClockUnknown);
        }
        let rhythm = self.zone.local(wall.unix_ms).hour_of_week();
        match self.rhythm_limit(rhythm) {
            None => (fixed, Basis::Learning),
            Some(limit) if self.out && fixed > limit => (fixed, Basis::Out),
            Some(limit) => (limit, Basis::Rhythm),
        }
    }

    fn rhythm_limit(&self, hour: usize) -> Option<Duration> {
        if self.percent_learned() < 100 {
            return None;
        }
        let minutes = f64::from(self.rhythm.usual(hour)?) * self.settings.margin + rhythm::PAD_MIN;
        let limit = Duration::from_secs_f64(minutes * 60.0);
        Some(limit.max(self.settings.least).min(LONGEST))
    }

    /// Somebody is about, as `source` shows; `door`: by the front door, and may have left.
    pub fn handle_sign(
        &mut self,
        now: Instant,
        wall: WallTime,
        source: &str,
        door: bool,
    ) -> Vec<Finding> {
        let mut found = self.handle_tick(now, wall);
        if self.away.is_some() {
            return found;
        }
        if self.detected {
            self.detected = false;
            let silence = self.describe(now, wall);
            found.push(Finding::Cleared(silence, source.to_owned()));
        }
        self.last = now;
        self.before = Duration::ZERO;
        self.restored = None;
        self.out = door;
        found
    }

    /// Looks at the clock; to be called about once a minute.
    pub fn handle_tick(&mut self, now: Instant, wall: WallTime) -> Vec<Finding> {
        self.resume(now, wall);
        if let Some(Away { until_ms }) = self.away {
            let over = until_ms.is_some_and(|until| until <= wall.unix_ms);
            if !over || wall.state != ClockState::Synced {
                return Vec::new();
            }
            // An end clears nothing: nothing is detected while away.
            let _ = self.set_away(None, now, wall);
        }
        self.observe(now, wall);
        let mut found = Vec::new();
        let percent = self.percent_learned();
        // Once a day, and after each start.
        let step =
            u32::try_from(2400 / (self.settings.learning.as_secs() / 3600).max(24)).unwrap_or(1);
        let told = self.percent_told;
        if told.is_none_or(|told| percent >= told + step || percent == 100 && told < 100) {
            self.percent_told = Some(percent);
            found.push(Finding::Learned(percent));
        }
        let (limit, _) = self.limit(wall);
        let has_had_time = self.before.is_zero() || now.duration_since(self.began) >= GRACE;
        if !self.detected && has_had_time && self.silence(now) > limit {
            self.detected = true;
            found.push(Finding::Detected(self.describe(now, wall)));
        }
        found
    }

    /// As soon as the clock can be believed, the last sign of the run before counts.
    fn resume(&mut self, now: Instant, wall: WallTime) {
        if wall.state != ClockState::Synced {
            return;
        }
        let Some(sign_ms) = self.restored.take() else { return };
        let began_ms = wall.unix_ms.saturating_sub(
            u64::try_from(now.duration_since(self.last).as_millis()).unwrap_or(u64::MAX),
        );
        let before = Duration::from_millis(began_ms.saturating_sub(sign_ms));
        self.before = if before < FORGET { before } else { Duration::ZERO };
    }

    /// Follows the hours by local time and learns from those that are over.
    fn observe(&mut self, now: Instant, wall: WallTime) {
        if wall.state != ClockState::Synced {
            self.hour = None;
            return;
        }
        let (at, silence) = (self.zone.local(wall.unix_ms), self.silence(now));
        let spoiled = self.out || !self.before.is_zero();
        let longest = Duration::ZERO;
        let fresh = Hour { at, longest, observed: longest, seen: now, spoiled: false };
        let hour = self.hour.get_or_insert(fresh);
        let step = now.duration_since(hour.seen);
        hour.seen = now;
        hour.spoiled |= spoiled;
        if step <= STEP {
            hour.observed += step;
        }
        if hour.at.hour() == at.hour() {
            hour.longest = hour.longest.max(silence);
            return;
        }
        // What the hour that is over had come to at its end.
        let into = Duration::from_secs(60 * u64::from(at.minute_of_hour()));
        hour.longest = hour.longest.max(silence.saturating_sub(into));
        let over = Hour { at, longest: silence, observed: Duration::ZERO, seen: now, spoiled };
        let over = std::mem::replace(hour, over);
        if over.observed >= OBSERVED && !over.spoiled {
            let cell = over.at.hour_of_week();
            let most = self.rhythm_limit(cell).unwrap_or(LONGEST);
            self.rhythm.learn(cell, over.longest.min(most));
        }
    }

    fn describe(&self, now: Instant, wall: WallTime) -> Silence {
        let lasted = self.silence(now);
        let (limit, basis) = self.limit(wall);
        let hours = |duration: Duration| (duration.as_secs_f64() / 360.0).round() / 10.0;
        let fixed = |why: &str| {
            format!("no activity for {} h; the limit is {} h {why}", hours(lasted), hours(limit))
        };
        let explanation = match basis {
            Basis::ClockUnknown => fixed("while the clock is not synchronised"),
            Basis::Learning => {
                let since = self.since(wall, lasted);
                let rest = fixed("while the daily rhythm is being learned");
                format!("{since}: {rest} ({} %)", self.percent_learned())
            }
            Basis::Out => {
                let rest = fixed("for somebody who went out");
                format!("{}: the front door was last; {rest}", self.since(wall, lasted))
            }
            Basis::Rhythm => {
                let since = self.since(wall, lasted);
                match self.usually_by(wall, lasted) {
                    Some(by) => format!("no activity {since}; usually by {by}"),
                    None => format!("no activity {since}; never so long at this hour"),
                }
            }
        };
        Silence { lasted, limit, basis, explanation }
    }

    /// "since 07:10", with the day where it is not today.
    fn since(&self, wall: WallTime, lasted: Duration) -> String {
        let now = self.zone.local(wall.unix_ms);
        let since = self.zone.local(before(wall, lasted));
        if since.is_same_day(now) {
            format!("since {}", since.hh_mm())
        } else {
            format!("since {} {}", since.weekday(), since.hh_mm())
        }
    }

    /// When a silence that began then is usually over: in the first hour in which it is longer than
    /// what is usual.
    fn usually_by(&self, wall: WallTime, lasted: Duration) -> Option<String> {
        const STEP_MIN: u64 = 5;
        let since = before(wall, lasted);
        (0..=lasted.as_secs() / 60).step_by(STEP_MIN as usize).find_map(|minutes| {
            let at = self.zone.local(since + minutes * 60_000);
            let usual = u64::from(self.rhythm.usual(at.hour_of_week())?);
            (minutes > usual).then(|| {
                // Not before that hour, of which alone it is said.
                let by = usual.max(minutes.saturating_sub(u64::from(at.minute_of_hour())));
                let by = (since + by * 60_000).next_multiple_of(STEP_MIN * 60_000);
                let by = self.zone.local(by);
                format!("{} on {}s", by.hh_mm(), by.weekday())
            })
        })
    }
}

fn before(wall: WallTime, duration: Duration) -> u64 {
    wall.unix_ms.saturating_sub(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests;
