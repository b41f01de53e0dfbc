//! Windows of sound as the model is given them, and *views*: the same sound, given to it at another pace.
//!
//! What the model hears in one window is partly chance: it hears the same word otherwise where somebody says it slower, or
//! with a higher voice. So where a phrase may be, the same sound is shown to it [`VIEWS`] more times, each
//! played faster and higher or slower and lower, and the mean of all its opinions counts (`docs/voice.md`, "Views"). The sound is
//! there already: nothing is waited for, and nothing is computed where no phrase may be.

use super::model::WINDOW_FRAMES;
use super::{SAMPLE_RATE_HZ, WINDOW_SAMPLES};
use crate::audio::{Meter, rms_dbfs};

/// The level that the loudest block of a window is brought to: what the model hears best, and
/// what a near voice has anyway. Measured in `docs/voice.md`: without leveling a voice 40 dB
/// lower is not heard at all.
const TARGET_DBFS: f32 = -16.0;
/// More would turn the noise of the microphone into speech-loud noise.
const MAX_GAIN_DB: f32 = 30.0;
/// A voice close to the microphone is brought down, within reason.
const MIN_GAIN_DB: f32 = -12.0;
/// The level of the noise that is laid under each window after leveling. The model was trained on
/// rooms and has never heard digital silence: in a recording with silence around a word it does not
/// hear the word's first sound. Measured in `docs/voice.md`: of 65 human "help" lines, recall rises
/// from 61 % without noise over 88 % at −75 dBFS to 92 % at this level, with no more false alarms.
const DITHER_DBFS: f32 = -50.0;

/// How the sound is shown to the model once more: faster, and higher, by this factor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct View(f32);

/// Chosen by measurement: `docs/voice.md`. Those which differ most stand first, so that what is no phrase is soon found out.
pub(super) const VIEWS: [View; 4] = [View(0.85), View(1.15), View(0.9), View(1.1)];

/// The sound that the fastest view reaches back: 2.55 s, a bit more than 1.15 windows.
pub(super) const REACH_SAMPLES: usize = 255 * SAMPLE_RATE_HZ as usize / 100;

impl View {
    /// What the model is given of `sound`, which ends at the window's end.
    pub(super) fn window(self, sound: &[f32]) -> Vec<f32> {
        leveled(&self.resampled(sound))
    }

    /// Where a frame of the window stands in the view.
    pub(super) fn frame(self, frame: usize) -> f32 {
        let last = (WINDOW_FRAMES - 1) as f32;
        last - (last - frame as f32) / self.0
    }

    /// A window at another pace, or less where there is no more sound; the ends are the same. Between two samples a
    /// straight line is good enough.
    fn resampled(self, sound: &[f32]) -> Vec<f32> {
        let length = ((sound.len() as f32 / self.0) as usize).min(WINDOW_SAMPLES);
        let last = sound.len().saturating_sub(1) as f32;
        let sample = |before_end: usize| {
            let at = (last - before_end as f32 * self.0).max(0.0);
            let (whole, part) = (at as usize, at.fract());
            let next = sound.get(whole + 1).unwrap_or(&sound[whole]);
            sound[whole] + part * (next - sound[whole])
        };
        (0..length).rev().map(sample).collect()
    }
}

/// The window at the end of `sound`, silence before it where the stream is younger than that, brought to
/// the level that the model hears best, over a floor of noise.
pub(super) fn leveled(sound: &[f32]) -> Vec<f32> {
    let sound = &sound[sound.len().saturating_sub(WINDOW_SAMPLES)..];
    let loudest = sound.chunks(Meter::BLOCK).map(rms_dbfs).fold(f32::NEG_INFINITY, f32::max);
    let gain_db = (TARGET_DBFS - loudest).clamp(MIN_GAIN_DB, MAX_GAIN_DB);
    let gain = 10f32.powf(gain_db / 20.0);
    let silence = std::iter::repeat_n(&0.0, WINDOW_SAMPLES.saturating_sub(sound.len()));
    let samples = silence.chain(sound);
    samples.zip(dither()).map(|(sample, noise)| (sample * gain + noise).clamp(-1.0, 1.0)).collect()
}

/// White noise of [`DITHER_DBFS`], the same in each window: the same sound must give the same
/// detections. A linear congruential generator is noise enough, and has no period that is heard.
fn dither() -> impl Iterator<Item = f32> {
    // The RMS of a uniform distribution is its bound by the square root of 3.
    let bound = 3f32.sqrt() * 10f32.powf(DITHER_DBFS / 20.0);
    let mut state = 1u64;
    std::iter::repeat_with(move || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // The high bits are the random ones.
        let unit = (state >> 40) as f32 / (1u64 << 24) as f32;
        bound * (2.0 * unit - 1.0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::voice::model::FRAME_SAMPLES;

    #[test]
    fn windows_are_brought_to_one_level_and_filled_up_with_noise() {
        for amplitude in [0.02f32, 0.1, 0.5] {
            let window = leveled(&vec![amplitude; 16_000]);
            assert_eq!(window.len(), WINDOW_SAMPLES);
            let (filled, sound) = window.split_at(WINDOW_SAMPLES - 16_000);
            assert!((rms_dbfs(sound) - TARGET_DBFS).abs() < 0.5, "{amplitude}");
            assert!((rms_dbfs(filled) - DITHER_DBFS).abs() < 0.1, "{amplitude}");
        }
        // As loud as the noise under it: both together are 3 dB more.
        let faint = leveled(&vec![0.000_1; WINDOW_SAMPLES]);
        assert!((rms_dbfs(&faint) - (-80.0 + MAX_GAIN_DB + 3.0)).abs() < 0.1);
    }

    /// Silence but for one block, which begins so many frames before the end.
    fn click(frames_before_end: usize) -> Vec<f32> {
        let mut sound = vec![0.0; REACH_SAMPLES];
        let at = REACH_SAMPLES - frames_before_end * FRAME_SAMPLES;
        sound[at..at + 2 * FRAME_SAMPLES].fill(0.1);
        sound
    }

    #[test]
    fn every_view_shows_the_same_sound_where_it_says_that_it_does() {
        let sound = click(40);
        for view in VIEWS {
            let window = view.window(&sound);
            assert_eq!(window.len(), WINDOW_SAMPLES);
            let begins = window.iter().position(|sample| sample.abs() > 0.1).unwrap();
            let said = view.frame(WINDOW_FRAMES - 1 - 40) * FRAME_SAMPLES as f32;
            assert!((begins as f32 - said).abs() < 3.0, "{view:?}: {begins} {said}");
        }
    }

    #[test]
    fn no_view_reaches_further_back_than_the_sound_that_is_kept() {
        for View(pace) in VIEWS {
            assert!((WINDOW_SAMPLES as f32 * pace).ceil() as usize <= REACH_SAMPLES);
        }
    }

    #[test]
    fn a_stream_younger_than_a_window_has_views_too() {
        for view in VIEWS {
            for length in [0, 1, 1_600, 3_200, 20_000] {
                assert_eq!(view.window(&vec![0.1; length]).len(), WINDOW_SAMPLES);
            }
        }
    }
}
