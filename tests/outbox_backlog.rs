//! A large backlog: what it costs to hold, to open and to drain, and what is left of it afterwards.
//!
//! `HARK_BACKLOG` says of how many events (default 20,000; `scripts/torture backlog` takes 500,000 and a
//! release build named in `HARK_BACKLOG_BINARY`). Memory is what `/proc` counts as resident and private.
#![allow(clippy::disallowed_methods, reason = "real processes need real time and real threads")]

mod support;

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hark::clock::{ClockState, WallTime};
use hark::driver::sled_store::SledStore;
use hark::event::{Lane, json};
use hark::outbox::Outbox;
use support::agent::{Agent, Device, hark};
use support::mosquitto::Mosquitto;

const NOW: WallTime = WallTime { unix_ms: 1_795_000_000_000, state: ClockState::Synced };
const NOWHERE: &str = "mqtt://127.0.0.1:1";
/// An empty outbox's 1 MiB of log, 4 MiB of ballast, and what a rest of 256 KiB may have grown to.
const LEFT_BYTES: u64 = 16 * 1024 * 1024;

fn events() -> usize {
    std::env::var("HARK_BACKLOG").map_or(20_000, |n| n.parse().expect("a number"))
}

/// Stores events of about 700 bytes.
fn fill(path: &Path, count: usize) {
    let mut outbox = Outbox::open(SledStore::open(path).expect("open store")).expect("open");
    for first in (0..count).step_by(256) {
        let event = |number: usize| {
            let data = format!("{number:0580}");
            let text = format!(
                r#"{{"specversion":"1.0","id":"{number}","source":"/s","type":"t","data":"{data}"}}"#
            );
            (Lane::Telemetry, json::parse(text.as_bytes()).expect("an event"))
        };
        let events: Vec<_> = (first..count.min(first + 256)).map(event).collect();
        outbox.append(&events, NOW).expect("accepted");
    }
}

/// Bytes of all files below a directory.
fn size(path: &Path) -> u64 {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => size(&entry.path()),
        meta => meta.map_or(0, |meta| meta.len()),
    });
    sizes.sum()
}

/// KiB of a process's memory that is nobody else's and no file's.
fn anonymous_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).expect("RssAnon");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
}

fn start(device: &Device, url: &str) -> Agent {
    let mut command = match std::env::var_os("HARK_BACKLOG_BINARY") {
        Some(binary) => {
            let mut command = std::process::Command::new(binary);
            command.arg("run").arg("--config").arg(device.config());
            command
        }
        None => device.command(),
    };
    command.env("HARK__UPLINK__URL", url);
    Agent::spawn(command)
}

/// From the start of the process until the outbox is open, without what any start costs.
fn opening(device: &Device) -> (Duration, Agent) {
    let begun = Instant::now();
    let mut agent = start(device, NOWHERE);
    agent.wait_for_log(&["starts", "waiting="]);
    (begun.elapsed(), agent)
}

/// The lines of `hark outbox list`, made in at most 128 MiB of memory, stacks included.
fn listed(device: &Device) -> usize {
    let binary = hark().get_program().to_owned();
    let mut command = std::process::Command::new("sh");
    let script = "ulimit -d 131072 && exec \"$0\" outbox list --json --config \"$1\"";
    command.args(["-c", script]).arg(binary).arg(device.config());
    command.stdout(Stdio::piped()).env("TMPDIR", device.path());
    let mut child = command.spawn().expect("run");
    let lines = BufReader::new(child.stdout.take().expect("piped")).lines().count();
    assert!(child.wait().expect("wait").success());
    lines
}

/// Posts an alert now and then until `done`; how many, and the longest that one took.
fn alerts(device: &Device, done: &AtomicBool) -> (usize, Duration) {
    let (mut count, mut slowest) = (0, Duration::ZERO);
    while !done.load(Ordering::Relaxed) {
        let event = format!(
            r#"{{"specversion":"1.0","id":"alert-{count}","source":"/a","type":"t","lane":"alert"}}"#
        );
        let begun = Instant::now();
        device.post(&event).expect("accepted");
        slowest = slowest.max(begun.elapsed());
        count += 1;
        std::thread::sleep(Duration::from_millis(20));
    }
    (count, slowest)
}

fn waiting(device: &Device) -> u64 {
    let mut stats = hark();
    stats.args(["outbox", "stats", "--json", "--config"]).arg(device.config());
    let output = stats.output().expect("run");
    let stats: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    stats["waiting"].as_u64().unwrap_or(u64::MAX)
}

#[test]
fn a_drained_backlog_leaves_a_small_file_and_no_memory() {
    let device = Device::new(NOWHERE, "none");
    // The limit is not what is tested here.
    let text = std::fs::read_to_string(device.config()).expect("config");
    let text = text.replace("[outbox]\n", "[outbox]\nmax_size = \"8GiB\"\n");
    std::fs::write(device.config(), text).expect("config");

    let (_, agent) = opening(&device);
    let empty_kib = anonymous_kib(agent.id());
    assert!(agent.stop().success());

    fill(&device.outbox(), events());
    let stored = size(&device.outbox());
    let begun = Instant::now();
    assert!(listed(&device) >= events());
    println!("listed from the files in {} ms", begun.elapsed().as_millis());
    let (opened, agent) = opening(&device);
    let full_kib = anonymous_kib(agent.id());
    let begun = Instant::now();
    support::wait_until("the agent listens", || UnixStream::connect(device.socket()).is_ok());
    assert!(listed(&device) >= events());
    println!(
        "listed by the agent in {} ms, {} KiB of its memory afterwards",
        begun.elapsed().as_millis(),
        anonymous_kib(agent.id())
    );
    let full_kib = full_kib.max(anonymous_kib(agent.id()));
    assert!(agent.stop().success());
    println!(
        "{} events, {} MiB: opened in {} ms, {full_kib} KiB of memory, {empty_kib} KiB when empty",
        events(),
        stored >> 20,
        opened.as_millis(),
    );

    let broker = Mosquitto::start();
    let begun = Instant::now();
    let mut agent = start(&device, &broker.url());
    support::wait_until("the agent listens", || UnixStream::connect(device.socket()).is_ok());
    let drained = "the outbox has a fresh file";
    let limit = Duration::from_secs(60 + events() as u64 / 500);
    let done = AtomicBool::new(false);
    let (most_kib, (count, slowest)) = std::thread::scope(|scope| {
        let alerts = scope.spawn(|| alerts(&device, &done));
        let mut most_kib = 0;
        while !agent.log().iter().any(|line| line.contains(drained)) && begun.elapsed() < limit {
            most_kib = most_kib.max(anonymous_kib(agent.id()));
            std::thread::sleep(Duration::from_millis(20));
        }
        // The old file is removed after that.
        std::thread::sleep(Duration::from_millis(500));
        done.store(true, Ordering::Relaxed);
        (most_kib, alerts.join().expect("all accepted"))
    });
    let line = agent.wait_for_log(&[drained]);
    println!(
        "drained in {} s, at most {most_kib} KiB of memory; the slowest of {count} alerts meanwhile {} ms; {line}",
        begun.elapsed().as_secs(),
        slowest.as_millis()
    );
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
    support::wait_until("all is delivered", || waiting(&device) == 0);
    support::wait_until("the old file is gone", || !device.outbox().join("sled.old").exists());
    let left = size(&device.outbox());
    println!("{left} bytes are left");
    assert!(left < LEFT_BYTES, "{left}");
    assert!(stored > LEFT_BYTES, "the backlog was too small to show anything: {stored}");
    let over = |kib: u64| kib.saturating_sub(empty_kib);
    assert!(over(full_kib) < 32 * 1024, "{} KiB more than with an empty outbox", over(full_kib));
    // While it is drained the records on their way are there as well (`docs/outbox.md`).
    assert!(over(most_kib) < 40 * 1024, "{} KiB more while it is drained", over(most_kib));

    // It goes on as before.
    let answer = device
        .post(r#"{"specversion":"1.0","id":"next","source":"/s","type":"t","lane":"telemetry"}"#);
    let expected = format!("\"sequence\":\"{:020}\"", events() + 1);
    assert!(answer.as_ref().is_ok_and(|text| text.contains(&expected)), "{answer:?}");
    assert!(agent.stop().success());
}
