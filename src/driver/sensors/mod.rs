//! Reads sensors: files of the kernel and of other programs, recordings, the microphone's loudness.
//!
//! A [`Probe`] reads one sensor once, and may block for as long as the kernel likes: an I2C device
//! that no longer answers can hold a read for minutes. So probes are read by [`Readers`], threads that can
//! be left behind, never by a thread that has something else to do.
//!
//! A path may hold one `*` as a part of one name (`/sys/class/hwmon/hwmon*/temp1_input` below a
//! device): numbers of devices change from boot to boot. It must match exactly one file; which,
//! is looked up again after every failure.
//!
//! Every read is a conversion of its own, which the devices of a home are quick enough for; one that
//! converts at a trigger of its own is read from its buffer.

mod buffer;
mod files;
mod iio;
mod readers;
mod replay;
mod supply;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::audio::Loudness;
use crate::sensor::{Condition, Raw};
use files::Place;
pub use readers::{Done, Readers, SLOW};

/// One attempt: the number, and of a power supply all that it says. A number that is missing does not
/// hide the rest.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// What was read, or why not.
    pub raw: Result<Raw, String>,
    /// Of a power supply.
    pub condition: Option<Condition>,
}

/// How one sensor is read.
#[derive(Debug)]
pub struct Probe(Kind);

#[derive(Debug)]
enum Kind {
    Iio(iio::Channel),
    Buffer(buffer::Buffered),
    Number(Place),
    Supply(Place),
    File(files::Watched),
    Replay(replay::Recording),
    Microphone(Arc<Loudness>),
}

impl Probe {
    /// A channel of the industrial I/O subsystem: its `_input`, its `_raw` with offset and scale,
    /// or its name up to there.
    pub fn iio(path: &Path) -> Self {
        Self(Kind::Iio(iio::Channel::new(path)))
    }

    /// A channel of a device that converts at each `trigger`, by the trigger's name: its buffer.
    pub fn iio_buffer(path: &Path, trigger: &str) -> Self {
        Self(Kind::Buffer(buffer::Buffered::new(path, trigger)))
    }

    /// A file of the kernel with one number: hardware monitors.
    pub fn number(path: &Path) -> Self {
        Self(Kind::Number(Place::new(path)))
    }

    /// A thermal zone, or its file `temp`.
    pub fn thermal(path: &Path) -> Self {
        let is_zone = path.file_name().is_none_or(|name| name != "temp");
        let path = if is_zone { path.join("temp") } else { PathBuf::from(path) };
        Self(Kind::Number(Place::new(&path)))
    }

    /// A directory of `/sys/class/power_supply`.
    pub fn supply(path: &Path) -> Self {
        Self(Kind::Supply(Place::new(path)))
    }

    /// A file that another program renews: a number, or JSON with one at the pointer.
    pub fn file(path: &Path, pointer: Option<&str>) -> Self {
        Self(Kind::File(files::Watched::new(path, pointer)))
    }

    /// A CSV file with times, from its beginning.
    ///
    /// # Errors
    /// One line: it cannot be read, or a line of it is wrong.
    pub fn replay(path: &Path) -> Result<Self, String> {
        replay::Recording::open(path).map(|recording| Self(Kind::Replay(recording)))
    }

    /// The loudness of the microphone since the last read.
    pub fn microphone(loudness: Arc<Loudness>) -> Self {
        Self(Kind::Microphone(loudness))
    }

    /// Reads once. May block without end.
    pub fn read(&mut self, now: Instant) -> Measured {
        let fresh = |value| Raw { value, age: Duration::ZERO };
        let raw = match &mut self.0 {
            Kind::Iio(channel) => channel.read().map(fresh),
            Kind::Buffer(buffer) => buffer.read(now),
            Kind::Number(place) => place.resolved(files::number).map(fresh),
            Kind::File(file) => file.read(now),
            Kind::Replay(recording) => Ok(recording.read(now)),
            Kind::Microphone(loudness) => loudness
                .take()
                .map(|dbfs| fresh(f64::from(dbfs)))
                .ok_or_else(|| "the microphone gives no sound".to_owned()),
            Kind::Supply(place) => {
                return match place.resolved(supply::condition) {
                    Ok(condition) => {
                        // The number follows from the condition; the caller knows which.
                        Measured { raw: Ok(fresh(0.0)), condition: Some(condition) }
                    }
                    Err(problem) => Measured { raw: Err(problem), condition: None },
                };
            }
        };
        Measured { raw, condition: None }
    }
}

#[cfg(test)]
mod tests;
