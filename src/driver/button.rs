//! Buttons on real kernel interfaces: a line of the GPIO character device (version 2), or a key of an input
//! device.
//!
//! Both are waited for by epoll: an idle button costs nothing. Levels come with the time at which they
//! were read; what is a press is `sensor::button`'s matter.
//!
//! - *GPIO*: both edges are asked for, so that each change is an event; the level at the beginning is
//!   read. `active = "low"` is given to the kernel, which then reports pressed as 1.
//! - *evdev*: packed `struct input_event`, of which type, code and value count; repeats (value 2) are
//!   neither press nor release. The level at the beginning is unknown and taken for up.
//!
//! A read that fails or ends means that the device has gone. Absent: opening it again (`agent`).
//!
//! Source: Linux Documentation/userspace-api/gpio/chardev.rst, Documentation/input/event-codes.rst.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use gpiocdev::line::{EdgeDetection, EdgeKind, Value};
use tokio::io::unix::AsyncFd;

/// Bytes behind the time of a `struct input_event`: type, code, value.
const TAIL_BYTES: usize = 8;
/// `EV_KEY`.
const EV_KEY: u16 = 1;
/// Events that are read at a time.
const EVENTS: usize = 16;

/// Where the contact is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Contact {
    /// A line of a GPIO chip.
    Gpio {
        /// The character device.
        chip: PathBuf,
        /// The line's offset.
        line: u32,
        /// Pressed is 0.
        active_low: bool,
    },
    /// A key of an input device.
    Evdev {
        /// The character device.
        device: PathBuf,
        /// The key's code.
        key: u16,
    },
}

/// Why a contact cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ButtonError {
    /// It is not there, not permitted, or in use.
    #[error("open {path}: {problem}")]
    Open {
        /// The character device.
        path: PathBuf,
        /// What the system says, and what to do.
        problem: String,
    },
    /// It was there and is no more.
    #[error("{path} cannot be read any more: {problem}")]
    Gone {
        /// The character device.
        path: PathBuf,
        /// What the system says.
        problem: String,
    },
}

/// An open contact.
#[derive(Debug)]
pub struct Levels {
    path: PathBuf,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Gpio(AsyncFd<gpiocdev::Request>),
    Evdev { file: AsyncFd<File>, key: u16, rest: Vec<u8> },
}

/// Opens a contact; also says whether it is pressed already, where that can be told.
///
/// # Errors
/// [`ButtonError::Open`].
///
/// # Panics
/// Outside a tokio runtime.
pub fn open(contact: &Contact) -> Result<(Levels, bool), ButtonError> {
    match contact {
        Contact::Gpio { chip, line, active_low } => open_gpio(chip, *line, *active_low),
        Contact::Evdev { device, key } => open_evdev(device, *key).map(|levels| (levels, false)),
    }
}

fn open_gpio(chip: &Path, line: u32, active_low: bool) -> Result<(Levels, bool), ButtonError> {
    let failed = |problem: String| ButtonError::Open { path: chip.to_owned(), problem };
    let mut builder = gpiocdev::Request::builder();
    builder.on_chip(chip).with_consumer("hark").with_line(line).as_input();
    builder.with_edge_detection(EdgeDetection::BothEdges);
    if active_low {
        builder.as_active_low();
    }
    let request = builder.request().map_err(|e| failed(format!("line {line}: {e}")))?;
    let level = request.value(line).map_err(|e| failed(format!("line {line}: {e}")))?;
    let source = wait_on(request).map_err(|e| failed(e.to_string()))?;
    let levels = Levels { path: chip.to_owned(), source: Source::Gpio(source) };
    Ok((levels, level == Value::Active))
}

fn open_evdev(device: &Path, key: u16) -> Result<Levels, ButtonError> {
    let failed = |e: io::Error| {
        let advice = match e.kind() {
            io::ErrorKind::PermissionDenied => "; hark must be in the group `input`",
            _ => "",
        };
        ButtonError::Open { path: device.to_owned(), problem: format!("{e}{advice}") }
    };
    let mut options = File::options();
    let file = options.read(true).custom_flags(libc::O_NONBLOCK).open(device).map_err(failed)?;
    let file = wait_on(file).map_err(failed)?;
    Ok(Levels { path: device.to_owned(), source: Source::Evdev { file, key, rest: Vec::new() } })
}

#[allow(deprecated, reason = "both types keep their descriptor for life, which is all it asks for")]
fn wait_on<T: std::os::fd::AsRawFd>(source: T) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(source, tokio::io::Interest::READABLE)
}

impl Levels {
    /// The next levels, oldest first: true is pressed. Cancellation safe.
    ///
    /// # Errors
    /// [`ButtonError::Gone`].
    pub async fn next(&mut self) -> Result<Vec<bool>, ButtonError> {
        let levels = match &mut self.source {
            Source::Gpio(request) => gpio_levels(request).await,
            Source::Evdev { file, key, rest } => evdev_levels(file, *key, rest).await,
        };
        levels.map_err(|e| ButtonError::Gone { path: self.path.clone(), problem: e.to_string() })
    }
}

async fn gpio_levels(request: &AsyncFd<gpiocdev::Request>) -> io::Result<Vec<bool>> {
    loop {
        let mut ready = request.readable().await?;
        let mut levels = Vec::new();
        while levels.len() < EVENTS
            && request.get_ref().has_edge_event().map_err(io::Error::other)?
        {
            let event = request.get_ref().read_edge_event().map_err(io::Error::other)?;
            levels.push(event.kind == EdgeKind::Rising);
        }
        if !levels.is_empty() {
            return Ok(levels);
        }
        ready.clear_ready();
    }
}

async fn evdev_levels(file: &AsyncFd<File>, key: u16, rest: &mut Vec<u8>) -> io::Result<Vec<bool>> {
    loop {
        let mut ready = file.readable().await?;
        let mut bytes = [0; EVENTS * size_of::<libc::input_event>()];
        match ready.try_io(|file| file.get_ref().read(&mut bytes)) {
            Err(_would_block) => {}
            Ok(Ok(0)) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it has ended")),
            Ok(Ok(count)) => {
                rest.extend_from_slice(&bytes[..count]);
                let levels = take_levels(rest, key);
                if !levels.is_empty() {
                    return Ok(levels);
                }
            }
            Ok(Err(error)) => return Err(error),
        }
    }
}

/// Takes the whole events out of `bytes`: the levels of the key.
fn take_levels(bytes: &mut Vec<u8>, key: u16) -> Vec<bool> {
    let size = size_of::<libc::input_event>();
    let whole = bytes.len() / size * size;
    let level = |event: &[u8]| {
        let tail: &[u8; TAIL_BYTES] = event.last_chunk()?;
        let [t0, t1, c0, c1, v0, v1, v2, v3] = *tail;
        let (kind, code) = (u16::from_ne_bytes([t0, t1]), u16::from_ne_bytes([c0, c1]));
        match i32::from_ne_bytes([v0, v1, v2, v3]) {
            value @ 0..=1 if kind == EV_KEY && code == key => Some(value == 1),
            _ => None,
        }
    };
    let levels = bytes[..whole].chunks(size).filter_map(level).collect();
    bytes.drain(..whole);
    levels
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: u16, code: u16, value: i32) -> Vec<u8> {
        let mut event = vec![7; size_of::<libc::input_event>() - TAIL_BYTES];
        event.extend(kind.to_ne_bytes());
        event.extend(code.to_ne_bytes());
        event.extend(value.to_ne_bytes());
        event
    }

    #[test]
    fn only_presses_and_releases_of_the_key_are_levels_however_the_bytes_come() {
        let stream = [
            event(EV_KEY, 169, 1),
            event(0, 0, 0),
            event(EV_KEY, 169, 2),
            event(EV_KEY, 28, 1),
            event(4, 169, 1),
            event(EV_KEY, 169, 0),
        ]
        .concat();
        for piece in [1, 7, 24, 1000] {
            let (mut rest, mut levels) = (Vec::new(), Vec::new());
            for bytes in stream.chunks(piece) {
                rest.extend_from_slice(bytes);
                levels.extend(take_levels(&mut rest, 169));
            }
            assert_eq!((levels, rest.len()), (vec![true, false], 0), "in pieces of {piece}");
        }
    }

    #[tokio::test]
    async fn a_device_that_is_not_there_is_said_so() {
        let device = PathBuf::from("/nowhere/event0");
        let error = open(&Contact::Evdev { device, key: 1 }).unwrap_err().to_string();
        assert!(error.starts_with("open /nowhere/event0: "), "{error}");
        let chip = PathBuf::from("/dev/null");
        let error =
            open(&Contact::Gpio { chip, line: 0, active_low: true }).unwrap_err().to_string();
        assert!(error.starts_with("open /dev/null: line 0: "), "{error}");
    }
}
