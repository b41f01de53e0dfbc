//! The thread that watches over the daily rhythm of the home, and remembers it.
//!
//! Signs of activity come from sensors, and from whoever else holds an [`Activity`]. What was learned stands in a
//! file beside the outbox (`docs/adr/0017`), written when something of it has changed: about once an hour. The
//! event comes first: after a crash between the two it is told once more, and never lost.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use tokio::sync::oneshot;

use super::alarming::AlarmHandle;
use super::reporter::lock;
use super::sensing::{Clocks, lane};
use super::{BUDGET, Happening, Reporter};
use crate::alarm::Kind;
use crate::clock::{WallTime, Zone};
use crate::config::{self, Config, Urgency};
use crate::driver::memory_file;
use crate::event::catalogue::Occurrence;
use crate::sensor::inactivity::{Away, Finding, Inactivity, Memory, Silence};
use crate::supervisor::{Outcome, Stage, Stop, Supervisor};

/// Signs that wait at most; more of them say nothing more.
const QUEUED: usize = 256;
/// How often the watch looks at the clock.
const LOOK: Duration = Duration::from_secs(60);
/// The longest sleep: the time within which the end of the agent is noticed.
const NAP: Duration = Duration::from_secs(1);
/// Its name as a service.
pub(super) const SERVICE: &str = "activity";
/// The part at fault when its memory is.
const PART: &str = "activity";

/// What the thread needs, checked.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Plan {
    settings: config::Activity,
    zone: Zone,
    file: PathBuf,
}

/// `None` where no sensor shows activity.
pub(super) fn plan(config: &Config, zone: &Zone) -> Option<Plan> {
    let watched = config.sensors.iter().any(|sensor| sensor.activity.is_some());
    let file = activity_file(&config.outbox.path);
    watched.then(|| Plan { settings: config.activity.clone(), zone: zone.clone(), file })
}

/// Where the rhythm is remembered: `/var/lib/hark/outbox` → `/var/lib/hark/outbox.activity`.
pub fn activity_file(outbox: &Path) -> PathBuf {
    let mut name = outbox.as_os_str().to_owned();
    name.push(".activity");
    name.into()
}

#[derive(Debug)]
enum Message {
    Sign { source: String, door: bool },
    Away { away: Option<Away>, remembered: oneshot::Sender<Result<(), String>> },
}

/// Tells the watch of signs of activity and of holidays. Cheap to clone; while nothing is watched
/// over, signs go nowhere.
#[derive(Debug, Clone, Default)]
pub struct Activity(Arc<Mutex<Option<mpsc::SyncSender<Message>>>>);

impl Activity {
    /// Somebody is about, as `source` shows; `door`: and may have left.
    pub fn sign(&self, source: &str, door: bool) {
        if let Some(messages) = &*lock(&self.0) {
            // Full: there were hundreds of signs just now.
            let _ = messages.try_send(Message::Sign { source: source.to_owned(), door });
        }
    }

    /// Begins (`until_ms` since 1970, or without end) or ends a holiday; returns once that is
    /// remembered on the disk.
    ///
    /// # Errors
    /// One line: nothing is watched over, or it could not be remembered.
    pub async fn set_away(&self, away: Option<Away>) -> Result<(), String> {
        let none = "no sensor shows activity: there is nothing to call off";
        let messages = lock(&self.0).clone().ok_or(none)?;
        let (remembered, answer) = oneshot::channel();
        let busy = "the watch over activity does not answer; try again";
        messages.try_send(Message::Away { away, remembered }).map_err(|_| busy)?;
        answer.await.map_err(|_| busy)?
    }

    /// Nothing is watched over from now on.
    pub(super) fn close(&self) {
        *lock(&self.0) = None;
    }

    fn open(&self) -> mpsc::Receiver<Message> {
        let (sender, messages) = mpsc::sync_channel(QUEUED);
        *lock(&self.0) = Some(sender);
        messages
    }
}

/// Starts the thread; from now on it is what `activity` tells.
pub(super) fn start(
    supervisor: &mut Supervisor,
    plan: Plan,
    activity: &Activity,
    reporter: &Reporter,
    alarms: &AlarmHandle,
    clocks: Clocks,
) {
    let messages = Arc::new(Mutex::new(activity.open()));
    let (reporter, alarms) = (reporter.clone(), alarms.clone());
    supervisor.thread(Stage::Source, SERVICE, BUDGET, move |stop| {
        let messages = lock(&messages);
        Watch::new(&plan, &reporter, &alarms, clocks).run(&messages, &stop)
    });
}

struct Watch<'a> {
    plan: &'a Plan,
    reporter: &'a Reporter,
    alarms: &'a AlarmHandle,
    clocks: Clocks,
    inactivity: Inactivity,
    /// As it stands in the file, but for the moment of the last sign.
    remembered: Option<Memory>,
}

impl<'a> Watch<'a> {
    fn new(
        plan: &'a Plan,
        reporter: &'a Reporter,
        alarms: &'a AlarmHandle,
        clocks: Clocks,
    ) -> Self {
        let memory = recall(&plan.file).unwrap_or_else(|problem| {
            let problem = format!(
                "what was learned of the daily rhythm cannot be used, learning begins anew: {problem}"
            );
            // Cleared with the first file that is written.
            reporter.raise_blocking(PART, &problem);
            let _ = memory_file::set_aside(&plan.file);
            None
        });
        let inactivity =
            Inactivity::new(plan.settings.clone(), plan.zone.clone(), memory, clocks.world.now());
        Self { plan, reporter, alarms, clocks, inactivity, remembered: None }
    }

    fn run(mut self, messages: &mpsc::Receiver<Message>, stop: &Stop) -> Outcome {
        let mut looked = None;
        while !stop.is_set() {
            let world = self.clocks.world;
            let message = messages.recv_timeout(NAP.min(world.real(LOOK)));
            let (now, wall) = (world.now(), world.wall());
            match message {
                Ok(Message::Sign { source, door }) => {
                    let found = self.inactivity.handle_sign(now, wall, &source, door);
                    self.tell(found, wall)?;
                }
                // Whoever asked was told already that it did not work.
                Ok(Message::Away { remembered, .. }) if remembered.is_closed() => continue,
                Ok(Message::Away { away, remembered }) => {
                    let over = self.inactivity.set_away(away, now, wall);
                    self.tell(over.into_iter().collect(), wall)?;
                    self.tell_away(away);
                    let _ = remembered.send(self.remember());
                }
                Err(_) => {
                    if looked.is_some_and(|at| now.duration_since(at) < LOOK) {
                        continue;
                    }
                    looked = Some(now);
                    let found = self.inactivity.handle_tick(now, wall);
                    self.tell(found, wall)?;
                }
            }
            let _ = self.remember();
        }
        self.remembered = None;
        let _ = self.remember();
        Ok(())
    }

    /// Writes the file if anything but the moment of the last sign has changed.
    fn remember(&mut self) -> Result<(), String> {
        let world = self.clocks.world;
        let memory = self.inactivity.memory(world.now(), world.wall());
        let key = Memory { last_sign_ms: None, ..memory.clone() };
        if self.remembered.as_ref() == Some(&key) {
            return Ok(());
        }
        let written = memory.encode().map_err(|e| e.to_string()).and_then(|bytes| {
            memory_file::write(&self.plan.file, &bytes)
                .map_err(|e| format!("write {}: {e}", self.plan.file.display()))
        });
        match &written {
            Ok(()) => {
                self.remembered = Some(key);
                self.reporter.clear_blocking(PART);
            }
            Err(problem) => self.reporter.raise_blocking(PART, problem),
        }
        written
    }

    fn tell(&self, found: Vec<Finding>, wall: WallTime) -> Result<(), String> {
        for finding in found {
            let occurrence = match finding {
                Finding::Detected(silence) => {
                    let text = silence.explanation.clone();
                    let detected = self.occurrence(silence, None, wall);
                    if self.plan.settings.urgency == Urgency::Alert {
                        self.alarms.trigger_blocking(&detected, Kind::Inactivity, text)?;
                        continue;
                    }
                    detected
                }
                Finding::Cleared(silence, source) => self.occurrence(silence, Some(source), wall),
                Finding::Learned(percent) => {
                    tracing::info!(percent, "the daily rhythm is learned");
                    let reading = Occurrence::SensorReading {
                        name: PART.to_owned(),
                        quantity: "learned".to_owned(),
                        value: f64::from(percent),
                        unit: "%",
                    };
                    // Telemetry: refused where there is no room, and counted there.
                    if let Err(error) = self.reporter.report_at_blocking(&reading, wall) {
                        tracing::warn!("what is learned is not told: {error}");
                    }
                    continue;
                }
            };
            self.reporter.report_at_blocking(&occurrence, wall)?;
        }
        Ok(())
    }

    fn occurrence(&self, silence: Silence, ended_by: Option<String>, wall: WallTime) -> Occurrence {
        let Silence { lasted, limit, basis, explanation } = silence;
        let detected = ended_by.is_none();
        tracing::warn!(detected, "{explanation}");
        self.reporter
            .happened(Happening::Inactivity { detected, explanation: explanation.clone() });
        let lasted_ms = u64::try_from(lasted.as_millis()).unwrap_or(u64::MAX);
        let since = WallTime { unix_ms: wall.unix_ms.saturating_sub(lasted_ms), ..wall };
        Occurrence::Inactivity {
            lane: lane(self.plan.settings.urgency),
            ended_by,
            since: since.to_rfc3339(),
            silence_s: lasted.as_secs(),
            limit_s: limit.as_secs(),
            basis: basis.as_str(),
            explanation,
        }
    }

    fn tell_away(&self, away: Option<Away>) {
        match away {
            Some(Away { until_ms: None }) => tracing::info!("away: nothing is watched over"),
            Some(Away { until_ms: Some(until) }) => {
                tracing::info!("away until {}", self.plan.zone.local(until).hh_mm());
            }
            None => tracing::info!("no longer away"),
        }
    }
}

fn recall(file: &Path) -> Result<Option<Memory>, String> {
    match memory_file::read(file) {
        Ok(None) => Ok(None),
        Ok(Some(bytes)) => {
            Memory::decode(&bytes).map(Some).map_err(|e| format!("{}: {e}", file.display()))
        }
        Err(error) => Err(format!("read {}: {error}", file.display())),
    }
}
