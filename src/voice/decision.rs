//! The decision: which of the places where a phrase fits are reported.
//!
//! One *sure* hit, at or above the threshold, is enough. Two *faint* ones say more than one:
//!
//! - The same word in two windows: the better one and [`AGAIN`] of the next best, if that makes it sure, and just so. The model is
//!   wrong about what is said in one position more often than in two (`docs/voice.md`), though never independently. Of a word that
//!   stands alone (`lone.rs`) two windows show the same word and the same silence, and say no more than one.
//! - People in need repeat themselves ("Hilfe! … Hilfe!"): two utterances of the same cry within
//!   [`REPEAT_WITHIN`] count together as `1 − (1 − a)(1 − b)`, the chance that not both are wrong if
//!   the scores were chances and independent. They are neither, which is why a hit counts as faint
//!   only from [`FAINT`] of the threshold on: below that other people's talk gives too many.
//!
//! After a detection, others are suppressed for the *cooldown*: one cry is one alarm.

use std::time::Duration;

/// Two fits that end within this time are one utterance, seen in two windows.
const SAME_UTTERANCE: Duration = Duration::from_millis(500);
/// The part of the next best window's score that is added to the best one's.
const AGAIN: f32 = 0.2;
/// The longest between two cries that count together: who repeats a cry breathes once in between.
const REPEAT_WITHIN: Duration = Duration::from_secs(4);
/// The least score of a faint hit, as a part of the threshold.
const FAINT: f32 = 0.75;
/// Faint hits that are remembered. At one each [`SAME_UTTERANCE`] more do not fit into
/// [`REPEAT_WITHIN`].
const REMEMBERED: usize = 8;

/// An utterance below the threshold, waiting for another window or its repetition.
#[derive(Debug, Clone, Copy)]
struct Faint {
    cry: usize,
    at: Duration,
    /// Scores of the two windows in which it was heard best.
    best: f32,
    next: f32,
}

impl Faint {
    fn learn(&mut self, score: f32, lone: bool) {
        if !lone {
            self.next = self.next.max(score.min(self.best));
        }
        self.best = self.best.max(score);
    }

    fn score(self, threshold: f32) -> f32 {
        self.best.max(threshold.min(self.best + AGAIN * self.next))
    }
}

/// Decides over the hits of one stream, which come about in the order of time.
#[derive(Debug, Clone)]
pub(super) struct Decision {
    threshold: f32,
    cooldown: Duration,
    last: Option<Duration>,
    faint: Vec<Faint>,
}

impl Decision {
    pub(super) fn new(threshold: f32, cooldown: Duration) -> Self {
        Self { threshold, cooldown, last: None, faint: Vec::with_capacity(REMEMBERED + 1) }
    }

    pub(super) fn threshold(&self) -> f32 {
        self.threshold
    }

    /// The lowest score that [`Decision::weigh`] wants to know of.
    pub(super) fn lowest(&self) -> f32 {
        self.threshold * FAINT
    }

    /// Whether a hit needs no other.
    pub(super) fn is_sure(&self, score: f32) -> bool {
        score >= self.threshold
    }

    /// Whether a hit that ends `at` is too close to the last that was reported.
    pub(super) fn is_cooling_down(&self, at: Duration) -> bool {
        let quiet_for = self.cooldown.max(SAME_UTTERANCE);
        self.last.is_some_and(|last| at.abs_diff(last) < quiet_for)
    }

    /// Takes a hit that ends `at`; `cry` is the same number for phrases that are one cry ("help"
    /// and "help me"), `lone`: it stands alone. Returns its score, together with other windows and a repetition where there are any, `None` where
    /// there is nothing to report.
    pub(super) fn weigh(
        &mut self,
        cry: usize,
        at: Duration,
        score: f32,
        lone: bool,
    ) -> Option<f32> {
        if self.is_cooling_down(at) || score < self.lowest() {
            return None;
        }
        self.faint.retain(|faint| at.abs_diff(faint.at) <= REPEAT_WITHIN);
        let own = self.faint.iter().filter(|faint| faint.cry == cry);
        let apart = own.filter(|faint| at.abs_diff(faint.at) >= SAME_UTTERANCE);
        let before = apart.map(|faint| faint.score(self.threshold)).fold(0.0, f32::max);
        // One that is sure is remembered as well: it may be doubted, and then counts towards the next.
        let now = self.utterance(cry, at, score, lone).score(self.threshold);
        let together = if before > 0.0 { 1.0 - (1.0 - now) * (1.0 - before) } else { now };
        self.is_sure(together).then_some(together)
    }

    /// What ends `at` is reported, and others are suppressed for a while.
    pub(super) fn reported(&mut self, at: Duration) {
        self.last = Some(at);
        self.faint.clear();
    }

    /// The utterance that this hit is a window of, the hit included. It is remembered.
    fn utterance(&mut self, cry: usize, at: Duration, score: f32, lone: bool) -> Faint {
        let mut seen = self.faint.iter_mut();
        let same = |faint: &&mut Faint| faint.cry == cry && at.abs_diff(faint.at) < SAME_UTTERANCE;
        if let Some(faint) = seen.find(same) {
            faint.learn(score, lone);
            return *faint;
        }
        let faint = Faint { cry, at, best: score, next: 0.0 };
        self.faint.push(faint);
        let excess = self.faint.len().saturating_sub(REMEMBERED);
        self.faint.drain(..excess);
        faint
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decision() -> Decision {
        Decision::new(0.6, Duration::from_secs(5))
    }

    impl Decision {
        fn hear(&mut self, cry: usize, at: Duration, score: f32) -> Option<f32> {
            let weighed = self.weigh(cry, at, score, false)?;
            self.reported(at);
            Some(weighed)
        }
    }

    #[test]
    fn sure_hit_that_was_doubted_counts_towards_the_next_one() {
        let mut decision = decision();
        assert_eq!(decision.weigh(0, ms(1_000), 0.6, false), Some(0.6));
        let together = decision.weigh(0, ms(3_000), 0.6, false).unwrap();
        assert!((together - 0.84).abs() < 1e-6, "{together}");
        decision.reported(ms(3_000));
        assert_eq!(decision.weigh(0, ms(9_000), 0.6, false), Some(0.6), "a reported cry is over");
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn one_sure_hit_is_enough_and_the_cooldown_keeps_the_next_back() {
        let mut decision = decision();
        assert_eq!(decision.hear(0, ms(1_000), 0.6), Some(0.6));
        assert_eq!(decision.hear(0, ms(5_900), 1.0), None);
        assert_eq!(decision.hear(0, ms(6_000), 0.9), Some(0.9));
    }

    #[test]
    fn two_faint_cries_are_a_detection_and_one_is_none() {
        let mut decision = decision();
        assert_eq!(decision.hear(0, ms(1_000), 0.5), None);
        assert_eq!(decision.hear(0, ms(2_500), 0.5), Some(0.75));
    }

    #[test]
    fn the_same_utterance_in_two_windows_says_more_than_in_one_and_less_than_a_repetition() {
        let mut decision = decision();
        assert_eq!(decision.hear(0, ms(1_000), 0.46), None);
        assert_eq!(decision.hear(0, ms(1_100), 0.45), None, "0.46 + 0.2 * 0.45 is too little");
        assert_eq!(decision.hear(0, ms(1_200), 0.52), Some(0.6), "just sure, never more");
    }

    #[test]
    fn two_windows_of_a_word_that_stands_alone_say_no_more_than_one_and_its_repetition_does() {
        let mut decision = decision();
        assert_eq!(decision.weigh(0, ms(1_000), 0.55, true), None);
        assert_eq!(decision.weigh(0, ms(1_100), 0.55, true), None);
        assert!(decision.weigh(0, ms(2_500), 0.55, true).is_some_and(|score| score > 0.75));
    }

    #[test]
    fn a_third_window_counts_only_if_it_is_better_than_one_of_the_two() {
        let mut faint = Faint { cry: 0, at: ms(0), best: 0.45, next: 0.0 };
        for score in [0.2, 0.1, 0.15] {
            faint.learn(score, false);
        }
        assert_eq!((faint.best, faint.next), (0.45, 0.2));
        faint.learn(0.5, false);
        assert_eq!((faint.best, faint.next), (0.5, 0.45));
    }

    #[test]
    fn faint_cries_of_another_word_or_too_far_apart_do_not_count_together() {
        let mut decision = decision();
        assert_eq!(decision.hear(0, ms(1_000), 0.5), None);
        assert_eq!(decision.hear(1, ms(2_000), 0.5), None, "another word");
        assert_eq!(decision.hear(0, ms(5_100), 0.5), None, "4.1 s later");
        assert_eq!(decision.hear(0, ms(8_000), 0.44), None, "too faint to count at all");
    }

    proptest! {
        #[test]
        fn what_a_single_threshold_reports_first_is_never_lost(
            hits in prop::collection::vec((0usize..2, 0u64..400, 0.0f32..1.0), 0..60),
        ) {
            let mut decision = decision();
            let (mut at, mut first_sure, mut first) = (0, None, None);
            for (cry, step, score) in hits {
                at += step;
                let sure = score >= 0.6;
                first_sure = first_sure.or(sure.then_some(at));
                let heard = decision.hear(cry, ms(at), score);
                if let Some(heard) = heard {
                    prop_assert!((0.6..=1.0).contains(&heard));
                    first = first.or(Some(at));
                }
                prop_assert!(decision.faint.len() <= REMEMBERED);
            }
            if let Some(sure) = first_sure {
                prop_assert!(first.is_some_and(|first| first <= sure));
            }
        }
    }
}
