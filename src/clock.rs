//! Time, chance and the identity of this boot: the only place that reads them.
//!
//! Everything else is handed an [`Instant`], a wall-clock time or an [`Rng`], so that tests run
//! in virtual time and a failure is repeated from its seed.
//!
//! Absent: correction of a wrong wall clock (`recordedtime`); [`WallTime::state`] only says whether
//! the kernel believes the clock to be synchronised.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

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

/// The real clocks. Cheap to copy; `sync_state` is how it asks the kernel.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    sync_state: fn() -> ClockState,
}

impl Clock {
    /// A clock that learns from `sync_state` whether its wall time can be believed.
    pub fn new(sync_state: fn() -> ClockState) -> Self {
        Self { sync_state }
    }

    /// Monotonic time, for deadlines and intervals.
    #[allow(clippy::disallowed_methods, reason = "this is the one place that reads the clock")]
    pub fn now(&self) -> Instant {
        Instant::now()
    }

    /// Wall time, for the attribute `time` and for ids.
    #[allow(clippy::disallowed_methods, reason = "this is the one place that reads the clock")]
    pub fn wall(&self) -> WallTime {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        WallTime {
            unix_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            state: (self.sync_state)(),
        }
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
    fn ids_are_uuid_v7_and_sort_by_time() {
        let mut rng = Rng::from_seed(1);
        let at = |unix_ms| WallTime { unix_ms, state: ClockState::Synced };
        let (a, b) = (rng.uuid_v7(at(1_000)), rng.uuid_v7(at(2_000)));
        assert_eq!(a.as_bytes()[14], b'7');
        assert!(a < b);
    }
}
