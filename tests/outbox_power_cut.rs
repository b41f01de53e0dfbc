//! Power cuts: a recorded run of the outbox, replayed up to random points with what was not synced
//! lost by chance, must open every time and hold everything that had been reported accepted.
//!
//! `HARK_CUTS` sets how many cuts each test makes (default 60). The control is the same run with
//! hark's `fdatasync` turned back into what sled does by itself, and must break the promise:
//! otherwise these tests could not fail.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]
#![allow(clippy::disallowed_methods, reason = "runs real processes under real time")]

#[path = "power/disk.rs"]
mod disk;
#[path = "power/workload.rs"]
mod workload;

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use disk::{Disk, Operation};
use hark::clock::Rng;
use hark::driver::sled_store::SledStore;
use hark::outbox::Outbox;
use workload::{NOTES, OUTBOX, Plan, Promise};

const CHILD: &str = "HARK_TEST_CHILD";
const ABORTED: i32 = 6;
const PROCESSES: usize = 3;

/// Not a test: what the recorded process runs.
#[test]
fn child() {
    let Ok(arguments) = std::env::var(CHILD) else { return };
    let mut words = arguments.split(' ');
    let mut next = || words.next().unwrap();
    let root = next().to_owned();
    let plan = Plan {
        seed: next().parse().unwrap(),
        commits: next().parse().unwrap(),
        large: next() == "large",
    };
    let outbox = workload::run(Path::new(&root), plan);
    if next() == "abort" {
        // As if killed: nothing is flushed or closed.
        std::process::abort();
    }
    drop(outbox);
}

/// Three processes one after the other on the same outbox: cuts fall into opening, too, after an
/// orderly end and after none.
fn record(large: bool, commits: usize, downgrade: bool) -> Vec<Operation> {
    let scratch = tempfile::tempdir().unwrap();
    let recorder = disk::compile_recorder(scratch.path());
    let root = scratch.path().canonicalize().unwrap().join("root");
    std::fs::create_dir(&root).unwrap();
    let log = scratch.path().join("log");
    for (seed, end) in [(1, "abort"), (2, "close"), (3, "abort")] {
        let size = if large { "large" } else { "small" };
        let mut child = Command::new(std::env::current_exe().unwrap());
        child
            .args(["--exact", "child", "--nocapture"])
            .env(CHILD, format!("{} {seed} {commits} {size} {end}", root.display()))
            .env("LD_PRELOAD", &recorder)
            .env("HARK_RECORD_ROOT", &root)
            .env("HARK_RECORD_LOG", &log);
        if downgrade {
            child.env("HARK_DOWNGRADE", "1");
        }
        let output = child.output().unwrap();
        let aborted = output.status.signal() == Some(ABORTED);
        let as_planned = if end == "abort" { aborted } else { output.status.success() };
        assert!(as_planned, "{}", String::from_utf8_lossy(&output.stderr));
    }
    disk::read_log(&log)
}

/// Opens what a cut left.
fn verify(notes: &str, root: &Path) -> Result<(), String> {
    let mut promise = Promise::read(notes);
    if !root.exists() {
        return Ok(());
    }
    let store = SledStore::open(&root.join(OUTBOX)).map_err(|e| format!("open: {e}"))?;
    let mut outbox = Outbox::open(store).map_err(|e| format!("open: {e}"))?;
    promise.check(&outbox)?;
    promise.check_next(&mut outbox)
}

fn cuts() -> usize {
    std::env::var("HARK_CUTS").ok().and_then(|text| text.parse().ok()).unwrap_or(60)
}

/// The operations of one process until its first note: an opening. Half of all cuts fall there.
fn opening(operations: &[Operation], rng: &mut Rng) -> Range<usize> {
    let starts: Vec<_> = (0..operations.len()).filter(|&at| operations[at].kind == b'P').collect();
    assert_eq!(starts.len(), PROCESSES);
    let start = starts[rng.u64() as usize % starts.len()];
    let is_note = |operation: &Operation| operation.kind == b'W' && operation.path == NOTES;
    let length = operations[start..].iter().position(is_note).unwrap();
    start..start + length
}

/// Makes cuts; returns what went wrong, by cut.
fn replay(operations: &[Operation], disk: Disk) -> BTreeMap<usize, String> {
    let mut broken = BTreeMap::new();
    let shared_memory = Path::new("/dev/shm");
    for number in 0..cuts() {
        let mut rng = Rng::from_seed(number as u64);
        let span =
            if number % 2 == 0 { 0..operations.len() } else { opening(operations, &mut rng) };
        let at = span.start + 1 + rng.u64() as usize % span.len();
        let target = if shared_memory.is_dir() {
            tempfile::tempdir_in(shared_memory).unwrap()
        } else {
            tempfile::tempdir().unwrap()
        };
        let notes = disk::cut(operations, at, disk, &mut rng, NOTES, target.path());
        if let Err(problem) = verify(&notes, target.path()) {
            broken.insert(at, problem);
        }
    }
    broken
}

fn assert_kept(large: bool, commits: usize) {
    let operations = record(large, commits, false);
    let syncs = operations.iter().filter(|o| o.kind == b'F' && o.path.ends_with("/db")).count();
    let commits = PROCESSES * commits;
    assert!(syncs >= commits, "{syncs} syncs of sled's log for {commits} commits");
    for disk in [Disk::VolatileCache, Disk::NoCache, Disk::NoJournal] {
        let broken = replay(&operations, disk);
        println!("{disk:?}: {} of {} cuts kept all", cuts() - broken.len(), cuts());
        assert!(broken.is_empty(), "{disk:?}: {broken:#?}");
    }
}

#[test]
fn small_commits_survive_power_cuts() {
    assert_kept(false, 100);
}

#[test]
fn commits_of_more_than_a_segment_survive_power_cuts() {
    assert_kept(true, 10);
}

#[test]
fn control_without_the_sync_accepted_events_are_lost() {
    let operations = record(false, 100, true);
    assert!(operations.iter().any(|o| o.kind == b'S'), "the sync was not left out");
    for disk in [Disk::VolatileCache, Disk::NoCache] {
        let broken = replay(&operations, disk);
        println!("{disk:?}: {} of {} cuts kept all", cuts() - broken.len(), cuts());
        assert!(!broken.is_empty(), "{disk:?}: nothing was lost without a sync: the test is blind");
    }
}
