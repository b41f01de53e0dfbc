//! The whole agent against real brokers over a bad network: connections reset, closed, half open,
//! stalled, slowed and robbed of their PUBACKs; the broker killed and restarted; the agent killed and
//! restarted. What must hold: every event that was accepted has a PUBACK on the wire, in the end, and
//! every copy has the same bytes. Where a broker keeps what it has acknowledged, a durable subscriber
//! has every event, too.
//!
//! `HARK_EVENTS` says how many events (500; `scripts/torture brokers` asks for 20,000).
#![allow(clippy::disallowed_methods, reason = "real brokers and processes need real time")]

mod support;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use support::agent::{Agent, Device, post};
use support::brokers::{Broker, NATS, Nats, RABBITMQ, RabbitMq, installed};
use support::mosquitto::{Mosquitto, Options, Subscriber};
use support::wire::{Weather, Wire, event_id};

const BATCH: &str = "application/cloudevents-batch+json";
/// Lives of the agent: each ends by kill -9, and begins with a short backoff.
fn lives(events: usize) -> usize {
    4 + events / 1250
}

fn events() -> usize {
    std::env::var("HARK_EVENTS").ok().and_then(|text| text.parse().ok()).unwrap_or(500)
}

/// Waits for as long as brokers, backoff and a busy machine may take together.
#[track_caller]
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(240);
    while !condition() {
        assert!(Instant::now() < deadline, "gave up waiting: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A batch of events of about 700 bytes in all three lanes.
fn batch(numbers: std::ops::Range<usize>) -> (Vec<String>, String) {
    let id = |n: usize| format!("event-{n}");
    let body: Vec<_> = numbers
        .clone()
        .map(|n| {
            let lane = ["alert", "status", "telemetry", "telemetry"][n % 4];
            let filler = "x".repeat(300 + n * 37 % 500);
            format!(
                r#"{{"specversion":"1.0","id":"{}","source":"/test","type":"t","lane":"{lane}","data":{{"n": {n}.0,"filler":"{filler}"}}}}"#,
                id(n)
            )
        })
        .collect();
    (numbers.map(id).collect(), format!("[{}]", body.join(",")))
}

fn start(device: &Device, extra: &[(&str, &str)]) -> Agent {
    let mut command = device.command();
    command.env("HARK__UPLINK__KEEPALIVE", "1s").env("HARK_LOG", "info");
    command.envs(extra.iter().copied());
    let mut agent = Agent::spawn(command);
    agent.wait_for_log(&["accepted", "device.session.started"]);
    agent
}

/// One run; `durable`: what the broker has acknowledged survives its crash.
async fn survive(mut broker: impl Broker, crashes: bool, durable: bool, extra: &[(&str, &str)]) {
    let (count, began) = (events(), Instant::now());
    let lives = lives(count);
    let within = (count * 900 / (4 * lives)).max(20_000);
    let wire = Wire::start(broker.port(), Weather::Rough { within }, 0x5eed).await;
    let device = Device::new(&wire.url(), "none");
    let subscriber = durable.then(|| {
        let options = ["-c", "-i", "durable", "-V", "mqttv311"];
        Subscriber::with(broker.port(), "hark/test/events/#", &options)
    });
    let mut accepted = BTreeSet::new();
    for life in 0..lives {
        let agent = start(&device, extra);
        let (from, to) = (life * count / lives, (life + 1) * count / lives);
        for first in (from..to).step_by(25) {
            let (ids, body) = batch(first..(first + 25).min(to));
            post(&device.socket(), BATCH, &body).expect("accepted");
            accepted.extend(ids);
            if crashes && life == 1 && first == from {
                broker.crash();
            }
        }
        if crashes && life == 1 {
            broker.restart();
        }
        // Until a fault has struck this life, or it has gone on for long enough.
        let faults = wire.record().faults;
        let end = Instant::now() + Duration::from_secs(4);
        while wire.record().faults < faults + 1 && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
        agent.kill();
    }
    wire.set_weather(Weather::Good);
    let agent = start(&device, extra);
    let left = || {
        let record = wire.record();
        accepted.iter().filter(|id| !record.acknowledged.contains_key(*id)).count()
    };
    eventually("every accepted event has a PUBACK on the wire", || left() == 0);
    {
        let record = wire.record();
        assert_eq!(record.altered, BTreeSet::new(), "copies differ");
        println!(
            "{count} events, {lives} lives, {} faults, {} duplicates, {:?}",
            record.faults,
            record.duplicates,
            began.elapsed()
        );
        assert!(record.faults >= 1, "the network was too good to prove anything");
    }
    if let Some(subscriber) = subscriber {
        let have = || -> BTreeSet<_> {
            subscriber.messages().iter().filter_map(|m| event_id(&m.payload)).collect()
        };
        eventually("the durable subscriber has everything", || {
            let have = have();
            accepted.iter().all(|id| have.contains(id))
        });
    }
    assert!(agent.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn mosquitto_over_mqtt_5() {
    survive(Mosquitto::start(), true, false, &[("HARK__UPLINK__PROTOCOL", "\"5\"")]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn mosquitto_over_mqtt_3_1_1() {
    survive(Mosquitto::start(), true, false, &[("HARK__UPLINK__PROTOCOL", "3.1.1")]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn mosquitto_that_takes_one_publish_at_a_time() {
    let options = Options { extra: "max_inflight_messages 1", ..Options::default() };
    survive(Mosquitto::with(options), true, false, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn nats_with_jetstream_and_a_durable_subscriber() {
    if installed(NATS) {
        survive(Nats::start(), true, true, &[]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn rabbitmq_and_a_durable_subscriber() {
    if installed(RABBITMQ) {
        survive(RabbitMq::start(), true, true, &[]).await;
    }
}

/// rumqttd lives in this process and keeps everything in memory: it cannot be killed here.
#[cfg(feature = "simulator")]
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn the_embedded_broker_of_the_simulator() {
    struct Embedded(hark::sim::broker::Broker);
    impl Broker for Embedded {
        fn port(&self) -> u16 {
            self.0.address.port()
        }
        fn crash(&mut self) {}
        fn restart(&mut self) {}
    }
    survive(Embedded(hark::sim::broker::start().expect("broker")), false, false, &[]).await;
}

/// 64 kbit/s, 100 ms each way, thousands of readings waiting: an alert does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn an_alert_overtakes_a_backlog_on_a_slow_link() {
    let broker = Mosquitto::start();
    let slow = Weather::Slow { bytes_per_s: 8000.0, delay: Duration::from_millis(100) };
    let wire = Wire::start(broker.port(), slow, 1).await;
    let device = Device::new(&wire.url(), "none");
    let mut command = device.command();
    command.env("HARK_LOG", "info");
    let mut agent = Agent::spawn(command);
    agent.wait_for_log(&["accepted", "device.session.started"]);
    let filler = "x".repeat(550);
    let event = |id: &str, lane: &str| {
        format!(
            r#"{{"specversion":"1.0","id":"{id}","source":"/test","type":"t","lane":"{lane}","data":"{filler}"}}"#
        )
    };
    let alerts: usize =
        std::env::var("HARK_ALERTS").ok().and_then(|n| n.parse().ok()).unwrap_or(15);
    let backlog = if alerts > 15 { 100_000 } else { 2_500 };
    for first in (0..backlog).step_by(250) {
        let all: Vec<_> =
            (first..first + 250).map(|n| event(&format!("t{n}"), "telemetry")).collect();
        post(&device.socket(), BATCH, &format!("[{}]", all.join(","))).expect("accepted");
    }
    eventually("the link is full", || wire.record().acknowledged.len() > 20);
    let mut delays = Vec::new();
    for n in 0..alerts {
        let id = format!("a{n}");
        device.post(&event(&id, "alert")).expect("accepted");
        let accepted = Instant::now();
        eventually("the alert is acknowledged", || wire.record().acknowledged.contains_key(&id));
        delays.push(wire.record().acknowledged[&id].duration_since(accepted));
        // Not in step with the link.
        std::thread::sleep(Duration::from_millis(37 * (n as u64 % 11)));
    }
    let telemetry = wire.record().acknowledged.len() - alerts;
    assert!(telemetry < backlog, "the backlog was gone before the alerts were");
    delays.sort_unstable();
    let p = |q: usize| delays[(delays.len() * q).div_ceil(100).max(1) - 1];
    println!("accepted to PUBACK of {alerts} alerts: p50 {:?}, p99 {:?}", p(50), p(99));
    assert!(p(99) <= Duration::from_millis(2500), "{delays:?}");
}
