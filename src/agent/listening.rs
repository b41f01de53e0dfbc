//! The thread that listens: audio in, detections out, as events in the outbox.
//!
//! The microphone may be missing, vanish or come back: that is a fault with a beginning and an end,
//! not a failure of the thread, which opens it again every [`REOPEN`]. A detector that panics or
//! fails ends the thread; the supervisor starts it anew with a fresh detector.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::alarming::AlarmHandle;
use super::reporter::lock;
use super::{BUDGET, Happening, Reporter};
use crate::alarm::Kind;
use crate::audio::{Health, Loudness, Meter, Rate, SAMPLE_RATE_HZ};
use crate::cli::{Failure, exit};
use crate::clock::Clock;
use crate::config::{self, AudioInput, Config, Confirm, Sensitivity};
use crate::driver::audio_file::AudioFile;
use crate::driver::audio_stream::{AudioStream, StreamError};
use crate::driver::recogniser::{self, Handle, RecogniserError};
use crate::driver::{microphone, models, wav_source};
use crate::event::catalogue::Occurrence;
use crate::supervisor::{Outcome, Stage, Stop, Supervisor};
use crate::voice::{Agreement, Detection, Detector, Keyphrase, Model, OperatingPoint, Settings};

/// Between two attempts to open the microphone.
const REOPEN: Duration = Duration::from_secs(5);
/// How long one look for sound may take: the time within which the end of the agent is noticed.
const READ: Duration = Duration::from_millis(200);
/// Files that wait to be played at most.
const MAX_ENCORE: usize = 1024;
/// Its name as a service.
pub(super) const SERVICE: &str = "detector";
/// The part that is at fault when no sound comes.
pub(super) const MICROPHONE: &str = "microphone";

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
/// Gives what [`Plan::confirmer`] says beside the maker.
type PlanListener =
    Box<dyn FnMut(&config::Voice) -> Result<(MakeListener, &'static str), Failure> + Send>;

/// Plans a listener from the configuration, and makes one for each run of the thread. Cheap to clone.
#[derive(Clone)]
pub struct ListenerFactory(Arc<Mutex<PlanListener>>);

impl std::fmt::Debug for ListenerFactory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ListenerFactory")
    }
}

impl ListenerFactory {
    /// The voice detector with its weights from the disk.
    pub fn detector() -> Self {
        let mut kept: Option<Weights> = None;
        Self::new(Box::new(move |voice| {
            let settings = settings(voice)?;
            // Two recognisers at once are more than a small device holds.
            let known = kept.take_if(|kept| kept.models == voice.models);
            let known = known.filter(|kept| kept.confirm == voice.confirm);
            let weights = match known {
                Some(weights) => weights,
                None => Weights::load(voice)?,
            };
            let Weights { model, recogniser, .. } = kept.insert(weights).clone();
            let confirmer = match (&recogniser, voice.confirm) {
                (Some(_), _) => recogniser::NAME,
                (None, Confirm::Off) => "off",
                (None, _) => "absent",
            };
            let make = move || {
                let mut made = detector(&model, &settings)?;
                if let Some(recogniser) = &recogniser {
                    made.confirm_with(recogniser.connect(), false);
                }
                Ok(made)
            };
            // Made once here, so that a wrong keyphrase ends the start with its message.
            let mut first = Some(make().map_err(|e: String| Failure::new(exit::CONFIG, e))?);
            let make: MakeListener = Box::new(move || {
                let made = first.take().map_or_else(&make, Ok)?;
                Ok(Box::new(made) as Box<dyn Listener>)
            });
            Ok((make, confirmer))
        }))
    }

    /// Whatever `make` makes; called again after a failure.
    pub fn custom(make: impl FnMut() -> Box<dyn Listener> + Send + 'static) -> Self {
        let make = Arc::new(Mutex::new(make));
        Self::new(Box::new(move |_| {
            let make = Arc::clone(&make);
            Ok((Box::new(move || Ok(lock(&make)())), "off"))
        }))
    }

    fn new(plan: PlanListener) -> Self {
        Self(Arc::new(Mutex::new(plan)))
    }
}

/// What takes time and memory to load: kept for the next plan.
#[derive(Clone)]
struct Weights {
    models: PathBuf,
    confirm: Confirm,
    model: Arc<Model>,
    recogniser: Option<Handle>,
}

impl Weights {
    fn load(voice: &config::Voice) -> Result<Self, Failure> {
        let places = models::search_path(Some(&voice.models));
        let model = models::load(&places).map_err(|e| Failure::new(exit::CONFIG, e.to_string()))?;
        let recogniser = recogniser(voice.confirm, &places)?;
        let (models, confirm) = (voice.models.clone(), voice.confirm);
        Ok(Self { models, confirm, model: Arc::new(model), recogniser })
    }
}

fn detector(model: &Arc<Model>, settings: &Settings) -> Result<Detector, String> {
    Detector::new(Arc::clone(model), settings).map_err(|e| format!("voice.keyphrases: {e}"))
}

/// The second stage, as far as it is wanted and there.
fn recogniser(confirm: Confirm, places: &[PathBuf]) -> Result<Option<Handle>, Failure> {
    if confirm == Confirm::Off {
        return Ok(None);
    }
    match recogniser::load(places) {
        Ok(handle) => {
            tracing::info!("doubtful keyphrases are confirmed by {}", recogniser::NAME);
            Ok(Some(handle))
        }
        Err(error @ RecogniserError::Unusable { .. }) if confirm == Confirm::Auto => {
            tracing::warn!("nothing is confirmed: {error}, or set voice.confirm to \"off\"");
            Ok(None)
        }
        Err(error) if confirm == Confirm::Auto => {
            tracing::info!("voice.confirm is \"auto\" and nothing is confirmed: {error}");
            Ok(None)
        }
        Err(error) => Err(Failure::new(exit::CONFIG, format!("voice.confirm: {error}"))),
    }
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
    /// The second stage: its weights, `off` or `absent`.
    pub(super) confirmer: &'static str,
}

enum Input {
    Device(String),
    /// Played one after the other; the last is followed by silence.
    Files {
        now: PathBuf,
        next: Encore,
    },
}

/// Files that are played after the one that plays now. Cheap to clone; all clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Encore(Arc<Mutex<VecDeque<PathBuf>>>);

impl Encore {
    /// Has another one played; false if too many wait.
    pub fn push(&self, file: PathBuf) -> bool {
        let mut files = lock(&self.0);
        let room = files.len() < MAX_ENCORE;
        if room {
            files.push_back(file);
        }
        room
    }

    fn pop(&self) -> Option<PathBuf> {
        lock(&self.0).pop_front()
    }

    fn is_empty(&self) -> bool {
        lock(&self.0).is_empty()
    }
}

/// Checks input, keyphrases and weights; `None` where nothing is listened to. `encore` are files
/// to play after the one that the configuration names.
///
/// # Errors
/// 78 or 74: the weights, a keyphrase or a file is not usable.
pub(super) fn plan(
    config: &Config,
    encore: Encore,
    factory: &ListenerFactory,
) -> Result<Option<Plan>, Failure> {
    let input = match &config.audio {
        AudioInput::None => {
            tracing::warn!("audio.input is \"none\": this device does not listen");
            return Ok(None);
        }
        AudioInput::Device(name) => Input::Device(name.clone()),
        AudioInput::Wav(path) => {
            for file in std::iter::once(path).chain(&*lock(&encore.0)) {
                AudioFile::open(file).map_err(|e| Failure::new(exit::IO, e.to_string()))?;
            }
            Input::Files { now: path.clone(), next: encore }
        }
    };
    let (make, confirmer) = lock(&factory.0)(&config.voice)?;
    Ok(Some(Plan { input, make, confirmer }))
}

/// Starts the thread.
///
/// How loud it is goes to `loudness` as well, where a sensor of noise reads it.
///
/// `alarms` where what is heard makes an alarm.
pub(super) fn start(
    supervisor: &mut Supervisor,
    plan: Plan,
    reporter: &Reporter,
    alarms: Option<AlarmHandle>,
    clock: Clock,
    loudness: &Arc<Loudness>,
) {
    let Plan { mut input, mut make, .. } = plan;
    let (reporter, loudness) = (reporter.clone(), Arc::clone(loudness));
    supervisor.thread(Stage::Source, SERVICE, BUDGET, move |stop| {
        let meter = Meter::new();
        let (listener, alarms, loudness) = (make()?, alarms.as_ref(), &*loudness);
        let mut ear = Ear { listener, reporter: &reporter, alarms, meter, loudness, watch: None };
        while !stop.is_set() {
            let problem = match input.open(clock) {
                Ok(stream) => match listen(stream, &input, &mut ear, &stop, clock)? {
                    Silence::Wanted => {
                        input.next_file();
                        continue;
                    }
                    Silence::Fault(problem) => problem,
                },
                Err(error) => error.to_string(),
            };
            let again = format!("{problem}; trying again every {} s", REOPEN.as_secs());
            reporter.raise_blocking(MICROPHONE, &again);
            stop.sleep(REOPEN);
        }
        Ok(())
    });
}

impl Input {
    fn open(&self, clock: Clock) -> Result<AudioStream, StreamError> {
        match self {
            Self::Device(name) => microphone::open(name, clock),
            Self::Files { now, .. } => wav_source::open(now, clock),
        }
    }

    /// Files are what they are: followed by digital silence, and perhaps clipped.
    fn is_device(&self) -> bool {
        matches!(self, Self::Device(_))
    }

    fn name(&self) -> String {
        match self {
            Self::Device(name) => name.clone(),
            Self::Files { now, .. } => now.display().to_string(),
        }
    }

    /// Whether another file is to be played after this one.
    fn has_next_file(&self) -> bool {
        matches!(self, Self::Files { next, .. } if !next.is_empty())
    }

    fn next_file(&mut self) {
        if let Self::Files { now, next } = self
            && let Some(file) = next.pop()
        {
            *now = file;
        }
    }
}

/// Why a stream is listened to no longer.
enum Silence {
    /// The agent ends, or another file is to be played.
    Wanted,
    /// No sound comes, and this is why.
    Fault(String),
}

/// Returns when the stream has ended or is to end; `Err` is the detector's failure.
fn listen(
    mut stream: AudioStream,
    input: &Input,
    ear: &mut Ear<'_>,
    stop: &Stop,
    clock: Clock,
) -> Result<Silence, String> {
    let (name, health) = (input.name(), stream.health());
    ear.watch = input.is_device().then(Watch::default);
    tracing::info!("listening to {name}");
    ear.reporter.happened(Happening::Listening(name.clone()));
    let mut samples = Vec::with_capacity(SAMPLE_RATE_HZ as usize);
    let mut overruns = 0;
    while !stop.is_set() {
        samples.clear();
        match stream.read_within(READ, &mut samples) {
            // Only where nothing waits: a detector that is slow on a busy machine is no dead card.
            Ok(0) if stream.is_stale(clock.now()) => {
                return Ok(Silence::Fault(format!("{name} gives no sound any more")));
            }
            Ok(0) => {}
            Ok(_) => {
                ear.watch(&samples, clock.now());
                ear.hear(&samples)?;
            }
            Err(error) => return Ok(Silence::Fault(error.to_string())),
        }
        let lost = health.overruns();
        if lost > overruns {
            tracing::warn!(frames = lost - overruns, "audio overrun: sound was lost");
            overruns = lost;
            ear.overrun();
        }
        if let Some(failure) = health.failure() {
            return Ok(Silence::Fault(failure));
        }
        if health.played() && input.has_next_file() {
            break;
        }
    }
    Ok(Silence::Wanted)
}

struct Ear<'a> {
    listener: Box<dyn Listener>,
    reporter: &'a Reporter,
    alarms: Option<&'a AlarmHandle>,
    meter: Meter,
    loudness: &'a Loudness,
    /// Of a device.
    watch: Option<Watch>,
}

/// Whether the sound of a device is that of a microphone.
#[derive(Default)]
struct Watch {
    health: Health,
    rate: Rate,
    /// What was said of it last: once is enough.
    told: bool,
}

impl Ear<'_> {
    /// Raises and clears the fault of the microphone by what it sounds like.
    fn watch(&mut self, samples: &[f32], now: Instant) {
        let Some(Watch { health, rate, told }) = &mut self.watch else {
            return self.reporter.clear_blocking(MICROPHONE);
        };
        health.push(samples);
        rate.count(samples.len(), now);
        let wrong_rate = |times: f64| {
            format!(
                "wrong rate: it gives {times:.1} times the samples that it says; check the sound card and its driver"
            )
        };
        let ailment = health.at_fault().map(|ailment| ailment.to_string());
        let ailment = ailment.or_else(|| rate.at_fault().map(wrong_rate));
        let was_told = std::mem::replace(told, ailment.is_some());
        match ailment {
            Some(_) if was_told => {}
            Some(ailment) => self.reporter.raise_blocking(MICROPHONE, &ailment),
            None => self.reporter.clear_blocking(MICROPHONE),
        }
    }

    fn overrun(&mut self) {
        if let Some(watch) = &mut self.watch {
            watch.health.overrun();
        }
    }

    fn hear(&mut self, samples: &[f32]) -> Outcome {
        let reporter = self.reporter;
        self.meter.push(samples, |level| {
            self.loudness.add(level);
            reporter.happened(Happening::Level(level.rms_dbfs));
        });
        for Detection { phrase, score, level_dbfs, at, agreement } in self.listener.push(samples)? {
            let stages: &[&str] = match agreement {
                Agreement::FirstStage => &["phonemes"],
                Agreement::Confirmed => &["phonemes", "recogniser"],
            };
            tracing::warn!(phrase, score, level_dbfs, ?stages, "keyphrase detected");
            reporter.happened(Happening::Detected { phrase: phrase.clone(), score, at });
            let model = Model::NAME.to_owned();
            let text = format!("\"{phrase}\" was heard");
            let heard = Occurrence::KeyphraseDetected { phrase, score, model, level_dbfs, stages };
            match self.alarms {
                Some(alarms) => alarms.trigger_blocking(&heard, Kind::Keyphrase, text)?,
                None => reporter.report_blocking(&heard)?,
            }
        }
        Ok(())
    }
}
