//! How fast a stored backlog reaches the broker, beside rumqttc's own event loop fed from memory.
//!
//! `scripts/bench uplink [EVENTS]`: 100,000 events of 700 bytes, window 100, mosquitto without
//! persistence on the loopback interface, every way in the same run and three times, the best counted.
//! Ours reads a synced store and removes from it; rumqttc has its messages in memory.
#![allow(clippy::disallowed_methods, reason = "real time is what is measured")]
#![allow(clippy::unwrap_used, reason = "a measurement that cannot be made ends with its reason")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use hark::agent::{self, Happening, Parts};
use hark::clock::{ClockState, WallTime};
use hark::config;
use hark::driver::sled_store::SledStore;
use hark::event::{Lane, json};
use hark::outbox::Outbox;
use support::mosquitto::Mosquitto;
use tokio::sync::{broadcast, oneshot};

const WINDOW: u16 = 100;
const BYTES: usize = 700;

fn main() {
    let count = std::env::args().skip(1).find_map(|text| text.parse().ok()).unwrap_or(100_000);
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let rows: [(&str, &dyn Fn(u16) -> Duration); 3] = [
        ("hark, from its outbox, MQTT 5", &|port| runtime().block_on(ours(port, count))),
        ("rumqttc, from memory, MQTT 5", &|port| runtime().block_on(rumqttc_v5(port, count))),
        ("rumqttc, from memory, MQTT 3.1.1", &|port| runtime().block_on(rumqttc_v4(port, count))),
    ];
    let mut best = [Duration::MAX; 3];
    for _ in 0..3 {
        for ((_, run), best) in rows.iter().zip(&mut best) {
            let broker = Mosquitto::start();
            *best = run(broker.port()).min(*best);
        }
    }
    println!("| {count} events of {BYTES} bytes, window {WINDOW} | events/s |\n|---|---|");
    for ((name, _), best) in rows.iter().zip(best) {
        println!("| {name} | {:.0} |", count as f64 / best.as_secs_f64());
    }
}

/// Fills an outbox, then runs the agent on it until it is empty; the time from the connection on.
async fn ours(port: u16, count: usize) -> Duration {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("outbox");
    fill(&path, count);
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
        let mut began = None;
        loop {
            match happenings.recv().await {
                Ok(Happening::Uplink(line)) if line.starts_with("connected") => {
                    began.get_or_insert_with(Instant::now);
                }
                Ok(Happening::Waiting([0, 0, 0])) => break,
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(error) => panic!("the agent ended: {error}"),
            }
        }
        let took = began.unwrap().elapsed();
        stop.send(()).ok();
        took
    };
    let (ended, took) = tokio::join!(agent, watch);
    ended.unwrap();
    took
}

fn fill(path: &std::path::Path, count: usize) {
    let mut outbox = Outbox::open(SledStore::open(path).unwrap()).unwrap();
    let head =
        |n| format!(r#"{{"specversion":"1.0","id":"{n:08}","source":"/bench","type":"t","data":""#);
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

async fn rumqttc_v4(port: u16, count: usize) -> Duration {
    use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
    let mut options = MqttOptions::new("bench", "127.0.0.1", port);
    options.set_inflight(WINDOW).set_max_packet_size(1 << 18, 1 << 18);
    let (client, mut events) = AsyncClient::new(options, usize::from(WINDOW));
    let payload = vec![b'x'; BYTES];
    let feed = tokio::spawn(async move {
        for _ in 0..count {
            client
                .publish("hark/bench/events/telemetry", QoS::AtLeastOnce, false, payload.clone())
                .await
                .unwrap();
        }
        client
    });
    let (mut began, mut acknowledged) = (None, 0);
    while acknowledged < count {
        match events.poll().await.unwrap() {
            Event::Incoming(Packet::ConnAck(_)) => began = Some(Instant::now()),
            Event::Incoming(Packet::PubAck(_)) => acknowledged += 1,
            _ => {}
        }
    }
    feed.abort();
    began.unwrap().elapsed()
}

async fn rumqttc_v5(port: u16, count: usize) -> Duration {
    use rumqttc::v5::mqttbytes::{QoS, v5::Packet};
    use rumqttc::v5::{AsyncClient, Event, MqttOptions};
    let mut options = MqttOptions::new("bench", "127.0.0.1", port);
    options.set_outgoing_inflight_upper_limit(WINDOW);
    let (client, mut events) = AsyncClient::new(options, usize::from(WINDOW));
    let payload = vec![b'x'; BYTES];
    let feed = tokio::spawn(async move {
        for _ in 0..count {
            client
                .publish("hark/bench/events/telemetry", QoS::AtLeastOnce, false, payload.clone())
                .await
                .unwrap();
        }
        client
    });
    let (mut began, mut acknowledged) = (None, 0);
    while acknowledged < count {
        match events.poll().await.unwrap() {
            Event::Incoming(Packet::ConnAck(_)) => began = Some(Instant::now()),
            Event::Incoming(Packet::PubAck(_)) => acknowledged += 1,
            _ => {}
        }
    }
    feed.abort();
    began.unwrap().elapsed()
}
