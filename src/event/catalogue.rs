//! The events that the agent itself makes: for each its type, lane, subject and data.
//!
//! The data of each type is described by a JSON Schema in `docs/schemas/`, which its `dataschema`
//! names; a test holds the two together. Data never holds audio.

use chrono::DateTime;
use cloudevents::{EventBuilder, EventBuilderV10};
use serde_json::{Value, json};

use super::{Event, EventError, Lane, Losses};
use crate::clock::{Rng, WallTime};

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

/// What of an event depends on the occurrence.
struct Description {
    suffix: &'static str,
    lane: Lane,
    severity: &'static str,
    subject: Option<String>,
    data: Value,
}

impl Occurrence {
    fn describe(&self) -> Description {
        match self {
            Self::KeyphraseDetected { phrase, score, model, level_dbfs } => Description {
                suffix: "voice.keyphrase.detected",
                lane: Lane::Alert,
                severity: "WARN",
                subject: None,
                data: json!({
                    "phrase": phrase,
                    "score": rounded(*score),
                    "model": model,
                    "level_dbfs": rounded(*level_dbfs),
                }),
            },
            Self::SessionStarted { boot_id, version } => Description {
                suffix: "device.session.started",
                lane: Lane::Status,
                severity: "INFO",
                subject: None,
                data: json!({ "boot_id": boot_id, "version": version }),
            },
            Self::SessionStopped { reason } => Description {
                suffix: "device.session.stopped",
                lane: Lane::Status,
                severity: "INFO",
                subject: None,
                data: json!({ "reason": reason }),
            },
            Self::Heartbeat { health } => Description {
                suffix: "device.heartbeat.sent",
                lane: Lane::Status,
                severity: "INFO",
                subject: None,
                data: health.clone(),
            },
            Self::FaultRaised { part, problem } => Description {
                suffix: "device.fault.raised",
                lane: Lane::Status,
                severity: "ERROR",
                subject: Some(part.clone()),
                data: json!({ "part": part, "problem": problem }),
            },
            Self::FaultCleared { part } => Description {
                suffix: "device.fault.cleared",
                lane: Lane::Status,
                severity: "INFO",
                subject: Some(part.clone()),
                data: json!({ "part": part }),
            },
            Self::SensorReading { name, quantity, value, unit } => Description {
                suffix: "sensor.reading.recorded",
                lane: Lane::Telemetry,
                severity: "INFO",
                subject: Some(name.clone()),
                data: json!({ "name": name, "quantity": quantity, "value": value, "unit": unit }),
            },
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
            } => Description {
                suffix: if *exceeded {
                    "sensor.threshold.exceeded"
                } else {
                    "sensor.threshold.cleared"
                },
                lane: *lane,
                severity: if *exceeded { severity } else { "INFO" },
                subject: Some(name.clone()),
                data: json!({
                    "name": name,
                    "threshold": threshold,
                    "quantity": quantity,
                    "value": value,
                    "level": level,
                    "unit": unit,
                }),
            },
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
                Description { suffix, lane: *lane, severity, subject: None, data }
            }
            Self::EventsLost { cause, recovered, losses } => {
                let mut data = losses.describe(cause);
                data["recovered"] = (*recovered).into();
                Description::of_outbox("outbox.events.lost", "ERROR", data)
            }
            Self::EventsEvicted { cause, losses } => {
                Description::of_outbox("outbox.events.evicted", "WARN", losses.describe(cause))
            }
            Self::EventsExpired { cause, losses } => {
                Description::of_outbox("outbox.events.expired", "INFO", losses.describe(cause))
            }
            Self::EventDeadlettered { id, source, lane, sequence, cause } => {
                let data = json!({
                    "id": id,
                    "source": source,
                    "lane": lane.as_str(),
                    "sequence": sequence,
                    "cause": cause,
                });
                Description::of_outbox("outbox.events.deadlettered", "ERROR", data)
            }
        }
    }
}

impl Description {
    fn of_outbox(suffix: &'static str, severity: &'static str, data: Value) -> Self {
        Self { suffix, lane: Lane::Status, severity, subject: None, data }
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
        let Description { suffix, lane, severity, subject, data } = occurrence.describe();
        let time = i64::try_from(at.unix_ms).ok().and_then(DateTime::from_timestamp_millis);
        let mut builder = EventBuilderV10::new()
            .id(rng.uuid_v7(at))
            .source(&self.source)
            .ty(format!("{}.{suffix}", self.type_prefix))
            .time(time.unwrap_or(DateTime::UNIX_EPOCH))
            .data_with_schema("application/json", format!("urn:hark:schema:{suffix}:1"), data)
            .extension("clock", at.state.as_str())
            .extension("severitytext", severity);
        if let Some(subject) = subject {
            builder = builder.subject(subject);
        }
        let built = builder.build().map_err(|e| EventError::new("", e.to_string()))?;
        Ok((lane, Event::try_from(built)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ClockState;
    use crate::event::{Data, json as format};

    fn examples() -> Vec<Occurrence> {
        let text = || "x".to_owned();
        vec![
            Occurrence::KeyphraseDetected {
                phrase: "help me".to_owned(),
                score: 0.91,
                model: text(),
                level_dbfs: -20.0,
            },
            Occurrence::SessionStarted { boot_id: text(), version: text() },
            Occurrence::SessionStopped { reason: text() },
            Occurrence::Heartbeat { health: crate::status::Status::example().to_value() },
            Occurrence::FaultRaised { part: text(), problem: text() },
            Occurrence::FaultCleared { part: text() },
            Occurrence::SensorReading { name: text(), quantity: text(), value: 21.5, unit: "Cel" },
            threshold(true),
            threshold(false),
            inactivity(None),
            inactivity(Some("hall".to_owned())),
            Occurrence::EventsLost { cause: text(), recovered: 1, losses: Losses::default() },
            Occurrence::EventsEvicted { cause: text(), losses: Losses::default() },
            Occurrence::EventsExpired { cause: text(), losses: Losses::default() },
            Occurrence::EventDeadlettered {
                id: text(),
                source: text(),
                lane: Lane::Alert,
                sequence: 1,
                cause: text(),
            },
        ]
    }

    fn threshold(exceeded: bool) -> Occurrence {
        Occurrence::Threshold {
            exceeded,
            lane: Lane::Alert,
            severity: "ERROR",
            name: "bedroom".to_owned(),
            threshold: "too cold".to_owned(),
            quantity: "temperature".to_owned(),
            value: 11.9,
            level: 12.0,
            unit: "Cel",
        }
    }

    fn inactivity(ended_by: Option<String>) -> Occurrence {
        Occurrence::Inactivity {
            lane: Lane::Status,
            ended_by,
            since: "2026-11-22T06:10:00.000Z".to_owned(),
            silence_s: 12_000,
            limit_s: 10_800,
            basis: "rhythm",
            explanation: "no activity since 07:10; usually by 08:00 on Sundays".to_owned(),
        }
    }

    #[test]
    fn a_threshold_goes_where_it_is_sent_and_only_its_beginning_is_severe() {
        for (exceeded, severity) in [(true, "ERROR"), (false, "INFO")] {
            let (lane, event) = make(&threshold(exceeded));
            assert_eq!(lane, Lane::Alert);
            assert_eq!(event.attribute("severitytext").unwrap().as_str(), Some(severity));
            assert_eq!(event.attribute("subject").unwrap().as_str(), Some("bedroom"));
        }
    }

    fn make(occurrence: &Occurrence) -> (Lane, Event) {
        let at = WallTime { unix_ms: 1_700_000_000_000, state: ClockState::Unsynced };
        Maker::new("flat-12", "io.hark").make(occurrence, at, &mut Rng::from_seed(1)).unwrap()
    }

    #[test]
    fn a_keyphrase_becomes_an_alert() {
        let (lane, event) = make(&examples()[0]);
        assert_eq!(lane, Lane::Alert);
        let text = String::from_utf8(format::to_vec(&event)).unwrap();
        assert_eq!(
            text,
            r#"{"specversion":"1.0","id":"018bcfe5-6800-7"#.to_owned()
                + &text[r#"{"specversion":"1.0","id":"018bcfe5-6800-7"#.len()..][..21]
                + r#"","source":"urn:hark:device:flat-12","type":"io.hark.voice.keyphrase.detected","clock":"unsynced","datacontenttype":"application/json","dataschema":"urn:hark:schema:voice.keyphrase.detected:1","severitytext":"WARN","time":"2023-11-14T22:13:20.000Z","data":{"level_dbfs":-20.0,"model":"x","phrase":"help me","score":0.91}}"#
        );
    }

    #[test]
    fn every_type_has_a_schema_that_names_its_members() {
        for occurrence in examples() {
            let (_, event) = make(&occurrence);
            let suffix = event.event_type().strip_prefix("io.hark.").unwrap();
            let path = format!("{}/docs/schemas/{suffix}.json", env!("CARGO_MANIFEST_DIR"));
            let text = std::fs::read_to_string(&path).expect(&path);
            let schema: Value = serde_json::from_str(&text).expect(&path);
            assert_eq!(
                Some(schema["$id"].as_str().unwrap()),
                event.attribute("dataschema").unwrap().as_str(),
                "{path}"
            );
            let Data::Json(raw) = event.data() else { panic!("{suffix} has no data") };
            let data: Value = serde_json::from_slice(raw).unwrap();
            let members: Vec<_> = data.as_object().unwrap().keys().collect();
            let described: Vec<_> = schema["properties"].as_object().unwrap().keys().collect();
            assert_eq!(members, described, "{path}");
            let required: Vec<_> = schema["required"]
                .as_array()
                .unwrap()
                .iter()
                .map(|v| v.as_str().unwrap())
                .collect();
            assert_eq!(members, required, "{path}");
        }
    }
}
