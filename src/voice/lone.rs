//! Whether a phrase stands alone: a cry is called into silence, in talk a word seldom is.
//!
//! ```text
//!        |<── quiet ──>|  edge  |<── phrase ──>|  edge  |<─ quiet ─>|
//!            0.5 s        0.1 s                  0.15 s      0.25 s
//! ```
//!
//! The edges may hold anything: the model's frames say to some 100 ms where a phrase begins, and a
//! room goes on for a moment.

use std::ops::Range;

use crate::audio::{Meter, SAMPLE_RATE_HZ, rms_dbfs};

/// How far the loudest block of the phrase stands out of those around it.
const STANDS_OUT_DB: f32 = 12.0;
/// Half a block of the gate, since a phrase is short.
const BLOCK: usize = Meter::BLOCK / 2;
const EDGE_BEFORE: usize = SAMPLE_RATE_HZ as usize / 10;
const QUIET_BEFORE: usize = SAMPLE_RATE_HZ as usize / 2;
const EDGE_AFTER: usize = 3 * SAMPLE_RATE_HZ as usize / 20;
const QUIET_AFTER: usize = SAMPLE_RATE_HZ as usize / 4;

/// Whether all around `phrase` in `sound` is quieter. What lies beyond the ends of `sound` counts as silence.
pub(super) fn stands_alone(sound: &[f32], phrase: Range<usize>) -> bool {
    let loudest = |from: usize, to: usize| {
        let (from, to) = (from.min(sound.len()), to.min(sound.len()));
        let blocks = sound.get(from..to).unwrap_or_default().chunks(BLOCK);
        blocks.map(rms_dbfs).fold(f32::NEG_INFINITY, f32::max)
    };
    let Range { start, end } = phrase;
    let quiet = loudest(start, end) - STANDS_OUT_DB;
    let before = start.saturating_sub(EDGE_BEFORE);
    let after = end + EDGE_AFTER;
    loudest(before.saturating_sub(QUIET_BEFORE), before) <= quiet
        && loudest(after, after + QUIET_AFTER) <= quiet
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOUD: (usize, usize) = (16_000, 24_000);
    const PHRASE: Range<usize> = LOUD.0..LOUD.1;

    /// 2.5 s at −60 dBFS, in which this is at −20 dBFS.
    fn sound(loud: &[(usize, usize)]) -> Vec<f32> {
        let mut sound = vec![0.001; 40_000];
        for &(from, to) in loud {
            sound[from..to].fill(0.1);
        }
        sound
    }

    #[test]
    fn a_word_called_into_silence_stands_alone_and_one_in_a_sentence_does_not() {
        assert!(stands_alone(&sound(&[LOUD]), PHRASE));
        assert!(!stands_alone(&sound(&[(8_000, 28_000)]), PHRASE));
        assert!(!stands_alone(&sound(&[(10_000, 12_000), LOUD]), PHRASE), "a word before it");
        assert!(!stands_alone(&sound(&[LOUD, (27_000, 30_000)]), PHRASE), "a word after it");
    }

    #[test]
    fn its_own_edges_and_talk_further_away_do_not_count() {
        assert!(stands_alone(&sound(&[(14_600, 26_200)]), PHRASE));
        assert!(stands_alone(&sound(&[(0, 6_000), LOUD, (31_200, 40_000)]), PHRASE));
    }

    #[test]
    fn noise_hides_silence() {
        let steady: Vec<f32> = (0..40_000).map(|i| if i % 2 == 0 { 0.1 } else { -0.1 }).collect();
        assert!(!stands_alone(&steady, PHRASE));
    }

    #[test]
    fn a_phrase_at_the_ends_of_the_sound_or_beyond_them_is_no_panic() {
        assert!(stands_alone(&sound(&[(0, 8_000)]), 0..8_000));
        assert!(stands_alone(&sound(&[(32_000, 40_000)]), 32_000..40_000));
        for phrase in [0..0, 40_000..40_000, 50_000..60_000] {
            stands_alone(&sound(&[]), phrase);
        }
        stands_alone(&[], 0..10);
    }
}
