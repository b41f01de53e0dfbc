//! `docs/asyncapi.yaml` is written from the catalogue, and this test holds the two together.
//!
//! `HARK_WRITE_ASYNCAPI=1 cargo test --lib asyncapi` writes it anew. `scripts/asyncapi-check` has it read by the
//! specification's own parser.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

use super::*;

/// What stands before the messages of the catalogue.
const HEAD: &str = include_str!("asyncapi/head.yaml");
/// What stands behind them.
const TAIL: &str = include_str!("asyncapi/tail.yaml");

/// The types without their prefix, and the lanes in which each can come.
fn catalogue() -> BTreeMap<String, BTreeSet<Lane>> {
    let steps = [
        AlarmStep::Pending,
        AlarmStep::Raised,
        AlarmStep::Cancelled,
        AlarmStep::Acknowledged,
        AlarmStep::Escalated,
        AlarmStep::Resolved,
    ];
    let alarm = |step| Occurrence::Alarm {
        step,
        alarm: "a".to_owned(),
        cause: None,
        test: false,
        data: json!({}),
    };
    let mut all: Vec<Occurrence> = examples().into_iter().chain(steps.map(alarm)).collect();
    // The lane of these is a setting.
    for other in [Lane::Alert, Lane::Status] {
        for example in examples() {
            all.extend(match example {
                Occurrence::Threshold { .. } | Occurrence::Inactivity { .. } => {
                    Some(in_lane(example, other))
                }
                _ => None,
            });
        }
    }
    let mut types: BTreeMap<String, BTreeSet<Lane>> = BTreeMap::new();
    for occurrence in all {
        let (lane, event) = make(&occurrence);
        let suffix = event.event_type().strip_prefix("io.hark.").unwrap().to_owned();
        types.entry(suffix).or_default().insert(lane);
    }
    types
}

fn in_lane(mut occurrence: Occurrence, other: Lane) -> Occurrence {
    if let Occurrence::Threshold { lane, .. } | Occurrence::Inactivity { lane, .. } =
        &mut occurrence
    {
        *lane = other;
    }
    occurrence
}

/// `alarm.call.raised` → `alarmCallRaised`.
fn key(suffix: &str) -> String {
    let mut words = suffix.split('.');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |key, word| {
        let (head, rest) = word.split_at(1);
        key + &head.to_uppercase() + rest
    })
}

fn document() -> String {
    let types = catalogue();
    let mut text = HEAD.to_owned();
    for lane in Lane::ALL {
        let mut messages = String::new();
        for suffix in types.iter().filter(|(_, lanes)| lanes.contains(&lane)).map(|(s, _)| s) {
            let key = key(suffix);
            writeln!(messages, "      {key}:\n        $ref: '#/components/messages/{key}'")
                .unwrap();
        }
        let mark = format!("      # the catalogue's, in lane {lane}\n");
        assert!(text.contains(&mark), "{mark}");
        text = text.replace(&mark, &messages);
    }
    text += "components:\n  messages:\n";
    for suffix in types.keys() {
        let schema = schema(suffix);
        let title = schema["title"].as_str().unwrap();
        let (key, pattern) = (key(suffix), suffix.replace('.', "\\."));
        write!(
            text,
            r"    {key}:
      name: {suffix}
      title: {title:?}
      traits:
      - $ref: '#/components/messageTraits/event'
      payload:
        allOf:
        - $ref: '#/components/schemas/ownEvent'
        - type: object
          properties:
            type:
              type: string
              pattern: '^([a-z0-9-]+\.)+{pattern}$'
            dataschema:
              const: 'urn:hark:schema:{suffix}:1'
            data:
              $ref: './schemas/{suffix}.json'
          required: [data, dataschema]
"
        )
        .unwrap();
    }
    text + TAIL
}

fn schema(suffix: &str) -> Value {
    let path = format!("{}/docs/schemas/{suffix}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(&path).expect(&path)).expect(&path)
}

#[test]
fn the_asyncapi_document_is_that_of_the_catalogue() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/asyncapi.yaml");
    let expected = document();
    if std::env::var_os("HARK_WRITE_ASYNCAPI").is_some() {
        std::fs::write(&path, &expected).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap();
    assert!(
        found == expected,
        "{} differs from the catalogue: HARK_WRITE_ASYNCAPI=1 cargo test --lib asyncapi",
        path.display()
    );
}

#[test]
fn every_type_schema_and_topic_stands_in_it_exactly_once() {
    let text = document();
    let lines = |wanted: &str| text.lines().filter(|line| line.trim() == wanted).count();
    let types = catalogue();
    for (suffix, lanes) in &types {
        assert_eq!(lines(&format!("name: {suffix}")), 1, "{suffix}");
        assert_eq!(lines(&format!("$ref: './schemas/{suffix}.json'")), 1, "{suffix}");
        let referred = format!("$ref: '#/components/messages/{}'", key(suffix));
        assert_eq!(lines(&referred), lanes.len(), "{suffix}: once in each of its lanes");
    }
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/schemas");
    let files: BTreeSet<String> = std::fs::read_dir(directory)
        .unwrap()
        .map(|file| file.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    assert_eq!(files, types.into_keys().collect(), "a schema for each type, and no other");
    let lanes = Lane::ALL.map(|lane| format!("events/{lane}"));
    let others = ["presence", "commands", "receipts"].map(str::to_owned);
    for topic in lanes.into_iter().chain(others) {
        assert_eq!(lines(&format!("address: 'hark/{{device}}/{topic}'")), 1, "{topic}");
    }
    assert_eq!(text.matches("address: ").count(), 6);
}
