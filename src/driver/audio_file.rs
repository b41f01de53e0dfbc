//! Sound files: WAV and FLAC, decoded block by block.
//!
//! A file that was cut short is an error, though all that is in it is handed out first: whoever
//! measures a detector on it must know that its end was never heard.

use std::fs::File;
use std::path::{Path, PathBuf};

use symphonia::core::codecs::audio::{AudioCodecParameters, AudioDecoder, AudioDecoderOptions};
use symphonia::core::errors::Error as DecodeError;
use symphonia::core::formats::probe::Hint;
use symphonia::core::formats::{FormatOptions, FormatReader, TrackType};
use symphonia::core::io::MediaSourceStream;
use symphonia::core::meta::MetadataOptions;

use crate::audio::{AudioError, Converter, Format};

/// A writer that does not know its length yet puts one of these into the header of a WAV file;
/// from here on it is no length (2 GiB less a header).
const UNKNOWN_LENGTH_BYTES: u64 = 0x7FFF_0000;

/// Why a sound file cannot be used; each says which file and what is wrong with it.
#[derive(Debug, thiserror::Error)]
pub enum AudioFileError {
    /// It is not there, is not readable, or is a directory.
    #[error("open {path}: {source}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Not a byte in it, or not a sample.
    #[error("{path}: there is no sound in the file")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// No WAV or FLAC, or damaged so that it is no longer known as such.
    #[error("{path}: not a WAV or FLAC file that can be read ({reason})")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the decoder says.
        reason: String,
    },
    /// It begins well and then cannot be decoded.
    #[error("{path}: damaged after {at_s:.1} s ({reason})")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// How much was decoded.
        at_s: f64,
        /// What the decoder says.
        reason: String,
    },
    /// It ends before its header says.
    #[error("{path}: cut short: {at_s:.1} s of {expected_s:.1} s are there")]
    Truncated {
        /// The file.
        path: PathBuf,
        /// How much was decoded.
        at_s: f64,
        /// How much its header promises.
        expected_s: f64,
    },
    /// A rate or a number of channels that cannot be converted.
    #[error("{path}: {source}")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// Which.
        source: AudioError,
    },
}

/// An open sound file.
pub struct AudioFile {
    path: PathBuf,
    reader: Box<dyn FormatReader>,
    decoder: Box<dyn AudioDecoder>,
    track: u32,
    format: Format,
    /// Frames that the header promises, where it promises any.
    expected: Option<u64>,
    decoded: u64,
    /// `None` after the end.
    converter: Option<Converter>,
    samples: Vec<f32>,
}

impl std::fmt::Debug for AudioFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AudioFile").field("path", &self.path).finish_non_exhaustive()
    }
}

impl AudioFile {
    /// Opens a WAV or FLAC file and reads its header.
    ///
    /// # Errors
    /// [`AudioFileError::Open`], [`AudioFileError::Empty`], [`AudioFileError::Unreadable`],
    /// [`AudioFileError::Unsupported`].
    pub fn open(path: &Path) -> Result<Self, AudioFileError> {
        let file = open_regular(path)?;
        let unreadable = |reason: &dyn std::fmt::Display| AudioFileError::Unreadable {
            path: path.to_owned(),
            reason: reason.to_string(),
        };
        let stream = MediaSourceStream::new(Box::new(file), Default::default());
        let reader = symphonia::default::get_probe()
            .probe(&Hint::new(), stream, FormatOptions::default(), MetadataOptions::default())
            .map_err(|error| unreadable(&error))?;
        let track =
            reader.default_track(TrackType::Audio).ok_or_else(|| unreadable(&"no sound"))?;
        let parameters = track
            .codec_params
            .as_ref()
            .and_then(|parameters| parameters.audio())
            .ok_or_else(|| unreadable(&"unknown coding"))?;
        let format = format_of(parameters)
            .map_err(|source| AudioFileError::Unsupported { path: path.to_owned(), source })?;
        let decoder = symphonia::default::get_codecs()
            .make_audio_decoder(parameters, &AudioDecoderOptions::default())
            .map_err(|error| unreadable(&error))?;
        let converter = Converter::new(format)
            .map_err(|source| AudioFileError::Unsupported { path: path.to_owned(), source })?;
        let bytes_a_frame =
            u64::from(parameters.bits_per_sample.unwrap_or(16) / 8) * u64::from(format.channels());
        let expected = track
            .num_frames
            .filter(|&frames| frames > 0 && frames * bytes_a_frame < UNKNOWN_LENGTH_BYTES);
        Ok(Self {
            track: track.id,
            format,
            expected,
            path: path.to_owned(),
            reader,
            decoder,
            decoded: 0,
            converter: Some(converter),
            samples: Vec::new(),
        })
    }

    /// How the sound is kept in the file.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Appends the next block to `out`, as 16 kHz mono; `false` after the last one. Blocks are
    /// some hundred to some thousand samples long.
    ///
    /// # Errors
    /// [`AudioFileError::Damaged`], [`AudioFileError::Truncated`], [`AudioFileError::Empty`]: once,
    /// after all that could be decoded; then it is as at the end.
    pub fn next_block(&mut self, out: &mut Vec<f32>) -> Result<bool, AudioFileError> {
        if self.converter.is_none() {
            return Ok(false);
        }
        let packet = loop {
            match self.reader.next_packet() {
                Ok(Some(packet)) if packet.track_id == self.track => break packet,
                Ok(Some(_)) => {}
                Ok(None) => return self.end(out, None),
                Err(error) => return self.end(out, Some(error)),
            }
        };
        match self.decoder.decode(&packet) {
            Ok(buffer) => {
                self.decoded += buffer.frames() as u64;
                buffer.copy_to_vec_interleaved::<f32>(&mut self.samples);
            }
            Err(error) => return self.end(out, Some(error)),
        }
        match self.converter.as_mut().map(|converter| converter.push_f32(&self.samples, out)) {
            Some(Err(source)) => {
                Err(AudioFileError::Unsupported { path: self.path.clone(), source })
            }
            _ => Ok(true),
        }
    }

    /// The whole rest of the file. For files of a known, small length only.
    ///
    /// # Errors
    /// As [`AudioFile::next_block`].
    pub fn read_to_end(mut self) -> Result<Vec<f32>, AudioFileError> {
        let mut out = Vec::new();
        while self.next_block(&mut out)? {}
        Ok(out)
    }

    fn end(
        &mut self,
        out: &mut Vec<f32>,
        error: Option<DecodeError>,
    ) -> Result<bool, AudioFileError> {
        let path = self.path.clone();
        if let Some(Err(source)) = self.converter.take().map(|converter| converter.finish(out)) {
            return Err(AudioFileError::Unsupported { path, source });
        }
        let seconds = |frames: u64| frames as f64 / f64::from(self.format.rate_hz());
        let at_s = seconds(self.decoded);
        let ran_out = match &error {
            None => true,
            Some(DecodeError::IoError(io)) => io.kind() == std::io::ErrorKind::UnexpectedEof,
            Some(_) => false,
        };
        match (error, self.expected) {
            (Some(error), _) if !ran_out => {
                Err(AudioFileError::Damaged { path, at_s, reason: error.to_string() })
            }
            (_, Some(expected)) if self.decoded < expected => {
                Err(AudioFileError::Truncated { path, at_s, expected_s: seconds(expected) })
            }
            _ if self.decoded == 0 => Err(AudioFileError::Empty { path }),
            _ => Ok(false),
        }
    }
}

/// Opens what is a file and has something in it: a directory opens too, and a named pipe would
/// keep the caller waiting.
fn open_regular(path: &Path) -> Result<File, AudioFileError> {
    let failed = |source| AudioFileError::Open { path: path.to_owned(), source };
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if !metadata.is_file() {
        return Err(failed(std::io::Error::other("not a regular file")));
    }
    if metadata.len() == 0 {
        return Err(AudioFileError::Empty { path: path.to_owned() });
    }
    File::open(path).map_err(failed)
}

fn format_of(parameters: &AudioCodecParameters) -> Result<Format, AudioError> {
    let channels = parameters.channels.as_ref().map_or(0, |channels| channels.count());
    Format::new(parameters.sample_rate.unwrap_or(0), u16::try_from(channels).unwrap_or(u16::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audio::rms_dbfs;

    enum Coding {
        Pcm16,
        Pcm24,
        Float,
    }

    /// A WAV file with a sine of 440 Hz at half of full scale.
    fn wav(coding: Coding, rate_hz: u32, channels: u16, seconds: f32) -> Vec<u8> {
        let mut data = Vec::new();
        for i in 0..(rate_hz as f32 * seconds) as usize {
            let turns = f64::from(i as u32) * 440.0 / f64::from(rate_hz);
            let sample = 0.5 * (turns.fract() * std::f64::consts::TAU).sin();
            for _ in 0..channels {
                match coding {
                    Coding::Pcm16 => data.extend(((sample * 32_767.0) as i16).to_le_bytes()),
                    Coding::Pcm24 => {
                        data.extend(&((sample * 8_388_607.0) as i32).to_le_bytes()[..3]);
                    }
                    Coding::Float => data.extend((sample as f32).to_le_bytes()),
                }
            }
        }
        let (tag, bytes) = match coding {
            Coding::Pcm16 => (1u16, 2u16),
            Coding::Pcm24 => (1, 3),
            Coding::Float => (3, 4),
        };
        let mut file = Vec::new();
        file.extend(b"RIFF");
        file.extend((36 + data.len() as u32).to_le_bytes());
        file.extend(b"WAVEfmt ");
        file.extend(16u32.to_le_bytes());
        file.extend(tag.to_le_bytes());
        file.extend(channels.to_le_bytes());
        file.extend(rate_hz.to_le_bytes());
        file.extend((rate_hz * u32::from(channels * bytes)).to_le_bytes());
        file.extend((channels * bytes).to_le_bytes());
        file.extend((bytes * 8).to_le_bytes());
        file.extend(b"data");
        file.extend((data.len() as u32).to_le_bytes());
        file.extend(data);
        file
    }

    fn read(content: &[u8]) -> Result<Vec<f32>, AudioFileError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sound");
        std::fs::write(&path, content).unwrap();
        AudioFile::open(&path)?.read_to_end()
    }

    #[test]
    fn every_coding_rate_and_channel_count_gives_the_same_sound() {
        for (coding, rate_hz, channels) in [
            (Coding::Pcm16, 8_000, 1),
            (Coding::Pcm16, 16_000, 1),
            (Coding::Pcm16, 44_100, 2),
            (Coding::Pcm16, 48_000, 2),
            (Coding::Pcm24, 48_000, 1),
            (Coding::Float, 22_050, 2),
        ] {
            let samples = read(&wav(coding, rate_hz, channels, 0.5)).unwrap();
            assert!(samples.len().abs_diff(8_000) <= 1, "{rate_hz}: {}", samples.len());
            let level = rms_dbfs(&samples[1_000..7_000]);
            assert!((level + 9.03).abs() < 0.15, "{rate_hz} Hz, {channels}: {level}");
        }
    }

    #[test]
    fn missing_empty_and_foreign_files_are_told_apart() {
        let error = AudioFile::open(Path::new("/nowhere/cry.wav")).unwrap_err().to_string();
        assert!(error.starts_with("open /nowhere/cry.wav: "), "{error}");
        let error = AudioFile::open(Path::new("/tmp")).unwrap_err();
        assert!(matches!(error, AudioFileError::Open { .. }), "{error}");
        assert!(matches!(read(b""), Err(AudioFileError::Empty { .. })));
        assert!(matches!(read(b"This is a text."), Err(AudioFileError::Unreadable { .. })));
        assert!(matches!(read(&[0xA5; 100_000]), Err(AudioFileError::Unreadable { .. })));
    }

    #[test]
    fn file_without_a_sample_is_empty() {
        let error = read(&wav(Coding::Pcm16, 16_000, 1, 0.0)).unwrap_err();
        assert!(matches!(error, AudioFileError::Empty { .. }), "{error}");
    }

    #[test]
    fn file_that_was_cut_short_says_so_after_its_sound() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cut.wav");
        std::fs::write(&path, &wav(Coding::Pcm16, 16_000, 1, 1.0)[..16_044]).unwrap();
        let (mut file, mut out) = (AudioFile::open(&path).unwrap(), Vec::new());
        let error = loop {
            match file.next_block(&mut out) {
                Ok(true) => {}
                Ok(false) => panic!("the end was reached without an error"),
                Err(error) => break error,
            }
        };
        assert!(error.to_string().contains("0.5 s of 1.0 s"), "{error}");
        assert!(out.len() >= 7_000, "{}", out.len());
        assert!(!file.next_block(&mut out).unwrap());
    }

    #[test]
    fn header_that_was_cut_short_is_an_error_and_no_panic() {
        let whole = wav(Coding::Pcm16, 16_000, 1, 0.1);
        for length in 1..60 {
            assert!(read(&whole[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn unsupported_rate_is_named() {
        let error = read(&wav(Coding::Pcm16, 4_000, 1, 0.5)).unwrap_err().to_string();
        assert!(error.contains("4000 Hz"), "{error}");
    }
}
