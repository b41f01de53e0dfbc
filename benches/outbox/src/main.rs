//! What it costs to keep an event: bytes that reach the device, and the time until it is accepted,
//! beside SQLite, redb and an append-only log, in one run on one file system.
//!
//! `scripts/bench outbox [EVENTS]` mounts an ext4 image of its own, so that the counters of its
//! block device hear of nobody else, and calls this program:
//! `outbox-bench DIRECTORY BLOCK_DEVICE EVENTS`.
//!
//! **Bytes.** A steady state: each commit adds G events of 700 bytes and removes the G oldest beyond 200 that wait.
//! All of it counts: data, the engine's own bookkeeping, the file system's journal.
//!
//! **Latency.** An alert through the outbox's own thread, against the same file system's bare write of
//! 700 bytes and `fdatasync`, in turn; alone, and beside 1,000 readings a second.

mod peers;

use std::fs;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hark::clock::{Clock, ClockState, WallTime};
use hark::driver::outbox_open;
use hark::driver::sled_store::SledStore;
use hark::driver::outbox_writer::{self, OutboxHandle, Settings};
use hark::event::{Event, Lane, json};
use hark::outbox::{Batch, Chronicle, Outbox, Store};
use peers::Peer;
use tokio::sync::watch;

const BYTES: usize = 700;
const WAITING: u64 = 200;
const ROUNDS: usize = 3;
const ALERTS: usize = 500;
const NOW: WallTime = WallTime { unix_ms: 1_795_000_000_000, state: ClockState::Synced };

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [directory, device, events] = arguments.as_slice() else {
        eprintln!("usage: outbox-bench DIRECTORY BLOCK_DEVICE EVENTS");
        std::process::exit(64);
    };
    let directory = PathBuf::from(directory);
    bytes(&directory, device, events.parse().expect("a number of events"));
    latency(&directory);
}

/// Structured JSON of [`BYTES`] bytes, not compressible beyond its base 16.
pub(crate) fn payload(number: u64) -> String {
    let head = format!(
        r#"{{"specversion":"1.0","id":"{number:012}","source":"/bench","type":"io.hark.sensor.reading.recorded","data":""#
    );
    let mut state = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut text = head;
    while text.len() < BYTES - 2 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        text.push(char::from_digit((state >> 40) as u32 & 15, 16).expect("a digit"));
    }
    text.push_str("\"}");
    text
}

pub(crate) fn event(number: u64) -> Event {
    json::parse(payload(number).as_bytes()).expect("an event")
}

/// What the block device has been asked to write, in bytes, once everything is there.
fn written(device: &str) -> u64 {
    assert!(std::process::Command::new("sync").status().is_ok_and(|status| status.success()));
    let path = format!("/sys/block/{device}/stat");
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    // Documentation/admin-guide/iostats: the seventh field counts sectors of 512 bytes.
    text.split_whitespace().nth(6).and_then(|n| n.parse::<u64>().ok()).expect("sectors") * 512
}

fn steady(peer: &mut dyn Peer, events: u64, group: u64) {
    let (mut added, mut removed) = (0, 0);
    while added < events {
        let new = added..(added + group).min(events);
        added = new.end;
        let gone = removed..added.saturating_sub(WAITING).max(removed);
        removed = gone.end;
        peer.commit(new, gone);
    }
}

type Open = fn(&Path) -> Box<dyn Peer>;

fn bytes(directory: &Path, device: &str, events: u64) {
    let peers: [(&str, Open); 4] = [
        ("hark's outbox", |path| Box::new(peers::Hark::open(path))),
        ("SQLite, WAL, synchronous = FULL", |path| Box::new(peers::Sqlite::open(path))),
        ("redb", |path| Box::new(peers::Redb::open(path))),
        ("append-only log", |path| Box::new(peers::Log::open(path))),
    ];
    println!(
        "| bytes on the device per event of {BYTES} bytes ({events} events, median of {ROUNDS}, range) | 1 a commit | 8 | 64 |"
    );
    println!("|---|---|---|---|");
    for (name, open) in peers {
        print!("| {name} |");
        for group in [1, 8, 64] {
            let mut rounds: Vec<u64> = (0..ROUNDS)
                .map(|_| {
                    let path = directory.join("peer");
                    let mut peer = open(&path);
                    let before = written(device);
                    steady(&mut *peer, events, group);
                    let after = written(device);
                    drop(peer);
                    fs::remove_dir_all(&path).expect("clean up");
                    (after - before) / events
                })
                .collect();
            rounds.sort_unstable();
            let (least, most) = (rounds[0], rounds[ROUNDS - 1]);
            print!(" {} ({least} to {most}) |", rounds[ROUNDS / 2]);
        }
        println!();
    }
}

fn latency(directory: &Path) {
    let path = directory.join("outbox");
    let clock = Clock::new(|| ClockState::Synced);
    let maker = hark::event::catalogue::Maker::new("bench", "io.hark");
    let chronicle = Chronicle { maker, rng: hark::clock::Rng::from_seed(1) };
    let outbox: Outbox<_> = outbox_open::open(&path, clock.clone())
        .expect("the outbox opens")
        .with_chronicle(chronicle);
    let (handle, requests) = outbox_writer::channel();
    let (stop, stopped) = watch::channel(false);
    let writer = std::thread::spawn(move || {
        outbox_writer::run(outbox, requests, clock, Settings::default(), stopped)
    });
    let bare = File::create(directory.join("bare")).expect("a file");

    println!(
        "\n| accepted after, ms ({ALERTS} each, in turn) | p50 | p99 | max |\n|---|---|---|---|"
    );
    let (alone, base) = alerts(&handle, &bare, 1 << 32);
    row("bare write and fdatasync", &base);
    row("sled alone, in its thread", &floor(&directory.join("floor")));
    row("alert, idle agent", &alone);
    let going = Arc::new(AtomicBool::new(true));
    let load = {
        let (handle, going) = (handle.clone(), Arc::clone(&going));
        std::thread::spawn(move || readings(&handle, &going))
    };
    let (beside, base) = alerts(&handle, &bare, 1 << 33);
    going.store(false, Ordering::Relaxed);
    let (sent, took) = load.join().expect("the readings");
    row("bare, beside the readings", &base);
    row("alert, beside the readings", &beside);
    println!("\n{:.0} readings a second meanwhile", f64::from(sent) / took.as_secs_f64());
    stop.send(true).expect("the writer runs");
    drop(handle);
    writer.join().expect("the writer").expect("it ends well");
}

/// A record of an alert's size through the store and nothing else, by the thread that waits: what no outbox on it
/// is below. One every 10 ms, as the alerts it stands beside.
fn floor(path: &Path) -> Vec<Duration> {
    let mut store = SledStore::open(path).expect("the store opens");
    let text = payload(0).into_bytes();
    (0..ALERTS as u64)
        .map(|number| {
            let mut batch = Batch::default();
            batch.put(number.to_be_bytes().to_vec(), text.clone());
            let began = Instant::now();
            store.commit(&batch).expect("committed");
            let took = began.elapsed();
            std::thread::sleep(Duration::from_millis(10));
            took
        })
        .collect()
}

/// Alerts and bare syncs in turn, one of each every 10 ms.
fn alerts(handle: &OutboxHandle, bare: &File, first: u64) -> (Vec<Duration>, Vec<Duration>) {
    let text = payload(0);
    (0..ALERTS as u64)
        .map(|number| {
            let began = Instant::now();
            handle.append_blocking(vec![(Lane::Alert, event(first + number))]).expect("accepted");
            let ours = began.elapsed();
            let began = Instant::now();
            bare.write_all_at(text.as_bytes(), number * BYTES as u64).expect("written");
            bare.sync_data().expect("synced");
            let theirs = began.elapsed();
            std::thread::sleep(Duration::from_millis(10));
            (ours, theirs)
        })
        .unzip()
}

/// 1,000 readings a second, handed in ten at a time as a gateway would, without waiting.
fn readings(handle: &OutboxHandle, going: &AtomicBool) -> (u32, Duration) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    runtime.expect("a runtime").block_on(async {
        let (began, mut sent) = (Instant::now(), 0);
        let mut tick = tokio::time::interval(Duration::from_millis(10));
        let mut accepted = tokio::task::JoinSet::new();
        while going.load(Ordering::Relaxed) {
            tick.tick().await;
            let batch = (0..10).map(|n| (Lane::Telemetry, event(u64::from(sent + n)))).collect();
            let handle = handle.clone();
            accepted.spawn(async move { handle.append(batch).await });
            sent += 10;
            while accepted.try_join_next().is_some() {}
        }
        let took = began.elapsed();
        while let Some(answer) = accepted.join_next().await {
            answer.expect("a task").expect("accepted");
        }
        (sent, took)
    })
}

fn row(name: &str, times: &[Duration]) {
    let mut times = times.to_vec();
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    println!("| {name} | {:.2} | {:.2} | {:.2} |", at(0.5), at(0.99), at(1.0));
}
