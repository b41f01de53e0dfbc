//! The second stage: a recogniser that writes down what it hears is asked about what the first stage
//! is not sure of.
//!
//! ```text
//! score   0 ──────── doubtful ──────── threshold ──────── certain ──────── 1
//!           nothing    │ reported only if    │ reported unless     │ reported at once,
//!                      │ the recogniser       │ the recogniser      │ nobody is asked
//!                      │ hears it too         │ hears none of it    │
//! ```
//!
//! The recogniser works beside the stream. An answer is waited for at most [`PATIENCE`] of the
//! stream; if there is none by then, or it failed, the first stage's decision stands: this errs on
//! the side of helping. A word is looked at in two windows, since a recogniser hears the same word
//! differently in different surroundings; one that hears it is enough, and only both together withdraw it. A word
//! that was withdrawn and stands in a later window as well is doubted anew.
//!
//! Terms: a *doubt* is a hit that waits for its answers; *to abstain* is to have no answer, as on a
//! phrase whose language the recogniser does not know.

use std::time::Duration;

use super::Detection;

/// How long a doubt waits for its answers: with the first stage's own delay a second after the word.
const PATIENCE: Duration = Duration::from_millis(700);
/// From here on nobody is asked. Measured in `docs/voice.md`: over babble the recogniser hears half of
/// the words that the first stage gives 0.5 to 0.8, so above this its no would cost more cries than
/// it saves alarms.
const CERTAIN: f32 = 0.65;
/// The least score that the recogniser is asked about, as a part of the threshold.
const DOUBTFUL: f32 = 0.7;
/// Windows in which one doubt is looked at.
const LOOKS: usize = 2;
/// Hits that end within this time are one utterance.
const SAME: Duration = Duration::from_millis(700);
/// Doubts at a time: more cries do not fit into [`PATIENCE`].
const MOST_DOUBTS: usize = 4;

/// What hears words: the driver's recogniser, or what a test puts in its place.
pub trait Recogniser: Send + std::fmt::Debug {
    /// Hands over a window (16 kHz mono, −1.0..=1.0) that is to be written down; returns whether it
    /// will be. `wait`: until there is time for it, which is for files.
    fn ask(&mut self, number: u64, window: Vec<f32>, wait: bool) -> bool;

    /// Answers since the last time: the number of the question, and what was said in its window in
    /// lower case, `None` where the recogniser failed. `wait`: for the first one, which is for files;
    /// then none at all means that none will come.
    fn answers(&mut self, wait: bool) -> Vec<(u64, Option<String>)>;
}

/// Which stages agreed on a detection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Agreement {
    /// The first stage alone, since nobody else was asked, or nobody answered in time.
    FirstStage,
    /// The recogniser heard the word too.
    Confirmed,
}

#[derive(Debug)]
struct Doubt {
    detection: Detection,
    /// Of the word that is to be heard.
    word: &'static str,
    /// Position in the stream after which it is decided without further answers.
    until: Duration,
    asked: Vec<u64>,
    /// Windows in which it was found while it was doubted; not all could be asked about.
    looks: usize,
    answered: usize,
    heard: bool,
    denied: usize,
}

impl Doubt {
    fn is_open(&self) -> bool {
        !self.heard && self.answered < self.asked.len()
    }

    fn learn(&mut self, words: Option<&str>) {
        self.answered += 1;
        match words {
            Some(words) if says(words, self.word) => self.heard = true,
            Some(_) => self.denied += 1,
            None => {}
        }
    }
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

    /// The least score that is worth a question.
    pub(super) fn lowest(&self) -> f32 {
        self.threshold * DOUBTFUL
    }

    /// Whether the recogniser is to be asked about a hit of this score.
    pub(super) fn is_doubtful(&self, score: f32) -> bool {
        (self.lowest()..CERTAIN.max(self.threshold)).contains(&score)
    }

    /// Takes a hit that was found `now` in `window`. A word that is doubted already gets one more look.
    /// False where there is no room for another doubt: then it is decided without.
    pub(super) fn doubt(
        &mut self,
        detection: Detection,
        word: &'static str,
        now: Duration,
        window: &[f32],
    ) -> bool {
        let at = detection.at;
        let known = self.doubts.iter().position(|d| d.detection.at.abs_diff(at) < SAME);
        let number = known.unwrap_or(self.doubts.len());
        if known.is_none() && number < MOST_DOUBTS {
            let (until, asked) = (now + PATIENCE, Vec::with_capacity(LOOKS));
            let (looks, answered, heard, denied) = (0, 0, false, 0);
            self.doubts.push(Doubt {
                detection: detection.clone(),
                word,
                until,
                asked,
                looks,
                answered,
                heard,
                denied,
            });
        }
        let Some(doubt) = self.doubts.get_mut(number) else { return false };
        if detection.score > doubt.detection.score {
            doubt.detection = detection;
        }
        if doubt.looks < LOOKS {
            doubt.looks += 1;
            self.questions += 1;
            if self.recogniser.ask(self.questions, window.to_vec(), self.patient) {
                doubt.asked.push(self.questions);
            }
        }
        true
    }

    /// What is decided by `now`, in the order of time; `ended`: no more sound will come.
    pub(super) fn decided(&mut self, now: Duration, ended: bool) -> Vec<Detection> {
        loop {
            let wait = self.patient && self.doubts.iter().any(Doubt::is_open);
            let answers = self.recogniser.answers(wait);
            for (number, words) in &answers {
                let mut asked = self.doubts.iter_mut();
                if let Some(doubt) = asked.find(|doubt| doubt.asked.contains(number)) {
                    doubt.learn(words.as_deref());
                }
            }
            if !wait || answers.is_empty() {
                break;
            }
        }
        let ready =
            |doubt: &mut Doubt| doubt.heard || doubt.denied >= LOOKS || now >= doubt.until || ended;
        let decided: Vec<Doubt> = self.doubts.extract_if(.., ready).collect();
        decided.into_iter().filter_map(|doubt| self.verdict(doubt)).collect()
    }

    /// Whether anything is to be decided.
    pub(super) fn is_waiting(&self) -> bool {
        !self.doubts.is_empty()
    }

    fn verdict(&self, doubt: Doubt) -> Option<Detection> {
        let Doubt { mut detection, heard, denied, looks, .. } = doubt;
        if heard {
            detection.agreement = Agreement::Confirmed;
            return Some(detection);
        }
        // Withdrawn only if every look said no: on a slow board the second comes too late.
        let withdrawn = denied > 0 && denied == looks;
        (detection.score >= self.threshold && !withdrawn).then_some(detection)
    }
}

/// Whether `word` is among the words.
fn says(words: &str, word: &str) -> bool {
    words.split(|c: char| !c.is_alphanumeric()).any(|said| said == word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    /// Answers each question by a script, in order; `None` in the script is no answer at all.
    #[derive(Debug)]
    struct Scripted {
        script: VecDeque<Option<Option<&'static str>>>,
        ready: Vec<(u64, Option<String>)>,
    }

    impl Recogniser for Scripted {
        fn ask(&mut self, number: u64, _: Vec<f32>, _: bool) -> bool {
            if let Some(Some(words)) = self.script.pop_front() {
                self.ready.push((number, words.map(str::to_owned)));
            }
            true
        }

        fn answers(&mut self, _: bool) -> Vec<(u64, Option<String>)> {
            std::mem::take(&mut self.ready)
        }
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// What becomes of a hit of `score` at 1 s that is found in as many windows as there are answers.
    fn outcome(score: f32, script: &[Option<Option<&'static str>>]) -> Option<Agreement> {
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
                confirmer.doubt(detection, "help", now, &[0.0]);
            }
            decided.extend(confirmer.decided(now + ms(100), false));
        }
        decided.extend(confirmer.decided(ms(10_000), false));
        assert!(!confirmer.is_waiting() && decided.len() <= 1, "{decided:?}");
        decided.pop().map(|detection| detection.agreement)
    }

    const YES: Option<Option<&str>> = Some(Some("could you help, please?"));
    const NO: Option<Option<&str>> = Some(Some("helpless in the hallway"));
    const FAILED: Option<Option<&str>> = Some(None);
    const LATE: Option<Option<&str>> = None;

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
        let doubtful = |score| confirmer.is_doubtful(score);
        assert!(doubtful(0.4) && doubtful(0.6) && !doubtful(0.9) && !doubtful(0.2));
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
            let taken = confirmer.doubt(detection, "help", Duration::from_secs(1), &[]);
            assert_eq!(taken, second < MOST_DOUBTS as u64, "{second}");
        }
        assert_eq!(confirmer.doubts.len(), MOST_DOUBTS);
    }
}
