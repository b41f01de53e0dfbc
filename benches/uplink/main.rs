//! How fast a stored backlog reaches the broker, and how soon an alert does, beside others.
//!
//! `scripts/bench uplink [EVENTS] [drain|latency|overtake] [PEER]`: 100,000 events of 700 bytes, window 100, mosquitto
//! without persistence on the loopback interface, all peers in each round, or hark alone and those whose name begins with PEER
//! (`-`: none). Ours reads a synced store and removes from it; the others have their messages in memory.
#![allow(clippy::disallowed_methods, reason = "real time is what is measured")]
#![allow(clippy::unwrap_used, reason = "a measurement that cannot be made ends with its reason")]

#[path = "../../tests/support/mod.rs"]
mod support;

mod latency;
mod overtake;
mod peers;

use std::cell::RefCell;
use std::time::{Duration, Instant};

use hark::agent::{self, Happening, Parts};
use hark::clock::{ClockState, WallTime};
use hark::config;
use hark::driver::sled_store::SledStore;
use hark::event::{Lane, json};
use hark::outbox::Outbox;
use support::mosquitto::{Mosquitto, Options};
use tokio::sync::{broadcast, oneshot};

const WINDOW: u16 = 100;
const BYTES: usize = 700;
const TOPIC: &str = "hark/bench/events/telemetry";

/// Rounds: each has every peer once, so that a slow moment hits all of them.
const ROUNDS: usize = 5;

fn quiet() -> Options {
    Options { quiet: true, ..Options::default() }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let count = arguments.next().map_or(100_000, |text| text.parse().expect("EVENTS is a number"));
    let only = arguments.next().unwrap_or_default();
    if "drain".contains(&only) || only.is_empty() {
        drain(count, &arguments.next().unwrap_or_default());
    }
    if "latency".contains(&only) || only.is_empty() {
        latency::table();
    }
    if "overtake".contains(&only) || only.is_empty() {
        overtake::table();
    }
}

fn drain(count: usize, peer: &str) {
    let at = |run: &dyn Fn(u16) -> Duration| {
        let broker = Mosquitto::with(quiet());
        run(broker.port())
    };
    let removed = RefCell::new(Vec::new());
    let rows: [(&str, &dyn Fn() -> Duration); 5] = [
        ("hark, from its synced outbox, MQTT 5", &|| {
            at(&|port| {
                let (last_puback, last_removal) = runtime().block_on(ours(port, count));
                removed.borrow_mut().push(last_removal);
                last_puback
            })
        }),
        ("rumqttc, from memory, MQTT 5", &|| {
            at(&|port| runtime().block_on(peers::rumqttc_v5(port, count)))
        }),
        ("rumqttc, from memory, MQTT 3.1.1", &|| {
            at(&|port| runtime().block_on(peers::rumqttc_v4(port, count)))
        }),
        ("Paho C, from memory, MQTT 5", &|| at(&|port| peers::paho(port, count))),
        ("mosquitto as a bridge, from memory, MQTT 5", &|| {
            runtime().block_on(peers::mosquitto_bridge(count))
        }),
    ];
    let rows: Vec<_> = rows
        .into_iter()
        .filter(|(name, _)| name.starts_with("hark") || name.starts_with(peer))
        .collect();
    let mut took = vec![Vec::new(); rows.len()];
    for _ in 0..ROUNDS {
        for ((_, run), took) in rows.iter().zip(&mut took) {
            took.push(run());
        }
    }
    println!(
        "| {count} events of {BYTES} bytes, window {WINDOW}, {ROUNDS} rounds | events/s until the last PUBACK, median (range) | hark to it, in each round: median (range) | and with hark's time until its outbox is empty |\n|---|---|---|---|"
    );
    let (ours, removed) = (took[0].clone(), removed.borrow());
    for ((name, _), took) in rows.iter().zip(&took) {
        let rate = spread(took.iter().map(|took| count as f64 / took.as_secs_f64()), 0);
        let to_it = |ours: &[Duration]| {
            let pairs = took.iter().zip(ours);
            spread(pairs.map(|(it, ours)| it.as_secs_f64() / ours.as_secs_f64()), 2)
        };
        println!("| {name} | {rate} | {} | {} |", to_it(&ours), to_it(&removed));
    }
}

/// Median and range.
fn spread(values: impl Iterator<Item = f64>, digits: usize) -> String {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let (least, most) = (values[0], values[values.len() - 1]);
    format!("{:.digits$} ({least:.digits$} to {most:.digits$})", values[values.len() / 2])
}

/// Fills an outbox, then runs the agent on it until it is empty. The time from the connection on until the last PUBACK, as that
/// of the others, and until nothing is left in the outbox.
async fn ours(port: u16, count: usize) -> (Duration, Duration) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("outbox");
    // A thread of that name, so that a profile tells it from what is measured.
    std::thread::scope(|scope| {
        let fill = || fill(&path, count);
        std::thread::Builder::new().name("fill".into()).spawn_scoped(scope, fill).unwrap();
    });
    let text = format!(
        "[device]\nid = \"bench\"\n[audio]\ninput = \"none\"\n[outbox]\npath = {path:?}\n\
         [uplink]\nurl = \"mqtt://127.0.0.1:{port}\"\nwindow = {WINDOW}\n[ingest]\nsocket = \"\"\n[ops]\nlisten = \"\"\n"
    );
    let config = config::load("bench", &text, std::iter::empty()).unwrap().config;
    let parts = Parts::device();
    let mut happenings = parts.happenings.subscribe();
    let (stop, stopped) = oneshot::channel::<()>();
    let agent = agent::run(config, parts, async {
        stopped.await.ok();
        "measured"
    });
    let watch = async {
        let (mut began, mut acknowledged) = (None, None);
        let last = id(count - 1);
        loop {
            match happenings.recv().await {
                Ok(Happening::Uplink(line)) if line.starts_with("connected") => {
                    began.get_or_insert_with(Instant::now);
                }
                Ok(Happening::Acknowledged { id, .. }) if *id == *last => {
                    acknowledged = Some(Instant::now());
                }
                Ok(Happening::Waiting([0, 0, 0])) => break,
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(error) => panic!("the agent ended: {error}"),
            }
        }
        let (began, removed) = (began.unwrap(), Instant::now());
        stop.send(()).ok();
        (acknowledged.unwrap() - began, removed - began)
    };
    let (ended, took) = tokio::join!(agent, watch);
    ended.unwrap();
    took
}

fn id(n: usize) -> String {
    format!("{n:08}")
}

fn fill(path: &std::path::Path, count: usize) {
    let mut outbox = Outbox::open(SledStore::open(path).unwrap()).unwrap();
    let head = |n| {
        format!(r#"{{"specversion":"1.0","id":"{}","source":"/bench","type":"t","data":""#, id(n))
    };
    let tail = "\"}";
    // `sequence` and `lane` are added when it is published.
    let filler = "x".repeat(BYTES - head(0).len() - tail.len());
    for first in (0..count).step_by(200) {
        let event = |n| json::parse(format!("{}{filler}{tail}", head(n)).as_bytes()).unwrap();
        let events: Vec<_> =
            (first..(first + 200).min(count)).map(|n| (Lane::Telemetry, event(n))).collect();
        let now = WallTime { unix_ms: 1_700_000_000_000, state: ClockState::Synced };
        outbox.append(&events, now).unwrap();
    }
}
