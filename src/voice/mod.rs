//! The keyphrase detector: sound in, detections out.
//!
//! A phoneme recogniser (the *acoustic model*, a small neural network that knows no words) says
//! for every 20 ms how probable each phoneme of some eighty languages is. A *keyphrase* is a row
//! of phonemes, and a *detection* is a place where that row explains the sound nearly as well as
//! whatever explains it best. So any phrase of any language can be listened for without training,
//! and what the microphone hears never becomes text.
//!
//! # Terms
//!
//! - *frame*: 20 ms, one output of the model. *Window*: 2.2 s of sound, one run of the model. *Hop*:
//!   0.5 s, from one window to the next.
//! - *token*: a phoneme, a word boundary or *blank*; CTC explains blanks in `lattice.rs`.
//! - *log ratio*: how much worse the phrase explains its frames than the best tokens do; ≤ 0.
//! - *view*: the sound of a window at another pace.
//! - *score*: [`Detection::score`], the log ratio, its mean over all views, made comparable between phrases:
//!   `exp(log ratio / (2 · (phonemes − 1)))`. 1 is a phrase that the model heard first of all; at
//!   0.5 each step from phoneme to phoneme costs a factor of four against the best. Steps, since
//!   measured on other people's talk the log ratio at which a phrase is wrong equally often grows
//!   with the phonemes less one (−4.8, −6.5 and −8.3 for 4, 5 and 6 phonemes at four an hour); the
//!   2 only puts useful thresholds into the middle of the range.
//! - *operating point*: a threshold of the score, chosen by measurement; see [`OperatingPoint`].
//! - *gate*: what spares the model the silence; see `gate.rs`.
//! - *cooldown*: after a detection, others are suppressed for a while; *sure* and *faint* hits, and
//!   how a repeated cry counts: see `decision.rs`.
//!
//! # Windows
//!
//! ```text
//! window k     |····· 2.2 s ······························|
//! window k+1        |······································|····|
//! phrase                            [help]                        ends in window k, 0.3 s before its end
//!              |<────────── may end here ──────────>|<─ 0.3 s ─>|
//! ```
//!
//! Each window is leveled, run through the model, and searched for every phrase as a whole. A
//! phrase is looked at in the first window in which it ends at least 0.3 s before the window's end:
//! the model needs to hear on to be sure, and "help" needs to wait whether it becomes "help me".
//! One more window is looked at when somebody falls silent, 0.2 s after their last sound, where
//! there is nothing more to wait for: a cry on its own is reported then. In the midst of talk or noise a
//! phrase that is too close to the end of its window is looked at once more as soon as it is far enough
//! from it, and not only in the next window.
//!
//! Windows stand at multiples of the hop, counted from the start of the stream, and where blocks of
//! it are silent, so what is detected does not depend on the sizes of the pieces in which it comes.
//!
//! # Views
//!
//! The model hears the same word differently from one position to another, and from one pace to another. So where a phrase
//! may be, the sound of the window is given to the model four more times, faster and slower, and the mean of the five log ratios
//! is the phrase's: see `window.rs`. What is no phrase seldom is one in all of them. Each phrase is looked at so in three
//! to five windows, in different surroundings.
//!
//! # Invariants
//!
//! - Memory is bounded: the sound of one window and its views, and their scores.
//! - Silence does not run the model.
//! - No IO, no clock: time is the position in the stream.
//!
//! # Absent
//!
//! Training, and adaptation to a speaker. Audio is never kept beyond the window; none leaves this module
//! but the window that a [`Recogniser`] is asked about, which forgets it too.

mod confirm;
mod decision;
mod detector;
mod gate;
mod lattice;
mod lone;
mod model;
mod phoneme;
mod window;

use std::time::Duration;

pub use confirm::{Agreement, Opinion, Recogniser};
pub use detector::{Detector, ScorePoint};
pub use model::Model;

use crate::audio::SAMPLE_RATE_HZ;

/// A window of 2.2 s: "somebody help me please" fits, and a cry drawn out to 1.3 s is seen whole with its margin wherever the
/// windows fall. One of 3 s finds no more and costs a third more (`docs/voice.md`).
const WINDOW_SAMPLES: usize = 11 * SAMPLE_RATE_HZ as usize / 5;
/// 0.5 s: each phrase is looked at in three or four windows.
const HOP_SAMPLES: usize = SAMPLE_RATE_HZ as usize / 2;
/// 0.3 s at the end of a window in which no phrase may end.
const MARGIN_FRAMES: usize = 15;
/// So many blocks of 100 ms below the gate are the end of what somebody said.
const QUIET_BLOCKS: usize = 2;
/// 0.2 s: in a window that ends in silence nothing more is to be waited for.
const QUIET_MARGIN_FRAMES: usize = 10;

/// Why there can be no detector.
#[derive(Debug, thiserror::Error)]
pub enum VoiceError {
    /// The weights cannot be read or run.
    #[error("voice model: {0}: run scripts/fetch-models again")]
    Weights(String),
    /// The vocabulary cannot be read.
    #[error("vocabulary of the voice model: {0}: run scripts/fetch-models again")]
    Vocabulary(String),
    /// A keyphrase is written with a phoneme that the model does not have.
    #[error("phoneme `{phoneme}` is not known to the voice model: use one of {near}")]
    UnknownPhoneme {
        /// As it was written.
        phoneme: String,
        /// Known ones, separated by spaces.
        near: String,
    },
    /// A keyphrase without a transcription that is not built in.
    #[error("keyphrase \"{0}\" is not built in: give its phonemes, or use one of {list}", list = builtin_list())]
    NotBuiltIn(String),
    /// Too short to tell from anything else, or longer than a window.
    #[error("keyphrase \"{text}\" has {count} phonemes: use {MIN_PHONEMES} to {MAX_PHONEMES}")]
    Length {
        /// The phrase.
        text: String,
        /// Its phonemes.
        count: usize,
    },
    /// A detector that listens for nothing.
    #[error("no keyphrase is configured: name at least one, for example \"help\"")]
    NoKeyphrase,
    /// A threshold that is none.
    #[error("threshold {0} is not between 0 and 1")]
    Threshold(f32),
}

/// Fewer phonemes match somewhere in nearly every sentence.
const MIN_PHONEMES: usize = 3;
/// More do not fit into the part of a window in which every phrase is seen whole.
const MAX_PHONEMES: usize = 16;

/// The phrases whose pronunciation is built in. In "hilfe" the vowel is closer to a German short
/// `ɪ` than what the model heard as `ɪ` in English, hence `i` beside it; its last vowel is heard as
/// `ɝ` as often as `ə`.
///
/// The third column is the word that a recogniser is asked for: it knows English only.
const BUILTIN: &[(&str, &str, Option<&str>)] = &[
    ("help", "h ɛ l p", Some("help")),
    ("help me", "h ɛ l p | m i", Some("help")),
    ("hilfe", "h ɪ/i l f ə/ɝ", None),
    ("zu hilfe", "ts u | h ɪ/i l f ə/ɝ", None),
];

fn builtin_list() -> String {
    let quoted: Vec<String> = BUILTIN.iter().map(|(text, ..)| format!("\"{text}\"")).collect();
    quoted.join(", ")
}

/// What to listen for: a phrase and how it sounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keyphrase {
    text: String,
    phonemes: String,
    /// What a recogniser would write, where it knows the language.
    word: Option<&'static str>,
}

impl Keyphrase {
    /// A phrase that is built in: "help", "help me", "hilfe" or "zu hilfe", in any case.
    ///
    /// # Errors
    /// [`VoiceError::NotBuiltIn`]: it is not; use [`Keyphrase::new`].
    pub fn builtin(text: &str) -> Result<Self, VoiceError> {
        let wanted = text.trim().to_lowercase();
        let mut all = Self::all_builtin().into_iter();
        all.find(|phrase| phrase.text == wanted)
            .ok_or_else(|| VoiceError::NotBuiltIn(text.to_owned()))
    }

    /// All phrases that are built in.
    pub fn all_builtin() -> Vec<Self> {
        let all = BUILTIN.iter();
        all.map(|&(text, phonemes, word)| Self { word, ..Self::new(text, phonemes) }).collect()
    }

    /// Any phrase by its phonemes: IPA, separated by spaces, for example `ts uː h ɪ l f ə`; `ɪ/i`
    /// is one or the other, `|` where a word ends. They are checked against the model by
    /// [`Detector::new`].
    pub fn new(text: impl Into<String>, phonemes: impl Into<String>) -> Self {
        Self { text: text.into(), phonemes: phonemes.into(), word: None }
    }

    /// The phrase as an event names it.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The phonemes as they were written.
    pub fn phonemes(&self) -> &str {
        &self.phonemes
    }
}

/// How readily the detector speaks up. What each finds and how often it is wrong is measured in `docs/voice.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OperatingPoint {
    /// Misses least; for a home where somebody looks into every alarm.
    Sensitive,
    /// Nearly every cry, and a few false alarms an hour of lively talk.
    #[default]
    Balanced,
    /// Speaks up for clear cries only.
    Quiet,
}

impl OperatingPoint {
    /// All of them, the most sensitive first.
    pub const ALL: [Self; 3] = [Self::Sensitive, Self::Balanced, Self::Quiet];

    /// The lowest score that is a detection.
    pub fn threshold(self) -> f32 {
        match self {
            Self::Sensitive => 0.40,
            Self::Balanced => 0.50,
            Self::Quiet => 0.60,
        }
    }

    /// Its name in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sensitive => "sensitive",
            Self::Balanced => "balanced",
            Self::Quiet => "quiet",
        }
    }
}

impl std::str::FromStr for OperatingPoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|point| point.as_str() == text);
        found.ok_or_else(|| {
            format!("`{text}` is no operating point: use sensitive, balanced or quiet")
        })
    }
}

/// What a [`Detector`] listens for and how.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// At least one.
    pub keyphrases: Vec<Keyphrase>,
    /// The lowest score that is a detection, 0..=1; one of [`OperatingPoint::threshold`] or any other.
    pub threshold: f32,
    /// After a detection, for how long no other is reported: one cry is one alarm.
    pub cooldown: Duration,
}

impl Default for Settings {
    /// The built-in phrases, balanced, 5 s.
    fn default() -> Self {
        Self {
            keyphrases: Keyphrase::all_builtin(),
            threshold: OperatingPoint::default().threshold(),
            cooldown: Duration::from_secs(5),
        }
    }
}

/// A keyphrase was heard.
#[derive(Debug, Clone, PartialEq)]
pub struct Detection {
    /// [`Keyphrase::text`].
    pub phrase: String,
    /// How well it fits, 0..=1; see the module.
    pub score: f32,
    /// Where the phrase ends, from the start of the stream.
    pub at: Duration,
    /// How loud the phrase was, in dBFS.
    pub level_dbfs: f32,
    /// Which stages heard it.
    pub agreement: Agreement,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builtin_phrases_are_found_in_any_case_and_others_are_refused_by_name() {
        assert_eq!(Keyphrase::builtin(" Help Me ").unwrap().text(), "help me");
        let error = Keyphrase::builtin("fire").unwrap_err().to_string();
        assert!(error.contains("\"fire\"") && error.contains("\"hilfe\""), "{error}");
    }

    #[test]
    fn operating_points_are_ordered_and_named() {
        let thresholds = OperatingPoint::ALL.map(OperatingPoint::threshold);
        assert!(thresholds.is_sorted());
        assert_eq!("quiet".parse(), Ok(OperatingPoint::Quiet));
        assert!("loud".parse::<OperatingPoint>().unwrap_err().contains("balanced"));
    }
}
