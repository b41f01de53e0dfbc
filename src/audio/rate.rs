//! Whether a source gives as many samples a second as it says.
//!
//! A card that runs at another rate than the one it was asked for makes every voice higher or lower than
//! people speak, and nothing in the sound itself says so: the samples are held against the clock. A step is
//! the time of a second at least, and *off* where so many samples came in it that the rate would be
//! wrong by a quarter. A detector hears a voice that is a tenth off, and the cards that mix up 44.1 and
//! 48 kHz are within that.
//!
//! Raised after [`ENOUGH`] of the last [`REMEMBERED`] steps, cleared after [`CLEAN`] without: both within ten
//! seconds. A machine that is busy for a moment, or sound that is lost, makes one or two.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::SAMPLE_RATE_HZ;

/// Steps that are judged together.
const REMEMBERED: usize = 8;
/// Of them off that make a fault.
const ENOUGH: usize = 5;
/// In a row without, after which it is over.
const CLEAN: usize = 4;
/// The shortest step.
const STEP: Duration = Duration::from_secs(1);
/// Shares of the rate that are right.
const RIGHT: std::ops::Range<f64> = 0.75..1.33;

/// Judges one stream. See the module.
#[derive(Debug, Clone, Default)]
pub struct Rate {
    began: Option<Instant>,
    /// Since then.
    samples: u64,
    /// The share of the rate in each step, the newest last, at most [`REMEMBERED`].
    steps: VecDeque<f64>,
    at_fault: Option<f64>,
}

impl Rate {
    /// So many samples of 16 kHz have come by `now`, since the last call.
    pub fn count(&mut self, samples: usize, now: Instant) {
        // What comes with the first call has been waiting for nobody knows how long.
        let Some(began) = self.began else {
            self.began = Some(now);
            return;
        };
        self.samples += samples as u64;
        let took = now.saturating_duration_since(began);
        if took < STEP {
            return;
        }
        let share = self.samples as f64 / (f64::from(SAMPLE_RATE_HZ) * took.as_secs_f64());
        (self.began, self.samples) = (Some(now), 0);
        self.steps.push_back(share);
        let excess = self.steps.len().saturating_sub(REMEMBERED);
        self.steps.drain(..excess);
        let off = |share: &&f64| !RIGHT.contains(*share);
        if self.steps.iter().filter(off).count() >= ENOUGH && !RIGHT.contains(&share) {
            self.at_fault = Some(share);
        }
        if self.steps.len() >= CLEAN && !self.steps.iter().rev().take(CLEAN).any(|s| off(&s)) {
            self.at_fault = None;
        }
    }

    /// How many times as many samples come as should, while that is wrong.
    pub fn at_fault(&self) -> Option<f64> {
        self.at_fault
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: Duration = Duration::from_millis(100);

    /// Blocks of 100 ms until the verdict is another.
    fn blocks_until_changed(rate: &mut Rate, now: &mut Instant, share: f64) -> Option<usize> {
        let before = rate.at_fault().is_some();
        (1..=300).find(|_| {
            *now += BLOCK;
            rate.count((1600.0 * share) as usize, *now);
            rate.at_fault().is_some() != before
        })
    }

    #[allow(clippy::disallowed_methods, reason = "an Instant has no other beginning")]
    fn start() -> (Rate, Instant) {
        (Rate::default(), Instant::now())
    }

    #[test]
    fn a_wrong_rate_is_raised_and_cleared_within_ten_seconds() {
        for share in [3.0, 2.0, 1.5, 0.5, 1.0 / 3.0] {
            let (mut rate, mut now) = start();
            assert_eq!(blocks_until_changed(&mut rate, &mut now, 1.0), None);
            let raised = blocks_until_changed(&mut rate, &mut now, share).unwrap();
            assert!(raised <= 100, "{share}: {raised}");
            assert!((rate.at_fault().unwrap() - share).abs() < 0.1, "{rate:?}");
            let cleared = blocks_until_changed(&mut rate, &mut now, 1.0).unwrap();
            assert!(cleared <= 100, "{share}: {cleared}");
        }
    }

    #[test]
    fn a_card_of_the_other_usual_rate_a_pause_and_a_burst_are_none() {
        let (mut rate, mut now) = start();
        for share in [44.1 / 48.0, 48.0 / 44.1] {
            assert_eq!(blocks_until_changed(&mut rate, &mut now, share), None, "{share}");
        }
        for _ in 0..20 {
            // Two seconds of nothing, all of it at once, and some ordinary ones.
            now += Duration::from_millis(1900);
            rate.count(16, now);
            now += BLOCK;
            rate.count(32_000, now);
            for _ in 0..60 {
                now += BLOCK;
                rate.count(1600, now);
            }
            assert_eq!(rate.at_fault(), None);
        }
    }
}
