//! What other parts of the agent remember beside their events, on real files: through restarts, a fresh
//! store in the place of a drained one, and salvage out of raw bytes.
#![allow(clippy::disallowed_methods, reason = "real files")]

use std::path::Path;

use hark::clock::{Clock, ClockState, WallTime};
use hark::driver::sled_store::SledStore;
use hark::driver::{outbox_open, outbox_renew};
use hark::event::{Lane, json};
use hark::outbox::{Memo, Outbox};

fn clock() -> Clock {
    Clock::new(|| ClockState::Unsynced)
}

fn open(path: &Path) -> Outbox<SledStore> {
    outbox_open::open(path, clock()).expect("open")
}

/// Commits an alert and what its alarm remembers.
fn remember(outbox: &mut Outbox<SledStore>, text: &str) {
    let event = format!(r#"{{"specversion":"1.0","id":"{text}","source":"/s","type":"t"}}"#);
    let event = json::parse(event.as_bytes()).expect("an event");
    let now = WallTime { unix_ms: 1_795_000_000_000, state: ClockState::Synced };
    let mut group = outbox.begin(now).expect("begin");
    group.append(&[(Lane::Alert, event)]).expect("append");
    let memo = Memo { name: "alarm.real", bytes: text.as_bytes().to_vec() };
    group.remember(&memo).expect("remember");
    group.commit().expect("commit");
}

fn remembered(outbox: &Outbox<SledStore>) -> String {
    let memo = outbox.memo("alarm.real").expect("whole").expect("there");
    String::from_utf8(memo).expect("text")
}

#[test]
fn a_memo_is_there_after_a_restart_and_in_a_fresh_store() {
    let root = tempfile::tempdir().expect("directory");
    let path = root.path().join("outbox");
    let mut outbox = open(&path);
    for text in ["pending", "raised"] {
        remember(&mut outbox, text);
    }
    drop(outbox);
    let outbox = open(&path);
    assert_eq!(remembered(&outbox), "raised");
    let renewed = outbox_renew::renew(outbox, clock()).expect("renew");
    assert_eq!(
        (renewed.abandoned.as_deref(), remembered(&renewed.outbox)),
        (None, "raised".into())
    );
    drop(renewed);
    assert_eq!(remembered(&open(&path)), "raised");
}

#[test]
fn salvage_brings_the_newest_memo_back_out_of_damaged_files() {
    let root = tempfile::tempdir().expect("directory");
    let path = root.path().join("outbox");
    let mut outbox = open(&path);
    for number in 0..40 {
        remember(&mut outbox, &format!("step {number}"));
    }
    drop(outbox);
    outbox_open::distrust(&path, "the test says so");
    let mut outbox = open(&path);
    assert!(outbox.untold().is_some(), "it was salvaged");
    assert_eq!((remembered(&outbox), outbox.depth()[0]), ("step 39".into(), 40));
    remember(&mut outbox, "after it");
    drop(outbox);
    assert_eq!(remembered(&open(&path)), "after it");
}
