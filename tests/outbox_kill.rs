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
use hark::driver::sled_store::SledStore;
use hark::outbox::Outbox;
use workload::{NOTES, OUTBOX, Plan, Promise};

const CHILD: &str = "HARK_TEST_CHILD";

/// Not a test: what is killed. It commits until then.
#[test]
fn child() {
    let Ok(arguments) = std::env::var(CHILD) else { return };
    let (root, seed) = arguments.rsplit_once(' ').unwrap();
    let plan = Plan { seed: seed.parse().unwrap(), commits: usize::MAX, large: false };
    drop(workload::run(Path::new(root), plan));
}

#[test]
fn everything_reported_accepted_is_there_after_kill_9() {
    let rounds = std::env::var("HARK_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(12);
    let root = tempfile::tempdir().unwrap();
    let notes = root.path().join(NOTES);
    let mut rng = Rng::from_seed(7);
    for round in 1..=rounds {
        let before = std::fs::metadata(&notes).map_or(0, |file| file.len());
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env(CHILD, format!("{} {round}", root.path().display()))
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
        let outbox = Outbox::open(SledStore::open(&root.path().join(OUTBOX)).unwrap()).unwrap();
        promise.check(&outbox).unwrap();
    }
    let mut promise = Promise::read(&std::fs::read_to_string(&notes).unwrap());
    let mut outbox = Outbox::open(SledStore::open(&root.path().join(OUTBOX)).unwrap()).unwrap();
    promise.check(&outbox).unwrap();
    promise.check_next(&mut outbox).unwrap();
    assert!(promise.answered > rounds, "the child was killed before it did anything");
}
