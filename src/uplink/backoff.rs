//! How long to wait before the next attempt.
//!
//! Two laws, since two things are wanted that exclude each other: a lone device wants to be back at
//! once, and a fleet that lost its broker must not come back as one.
//!
//! - *Quick*: decorrelated jitter. Each wait is drawn between the shortest wait and three times the last
//!   one, cut at the longest. For whom somebody waits: a device with an unsent alert, and one
//!   that has had no lasting session since its start, in front of which an installer stands.
//! - *Spread*: the first wait after a session that held is drawn evenly over the spread, the later ones
//!   between the spread and 6/5 of it. 10,000 devices that lose their broker in the same instant so
//!   try at no more than 2 % of the fleet a second, from the first second on. Nothing quicker
//!   can do that: 2 % a second for all is 50 s for the last. Doubling, or the quick law alone, brings
//!   half of a fleet within two seconds after a broker's restart.
//!
//! Only a session that held starts the waits over, and it decides that the next are spread.

use std::time::Duration;

use crate::clock::Rng;

/// Waits that grow while attempts fail.
#[derive(Debug, Clone)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    held: Duration,
    /// Zero: always quick.
    spread: Duration,
    /// A session that held is behind us.
    spreading: bool,
    last: Duration,
    attempt: u32,
}

/// Why a [`Backoff`] cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackoffError {
    /// Without a shortest wait a dead broker would be asked in a tight loop.
    #[error("shortest wait must not be zero")]
    Zero,
    /// The bounds are the wrong way round.
    #[error("shortest wait {min:?} is longer than the longest {max:?}")]
    Reversed {
        /// The shortest wait.
        min: Duration,
        /// The longest wait.
        max: Duration,
    },
}

impl Backoff {
    /// Waits of `min` to `max`. A session that lasted `held` starts them over; one that broke
    /// sooner does not, else a broker that accepts and drops us would be asked at full speed.
    ///
    /// # Errors
    /// `min` is zero or over `max`.
    pub fn new(min: Duration, max: Duration, held: Duration) -> Result<Self, BackoffError> {
        if min.is_zero() {
            return Err(BackoffError::Zero);
        }
        if min > max {
            return Err(BackoffError::Reversed { min, max });
        }
        let spread = Duration::ZERO;
        Ok(Self { min, max, held, spread, spreading: false, last: min, attempt: 0 })
    }

    /// Spreads the waits after a session that held; `min..=6/5 * spread`. Not over less than `min`.
    pub fn with_spread(mut self, spread: Duration) -> Self {
        self.spread = spread.max(self.min);
        self
    }

    /// The next wait.
    pub fn next_delay(&mut self, rng: &mut Rng) -> Duration {
        if !self.spreading || self.spread.is_zero() {
            return self.quick_delay(rng);
        }
        let from = if self.attempt == 0 { self.min } else { self.spread };
        let to = if self.attempt == 0 { self.spread } else { self.spread.mul_f64(1.2) };
        self.attempt = self.attempt.saturating_add(1);
        from + (to - from).mul_f64(rng.unit())
    }

    /// The next wait where an alert is to be sent, `min..=max`, whatever the fleet does.
    pub fn quick_delay(&mut self, rng: &mut Rng) -> Duration {
        let high = self.last.saturating_mul(3).min(self.max);
        let span = high.saturating_sub(self.min);
        self.last = (self.min + span.mul_f64(rng.unit())).min(self.max);
        self.attempt = self.attempt.saturating_add(1);
        self.last
    }

    /// A session that lasted this long is over.
    pub fn session_lasted(&mut self, duration: Duration) {
        if duration >= self.held {
            self.last = self.min;
            self.attempt = 0;
            self.spreading = true;
        }
    }

    /// Waits drawn since the last session that held.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }
}

impl Default for Backoff {
    /// Quick: 1 s to 60 s, since a broker's restart is over in seconds, and a minute is the longest that
    /// an alarm should wait for a network that has come back. Spread: 80 s, then 80 s to 96 s: with a
    /// margin for chance what 2 % a second needs. Started over by a session of 30 s.
    fn default() -> Self {
        let min = Duration::from_secs(1);
        Self {
            min,
            max: Duration::from_secs(60),
            held: Duration::from_secs(30),
            spread: Duration::from_secs(80),
            spreading: false,
            last: min,
            attempt: 0,
        }
    }
}

/// The most events within any second, whenever it begins.
#[cfg(test)]
pub(super) fn peak_per_second(events: &mut [std::time::Instant]) -> usize {
    events.sort_unstable();
    let mut first = 0;
    let within = |(last, at): (usize, &std::time::Instant)| {
        while *at >= events[first] + Duration::from_secs(1) {
            first += 1;
        }
        last + 1 - first
    };
    events.iter().enumerate().map(within).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn bounds_that_cannot_work_are_refused() {
        assert_eq!(Backoff::new(S(0), S(1), S(1)).err(), Some(BackoffError::Zero));
        let reversed = BackoffError::Reversed { min: S(2), max: S(1) };
        assert_eq!(Backoff::new(S(2), S(1), S(1)).err(), Some(reversed));
        assert!(Backoff::new(S(1), S(1), S(0)).is_ok());
    }

    #[test]
    fn waits_stay_in_bounds_grow_and_differ() {
        for seed in 0..200 {
            let mut rng = Rng::from_seed(seed);
            let mut backoff = Backoff::default();
            let first = backoff.next_delay(&mut rng);
            assert!((S(1)..=S(3)).contains(&first), "seed {seed}: {first:?}");
            let waits: Vec<_> = (0..50).map(|_| backoff.next_delay(&mut rng)).collect();
            assert!(waits.iter().all(|w| (S(1)..=S(60)).contains(w)), "seed {seed}: {waits:?}");
            assert!(waits.iter().any(|w| *w > S(10)), "seed {seed}: never grew");
            assert_eq!(backoff.attempt(), 51);
        }
        let one = |seed| Backoff::default().next_delay(&mut Rng::from_seed(seed));
        assert_ne!(one(1), one(2));
        assert_eq!(one(1), one(1), "a seed repeats the run");
    }

    #[test]
    fn only_a_session_that_held_starts_the_waits_over() {
        let mut rng = Rng::from_seed(7);
        let mut backoff = Backoff::default();
        for _ in 0..20 {
            backoff.next_delay(&mut rng);
        }
        backoff.session_lasted(S(29));
        assert_eq!(backoff.attempt(), 20);
        backoff.session_lasted(S(30));
        assert_eq!(backoff.attempt(), 0);
        assert!(backoff.quick_delay(&mut rng) <= S(3));
    }

    #[test]
    fn after_a_session_that_held_the_waits_are_spread_except_for_an_alert() {
        let mut firsts = Vec::new();
        for seed in 0..200 {
            let mut rng = Rng::from_seed(seed);
            let mut backoff = Backoff::default();
            backoff.session_lasted(S(30));
            assert!(backoff.clone().quick_delay(&mut rng) <= S(3));
            firsts.push(backoff.next_delay(&mut rng));
            backoff.session_lasted(S(2));
            let later = backoff.next_delay(&mut rng);
            assert!((S(80)..=S(96)).contains(&later), "seed {seed}: {later:?}");
        }
        assert!(firsts.iter().all(|first| (S(1)..=S(80)).contains(first)));
        assert!(firsts.iter().any(|first| *first < S(5)) && firsts.iter().any(|f| *f > S(65)));
    }

    const FLEET: u64 = 10_000;

    /// How a fleet is made for the simulation.
    struct Fleet {
        backoff: Backoff,
        jitter: bool,
        /// So many devices have an alert to send.
        alerts: u64,
        /// The first seed; each device has one.
        seed: u64,
    }

    impl Fleet {
        /// Every device has held a session, and all lose the broker in the same instant. Until it
        /// is back, each attempt fails after `attempt`. Most attempts within any second, and when
        /// the last device was back.
        #[allow(clippy::disallowed_methods, reason = "an Instant has no other beginning")]
        fn outage(&self, lasts: Duration, attempt: Duration) -> (usize, Duration) {
            let begin = std::time::Instant::now();
            let mut attempts = Vec::new();
            let mut last_back = Duration::ZERO;
            for device in 0..FLEET {
                let mut rng = Rng::from_seed(if self.jitter { self.seed + device } else { 0 });
                let mut backoff = self.backoff.clone();
                backoff.session_lasted(S(3600));
                let mut at = Duration::ZERO;
                loop {
                    at += match device < self.alerts {
                        true => backoff.quick_delay(&mut rng),
                        false => backoff.next_delay(&mut rng),
                    };
                    attempts.push(begin + at);
                    if at >= lasts {
                        break;
                    }
                    at += attempt;
                }
                last_back = last_back.max(at);
            }
            (peak_per_second(&mut attempts), last_back)
        }
    }

    /// Two percent of the fleet.
    const ALLOWED: usize = FLEET as usize / 50;

    #[test]
    fn a_fleet_that_loses_its_broker_does_not_come_back_as_one() {
        for (lasts_s, attempt_s) in [(0, 0), (2, 0), (30, 0), (120, 0), (600, 10), (3600, 10)] {
            let of_seed = |round| {
                let (backoff, seed) = (Backoff::default(), round * FLEET);
                let fleet = Fleet { backoff, jitter: true, alerts: 20, seed };
                fleet.outage(S(lasts_s), S(attempt_s))
            };
            let outages: Vec<_> = (0..5).map(of_seed).collect();
            let peak = outages.iter().map(|(peak, _)| *peak).max().unwrap();
            let last = outages.iter().map(|(_, last)| *last).max().unwrap();
            println!(
                "broker gone for {lasts_s} s: at most {peak} of {FLEET} connect within a second, \
                 the last is back {:.0} s after it",
                last.as_secs_f64() - lasts_s as f64
            );
            assert!(peak <= ALLOWED, "{peak} within a second, {ALLOWED} allowed");
            assert!(last <= S(lasts_s) + S(attempt_s) + S(96));
        }
    }

    #[test]
    fn without_jitter_or_without_spread_it_would() {
        let fleet = Fleet { backoff: Backoff::default(), jitter: false, alerts: 0, seed: 0 };
        assert_eq!(fleet.outage(S(120), S(0)).0, FLEET as usize);
        let quick = Backoff::new(S(1), S(60), S(30)).unwrap();
        let fleet = Fleet { backoff: quick, jitter: true, alerts: 0, seed: 0 };
        for lasts_s in [2, 3600] {
            let (peak, _) = fleet.outage(S(lasts_s), S(0));
            println!("quick law alone, broker gone for {lasts_s} s: {peak}");
            assert!(peak > ALLOWED, "{peak}");
        }
    }
}
