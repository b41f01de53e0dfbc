//! The thread that has sensors read when they are due, and the two tasks that store what it tells.
//!
//! ```text
//!  sensor-reader (threads) ─▶ sensors (thread) ─┬─ readings ─▶ task ─▶ outbox, many in one commit
//!                                               └─ thresholds, faults ─▶ task ─▶ outbox, at once
//! ```
//!
//! Reading may hang, storing may wait for company in a commit: the thread between does neither, but for a
//! threshold that makes an alarm, which is stored before anything else is read. Both queues are bounded; while one is full nothing is measured, since what cannot be stored need not be.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, mpsc};

use super::alarming::AlarmHandle;
use super::{Activity, BUDGET, Happening, Reporter};
use crate::alarm::Kind;
use crate::audio::Loudness;
use crate::cli::{Failure, exit};
use crate::clock::Clock;
use crate::config::{self, Config, SignKind, Source, Urgency};
use crate::driver::sensors::{Done, Measured, Probe, Readers, SLOW};
use crate::event::catalogue::Occurrence;
use crate::event::{Event, Lane};
use crate::sensor::{Ailment, News, Power, PowerNews, Raw, Sensor};
use crate::supervisor::{Outcome, Stage, Stop, Supervisor};

/// A read that takes longer does not answer.
const READ_LIMIT: Duration = Duration::from_secs(2);
/// The longest sleep: the time within which the end of the agent is noticed.
const NAP: Duration = Duration::from_secs(1);
/// Readings, and news, that wait to be stored at most.
const QUEUED: usize = 256;
/// Between two attempts to store a threshold that makes an alarm.
const AGAIN: Duration = Duration::from_secs(1);
/// Readings stored in one go at most.
const BATCH: usize = 64;

/// The names of its services; what makes before what stores.
pub(super) const SERVICES: [&str; 3] = ["sensors", "sensor-readings", "sensor-news"];

/// The faults that these sensors can have.
pub(super) fn faults(sensors: &[config::Sensor]) -> Vec<String> {
    let supplies = sensors.iter().filter_map(|sensor| match &sensor.source {
        Source::PowerSupply { supply, .. } => Some(Ailment::of(*supply).part().to_owned()),
        _ => None,
    });
    sensors.iter().map(|sensor| part(&sensor.name)).chain(supplies).collect()
}

/// Apart from parts that are not sensors: one may be called `mains`, or `microphone`.
fn part(sensor: &str) -> String {
    format!("sensor.{sensor}")
}

/// What the thread needs, checked.
#[derive(Debug)]
pub(super) struct Plan {
    sensors: Vec<config::Sensor>,
}

/// The clock of this process, and the one of what is measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clocks {
    pub(super) clock: Clock,
    pub(super) world: Clock,
}

/// Checks the recordings; `None` where there is no sensor.
///
/// # Errors
/// 78: a recording cannot be used.
pub(super) fn plan(config: &Config) -> Result<Option<Plan>, Failure> {
    for sensor in &config.sensors {
        if let Source::Replay(path) = &sensor.source {
            Probe::replay(path).map_err(|e| {
                Failure::new(exit::CONFIG, format!("sensor.{}.path: {e}", sensor.name))
            })?;
        }
    }
    let sensors = config.sensors.clone();
    Ok((!sensors.is_empty()).then_some(Plan { sensors }))
}

fn probe(source: &Source, loudness: &Arc<Loudness>) -> Result<Probe, String> {
    Ok(match source {
        Source::Iio { path, trigger: None } => Probe::iio(path),
        Source::Iio { path, trigger: Some(trigger) } => Probe::iio_buffer(path, trigger),
        Source::Hwmon(path) => Probe::number(path),
        Source::Thermal(path) => Probe::thermal(path),
        Source::PowerSupply { path, .. } => Probe::supply(path),
        Source::File { path, pointer } => Probe::file(path, pointer.as_deref()),
        Source::Replay(path) => Probe::replay(path)?,
        Source::Microphone => Probe::microphone(Arc::clone(loudness)),
    })
}

/// Reads every sensor once: its name, and what it shows or why it shows nothing.
pub(super) fn examine(config: &Config, clock: Clock) -> Vec<(String, Result<String, String>)> {
    let (mut readers, now, silent) = (Readers::new(clock), clock.now(), Arc::default());
    // Loudness is measured while the agent listens; the microphone is a finding of its own.
    let sensors = config.sensors.iter().filter(|s| s.source != Source::Microphone);
    let sensors: Vec<&config::Sensor> = sensors.collect();
    let mut results: Vec<Option<Result<String, String>>> = Vec::new();
    for (place, settings) in sensors.iter().enumerate() {
        let asked = probe(&settings.source, &silent).and_then(|probe| {
            readers.submit(now, place, probe).map_err(|e| format!("start a thread: {e}"))
        });
        results.push(asked.err().map(Err));
    }
    while results.contains(&None) && clock.now().duration_since(now) < READ_LIMIT {
        let Some(Done { place, measured, .. }) = readers.next(clock.now(), SLOW) else {
            continue;
        };
        let settings = sensors[place];
        let raw = match (&settings.source, &measured.condition) {
            (Source::PowerSupply { supply, .. }, Some(condition)) => {
                Power::new(*supply).value(condition).map(|value| Raw { value, age: Duration::ZERO })
            }
            _ => measured.raw,
        };
        let value = raw.and_then(|raw| Sensor::new(settings.clone(), now).value(raw));
        let shown = value.map(|value| format!("{} {value} {}", settings.quantity, settings.unit));
        results[place] = Some(shown);
    }
    let answer = |result: Option<_>| result.unwrap_or_else(|| Err(no_answer()));
    let names = sensors.iter().map(|settings| settings.name.clone());
    names.zip(results.into_iter().map(answer)).collect()
}

fn no_answer() -> String {
    format!("does not answer: a read takes more than {} s", READ_LIMIT.as_secs())
}

/// Starts the thread and its tasks.
pub(super) fn start(
    supervisor: &mut Supervisor,
    plan: Plan,
    reporter: &Reporter,
    clocks: Clocks,
    loudness: Arc<Loudness>,
    activity: Activity,
    alarms: &AlarmHandle,
) {
    let (readings, stored) = mpsc::channel(QUEUED);
    let (news, told) = mpsc::channel(QUEUED);
    store_readings(supervisor, reporter, stored);
    tell_news(supervisor, reporter, told);
    let (reporter, alarms) = (reporter.clone(), alarms.clone());
    supervisor.thread(Stage::Source, SERVICES[0], BUDGET, move |stop| {
        let (readings, news) = (readings.clone(), news.clone());
        let (reporter, activity, alarms) = (reporter.clone(), activity.clone(), alarms.clone());
        let out = Out { reporter, activity, alarms, readings, news, clocks, stop: stop.clone() };
        Sensing::new(&plan, &loudness, out)?.run(&stop)
    });
}

/// Readings wait for company: many share a commit.
fn store_readings(
    supervisor: &mut Supervisor,
    reporter: &Reporter,
    readings: mpsc::Receiver<(Lane, Event)>,
) {
    let readings = Arc::new(Mutex::new(readings));
    let reporter = reporter.clone();
    supervisor.task(Stage::Source, SERVICES[1], BUDGET, move |mut stop| {
        let (readings, reporter) = (Arc::clone(&readings), reporter.clone());
        async move {
            let mut readings = readings.lock().await;
            let mut refused = false;
            loop {
                let mut batch = Vec::with_capacity(BATCH);
                tokio::select! {
                    biased;
                    taken = readings.recv_many(&mut batch, BATCH) => if taken == 0 { return Ok(()) },
                    () = stop.wait() => return Ok(()),
                }
                // The outbox has told of a full disk itself; here it is said once that readings are lost.
                match reporter.commit(batch, Vec::new()).await {
                    Ok(_) => refused = false,
                    Err(error) if !refused => {
                        tracing::warn!("readings are not stored: {error}");
                        refused = true;
                    }
                    Err(_) => {}
                }
            }
        }
    });
}

/// What is told at once.
#[derive(Debug)]
enum Word {
    Event(Lane, Box<Event>),
    Raise { part: String, problem: String },
    Clear { part: String },
}

fn tell_news(supervisor: &mut Supervisor, reporter: &Reporter, news: mpsc::Receiver<Word>) {
    let news = Arc::new(Mutex::new(news));
    let reporter = reporter.clone();
    supervisor.task(Stage::Source, SERVICES[2], BUDGET, move |mut stop| {
        let (news, reporter) = (Arc::clone(&news), reporter.clone());
        async move {
            let mut news = news.lock().await;
            loop {
                let word = tokio::select! {
                    biased;
                    word = news.recv() => word,
                    () = stop.wait() => None,
                };
                match word {
                    None => return Ok(()),
                    Some(Word::Event(lane, event)) => {
                        // Refused where alerts have filled the outbox: no reason to end.
                        if let Err(error) = reporter.commit(vec![(lane, *event)], Vec::new()).await
                        {
                            tracing::error!("a sensor's event is not recorded: {error}");
                        }
                    }
                    Some(Word::Raise { part, problem }) => reporter.raise(&part, &problem).await,
                    Some(Word::Clear { part }) => reporter.clear(&part).await,
                }
            }
        }
    });
}

/// Where the thread puts what it has to say.
struct Out {
    reporter: Reporter,
    activity: Activity,
    alarms: AlarmHandle,
    readings: mpsc::Sender<(Lane, Event)>,
    news: mpsc::Sender<Word>,
    clocks: Clocks,
    stop: Stop,
}

impl Out {
    /// Waits for room, unless the agent ends.
    fn send<T>(&self, queue: &mpsc::Sender<T>, mut item: T) {
        while let Err(mpsc::error::TrySendError::Full(back)) = queue.try_send(item) {
            if self.stop.is_set() {
                tracing::warn!("the agent ends with something untold of the sensors");
                return;
            }
            item = back;
            self.stop.sleep(Duration::from_millis(50));
        }
    }

    fn event(&self, occurrence: &Occurrence) {
        match self.reporter.make_at(occurrence, self.clocks.world.wall()) {
            Ok((Lane::Telemetry, event)) => self.send(&self.readings, (Lane::Telemetry, event)),
            Ok((lane, event)) => self.send(&self.news, Word::Event(lane, Box::new(event))),
            Err(error) => tracing::error!("an event of a sensor breaks the rules: {error}"),
        }
    }

    fn raise(&self, part: &str, problem: String) {
        self.send(&self.news, Word::Raise { part: part.to_owned(), problem });
    }

    fn clear(&self, part: &str) {
        self.send(&self.news, Word::Clear { part: part.to_owned() });
    }

    fn reading(&self, sensor: &str, quantity: &str, value: f64, unit: &'static str) {
        let (name, quantity) = (sensor.to_owned(), quantity.to_owned());
        self.reporter.happened(Happening::Reading {
            sensor: name.clone(),
            quantity: quantity.clone(),
            value,
            unit,
        });
        self.event(&Occurrence::SensorReading { name, quantity, value, unit });
    }

    fn threshold(&self, settings: &config::Sensor, place: usize, exceeded: bool, value: f64) {
        let Some(threshold) = settings.thresholds.get(place) else { return };
        let unit = settings.unit.code();
        self.reporter.happened(Happening::Threshold {
            sensor: settings.name.clone(),
            threshold: threshold.name.clone(),
            exceeded,
            value,
            unit,
        });
        let occurrence = Occurrence::Threshold {
            exceeded,
            lane: lane(threshold.urgency),
            severity: threshold.severity,
            name: settings.name.clone(),
            threshold: threshold.name.clone(),
            quantity: settings.quantity.clone(),
            value,
            level: threshold.level,
            unit,
        };
        if !exceeded || threshold.urgency == Urgency::Status {
            return self.event(&occurrence);
        }
        let text = format!("{}: {} ({value} {unit})", settings.name, threshold.name);
        // It is exceeded once: nothing would bring it up again.
        while let Err(error) =
            self.alarms.trigger_blocking(&occurrence, Kind::Threshold, text.clone())
        {
            tracing::error!("a threshold made no alarm, trying again: {error}");
            if self.stop.is_set() {
                return;
            }
            self.stop.sleep(AGAIN);
        }
    }
}

pub(super) fn lane(urgency: Urgency) -> Lane {
    match urgency {
        Urgency::Status => Lane::Status,
        Urgency::Alert => Lane::Alert,
    }
}

/// One sensor and whether it is being read.
struct Sensed {
    sensor: Sensor,
    power: Option<Power>,
    /// `None` while a reader has it.
    probe: Option<Probe>,
    /// While a reader has it: until when it may answer.
    answer_by: Instant,
}

struct Sensing {
    sensors: Vec<Sensed>,
    readers: Readers,
    out: Out,
}

impl Sensing {
    fn new(plan: &Plan, loudness: &Arc<Loudness>, out: Out) -> Result<Self, String> {
        let now = out.clocks.world.now();
        let sensed = |settings: &config::Sensor| {
            let power = match settings.source {
                Source::PowerSupply { supply, .. } => Some(Power::new(supply)),
                _ => None,
            };
            let probe = Some(probe(&settings.source, loudness)?);
            let sensor = Sensor::new(settings.clone(), now);
            Ok(Sensed { sensor, power, probe, answer_by: now })
        };
        let sensors = plan.sensors.iter().map(sensed).collect::<Result<_, String>>()?;
        Ok(Self { sensors, readers: Readers::new(out.clocks.world), out })
    }

    fn run(mut self, stop: &Stop) -> Outcome {
        let failed = |e: std::io::Error| format!("start a thread that reads sensors: {e}");
        while !stop.is_set() {
            self.ask().map_err(failed)?;
            let patience = self.patience();
            let now = self.out.clocks.clock.now();
            let mut next = self.readers.next(now, patience);
            while let Some(done) = next {
                self.take(done);
                let now = self.out.clocks.clock.now();
                next = self.readers.next(now, Duration::ZERO);
            }
        }
        Ok(())
    }

    /// Has read what is due, and counts as failed what does not answer.
    fn ask(&mut self) -> std::io::Result<()> {
        let Clocks { clock, world } = self.out.clocks;
        let (now, there) = (clock.now(), world.now());
        for (place, sensed) in self.sensors.iter_mut().enumerate() {
            match sensed.probe.take() {
                Some(probe) if sensed.sensor.due() <= there => {
                    sensed.answer_by = now + READ_LIMIT;
                    self.readers.submit(now, place, probe)?;
                }
                Some(probe) => sensed.probe = Some(probe),
                None if sensed.answer_by <= now => {
                    sensed.answer_by = now + READ_LIMIT;
                    let news = sensed.sensor.handle(there, Err(no_answer()));
                    self.out.tell(sensed.sensor.settings(), news);
                }
                None => {}
            }
        }
        Ok(())
    }

    /// How long there is nothing to do but to wait for readers.
    fn patience(&self) -> Duration {
        let Clocks { clock, world } = self.out.clocks;
        let (now, there) = (clock.now(), world.now());
        let wait = |sensed: &Sensed| match sensed.probe {
            Some(_) => world.real(sensed.sensor.due().saturating_duration_since(there)),
            None => sensed.answer_by.saturating_duration_since(now),
        };
        let soonest = self.sensors.iter().map(wait).min().unwrap_or(NAP);
        soonest.min(if self.readers.is_waiting() { SLOW } else { NAP })
    }

    fn take(&mut self, done: Done) {
        let Done { place, probe, measured: Measured { raw, condition }, .. } = done;
        let Some(sensed) = self.sensors.get_mut(place) else { return };
        sensed.probe = Some(probe);
        let raw = match (&mut sensed.power, condition) {
            (Some(power), Some(condition)) => {
                let quantity = &sensed.sensor.settings().name;
                for news in power.handle(&condition) {
                    self.out.tell_power(quantity, news);
                }
                power.value(&condition).map(|value| Raw { value, age: Duration::ZERO })
            }
            _ => raw,
        };
        let news = sensed.sensor.handle(self.out.clocks.world.now(), raw);
        self.out.tell(sensed.sensor.settings(), news);
    }
}

impl Out {
    fn tell(&self, settings: &config::Sensor, news: Vec<News>) {
        let name = &settings.name;
        for news in news {
            match news {
                News::Reading(value) => {
                    self.reading(name, &settings.quantity, value, settings.unit.code());
                }
                News::Exceeded(place, value) => self.threshold(settings, place, true, value),
                News::Cleared(place, value) => self.threshold(settings, place, false, value),
                News::Failed(problem) => self.raise(&part(name), problem),
                News::Works => self.clear(&part(name)),
                News::Activity => {
                    let kind = settings.activity.map(|sign| sign.kind);
                    self.activity.sign(name, kind == Some(SignKind::Door));
                }
            }
        }
    }

    fn tell_power(&self, name: &str, news: PowerNews) {
        match news {
            PowerNews::Raised(ailment, problem) => self.raise(ailment.part(), problem),
            PowerNews::Cleared(ailment) => self.clear(ailment.part()),
            PowerNews::Charging(charging) => {
                self.reading(name, "charging", f64::from(u8::from(charging)), "1");
            }
        }
    }
}
