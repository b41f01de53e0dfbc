//! The model's tokens, and how a written phrase becomes rows of them.

use serde::Deserialize;

use super::VoiceError;

/// One phoneme in several spellings: what the model wrote in one language differently from another.
/// Each in the row counts as the first.
///
/// Phonemes that merely sound alike do not stand here. Measured on acted English dialogue, letting
/// `ə`, `e`, `æ` do for `ɛ` and `b` for `p` cost more in false alarms than it found: at two false
/// alarms an hour 57 % instead of 67 % of the "help" lines. Who wants one for a phrase of their
/// own writes it, as in `ɪ/i`.
const SPELLINGS: &[(&str, &[&str])] = &[
    ("h", &["ɦ"]),
    ("l", &["ɫ"]),
    ("p", &["pʰ"]),
    ("t", &["tʰ"]),
    ("k", &["kʰ"]),
    ("ɡ", &["g"]),
    ("g", &["ɡ"]),
    ("r", &["ɹ"]),
    ("ɹ", &["r"]),
];

/// Marks of length and stress: what they say is not in the model's phonemes.
const MARKS: &[char] = &['ː', 'ˑ', 'ˈ', 'ˌ', '.'];

const WORD_BOUNDARY: &str = "<wb>";
const BLANK: &str = "<blank>";

/// The vocabulary file, of which only one list is wanted.
#[derive(Deserialize)]
struct VocabularyFile {
    decoder: Vec<String>,
}

/// A phrase in tokens.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Transcription {
    /// For each phoneme, the tokens that count as it.
    pub(super) phonemes: Vec<Vec<usize>>,
    /// The numbers of the phonemes before which a word ends.
    pub(super) word_ends: Vec<usize>,
}

/// The tokens of a model, by number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Inventory {
    tokens: Vec<String>,
}

impl Inventory {
    /// Reads the vocabulary: the list `decoder`, after which the model has a word boundary and a
    /// blank of its own.
    pub(super) fn parse(vocabulary: &str) -> Result<Self, VoiceError> {
        let file: VocabularyFile = serde_json::from_str(vocabulary)
            .map_err(|error| VoiceError::Vocabulary(error.to_string()))?;
        let mut tokens = file.decoder;
        tokens.extend([WORD_BOUNDARY.to_owned(), BLANK.to_owned()]);
        Ok(Self { tokens })
    }

    /// How many tokens the model distinguishes.
    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    pub(super) fn blank(&self) -> usize {
        self.tokens.len() - 1
    }

    pub(super) fn word_boundary(&self) -> usize {
        self.tokens.len() - 2
    }

    fn find(&self, phoneme: &str) -> Option<usize> {
        // The special tokens (`<pad>`, a space, digits) are no phonemes.
        let speakable = phoneme.chars().all(char::is_alphabetic) || phoneme.chars().count() > 1;
        let special = phoneme.is_empty() || phoneme.starts_with('<') || !speakable;
        if special { None } else { self.tokens.iter().position(|token| token == phoneme) }
    }

    /// Reads a transcription: phonemes separated by spaces, `a/b` for one or the other, `|` between
    /// words.
    ///
    /// A phoneme that the model writes as several (`ts`) becomes several, length and stress marks
    /// are dropped, and each phoneme takes its other spellings along.
    pub(super) fn transcribe(&self, phonemes: &str) -> Result<Transcription, VoiceError> {
        let mut transcription = Transcription::default();
        for written in phonemes.split_whitespace() {
            if written == "|" {
                transcription.word_ends.push(transcription.phonemes.len());
                continue;
            }
            let unknown = || VoiceError::UnknownPhoneme {
                phoneme: written.to_owned(),
                near: self.near(written),
            };
            if written.contains('/') {
                let mut set = Vec::new();
                for alternative in written.split('/') {
                    match self.split(alternative).ok_or_else(unknown)?.as_slice() {
                        [token] => set.extend(self.with_spellings(*token)),
                        _ => return Err(unknown()),
                    }
                }
                transcription.phonemes.push(set);
            } else {
                let tokens = self.split(written).ok_or_else(unknown)?;
                let sets = tokens.into_iter().map(|token| self.with_spellings(token));
                transcription.phonemes.extend(sets);
            }
        }
        Ok(transcription)
    }

    /// The tokens that `written` is made of, `None` where a part of it is none.
    fn split(&self, written: &str) -> Option<Vec<usize>> {
        let bare: String = written.chars().filter(|c| !MARKS.contains(c)).collect();
        let (mut rest, mut tokens) = (bare.as_str(), Vec::new());
        while !rest.is_empty() {
            let (token, length) = self.longest_prefix(rest)?;
            tokens.push(token);
            rest = &rest[length..];
        }
        Some(tokens)
    }

    /// The longest known phoneme that `text` begins with, and its length in bytes.
    fn longest_prefix(&self, text: &str) -> Option<(usize, usize)> {
        let ends = text.char_indices().map(|(at, c)| at + c.len_utf8());
        ends.rev().find_map(|end| Some((self.find(&text[..end])?, end)))
    }

    fn with_spellings(&self, token: usize) -> Vec<usize> {
        let row = SPELLINGS.iter().find(|(phoneme, _)| *phoneme == self.tokens[token]);
        let others = row.map_or(&[][..], |(_, others)| others);
        std::iter::once(token).chain(others.iter().filter_map(|other| self.find(other))).collect()
    }

    /// Known phonemes that someone who wrote `unknown` may have meant: those that share a letter
    /// with it, else the plain ones.
    fn near(&self, unknown: &str) -> String {
        let known = || {
            self.tokens.iter().filter(|token| {
                self.find(token).is_some() && token.chars().all(char::is_alphabetic)
            })
        };
        let mut near: Vec<&str> = known()
            .filter(|token| token.chars().any(|c| unknown.contains(c)))
            .map(String::as_str)
            .collect();
        if near.is_empty() {
            near =
                known().filter(|t| t.chars().count() == 1).map(String::as_str).take(60).collect();
        }
        near.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inventory() -> Inventory {
        Inventory::parse(
            r#"{"decoder": ["<pad>", " ", "1", "h", "ɛ", "e", "l", "p", "t", "s", "u", "aɪ", "a", "ː", "ɦ"]}"#,
        )
        .unwrap()
    }

    #[test]
    fn every_phoneme_takes_its_spellings_along_where_the_model_has_them() {
        let transcription = inventory().transcribe("h ɛ l p").unwrap();
        assert_eq!(transcription.phonemes, [vec![3, 14], vec![4], vec![6], vec![7]]);
    }

    #[test]
    fn alternatives_and_word_ends_are_understood() {
        let transcription = inventory().transcribe("h ɛ/e | p").unwrap();
        assert_eq!(transcription.phonemes, [vec![3, 14], vec![4, 5], vec![7]]);
        assert_eq!(transcription.word_ends, [2]);
        assert!(inventory().transcribe("ɛ/ts").is_err(), "an alternative is one phoneme");
        assert!(inventory().transcribe("ɛ/").is_err());
    }

    #[test]
    fn clusters_diphthongs_and_length_marks_are_understood() {
        let first = |text: &str| -> Vec<usize> {
            inventory().transcribe(text).unwrap().phonemes.iter().map(|set| set[0]).collect()
        };
        assert_eq!(first("ts uː"), [8, 9, 10]);
        assert_eq!(first("ˈaɪ"), [11]);
        assert_eq!(first("taɪ"), [8, 11]);
    }

    #[test]
    fn unknown_phoneme_is_named_with_those_that_are_near() {
        let error = inventory().transcribe("h eʘ").unwrap_err();
        let VoiceError::UnknownPhoneme { phoneme, near } = &error else { panic!("{error}") };
        assert_eq!((phoneme.as_str(), near.as_str()), ("eʘ", "e"));
        let far = inventory().transcribe("ʘ").unwrap_err().to_string();
        assert!(far.contains("h ɛ e l p"), "{far}");
    }

    #[test]
    fn special_tokens_are_no_phonemes() {
        for text in ["<pad>", "1", "<blank>"] {
            assert!(inventory().transcribe(text).is_err(), "{text}");
        }
    }

    #[test]
    fn vocabulary_that_is_none_is_an_error() {
        assert!(matches!(Inventory::parse("{}"), Err(VoiceError::Vocabulary(_))));
    }
}
