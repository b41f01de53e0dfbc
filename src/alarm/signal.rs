//! What light and tone say, and at which time they are on.
//!
//! A signal is a [`Blink`] of the light and, where people are to do something, beeps. [`Player`] is asked
//! what is on now and when that changes; it knows nothing of LEDs and loudspeakers.

use std::time::{Duration, Instant};

/// What is to be said, the more urgent the later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    /// All is well, and dark.
    Off,
    /// No way to the broker.
    PathDown,
    /// The device does not hear.
    MicrophoneDead,
    /// Somebody sees to the alarm.
    Acknowledged,
    /// Help is being called.
    Raised,
    /// Press shortly to call it off.
    Pending,
}

/// How the light goes: so long on, so long off. Both zero: dark; only `off` zero: steady.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blink {
    /// Milliseconds on.
    pub on_ms: u32,
    /// Milliseconds off.
    pub off_ms: u32,
}

/// A tone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beep {
    /// Its pitch; 0 is silence.
    pub hz: u32,
    /// How long.
    pub ms: u32,
}

const fn beep(hz: u32, ms: u32) -> Beep {
    Beep { hz, ms }
}

impl Signal {
    /// How the light goes.
    pub fn blink(self) -> Blink {
        let (on_ms, off_ms) = match self {
            Self::Off => (0, 0),
            Self::PathDown => (100, 2900),
            Self::MicrophoneDead => (100, 900),
            Self::Acknowledged => (1000, 0),
            Self::Raised => (500, 500),
            Self::Pending => (125, 125),
        };
        Blink { on_ms, off_ms }
    }

    /// The beeps, and whether they begin again.
    pub fn beeps(self) -> (&'static [Beep], bool) {
        const PENDING: &[Beep] = &[beep(880, 250), beep(0, 250), beep(660, 250), beep(0, 250)];
        const RAISED: &[Beep] = &[
            beep(880, 150),
            beep(0, 100),
            beep(880, 150),
            beep(0, 100),
            beep(1175, 400),
            beep(0, 3850),
        ];
        const ACKNOWLEDGED: &[Beep] =
            &[beep(660, 200), beep(0, 50), beep(880, 200), beep(0, 50), beep(1175, 500)];
        match self {
            Self::Pending => (PENDING, true),
            Self::Raised => (RAISED, true),
            Self::Acknowledged => (ACKNOWLEDGED, false),
            Self::Off | Self::PathDown | Self::MicrophoneDead => (&[], false),
        }
    }
}

/// What is on at which time, for one signal since its beginning.
#[derive(Debug, Clone, Copy)]
pub struct Player {
    signal: Signal,
    began: Instant,
}

impl Player {
    /// The signal begins now.
    pub fn new(signal: Signal, now: Instant) -> Self {
        Self { signal, began: now }
    }

    /// What is being said.
    pub fn signal(self) -> Signal {
        self.signal
    }

    /// Whether the light is on, and until when; `None`: it stays.
    pub fn light(self, now: Instant) -> (bool, Option<Instant>) {
        let Blink { on_ms, off_ms } = self.signal.blink();
        if on_ms == 0 || off_ms == 0 {
            return (on_ms > 0, None);
        }
        let period = u128::from(on_ms + off_ms);
        let past = now.saturating_duration_since(self.began).as_millis() % period;
        let on = past < u128::from(on_ms);
        let until = if on { u128::from(on_ms) } else { period };
        (on, Some(now + millis(until - past)))
    }

    /// The pitch of the tone, 0 for silence, and until when; `None`: it stays silent.
    pub fn tone(self, now: Instant) -> (u32, Option<Instant>) {
        let (beeps, repeat) = self.signal.beeps();
        let period: u128 = beeps.iter().map(|beep| u128::from(beep.ms)).sum();
        let mut past = now.saturating_duration_since(self.began).as_millis();
        if period == 0 || !repeat && past >= period {
            return (0, None);
        }
        past %= period;
        for beep in beeps {
            let ms = u128::from(beep.ms);
            if past < ms {
                return (beep.hz, Some(now + millis(ms - past)));
            }
            past -= ms;
        }
        (0, None)
    }
}

fn millis(ms: u128) -> Duration {
    Duration::from_millis(u64::try_from(ms).unwrap_or(u64::MAX))
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "any instant does to count from")]
mod tests {
    use super::*;

    fn play(signal: Signal, ms: u64) -> ((bool, u32), Player, Instant) {
        let began = Instant::now();
        let player = Player::new(signal, began);
        let now = began + Duration::from_millis(ms);
        ((player.light(now).0, player.tone(now).0), player, now)
    }

    #[test]
    fn each_signal_has_its_light_and_tone() {
        let table = [
            (Signal::Off, 0, (false, 0)),
            (Signal::PathDown, 50, (true, 0)),
            (Signal::PathDown, 150, (false, 0)),
            (Signal::MicrophoneDead, 1050, (true, 0)),
            (Signal::Acknowledged, 100_000, (true, 0)),
            (Signal::Acknowledged, 10, (true, 660)),
            (Signal::Raised, 400, (true, 0)),
            (Signal::Raised, 500, (false, 1175)),
            (Signal::Raised, 5010, (true, 880)),
            (Signal::Pending, 0, (true, 880)),
            (Signal::Pending, 130, (false, 880)),
            (Signal::Pending, 510, (true, 660)),
        ];
        for (signal, ms, expected) in table {
            assert_eq!(play(signal, ms).0, expected, "{signal:?} at {ms} ms");
        }
    }

    #[test]
    fn a_player_that_is_asked_only_when_it_says_so_misses_nothing() {
        for signal in [Signal::Pending, Signal::Raised, Signal::Acknowledged, Signal::PathDown] {
            let (_, player, began) = play(signal, 0);
            let mut at = began;
            let mut seen = Vec::new();
            while at < began + Duration::from_secs(12) {
                seen.push((at, player.light(at).0, player.tone(at).0));
                let next = player.light(at).1.into_iter().chain(player.tone(at).1).min();
                let Some(next) = next else { break };
                assert!(next > at);
                at = next;
            }
            for ms in 0..(at - began).as_millis() as u64 {
                let now = began + Duration::from_millis(ms);
                let last = seen.iter().rfind(|(at, ..)| *at <= now).unwrap();
                assert_eq!((last.1, last.2), (player.light(now).0, player.tone(now).0), "{ms}");
            }
        }
    }
}
