//! The scorer: how well a keyphrase fits somewhere in a stretch of frames.
//!
//! The acoustic model gives, for each frame of 20 ms, the log probability of every token: a
//! phoneme, a word boundary, or *blank* ("nothing new here"). A phrase is said between two frames
//! if there is an *alignment*: each frame in between is given to one state of the chain
//!
//! ```text
//! phoneme 1 → (gap) → phoneme 2 → (gap) → … → phoneme n        a state may last many frames,
//!      └──────────────────┘ a gap may be left out              a gap is made of blanks
//! ```
//!
//! The log probability of an alignment says little in itself: mumbling is improbable whatever was
//! mumbled. So each frame is measured against the best token of that very frame: the *log ratio*
//! of an alignment is the sum of `log p(token) − log p(best token)`, 0 where the phrase is what
//! the model hears first of all, negative otherwise. It is a likelihood ratio against the best
//! path that is free to take any token (the *filler* of the keyword-spotting literature).
//!
//! Dynamic programming finds the best alignment that ends at each frame in one pass: the best way
//! into a state is the best of staying, of coming from the state before, and of leaving out the
//! gap. Starting is free at any frame, so one pass covers every start.
//!
//! Source: CTC, Graves et al. 2006 §3-4 (tokens, blank, lattice); acoustic keyword spotting by
//! a likelihood ratio against a filler, Rose and Paul 1990.

/// Tokens, one set a phoneme: any of a set will do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern {
    /// For each phoneme, the tokens that count as it. Never empty.
    pub(super) phonemes: Vec<Vec<usize>>,
    /// For each gap, one less than the phonemes, the tokens it is made of: blank, and the word
    /// boundary where a word may end.
    pub(super) gaps: Vec<Vec<usize>>,
    /// An alignment longer than this is none: blanks are free, so a phoneme here and one a
    /// second later would make a phrase.
    pub(super) max_frames: usize,
}

impl Pattern {
    /// The tokens of a state of the chain: phonemes are even, gaps are odd.
    fn tokens_of(&self, state: usize) -> Option<&[usize]> {
        let row = if state.is_multiple_of(2) { &self.phonemes } else { &self.gaps };
        row.get(state / 2).map(Vec::as_slice)
    }
}

/// Log probabilities, `tokens` of them a frame.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frames<'a> {
    log_probs: &'a [f32],
    tokens: usize,
}

impl<'a> Frames<'a> {
    /// `log_probs` holds whole frames of `tokens` values; a rest that is no frame is not looked at.
    pub(super) fn new(log_probs: &'a [f32], tokens: usize) -> Self {
        Self { log_probs, tokens: tokens.max(1) }
    }

    fn iter(self) -> impl Iterator<Item = &'a [f32]> {
        self.log_probs.chunks_exact(self.tokens)
    }
}

/// A place where the phrase fits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Fit {
    /// The frame of the first phoneme.
    pub(super) start: usize,
    /// The first frame of the last phoneme, inclusive.
    pub(super) end: usize,
    /// 0 at the best, negative otherwise.
    pub(super) log_ratio: f32,
}

/// One state of the chain: the best log ratio of an alignment that is in it, and where it began.
#[derive(Debug, Clone, Copy)]
struct Cell {
    log_ratio: f32,
    start: usize,
}

const NOWHERE: Cell = Cell { log_ratio: f32::NEG_INFINITY, start: 0 };

/// The best alignment that ends at each frame, `None` where there is none within the length.
pub(super) fn fits_by_end(pattern: &Pattern, frames: Frames<'_>) -> Vec<Option<Fit>> {
    let states = (2 * pattern.phonemes.len()).saturating_sub(1);
    let mut now = vec![NOWHERE; states];
    let mut next = now.clone();
    let mut fits = Vec::new();
    for (t, frame) in frames.iter().enumerate() {
        let best = frame.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let ratio = |tokens: &[usize]| {
            let own = tokens.iter().filter_map(|&token| frame.get(token));
            own.copied().fold(f32::NEG_INFINITY, f32::max) - best
        };
        for state in 0..states {
            let mut from = now[state];
            if state == 0 {
                // A fresh start is never worse than having begun earlier: ratios are ≤ 0.
                from = Cell { log_ratio: 0.0, start: t };
            } else {
                from = better(from, now[state - 1]);
                if state.is_multiple_of(2) {
                    from = better(from, now[state - 2]);
                }
            }
            let own = pattern.tokens_of(state).map_or(f32::NEG_INFINITY, &ratio);
            next[state] = Cell { log_ratio: from.log_ratio + own, ..from };
        }
        std::mem::swap(&mut now, &mut next);
        fits.push(now.last().and_then(|cell| {
            let within = t + 1 - cell.start <= pattern.max_frames;
            (within && cell.log_ratio.is_finite()).then_some(Fit {
                start: cell.start,
                end: t,
                log_ratio: cell.log_ratio,
            })
        }));
    }
    fits
}

/// The better of two ways into a state; of two equal ones the one that began later.
fn better(a: Cell, b: Cell) -> Cell {
    let later = b.log_ratio == a.log_ratio && b.start > a.start;
    if b.log_ratio > a.log_ratio || later { b } else { a }
}

/// All separate places where the log ratio reaches `at_least`, in the order of time. Of fits that
/// overlap only the best is kept, the earliest of equal ones.
pub(super) fn separate_fits(pattern: &Pattern, frames: Frames<'_>, at_least: f32) -> Vec<Fit> {
    let mut out: Vec<Fit> = Vec::new();
    for fit in fits_by_end(pattern, frames).into_iter().flatten() {
        if fit.log_ratio < at_least {
            continue;
        }
        match out.last_mut() {
            Some(last) if fit.start <= last.end => {
                if fit.log_ratio > last.log_ratio {
                    *last = fit;
                }
            }
            _ => out.push(fit),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pattern(phonemes: &[&[usize]]) -> Pattern {
        Pattern {
            phonemes: phonemes.iter().map(|set| set.to_vec()).collect(),
            gaps: vec![vec![0]; phonemes.len() - 1],
            max_frames: 100,
        }
    }

    /// Frames in which one token is certain, out of `tokens`.
    fn certain(heard: &[usize], tokens: usize) -> Vec<f32> {
        heard
            .iter()
            .flat_map(|&h| (0..tokens).map(move |t| if t == h { 0.0 } else { -10.0 }))
            .collect()
    }

    /// Every alignment that ends at `end`, written out: the definition, without any cleverness.
    fn brute_force(pattern: &Pattern, log_probs: &[f32], tokens: usize, end: usize) -> f32 {
        let states = 2 * pattern.phonemes.len() - 1;
        let ratio = |t: usize, state: usize| {
            let frame = &log_probs[t * tokens..(t + 1) * tokens];
            let best = frame.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let set = if state.is_multiple_of(2) { &pattern.phonemes } else { &pattern.gaps };
            let set = &set[state / 2];
            set.iter().map(|&token| frame[token]).fold(f32::NEG_INFINITY, f32::max) - best
        };
        // Walk backwards from the last state; every way there is counted on its own.
        fn walk(t: usize, state: usize, ratio: &dyn Fn(usize, usize) -> f32) -> f32 {
            let own = ratio(t, state);
            let mut best = if state == 0 { 0.0 } else { f32::NEG_INFINITY };
            if t > 0 {
                best = best.max(walk(t - 1, state, ratio));
                if state > 0 {
                    best = best.max(walk(t - 1, state - 1, ratio));
                }
                if state > 1 && state.is_multiple_of(2) {
                    best = best.max(walk(t - 1, state - 2, ratio));
                }
            }
            own + best
        }
        walk(end, states - 1, &ratio)
    }

    proptest! {
        #[test]
        fn best_alignment_equals_the_best_of_all_alignments_enumerated(
            values in prop::collection::vec(-6.0f32..0.0, 4 * 8),
            first in 1usize..4, second in 1usize..4, third in 1usize..4,
            alternatives in any::<bool>(),
        ) {
            let tokens = 4;
            let pattern = if alternatives {
                pattern(&[&[first, 1], &[second], &[third, 2]])
            } else {
                pattern(&[&[first], &[second]])
            };
            let fits = fits_by_end(&pattern, Frames::new(&values, tokens));
            prop_assert_eq!(fits.len(), 8);
            for (end, fit) in fits.iter().enumerate() {
                let expected = brute_force(&pattern, &values, tokens, end);
                match fit {
                    Some(fit) => {
                        prop_assert!((fit.log_ratio - expected).abs() < 1e-4, "{fit:?} {expected}");
                        prop_assert!(fit.start <= fit.end && fit.end == end);
                    }
                    None => prop_assert_eq!(expected, f32::NEG_INFINITY),
                }
            }
        }
    }

    #[test]
    fn phrase_that_was_heard_first_of_all_scores_zero() {
        let heard = [3, 0, 1, 1, 0, 2, 0, 3];
        let fits =
            separate_fits(&pattern(&[&[1], &[2]]), Frames::new(&certain(&heard, 4), 4), -1.0);
        assert_eq!(fits, [Fit { start: 3, end: 5, log_ratio: 0.0 }]);
    }

    #[test]
    fn phonemes_may_follow_each_other_without_a_gap() {
        let fits = fits_by_end(&pattern(&[&[1], &[2]]), Frames::new(&certain(&[1, 2], 3), 3));
        assert_eq!(fits[1].map(|fit| fit.log_ratio), Some(0.0));
    }

    #[test]
    fn a_phoneme_of_the_set_will_do_and_a_stranger_will_not() {
        let score = |heard: &[usize]| {
            let fits =
                fits_by_end(&pattern(&[&[1], &[2, 3], &[1]]), Frames::new(&certain(heard, 5), 5));
            fits.last().copied().flatten().map(|fit| fit.log_ratio)
        };
        assert_eq!(score(&[1, 3, 1]), Some(0.0));
        assert_eq!(score(&[1, 4, 1]), Some(-10.0));
    }

    #[test]
    fn word_may_end_only_where_the_phrase_lets_it() {
        let mut pattern = pattern(&[&[1], &[2], &[1]]);
        pattern.gaps[1].push(3);
        let score = |heard: &[usize]| {
            let fits = fits_by_end(&pattern, Frames::new(&certain(heard, 4), 4));
            fits.last().copied().flatten().map(|fit| fit.log_ratio)
        };
        assert_eq!(score(&[1, 2, 3, 1]), Some(0.0));
        assert_eq!(score(&[1, 3, 2, 1]), Some(-10.0));
    }

    #[test]
    fn phrase_said_twice_fits_twice() {
        let heard = [1, 2, 0, 0, 1, 0, 2];
        let fits =
            separate_fits(&pattern(&[&[1], &[2]]), Frames::new(&certain(&heard, 3), 3), -0.5);
        assert_eq!(fits.iter().map(|fit| fit.end).collect::<Vec<_>>(), [1, 6]);
    }

    #[test]
    fn phonemes_a_long_silence_apart_make_no_phrase() {
        let mut heard = vec![1];
        heard.extend([0; 40]);
        heard.push(2);
        let mut pattern = pattern(&[&[1], &[2]]);
        pattern.max_frames = 30;
        let at_least = -1.0;
        assert!(separate_fits(&pattern, Frames::new(&certain(&heard, 3), 3), at_least).is_empty());
    }

    #[test]
    fn nothing_to_look_at_is_no_fit() {
        assert!(fits_by_end(&pattern(&[&[1]]), Frames::new(&[], 3)).is_empty());
        let unknown = pattern(&[&[9]]);
        assert_eq!(fits_by_end(&unknown, Frames::new(&certain(&[1], 3), 3)), [None]);
    }
}
