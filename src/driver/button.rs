//! Buttons on real kernel interfaces: a line of the GPIO character device (version 2), or a key of an input
//! device.
//!
//! Both are waited for by epoll: an idle button costs nothing. A level comes with the time at which the
//! kernel saw it, so that a press is as long as it was, however late it is read: a busy device may find
//! both edges of a press in one read. What is a press is `sensor::button`'s matter.
//!
//! - *GPIO*: both edges are asked for, so that each change is an event, by the monotonic clock unless another is
//!   asked for; the level at the beginning is read. `active = "low"` is given to the kernel, which then reports pressed as 1.
//! - *evdev*: packed `struct input_event`; repeats (value 2) are neither press nor release. The device is asked
//!   for the level at the beginning, and again when the kernel says that it had no room for some events
//!   (`SYN_DROPPED`): a press that was lost whole is lost, a key that stays down or up is not. Its times are those
//!   of the wall clock, which may be set meanwhile, unless the device is asked for monotonic ones. What cannot be
//!   asked is no input device (a pipe of a test): it begins up, and its levels have the time at which they are read.
//!   So have those whose time is that of a report of a light: where a light of the same device blinks, the
//!   kernel gives a key the time of a blink, which may be seconds old, and a short press would be a long one.
//!
//! A read that fails or ends means that the device has gone. Absent: opening it again (`agent`).
//!
//! Source: Linux Documentation/userspace-api/gpio/chardev.rst, Documentation/input/event-codes.rst.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gpiocdev::line::{EdgeDetection, EdgeKind, Value};
use tokio::io::unix::AsyncFd;

use super::sys;
use crate::clock::Clock;
use crate::sensor::button::MEDIUM;

/// Bytes of one of the two numbers, seconds and microseconds, with which a `struct input_event` begins.
const WORD_BYTES: usize = size_of::<usize>();
/// Bytes of a `struct input_event`: the time, then type, code and value.
const EVENT_BYTES: usize = 2 * WORD_BYTES + 8;
/// `EV_SYN`, its codes `SYN_REPORT` and `SYN_DROPPED`, `EV_KEY`, and what the host tells the device: `EV_LED`, `EV_SND`.
const EV_SYN: u16 = 0;
const SYN_REPORT: u16 = 0;
const SYN_DROPPED: u16 = 3;
const EV_KEY: u16 = 1;
const EV_LED: u16 = 0x11;
const EV_SND: u16 = 0x12;
/// Events that are read at a time.
const EVENTS: usize = 16;
/// How long before the level after it one is taken to have begun, where its own time is not known and both are found in one
/// read: how long the press was nobody knows, so it is none that calls an alarm off.
const UNTIMED: Duration = MEDIUM;

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

/// The contact is down or up since then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level {
    /// Down.
    pub pressed: bool,
    /// When the kernel saw it.
    pub at: Instant,
}

/// A moment by both readings of the monotonic clock: that of this process, and the kernel's number.
#[derive(Debug, Clone, Copy)]
struct Anchor {
    at: Instant,
    since_boot: Duration,
}

impl Anchor {
    fn new(clock: Clock) -> Self {
        Self { at: clock.now(), since_boot: sys::since_boot() }
    }

    fn instant(self, stamp: Duration) -> Instant {
        match stamp.checked_sub(self.since_boot) {
            Some(later) => self.at + later,
            None => self.at.checked_sub(self.since_boot - stamp).unwrap_or(self.at),
        }
    }
}

/// An open contact.
#[derive(Debug)]
pub struct Levels {
    path: PathBuf,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Gpio { request: AsyncFd<gpiocdev::Request>, anchor: Anchor },
    Evdev { file: AsyncFd<File>, keys: Keys },
}

/// Opens a contact; also says whether it is pressed already, where that can be told.
///
/// # Errors
/// [`ButtonError::Open`].
///
/// # Panics
/// Outside a tokio runtime.
pub fn open(contact: &Contact, clock: Clock) -> Result<(Levels, bool), ButtonError> {
    match contact {
        Contact::Gpio { chip, line, active_low } => open_gpio(chip, *line, *active_low, clock),
        Contact::Evdev { device, key } => open_evdev(device, *key, clock),
    }
}

fn open_gpio(
    chip: &Path,
    line: u32,
    active_low: bool,
    clock: Clock,
) -> Result<(Levels, bool), ButtonError> {
    let failed = |problem: String| ButtonError::Open { path: chip.to_owned(), problem };
    let anchor = Anchor::new(clock);
    let mut builder = gpiocdev::Request::builder();
    builder.on_chip(chip).with_consumer("hark").with_line(line).as_input();
    builder.with_edge_detection(EdgeDetection::BothEdges);
    if active_low {
        builder.as_active_low();
    }
    let request = builder.request().map_err(|e| failed(format!("line {line}: {e}")))?;
    let level = request.value(line).map_err(|e| failed(format!("line {line}: {e}")))?;
    let request = wait_on(request).map_err(|e| failed(e.to_string()))?;
    let levels = Levels { path: chip.to_owned(), source: Source::Gpio { request, anchor } };
    Ok((levels, level == Value::Active))
}

fn open_evdev(device: &Path, key: u16, clock: Clock) -> Result<(Levels, bool), ButtonError> {
    let failed = |e: io::Error| {
        let advice = match e.kind() {
            io::ErrorKind::PermissionDenied => "; hark must be in the group `input`",
            _ => "",
        };
        ButtonError::Open { path: device.to_owned(), problem: format!("{e}{advice}") }
    };
    let mut options = File::options();
    let file = options.read(true).custom_flags(libc::O_NONBLOCK).open(device).map_err(failed)?;
    let anchor = sys::stamp_monotonic(&file).is_ok().then(|| Anchor::new(clock));
    let keys = Keys::new(key, anchor, clock);
    let pressed = sys::key_is_down(&file, key).unwrap_or(false);
    let file = wait_on(file).map_err(failed)?;
    Ok((Levels { path: device.to_owned(), source: Source::Evdev { file, keys } }, pressed))
}

#[allow(deprecated, reason = "both types keep their descriptor for life, which is all it asks for")]
fn wait_on<T: std::os::fd::AsRawFd>(source: T) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(source, tokio::io::Interest::READABLE)
}

impl Levels {
    /// The next levels, oldest first. Cancellation safe.
    ///
    /// # Errors
    /// [`ButtonError::Gone`].
    pub async fn next(&mut self) -> Result<Vec<Level>, ButtonError> {
        self.source.next().await.map_err(|e| gone(&self.path, &e))
    }

    /// The levels that can be read now, oldest first; none if there are none.
    ///
    /// # Errors
    /// [`ButtonError::Gone`].
    pub fn waiting(&mut self) -> Result<Vec<Level>, ButtonError> {
        let read = self.source.read().map_err(|e| gone(&self.path, &e))?;
        Ok(read.unwrap_or_default())
    }
}

fn gone(path: &Path, error: &io::Error) -> ButtonError {
    ButtonError::Gone { path: path.to_owned(), problem: error.to_string() }
}

impl Source {
    async fn next(&mut self) -> io::Result<Vec<Level>> {
        match self {
            Self::Gpio { request, anchor } => {
                once_there(request, |request| read_gpio(request, *anchor)).await
            }
            Self::Evdev { file, keys } => once_there(file, |file| keys.read(file)).await,
        }
    }

    /// `None`: there is nothing to read.
    fn read(&mut self) -> io::Result<Option<Vec<Level>>> {
        match self {
            Self::Gpio { request, anchor } => read_gpio(request.get_ref(), *anchor),
            Self::Evdev { file, keys } => keys.read(file.get_ref()),
        }
    }
}

/// Waits until there is a level.
async fn once_there<T: std::os::fd::AsRawFd>(
    source: &AsyncFd<T>,
    mut read: impl FnMut(&T) -> io::Result<Option<Vec<Level>>>,
) -> io::Result<Vec<Level>> {
    loop {
        let mut ready = source.readable().await?;
        match read(source.get_ref())? {
            Some(levels) if !levels.is_empty() => return Ok(levels),
            // Other keys; there may be more.
            Some(_) => {}
            None => ready.clear_ready(),
        }
    }
}

/// The crate's own function for one event reads up to eight and gives back the first.
fn read_gpio(request: &gpiocdev::Request, anchor: Anchor) -> io::Result<Option<Vec<Level>>> {
    if !request.has_edge_event().map_err(io::Error::other)? {
        return Ok(None);
    }
    let size = request.edge_event_u64_size();
    let mut words = vec![0; EVENTS * size];
    let count = request.read_edge_events_into_slice(&mut words).map_err(io::Error::other)?;
    let level = |event: &[u64]| {
        let event = request.edge_event_from_slice(event).map_err(io::Error::other)?;
        let at = anchor.instant(Duration::from_nanos(event.timestamp_ns));
        Ok(Level { pressed: event.kind == EdgeKind::Rising, at })
    };
    words[..count].chunks_exact(size).map(level).collect::<io::Result<_>>().map(Some)
}

/// One key of an input device.
#[derive(Debug)]
struct Keys {
    key: u16,
    /// `None`: the times in the events are not monotonic.
    anchor: Option<Anchor>,
    clock: Clock,
    /// The beginning of an event whose end was not read yet.
    rest: Vec<u8>,
    /// Events were lost, and the next report is of what was left of several.
    incomplete: bool,
    /// A light or a sound of the device has changed since the last report,
    changed: bool,
    /// and the time of the last report of such a change.
    change: Option<Duration>,
}

impl Keys {
    fn new(key: u16, anchor: Option<Anchor>, clock: Clock) -> Self {
        let (rest, incomplete, changed, change) = (Vec::new(), false, false, None);
        Self { key, anchor, clock, rest, incomplete, changed, change }
    }

    fn read(&mut self, mut file: &File) -> io::Result<Option<Vec<Level>>> {
        let mut bytes = [0; EVENTS * EVENT_BYTES];
        match file.read(&mut bytes) {
            Ok(0) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it has ended")),
            Ok(count) => {
                self.rest.extend_from_slice(&bytes[..count]);
                let (mut levels, lost) = self.take();
                if lost {
                    let at = self.clock.now();
                    levels.push(Level { pressed: sys::key_is_down(file, self.key)?, at });
                }
                Ok(Some(levels))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes the whole events out of what was read: the levels of the key, and whether events were lost after
    /// them.
    fn take(&mut self) -> (Vec<Level>, bool) {
        let (mut changes, mut lost) = (Vec::new(), false);
        let bytes = std::mem::take(&mut self.rest);
        let (events, rest) = bytes.as_chunks::<EVENT_BYTES>();
        for (stamp, kind, code, value) in events.iter().filter_map(fields) {
            match (kind, code, value) {
                (EV_SYN, SYN_DROPPED, _) => (self.incomplete, lost) = (true, true),
                (EV_SYN, SYN_REPORT, _) => {
                    self.incomplete = false;
                    if std::mem::take(&mut self.changed) {
                        self.change = Some(stamp);
                    }
                }
                (EV_LED | EV_SND, ..) => self.changed = true,
                (EV_KEY, code, 0..=1) if code == self.key && !self.incomplete => {
                    let is_own = self.change.is_none_or(|change| stamp > change);
                    let anchor = self.anchor.filter(|_| is_own);
                    changes.push((value == 1, anchor.map(|anchor| anchor.instant(stamp))));
                }
                _ => {}
            }
        }
        self.rest = rest.to_vec();
        (timed(&changes, self.clock.now()), lost)
    }
}

/// The levels that were read `now`; those without a time began then, or shortly before the next whose time is known.
fn timed(changes: &[(bool, Option<Instant>)], now: Instant) -> Vec<Level> {
    let mut next = None;
    let mut levels: Vec<Level> = Vec::with_capacity(changes.len());
    for &(pressed, at) in changes.iter().rev() {
        let before_next = next.and_then(|next: Instant| next.checked_sub(UNTIMED));
        let at = at.or(before_next).unwrap_or(now);
        next = Some(at);
        levels.push(Level { pressed, at });
    }
    levels.reverse();
    levels
}

/// Time, type, code and value of an event.
fn fields(event: &[u8; EVENT_BYTES]) -> Option<(Duration, u16, u16, i32)> {
    let (words, _) = event.as_chunks::<WORD_BYTES>();
    let [seconds, micros, ..] = *words else { return None };
    let number = |word| u64::try_from(usize::from_ne_bytes(word)).unwrap_or(u64::MAX);
    let stamp = Duration::from_secs(number(seconds)) + Duration::from_micros(number(micros));
    let [t0, t1, c0, c1, v0, v1, v2, v3] = *event.last_chunk()?;
    let (kind, code) = (u16::from_ne_bytes([t0, t1]), u16::from_ne_bytes([c0, c1]));
    Some((stamp, kind, code, i32::from_ne_bytes([v0, v1, v2, v3])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ClockState;
    use crate::sensor::button::{Button, Press, Sign};

    const KEY: u16 = 169;

    fn clock() -> Clock {
        Clock::new(|| ClockState::Unsynced)
    }

    fn event(at_ms: usize, kind: u16, code: u16, value: i32) -> Vec<u8> {
        let mut event = (at_ms / 1000).to_ne_bytes().to_vec();
        event.extend((at_ms % 1000 * 1000).to_ne_bytes());
        event.extend(kind.to_ne_bytes());
        event.extend(code.to_ne_bytes());
        event.extend(value.to_ne_bytes());
        event
    }

    /// What is told of the key, which is opened at 10 s, when all of it is read in one go.
    fn in_one_read(stamped: bool, changes: &[(usize, i32)]) -> Vec<Level> {
        let anchor = Anchor { at: clock().now(), since_boot: Duration::from_secs(10) };
        let anchor = stamped.then_some(anchor);
        let mut keys = keys(anchor);
        keys.rest =
            changes.iter().flat_map(|(ms, value)| event(*ms, EV_KEY, KEY, *value)).collect();
        keys.take().0
    }

    fn keys(anchor: Option<Anchor>) -> Keys {
        Keys::new(KEY, anchor, clock())
    }

    /// The presses in these levels, which are looked at long afterwards.
    fn presses(levels: &[Level]) -> Vec<Press> {
        let mut button = Button::new(None, Duration::from_secs(60));
        let mut signs: Vec<Sign> =
            levels.iter().flat_map(|level| button.level(level.pressed, level.at)).collect();
        signs.extend(button.tick(levels[0].at + Duration::from_secs(40)));
        let press = |sign: &Sign| match sign {
            Sign::Press(press, _) => Some(*press),
            _ => None,
        };
        signs.iter().filter_map(press).collect()
    }

    #[test]
    fn a_press_whose_edges_are_found_in_one_read_is_as_long_as_it_was_and_a_bounce_is_none() {
        for (length_ms, press) in [(80, Press::Short), (1200, Press::Medium), (3100, Press::Long)] {
            let changes = [(15_000, 1), (15_000 + length_ms, 0)];
            assert_eq!(presses(&in_one_read(true, &changes)), [press], "{length_ms} ms");
            // Without the kernel's times nobody knows how long: it must not call an alarm off.
            assert_eq!(presses(&in_one_read(false, &changes)), [Press::Medium], "{length_ms} ms");
        }
        let bounce = [(15_000, 1), (15_010, 0)];
        assert_eq!(presses(&in_one_read(true, &bounce)), []);
        let bouncing =
            [(15_000, 1), (15_004, 0), (15_007, 1), (15_300, 0), (15_304, 1), (15_309, 0)];
        assert_eq!(presses(&in_one_read(true, &bouncing)), [Press::Short]);
    }

    #[test]
    fn only_presses_and_releases_of_the_key_are_levels_however_the_bytes_come() {
        let stream = [
            event(9_500, EV_KEY, KEY, 1),
            event(9_500, 0, 0, 0),
            event(9_700, EV_KEY, KEY, 2),
            event(9_800, EV_KEY, 28, 1),
            event(9_900, 4, KEY, 1),
            event(12_000, EV_KEY, KEY, 0),
        ]
        .concat();
        let anchor = Anchor { at: clock().now(), since_boot: Duration::from_secs(10) };
        let at = |ms: u64| anchor.at + Duration::from_millis(ms) - Duration::from_secs(10);
        for piece in [1, 7, 24, 1000] {
            let mut keys = keys(Some(anchor));
            let mut levels = Vec::new();
            for bytes in stream.chunks(piece) {
                keys.rest.extend_from_slice(bytes);
                let (told, lost) = keys.take();
                assert!(!lost);
                levels.extend(told);
            }
            let told = [(true, 9_500), (false, 12_000)];
            let told = told.map(|(pressed, ms)| Level { pressed, at: at(ms) });
            assert_eq!((levels, keys.rest.len()), (told.to_vec(), 0), "in pieces of {piece}");
        }
    }

    /// What Linux 6.1 tells where a light of the device has blinked: its eighth change makes a report of its own, whose time
    /// stays for the next one.
    fn after_blinks(press: &[(usize, i32)]) -> Vec<u8> {
        let blink = event(11_000, EV_LED, 1, 1);
        let report = event(11_000, EV_SYN, SYN_REPORT, 0);
        let key = |&(ms, value): &(usize, i32)| {
            [event(ms, EV_KEY, KEY, value), event(ms, EV_SYN, SYN_REPORT, 0)].concat()
        };
        [blink, report].into_iter().chain(press.iter().map(key)).flatten().collect()
    }

    #[test]
    fn a_press_beside_a_blinking_light_does_not_begin_with_the_blink() {
        let clock = clock();
        let anchor = Anchor { at: clock.now(), since_boot: Duration::from_secs(10) };
        let mut keys = keys(Some(anchor));
        // Down, with the time of the blink, and read when it happens.
        keys.rest = after_blinks(&[(11_000, 1)]);
        let (down, _) = keys.take();
        assert!(
            down[0].pressed && down[0].at <= clock.now() && down[0].at >= anchor.at,
            "{down:?}"
        );
        assert!(
            down[0].at < anchor.at + Duration::from_secs(1),
            "not a second after 10 s: {down:?}"
        );
        keys.rest = [event(15_000, EV_KEY, KEY, 0), event(15_000, EV_SYN, SYN_REPORT, 0)].concat();
        let (up, _) = keys.take();
        assert_eq!(up[0].at, anchor.at + Duration::from_secs(5), "its own time is the kernel's");
    }

    #[test]
    fn a_press_of_unknown_length_is_not_lost_and_calls_no_alarm_off() {
        let mut keys =
            keys(Some(Anchor { at: clock().now(), since_boot: Duration::from_secs(10) }));
        keys.rest = after_blinks(&[(11_000, 1), (15_000, 0)]);
        let (levels, _) = keys.take();
        assert_eq!(presses(&levels), [Press::Medium], "neither short nor one of four seconds");
    }

    #[test]
    fn what_is_left_of_lost_events_is_no_level_and_the_device_is_asked() {
        let stream = [
            event(11_000, EV_KEY, KEY, 1),
            event(11_000, EV_SYN, SYN_REPORT, 0),
            event(12_000, EV_SYN, SYN_DROPPED, 0),
            // Of a report whose beginning is lost.
            event(12_000, EV_KEY, KEY, 1),
            event(12_000, EV_SYN, SYN_REPORT, 0),
            event(13_000, EV_KEY, KEY, 0),
        ]
        .concat();
        for piece in [24, 1000] {
            let (mut keys, mut levels, mut asked) = (keys(None), Vec::new(), 0);
            for bytes in stream.chunks(piece) {
                keys.rest.extend_from_slice(bytes);
                let (told, lost) = keys.take();
                levels.extend(told.iter().map(|level| level.pressed));
                asked += u8::from(lost);
            }
            assert_eq!((levels, asked), (vec![true, false], 1), "in pieces of {piece}");
        }
    }

    #[tokio::test]
    async fn a_device_that_is_not_there_is_said_so() {
        let device = PathBuf::from("/nowhere/event0");
        let error = open(&Contact::Evdev { device, key: 1 }, clock()).unwrap_err().to_string();
        assert!(error.starts_with("open /nowhere/event0: "), "{error}");
        let chip = PathBuf::from("/dev/null");
        let contact = Contact::Gpio { chip, line: 0, active_low: true };
        let error = open(&contact, clock()).unwrap_err().to_string();
        assert!(error.starts_with("open /dev/null: line 0: "), "{error}");
    }
}
