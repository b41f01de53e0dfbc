//! The second stage's recogniser: Moonshine tiny, English, through ONNX Runtime.
//!
//! Both are heavy (a library of 22 MB, weights of 44 MB, some 120 MB of memory) and come from a
//! package (`scripts/fetch-models --recogniser`), so a device may do without. The library is loaded
//! while the program runs; nothing of it is linked.
//!
//! ```text
//! detector's thread ── ask ──► queue of 2 ──► this thread: encoder, then decoder, a token at a time
//!                 ◄── answers ──────────────┘
//! ```
//!
//! It writes no text: at the token where the word that was asked for is most probable, it says how probable that is beside the
//! likeliest other token, and how sure it was of all tokens until there.
//! That says more than the words that it would have written: of a lone "Help!" it often makes "The whole world", with
//! "help" close behind, and of "Good morning" it does not (`docs/voice.md`). The tokens themselves are forgotten.
//!
//! Source of the network's inputs and outputs: the files themselves; `tokenizer.bin` is a row of
//! tokens, each with its length in one byte, or two from 128 on.

use std::borrow::Cow;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ort::memory::Allocator;
use ort::session::{Session, SessionInputValue};
use ort::value::Tensor;

use crate::audio::SAMPLE_RATE_HZ;
use crate::voice::{Opinion, Recogniser};

/// The package and its version: the directory that the files stand in.
pub const NAME: &str = "moonshine-voice-0.0.73";

const LIBRARY: &str = "libonnxruntime.so";
const ENCODER: &str = "encoder_model.ort";
const DECODER: &str = "decoder_model_merged.ort";
const TOKENS: &str = "tokenizer.bin";

/// Questions that may wait; more come only if the machine is too slow for them, and are lost.
const QUEUE: usize = 2;
/// Tokens a second that anybody speaks.
const TOKENS_PER_SECOND: f32 = 6.5;
/// How long whoever reads files, and waits, waits for an answer, and how long loading may take: a slow board needs
/// a second for either. Whoever listens to a microphone waits for nothing.
const LONGEST: Duration = Duration::from_secs(30);
/// How long the process waits for the thread at its end: on a slow board a question takes a second.
const LONGEST_END: Duration = Duration::from_secs(5);
const BEGIN: i64 = 1;
const END: i64 = 2;
/// Shape of the decoder's memory: heads, size of one.
const HEADS: i64 = 8;
const HEAD_SIZE: i64 = 36;

/// Why there is no recogniser.
#[derive(Debug, thiserror::Error)]
pub enum RecogniserError {
    /// None of the places has it.
    #[error(
        "no recogniser {NAME} in {searched}: run scripts/fetch-models --recogniser, or set voice.confirm to \"off\""
    )]
    Missing {
        /// The directories that were searched, separated by commas.
        searched: String,
    },
    /// It is there and cannot be used.
    #[error("recogniser {directory}: {problem}: run scripts/fetch-models --recogniser again")]
    Unusable {
        /// Where it was found.
        directory: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// Loads it from the first directory of `search_path` that has one, on a thread of its own, and has
/// it write down a second of silence. Blocks for up to a second.
///
/// # Errors
/// [`RecogniserError`]: each says what to do.
pub fn load(search_path: &[PathBuf]) -> Result<Handle, RecogniserError> {
    let places = search_path.iter().flat_map(|place| [place.join(NAME), place.clone()]);
    let Some(directory) = places.into_iter().find(|place| place.join(ENCODER).exists()) else {
        let searched: Vec<String> = search_path.iter().map(|p| p.display().to_string()).collect();
        return Err(RecogniserError::Missing { searched: searched.join(", ") });
    };
    let unusable =
        |problem: String| RecogniserError::Unusable { directory: directory.clone(), problem };
    let (ready, loaded) = channel();
    let from = directory.clone();
    let worker = Worker::start(move |questions, ending| serve(&from, &ready, questions, ending))
        .map_err(|error| unusable(error.to_string()))?;
    match loaded.recv_timeout(LONGEST) {
        Ok(Ok(())) => Ok(Handle(Arc::new(worker))),
        Ok(Err(problem)) => Err(unusable(problem)),
        Err(_) => Err(unusable(format!("it is not ready after {} s", LONGEST.as_secs()))),
    }
}

/// The recogniser's thread, for any number of detectors. Cheap to clone; the last of all clones and of what they
/// [connected](Self::connect) waits for the thread to end, which takes as long as a question.
#[derive(Debug, Clone)]
pub struct Handle(Arc<Worker>);

#[derive(Debug)]
struct Worker {
    /// Taken when it is to end.
    questions: Option<SyncSender<Question>>,
    ending: Arc<AtomicBool>,
    /// Nothing comes here; it closes when the thread has let go of the library.
    ended: Mutex<Receiver<()>>,
}

impl Worker {
    /// On a thread of its own: `work`, which ends soon after there are no more questions, or the flag is set.
    fn start(
        work: impl FnOnce(&Receiver<Question>, &AtomicBool) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (questions, to_answer) = sync_channel(QUEUE);
        let (alive, ended) = channel();
        let ending = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&ending);
        std::thread::Builder::new().name("hark-recogniser".to_owned()).spawn(move || {
            work(&to_answer, &told);
            drop::<Sender<()>>(alive);
        })?;
        Ok(Self { questions: Some(questions), ending, ended: Mutex::new(ended) })
    }
}

impl Drop for Worker {
    /// A process that ends takes the library apart, and a thread that still computes with it would read what is gone.
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        self.questions = None;
        if let Ok(ended) = self.ended.get_mut() {
            let _ = ended.recv_timeout(LONGEST_END);
        }
    }
}

impl Handle {
    /// What a detector asks.
    pub fn connect(&self) -> Box<dyn Recogniser> {
        let (answer, answers) = channel();
        Box::new(Asked { worker: Arc::clone(&self.0), answer, answers })
    }
}

type Answer = (u64, Option<Opinion>);

#[derive(Debug)]
struct Question {
    number: u64,
    word: &'static str,
    window: Vec<f32>,
    answer: Sender<Answer>,
}

/// A detector's side.
#[derive(Debug)]
struct Asked {
    worker: Arc<Worker>,
    answer: Sender<Answer>,
    answers: Receiver<Answer>,
}

impl Recogniser for Asked {
    fn ask(&mut self, number: u64, word: &'static str, window: Vec<f32>, wait: bool) -> bool {
        let question = Question { number, word, window, answer: self.answer.clone() };
        let Some(questions) = &self.worker.questions else { return false };
        match wait {
            true => questions.send(question).is_ok(),
            false => questions.try_send(question).is_ok(),
        }
    }

    fn answers(&mut self, wait: bool) -> Vec<Answer> {
        let first = if wait { self.answers.recv_timeout(LONGEST).ok() } else { None };
        first.into_iter().chain(self.answers.try_iter()).collect()
    }
}

/// Ends when nobody asks any more, with the question that it is at.
fn serve(
    directory: &Path,
    ready: &Sender<Result<(), String>>,
    questions: &Receiver<Question>,
    ending: &AtomicBool,
) {
    // The crate panics where the library cannot be loaded.
    let opened = catch_unwind(AssertUnwindSafe(|| Moonshine::open(directory)));
    let opened = opened.unwrap_or_else(|_| Err("the library cannot be loaded".to_owned()));
    let mut moonshine = match opened {
        Ok(moonshine) => moonshine,
        Err(problem) => return drop(ready.send(Err(problem))),
    };
    if ready.send(Ok(())).is_err() {
        return;
    }
    let wanted = questions.iter().take_while(|_| !ending.load(Ordering::Relaxed));
    for Question { number, word, window, answer } in wanted {
        // One question that it cannot bear must not be its last.
        let heard = match catch_unwind(AssertUnwindSafe(|| moonshine.opinion(word, &window))) {
            Ok(Ok(opinion)) => Some(opinion),
            Ok(Err(error)) => {
                tracing::warn!("the recogniser failed: {error}");
                None
            }
            Err(_) => {
                tracing::warn!("the recogniser panicked");
                None
            }
        };
        // Whoever asked may be gone.
        let _ = answer.send((number, heard));
    }
}

struct Moonshine {
    encoder: Session,
    decoder: Session,
    /// The text of each token: lower case, without the space before it.
    tokens: Vec<String>,
}

impl Moonshine {
    fn open(directory: &Path) -> Result<Self, String> {
        let failed = |error: ort::Error| error.to_string();
        let library = directory.join(LIBRARY);
        let library = library.canonicalize().map_err(|e| format!("{LIBRARY}: {e}"))?;
        ort::init_from(library.display()).with_telemetry(false).commit().map_err(failed)?;
        let session = |file: &str| {
            // One thread, as the detector: the device has other things to do.
            Session::builder()?.with_intra_threads(1)?.commit_from_file(directory.join(file))
        };
        let tokens = std::fs::read(directory.join(TOKENS)).map_err(|e| format!("{TOKENS}: {e}"))?;
        let mut moonshine = Self {
            encoder: session(ENCODER).map_err(failed)?,
            decoder: session(DECODER).map_err(failed)?,
            tokens: split(&tokens).ok_or_else(|| format!("{TOKENS} is cut short"))?,
        };
        moonshine.opinion("help", &vec![0.0; SAMPLE_RATE_HZ as usize]).map_err(failed)?;
        Ok(moonshine)
    }

    /// What is to be said of `word` and its forms ("helped") in `sound`.
    fn opinion(&mut self, word: &str, sound: &[f32]) -> ort::Result<Opinion> {
        let is_wanted: Vec<bool> =
            self.tokens.iter().map(|token| token.starts_with(word)).collect();
        let samples = sound.len();
        let mask = Tensor::from_array(([1, samples], vec![1i64; samples]))?;
        let input = Tensor::from_array(([1, samples], sound.to_vec()))?;
        let heard = self
            .encoder
            .run(ort::inputs!["input_values" => input, "attention_mask" => mask.clone()])?;
        let (shape, values) = heard[0].try_extract_tensor::<f32>()?;
        let heard = Tensor::from_array((shape.to_vec(), values.to_vec()))?;
        let at_most =
            (samples as f32 / SAMPLE_RATE_HZ as f32 * TOKENS_PER_SECOND).max(8.0) as usize;
        let (mut token, mut memory) = (BEGIN, HashMap::new());
        let (mut highest, mut surprise) = (0.0, 0.0);
        let mut opinion = Opinion { odds: 0.0, sureness: 0.0 };
        for written in 1..=at_most {
            let logits = logits_after(&mut self.decoder, token, &heard, &mask, &mut memory)?;
            let (best, top) = most_probable(&logits);
            // Probabilities in units of that of the best token.
            let (mut all, mut own, mut other) = (0.0, 0.0, 0.0f32);
            for (&logit, &is_wanted) in logits.iter().zip(&is_wanted) {
                let probability = (logit - top).exp();
                all += probability;
                match is_wanted {
                    true => own += probability,
                    false => other = other.max(probability),
                }
            }
            surprise += f32::ln(all);
            let probability = own / all;
            if probability > highest {
                highest = probability;
                let sureness = -surprise / written as f32;
                opinion = Opinion { odds: own / other.max(f32::MIN_POSITIVE), sureness };
            }
            // More than half: it writes the word down.
            if best == END || probability > 0.5 {
                break;
            }
            token = best;
        }
        Ok(opinion)
    }
}

/// What the decoder remembers of the tokens so far, by the name of its input: shape and values.
type Memory = HashMap<String, (Vec<i64>, Vec<f32>)>;

/// What the decoder says of each token that may follow `token`.
fn logits_after(
    decoder: &mut Session,
    token: i64,
    heard: &Tensor<f32>,
    mask: &Tensor<i64>,
    memory: &mut Memory,
) -> ort::Result<Vec<f32>> {
    let first = memory.is_empty();
    let names: Vec<String> = decoder.inputs.iter().map(|input| input.name.clone()).collect();
    let mut inputs: Vec<(Cow<'_, str>, SessionInputValue<'_>)> = Vec::with_capacity(names.len());
    for name in &names {
        let value: SessionInputValue<'_> = match name.as_str() {
            "input_ids" => Tensor::from_array(([1usize, 1], vec![token]))?.into(),
            "encoder_hidden_states" => heard.view().into(),
            "encoder_attention_mask" => mask.view().into(),
            "use_cache_branch" => Tensor::from_array(([1usize], vec![!first]))?.into(),
            _ => match memory.get(name) {
                Some((shape, values)) => {
                    Tensor::from_array((shape.clone(), values.clone()))?.into()
                }
                None => Tensor::<f32>::new(&Allocator::default(), [1, HEADS, 0, HEAD_SIZE])?.into(),
            },
        };
        inputs.push((Cow::Borrowed(name), value));
    }
    let outputs: Vec<String> = decoder.outputs.iter().map(|output| output.name.clone()).collect();
    let results = decoder.run(inputs)?;
    for (number, name) in outputs.iter().enumerate().skip(1) {
        // What the encoder gave does not change after the first token.
        if first || name.contains("decoder") {
            let (shape, values) = results[number].try_extract_tensor::<f32>()?;
            let kept = (shape.to_vec(), values.to_vec());
            memory.insert(name.replace("present", "past_key_values"), kept);
        }
    }
    let (_, logits) = results[0].try_extract_tensor::<f32>()?;
    Ok(logits.to_vec())
}

/// The first token of those that come out highest, and how high.
fn most_probable(logits: &[f32]) -> (i64, f32) {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    best.map_or((END, 0.0), |(index, &logit)| (index as i64, logit))
}

/// The texts of the tokens of `tokenizer.bin`; `None` where it is cut short.
fn split(mut file: &[u8]) -> Option<Vec<String>> {
    let mut tokens = Vec::new();
    while let Some((&first, mut rest)) = file.split_first() {
        let mut length = usize::from(first);
        if length >= 128 {
            let (&high, after) = rest.split_first()?;
            length = usize::from(high) * 128 + length - 128;
            rest = after;
        }
        let (token, after) = rest.split_at_checked(length)?;
        tokens.push(String::from_utf8_lossy(token).replace('\u{2581}', "").to_lowercase());
        file = after;
    }
    Some(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_recogniser_is_an_error_that_says_how_to_get_it() {
        let error = load(&[PathBuf::from("/nowhere")]).unwrap_err().to_string();
        assert!(error.contains("/nowhere") && error.contains("--recogniser"), "{error}");
    }

    #[test]
    fn last_handle_waits_until_the_thread_has_let_go_and_asks_nothing_more_of_it() {
        let (begun, begins) = channel();
        let (seen, answered) = channel();
        let worker = Worker::start(move |questions, ending| {
            let first = questions.recv().unwrap();
            begun.send(()).unwrap();
            // At this question when the last handle goes.
            while !ending.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            seen.send(first.number).unwrap();
        });
        let handle = Handle(Arc::new(worker.unwrap()));
        let mut asked = handle.connect();
        assert!(asked.ask(1, "help", vec![0.0], false));
        begins.recv().unwrap();
        drop(handle);
        assert!(answered.try_recv().is_err(), "a detector still has it");
        drop(asked);
        assert_eq!(answered.try_recv(), Ok(1), "it has ended");
    }

    #[test]
    fn recogniser_without_its_library_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(ENCODER), b"not a model").unwrap();
        let error = load(&[directory.path().to_owned()]).unwrap_err().to_string();
        assert!(error.contains(LIBRARY) && error.contains("--recogniser again"), "{error}");
    }

    #[test]
    fn tokens_of_every_length_are_read_and_a_file_that_is_cut_short_is_refused() {
        let mut file = "\u{7}\u{2581}Help\u{0}".as_bytes().to_vec();
        file.extend([130, 1]);
        file.extend([b'x'; 130]);
        let tokens = split(&file).unwrap();
        assert_eq!(tokens, ["help".to_owned(), String::new(), "x".repeat(130)]);
        assert_eq!(split(&file[..100]), None);
    }
}
