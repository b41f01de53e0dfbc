//! How long to wait before the next attempt.
//!
//! Decorrelated jitter: each wait is drawn between the shortest wait and three times the last one,
//! cut at the longest. After a power cut in a whole street the devices so spread by themselves,
//! which doubling with little jitter does not achieve.

use std::time::Duration;

use crate::clock::Rng;

/// Waits that grow while attempts fail.
#[derive(Debug, Clone)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    held: Duration,
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
        Ok(Self { min, max, held, last: min, attempt: 0 })
    }

    /// The next wait, `min..=max`.
    pub fn next_delay(&mut self, rng: &mut Rng) -> Duration {
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
        }
    }

    /// Waits drawn since the last session that held.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }
}

impl Default for Backoff {
    /// 1 s to 60 s, started over by a session of 30 s: a broker's restart is over in seconds, and a
    /// minute is the longest that an alarm should wait for a network that has come back.
    fn default() -> Self {
        let min = Duration::from_secs(1);
        Self {
            min,
            max: Duration::from_secs(60),
            held: Duration::from_secs(30),
            last: min,
            attempt: 0,
        }
    }
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
        assert!(backoff.next_delay(&mut rng) <= S(3));
    }
}
