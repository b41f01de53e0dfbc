//! The health of a microphone, told from its sound alone.
//!
//! A microphone that is broken often goes on giving samples: a torn cable gives zeros (*flat line*), a
//! crashed converter the same number for ever (*stuck*), a wrong gain nothing but full scale
//! (*clipping*), a failed coupling a large constant under the sound (*offset*), a starved system
//! sound with holes (*overruns*). None of them hears a cry for help, and none says so itself.
//!
//! Sound is judged by the second. An ailment is *raised* when enough of the last [`REMEMBERED`] seconds
//! had it, and *cleared* when none of the last [`CLEAN`] had: the one within ten seconds of its
//! beginning, the other within ten of its end, and a bang, a pause or a lost block is neither.
//!
//! Time is counted in samples, so virtual time is the default. Absent: a source that gives nothing at
//! all, which whoever waits for it knows; and what a person would hear: a far or covered microphone
//! sounds like a quiet room.

use std::collections::VecDeque;

use super::SAMPLE_RATE_HZ;

/// Seconds that are judged together.
const REMEMBERED: usize = 8;
/// Seconds in a row without an ailment after which it is over.
const CLEAN: usize = 4;
/// Sound that moves by less has no microphone behind it: two steps of 16 bits. The self-noise of any
/// real one is larger.
const DEAD_SPAN: f32 = 2.0 / 32_768.0;
/// A constant closer to zero than this is a flat line, not a stuck value.
const ZERO: f32 = 0.001;
/// At full scale, after a resampler has rounded the corners.
const CLIPPED: f32 = 0.99;
/// The share of clipped samples in a second that no voice reaches: a cry clips its peaks, not a tenth
/// of everything.
const CLIPPED_SHARE: f32 = 0.1;
/// A mean of a second that far from zero: a tenth of full scale. Voices have none.
const OFFSET: f32 = 0.1;

/// What is wrong with a second of sound.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Ailment {
    /// Digital silence.
    FlatLine,
    /// The same value all the time.
    Stuck(f32),
    /// This share of the samples is at full scale.
    Clipping(f32),
    /// The mean, of full scale.
    Offset(f32),
    /// Sound was lost.
    Overruns,
}

impl Ailment {
    /// Seconds of [`REMEMBERED`] that make a fault. Lost sound is one at twice already: what is lost
    /// may be the cry.
    fn enough(self) -> usize {
        if self == Self::Overruns { 2 } else { 5 }
    }

    fn is_like(self, other: Self) -> bool {
        std::mem::discriminant(&self) == std::mem::discriminant(&other)
    }
}

impl std::fmt::Display for Ailment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let percent = |share: &f32| (100.0 * share).round();
        match self {
            Self::FlatLine => write!(
                f,
                "flat line: it gives digital silence; check its cable and that it is not muted"
            ),
            Self::Stuck(value) => write!(
                f,
                "stuck: it gives {value:.3} of full scale all the time; check the sound card"
            ),
            Self::Clipping(share) => write!(
                f,
                "clipping: {} % of its samples are at full scale; lower its gain",
                percent(share)
            ),
            Self::Offset(mean) => write!(
                f,
                "offset: its sound lies {} % of full scale off zero; check microphone and card",
                percent(mean)
            ),
            Self::Overruns => {
                write!(f, "overruns: sound is lost again and again; the system is too busy")
            }
        }
    }
}

/// Judges one stream. See the module.
#[derive(Debug, Clone, Default)]
pub struct Health {
    second: Second,
    /// The newest last, at most [`REMEMBERED`].
    judged: VecDeque<Option<Ailment>>,
    at_fault: Option<Ailment>,
    overruns: bool,
}

#[derive(Debug, Clone, Copy)]
struct Second {
    samples: u32,
    least: f32,
    largest: f32,
    sum: f64,
    clipped: u32,
}

impl Default for Second {
    fn default() -> Self {
        Self { samples: 0, least: f32::MAX, largest: f32::MIN, sum: 0.0, clipped: 0 }
    }
}

impl Second {
    fn take(&mut self, sample: f32) {
        self.samples += 1;
        self.least = self.least.min(sample);
        self.largest = self.largest.max(sample);
        self.sum += f64::from(sample);
        self.clipped += u32::from(sample.abs() >= CLIPPED);
    }

    /// A stuck value is also off zero, and perhaps at full scale: the first that fits is named.
    fn ailment(&self) -> Option<Ailment> {
        let mean = (self.sum / f64::from(self.samples.max(1))) as f32;
        let clipped = self.clipped as f32 / self.samples.max(1) as f32;
        if self.largest - self.least < DEAD_SPAN {
            return Some(if mean.abs() < ZERO { Ailment::FlatLine } else { Ailment::Stuck(mean) });
        }
        if clipped > CLIPPED_SHARE {
            return Some(Ailment::Clipping(clipped));
        }
        (mean.abs() > OFFSET).then_some(Ailment::Offset(mean))
    }
}

impl Health {
    /// Of a stream at its start, which nothing is wrong with yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sound was lost since the last call.
    pub fn overrun(&mut self) {
        self.overruns = true;
    }

    /// Takes samples: 16 kHz mono, any number.
    pub fn push(&mut self, samples: &[f32]) {
        for &sample in samples {
            self.second.take(sample);
            if self.second.samples == SAMPLE_RATE_HZ {
                let second = std::mem::take(&mut self.second);
                let lost = std::mem::take(&mut self.overruns).then_some(Ailment::Overruns);
                self.judge(second.ailment().or(lost));
            }
        }
    }

    /// What is wrong with the microphone, while it is.
    pub fn at_fault(&self) -> Option<Ailment> {
        self.at_fault
    }

    fn judge(&mut self, ailment: Option<Ailment>) {
        self.judged.push_back(ailment);
        let excess = self.judged.len().saturating_sub(REMEMBERED);
        self.judged.drain(..excess);
        let with = |kind: Ailment, seconds: usize| {
            let newest = self.judged.iter().rev().take(seconds).flatten();
            newest.filter(|other| other.is_like(kind)).count()
        };
        if self.at_fault.is_some_and(|kind| with(kind, CLEAN) == 0 && self.judged.len() >= CLEAN) {
            self.at_fault = None;
        }
        if let (None, Some(kind)) = (self.at_fault, ailment)
            && with(kind, REMEMBERED) >= kind.enough()
        {
            self.at_fault = Some(kind);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: usize = SAMPLE_RATE_HZ as usize;

    /// A voice in a room, more or less: a tone that comes and goes over noise.
    fn alive(seconds: usize, gain: f32, offset: f32) -> Vec<f32> {
        let mut state = 1u32;
        (0..seconds * SECOND)
            .map(|i| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let noise = (state >> 8) as f32 / 8_388_608.0 - 1.0;
                let t = i as f32 / SECOND as f32;
                let tone = (t * 220.0 * std::f32::consts::TAU).sin() * (t * 3.0).sin().max(0.0);
                (gain * (0.3 * tone + 0.001 * noise) + offset).clamp(-1.0, 1.0)
            })
            .collect()
    }

    /// Seconds until a fault is raised, what it is, and seconds until it is cleared by sound.
    fn course(sick: &[f32]) -> (usize, Ailment, usize) {
        let mut health = Health::new();
        health.push(&alive(20, 1.0, 0.0));
        assert_eq!(health.at_fault(), None);
        let mut seconds = sick.chunks(SECOND);
        let raised = seconds.position(|second| {
            health.push(second);
            health.at_fault().is_some()
        });
        let fault = health.at_fault().expect("raised");
        let sound = alive(20, 1.0, 0.0);
        let cleared = sound.chunks(SECOND).position(|second| {
            health.push(second);
            health.at_fault().is_none()
        });
        (raised.unwrap() + 1, fault, cleared.expect("cleared") + 1)
    }

    #[test]
    fn each_ailment_is_raised_and_cleared_within_ten_seconds() {
        let loud: Vec<f32> = alive(20, 20.0, 0.0);
        let sick: [(Vec<f32>, &str); 4] = [
            (vec![0.0; 20 * SECOND], "flat line"),
            (vec![-0.25; 20 * SECOND], "stuck: it gives -0.250"),
            (loud, "clipping"),
            (alive(20, 1.0, 0.2), "offset"),
        ];
        for (sound, text) in sick {
            let (raised, fault, cleared) = course(&sound);
            assert!(fault.to_string().starts_with(text), "{fault} for {text}");
            assert!(raised <= 10 && cleared <= 10, "{fault}: {raised} s, {cleared} s");
        }
    }

    #[test]
    fn overruns_are_a_fault_when_they_come_again_and_again() {
        let mut health = Health::new();
        let second = alive(1, 1.0, 0.0);
        health.overrun();
        for _ in 0..20 {
            health.push(&second);
            assert_eq!(health.at_fault(), None, "a single one is none");
        }
        for _ in 0..2 {
            health.overrun();
            health.push(&second);
        }
        assert_eq!(health.at_fault(), Some(Ailment::Overruns));
        for _ in 0..CLEAN {
            health.push(&second);
        }
        assert_eq!(health.at_fault(), None);
    }

    #[test]
    fn a_quiet_room_a_cry_and_a_pause_are_no_faults() {
        let mut health = Health::new();
        let cry: Vec<f32> = alive(3, 20.0, 0.0);
        let sounds = [alive(60, 0.1, 0.0), cry, vec![0.0; 3 * SECOND], alive(60, 1.0, 0.01)];
        for second in sounds.iter().flat_map(|sound| sound.chunks(SECOND)) {
            health.push(second);
            assert_eq!(health.at_fault(), None);
        }
    }

    #[test]
    fn verdict_does_not_depend_on_how_the_sound_is_cut() {
        let sound = [alive(3, 1.0, 0.0), vec![0.0; 6 * SECOND], alive(2, 1.0, 0.0)].concat();
        let verdict = |piece: usize| {
            let mut health = Health::new();
            sound.chunks(piece).for_each(|piece| health.push(piece));
            (health.at_fault(), health.judged)
        };
        assert_eq!(verdict(1), verdict(4_999));
        assert_eq!(verdict(1).0, Some(Ailment::FlatLine));
    }
}
