//! The events that the agent itself makes: for each its type, lane, subject and data.
//!
//! The data of each type is described by a JSON Schema in `docs/schemas/`, which its `dataschema`
//! names; a test holds the two together. Data never holds audio.

use chrono::DateTime;
use cloudevents::{EventBuilder, EventBuilderV10};
use serde_json::{Value, json};

use super::{Event, EventError, Lane, Losses};
use crate::clock::{ClockState, Rng, WallTime};

/// Something that happened on the device.
#[derive(Debug, Clone, PartialEq)]
pub enum Occurrence {
    /// A keyphrase was heard.
    KeyphraseDetected {
        /// The phrase, as configured.
        phrase: String,
        /// 0..=1: how sure the detector is.
        score: f32,
        /// Which weights heard it.
        model: String,
        /// Loudness of the phrase, dBFS.
        level_dbfs: f32,
        /// Which stages heard it: `phonemes`, `recogniser`.
        stages: &'static [&'static str],
    },
    /// The agent began to work.
    SessionStarted {
        /// The kernel's id of this boot.
        boot_id: String,
        /// The agent's version.
        version: String,
    },
    /// The agent ends in good order.
    SessionStopped {
        /// Why, in one line.
        reason: String,
    },
    /// The agent lives; how it is.
    Heartbeat {
        /// Its data, as `docs/schemas/device.heartbeat.sent.json` describes them.
        health: Value,
    },
    /// A part of the device no longer does its work.
    FaultRaised {
        /// Which part: `detector`, `microphone`, `ingest`, …
        part: String,
        /// What is wrong, in one line.
        problem: String,
    },
    /// The part works again.
    FaultCleared {
        /// Which part.
        part: String,
    },
    /// A sensor has measured something worth telling.
    SensorReading {
        /// The sensor.
        name: String,
        /// What it measures: `temperature`.
        quantity: String,
        /// How much.
        value: f64,
        /// Of what: a UCUM code.
        unit: &'static str,
    },
    /// A threshold is exceeded, or no longer.
    Threshold {
        /// Which of the two.
        exceeded: bool,
        /// Where the event goes.
        lane: Lane,
        /// How bad it is: `severitytext`.
        severity: &'static str,
        /// The sensor.
        name: String,
        /// Which of its thresholds.
        threshold: String,
        /// What it measures.
        quantity: String,
        /// The value that decided.
        value: f64,
        /// Beyond which it is exceeded.
        level: f64,
        /// Of both: a UCUM code.
        unit: &'static str,
    },
    /// Nobody has been about for longer than usual, or somebody is again.
    Inactivity {
        /// Where the event goes.
        lane: Lane,
        /// Which sign ended it; `None`: it is detected.
        ended_by: Option<String>,
        /// When the silence began, RFC 3339.
        since: String,
        /// How long it is or was, seconds.
        silence_s: u64,
        /// How long it might have been, seconds.
        limit_s: u64,
        /// Why: `rhythm`, `learning`, `clock-unknown`, `out`.
        basis: &'static str,
        /// For people, one line.
        explanation: String,
    },
    /// The outbox found itself damaged; this is what could not be recovered.
    EventsLost {
        /// What was wrong, in one line.
        cause: String,
        /// Records that were recovered.
        recovered: u64,
        /// What was not.
        losses: Losses,
    },
    /// Stored events gave way to others.
    EventsEvicted {
        /// For want of what, in one line.
        cause: String,
        /// Which.
        losses: Losses,
    },
    /// Stored events became too old to be of use.
    EventsExpired {
        /// How old, in one line.
        cause: String,
        /// Which.
        losses: Losses,
    },
    /// A button was pressed.
    ButtonPressed {
        /// Its name.
        button: String,
        /// `short`, `medium`, `long` or `hold`.
        press: &'static str,
        /// How long it was down, as far as is known when the press counts.
        held_ms: u64,
    },
    /// A step in the life of an alarm.
    Alarm {
        /// Which.
        step: AlarmStep,
        /// The alarm's id.
        alarm: String,
        /// The `id` of the event that brought it about.
        cause: Option<String>,
        /// The alarm is only a test.
        test: bool,
        /// What is said of it.
        data: Value,
    },
    /// A request from the cloud was dealt with.
    Command {
        /// How it ended.
        answer: CommandAnswer,
        /// The request's `id`, where it has one.
        request: Option<String>,
        /// The request's `source`, where it has one.
        from: Option<String>,
        /// What was asked for: `alarm.cancel`, …
        command: Option<String>,
        /// The alarm, or whatever else it was about.
        subject: Option<String>,
        /// Why not, in one line.
        reason: Option<String>,
    },
    /// An event was set aside since it cannot be delivered.
    EventDeadlettered {
        /// Its `id`.
        id: String,
        /// Its `source`.
        source: String,
        /// Its lane.
        lane: Lane,
        /// Its sequence.
        sequence: u64,
        /// Why, in one line.
        cause: String,
    },
}

/// Steps in the life of an alarm; see `crate::alarm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AlarmStep {
    /// It was opened and can be called off on the spot.
    Pending,
    /// Help is called.
    Raised,
    /// It was called off.
    Cancelled,
    /// Somebody sees to it.
    Acknowledged,
    /// Nobody did: the next contact is called.
    Escalated,
    /// It is over.
    Resolved,
}

impl AlarmStep {
    fn suffix(self) -> &'static str {
        match self {
            Self::Pending => "alarm.call.pending",
            Self::Raised => "alarm.call.raised",
            Self::Cancelled => "alarm.call.cancelled",
            Self::Acknowledged => "alarm.call.acknowledged",
            Self::Escalated => "alarm.call.escalated",
            Self::Resolved => "alarm.call.resolved",
        }
    }

    /// The last word of its type.
    pub fn as_str(self) -> &'static str {
        self.suffix().rsplit('.').next().unwrap_or_default()
    }

    fn severity(self) -> &'static str {
        match self {
            Self::Raised | Self::Escalated => "ERROR",
            Self::Pending => "WARN",
            Self::Cancelled | Self::Acknowledged | Self::Resolved => "INFO",
        }
    }
}

/// How a request from the cloud ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommandAnswer {
    /// It was carried out.
    Completed,
    /// It could not be.
    Failed,
    /// It is none, or not allowed.
    Rejected,
}

/// What of an event depends on the occurrence.
struct Description {
    suffix: &'static str,
    lane: Lane,
    severity: &'static str,
    subject: Option<String>,
    extensions: Vec<(&'static str, String)>,
    test: bool,
    data: Value,
}

impl Occurrence {
    fn describe(&self) -> Description {
        match self {
            Self::KeyphraseDetected { phrase, score, model, level_dbfs, stages } => {
                Description::new(
                    "voice.keyphrase.detected",
                    Lane::Alert,
                    "WARN",
                    None,
                    json!({
                        "phrase": phrase,
                        "score": rounded(*score),
                        "model": model,
                        "level_dbfs": rounded(*level_dbfs),
                        "stages": stages,
                    }),
                )
            }
            Self::SessionStarted { boot_id, version } => Description::new(
                "device.session.started",
                Lane::Status,
                "INFO",
                None,
                json!({ "boot_id": boot_id, "version": version }),
            ),
            Self::SessionStopped { reason } => Description::new(
                "device.session.stopped",
                Lane::Status,
                "INFO",
                None,
                json!({ "reason": reason }),
            ),
            Self::Heartbeat { health } => {
                Description::status("device.heartbeat.sent", "INFO", health.clone())
            }
            Self::FaultRaised { part, problem } => Description::new(
                "device.fault.raised",
                Lane::Status,
                "ERROR",
                Some(part.clone()),
                json!({ "part": part, "problem": problem }),
            ),
            Self::FaultCleared { part } => Description::new(
                "device.fault.cleared",
                Lane::Status,
                "INFO",
                Some(part.clone()),
                json!({ "part": part }),
            ),
            Self::SensorReading { name, quantity, value, unit } => Description::new(
                "sensor.reading.recorded",
                Lane::Telemetry,
                "INFO",
                Some(name.clone()),
                json!({ "name": name, "quantity": quantity, "value": value, "unit": unit }),
            ),
            Self::Threshold {
                exceeded,
                lane,
                severity,
                name,
                threshold,
                quantity,
                value,
                level,
                unit,
            } => Description::new(
                if *exceeded { "sensor.threshold.exceeded" } else { "sensor.threshold.cleared" },
                *lane,
                if *exceeded { severity } else { "INFO" },
                Some(name.clone()),
                json!({
                    "name": name,
                    "threshold": threshold,
                    "quantity": quantity,
                    "value": value,
                    "level": level,
                    "unit": unit,
                }),
            ),
            Self::Inactivity { lane, ended_by, since, silence_s, limit_s, basis, explanation } => {
                let mut data = json!({
                    "since": since,
                    "silence_s": silence_s,
                    "limit_s": limit_s,
                    "basis": basis,
                    "explanation": explanation,
                });
                let (suffix, severity) = match ended_by {
                    None => ("activity.inactivity.detected", "WARN"),
                    Some(source) => {
                        data["ended_by"] = source.clone().into();
                        ("activity.inactivity.cleared", "INFO")
                    }
                };
                Description::new(suffix, *lane, severity, None, data)
            }
            Self::EventsLost { cause, recovered, losses } => {
                let mut data = losses.describe(cause);
                data["recovered"] = (*recovered).into();
                Description::status("outbox.events.lost", "ERROR", data)
            }
            Self::EventsEvicted { cause, losses } => {
                Description::status("outbox.events.evicted", "WARN", losses.describe(cause))
            }
            Self::EventsExpired { cause, losses } => {
                Description::status("outbox.events.expired", "INFO", losses.describe(cause))
            }
            Self::ButtonPressed { button, press, held_ms } => {
                let data = json!({ "button": button, "press": press, "held_ms": held_ms });
                Description {
                    lane: Lane::Alert,
                    subject: Some(button.clone()),
                    ..Description::status("button.press.detected", "INFO", data)
                }
            }
            Self::Alarm { step, alarm, cause, test, data } => Description {
                lane: Lane::Alert,
                subject: Some(alarm.clone()),
                extensions: cause.iter().map(|id| ("causationid", id.clone())).collect(),
                test: *test,
                ..Description::status(step.suffix(), step.severity(), data.clone())
            },
            Self::Command { .. } => self.describe_command(),
            Self::EventDeadlettered { id, source, lane, sequence, cause } => {
                let data = json!({
                    "id": id,
                    "source": source,
                    "lane": lane.as_str(),
                    "sequence": sequence,
                    "cause": cause,
                });
                Description::status("outbox.events.deadlettered", "ERROR", data)
            }
        }
    }
}

impl Occurrence {
    fn describe_command(&self) -> Description {
        let Self::Command { answer, request, from, command, subject, reason } = self else {
            return Description::status("", "", Value::Null);
        };
        let mut data = json!({ "command": command, "source": from });
        let (suffix, severity) = match answer {
            CommandAnswer::Completed => ("command.request.completed", "INFO"),
            CommandAnswer::Failed => ("command.request.failed", "WARN"),
            CommandAnswer::Rejected => ("command.request.rejected", "WARN"),
        };
        if *answer != CommandAnswer::Completed {
            data["reason"] = reason.clone().into();
        }
        let ids = ["correlationid", "causationid"];
        let extensions = request.iter().flat_map(|id| ids.map(|name| (name, id.clone()))).collect();
        let subject = subject.clone();
        Description { subject, extensions, ..Description::status(suffix, severity, data) }
    }
}

impl Description {
    fn status(suffix: &'static str, severity: &'static str, data: Value) -> Self {
        Self::new(suffix, Lane::Status, severity, None, data)
    }

    fn new(
        suffix: &'static str,
        lane: Lane,
        severity: &'static str,
        subject: Option<String>,
        data: Value,
    ) -> Self {
        Self { suffix, lane, severity, subject, extensions: Vec::new(), test: false, data }
    }
}

/// Three decimals: more would claim what was not measured. Not finite becomes 0.
fn rounded(value: f32) -> f64 {
    if value.is_finite() { (f64::from(value) * 1e3).round() / 1e3 } else { 0.0 }
}

/// Makes events in the name of one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Maker {
    source: String,
    type_prefix: String,
}

impl Maker {
    /// For the device `device_id`; types begin with `type_prefix`.
    pub fn new(device_id: &str, type_prefix: &str) -> Self {
        Self { source: format!("urn:hark:device:{device_id}"), type_prefix: type_prefix.to_owned() }
    }

    /// The attribute `source` of every event that is made.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// An event with a fresh id and the lane in which it belongs.
    ///
    /// # Errors
    /// An attribute breaks the rules, which only a source or a subject with odd characters can.
    pub fn make(
        &self,
        occurrence: &Occurrence,
        at: WallTime,
        rng: &mut Rng,
    ) -> Result<(Lane, Event), EventError> {
        self.make_as(rng.uuid_v7(at), occurrence, at)
    }

    /// As [`Self::make`], with an id that was given before.
    ///
    /// # Errors
    /// As [`Self::make`].
    pub fn make_as(
        &self,
        id: String,
        occurrence: &Occurrence,
        at: WallTime,
    ) -> Result<(Lane, Event), EventError> {
        let Description { suffix, lane, severity, subject, extensions, test, data } =
            occurrence.describe();
        let time = i64::try_from(at.unix_ms).ok().and_then(DateTime::from_timestamp_millis);
        let mut builder = EventBuilderV10::new()
            .id(id)
            .source(&self.source)
            .ty(format!("{}.{suffix}", self.type_prefix))
            .time(time.unwrap_or(DateTime::UNIX_EPOCH))
            .data_with_schema("application/json", format!("urn:hark:schema:{suffix}:1"), data)
            .extension("clock", at.state.as_str())
            .extension("severitytext", severity);
        if let Some(subject) = subject {
            builder = builder.subject(subject);
        }
        for (name, value) in extensions {
            builder = builder.extension(name, value);
        }
        if test {
            builder = builder.extension("testalarm", true);
        }
        let built = builder.build().map_err(|e| EventError::new("", e.to_string()))?;
        let mut event = Event::try_from(built)?;
        if at.state != ClockState::Synced {
            event.doubt();
        }
        Ok((lane, event))
    }
}

#[cfg(test)]
#[path = "catalogue_tests.rs"]
mod tests;
