//! Time, chance and the identity of this boot: the only place that reads them.
//!
//! Everything else is handed an [`Instant`], a wall-clock time or an [`Rng`], so that tests run
//! in virtual time and a failure is repeated from its seed.
//!
//! Absent: correction of a wrong wall clock, which is `outbox`'s matter; [`WallTime::state`] only says whether
//! the kernel believes the clock to be synchronised.

mod zone;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub use zone::{Local, Zone};

/// Whether the wall clock can be believed; the CloudEvents extension `clock`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockState {
    /// The kernel says that a time source disciplines the clock.
    Synced,
    /// Nothing disciplines the clock: its times may be years off.
    Unsynced,
}

impl ClockState {
    /// The value of the extension attribute `clock`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Synced => "synced",
            Self::Unsynced => "unsynced",
        }
    }
}

/// One reading of the wall clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WallTime {
    /// Milliseconds since 1970-01-01T00:00:00Z.
    pub unix_ms: u64,
    /// Whether it can be believed.
    pub state: ClockState,
}

impl WallTime {
    /// RFC 3339 in UTC with milliseconds, the form of the CloudEvents attribute `time`.
    pub fn to_rfc3339(self) -> String {
        let ms = i64::try_from(self.unix_ms).unwrap_or(i64::MAX);
        chrono::DateTime::from_timestamp_millis(ms)
            .unwrap_or(chrono::DateTime::UNIX_EPOCH)
            .to_rfc3339_opts(chrono::SecondsFormat::Millis, true)
    }
}

/// The real clocks, or for the simulator faster ones. Cheap to copy; `sync_state` is how it asks the
/// kernel.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    sync_state: fn() -> ClockState,
    pace: Option<Pace>,
}

/// A clock that began at a time of its own and goes faster than the real one.
#[derive(Debug, Clone, Copy)]
struct Pace {
    began: Instant,
    wall_ms: u64,
    speed: f64,
}

impl Clock {
    /// A clock that learns from `sync_state` whether its wall time can be believed.
    pub fn new(sync_state: fn() -> ClockState) -> Self {
        Self { sync_state, pace: None }
    }

    /// A clock that stands at `wall_ms` now and from here on goes `speed` times as fast.
    pub fn at_speed(self, wall_ms: u64, speed: f64) -> Self {
        Self { pace: Some(Pace { began: self.now(), wall_ms, speed }), ..self }
    }

    /// How long a duration of this clock really lasts.
    pub fn real(&self, duration: Duration) -> Duration {
        self.pace.map_or(duration, |pace| duration.div_f64(pace.speed))
    }

    /// Monotonic time, for deadlines and intervals.
    #[allow(clippy::disallowed_methods, reason = "this is the one place that reads the clock")]
    pub fn now(&self) -> Instant {
        let now = Instant::now();
        match self.pace {
            None => now,
            Some(Pace { began, speed, .. }) => began + (now - began).mul_f64(speed),
        }
    }

    /// Wall time, for the attribute `time` and for ids.
    #[allow(clippy::disallowed_methods, reason = "this is the one place that reads the clock")]
    pub fn wall(&self) -> WallTime {
        let ms = |since: Duration| u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        let unix_ms = match self.pace {
            None => ms(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO)),
            Some(Pace { began, wall_ms, .. }) => wall_ms + ms(self.now() - began),
        };
        WallTime { unix_ms, state: (self.sync_state)() }
    }
}

/// Random numbers from a seed that can be logged and replayed. Not for secrets.
#[derive(Debug, Clone)]
pub struct Rng(fastrand::Rng);

impl Rng {
    /// The sequence that `seed` stands for.
    pub fn from_seed(seed: u64) -> Self {
        Self(fastrand::Rng::with_seed(seed))
    }

    /// A generator with a seed of this run's own.
    #[allow(clippy::disallowed_methods, reason = "this is the one place that draws a seed")]
    pub fn from_entropy() -> Self {
        Self(fastrand::Rng::new())
    }

    /// A generator independent of this one from here on.
    pub fn fork(&mut self) -> Self {
        Self(self.0.fork())
    }

    /// Uniform over `0.0..1.0`.
    pub fn unit(&mut self) -> f64 {
        self.0.f64()
    }

    /// Uniform over all values.
    pub fn u64(&mut self) -> u64 {
        self.0.u64(..)
    }

    /// A UUID version 7 (RFC 9562 §5.7) of the given wall time: the `id` of an event.
    pub fn uuid_v7(&mut self, at: WallTime) -> String {
        let mut random = [0u8; 10];
        self.0.fill(&mut random);
        uuid::Builder::from_unix_timestamp_millis(at.unix_ms, &random).into_uuid().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_time_is_written_in_utc_with_milliseconds() {
        let at = WallTime { unix_ms: 1_700_000_000_007, state: ClockState::Synced };
        assert_eq!(at.to_rfc3339(), "2023-11-14T22:13:20.007Z");
    }

    #[test]
    fn a_fast_clock_begins_where_it_is_told_and_is_ahead_of_the_real_one() {
        let real = Clock::new(|| ClockState::Synced);
        let (before, fast) = (real.now(), real.at_speed(5_000, 1e6));
        while real.now() - before < Duration::from_millis(1) {}
        assert!(fast.now() - before > Duration::from_secs(900));
        assert!(fast.wall().unix_ms > 900_000);
        assert_eq!(fast.real(Duration::from_secs(1)), Duration::from_micros(1));
        assert_eq!(real.real(Duration::from_secs(1)), Duration::from_secs(1));
    }

    #[test]
    fn ids_are_uuid_v7_and_sort_by_time() {
        let mut rng = Rng::from_seed(1);
        let at = |unix_ms| WallTime { unix_ms, state: ClockState::Synced };
        let (a, b) = (rng.uuid_v7(at(1_000)), rng.uuid_v7(at(2_000)));
        assert_eq!(a.as_bytes()[14], b'7');
        assert!(a < b);
    }
}
