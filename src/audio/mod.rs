//! Sound as the detector wants it, and the health of the microphone that it came from.
//!
//! Everything behind this module works on one kind of sound: mono, [`SAMPLE_RATE_HZ`], `f32`
//! within −1.0..=1.0. A [`Converter`] makes it out of whatever a sound card or a file gives; a
//! [`Meter`] says how loud it is.
//!
//! Terms:
//! - *frame*: one sample of every channel, taken at the same moment; *interleaved* samples are
//!   frames one after the other.
//! - *dBFS*: decibels below full scale. 0 dBFS is an RMS of 1.0, so a full-scale sine reads −3.
//! - *clipped*: at full scale, where the card had no higher number to give.
//!
//! Invariants: output never leaves −1.0..=1.0 and is never NaN, whatever came in; the result does
//! not depend on how the input was cut into pieces; nothing here grows with the length of the
//! stream.
//!
//! Absent: echo cancellation, noise suppression and automatic gain. The detector levels each
//! window itself, and a filter between it and the microphone would change what it was measured on.

mod convert;
mod health;
mod level;
mod rate;

pub use convert::{AudioError, Converter, Format};
pub use health::{Ailment, Health};
pub use level::{Level, Loudness, Meter, NoiseFloor, SILENCE_DBFS, rms_dbfs};
pub use rate::Rate;

/// The one sample rate behind this module, in Hz.
pub const SAMPLE_RATE_HZ: u32 = 16_000;
