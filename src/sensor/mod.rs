//! What the device feels: buttons (`button.rs`), sensors (here), and whether anybody is about (`inactivity`).
//!
//! From what a driver reads to what is told: units, plausibility, averages, deadband, thresholds.
//!
//! ```text
//! raw ─ · scale + offset ─ unit ─ plausible? ─ average ─┬─ deadband, max_silence ─ reading
//!                           │ no: bad                   └─ hold, hysteresis ─ exceeded, cleared
//!                           └─ sign of activity
//! ```
//!
//! A [`Sensor`] is handed the outcome of each attempt to read it, with the time, and answers with
//! [`News`]. It says itself when it is to be read next ([`Sensor::due`]).
//!
//! Terms: a *bad* attempt failed, did not answer, or gave what is no plausible value. [`BAD_IN_A_ROW`]
//! of them are a fault, and [`GOOD_IN_A_ROW`] good ones its end: one disturbed transfer on a bus is
//! neither. A *stale* value is one that its source has not renewed for `stale_after`; it is a fault at once.
//!
//! Invariants: between two faults a reading is told at least every `max_silence`, if it is read when
//! it is due; a threshold is exceeded and cleared in turn; what is not plausible is never told,
//! averaged or compared; memory is bounded by the averaging window.
//!
//! Absent: state across restarts. What is exceeded then is told again; consumers take
//! `device.session.started` for the end of what was before.

pub mod button;
pub mod inactivity;
mod power;
pub mod scan;
mod threshold;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::config::{self, SignKind};
pub use power::{Ailment, Condition, Power, PowerNews};
use threshold::Watch;

/// Bad attempts after which the sensor counts as failed.
pub const BAD_IN_A_ROW: u32 = 3;
/// Good readings after which a failed sensor counts as mended.
pub const GOOD_IN_A_ROW: u32 = 2;
/// After a bad attempt the next one comes no later than this.
const RETRY: Duration = Duration::from_secs(5);
/// How quickly what counts as usual follows the readings, for signs of activity.
const USUAL_OVER: Duration = Duration::from_secs(300);

/// What a driver has read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Raw {
    /// As it stands there.
    pub value: f64,
    /// For how long its source has not renewed it; zero where every read is a measurement.
    pub age: Duration,
}

/// What is to be told.
#[derive(Debug, Clone, PartialEq)]
pub enum News {
    /// A value worth telling.
    Reading(f64),
    /// A threshold, by its place, is exceeded.
    Exceeded(usize, f64),
    /// It is over.
    Cleared(usize, f64),
    /// The sensor has failed, and why.
    Failed(String),
    /// It works. Told once at the beginning as well: a run before this one may have told its failure.
    Works,
    /// Somebody is about.
    Activity,
}

/// The state of one `[[sensor]]`.
#[derive(Debug, Clone)]
pub struct Sensor {
    settings: config::Sensor,
    due: Instant,
    window: VecDeque<(Instant, f64)>,
    told: Option<(Instant, f64)>,
    bad: u32,
    good: u32,
    /// `None`: nothing was said yet.
    failed: Option<bool>,
    watches: Vec<Watch>,
    usual: Option<(Instant, f64)>,
}

impl Sensor {
    /// A sensor that is to be read now.
    pub fn new(settings: config::Sensor, now: Instant) -> Self {
        let watches = settings.thresholds.iter().map(Watch::new).collect();
        Self {
            settings,
            due: now,
            window: VecDeque::new(),
            told: None,
            bad: 0,
            good: 0,
            failed: None,
            watches,
            usual: None,
        }
    }

    /// Its settings.
    pub fn settings(&self) -> &config::Sensor {
        &self.settings
    }

    /// When it is to be read next.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Takes the outcome of an attempt: what was read, or why nothing was.
    pub fn handle(&mut self, now: Instant, outcome: Result<Raw, String>) -> Vec<News> {
        let mut news = Vec::new();
        match outcome.and_then(|raw| self.value(raw).map(|value| (value, raw.age))) {
            Ok((_, age)) if age >= self.settings.stale_after => {
                self.schedule(now, self.settings.interval);
                let seconds = age.as_secs();
                self.handle_failure(format!("has had no new value for {seconds} s"), &mut news);
            }
            Ok((value, _)) => {
                self.schedule(now, self.settings.interval);
                self.handle_value(now, value, &mut news);
            }
            Err(problem) => {
                self.schedule(now, self.settings.interval.min(RETRY));
                self.bad += 1;
                self.good = 0;
                if self.bad >= BAD_IN_A_ROW {
                    self.handle_failure(problem, &mut news);
                }
            }
        }
        news
    }

    /// The next attempt: a beat that does not drift with the time that reading takes, and that does not
    /// catch up on what was missed.
    fn schedule(&mut self, now: Instant, after: Duration) {
        let beat = self.due + after;
        self.due = if beat > now && beat <= now + after { beat } else { now + after };
    }

    /// The plausible value in the unit of events.
    ///
    /// # Errors
    /// One line: it is no number, or not plausible.
    pub fn value(&self, raw: Raw) -> Result<f64, String> {
        let config::Sensor { scale, offset, raw_unit, unit, plausible, .. } = &self.settings;
        let value = raw_unit.convert(raw.value * scale + offset, *unit);
        if !value.is_finite() {
            return Err("gives no number".to_owned());
        }
        let value = digits(value);
        if plausible.contains(&value) {
            return Ok(value);
        }
        let (side, bound) = if value < *plausible.start() {
            ("below", plausible.start())
        } else {
            ("above", plausible.end())
        };
        Err(format!("gives {value} {unit}, which is {side} the plausible {bound} {unit}"))
    }

    fn handle_failure(&mut self, problem: String, news: &mut Vec<News>) {
        self.good = 0;
        self.window.clear();
        self.usual = None;
        self.watches.iter_mut().for_each(Watch::interrupt);
        if self.failed != Some(true) {
            self.failed = Some(true);
            // What comes after the fault is told whatever the deadband says.
            self.told = None;
            news.push(News::Failed(problem));
        }
    }

    fn handle_value(&mut self, now: Instant, value: f64, news: &mut Vec<News>) {
        self.bad = 0;
        self.good = self.good.saturating_add(1);
        let well = match self.failed {
            None => true,
            Some(true) => self.good >= GOOD_IN_A_ROW,
            Some(false) => false,
        };
        if well {
            self.failed = Some(false);
            news.push(News::Works);
        }
        if self.is_sign(now, value) {
            news.push(News::Activity);
        }
        let value = self.average(now, value);
        if self.is_worth_telling(now, value) {
            self.told = Some((now, value));
            news.push(News::Reading(value));
        }
        for (place, watch) in self.watches.iter_mut().enumerate() {
            match watch.handle(now, value) {
                Some(true) => news.push(News::Exceeded(place, value)),
                Some(false) => news.push(News::Cleared(place, value)),
                None => {}
            }
        }
    }

    /// The mean of the readings of the last `average`.
    fn average(&mut self, now: Instant, value: f64) -> f64 {
        let over = self.settings.average;
        if over.is_zero() {
            return value;
        }
        self.window.push_back((now, value));
        let is_old = |at: Instant| now.duration_since(at) >= over;
        while self.window.front().is_some_and(|(at, _)| is_old(*at))
            || self.window.len() > config::MAX_WINDOW as usize
        {
            self.window.pop_front();
        }
        // Nothing is left of a window that is no longer than the interval.
        if self.window.is_empty() {
            return value;
        }
        digits(self.window.iter().map(|(_, value)| value).sum::<f64>() / self.window.len() as f64)
    }

    fn is_worth_telling(&self, now: Instant, value: f64) -> bool {
        let Some((at, told)) = self.told else { return true };
        // The next reading would come too late to keep the promise of `max_silence`.
        let is_time = now.duration_since(at) + self.settings.interval > self.settings.max_silence;
        is_time || (value - told).abs() >= self.settings.deadband
    }

    /// Whether the value differs enough from what it was in the last minutes.
    fn is_sign(&mut self, now: Instant, value: f64) -> bool {
        let Some(sign) = self.settings.activity else { return false };
        let Some((at, usual)) = self.usual else {
            self.usual = Some((now, value));
            return false;
        };
        let change = match sign.kind {
            SignKind::Rise => value - usual,
            SignKind::Change | SignKind::Door => (value - usual).abs(),
        };
        if change >= sign.step {
            self.usual = Some((now, value));
            return true;
        }
        let share = -(-now.duration_since(at).as_secs_f64() / USUAL_OVER.as_secs_f64()).exp_m1();
        self.usual = Some((now, usual + share * (value - usual)));
        false
    }
}

/// Seven significant digits: more would be the noise of the arithmetic.
fn digits(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let factor = 10f64.powi(6 - value.abs().log10().floor() as i32);
    let rounded = (value * factor).round() / factor;
    if rounded.is_finite() { rounded } else { value }
}

#[cfg(test)]
mod tests;
