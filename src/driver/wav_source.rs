//! `wav:PATH`: a file in place of a microphone.
//!
//! A thread plays it at the pace of real time into the ring that a sound card would fill, then
//! goes on with silence, as a room does. [`StreamHealth::played`](super::audio_stream::StreamHealth)
//! tells when the file is over. A file that breaks off is reported as a failure at its end.

use std::path::Path;
use std::time::Duration;

use super::audio_file::{AudioFile, AudioFileError};
use super::audio_stream::{AudioStream, Feed, Source, StreamError};
use crate::audio::{Format, SAMPLE_RATE_HZ};
use crate::clock::Clock;

/// How much is played at a time: as much as a listener takes at a time.
const STEP: Duration = Duration::from_millis(100);
/// A step that comes later than this is not made up for: the machine slept, and a second of sound
/// pushed in one go would be no real time any more.
const MOST_BEHIND: Duration = Duration::from_secs(1);

/// Opens the file and starts to play it.
///
/// # Errors
/// [`StreamError::File`]: the file cannot be used; [`StreamError::Thread`].
pub fn open(path: &Path, clock: Clock) -> Result<AudioStream, StreamError> {
    let mut player = Player { file: Some(AudioFile::open(path)?), decoded: Vec::new(), played: 0 };
    // A file that holds nothing is better found out now than after it has been "played".
    player.fill(1)?;
    AudioStream::with_source(Format::NATIVE, clock, |feed| {
        std::thread::Builder::new()
            .name("hark-wav".to_owned())
            .spawn(move || play(player, feed, clock))
            .map(|thread| Source::Player(Some(thread)))
            .map_err(StreamError::Thread)
    })
}

/// The file and what of it is decoded and not yet played.
struct Player {
    /// `None` after the end.
    file: Option<AudioFile>,
    decoded: Vec<f32>,
    /// How much of `decoded` is played.
    played: usize,
}

impl Player {
    /// Decodes until `wanted` samples wait to be played, or the file ends.
    fn fill(&mut self, wanted: usize) -> Result<(), AudioFileError> {
        if self.decoded.len() - self.played >= wanted {
            return Ok(());
        }
        self.decoded.drain(..self.played);
        self.played = 0;
        while self.decoded.len() < wanted {
            let Some(file) = &mut self.file else { break };
            match file.next_block(&mut self.decoded) {
                Ok(true) => {}
                Ok(false) => self.file = None,
                Err(error) => {
                    self.file = None;
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// The next `wanted` samples, silence after the end of the file; whether the file is over.
    fn take(&mut self, wanted: usize) -> (impl ExactSizeIterator<Item = f32>, bool) {
        let waiting = self.decoded.get(self.played..).unwrap_or_default();
        let samples = &waiting[..waiting.len().min(wanted)];
        self.played += samples.len();
        let over = self.file.is_none() && samples.len() == waiting.len();
        ((0..wanted).map(|i| samples.get(i).copied().unwrap_or(0.0)), over)
    }
}

fn play(mut player: Player, mut feed: Feed, clock: Clock) {
    let reports = feed.reports();
    let step = (STEP.as_millis() as usize) * SAMPLE_RATE_HZ as usize / 1_000;
    let mut due = clock.now();
    while !reports.must_stop() {
        if let Err(error) = player.fill(step) {
            reports.failed(error.to_string());
        }
        let (samples, over) = player.take(step);
        feed.push(samples);
        if over {
            reports.played();
        }
        due += STEP;
        let now = clock.now();
        if now.saturating_duration_since(due) > MOST_BEHIND {
            due = now;
        }
        std::thread::sleep(due.saturating_duration_since(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_followed_by_silence_and_the_end_is_told_once_it_is_reached() {
        let mut player = Player { file: None, decoded: vec![0.5; 5], played: 0 };
        let (samples, over) = player.take(4);
        assert_eq!((samples.collect::<Vec<_>>(), over), (vec![0.5; 4], false));
        player.fill(4).unwrap();
        let (samples, over) = player.take(4);
        assert_eq!((samples.collect::<Vec<_>>(), over), (vec![0.5, 0.0, 0.0, 0.0], true));
    }

    /// A WAV file of 16 kHz mono with `samples` at half of full scale.
    fn wav(samples: u32) -> Vec<u8> {
        let bytes = samples * 2;
        let mut file = b"RIFF".to_vec();
        file.extend((36 + bytes).to_le_bytes());
        file.extend(b"WAVEfmt \x10\0\0\0\x01\0\x01\0\x80\x3e\0\0\0\x7d\0\0\x02\0\x10\0data");
        file.extend(bytes.to_le_bytes());
        file.extend((0..samples).flat_map(|_| 16_384i16.to_le_bytes()));
        file
    }

    #[test]
    fn file_is_played_in_real_time_and_then_there_is_silence() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("half.wav");
        std::fs::write(&path, wav(8_000)).unwrap();
        let clock = Clock::new(|| crate::clock::ClockState::Unsynced);
        let (started, mut sound) = (clock.now(), Vec::new());
        let mut stream = open(&path, clock).unwrap();
        while sound.len() < 12_000 && clock.now() - started < Duration::from_secs(20) {
            stream.read_within(Duration::from_secs(1), &mut sound).unwrap();
        }
        let took = clock.now() - started;
        assert!(took >= Duration::from_millis(700), "{took:?} for 750 ms");
        assert!(sound[..8_000].iter().all(|sample| *sample == 0.5));
        assert!(sound[8_000..].iter().all(|sample| *sample == 0.0));
        assert!(stream.health().played() && stream.health().failure().is_none());
        assert_eq!(stream.overruns(), 0);
    }

    #[test]
    fn file_that_breaks_off_is_played_and_then_reported() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cut.wav");
        std::fs::write(&path, &wav(8_000)[..6_044]).unwrap();
        let clock = Clock::new(|| crate::clock::ClockState::Unsynced);
        let (started, mut sound) = (clock.now(), Vec::new());
        let mut stream = open(&path, clock).unwrap();
        while !stream.health().played() && clock.now() - started < Duration::from_secs(20) {
            stream.read_within(Duration::from_secs(1), &mut sound).unwrap();
        }
        let failure = stream.health().failure().unwrap();
        assert!(failure.contains("cut short"), "{failure}");
    }

    #[test]
    fn missing_file_is_refused_before_anything_is_played() {
        let clock = Clock::new(|| crate::clock::ClockState::Unsynced);
        let error = open(Path::new("/nowhere/cry.wav"), clock).unwrap_err();
        assert!(error.to_string().contains("/nowhere/cry.wav"), "{error}");
    }
}
