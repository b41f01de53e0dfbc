//! kill -9 at random moments, on one and the same outbox: whatever was reported accepted is there,
//! byte for byte, and sequences go on without a gap.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]
#![allow(clippy::disallowed_methods, reason = "runs and kills real processes")]

#[path = "power/workload.rs"]
mod workload;

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

use hark::clock::Rng;
use workload::{NOTES, Plan, Promise};

const CHILD: &str = "HARK_TEST_CHILD";

/// Not a test: what is killed. It commits until then.
#[test]
fn child() {
    let Ok(arguments) = std::env::var(CHILD) else { return };
    let [root, seed, renew_every] = arguments.split(' ').collect::<Vec<_>>().try_into().unwrap();
    let plan = Plan {
        seed: seed.parse().unwrap(),
        commits: usize::MAX,
        large: false,
        renew_every: renew_every.parse().ok(),
    };
    drop(workload::run(Path::new(root), plan));
}

#[test]
fn a_run_goes_on_behind_half_a_note_that_the_kill_left() {
    let root = tempfile::tempdir().unwrap();
    let notes = root.path().join(NOTES);
    let plan = |seed| Plan { seed, commits: 3, large: false, renew_every: None };
    drop(workload::run(root.path(), plan(1)));
    let mut text = std::fs::read_to_string(&notes).unwrap();
    std::fs::write(&notes, format!("{text}begin +0:77:12")).unwrap();
    drop(workload::run(root.path(), plan(2)));
    text = std::fs::read_to_string(&notes).unwrap();
    let mut promise = Promise::read(&text);
    promise.check(&workload::open(root.path()).unwrap()).unwrap();
    assert_eq!(promise.answered, 6, "{text}");
}

fn rounds(usual: usize) -> usize {
    std::env::var("HARK_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

#[test]
fn everything_reported_accepted_is_there_after_kill_9() {
    assert_kept(rounds(12), "never");
}

#[test]
fn everything_is_there_after_kill_9_while_stores_are_replaced() {
    assert_kept(rounds(8), "10");
}

fn assert_kept(rounds: usize, renew_every: &str) {
    let root = tempfile::tempdir().unwrap();
    let notes = root.path().join(NOTES);
    let mut rng = Rng::from_seed(7);
    for round in 1..=rounds {
        let before = std::fs::metadata(&notes).map_or(0, |file| file.len());
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env(CHILD, format!("{} {round} {renew_every}", root.path().display()))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // The moment is where the notes have grown by a random amount: often within a commit.
        let enough = before + rng.u64() % 6000;
        while std::fs::metadata(&notes).map_or(0, |file| file.len()) <= enough {
            if let Some(status) = child.try_wait().unwrap() {
                let mut text = String::new();
                child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
                panic!("round {round}: the child ended by itself, {status}: {text}");
            }
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let mut promise = Promise::read(&std::fs::read_to_string(&notes).unwrap());
        let outbox = workload::open(root.path()).unwrap();
        promise.check(&outbox).unwrap();
    }
    let mut promise = Promise::read(&std::fs::read_to_string(&notes).unwrap());
    let mut outbox = workload::open(root.path()).unwrap();
    promise.check(&outbox).unwrap();
    promise.check_next(&mut outbox).unwrap();
    assert!(promise.answered > rounds, "the child was killed before it did anything");
}
