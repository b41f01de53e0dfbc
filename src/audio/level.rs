//! The level meter: how loud, how close to clipping.

use std::sync::{Mutex, PoisonError};

use super::SAMPLE_RATE_HZ;

/// What [`rms_dbfs`] says of digital silence, and the lowest level it ever says.
pub const SILENCE_DBFS: f32 = -120.0;

/// A sample at least this large counts as clipped: one step of 16 bits below full scale.
const CLIPPED: f32 = 32_766.0 / 32_768.0;

/// Root mean square of `samples` in dBFS, [`SILENCE_DBFS`] at the least and for none at all.
///
/// Input: −1.0..=1.0, any number. Output: −120.0..=0.0.
pub fn rms_dbfs(samples: &[f32]) -> f32 {
    if samples.is_empty() {
        return SILENCE_DBFS;
    }
    let sum: f64 = samples.iter().map(|&s| f64::from(s) * f64::from(s)).sum();
    let mean = sum / samples.len() as f64;
    (10.0 * mean.log10()).max(f64::from(SILENCE_DBFS)) as f32
}

/// The level of one block of 100 ms.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Level {
    /// Root mean square, −120.0..=0.0.
    pub rms_dbfs: f32,
    /// The largest magnitude, 0.0..=1.0.
    pub peak: f32,
    /// Samples at full scale: many of them mean that the input gain is too high.
    pub clipped: u32,
}

/// Measures a stream in blocks of [`Meter::BLOCK`] samples.
#[derive(Debug, Clone, Default)]
pub struct Meter {
    sum: f64,
    peak: f32,
    clipped: u32,
    filled: usize,
}

impl Meter {
    /// Samples in a block: 100 ms.
    pub const BLOCK: usize = SAMPLE_RATE_HZ as usize / 10;

    /// A meter at the start of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes samples (16 kHz mono, any number) and calls `on_block` for every block that they
    /// complete. The unfinished rest waits for the next call.
    pub fn push(&mut self, samples: &[f32], mut on_block: impl FnMut(Level)) {
        for &sample in samples {
            let magnitude = sample.abs();
            self.sum += f64::from(sample) * f64::from(sample);
            self.peak = self.peak.max(magnitude);
            self.clipped += u32::from(magnitude >= CLIPPED);
            self.filled += 1;
            if self.filled == Self::BLOCK {
                on_block(self.take());
            }
        }
    }

    fn take(&mut self) -> Level {
        let mean = self.sum / Self::BLOCK as f64;
        let level = Level {
            rms_dbfs: (10.0 * mean.log10()).max(f64::from(SILENCE_DBFS)) as f32,
            peak: self.peak.min(1.0),
            clipped: self.clipped,
        };
        *self = Self::default();
        level
    }
}

/// The mean level over the time since somebody last asked: what a sensor of noise reads while
/// another thread listens.
#[derive(Debug, Default)]
pub struct Loudness(Mutex<Heard>);

#[derive(Debug, Default, Clone, Copy)]
struct Heard {
    /// Sum of the mean squares of the blocks.
    power: f64,
    blocks: u32,
}

impl Loudness {
    /// Adds a block.
    pub fn add(&self, level: Level) {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        heard.power += 10f64.powf(f64::from(level.rms_dbfs) / 10.0);
        heard.blocks = heard.blocks.saturating_add(1);
    }

    /// The level in dBFS over all blocks since the last call; `None` if there were none.
    pub fn take(&self) -> Option<f32> {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Heard { power, blocks } = std::mem::take(&mut *heard);
        let mean = power / f64::from(blocks);
        (blocks > 0).then(|| (10.0 * mean.log10()).max(f64::from(SILENCE_DBFS)) as f32)
    }
}

/// The noise floor: the quietest block of the last half minute.
///
/// Somebody who speaks breathes in between, so speech hardly moves it; what stays, such as a
/// television, does within the half minute.
#[derive(Debug, Clone, Default)]
pub struct NoiseFloor {
    /// The quietest block of each of the last seconds, oldest overwritten first.
    seconds: Vec<f32>,
    next: usize,
    quietest: Option<f32>,
    blocks: usize,
}

impl NoiseFloor {
    /// Seconds that are looked back on.
    const SECONDS: usize = 30;
    /// Blocks of [`Meter::BLOCK`] in a second.
    const BLOCKS: usize = SAMPLE_RATE_HZ as usize / Meter::BLOCK;

    /// Takes the level of the next block, dBFS.
    pub fn push(&mut self, dbfs: f32) {
        self.quietest = Some(self.quietest.map_or(dbfs, |quietest| quietest.min(dbfs)));
        self.blocks += 1;
        if self.blocks < Self::BLOCKS {
            return;
        }
        let second = self.quietest.take().unwrap_or(dbfs);
        self.blocks = 0;
        if self.seconds.len() < Self::SECONDS {
            self.seconds.push(second);
        } else {
            self.seconds[self.next] = second;
            self.next = (self.next + 1) % Self::SECONDS;
        }
    }

    /// The floor, −120.0..=0.0 dBFS; `None` before the first block.
    pub fn dbfs(&self) -> Option<f32> {
        self.seconds.iter().copied().chain(self.quietest).reduce(f32::min)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_noise_floor_is_below_speech_and_follows_a_television_within_half_a_minute() {
        let mut floor = NoiseFloor::default();
        assert_eq!(floor.dbfs(), None);
        for block in 0..600 {
            floor.push(if block % 7 == 0 { -62.0 } else { -25.0 });
        }
        assert_eq!(floor.dbfs(), Some(-62.0));
        for _ in 0..301 {
            floor.push(-35.0);
        }
        assert_eq!(floor.dbfs(), Some(-35.0));
    }

    fn levels(samples: &[f32], chunk: usize) -> Vec<Level> {
        let (mut meter, mut out) = (Meter::new(), Vec::new());
        for piece in samples.chunks(chunk) {
            meter.push(piece, |level| out.push(level));
        }
        out
    }

    fn sine(amplitude: f32, samples: usize) -> Vec<f32> {
        (0..samples)
            .map(|i| amplitude * (i as f32 * 440.0 * std::f32::consts::TAU / 16_000.0).sin())
            .collect()
    }

    #[test]
    fn full_scale_sine_reads_minus_three_dbfs() {
        let level = levels(&sine(1.0, Meter::BLOCK), 160)[0];
        assert!((level.rms_dbfs + 3.01).abs() < 0.05, "{level:?}");
        assert!(level.peak > 0.999);
    }

    #[test]
    fn silence_reads_the_floor_and_not_minus_infinity() {
        assert_eq!(levels(&[0.0; 3200], 777).len(), 2);
        assert_eq!(levels(&[0.0; 1600], 1600)[0].rms_dbfs, SILENCE_DBFS);
        assert_eq!(rms_dbfs(&[]), SILENCE_DBFS);
    }

    #[test]
    fn clipped_samples_are_counted_in_their_own_block() {
        let mut samples = vec![0.1; 3200];
        samples[1700] = 1.0;
        samples[1701] = -1.0;
        let out = levels(&samples, 100);
        assert_eq!((out[0].clipped, out[1].clipped), (0, 2));
        assert_eq!(out[1].peak, 1.0);
    }

    #[test]
    fn loudness_is_the_mean_power_since_it_was_last_asked() {
        let loudness = Loudness::default();
        assert_eq!(loudness.take(), None);
        for level in levels(&sine(1.0, 3 * Meter::BLOCK), 160) {
            loudness.add(level);
        }
        loudness.add(levels(&[0.0; Meter::BLOCK], 160)[0]);
        let level = loudness.take().expect("four blocks");
        // Three quarters of the power of a full-scale sine.
        assert!((level + 3.01 + 1.25).abs() < 0.05, "{level}");
        assert_eq!(loudness.take(), None);
    }

    #[test]
    fn levels_do_not_depend_on_how_the_stream_is_cut() {
        let samples = sine(0.3, 8_000);
        assert_eq!(levels(&samples, 1), levels(&samples, 4_999));
    }
}
