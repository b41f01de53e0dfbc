//! One stream of 16 kHz mono, whatever it comes from.
//!
//! ```text
//! source's own thread                          detector's thread
//! cpal callback, WAV player ──► ring (4 s) ──► AudioStream::read ──► 16 kHz mono
//!     never waits; counts what does not fit         converts
//! ```
//!
//! The source's side does nothing that could make it late: it copies samples into a lock-free
//! ring. If the detector is not there to take them, the newest samples are lost and counted
//! (*overruns*). A card that goes away often says nothing at all, so the stream also knows when the
//! last samples came, and is *stale* after [`STALE_AFTER`] without any.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rtrb::{Consumer, Producer, RingBuffer};

use super::audio_file::AudioFileError;
use super::{microphone, wav_source};
use crate::audio::{AudioError, Converter, Format};
use crate::clock::Clock;

/// Without samples for longer than this a source is stale: no card has buffers of half of it.
pub const STALE_AFTER: Duration = Duration::from_secs(2);

/// Sound that the ring holds: longer than the detector is ever busy with one window, on any board.
const RING: Duration = Duration::from_secs(4);
/// How often [`AudioStream::read_within`] looks into the ring: once a block of the gate. Waking up costs
/// more than what a block holds, and nothing is decided about less than a block.
const POLL: Duration = Duration::from_millis(100);

/// Why there is no sound.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// No device has this name.
    #[error("no sound input `{name}`: use \"default\" or one of {available}")]
    UnknownDevice {
        /// As it was configured.
        name: String,
        /// The names there are, separated by commas.
        available: String,
    },
    /// The device is there and cannot be used.
    #[error("sound input `{name}`: {reason}")]
    Device {
        /// As it was configured.
        name: String,
        /// What the sound system says.
        reason: String,
    },
    /// The file of a `wav:` source cannot be used.
    #[error(transparent)]
    File(#[from] AudioFileError),
    /// What the source gives cannot be converted.
    #[error("sound input: {0}")]
    Format(#[from] AudioError),
    /// The system gives no thread.
    #[error("start a thread for the sound input: {0}")]
    Thread(std::io::Error),
}

/// What both sides of a stream and whoever watches it share.
#[derive(Debug, Default)]
struct Shared {
    lost_frames: AtomicU64,
    xruns: AtomicU64,
    played: AtomicBool,
    stop: AtomicBool,
    failure: Mutex<Option<String>>,
}

/// A view of a stream for another thread. Cheap to clone.
#[derive(Debug, Clone)]
pub struct StreamHealth(Arc<Shared>);

impl StreamHealth {
    /// Frames lost because nobody took them in time, and gaps that the sound system reports.
    pub fn overruns(&self) -> u64 {
        self.0.lost_frames.load(Ordering::Relaxed) + self.0.xruns.load(Ordering::Relaxed)
    }

    /// Whether the file of a `wav:` source has been played to its end. Never true of a device.
    pub fn played(&self) -> bool {
        self.0.played.load(Ordering::Acquire)
    }

    /// What the source said when it failed, if it said anything.
    pub fn failure(&self) -> Option<String> {
        self.0.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The source's side of a stream.
#[derive(Debug)]
pub(super) struct Feed {
    producer: Producer<f32>,
    channels: usize,
    shared: Arc<Shared>,
}

impl Feed {
    /// Takes interleaved samples, whole frames. Never waits, never allocates; what does not fit is
    /// counted.
    pub(super) fn push(&mut self, samples: impl ExactSizeIterator<Item = f32>) {
        let frames = samples.len() / self.channels;
        let fitting = frames.min(self.producer.slots() / self.channels);
        if let Ok(chunk) = self.producer.write_chunk_uninit(fitting * self.channels) {
            chunk.fill_from_iter(samples);
        }
        self.shared.lost_frames.fetch_add((frames - fitting) as u64, Ordering::Relaxed);
    }

    pub(super) fn reports(&self) -> Reports {
        Reports(Arc::clone(&self.shared))
    }
}

/// How a source says what happens to it.
#[derive(Debug, Clone)]
pub(super) struct Reports(Arc<Shared>);

impl Reports {
    pub(super) fn xrun(&self) {
        self.0.xruns.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn failed(&self, reason: String) {
        *self.0.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
    }

    pub(super) fn played(&self) {
        self.0.played.store(true, Ordering::Release);
    }

    /// Whether the other side is gone.
    pub(super) fn must_stop(&self) -> bool {
        self.0.stop.load(Ordering::Relaxed)
    }
}

/// What keeps a source going as long as its stream is there. The fields are only held.
pub(super) enum Source {
    /// A capture stream of cpal; dropping it ends the capture.
    Device(Option<cpal::Stream>),
    /// The thread that plays a file.
    Player(Option<std::thread::JoinHandle<()>>),
    #[cfg(test)]
    Nothing,
}

/// A source of sound, seen from the thread that listens.
///
/// Dropping it ends the source; that of a file within some 100 ms.
pub struct AudioStream {
    consumer: Consumer<f32>,
    converter: Converter,
    scratch: Vec<f32>,
    shared: Arc<Shared>,
    clock: Clock,
    last_data: Instant,
    source: Source,
}

impl std::fmt::Debug for AudioStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AudioStream").field("shared", &self.shared).finish_non_exhaustive()
    }
}

impl AudioStream {
    /// Opens what `[audio] input` names: `wav:PATH`, played in real time and followed by silence;
    /// `none`, which is `None`; `default` or the name of a sound card.
    ///
    /// # Errors
    /// [`StreamError`]: each says which input and what to do.
    pub fn open(input: &str, clock: Clock) -> Result<Option<Self>, StreamError> {
        if input == "none" {
            return Ok(None);
        }
        match input.strip_prefix("wav:") {
            Some(path) => wav_source::open(Path::new(path), clock).map(Some),
            None => microphone::open(input, clock).map(Some),
        }
    }

    /// A stream of `format` with whatever `start` makes its source.
    pub(super) fn with_source(
        format: Format,
        clock: Clock,
        start: impl FnOnce(Feed) -> Result<Source, StreamError>,
    ) -> Result<Self, StreamError> {
        let channels = usize::from(format.channels());
        let frames = format.rate_hz() as usize * RING.as_secs() as usize;
        let (producer, consumer) = RingBuffer::new(frames * channels);
        let shared = Arc::new(Shared::default());
        let converter = Converter::new(format)?;
        let source = start(Feed { producer, channels, shared: Arc::clone(&shared) })?;
        let last_data = clock.now();
        Ok(Self { consumer, converter, scratch: Vec::new(), shared, clock, last_data, source })
    }

    /// Appends what has come since the last time, as 16 kHz mono, and returns how many samples that
    /// is. Does not wait.
    ///
    /// # Errors
    /// [`StreamError::Format`]: the resampler failed; open the stream anew.
    pub fn read(&mut self, out: &mut Vec<f32>) -> Result<usize, StreamError> {
        let before = out.len();
        let waiting = self.consumer.slots();
        if waiting > 0 {
            self.scratch.resize(waiting, 0.0);
            let (filled, _) = self.consumer.pop_partial_slice(&mut self.scratch);
            self.converter.push_f32(filled, out)?;
            self.last_data = self.clock.now();
        }
        Ok(out.len() - before)
    }

    /// As [`AudioStream::read`], but waits up to `at_most` for the first samples.
    ///
    /// # Errors
    /// As [`AudioStream::read`].
    pub fn read_within(
        &mut self,
        at_most: Duration,
        out: &mut Vec<f32>,
    ) -> Result<usize, StreamError> {
        let started = self.clock.now();
        loop {
            let samples = self.read(out)?;
            let waited = self.clock.now().saturating_duration_since(started);
            if samples > 0 || waited >= at_most {
                return Ok(samples);
            }
            std::thread::sleep(POLL.min(at_most - waited));
        }
    }

    /// Frames lost so far: see [`StreamHealth::overruns`].
    pub fn overruns(&self) -> u64 {
        self.health().overruns()
    }

    /// Whether nothing has come for longer than [`STALE_AFTER`]: the source is dead, whatever it
    /// says of itself. Means something only while [`AudioStream::read`] is called.
    pub fn is_stale(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last_data) > STALE_AFTER
    }

    /// A view for another thread.
    pub fn health(&self) -> StreamHealth {
        StreamHealth(Arc::clone(&self.shared))
    }
}

impl Drop for AudioStream {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let stale = self.is_stale(self.clock.now());
        match &mut self.source {
            Source::Player(thread) => {
                // It looks at `stop` every 100 ms. A panic in it has been printed already.
                let _ = thread.take().map(std::thread::JoinHandle::join);
            }
            Source::Device(stream) if stale => close_aside(stream.take()),
            Source::Device(stream) => drop(stream.take()),
            #[cfg(test)]
            Source::Nothing => {}
        }
    }
}

/// Closes a stream whose device gives nothing any more on a thread of its own: closing waits for the
/// capture, which may hang in a dead driver for good, and whoever wants to try another device must
/// not hang with it. At most one such thread for each time that a device dies.
fn close_aside(stream: Option<cpal::Stream>) {
    let closing = std::thread::Builder::new().name("hark-mic-close".to_owned());
    // Without a thread it is closed here, and that it may hang is the smaller evil.
    let _ = closing.spawn(move || drop(stream));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ClockState;

    fn clock() -> Clock {
        Clock::new(|| ClockState::Unsynced)
    }

    /// A stream of two channels and the side that feeds it.
    fn stream() -> (AudioStream, Feed) {
        let mut feed = None;
        let stream = AudioStream::with_source(Format::new(16_000, 2).unwrap(), clock(), |given| {
            feed = Some(given);
            Ok(Source::Nothing)
        });
        (stream.unwrap(), feed.unwrap())
    }

    #[test]
    fn samples_come_out_as_mono_in_their_order() {
        let (mut stream, mut feed) = stream();
        feed.push([0.5, 0.25, -0.5, -0.25].into_iter());
        let mut out = Vec::new();
        assert_eq!(stream.read(&mut out).unwrap(), 2);
        assert_eq!(out, [0.375, -0.375]);
        assert_eq!(stream.read(&mut out).unwrap(), 0);
    }

    #[test]
    fn what_does_not_fit_is_counted_in_whole_frames_and_the_stream_goes_on() {
        let (mut stream, mut feed) = stream();
        let second = vec![0.1f32; 32_000];
        for _ in 0..5 {
            feed.push(second.iter().copied());
        }
        assert_eq!(stream.overruns(), 16_000);
        let mut out = Vec::new();
        assert_eq!(stream.read(&mut out).unwrap(), 64_000);
        feed.push(second.iter().copied());
        assert_eq!(stream.read(&mut out).unwrap(), 16_000);
        assert_eq!(stream.health().overruns(), 16_000);
    }

    #[test]
    fn stream_without_samples_becomes_stale_and_recovers() {
        let (mut stream, mut feed) = stream();
        let later = clock().now() + STALE_AFTER + Duration::from_millis(500);
        assert!(!stream.is_stale(clock().now()));
        assert!(stream.is_stale(later));
        feed.push([0.0, 0.0].into_iter());
        stream.last_data -= STALE_AFTER * 2;
        assert!(stream.is_stale(clock().now()));
        stream.read(&mut Vec::new()).unwrap();
        assert!(!stream.is_stale(clock().now()));
    }

    #[test]
    fn waiting_for_samples_is_bounded() {
        let (mut stream, _feed) = stream();
        let (before, mut out) = (clock().now(), Vec::new());
        assert_eq!(stream.read_within(Duration::from_millis(60), &mut out).unwrap(), 0);
        assert!(clock().now() - before >= Duration::from_millis(60));
    }

    #[test]
    fn input_none_is_no_stream() {
        assert!(AudioStream::open("none", clock()).unwrap().is_none());
    }
}
