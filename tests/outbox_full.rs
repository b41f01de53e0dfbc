//! Full and read-only disks: a real agent on a small file system of its own.
//!
//! Each test runs itself again in a namespace where it may mount a tmpfs; where the machine does
//! not allow that it says so and passes. `HARK_FULL_STEPS` says at how many places the disk runs
//! full (`scripts/torture` runs more).
#![allow(clippy::disallowed_methods, reason = "real processes need real time and real threads")]

mod support;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use hark::driver::ballast::BALLAST_BYTES;
use hark::driver::sled_store::SledStore;
use hark::event::Lane;
use hark::outbox::{Outbox, PageLimit};
use support::agent::{Agent, Device};
use support::wait_until;

const INSIDE: &str = "HARK_TEST_INSIDE";

/// Runs the test of this name again on a tmpfs of `size`; false where it is to do its work now.
#[track_caller]
fn runs_elsewhere(name: &str, size: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return false;
    }
    let root = tempfile::tempdir().expect("directory");
    let script = format!(
        "mount -t tmpfs -o size={size} hark {dir} || exit 99; TMPDIR={dir} {INSIDE}=1 exec {exe} --exact {name} --nocapture",
        dir = root.path().display(),
        exe = std::env::current_exe().expect("this program").display(),
    );
    let status = Command::new("unshare").args(["-Urm", "sh", "-c", &script]).status();
    match status.map(|status| status.code()) {
        Ok(Some(0)) => {}
        Ok(Some(1 | 99)) if !may_mount() => println!("skipped: no namespace may be made here"),
        Err(error) => println!("skipped: unshare: {error}"),
        Ok(code) => panic!("{name} failed inside ({code:?})"),
    }
    true
}

fn may_mount() -> bool {
    let status =
        Command::new("unshare").args(["-Urm", "mount", "-t", "tmpfs", "x", "/mnt"]).status();
    status.is_ok_and(|status| status.success())
}

/// Takes all room of the file system but `left` bytes.
fn fill(directory: &Path, left: u64) {
    let path = directory.join("filler");
    let mut file = File::options().create(true).append(true).open(&path).expect("filler");
    let piece = vec![1; 4096];
    let full = loop {
        if let Err(error) = file.write_all(&piece) {
            break error;
        }
    };
    assert_eq!(full.kind(), io::ErrorKind::StorageFull, "{full}");
    let length = file.metadata().expect("filler").len();
    file.set_len(length.saturating_sub(left)).expect("filler");
}

fn event(id: &str, lane: Lane) -> String {
    let data = "x".repeat(600);
    format!(
        r#"{{"specversion":"1.0","id":"{id}","source":"/test","type":"t","lane":"{lane}","data":"{data}"}}"#
    )
}

fn start(device: &Device) -> Agent {
    let agent = device.start();
    wait_until("the agent listens", || UnixStream::connect(device.socket()).is_ok());
    agent
}

/// The ids of what is stored, by lane.
fn stored(device: &Device) -> BTreeMap<String, Lane> {
    let store = SledStore::open(&device.outbox()).expect("open store");
    let outbox = Outbox::open(store).expect("open outbox");
    let all = PageLimit { records: 10_000, bytes: 1 << 30 };
    let pages = Lane::ALL.map(|lane| outbox.page(lane, None, all).expect("page"));
    pages.into_iter().flatten().map(|r| (r.event.id().to_owned(), r.lane)).collect()
}

/// The disk runs full with `left` bytes to go; returns how much telemetry was refused.
fn round(left: u64) -> usize {
    let device = Device::new("mqtt://127.0.0.1:1", "none");
    device.configure("[lanes.telemetry]\ncoalesce = \"1ms\"\n[lanes.status]\ncoalesce = \"1ms\"\n");
    let agent = start(&device);
    let ballast = device.outbox().join("ballast");
    wait_until("room is kept back", || {
        fs::metadata(&ballast).is_ok_and(|meta| meta.len() == BALLAST_BYTES)
    });
    fill(device.path(), left);
    let mut accepted = Vec::new();
    let mut refused = 0;
    for number in 0..25 {
        let id = format!("a{number}");
        let answer = device.post(&event(&id, Lane::Alert));
        assert!(answer.is_ok(), "{left} bytes left: alert {number} was refused: {answer:?}");
        accepted.push(id);
        let id = format!("t{number}");
        match device.post(&event(&id, Lane::Telemetry)) {
            Ok(_) => accepted.push(id),
            Err(answer) => {
                assert!(answer.starts_with("HTTP/1.1 503"), "{left}: {answer}");
                refused += 1;
            }
        }
    }
    agent.kill();

    // The device starts on the full disk and still alarms.
    let mut agent = start(&device);
    let answer = device.post(&event("restarted", Lane::Alert));
    assert!(answer.is_ok(), "{left} bytes left: after a restart: {answer:?}\n{:?}", agent.log());
    accepted.push("restarted".to_owned());

    fs::remove_file(device.path().join("filler")).expect("make room");
    let mut number = 0;
    wait_until("telemetry is taken again", || {
        number += 1;
        let id = format!("u{number}");
        let answer = device.post(&event(&id, Lane::Telemetry));
        let taken = answer.is_ok();
        accepted.extend(taken.then_some(id));
        taken
    });
    wait_until("room is kept back again", || {
        fs::metadata(&ballast).is_ok_and(|meta| meta.len() == BALLAST_BYTES)
    });
    agent.wait_for_log(&["accepted", "device.fault.raised"]);
    assert!(agent.stop().success());
    let stored = stored(&device);
    for id in &accepted {
        assert!(stored.contains_key(id), "{left} bytes left: {id} is gone");
    }
    refused
}

#[test]
fn a_disk_that_runs_full_anywhere_loses_nothing_and_takes_alerts_throughout() {
    if runs_elsewhere(
        "a_disk_that_runs_full_anywhere_loses_nothing_and_takes_alerts_throughout",
        "28m",
    ) {
        return;
    }
    let steps = std::env::var("HARK_FULL_STEPS").map_or(5, |n| n.parse().expect("a number"));
    let mut refused = 0;
    for step in 0..steps {
        // From the very next write to behind the last one of a run, a page apart in the long run.
        refused += round(step * 600_000 / steps / 4096 * 4096);
    }
    println!("{steps} places, {refused} readings refused");
    assert!(refused > 0, "the disk was never full");
}

#[test]
fn a_read_only_disk_is_said_in_one_line() {
    if runs_elsewhere("a_read_only_disk_is_said_in_one_line", "28m") {
        return;
    }
    let device = Device::new("mqtt://127.0.0.1:1", "none");
    assert!(start(&device).stop().success());
    let directory = std::env::var("TMPDIR").expect("inside");
    let remounted =
        Command::new("mount").args(["-o", "remount,ro", &directory]).status().expect("mount");
    assert!(remounted.success());
    let output = device.command().output().expect("run");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(74), "{said}");
    let line = said.lines().find(|line| line.starts_with("hark: ")).expect("a line of ours");
    assert!(line.contains("Read-only file system") && line.contains("outbox"), "{said}");
}
