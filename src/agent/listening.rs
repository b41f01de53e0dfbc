//! The thread that listens: audio in, detections out, as events in the outbox.
//!
//! The microphone may be missing, vanish or come back: that is a fault with a beginning and an end,
//! not a failure of the thread, which opens it again every [`REOPEN`]. A detector that panics or
//! fails ends the thread; the supervisor starts it anew with a fresh detector.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::{BUDGET, Happening, Reporter};
use crate::audio::{Meter, SAMPLE_RATE_HZ};
use crate::cli::{Failure, exit};
use crate::clock::Clock;
use crate::config::{self, AudioInput, Config, Sensitivity};
use crate::driver::audio_stream::{AudioStream, StreamStatus};
use crate::driver::{microphone, models, wav_source};
use crate::event::catalogue::Occurrence;
use crate::supervisor::{Outcome, Stage, Stop, Supervisor};
use crate::voice::{Detection, Detector, Keyphrase, Model, OperatingPoint, Settings};

/// Between two attempts to open the microphone.
const REOPEN: Duration = Duration::from_secs(5);
/// The part that is at fault when no sound comes.
const MICROPHONE: &str = "microphone";

/// Finds keyphrases in sound: the detector, or what a test puts in its place.
pub trait Listener: Send {
    /// Takes mono samples of [`SAMPLE_RATE_HZ`], −1.0..=1.0, in pieces of any length; returns what
    /// was heard in them.
    ///
    /// # Errors
    /// One line; the listener is then made anew.
    fn push(&mut self, samples: &[f32]) -> Result<Vec<Detection>, String>;
}

impl Listener for Detector {
    fn push(&mut self, samples: &[f32]) -> Result<Vec<Detection>, String> {
        Detector::push(self, samples).map_err(|e| e.to_string())
    }
}

type MakeListener = Box<dyn FnMut() -> Result<Box<dyn Listener>, String> + Send>;
type PlanListener = Box<dyn FnOnce(&config::Voice) -> Result<MakeListener, Failure> + Send>;

/// Plans a listener from the configuration, and makes one for each run of the thread.
pub struct ListenerFactory(PlanListener);

impl std::fmt::Debug for ListenerFactory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ListenerFactory")
    }
}

impl ListenerFactory {
    /// The voice detector with its weights from the disk.
    pub fn detector() -> Self {
        Self(Box::new(|voice| {
            let settings = settings(voice)?;
            let places = models::search_path(Some(&voice.models));
            let model =
                models::load(&places).map_err(|e| Failure::new(exit::CONFIG, e.to_string()))?;
            let model: Arc<Model> = Arc::new(model);
            // Made once here, so that a wrong keyphrase ends the start with its message.
            let mut first =
                Some(detector(&model, &settings).map_err(|e| Failure::new(exit::CONFIG, e))?);
            Ok(Box::new(move || {
                let made = first.take().map_or_else(|| detector(&model, &settings), Ok)?;
                Ok(Box::new(made) as Box<dyn Listener>)
            }))
        }))
    }

    /// Whatever `make` makes; called again after a failure.
    pub fn custom(mut make: impl FnMut() -> Box<dyn Listener> + Send + 'static) -> Self {
        Self(Box::new(|_| Ok(Box::new(move || Ok(make())))))
    }
}

fn detector(model: &Arc<Model>, settings: &Settings) -> Result<Detector, String> {
    Detector::new(Arc::clone(model), settings).map_err(|e| format!("voice.keyphrases: {e}"))
}

fn settings(voice: &config::Voice) -> Result<Settings, Failure> {
    let keyphrases = voice.keyphrases.iter().map(|phrase| match &phrase.phonemes {
        Some(phonemes) => Ok(Keyphrase::new(&phrase.text, phonemes)),
        None => Keyphrase::builtin(&phrase.text),
    });
    let keyphrases = keyphrases
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| Failure::new(exit::CONFIG, format!("voice.keyphrases: {e}")))?;
    let threshold = match voice.sensitivity {
        Sensitivity::Threshold(threshold) => threshold,
        Sensitivity::Point(config::Point::Sensitive) => OperatingPoint::Sensitive.threshold(),
        Sensitivity::Point(config::Point::Balanced) => OperatingPoint::Balanced.threshold(),
        Sensitivity::Point(config::Point::Quiet) => OperatingPoint::Quiet.threshold(),
    };
    Ok(Settings { keyphrases, threshold, cooldown: voice.cooldown })
}

/// What the thread needs, checked.
pub(super) struct Plan {
    input: Input,
    make: MakeListener,
}

#[derive(Clone)]
enum Input {
    Device(String),
    Wav(PathBuf),
}

/// Checks input, keyphrases and weights; `None` where nothing is listened to.
///
/// # Errors
/// 78 or 74: the weights, a keyphrase or the WAV file is not usable.
pub(super) fn plan(config: &Config, factory: ListenerFactory) -> Result<Option<Plan>, Failure> {
    let input = match &config.audio {
        AudioInput::None => {
            tracing::warn!("audio.input is \"none\": this device does not listen");
            return Ok(None);
        }
        AudioInput::Device(name) => Input::Device(name.clone()),
        AudioInput::Wav(path) => {
            wav_source::check(path).map_err(|e| Failure::new(exit::IO, e.to_string()))?;
            Input::Wav(path.clone())
        }
    };
    let make = (factory.0)(&config.voice)?;
    Ok(Some(Plan { input, make }))
}

/// Starts the thread.
pub(super) fn start(supervisor: &mut Supervisor, plan: Plan, reporter: &Reporter, clock: Clock) {
    let Plan { input, mut make } = plan;
    let reporter = reporter.clone();
    supervisor.thread(Stage::Source, "detector", BUDGET, move |stop| {
        let mut ear = Ear { listener: make()?, reporter: &reporter, meter: Meter::new() };
        while !stop.is_set() {
            match open(&input, clock) {
                Ok(stream) => listen(stream, &mut ear, &stop, clock)?,
                Err(problem) => reporter.raise_blocking(MICROPHONE, &problem),
            }
            stop.sleep(REOPEN);
        }
        Ok(())
    });
}

fn open(input: &Input, clock: Clock) -> Result<AudioStream, String> {
    match input {
        Input::Device(name) => microphone::open(name, clock).map_err(|e| e.to_string()),
        Input::Wav(path) => wav_source::open(path, clock).map_err(|e| e.to_string()),
    }
}

/// Returns when the stream has ended or is to end; `Err` is the detector's failure.
fn listen(mut stream: AudioStream, ear: &mut Ear<'_>, stop: &Stop, clock: Clock) -> Outcome {
    let name = stream.name().to_owned();
    tracing::info!("listening to {name}");
    ear.reporter.happened(Happening::Listening(name.clone()));
    let mut samples = Vec::with_capacity(SAMPLE_RATE_HZ as usize);
    let mut overruns = 0;
    while !stop.is_set() {
        samples.clear();
        match stream.read(&mut samples) {
            StreamStatus::Data => {
                ear.reporter.clear_blocking(MICROPHONE);
                ear.hear(&samples)?;
            }
            StreamStatus::Waiting => {}
        }
        let lost = stream.overruns();
        if lost > overruns {
            tracing::warn!(samples = lost - overruns, "audio overrun: sound was lost");
            overruns = lost;
        }
        if stream.is_stale(clock.now()) {
            let problem = format!("{name} gives no sound any more; it is opened again");
            ear.reporter.raise_blocking(MICROPHONE, &problem);
            return Ok(());
        }
    }
    Ok(())
}

struct Ear<'a> {
    listener: Box<dyn Listener>,
    reporter: &'a Reporter,
    meter: Meter,
}

impl Ear<'_> {
    fn hear(&mut self, samples: &[f32]) -> Outcome {
        let reporter = self.reporter;
        self.meter.push(samples, |level| reporter.happened(Happening::Level(level.rms_dbfs)));
        for Detection { phrase, score, level_dbfs, .. } in self.listener.push(samples)? {
            tracing::warn!(phrase, score, level_dbfs, "keyphrase detected");
            reporter.happened(Happening::Detected { phrase: phrase.clone(), score });
            let model = Model::NAME.to_owned();
            let heard = Occurrence::KeyphraseDetected { phrase, score, model, level_dbfs };
            reporter.report_blocking(&heard)?;
        }
        Ok(())
    }
}
