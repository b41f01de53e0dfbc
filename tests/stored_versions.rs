//! What an earlier version stored is read by this one: a record and a whole store of each version.
//!
//! `HARK_WRITE_FIXTURES=1 cargo test --test stored_versions` writes those of the present version anew; they
//! are committed, and those of earlier versions never change.
#![allow(clippy::disallowed_methods, reason = "real processes need real time and real threads")]

use std::path::{Path, PathBuf};
use std::process::Command;

use hark::clock::{Clock, ClockState, WallTime};
use hark::driver::outbox_open;
use hark::driver::sled_store::SledStore;
use hark::event::{Event, Lane, json};
use hark::outbox::codec::{self, RecordFields, VERSION};
use hark::outbox::{Outbox, PageLimit, Position, Record};

const NOW: WallTime = WallTime { unix_ms: 1_795_000_000_123, state: ClockState::Synced };
const ALL: PageLimit = PageLimit { records: 1000, bytes: 1 << 24 };

const EVENT: &str = r#"{"specversion":"1.0","id":"1","source":"/s","type":"t","count":-7,"flag":true,"data":{"b": 1.0, "a":12345678901234567890}}"#;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn writes_fixtures() -> bool {
    std::env::var_os("HARK_WRITE_FIXTURES").is_some()
}

fn parse(text: &str) -> Event {
    json::parse(text.as_bytes()).expect("an event")
}

fn event(id: &str, source: &str, rest: &str) -> Event {
    let data = if rest.is_empty() { String::new() } else { format!(",{rest}") };
    parse(&format!(r#"{{"specversion":"1.0","id":"{id}","source":"{source}","type":"t"{data}}}"#))
}

/// What is in a store of any version: lane, id, sequence, all attributes and data.
fn stored() -> Vec<(Lane, u64, Event)> {
    let large = format!(r#""data":"{}""#, "x".repeat(20_000));
    vec![
        (Lane::Alert, 2, event("a2", "/s", r#""subject":"living room","data":{"b": 1.0,"a":2}"#)),
        (Lane::Alert, 1, event("a1-other", "/other", r#""data_base64":"AP8=""#)),
        (Lane::Status, 1, event("s1", "/s", "")),
        (Lane::Telemetry, 1, event("t1", "/s", &large)),
        (Lane::Telemetry, 2, event("t2", "/s", r#""data":null"#)),
    ]
}

/// Makes a store: the above, a record that was removed before them, and a dead letter.
fn make(path: &Path) {
    let mut outbox = Outbox::open(SledStore::open(path).expect("open")).expect("open");
    let gone = outbox.append(&[(Lane::Alert, event("a1", "/s", ""))], NOW).expect("accepted");
    for (lane, _, event) in stored() {
        outbox.append(&[(lane, event)], NOW).expect("accepted");
    }
    let dead = event("t3", "/s", r#""data":"refused""#);
    let dead = outbox.append(&[(Lane::Telemetry, dead)], NOW).expect("accepted");
    let mut group = outbox.begin(NOW).expect("begin");
    group.remove(&[(Lane::Alert, gone[0].position)]).expect("remove");
    assert!(group.deadletter(Lane::Telemetry, dead[0].position, "too large").expect("dead"));
    group.commit().expect("commit");
}

fn tar(arguments: &[&str], directory: &Path) {
    let status = Command::new("tar").args(arguments).current_dir(directory).status().expect("tar");
    assert!(status.success());
}

#[test]
fn a_record_of_every_version_is_read() {
    if writes_fixtures() {
        let event = parse(EVENT);
        let attributes = event.attributes().iter().map(|(k, v)| (k.as_str(), v)).collect();
        let frame = codec::encode_record(RecordFields {
            lane: Lane::Alert,
            position: Position(7),
            sequence: 3,
            accepted_ms: NOW.unix_ms,
            attributes: &attributes,
            noted: None,
            data: event.data(),
        });
        let path = fixture(&format!("record-v{VERSION}.bin"));
        std::fs::write(path, frame.expect("encoded")).expect("write");
    }
    for version in 1..=VERSION {
        let frame = std::fs::read(fixture(&format!("record-v{version}.bin"))).expect("a fixture");
        let record = codec::decode_record(&frame).expect("a record");
        let expected = Record {
            lane: Lane::Alert,
            position: Position(7),
            sequence: 3,
            accepted_ms: NOW.unix_ms,
            event: parse(EVENT),
        };
        assert_eq!(record, expected, "version {version}");
    }
}

#[test]
fn a_store_of_every_version_is_opened_read_and_drained() {
    let scratch = tempfile::tempdir().expect("directory");
    if writes_fixtures() {
        make(&scratch.path().join("outbox"));
        let archive = fixture(&format!("store-v{VERSION}.tar.gz"));
        tar(&["-czf", archive.to_str().expect("text"), "outbox"], scratch.path());
        std::fs::remove_dir_all(scratch.path().join("outbox")).expect("remove");
    }
    for version in 1..=VERSION {
        let directory = scratch.path().join(format!("v{version}"));
        std::fs::create_dir(&directory).expect("directory");
        let archive = fixture(&format!("store-v{version}.tar.gz"));
        tar(&["-xzf", archive.to_str().expect("text")], &directory);
        read_and_drain(&directory.join("outbox"));
    }
}

fn read_and_drain(path: &Path) {
    let clock = Clock::new(|| ClockState::Synced);
    let mut outbox = outbox_open::open(path, clock).expect("open");
    assert_eq!(outbox.untold(), None, "it was salvaged");
    let records = |outbox: &Outbox<SledStore>| -> Vec<Record> {
        let page = |lane| outbox.page(lane, None, ALL).expect("page");
        Lane::ALL.into_iter().flat_map(page).collect()
    };
    let found = records(&outbox);
    assert_eq!(found.len(), stored().len());
    for (record, (lane, sequence, mut event)) in found.iter().zip(stored()) {
        event.set_extension("lane", lane.as_str().into()).expect("a lane");
        let text = hark::outbox::sequence_text(sequence);
        event.set_extension("sequence", text.into()).expect("a sequence");
        assert_eq!((record.lane, record.sequence, &record.event), (lane, sequence, &event));
        assert_eq!(record.accepted_ms, NOW.unix_ms);
    }
    let letters = outbox.dead_letters(Lane::Telemetry, None, ALL).expect("dead letters");
    assert_eq!((letters.len(), letters[0].reason.as_str()), (1, "too large"));
    assert_eq!((letters[0].record.event.id(), letters[0].record.sequence), ("t3", 3));

    let mut group = outbox.begin(NOW).expect("begin");
    assert!(group.requeue(Lane::Telemetry, letters[0].record.position).expect("requeue"));
    group.commit().expect("commit");
    let all: Vec<_> = records(&outbox).iter().map(|r| (r.lane, r.position)).collect();
    outbox.remove(&all, NOW).expect("remove");
    assert_eq!((outbox.depth(), outbox.bytes()), ([0; 3], [0; 3]));
    for (lane, source, next) in [
        (Lane::Alert, "/s", 3),
        (Lane::Alert, "/other", 2),
        (Lane::Status, "/s", 2),
        (Lane::Telemetry, "/s", 4),
        (Lane::Telemetry, "/new", 1),
    ] {
        let accepted = outbox.append(&[(lane, event("n", source, ""))], NOW).expect("accepted");
        assert_eq!(accepted[0].sequence, next, "{lane} {source}");
    }
    drop(outbox);
    let outbox = outbox_open::open(path, clock).expect("open again");
    assert_eq!((outbox.depth(), outbox.untold()), ([2, 1, 2], None));
}
