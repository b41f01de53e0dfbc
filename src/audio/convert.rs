//! From what a card or a file gives to 16 kHz mono.
//!
//! Channels are averaged first, so that only one is resampled; then a windowed-sinc resampler
//! (rubato) makes 16 kHz of it. Averaging two microphones that stand in opposite phase would
//! cancel them, but picking one channel is worse: on many USB cards one of the two is dead.

use rubato::audioadapter_buffers::direct::InterleavedSlice;
use rubato::{
    Async, FixedAsync, Indexing, Resampler, SincInterpolationParameters, SincInterpolationType,
    WindowFunction,
};

use super::SAMPLE_RATE_HZ;

/// Why sound cannot be converted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AudioError {
    /// Below telephone quality there is not enough left of speech; above 192 kHz there are no cards.
    #[error("sample rate {0} Hz is not supported: use 8000 to 192000 Hz")]
    Rate(u32),
    /// No channel, or more than any microphone array has.
    #[error("{0} channels are not supported: use 1 to 32")]
    Channels(u16),
    /// The resampler refused; a mistake of ours, kept from becoming a panic.
    #[error("resampler: {0}")]
    Resampler(String),
}

/// How samples come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    rate_hz: u32,
    channels: u16,
}

impl Format {
    /// What the detector wants, and what a source should ask its card for first.
    pub const NATIVE: Self = Self { rate_hz: SAMPLE_RATE_HZ, channels: 1 };

    /// `rate_hz` 8000..=192000, `channels` 1..=32.
    ///
    /// # Errors
    /// [`AudioError::Rate`], [`AudioError::Channels`]: outside of these.
    pub fn new(rate_hz: u32, channels: u16) -> Result<Self, AudioError> {
        if !(8_000..=192_000).contains(&rate_hz) {
            return Err(AudioError::Rate(rate_hz));
        }
        if !(1..=32).contains(&channels) {
            return Err(AudioError::Channels(channels));
        }
        Ok(Self { rate_hz, channels })
    }

    /// Frames a second.
    pub fn rate_hz(self) -> u32 {
        self.rate_hz
    }

    /// Samples a frame.
    pub fn channels(self) -> u16 {
        self.channels
    }
}

/// Makes 16 kHz mono of a stream of interleaved samples.
///
/// Pieces may have any length and may end within a frame. The output is aligned with the input:
/// the resampler's own delay is cut off at the start and flushed by [`Converter::finish`].
pub struct Converter {
    channels: usize,
    /// Sum of the samples of a frame that is not complete yet, and how many they are.
    partial: (f32, usize),
    resampler: Option<Box<Stage>>,
}

impl std::fmt::Debug for Converter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Converter").field("channels", &self.channels).finish_non_exhaustive()
    }
}

impl Converter {
    /// A converter at the start of a stream of this format.
    ///
    /// # Errors
    /// [`AudioError::Resampler`]: never for a [`Format`] that was accepted, as far as we know.
    pub fn new(format: Format) -> Result<Self, AudioError> {
        let resampler = if format.rate_hz == SAMPLE_RATE_HZ {
            None
        } else {
            Some(Box::new(Stage::new(format.rate_hz)?))
        };
        Ok(Self { channels: usize::from(format.channels), partial: (0.0, 0), resampler })
    }

    /// Takes interleaved 16-bit samples, appends 16 kHz mono to `out`.
    ///
    /// # Errors
    /// [`AudioError::Resampler`]: as [`Converter::new`].
    pub fn push_i16(&mut self, samples: &[i16], out: &mut Vec<f32>) -> Result<(), AudioError> {
        self.push(samples.iter().map(|&s| f32::from(s) / 32_768.0), out)
    }

    /// Takes interleaved float samples, appends 16 kHz mono to `out`. What is outside of
    /// −1.0..=1.0 is limited to it, what is no number becomes 0.
    ///
    /// # Errors
    /// [`AudioError::Resampler`]: as [`Converter::new`].
    pub fn push_f32(&mut self, samples: &[f32], out: &mut Vec<f32>) -> Result<(), AudioError> {
        self.push(samples.iter().map(|&s| if s.is_nan() { 0.0 } else { s.clamp(-1.0, 1.0) }), out)
    }

    fn push(
        &mut self,
        samples: impl Iterator<Item = f32>,
        out: &mut Vec<f32>,
    ) -> Result<(), AudioError> {
        for sample in samples {
            self.partial.0 += sample;
            self.partial.1 += 1;
            if self.partial.1 < self.channels {
                continue;
            }
            let mono = self.partial.0 / self.channels as f32;
            self.partial = (0.0, 0);
            match &mut self.resampler {
                None => out.push(mono),
                Some(stage) => stage.push(mono, out)?,
            }
        }
        Ok(())
    }

    /// Ends the stream: appends what the resampler still holds.
    ///
    /// # Errors
    /// [`AudioError::Resampler`]: as [`Converter::new`].
    pub fn finish(mut self, out: &mut Vec<f32>) -> Result<(), AudioError> {
        match &mut self.resampler {
            None => Ok(()),
            Some(stage) => stage.finish(out),
        }
    }
}

/// The resampler with the block that it waits for.
struct Stage {
    inner: Async<f32>,
    block: Vec<f32>,
    resampled: Vec<f32>,
    /// Output still to be dropped: the resampler's delay.
    skip: usize,
    ratio: f64,
    taken: u64,
    given: u64,
}

impl Stage {
    fn new(rate_hz: u32) -> Result<Self, AudioError> {
        let ratio = f64::from(SAMPLE_RATE_HZ) / f64::from(rate_hz);
        // 128 taps at the lower of the two rates: when the rate goes down, the filter has to be
        // longer in input samples to stay as steep.
        let taps = (128.0 * (1.0 / ratio).max(1.0)) as usize;
        let parameters = SincInterpolationParameters::new(taps, WindowFunction::BlackmanHarris2)
            .interpolation(SincInterpolationType::Linear);
        // 10 ms of input a step.
        let step = (rate_hz / 100) as usize;
        let inner = Async::<f32>::new_sinc(ratio, 1.0, &parameters, step, 1, FixedAsync::Input)
            .map_err(|error| AudioError::Resampler(error.to_string()))?;
        let resampled = vec![0.0; inner.output_frames_max()];
        let skip = inner.output_delay();
        Ok(Self {
            block: Vec::with_capacity(step),
            inner,
            resampled,
            skip,
            ratio,
            taken: 0,
            given: 0,
        })
    }

    fn push(&mut self, sample: f32, out: &mut Vec<f32>) -> Result<(), AudioError> {
        self.block.push(sample);
        self.taken += 1;
        if self.block.len() == self.inner.input_frames_next() { self.step(out) } else { Ok(()) }
    }

    /// Resamples the block, padded with silence where it is short.
    fn step(&mut self, out: &mut Vec<f32>) -> Result<(), AudioError> {
        let wanted = self.inner.input_frames_next();
        let given = self.block.len();
        self.block.resize(wanted, 0.0);
        let failed = |error: &dyn std::fmt::Display| AudioError::Resampler(error.to_string());
        let frames = self.resampled.len();
        let input = InterleavedSlice::new(&self.block, 1, wanted).map_err(|e| failed(&e))?;
        let mut output =
            InterleavedSlice::new_mut(&mut self.resampled, 1, frames).map_err(|e| failed(&e))?;
        let indexing = Indexing::new().partial_len(given);
        let (_, made) = self
            .inner
            .process_into_buffer(&input, &mut output, Some(&indexing))
            .map_err(|e| failed(&e))?;
        self.block.clear();
        let skipped = self.skip.min(made);
        self.skip -= skipped;
        self.given += (made - skipped) as u64;
        out.extend(self.resampled[skipped..made].iter().map(|s| s.clamp(-1.0, 1.0)));
        Ok(())
    }

    fn finish(&mut self, out: &mut Vec<f32>) -> Result<(), AudioError> {
        let wanted = (self.taken as f64 * self.ratio).round() as u64;
        while self.given < wanted {
            self.step(out)?;
        }
        let excess = usize::try_from(self.given - wanted).unwrap_or(usize::MAX);
        out.truncate(out.len().saturating_sub(excess));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audio::rms_dbfs;
    use proptest::prelude::*;

    fn sine(rate_hz: u32, frequency_hz: f32, amplitude: f32, seconds: f32) -> Vec<f32> {
        (0..(rate_hz as f32 * seconds) as usize)
            .map(|i| {
                let turns = i as f64 * f64::from(frequency_hz) / f64::from(rate_hz);
                amplitude * (turns.fract() * std::f64::consts::TAU).sin() as f32
            })
            .collect()
    }

    fn convert(format: Format, samples: &[f32], chunk: usize) -> Vec<f32> {
        let (mut converter, mut out) = (Converter::new(format).unwrap(), Vec::new());
        for piece in samples.chunks(chunk) {
            converter.push_f32(piece, &mut out).unwrap();
        }
        converter.finish(&mut out).unwrap();
        out
    }

    /// The frequency, from the distance of the first and the last rising zero crossing.
    fn frequency_hz(samples: &[f32]) -> f32 {
        let rising: Vec<f32> = samples
            .windows(2)
            .enumerate()
            .filter(|(_, w)| w[0] < 0.0 && w[1] >= 0.0)
            .map(|(i, w)| i as f32 + w[0] / (w[0] - w[1]))
            .collect();
        (rising.len() - 1) as f32 * 16_000.0 / (rising[rising.len() - 1] - rising[0])
    }

    #[test]
    fn every_rate_keeps_frequency_level_and_duration() {
        for rate_hz in [8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000, 192_000] {
            let input = sine(rate_hz, 1_000.0, 0.5, 1.0);
            let out = convert(Format::new(rate_hz, 1).unwrap(), &input, 333);
            assert!((out.len() as i64 - 16_000).abs() <= 1, "{rate_hz}: {} samples", out.len());
            let middle = &out[2_000..14_000];
            assert!((frequency_hz(middle) - 1_000.0).abs() < 0.5, "{rate_hz}");
            assert!((rms_dbfs(middle) + 9.03).abs() < 0.1, "{rate_hz}: {}", rms_dbfs(middle));
        }
    }

    #[test]
    fn output_is_aligned_with_the_input() {
        // A click at 500 ms must stay there, else every detection would carry a wrong time.
        for rate_hz in [8_000u32, 44_100, 48_000] {
            let mut input = vec![0.0; rate_hz as usize];
            input[rate_hz as usize / 2] = 1.0;
            let out = convert(Format::new(rate_hz, 1).unwrap(), &input, 1_000);
            let peak = (0..out.len()).max_by(|&a, &b| out[a].abs().total_cmp(&out[b].abs()));
            assert!(peak.unwrap().abs_diff(8_000) <= 1, "{rate_hz}: {peak:?}");
        }
    }

    #[test]
    fn what_16_khz_cannot_hold_is_removed_and_not_folded_back() {
        let out = convert(Format::new(48_000, 1).unwrap(), &sine(48_000, 11_000.0, 0.9, 0.5), 480);
        assert!(rms_dbfs(&out[1_000..7_000]) < -60.0);
    }

    #[test]
    fn channels_are_averaged() {
        let stereo: Vec<f32> =
            sine(16_000, 500.0, 0.8, 0.1).iter().flat_map(|&s| [s, 0.0]).collect();
        let out = convert(Format::new(16_000, 2).unwrap(), &stereo, 3);
        assert_eq!(out.len(), 1_600);
        assert!((rms_dbfs(&out) - rms_dbfs(&sine(16_000, 500.0, 0.4, 0.1))).abs() < 0.01);
    }

    #[test]
    fn sixteen_bit_samples_span_the_whole_range() {
        let (mut converter, mut out) = (Converter::new(Format::NATIVE).unwrap(), Vec::new());
        converter.push_i16(&[i16::MIN, 0, i16::MAX], &mut out).unwrap();
        assert_eq!(out, [-1.0, 0.0, 32_767.0 / 32_768.0]);
    }

    #[test]
    fn hostile_floats_come_out_as_samples() {
        let out = convert(
            Format::new(44_100, 1).unwrap(),
            &[f32::NAN, f32::INFINITY, -1e30, 2.0].repeat(2_000),
            64,
        );
        assert!(out.iter().all(|s| (-1.0..=1.0).contains(s)));
    }

    #[test]
    fn unsupported_formats_are_refused_by_name() {
        assert_eq!(Format::new(4_000, 1), Err(AudioError::Rate(4_000)));
        assert_eq!(Format::new(384_000, 1), Err(AudioError::Rate(384_000)));
        assert_eq!(Format::new(16_000, 0), Err(AudioError::Channels(0)));
        assert!(AudioError::Rate(4_000).to_string().contains("8000 to 192000"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn result_does_not_depend_on_how_the_input_is_cut(
            rate_hz in 8_000u32..=96_000,
            channels in 1u16..=2,
            chunk in 1usize..2_000,
        ) {
            let format = Format::new(rate_hz, channels).unwrap();
            let input = sine(rate_hz, 700.0, 0.5, 0.2);
            prop_assert_eq!(convert(format, &input, chunk), convert(format, &input, input.len()));
        }
    }
}
