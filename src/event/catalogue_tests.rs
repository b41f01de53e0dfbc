//! The events of the agent's own, against their schemas and the SDK.

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
            stages: &["phonemes"],
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
        Occurrence::ButtonPressed { button: text(), press: "short", held_ms: 90 },
        command(CommandAnswer::Completed),
        command(CommandAnswer::Failed),
        command(CommandAnswer::Rejected),
        Occurrence::EventDeadlettered {
            id: text(),
            source: text(),
            lane: Lane::Alert,
            sequence: 1,
            cause: text(),
        },
    ]
}

fn command(answer: CommandAnswer) -> Occurrence {
    let some = || Some("x".to_owned());
    let (request, from, command, subject) = (some(), some(), some(), some());
    Occurrence::Command { answer, request, from, command, subject, reason: some() }
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
            + r#"","source":"urn:hark:device:flat-12","type":"io.hark.voice.keyphrase.detected","clock":"unsynced","datacontenttype":"application/json","dataschema":"urn:hark:schema:voice.keyphrase.detected:1","severitytext":"WARN","time":"2023-11-14T22:13:20.000Z","data":{"level_dbfs":-20.0,"model":"x","phrase":"help me","score":0.91,"stages":["phonemes"]}}"#
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
        let required: Vec<_> =
            schema["required"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
        assert_eq!(members, required, "{path}");
    }
}

#[path = "asyncapi_tests.rs"]
mod asyncapi;
