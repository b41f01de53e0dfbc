//! Nothing is reported accepted before a sync has returned, seen from the kernel's side.
//!
//! A process appends events under strace and writes a line as soon as each is reported accepted.
//! In the trace, between the write that carries an event into sled's log and that line, an `fdatasync`
//! or `fsync` of the same file must have begun and returned 0. The control is the same process with
//! hark's `fdatasync` turned back into what sled does by itself; there, no event may pass.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]
#![allow(clippy::disallowed_methods, reason = "runs real processes under real time")]

#[path = "power/preload.rs"]
mod preload;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::process::Command;

use hark::clock::{Clock, ClockState, WallTime};
use hark::driver::outbox_open;
use hark::driver::sled_store::SledStore;
use hark::event::{Lane, json};
use hark::outbox::Outbox;

const CHILD: &str = "HARK_TEST_CHILD";
const OPENER: &str = "HARK_TEST_OPENER";
const EVENTS: usize = 40;
const NOW: WallTime = WallTime { unix_ms: 1_795_000_000_000, state: ClockState::Synced };

/// Not a test: what runs under strace.
#[test]
fn child() {
    let Ok(path) = std::env::var(CHILD) else { return };
    let mut outbox = Outbox::open(SledStore::open(Path::new(&path)).unwrap()).unwrap();
    for number in 0..EVENTS {
        let id = format!("event-{number:04}");
        // Every tenth event is of many parts, with its id in the first.
        let data = "x".repeat(if number % 10 == 9 { 60_000 } else { 300 });
        let text = format!(
            r#"{{"specversion":"1.0","id":"{id}","source":"/s","type":"t","data":"{data}"}}"#
        );
        let event = json::parse(text.as_bytes()).unwrap();
        match outbox.append(&[(Lane::Alert, event)], NOW) {
            Ok(_) => say(&format!("accepted {id}")),
            Err(error) => return say(&format!("refused {id}: {error}")),
        }
    }
}

/// Not a test: opens an outbox under strace.
#[test]
fn opener() {
    let Ok(path) = std::env::var(OPENER) else { return };
    let clock = Clock::new(|| ClockState::Unsynced);
    outbox_open::open(Path::new(&path), clock).unwrap();
}

fn say(line: &str) {
    std::io::stdout().write_all(format!("{line}\n").as_bytes()).unwrap();
    std::io::stdout().flush().unwrap();
}

/// The system calls of a run; a call that was interrupted by another thread's is two lines.
fn trace(downgrade: bool) -> String {
    let scratch = tempfile::tempdir().unwrap();
    let output = scratch.path().join("trace");
    let mut strace = Command::new("strace");
    strace
        .args(["-f", "-y", "-s", "600000", "-e", "trace=pwrite64,fdatasync,fsync,write", "-o"])
        .arg(&output)
        .args(["-E", &format!("{CHILD}={}", scratch.path().join("outbox").display())]);
    if downgrade {
        let recorder = preload::compile("recorder", scratch.path());
        strace.args(["-E", "HARK_DOWNGRADE=1", "-E"]);
        strace.arg(format!("LD_PRELOAD={}", recorder.display()));
    }
    let child = std::env::current_exe().unwrap();
    let status = strace
        .arg(child)
        .args(["--exact", "child", "--nocapture"])
        .stdout(std::process::Stdio::null())
        .status()
        .expect("strace shows the system calls: install it");
    assert!(status.success());
    std::fs::read_to_string(output).unwrap()
}

/// What has happened to the log, as far as it has been read.
#[derive(Default)]
struct Log {
    /// Line at which the write that first carried an event had returned.
    written: BTreeMap<String, usize>,
    /// Lines at which the last sync that has returned 0 had begun.
    synced_from: Option<usize>,
    /// Calls that have begun and not returned, by thread: name, line, text.
    open: BTreeMap<String, (usize, String)>,
}

impl Log {
    /// A call on sled's log that has returned.
    fn returned(&mut self, begun: usize, line: usize, call: &str) {
        let of_the_log = call.contains("/sled/db>");
        let is_sync = call.starts_with("fdatasync(") || call.starts_with("fsync(");
        if !of_the_log {
            return;
        }
        if is_sync && call.trim_end().ends_with("= 0") {
            self.synced_from = Some(self.synced_from.map_or(begun, |other| other.max(begun)));
        } else if call.starts_with("pwrite64(") {
            for (at, _) in call.match_indices("event-") {
                self.written.entry(call[at..at + 10].to_owned()).or_insert(line);
            }
        }
    }
}

/// Events that were reported accepted, and those among them that a sync had covered by then.
fn judge(trace: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut log, mut reported, mut covered) = (Log::default(), BTreeSet::new(), BTreeSet::new());
    for (line, text) in trace.lines().enumerate() {
        let Some((thread, call)) = text.split_once(' ') else { continue };
        let call = call.trim_start();
        if let Some(begun) = call.strip_suffix(" <unfinished ...>") {
            log.open.insert(thread.to_owned(), (line, begun.to_owned()));
        } else if let Some(resumed) = call.strip_prefix("<... ") {
            if let Some((begun, first)) = log.open.remove(thread) {
                log.returned(begun, line, &(first + resumed));
            }
        } else {
            log.returned(line, line, call);
        }
        if call.starts_with("write(1<")
            && let Some(at) = call.find("accepted event-")
        {
            let id = call[at + 9..at + 19].to_owned();
            let written = log.written.get(&id);
            if written.zip(log.synced_from).is_some_and(|(written, begun)| begun > *written) {
                covered.insert(id.clone());
            }
            reported.insert(id);
        }
    }
    (reported, covered)
}

#[test]
fn no_event_is_reported_accepted_before_its_sync_has_returned() {
    let trace = trace(false);
    let (reported, covered) = judge(&trace);
    assert_eq!(reported.len(), EVENTS);
    assert_eq!(reported, covered);
    // A batch and its manifest share one, unless a busy machine wakes the manifest's thread too late: without that
    // each piece of the log has its own.
    let of_the_log = |call: &str| {
        trace.lines().filter(|line| line.contains(call) && line.contains("/sled/db>")).count()
    };
    let (pieces, syncs) = (of_the_log("pwrite64("), of_the_log("fdatasync("));
    eprintln!("{syncs} syncs for {pieces} pieces of {EVENTS} commits");
    assert!(pieces >= 2 * EVENTS, "a commit is no longer two pieces: {pieces}");
    assert!(syncs < pieces, "{syncs} syncs for {pieces} pieces");
}

#[test]
fn control_without_the_sync_no_event_passes() {
    let (reported, covered) = judge(&trace(true));
    assert_eq!(reported.len(), EVENTS);
    // sled's own thread syncs now and then, so that an event may be covered by luck.
    assert!(covered.len() < EVENTS / 2, "{covered:?}");
}

/// Four starts that were each followed by a power cut would otherwise make a sound store count as damaged.
#[test]
fn an_opening_has_ended_on_the_disk_as_well() {
    let scratch = tempfile::tempdir().unwrap();
    let output = scratch.path().join("trace");
    let status = Command::new("strace")
        .args(["-f", "-y", "-e", "trace=unlink,unlinkat,fsync", "-o"])
        .arg(&output)
        .args(["-E", &format!("{OPENER}={}", scratch.path().join("outbox").display())])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "opener", "--nocapture"])
        .stdout(std::process::Stdio::null())
        .status()
        .expect("strace shows the system calls: install it");
    assert!(status.success());
    let trace = std::fs::read_to_string(output).unwrap();
    let removed = trace.lines().position(|line| {
        line.contains("/outbox/opening\"") && line.contains("unlink") && line.ends_with("= 0")
    });
    let after = trace.lines().skip(removed.expect("the mark is removed"));
    let is_sync =
        |line: &str| line.contains("fsync(") && line.contains("/outbox>") && line.ends_with("= 0");
    assert!(after.clone().any(is_sync), "{}", after.collect::<Vec<_>>().join("\n"));
}

#[test]
fn a_sync_that_fails_is_never_an_acceptance_and_the_process_ends() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("outbox");
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(CHILD, &path)
        .env("LD_PRELOAD", preload::compile("recorder", scratch.path()))
        .env("HARK_FAIL_SYNCS", "30")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let accepted = text.lines().filter(|line| line.contains("accepted event-")).count();
    // A commit takes one sync, at times two, and opening a few.
    assert!((5..30).contains(&accepted), "{text}");
    let refused = text.lines().find(|line| line.contains("refused event-")).unwrap();
    assert!(refused.contains("takes nothing more since a commit failed"), "{refused}");
    assert!(refused.contains("Input/output error"), "{refused}");
    let outbox = Outbox::open(SledStore::open(&path).unwrap()).unwrap();
    assert!(outbox.depth()[0] >= accepted as u64);
}
