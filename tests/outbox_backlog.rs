//! A large backlog: what it costs to hold, to open and to drain, and what is left of it afterwards.
//!
//! `HARK_BACKLOG` says of how many events (default 20,000; `scripts/torture backlog` takes 500,000 and a
//! release build named in `HARK_BACKLOG_BINARY`). Memory is what `/proc` counts as resident and private.
#![allow(clippy::disallowed_methods, reason = "real processes need real time and real threads")]

mod support;

use std::path::Path;
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
    let (opened, agent) = opening(&device);
    let full_kib = anonymous_kib(agent.id());
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
    let mut most_kib = 0;
    let drained = "the outbox has a fresh file";
    while !agent.log().iter().any(|line| line.contains(drained)) {
        most_kib = most_kib.max(anonymous_kib(agent.id()));
        assert!(
            begun.elapsed() < Duration::from_secs(60 + events() as u64 / 500),
            "{:?}",
            agent.log()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    let line = agent.wait_for_log(&[drained]);
    println!(
        "drained in {} s, at most {most_kib} KiB of memory; {line}",
        begun.elapsed().as_secs()
    );
    support::wait_until("all is delivered", || waiting(&device) == 0);
    support::wait_until("the old file is gone", || !device.outbox().join("sled.old").exists());
    let left = size(&device.outbox());
    println!("{left} bytes are left");
    assert!(left < LEFT_BYTES, "{left}");
    assert!(stored > LEFT_BYTES, "the backlog was too small to show anything: {stored}");
    let most = most_kib.max(full_kib).saturating_sub(empty_kib);
    assert!(most < 32 * 1024, "{most} KiB of memory more than with an empty outbox");

    // It goes on as before.
    let answer = device
        .post(r#"{"specversion":"1.0","id":"next","source":"/s","type":"t","lane":"telemetry"}"#);
    let expected = format!("\"sequence\":\"{:020}\"", events() + 1);
    assert!(answer.as_ref().is_ok_and(|text| text.contains(&expected)), "{answer:?}");
    assert!(agent.stop().success());
}
