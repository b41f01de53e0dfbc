//! What the page shows: the state now, and the story until now.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::broadcast;

use super::super::broker::Arrival;
use super::super::switches::Fault;
use crate::agent::Happening;
use crate::clock::Clock;
use crate::event::Lane;

/// Lines of the story that are kept for who comes later.
const STORY: usize = 250;
/// Messages that wait for a slow page at most.
const WAITING: usize = 256;
/// How often a level alone is told.
const LEVEL_EVERY: Duration = Duration::from_millis(100);

/// What is known from the start.
#[derive(Debug, Clone)]
pub struct Setting {
    /// The device's id.
    pub device: String,
    /// Where it publishes.
    pub broker: String,
    /// How many times as fast the home lives.
    pub speed: f64,
    /// How long a pending alarm can be called off.
    pub cancel_window: Duration,
    /// What can be broken.
    pub breakable: Vec<Fault>,
    /// A cry can be played.
    pub cries: bool,
    /// The care side can be spoken for.
    pub cares: bool,
}

/// Cheap to clone; all clones are the same.
#[derive(Debug, Clone)]
pub struct Hub(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    setting: Setting,
    clock: Clock,
    began: Instant,
    known: Mutex<Known>,
    news: broadcast::Sender<Arc<str>>,
}

#[derive(Debug, Default)]
struct Known {
    alarm: Option<Value>,
    waiting: [u64; 3],
    connected: bool,
    uplink: String,
    level_dbfs: Option<f32>,
    level_told: Option<Instant>,
    faults: BTreeMap<String, String>,
    readings: BTreeMap<String, String>,
    broken: BTreeMap<&'static str, bool>,
    arrived: u64,
    story: VecDeque<Value>,
}

/// A line of the story.
struct Line {
    kind: &'static str,
    lane: Option<Lane>,
    text: String,
}

impl Line {
    fn new(kind: &'static str, text: impl Into<String>) -> Self {
        Self { kind, lane: None, text: text.into() }
    }

    fn of(kind: &'static str, lane: Lane, text: impl Into<String>) -> Self {
        Self { lane: Some(lane), ..Self::new(kind, text) }
    }
}

impl Hub {
    /// A hub that begins to count the seconds now.
    pub fn new(setting: Setting, clock: Clock) -> Self {
        let known = Mutex::default();
        let (news, began) = (broadcast::Sender::new(WAITING), clock.now());
        Self(Arc::new(Shared { setting, clock, began, known, news }))
    }

    /// Who it is about.
    pub(super) fn device(&self) -> &str {
        &self.0.setting.device
    }

    /// Whether there is something to break.
    pub fn can_break(&self, fault: Fault) -> bool {
        self.0.setting.breakable.contains(&fault)
    }

    /// The state and the story until now, and what comes after.
    pub(super) fn join(&self) -> (String, broadcast::Receiver<Arc<str>>) {
        let known = self.known();
        let begin = json!({ "state": self.state(&known), "story": known.story });
        (begin.to_string(), self.0.news.subscribe())
    }

    /// Something happened in the agent.
    pub fn note(&self, happening: &Happening) {
        let mut known = self.known();
        if let Happening::Level(dbfs) = happening {
            known.level_dbfs = Some(*dbfs);
            let now = self.0.clock.now();
            if known.level_told.is_none_or(|at| now.duration_since(at) >= LEVEL_EVERY) {
                known.level_told = Some(now);
                self.tell(&mut known, None);
            }
            return;
        }
        let line = known.learn(happening);
        self.tell(&mut known, line);
    }

    /// Something arrived at the broker.
    pub fn note_arrival(&self, arrival: &Arrival) {
        let mut known = self.known();
        known.arrived += 1;
        let Arrival { topic, bytes, event_type, .. } = arrival;
        let lane = topic.rsplit('/').next().and_then(|lane| lane.parse().ok());
        let what = event_type.as_deref().unwrap_or("");
        let text = format!("{topic}: {what} ({bytes} bytes)");
        self.tell(&mut known, Some(Line { lane, ..Line::new("at broker", text) }));
    }

    /// Something happened in the home.
    pub fn note_home(&self, line: &str) {
        self.tell(&mut self.known(), Some(Line::new("home", line)));
    }

    /// Somebody has broken or mended something.
    pub(super) fn note_switch(&self, fault: Fault, on: bool) {
        let mut known = self.known();
        known.broken.insert(fault.as_str(), on);
        let what = if on { "broken" } else { "mended" };
        let text = format!("{} is {what} by hand", fault.as_str());
        self.tell(&mut known, Some(Line::new("switch", text)));
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, known: &mut Known, line: Option<Line>) {
        let at_s = self.0.clock.now().duration_since(self.0.began).as_secs_f64();
        let line = line.map(|Line { kind, lane, text }| {
            json!({ "at": (at_s * 10.0).round() / 10.0, "kind": kind, "lane": lane.map(Lane::as_str), "text": text })
        });
        if let Some(line) = &line {
            known.story.push_back(line.clone());
            if known.story.len() > STORY {
                known.story.pop_front();
            }
        }
        let message = json!({ "state": self.state(known), "line": line }).to_string();
        // Nobody may watch.
        let _ = self.0.news.send(message.into());
    }

    fn state(&self, known: &Known) -> Value {
        let Setting { device, broker, speed, cancel_window, breakable, cries, cares } =
            &self.0.setting;
        let switches: BTreeMap<_, _> = breakable
            .iter()
            .map(|fault| {
                (fault.as_str(), known.broken.get(fault.as_str()).copied().unwrap_or(false))
            })
            .collect();
        let [alert, status, telemetry] = known.waiting;
        json!({
            "device": device,
            "broker": broker,
            "speed": speed,
            "cancel_window_s": cancel_window.as_secs_f64(),
            "alarm": known.alarm,
            "waiting": { "alert": alert, "status": status, "telemetry": telemetry },
            "connected": known.connected,
            "uplink": known.uplink,
            "arrived": known.arrived,
            "level_dbfs": known.level_dbfs,
            "faults": known.faults,
            "readings": known.readings,
            "switches": switches,
            "cries": cries,
            "cares": cares,
        })
    }
}

impl Known {
    /// Takes over what the happening says, and tells of it.
    fn learn(&mut self, happening: &Happening) -> Option<Line> {
        Some(match happening {
            Happening::Level(_) => return None,
            Happening::Waiting(waiting) => {
                self.waiting = *waiting;
                return None;
            }
            Happening::Connected => {
                self.connected = true;
                return None;
            }
            Happening::Disconnected => {
                self.connected = false;
                return None;
            }
            Happening::Uplink(news) => {
                self.uplink.clone_from(news);
                Line::new("uplink", news)
            }
            Happening::Listening(input) => Line::new("listening", format!("to {input}")),
            Happening::Detected { phrase, score, .. } => {
                Line::new("heard", format!("“{phrase}” (score {score:.2})"))
            }
            Happening::Alarm { alarm, step, test } => {
                let over = matches!(*step, "cancelled" | "resolved");
                self.alarm = (!over).then(|| json!({ "id": alarm, "step": step, "test": test }));
                let test = if *test { " (test)" } else { "" };
                Line::of("alarm", Lane::Alert, format!("{step}{test}"))
            }
            Happening::Reading { sensor, quantity, value, unit } => {
                let unit_text = if *unit == "1" { String::new() } else { format!(" {unit}") };
                self.readings.insert(sensor.clone(), format!("{value}{unit_text}"));
                Line::of("reading", Lane::Telemetry, format!("{sensor}: {quantity} {value} {unit}"))
            }
            Happening::Threshold { sensor, threshold, exceeded, value, unit } => {
                let what = if *exceeded { "exceeded" } else { "cleared" };
                Line::new("threshold", format!("{sensor}: {threshold} {what} ({value} {unit})"))
            }
            Happening::Inactivity { explanation, .. } => Line::new("activity", explanation),
            Happening::Accepted { lane, event_type, sequence, .. } => {
                Line::of("accepted", *lane, format!("{event_type} #{sequence}"))
            }
            Happening::Published { id, lane, again } => {
                let again = if *again { " again" } else { "" };
                Line::of("published", *lane, format!("{id}{again}"))
            }
            Happening::Acknowledged { id, lane } => Line::of("acknowledged", *lane, &**id),
            Happening::Unconfirmed { id, lane } => Line::of("unconfirmed", *lane, &**id),
            Happening::Received { id, lane } => Line::of("received", *lane, &**id),
            Happening::Deferred { id, reason } => Line::new("refused", format!("{id}: {reason}")),
            Happening::Fault { part, problem } => {
                self.faults.insert(part.clone(), problem.clone());
                Line::new("fault", format!("{part}: {problem}"))
            }
            Happening::Mended(part) => {
                self.faults.remove(part);
                Line::new("mended", part)
            }
        })
    }
}
