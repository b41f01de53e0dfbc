//! Windows, leveling, and the decision which fits are detections.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::confirm::{Agreement, Confirmer, Recogniser};
use super::decision::Decision;
use super::gate::Gate;
use super::lattice::{self, Fit, Frames, Pattern};
use super::lone::stands_alone;
use super::model::{FRAME_SAMPLES, Model, WINDOW_FRAMES};
use super::phoneme::Transcription;
use super::window::{REACH_SAMPLES, VIEWS, View, leveled};
use super::{
    Detection, HOP_SAMPLES, Keyphrase, MARGIN_FRAMES, MAX_PHONEMES, MIN_PHONEMES, QUIET_BLOCKS,
    QUIET_MARGIN_FRAMES, Settings, VoiceError, WINDOW_SAMPLES,
};
use crate::audio::{Meter, SAMPLE_RATE_HZ, rms_dbfs};

/// The longest that a phoneme may last on average, in frames: 240 ms. A drawn-out cry has long vowels.
const FRAMES_PER_PHONEME: usize = 12;
/// The least that any phrase may last, in frames: 1 s.
const MIN_MAX_FRAMES: usize = 50;

/// Blocks of the gate in a window.
const WINDOW_BLOCKS: usize = WINDOW_SAMPLES / Meter::BLOCK;
/// The least score in a window, as a part of the threshold, that is looked at in its views as well, or again once the
/// phrase is far enough from the window's end.
const CANDIDATE: f32 = 0.55;
/// The same where a recogniser can be asked and the phrase stands alone.
const LONE_CANDIDATE: f32 = 0.32;
/// Blocks of silence that follow a stream at its end.
const SILENCE_BLOCKS: usize = 4;
/// What a view counts at least: one in which nothing is heard must not outvote all others.
const UNHEARD: f32 = 0.02;

/// A keyphrase, ready to be searched for.
#[derive(Debug)]
struct Prepared {
    text: String,
    /// The same for phrases of which one contains the other: the lowest of their numbers.
    cry: usize,
    /// That a recogniser is asked for.
    word: Option<&'static str>,
    pattern: Pattern,
}

impl Prepared {
    fn new(keyphrase: &Keyphrase, model: &Model) -> Result<Self, VoiceError> {
        let inventory = model.inventory();
        let Transcription { phonemes, word_ends } = inventory.transcribe(keyphrase.phonemes())?;
        let (text, count) = (keyphrase.text().to_owned(), phonemes.len());
        if !(MIN_PHONEMES..=MAX_PHONEMES).contains(&count) {
            return Err(VoiceError::Length { text, count });
        }
        // Several words without a mark where one ends: it may be anywhere. Within a word there is
        // none, which tells "help" from "he'll put".
        let anywhere = word_ends.is_empty() && text.split_whitespace().nth(1).is_some();
        let gap = |before: usize| {
            let mut tokens = vec![inventory.blank()];
            if anywhere || word_ends.contains(&before) {
                tokens.push(inventory.word_boundary());
            }
            tokens
        };
        let gaps = (1..count).map(gap).collect();
        let max_frames = (FRAMES_PER_PHONEME * count).max(MIN_MAX_FRAMES);
        let pattern = Pattern { phonemes, gaps, max_frames };
        Ok(Self { text, cry: 0, word: keyphrase.word, pattern })
    }

    fn all(keyphrases: &[Keyphrase], model: &Model) -> Result<Vec<Self>, VoiceError> {
        let prepared = keyphrases.iter().map(|phrase| Self::new(phrase, model));
        let mut phrases: Vec<Self> = prepared.collect::<Result<_, _>>()?;
        let texts: Vec<String> = phrases.iter().map(|phrase| phrase.text.to_lowercase()).collect();
        for (number, phrase) in phrases.iter_mut().enumerate() {
            let own = &texts[number];
            let related = |other: &String| own.contains(other.as_str()) || other.contains(own);
            phrase.cry = texts.iter().position(related).unwrap_or(number);
        }
        Ok(phrases)
    }

    fn count(&self) -> usize {
        self.pattern.phonemes.len()
    }

    /// How a log ratio becomes a score: see the module [`voice`](super).
    fn score(&self, fit: Fit) -> f32 {
        (fit.log_ratio / self.scale()).exp()
    }

    /// The log ratio that has this score.
    fn log_ratio(&self, score: f32) -> f32 {
        score.ln() * self.scale()
    }

    fn scale(&self) -> f32 {
        2.0 * (self.count() as f32 - 1.0)
    }
}

/// A fit that may be reported.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    phrase: usize,
    fit: Fit,
    /// It stands alone, as far as the window shows.
    lone: bool,
}

/// Listens to one stream of 16 kHz mono. See the module [`voice`](super).
#[derive(Debug)]
pub struct Detector {
    model: Arc<Model>,
    phrases: Vec<Prepared>,
    decision: Decision,
    confirmer: Option<Confirmer>,
    gate: Gate,
    /// The last 2.55 s at most, which a window and its views look back; the newest sample stands last.
    sound: Vec<f32>,
    /// Whether each block of a window was active, the newest last; whole blocks only.
    active: Vec<bool>,
    /// Samples taken since the start of the stream.
    position: u64,
    /// Where a phrase that is heard now, too close to the end of the window, will be far enough from it.
    again_at: Option<u64>,
    /// Where the last window ended, and the frames at its end in which nothing was to end.
    looked: Option<(u64, usize)>,
    windows_run: u64,
    /// Wanted by [`Detector::keep_scores`].
    scores: Option<Vec<ScorePoint>>,
    scored_until: Duration,
}

/// How well a phrase fits at best with an end within 100 ms: what a plot over time shows.
#[derive(Debug, Clone, PartialEq)]
pub struct ScorePoint {
    /// The end of the 100 ms, from the start of the stream.
    pub at: Duration,
    /// [`Keyphrase::text`].
    pub phrase: String,
    /// As [`Detection::score`]; 0 where nothing fits.
    pub score: f32,
}

/// Frames of a [`ScorePoint`].
const POINT_FRAMES: usize = 5;

impl Detector {
    /// A detector at the start of a stream.
    ///
    /// # Errors
    /// [`VoiceError::UnknownPhoneme`], [`VoiceError::Length`], [`VoiceError::NoKeyphrase`],
    /// [`VoiceError::Threshold`]: the settings cannot be what was meant; each says what to change.
    pub fn new(model: Arc<Model>, settings: &Settings) -> Result<Self, VoiceError> {
        if settings.keyphrases.is_empty() {
            return Err(VoiceError::NoKeyphrase);
        }
        if !(0.0..=1.0).contains(&settings.threshold) {
            return Err(VoiceError::Threshold(settings.threshold));
        }
        Ok(Self {
            phrases: Prepared::all(&settings.keyphrases, &model)?,
            model,
            decision: Decision::new(settings.threshold, settings.cooldown),
            confirmer: None,
            gate: Gate::new(),
            sound: Vec::with_capacity(REACH_SAMPLES + Meter::BLOCK),
            active: Vec::with_capacity(WINDOW_BLOCKS + 1),
            position: 0,
            again_at: None,
            looked: None,
            windows_run: 0,
            scores: None,
            scored_until: Duration::ZERO,
        })
    }

    /// From now on asks `recogniser` about hits that are not certain: see `confirm.rs`. `patient`: its
    /// answers are waited for, which is for files; a microphone does not wait.
    pub fn confirm_with(&mut self, recogniser: Box<dyn Recogniser>, patient: bool) {
        self.confirmer = Some(Confirmer::new(recogniser, self.decision.threshold(), patient));
    }

    /// From now on keeps the scores over time, to be fetched with [`Detector::take_scores`] after
    /// each push: nothing else bounds them.
    pub fn keep_scores(&mut self) {
        self.scores = Some(Vec::new());
    }

    /// The scores since the last time, by window, then phrase, then time. None in silence, where no
    /// window runs.
    pub fn take_scores(&mut self) -> Vec<ScorePoint> {
        self.scores.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Takes samples (16 kHz mono, −1.0..=1.0, any number) and returns what they complete, in the
    /// order of time. Where a window completes, this takes as long as the model does.
    ///
    /// # Errors
    /// [`VoiceError::Weights`]: the model failed on a window, which one that loaded does not do.
    pub fn push(&mut self, samples: &[f32]) -> Result<Vec<Detection>, VoiceError> {
        let mut detections = Vec::new();
        let mut rest = samples;
        while !rest.is_empty() {
            let in_block = (self.position % Meter::BLOCK as u64) as usize;
            let (piece, after) = rest.split_at(rest.len().min(Meter::BLOCK - in_block));
            rest = after;
            self.take(piece);
            if self.position.is_multiple_of(HOP_SAMPLES as u64) {
                self.look(MARGIN_FRAMES, &mut detections)?;
            } else if self.fell_silent() {
                self.look(QUIET_MARGIN_FRAMES, &mut detections)?;
            } else if self.again_at == Some(self.position) {
                self.look(MARGIN_FRAMES, &mut detections)?;
            }
            self.settle(false, &mut detections);
        }
        Ok(detections)
    }

    /// Ends the stream: looks once more at its end, followed by half a second of silence, so that
    /// a phrase with which a file ends is found. What is pushed afterwards would follow that silence.
    ///
    /// # Errors
    /// As [`Detector::push`].
    pub fn finish(&mut self) -> Result<Vec<Detection>, VoiceError> {
        let silence = [0.0; Meter::BLOCK];
        let ragged = (Meter::BLOCK as u64 - self.position % Meter::BLOCK as u64) as usize;
        let mut detections = self.push(&silence[..ragged])?;
        for _ in 0..SILENCE_BLOCKS {
            detections.extend(self.push(&silence)?);
        }
        self.look(0, &mut detections)?;
        self.settle(true, &mut detections);
        Ok(detections)
    }

    /// How many windows went through the model: what the gate did not save.
    pub fn windows_run(&self) -> u64 {
        self.windows_run
    }

    /// Appends at most a block and, where one is complete, asks the gate about it.
    fn take(&mut self, piece: &[f32]) {
        self.sound.extend_from_slice(piece);
        let excess = self.sound.len().saturating_sub(REACH_SAMPLES);
        self.sound.drain(..excess);
        self.position += piece.len() as u64;
        if self.position.is_multiple_of(Meter::BLOCK as u64) {
            let block = &self.sound[self.sound.len().saturating_sub(Meter::BLOCK)..];
            self.active.push(self.gate.is_active(rms_dbfs(block)));
            let excess = self.active.len().saturating_sub(WINDOW_BLOCKS);
            self.active.drain(..excess);
        }
    }

    /// Whether somebody spoke and the block that ends here is the one by which silence is certain.
    fn fell_silent(&self) -> bool {
        let whole = self.position.is_multiple_of(Meter::BLOCK as u64);
        let before = self.active.len().checked_sub(QUIET_BLOCKS + 1);
        let tail = before.and_then(|before| self.active.get(before..));
        whole && tail.is_some_and(|tail| tail[0] && !tail[1..].contains(&true))
    }

    /// Searches the window that ends here. Nothing that ends within the last `margin` frames is
    /// reported.
    fn look(&mut self, margin: usize, detections: &mut Vec<Detection>) -> Result<(), VoiceError> {
        if !self.active.contains(&true) {
            return Ok(());
        }
        self.windows_run += 1;
        self.again_at = None;
        let looked = self.looked.replace((self.position, margin));
        let before = looked.filter(|&(position, _)| position == self.position);
        let window = leveled(&self.sound);
        let log_probs = self.model.log_probs(window.clone())?;
        let frames = Frames::new(&log_probs, self.model.inventory().len());
        self.score_points(frames, margin);
        let sure = |c: &Candidate| self.decision.is_sure(self.score(c));
        // What the model hears in the views, as far as it was asked for.
        let mut views = Vec::new();
        for candidate in best_of_overlapping(self.candidates(frames), &self.phrases, sure) {
            let end = candidate.fit.end + 1;
            let too_late = |margin: usize| (end + margin).saturating_sub(WINDOW_FRAMES);
            // The end of a stream is looked at twice. The same window again says nothing new.
            if before.is_some_and(|(_, margin)| too_late(margin) == 0) {
                continue;
            }
            let too_late = too_late(margin);
            if too_late == 0 {
                if self.decision.is_cooling_down(self.end_of(&candidate)) {
                    continue;
                }
                if let Some(score) = self.fused(&candidate, &mut views)? {
                    self.weigh(candidate, score, &window, detections);
                }
            } else if self.again_at.is_none() {
                let blocks = (too_late * FRAME_SAMPLES).div_ceil(Meter::BLOCK);
                self.again_at = Some(self.position + (blocks * Meter::BLOCK) as u64);
            }
        }
        Ok(())
    }

    /// The score of a candidate in its window.
    fn score(&self, candidate: &Candidate) -> f32 {
        self.phrases[candidate.phrase].score(candidate.fit)
    }

    /// Where a candidate of the window that ends here ends in the stream.
    fn end_of(&self, candidate: &Candidate) -> Duration {
        time_of(self.position.saturating_sub(before_end(candidate.fit) as u64))
    }

    /// The geometric mean of a candidate's score in its window and in all views of it, which is the mean of the log
    /// ratios; `None` as soon as it is certain to be too low to matter. `views`: the log probabilities of those that were
    /// asked for, for whatever else is in this window.
    fn fused(
        &self,
        candidate: &Candidate,
        views: &mut Vec<Vec<f32>>,
    ) -> Result<Option<f32>, VoiceError> {
        let opinions = (1 + VIEWS.len()) as f32;
        let lowest = self.lowest(candidate);
        let mut sum = self.score(candidate).ln();
        for (number, view) in VIEWS.into_iter().enumerate() {
            if (sum / opinions).exp() < lowest {
                return Ok(None);
            }
            if number == views.len() {
                views.push(self.model.log_probs(view.window(&self.sound))?);
            }
            sum += self.heard_in(view, &views[number], candidate).max(UNHEARD).ln();
        }
        Ok(Some((sum / opinions).exp()))
    }

    /// The score of a candidate in a view: that of any phrase of the same cry that is heard at the same place, 0 where none is.
    fn heard_in(&self, view: View, log_probs: &[f32], candidate: &Candidate) -> f32 {
        let frames = Frames::new(log_probs, self.model.inventory().len());
        let (start, end) = (view.frame(candidate.fit.start), view.frame(candidate.fit.end));
        let cry = self.phrases[candidate.phrase].cry;
        let related = self.phrases.iter().filter(|phrase| phrase.cry == cry);
        let scores = related.flat_map(|phrase| {
            let fits = lattice::fits_by_end(&phrase.pattern, frames).into_iter().flatten();
            let there = fits.filter(|fit| fit.start as f32 <= end && fit.end as f32 >= start);
            there.map(|fit| phrase.score(fit))
        });
        scores.fold(0.0, f32::max)
    }

    /// The lowest score of a candidate that matters.
    fn lowest(&self, candidate: &Candidate) -> f32 {
        let can_be_asked = self.phrases[candidate.phrase].word.and(self.confirmer.as_ref());
        let asked = can_be_asked.map_or(1.0, |confirmer| confirmer.lowest(candidate.lone));
        self.decision.lowest().min(asked)
    }

    /// Reports what the second stage has decided; `ended`: the stream is over.
    fn settle(&mut self, ended: bool, detections: &mut Vec<Detection>) {
        let Some(confirmer) = &mut self.confirmer else { return };
        if !confirmer.is_waiting() {
            return;
        }
        for detection in confirmer.decided(time_of(self.position), ended) {
            if !self.decision.is_cooling_down(detection.at) {
                self.decision.reported(detection.at);
                detections.push(detection);
            }
        }
    }

    /// Adds the points of the hop that no later window shows further from its end.
    fn score_points(&mut self, frames: Frames<'_>, margin: usize) {
        let Some(points) = &mut self.scores else { return };
        let last = WINDOW_FRAMES - 1 - margin;
        let first = last.saturating_sub(HOP_SAMPLES / FRAME_SAMPLES);
        let mut until = self.scored_until;
        for phrase in &self.phrases {
            let fits = lattice::fits_by_end(&phrase.pattern, frames);
            for end in (first..last).step_by(POINT_FRAMES) {
                let before_end = (WINDOW_FRAMES - 1 - end - POINT_FRAMES) * FRAME_SAMPLES;
                let at = time_of(self.position.saturating_sub(before_end as u64));
                // Before the start of the stream, or shown by the window before.
                if at <= self.scored_until {
                    continue;
                }
                until = until.max(at);
                let within = fits.iter().skip(end).take(POINT_FRAMES).flatten();
                let score = within.map(|&fit| phrase.score(fit)).fold(0.0, f32::max);
                points.push(ScorePoint { at, phrase: phrase.text.clone(), score });
            }
        }
        self.scored_until = until;
    }

    fn candidates(&self, frames: Frames<'_>) -> Vec<Candidate> {
        let mut candidates = Vec::new();
        for (phrase, prepared) in self.phrases.iter().enumerate() {
            let can_ask = self.confirmer.is_some() && prepared.word.is_some();
            let log_ratio = |part: f32| prepared.log_ratio(part * self.decision.threshold());
            let (alone, always) = (log_ratio(LONE_CANDIDATE), log_ratio(CANDIDATE));
            let at_least = if can_ask { alone } else { always };
            let fits = lattice::separate_fits(&prepared.pattern, frames, at_least);
            let candidate = |fit| {
                let lone = stands_alone(&self.sound, self.said(fit));
                Candidate { phrase, fit, lone }
            };
            let wanted = |c: &Candidate| c.fit.log_ratio >= always || c.lone;
            candidates.extend(fits.into_iter().map(candidate).filter(wanted));
        }
        candidates
    }

    /// Where a fit of the window that ends here lies in the sound that is kept.
    fn said(&self, fit: Fit) -> Range<usize> {
        let end = self.sound.len().saturating_sub(before_end(fit));
        end.saturating_sub((fit.end + 1 - fit.start) * FRAME_SAMPLES)..end
    }

    /// Reports a candidate of the window that ends here, which all views together give `score`, if the decision is for
    /// it, or asks about it.
    fn weigh(
        &mut self,
        candidate: Candidate,
        score: f32,
        window: &[f32],
        detections: &mut Vec<Detection>,
    ) {
        let at = self.end_of(&candidate);
        let Candidate { phrase, fit, lone } = candidate;
        let prepared = &self.phrases[phrase];
        let weighed = self.decision.weigh(prepared.cry, at, score, lone);
        let detection = Detection {
            phrase: prepared.text.clone(),
            score: weighed.unwrap_or(score),
            at,
            level_dbfs: rms_dbfs(&self.sound[self.said(fit)]),
            agreement: Agreement::FirstStage,
        };
        if let (Some(confirmer), Some(word)) = (&mut self.confirmer, prepared.word)
            && confirmer.is_doubtful(detection.score, lone)
            && !self.decision.is_cooling_down(at)
            && confirmer.doubt(detection.clone(), word, lone, time_of(self.position), window)
        {
            return;
        }
        if weighed.is_some() {
            self.decision.reported(at);
            detections.push(detection);
        }
    }
}

/// Where the frame after a phrase begins, in samples before the end of the window.
fn before_end(fit: Fit) -> usize {
    WINDOW_SAMPLES.saturating_sub((fit.end + 1) * FRAME_SAMPLES)
}

fn time_of(position: u64) -> Duration {
    Duration::from_micros(position * 1_000_000 / u64::from(SAMPLE_RATE_HZ))
}

/// Of candidates that overlap, the one with the largest product of score and number of phonemes:
/// "help me" contains "help" and says more, so it wins unless its score is less than two thirds of
/// the other's; of equal phrases the best score wins. A sure one is never hidden by one that is not.
/// In the order of time.
fn best_of_overlapping(
    mut candidates: Vec<Candidate>,
    phrases: &[Prepared],
    sure: impl Fn(&Candidate) -> bool,
) -> Vec<Candidate> {
    let rank = |c: &Candidate| {
        let phrase = &phrases[c.phrase];
        phrase.score(c.fit) * phrase.count() as f32
    };
    candidates.sort_by(|a, b| sure(b).cmp(&sure(a)).then(rank(b).total_cmp(&rank(a))));
    let mut kept: Vec<Candidate> = Vec::new();
    for candidate in candidates {
        let Fit { start, end, .. } = candidate.fit;
        if kept.iter().all(|k| end < k.fit.start || start > k.fit.end) {
            kept.push(candidate);
        }
    }
    kept.sort_by_key(|c| c.fit.end);
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepared(text: &str, phonemes: usize) -> Prepared {
        let pattern = Pattern {
            phonemes: vec![vec![1]; phonemes],
            gaps: vec![vec![0]; phonemes - 1],
            max_frames: 50,
        };
        Prepared { text: text.to_owned(), cry: 0, word: None, pattern }
    }

    fn candidate(phrase: usize, start: usize, end: usize, log_ratio: f32) -> Candidate {
        Candidate { phrase, fit: Fit { start, end, log_ratio }, lone: false }
    }

    #[test]
    fn longer_phrase_wins_where_two_overlap() {
        let phrases = [prepared("help", 4), prepared("help me", 6)];
        let kept = best_of_overlapping(
            vec![candidate(0, 10, 30, 0.0), candidate(1, 10, 45, -2.0), candidate(0, 80, 99, -1.0)],
            &phrases,
            |_| true,
        );
        let found: Vec<_> = kept.iter().map(|c| (c.phrase, c.fit.end)).collect();
        assert_eq!(found, [(1, 45), (0, 99)]);
    }

    #[test]
    fn longer_phrase_that_hardly_fits_does_not_hide_the_shorter_that_does() {
        let phrases = [prepared("help", 4), prepared("help me", 6)];
        let kept = best_of_overlapping(
            vec![candidate(0, 10, 30, 0.0), candidate(1, 10, 45, -6.0)],
            &phrases,
            |_| true,
        );
        assert_eq!(kept.iter().map(|c| c.phrase).collect::<Vec<_>>(), [0]);
    }

    #[test]
    fn faint_phrase_never_hides_a_sure_one_however_long_it_is() {
        let phrases = [prepared("help", 4), prepared("help me", 6)];
        let kept = best_of_overlapping(
            vec![candidate(0, 10, 30, -3.0), candidate(1, 10, 45, -5.5)],
            &phrases,
            |c| phrases[c.phrase].score(c.fit) > 0.58,
        );
        assert_eq!(kept.iter().map(|c| c.phrase).collect::<Vec<_>>(), [0]);
    }

    #[test]
    fn better_score_wins_between_phrases_of_one_length() {
        let phrases = [prepared("a", 4), prepared("b", 4)];
        let kept = best_of_overlapping(
            vec![candidate(0, 10, 30, -3.0), candidate(1, 12, 31, -1.0)],
            &phrases,
            |_| true,
        );
        assert_eq!(kept.len(), 1);
        assert_eq!(kept[0].phrase, 1);
    }
}
