//! Tones through a sound card (cpal): a sine of a pitch that can be changed while it plays.
//!
//! The callback runs on a thread of the sound system; it reads the pitch from an atomic and never waits.
//! Each beep fades in and out within 10 ms, since a tone that is cut clicks.

use std::f32::consts::TAU;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use cpal::traits::{DeviceTrait, HostTrait, StreamTrait};
use cpal::{FromSample, SampleFormat, SizedSample, StreamConfig};

use super::alsa_log::quietly;
use super::microphone::is_named;

/// How long a beep takes to its full loudness, and back.
const FADE: Duration = Duration::from_millis(10);
/// Of full scale: loud, and not distorted by small loudspeakers.
const LOUDNESS: f32 = 0.6;

/// An open output. Silent until a pitch is set; dropped, it is closed.
pub struct Tone {
    hz: Arc<AtomicU32>,
    failed: Arc<AtomicBool>,
    _stream: cpal::Stream,
}

impl std::fmt::Debug for Tone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tone").field("hz", &self.hz).finish_non_exhaustive()
    }
}

/// Why no tone can be played.
#[derive(Debug, thiserror::Error)]
#[error("tone through {name}: {problem}")]
pub struct ToneError {
    name: String,
    problem: String,
}

impl Tone {
    /// Opens an output by its cpal name, `default` for the one that the system prefers.
    ///
    /// # Errors
    /// It is not there, in use, or has no format that can be used.
    pub fn open(name: &str) -> Result<Self, ToneError> {
        quietly(|| Self::start(name))
    }

    fn start(name: &str) -> Result<Self, ToneError> {
        let failed = |problem: String| ToneError { name: name.to_owned(), problem };
        let device = find(name).ok_or_else(|| failed("there is no such output".to_owned()))?;
        let config = device.default_output_config().map_err(|e| failed(e.to_string()))?;
        let (hz, broken) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
        let wires = (Arc::clone(&hz), Arc::clone(&broken));
        let stream_config = config.config();
        let stream = match config.sample_format() {
            SampleFormat::I16 => play::<i16>(&device, stream_config, wires),
            SampleFormat::I32 => play::<i32>(&device, stream_config, wires),
            SampleFormat::F32 => play::<f32>(&device, stream_config, wires),
            other => return Err(failed(format!("its format {other} cannot be used"))),
        };
        let stream = stream.map_err(|e| failed(e.to_string()))?;
        stream.play().map_err(|e| failed(e.to_string()))?;
        Ok(Self { hz, failed: broken, _stream: stream })
    }

    /// Sounds at this pitch from now on; 0 is silence.
    pub fn set(&self, hz: u32) {
        self.hz.store(hz, Ordering::Relaxed);
    }

    /// Whether the output has gone away.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }
}

fn find(name: &str) -> Option<cpal::Device> {
    let host = cpal::default_host();
    if name == "default" {
        return host.default_output_device();
    }
    host.output_devices().ok()?.find(|device| is_named(device, name))
}

fn play<T>(
    device: &cpal::Device,
    config: StreamConfig,
    (hz, failed): (Arc<AtomicU32>, Arc<AtomicBool>),
) -> Result<cpal::Stream, cpal::Error>
where
    T: SizedSample + FromSample<f32>,
{
    let (rate, channels) = (config.sample_rate, usize::from(config.channels).max(1));
    let mut wave = Wave::new(rate);
    device.build_output_stream::<T, _, _>(
        config,
        move |samples, _| {
            let pitch = hz.load(Ordering::Relaxed);
            for frame in samples.chunks_mut(channels) {
                frame.fill(T::from_sample(wave.next(pitch)));
            }
        },
        move |error| match error.kind() {
            cpal::ErrorKind::Xrun
            | cpal::ErrorKind::RealtimeDenied
            | cpal::ErrorKind::DeviceChanged => {}
            _ => failed.store(true, Ordering::Relaxed),
        },
        None,
    )
}

/// A sine that follows the pitch it is asked for without a jump.
#[derive(Debug)]
struct Wave {
    rate_hz: f32,
    phase: f32,
    pitch: u32,
    /// 0..=1.
    gain: f32,
}

impl Wave {
    fn new(rate_hz: u32) -> Self {
        #[allow(clippy::cast_precision_loss, reason = "rates are far below 2^24")]
        let rate_hz = rate_hz.max(1) as f32;
        Self { rate_hz, phase: 0.0, pitch: 0, gain: 0.0 }
    }

    /// The next sample, −1.0..=1.0.
    fn next(&mut self, pitch: u32) -> f32 {
        let step = 1.0 / (FADE.as_secs_f32() * self.rate_hz).max(1.0);
        // One pitch fades out before the next fades in.
        if pitch == self.pitch && pitch > 0 {
            self.gain = (self.gain + step).min(1.0);
        } else {
            self.gain = (self.gain - step).max(0.0);
            if self.gain == 0.0 {
                (self.pitch, self.phase) = (pitch, 0.0);
            }
        }
        #[allow(clippy::cast_precision_loss, reason = "audible pitches are small numbers")]
        let turn = self.pitch as f32 / self.rate_hz;
        self.phase = (self.phase + turn).fract();
        (self.phase * TAU).sin() * self.gain * LOUDNESS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crossings(samples: &[f32]) -> usize {
        samples.windows(2).filter(|pair| pair[0] < 0.0 && pair[1] >= 0.0).count()
    }

    #[test]
    fn a_beep_has_its_pitch_its_bounds_and_no_click() {
        let mut wave = Wave::new(16_000);
        let mut samples: Vec<f32> = (0..16_000).map(|_| wave.next(880)).collect();
        assert!((878..=881).contains(&crossings(&samples)), "{}", crossings(&samples));
        samples.extend((0..1600).map(|_| wave.next(660)));
        samples.extend((0..1600).map(|_| wave.next(0)));
        assert!(samples.iter().all(|sample| sample.abs() <= LOUDNESS));
        let steepest = samples.windows(2).map(|pair| (pair[1] - pair[0]).abs()).fold(0.0, f32::max);
        assert!(steepest < 0.25, "{steepest}");
        assert!(samples[samples.len() - 1000..].iter().all(|sample| *sample == 0.0), "silence");
        assert!(samples[..16].iter().all(|sample| sample.abs() < 0.1), "it fades in");
    }

    #[test]
    fn an_output_that_is_not_there_is_said_so() {
        let error = Tone::open("no such card").unwrap_err().to_string();
        assert!(error.contains("no such card"), "{error}");
    }
}
