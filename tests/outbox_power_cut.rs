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
#[path = "power/preload.rs"]
mod preload;
#[path = "power/workload.rs"]
mod workload;

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use disk::{Disk, Operation};
use hark::clock::Rng;
use workload::{NOTES, Plan, Promise};

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
        renew_every: next().parse().ok(),
    };
    let outbox = workload::run(Path::new(&root), plan);
    if next() == "abort" {
        // As if killed: nothing is flushed or closed.
        std::process::abort();
    }
    drop(outbox);
}

/// What is recorded.
#[derive(Debug, Clone, Copy)]
struct Run {
    large: bool,
    commits: usize,
    renew_every: Option<usize>,
    /// What tells the recorder to leave syncs out.
    without: Option<(&'static str, &'static str)>,
}

/// Enough that keys of what was delivered are cleared away several times.
const SMALL: Run = Run { large: false, commits: 200, renew_every: None, without: None };
/// Cuts fall into each step of a replacement.
const RENEWED: Run = Run { commits: 12, renew_every: Some(2), ..SMALL };

/// Three processes one after the other on the same outbox: cuts fall into opening, too, after an
/// orderly end and after none.
fn record(run: Run) -> Vec<Operation> {
    let Run { large, commits, renew_every, without } = run;
    let renew_every = renew_every.map_or("never".to_owned(), |every| every.to_string());
    let scratch = tempfile::tempdir().unwrap();
    let recorder = preload::compile("recorder", scratch.path());
    let root = scratch.path().canonicalize().unwrap().join("root");
    std::fs::create_dir(&root).unwrap();
    let log = scratch.path().join("log");
    for (seed, end) in [(1, "abort"), (2, "close"), (3, "abort")] {
        let size = if large { "large" } else { "small" };
        let mut child = Command::new(std::env::current_exe().unwrap());
        child
            .args(["--exact", "child", "--nocapture"])
            .env(CHILD, format!("{} {seed} {commits} {size} {renew_every} {end}", root.display()))
            .env("LD_PRELOAD", &recorder)
            .env("HARK_RECORD_ROOT", &root)
            .env("HARK_RECORD_LOG", &log);
        if let Some((name, value)) = without {
            child.env(name, value);
        }
        let output = child.output().unwrap();
        let aborted = output.status.signal() == Some(ABORTED);
        let as_planned = if end == "abort" { aborted } else { output.status.success() };
        assert!(as_planned, "{}", String::from_utf8_lossy(&output.stderr));
        disk::drop_torn_note(&log);
    }
    disk::read_log(&log)
}

/// Opens what a cut left.
fn verify(notes: &str, root: &Path) -> Result<(), String> {
    let mut promise = Promise::read(notes);
    if !root.exists() {
        return Ok(());
    }
    let mut outbox = workload::open(root)?;
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

/// The operations of one replacement of the store, from its first rename to the next note.
fn replacement(operations: &[Operation], rng: &mut Rng) -> Range<usize> {
    let is_first =
        |at: &usize| operations[*at].kind == b'R' && operations[*at].path.ends_with("/sled");
    let starts: Vec<_> = (0..operations.len()).filter(is_first).collect();
    let start = starts[rng.u64() as usize % starts.len()];
    let is_note = |operation: &Operation| operation.kind == b'W' && operation.path == NOTES;
    let length = operations[start..].iter().position(is_note);
    start..length.map_or(operations.len(), |length| start + length)
}

/// Makes cuts; returns what went wrong, by cut.
fn replay(run: Run, operations: &[Operation], disk: Disk) -> BTreeMap<usize, String> {
    let mut broken = BTreeMap::new();
    let shared_memory = Path::new("/dev/shm");
    for number in 0..cuts() {
        let mut rng = Rng::from_seed(number as u64);
        let span = match (number % 2, run.renew_every) {
            (0, _) => 0..operations.len(),
            (_, Some(_)) if number % 4 == 1 => replacement(operations, &mut rng),
            _ => opening(operations, &mut rng),
        };
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

fn assert_kept(run: Run) {
    let operations = record(run);
    let syncs = operations.iter().filter(|o| o.kind == b'F' && o.path.ends_with("/db")).count();
    let commits = PROCESSES * run.commits;
    assert!(syncs >= commits, "{syncs} syncs of sled's log for {commits} commits");
    for disk in [Disk::VolatileCache, Disk::NoCache, Disk::NoJournal] {
        let broken = replay(run, &operations, disk);
        println!("{disk:?}: {} of {} cuts kept all", cuts() - broken.len(), cuts());
        assert!(broken.is_empty(), "{disk:?}: {broken:#?}");
    }
}

#[test]
fn small_commits_survive_power_cuts() {
    assert_kept(SMALL);
}

#[test]
fn commits_of_more_than_a_segment_survive_power_cuts() {
    assert_kept(Run { large: true, commits: 10, ..SMALL });
}

#[test]
fn a_store_that_is_replaced_by_a_fresh_one_survives_power_cuts() {
    assert_kept(RENEWED);
}

#[test]
fn control_without_the_sync_accepted_events_are_lost() {
    let run = Run { without: Some(("HARK_DOWNGRADE", "1")), ..SMALL };
    let operations = assert_lost(run, &[Disk::VolatileCache, Disk::NoCache]);
    assert!(operations.iter().any(|o| o.kind == b'S'), "the sync was not left out");
}

#[test]
fn control_a_fresh_store_that_is_not_synced_loses_accepted_events() {
    // Until the next opening syncs it under its new name.
    let run = Run { without: Some(("HARK_UNSYNCED", "sled.new/")), ..RENEWED };
    assert_lost(run, &[Disk::VolatileCache, Disk::NoJournal]);
}

fn assert_lost(run: Run, disks: &[Disk]) -> Vec<Operation> {
    let operations = record(run);
    for &disk in disks {
        let broken = replay(run, &operations, disk);
        println!("{disk:?}: {} of {} cuts kept all", cuts() - broken.len(), cuts());
        assert!(!broken.is_empty(), "{disk:?}: nothing was lost without a sync: the test is blind");
    }
    operations
}
