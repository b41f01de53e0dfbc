//! The model's tokens, and how a written phoneme becomes a set of them.

use serde::Deserialize;

use super::VoiceError;

/// Phonemes that speakers and the model exchange for one another: each in the row counts as the
/// first, not the other way round.
///
/// Only neighbours in the same place and manner of articulation stand here: voicing lost, a vowel
/// one step higher, lower or reduced, a dark or vocalised l. Each row costs false alarms, so it
/// has to be a variant that speakers of English or German use, never a guess at one model's
/// errors. Whether the table as a whole is worth it is measured in `docs/voice.md`.
const VARIANTS: &[(&str, &[&str])] = &[
    ("h", &["ɦ"]),
    ("ɛ", &["e", "æ", "ə"]),
    ("e", &["ɛ", "eɪ"]),
    ("æ", &["ɛ", "a"]),
    ("ɪ", &["i"]),
    ("i", &["ɪ"]),
    ("ə", &["ɛ", "e", "ɐ", "ʌ"]),
    ("ɐ", &["ə", "a"]),
    ("a", &["ɑ", "ɐ", "æ"]),
    ("ɑ", &["a", "ɒ"]),
    ("ɒ", &["ɔ", "ɑ"]),
    ("ɔ", &["ɒ", "o"]),
    ("o", &["ɔ", "oʊ"]),
    ("ʊ", &["u"]),
    ("u", &["ʊ"]),
    ("l", &["ɫ", "w"]),
    ("p", &["pʰ", "b"]),
    ("b", &["p"]),
    ("t", &["tʰ", "d"]),
    ("d", &["t"]),
    ("k", &["kʰ", "ɡ", "g"]),
    ("ɡ", &["g", "k"]),
    ("g", &["ɡ", "k"]),
    ("r", &["ɹ", "ʁ", "ɾ"]),
    ("ɹ", &["r"]),
    ("ʁ", &["r", "ʀ"]),
    ("v", &["f", "ʋ"]),
    ("z", &["s"]),
    ("ç", &["ʃ", "x"]),
    ("x", &["χ", "h"]),
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

    /// The token sets of a transcription: phonemes separated by spaces.
    ///
    /// A phoneme that the model writes as several (`ts`) becomes several, length and stress marks
    /// are dropped, and each phoneme takes its variants along.
    pub(super) fn token_sets(&self, phonemes: &str) -> Result<Vec<Vec<usize>>, VoiceError> {
        let mut sets = Vec::new();
        for written in phonemes.split_whitespace() {
            let bare: String = written.chars().filter(|c| !MARKS.contains(c)).collect();
            let mut rest = bare.as_str();
            while !rest.is_empty() {
                let (token, length) =
                    self.longest_prefix(rest).ok_or_else(|| VoiceError::UnknownPhoneme {
                        phoneme: written.to_owned(),
                        near: self.near(written),
                    })?;
                sets.push(self.with_variants(token));
                rest = &rest[length..];
            }
        }
        Ok(sets)
    }

    /// The longest known phoneme that `text` begins with, and its length in bytes.
    fn longest_prefix(&self, text: &str) -> Option<(usize, usize)> {
        let ends = text.char_indices().map(|(at, c)| at + c.len_utf8());
        ends.filter_map(|end| Some((self.find(&text[..end])?, end))).last()
    }

    fn with_variants(&self, token: usize) -> Vec<usize> {
        let row = VARIANTS.iter().find(|(phoneme, _)| *phoneme == self.tokens[token]);
        let variants = row.map_or(&[][..], |(_, variants)| variants);
        std::iter::once(token).chain(variants.iter().filter_map(|v| self.find(v))).collect()
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
            r#"{"decoder": ["<pad>", " ", "1", "h", "ɛ", "e", "l", "p", "t", "s", "u", "aɪ", "a", "ː"]}"#,
        )
        .unwrap()
    }

    #[test]
    fn every_phoneme_takes_its_variants_along_where_the_model_has_them() {
        assert_eq!(
            inventory().token_sets("h ɛ l p").unwrap(),
            [vec![3], vec![4, 5], vec![6], vec![7]]
        );
    }

    #[test]
    fn clusters_diphthongs_and_length_marks_are_understood() {
        let first = |text: &str| -> Vec<usize> {
            inventory().token_sets(text).unwrap().iter().map(|set| set[0]).collect()
        };
        assert_eq!(first("ts uː"), [8, 9, 10]);
        assert_eq!(first("ˈaɪ"), [11]);
        assert_eq!(first("taɪ"), [8, 11]);
    }

    #[test]
    fn unknown_phoneme_is_named_with_those_that_are_near() {
        let error = inventory().token_sets("h eʘ").unwrap_err();
        let VoiceError::UnknownPhoneme { phoneme, near } = &error else { panic!("{error}") };
        assert_eq!((phoneme.as_str(), near.as_str()), ("eʘ", "e"));
        let far = inventory().token_sets("ʘ").unwrap_err().to_string();
        assert!(far.contains("h ɛ e l p"), "{far}");
    }

    #[test]
    fn special_tokens_are_no_phonemes() {
        for text in ["<pad>", "1", "<blank>"] {
            assert!(inventory().token_sets(text).is_err(), "{text}");
        }
    }

    #[test]
    fn vocabulary_that_is_none_is_an_error() {
        assert!(matches!(Inventory::parse("{}"), Err(VoiceError::Vocabulary(_))));
    }
}
