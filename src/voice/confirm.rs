//! The second stage: a recogniser that knows words is asked about what the first stage is not sure of.
//!
//! ```text
//! score   0 ──────── doubtful ──────── threshold ──────── certain ──────── 1
//!           nothing    │ reported only if the    │ withdrawn unless      │ reported at once,
//!                      │ recogniser finds the    │ it does; stands if    │ nobody is asked
//!                      │ word likely enough      │ there is no answer    │
//! ```
//!
//! How likely falls with the score, and with how sure the recogniser is of what it writes: see [`Confirmer::convinces`]. Of a word
//! in noise it is sure of nothing, and then its no says little; but what the first stage did not find it has to hear itself,
//! likelier than any other word. Of a word that stands alone (`lone.rs`) that is enough, however faint: most of what
//! sounds a little like a cry is in the midst of talk. But where there is no noise, that it is sure of nothing is no excuse.
//!
//! The recogniser works beside the stream. An answer is waited for at most [`PATIENCE`] of the
//! stream; if there is none by then, or it failed, the first stage's decision stands: this errs on
//! the side of helping. A word is looked at in two windows, since a recogniser hears the same word
//! differently in different surroundings; one in which it is likely enough will do, and only both together withdraw it. A word
//! that was withdrawn and stands in a later window as well is doubted anew.
//!
//! Terms: a *doubt* is a hit that waits for its answers; *odds* are the word's probability to that of the likeliest other
//! one; *to abstain* is to have no answer, as on a phrase whose language the recogniser does not know.

use std::time::Duration;

use super::Detection;

/// How long a doubt waits for its answers: with the first stage's own delay a second after the word.
const PATIENCE: Duration = Duration::from_millis(700);
/// From here on nobody is asked. Measured in `docs/voice.md`: of a lone cry the recogniser makes little, over babble less, so
/// above this its no would cost more cries than it saves alarms.
const CERTAIN: f32 = 0.85;
/// The least score that the recogniser is asked about, as a part of the threshold.
const DOUBTFUL: f32 = 0.4;
/// The same for a word that stands alone.
const LONE_DOUBTFUL: f32 = 0.3;
/// The least odds of the word beside a score just at the threshold, where the recogniser is sure of all else that it writes.
const NEEDED: f32 = 8.0;
/// The least odds of a word that the first stage did not find: no other is likelier.
const HEARD: f32 = 1.0;
/// The odds of a word that stands alone that are enough at the threshold and below, however unsure the recogniser is.
const LONE_NEEDED: f32 = 3.0;
/// A score that is higher by this much needs a tenth of the odds.
const TENTH_BY_SCORE: f32 = 0.2;
/// The same for a word that stands alone, above the threshold.
const LONE_TENTH_BY_SCORE: f32 = 0.15;
/// A recogniser that is less sure by this much, in natural logarithms, needs a tenth of the odds,
const TENTH_BY_SURENESS: f32 = 0.67;
/// down to this: below it, it makes up words.
const LEAST_SURENESS: f32 = -2.2;
/// Windows in which one doubt is looked at.
const LOOKS: usize = 2;
/// Hits that end within this time are one utterance.
const SAME: Duration = Duration::from_millis(700);
/// Doubts at a time: more cries do not fit into [`PATIENCE`].
const MOST_DOUBTS: usize = 4;

/// What a recogniser says of a word in a window, at the place where the word is most probable.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Opinion {
    /// The probability of the word and its forms, divided by that of the likeliest other one; 0.0 and up.
    pub odds: f32,
    /// How sure it is of what it writes up to there: the mean natural logarithm of the probability of each token, 0 where it
    /// has no doubt, lower where it has.
    pub sureness: f32,
}

impl Opinion {
    /// The odds as a power of ten, as far as the recogniser is sure of the rest.
    fn evidence(self) -> f32 {
        let sureness = self.sureness.clamp(LEAST_SURENESS, 0.0);
        self.odds.max(f32::MIN_POSITIVE).log10() - sureness / TENTH_BY_SURENESS
    }
}

/// What hears words: the driver's recogniser, or what a test puts in its place.
pub trait Recogniser: Send + std::fmt::Debug {
    /// Asks how likely `word` (lower case) is in a window (16 kHz mono, −1.0..=1.0); returns whether there
    /// will be an answer. `wait`: until there is time for it, which is for files.
    fn ask(&mut self, number: u64, word: &'static str, window: Vec<f32>, wait: bool) -> bool;

    /// Answers since the last time: the number of the question, and what is said of its word, `None` where the recogniser failed. `wait`: for the first one, which is for files;
    /// then none at all means that none will come.
    fn answers(&mut self, wait: bool) -> Vec<(u64, Option<Opinion>)>;
}

/// Which stages agreed on a detection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Agreement {
    /// The first stage alone, since nobody else was asked, or nobody answered in time.
    FirstStage,
    /// The recogniser found the word likely enough too.
    Confirmed,
}

#[derive(Debug)]
struct Doubt {
    detection: Detection,
    /// Position in the stream after which it is decided without further answers.
    until: Duration,
    asked: Vec<u64>,
    /// Windows in which it was found while it was doubted; not all could be asked about.
    looks: usize,
    answered: usize,
    /// Whether it stands alone, as far as its last window shows.
    lone: bool,
    /// The answers that were one; at most [`LOOKS`].
    opinions: Vec<Opinion>,
}

/// Asks about doubtful hits and decides over them. See the module.
#[derive(Debug)]
pub(super) struct Confirmer {
    recogniser: Box<dyn Recogniser>,
    threshold: f32,
    /// Answers are waited for, however long they take: sound from a file comes faster than they.
    patient: bool,
    doubts: Vec<Doubt>,
    questions: u64,
}

impl Confirmer {
    pub(super) fn new(recogniser: Box<dyn Recogniser>, threshold: f32, patient: bool) -> Self {
        let doubts = Vec::with_capacity(MOST_DOUBTS);
        Self { recogniser, threshold, patient, doubts, questions: 0 }
    }

    /// The least score that is worth a question; `lone`: of a word that stands alone.
    pub(super) fn lowest(&self, lone: bool) -> f32 {
        self.threshold * if lone { LONE_DOUBTFUL } else { DOUBTFUL }
    }

    /// Whether the recogniser is to be asked about a hit of this score.
    pub(super) fn is_doubtful(&self, score: f32, lone: bool) -> bool {
        score >= self.lowest(lone) && (score < CERTAIN || score <= self.threshold)
    }

    /// Takes a hit that was found `now` in `window`. A word that is doubted already gets one more look.
    /// False where there is no room for another doubt: then it is decided without.
    pub(super) fn doubt(
        &mut self,
        detection: Detection,
        word: &'static str,
        lone: bool,
        now: Duration,
        window: &[f32],
    ) -> bool {
        let at = detection.at;
        let known = self.doubts.iter().position(|d| d.detection.at.abs_diff(at) < SAME);
        let number = known.unwrap_or(self.doubts.len());
        if known.is_none() && number < MOST_DOUBTS {
            self.doubts.push(Doubt {
                detection: detection.clone(),
                until: now + PATIENCE,
                asked: Vec::with_capacity(LOOKS),
                looks: 0,
                answered: 0,
                lone,
                opinions: Vec::with_capacity(LOOKS),
            });
        }
        let Some(doubt) = self.doubts.get_mut(number) else { return false };
        doubt.lone = lone;
        if detection.score > doubt.detection.score {
            doubt.detection = detection;
        }
        if doubt.looks < LOOKS {
            doubt.looks += 1;
            self.questions += 1;
            if self.recogniser.ask(self.questions, word, window.to_vec(), self.patient) {
                doubt.asked.push(self.questions);
            }
        }
        true
    }

    /// What is decided by `now`, in the order of time; `ended`: no more sound will come.
    pub(super) fn decided(&mut self, now: Duration, ended: bool) -> Vec<Detection> {
        loop {
            let is_open = |d: &Doubt| !self.is_heard(d) && d.answered < d.asked.len();
            let wait = self.patient && self.doubts.iter().any(is_open);
            let answers = self.recogniser.answers(wait);
            for &(number, opinion) in &answers {
                let mut asked = self.doubts.iter_mut();
                if let Some(doubt) = asked.find(|doubt| doubt.asked.contains(&number)) {
                    doubt.answered += 1;
                    doubt.opinions.extend(opinion);
                }
            }
            if !wait || answers.is_empty() {
                break;
            }
        }
        let doubts = std::mem::take(&mut self.doubts);
        let ready =
            |d: &Doubt| self.is_heard(d) || d.opinions.len() >= LOOKS || now >= d.until || ended;
        let (decided, waiting): (Vec<Doubt>, _) = doubts.into_iter().partition(ready);
        self.doubts = waiting;
        decided.into_iter().filter_map(|doubt| self.verdict(doubt)).collect()
    }

    /// Whether anything is to be decided.
    pub(super) fn is_waiting(&self) -> bool {
        !self.doubts.is_empty()
    }

    /// Whether this opinion of a hit of this score is enough.
    fn convinces(&self, opinion: Opinion, score: f32, lone: bool) -> bool {
        let above = score - self.threshold;
        if lone {
            let needed = LONE_NEEDED.log10() - above.max(0.0) / LONE_TENTH_BY_SCORE;
            return opinion.odds.log10() >= needed;
        }
        let needed = NEEDED.log10() - above / TENTH_BY_SCORE;
        (above >= 0.0 || opinion.odds >= HEARD) && opinion.evidence() >= needed
    }

    fn is_heard(&self, doubt: &Doubt) -> bool {
        let (score, lone) = (doubt.detection.score, doubt.lone);
        doubt.opinions.iter().any(|&opinion| self.convinces(opinion, score, lone))
    }

    fn verdict(&self, doubt: Doubt) -> Option<Detection> {
        let heard = self.is_heard(&doubt);
        let Doubt { mut detection, opinions, looks, .. } = doubt;
        if heard {
            detection.agreement = Agreement::Confirmed;
            return Some(detection);
        }
        // Withdrawn only if every look said no: on a slow board the second comes too late.
        let withdrawn = !opinions.is_empty() && opinions.len() == looks;
        (detection.score >= self.threshold && !withdrawn).then_some(detection)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    /// Answers each question by a script, in order; `None` in the script is no answer at all.
    #[derive(Debug)]
    struct Scripted {
        script: VecDeque<Option<Option<Opinion>>>,
        ready: Vec<(u64, Option<Opinion>)>,
    }

    impl Recogniser for Scripted {
        fn ask(&mut self, number: u64, word: &'static str, _: Vec<f32>, _: bool) -> bool {
            assert_eq!(word, "help");
            if let Some(Some(opinion)) = self.script.pop_front() {
                self.ready.push((number, opinion));
            }
            true
        }

        fn answers(&mut self, _: bool) -> Vec<(u64, Option<Opinion>)> {
            std::mem::take(&mut self.ready)
        }
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// What becomes of a hit of `score` at 1 s that is found in as many windows as there are answers.
    fn outcome(score: f32, script: &[Option<Option<Opinion>>]) -> Option<Agreement> {
        outcome_of(score, false, script)
    }

    /// The same for one that stands alone.
    fn lone_outcome(score: f32, script: &[Option<Option<Opinion>>]) -> Option<Agreement> {
        outcome_of(score, true, script)
    }

    fn outcome_of(score: f32, lone: bool, script: &[Option<Option<Opinion>>]) -> Option<Agreement> {
        let recogniser = Scripted { script: script.iter().copied().collect(), ready: Vec::new() };
        let mut confirmer = Confirmer::new(Box::new(recogniser), 0.5, false);
        let mut decided = Vec::new();
        for look in 0..script.len().max(1) as u64 {
            let now = ms(1_400 + 500 * look);
            let detection = Detection {
                phrase: "help".to_owned(),
                score,
                at: ms(1_000 + 20 * look),
                level_dbfs: -20.0,
                agreement: Agreement::FirstStage,
            };
            if decided.is_empty() {
                confirmer.doubt(detection, "help", lone, now, &[0.0]);
            }
            decided.extend(confirmer.decided(now + ms(100), false));
        }
        decided.extend(confirmer.decided(ms(10_000), false));
        assert!(!confirmer.is_waiting() && decided.len() <= 1, "{decided:?}");
        decided.pop().map(|detection| detection.agreement)
    }

    const fn says(odds: f32, sureness: f32) -> Option<Option<Opinion>> {
        Some(Some(Opinion { odds, sureness }))
    }

    const YES: Option<Option<Opinion>> = says(200.0, -0.1);
    const PERHAPS: Option<Option<Opinion>> = says(8.0, 0.0);
    const NO: Option<Option<Opinion>> = says(0.01, -0.1);
    const FAILED: Option<Option<Opinion>> = Some(None);
    const LATE: Option<Option<Opinion>> = None;

    #[test]
    fn one_window_in_which_the_word_is_heard_confirms_what_was_weak_or_too_faint() {
        for score in [0.4, 0.6] {
            assert_eq!(outcome(score, &[YES]), Some(Agreement::Confirmed));
            assert_eq!(outcome(score, &[NO, YES]), Some(Agreement::Confirmed));
        }
    }

    #[test]
    fn weak_hit_of_which_nothing_is_heard_is_withdrawn() {
        assert_eq!(outcome(0.6, &[NO, NO]), None);
        assert_eq!(outcome(0.6, &[NO]), None);
    }

    #[test]
    fn word_that_is_hardly_likely_is_enough_for_a_better_score_and_too_little_for_a_fainter_one() {
        assert_eq!(outcome(0.6, &[PERHAPS]), Some(Agreement::Confirmed));
        assert_eq!(outcome(0.3, &[PERHAPS, PERHAPS]), None);
        assert_eq!(outcome(0.3, &[PERHAPS, YES]), Some(Agreement::Confirmed));
    }

    #[test]
    fn no_of_a_recogniser_that_is_sure_of_nothing_weighs_less() {
        let (sure, unsure) = (says(0.1, -0.1), says(0.1, -1.2));
        assert_eq!(outcome(0.6, &[sure, sure]), None);
        assert_eq!(outcome(0.6, &[unsure]), Some(Agreement::Confirmed));
        assert_eq!(outcome(0.4, &[unsure, unsure]), None, "too faint for so little");
        let makes_up = says(0.001, -9.0);
        assert_eq!(outcome(0.6, &[makes_up]), None, "nothing it says counts for more");
    }

    #[test]
    fn what_the_first_stage_did_not_find_the_recogniser_has_to_hear_itself() {
        let (hardly, just) = (says(0.9, -2.2), says(1.1, -2.2));
        assert_eq!(outcome(0.4, &[hardly, hardly]), None);
        assert_eq!(outcome(0.4, &[just]), Some(Agreement::Confirmed));
        assert_eq!(outcome(0.5, &[hardly]), Some(Agreement::Confirmed));
    }

    #[test]
    fn word_that_stands_alone_is_confirmed_however_faint_if_no_other_is_likely() {
        let (other, word) = (says(2.0, -0.1), says(4.0, -0.1));
        assert_eq!(outcome(0.2, &[word, word]), None, "in the midst of talk");
        assert_eq!(lone_outcome(0.2, &[word]), Some(Agreement::Confirmed));
        assert_eq!(lone_outcome(0.2, &[other, word]), Some(Agreement::Confirmed));
        assert_eq!(lone_outcome(0.2, &[other, other]), None);
        assert_eq!(lone_outcome(0.6, &[NO, NO]), None, "and one that is not heard is withdrawn");
    }

    #[test]
    fn of_a_word_that_stands_alone_being_sure_of_nothing_is_no_excuse_and_a_better_score_is() {
        let unsure = says(0.1, -2.2);
        assert_eq!(outcome(0.55, &[unsure]), Some(Agreement::Confirmed), "in noise");
        assert_eq!(lone_outcome(0.55, &[unsure, unsure]), None);
        assert_eq!(lone_outcome(0.45, &[says(2.0, -2.2)]), None);
        let hardly = says(0.05, 0.0);
        assert_eq!(lone_outcome(0.8, &[hardly]), Some(Agreement::Confirmed));
        assert_eq!(lone_outcome(0.7, &[hardly, hardly]), None);
    }

    #[test]
    fn word_that_is_impossible_or_that_nothing_else_could_be_is_no_more_than_that() {
        assert_eq!(outcome(0.6, &[says(0.0, 0.0)]), None);
        assert_eq!(outcome(0.3, &[says(f32::INFINITY, 0.0)]), Some(Agreement::Confirmed));
    }

    #[test]
    fn first_stage_stands_where_the_recogniser_fails_or_is_late() {
        for script in [&[FAILED, FAILED], &[LATE, LATE], &[FAILED, LATE], &[NO, LATE]] {
            assert_eq!(outcome(0.6, script), Some(Agreement::FirstStage));
            assert_eq!(outcome(0.4, script), None, "too faint to stand alone");
        }
    }

    #[test]
    fn only_the_doubtful_is_asked_about() {
        let recogniser = Scripted { script: VecDeque::new(), ready: Vec::new() };
        let confirmer = Confirmer::new(Box::new(recogniser), 0.5, false);
        let doubtful = |score| confirmer.is_doubtful(score, false);
        assert!(doubtful(0.21) && doubtful(0.6) && !doubtful(0.9) && !doubtful(0.19));
        let doubtful = |score| confirmer.is_doubtful(score, true);
        assert!(doubtful(0.16) && doubtful(0.6) && !doubtful(0.9) && !doubtful(0.14));
    }

    #[test]
    fn doubts_are_bounded() {
        let recogniser = Scripted { script: VecDeque::new(), ready: Vec::new() };
        let mut confirmer = Confirmer::new(Box::new(recogniser), 0.5, false);
        for second in 0..100 {
            let detection = Detection {
                phrase: "help".to_owned(),
                score: 0.6,
                at: Duration::from_secs(second),
                level_dbfs: -20.0,
                agreement: Agreement::FirstStage,
            };
            let taken = confirmer.doubt(detection, "help", false, Duration::from_secs(1), &[]);
            assert_eq!(taken, second < MOST_DOUBTS as u64, "{second}");
        }
        assert_eq!(confirmer.doubts.len(), MOST_DOUBTS);
    }
}
