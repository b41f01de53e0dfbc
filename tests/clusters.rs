//! A cluster of three brokers, one of which dies under the agent: the agent goes on with another
//! node, and a durable subscriber at the third gets every accepted event, each copy with the same bytes.
//!
//! `HARK_EVENTS` says how many events (300; `scripts/torture brokers` asks for 20,000).
#![allow(clippy::disallowed_methods, reason = "real brokers and processes need real time")]

mod support;

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use support::agent::{Agent, Device, post};
use support::brokers::{Broker, NATS, Nats, RABBITMQ, RabbitMq, installed};
use support::mosquitto::Subscriber;
use support::wire::event_id;

const TOPIC: &str = "hark/test/events/#";

/// Waits for as long as three nodes may take to agree on a busy machine.
#[track_caller]
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(240);
    while !condition() {
        assert!(Instant::now() < deadline, "gave up waiting: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Whether the node takes a publish: it listens before its cluster has a leader.
fn takes_a_publish(port: u16) -> bool {
    let mut publish = Command::new("mosquitto_pub");
    publish.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-V", "mqttv311"]);
    publish.args(["-q", "1", "-t", "warm/up", "-m", "x"]);
    publish.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
}

/// Whether a subscription of the client `durable` is granted there.
fn takes_a_subscription(port: u16) -> bool {
    let mut subscribe = Command::new("mosquitto_sub");
    subscribe.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-V", "mqttv311", "-E", "-c"]);
    subscribe.args(["-i", "durable", "-q", "1", "-t", TOPIC]);
    subscribe.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
}

fn batch(numbers: std::ops::Range<usize>) -> String {
    let filler = "x".repeat(500);
    let events: Vec<_> = numbers
        .map(|n| {
            let lane = ["alert", "status", "telemetry"][n % 3];
            format!(
                r#"{{"specversion":"1.0","id":"event-{n}","source":"/test","type":"t","lane":"{lane}","data":{{"n":{n},"filler":"{filler}"}}}}"#
            )
        })
        .collect();
    format!("[{}]", events.join(","))
}

fn hand_in(device: &Device, numbers: std::ops::Range<usize>) {
    for first in numbers.clone().step_by(20) {
        let body = batch(first..(first + 20).min(numbers.end));
        post(&device.socket(), "application/cloudevents-batch+json", &body).expect("accepted");
    }
}

fn survives_the_loss_of_a_node(mut nodes: [impl Broker; 3]) {
    let count = std::env::var("HARK_EVENTS").ok().and_then(|n| n.parse().ok()).unwrap_or(300);
    for node in &nodes {
        eventually("each node takes a publish", || takes_a_publish(node.port()));
    }
    eventually("the durable subscription stands", || takes_a_subscription(nodes[2].port()));
    let options = ["-c", "-i", "durable", "-V", "mqttv311"];
    let subscriber = Subscriber::with(nodes[2].port(), TOPIC, &options);

    let url = |node: usize| format!("mqtt://127.0.0.1:{}", nodes[node].port());
    let device = Device::new(&url(0), "none");
    device.configure("[lanes.telemetry]\ncoalesce = \"20ms\"\n");
    let mut command = device.command();
    let fallbacks = format!("[{:?}, {:?}]", url(1), url(2));
    command.env("HARK__UPLINK__FALLBACK_URLS", fallbacks).env("HARK_LOG", "info");
    let mut agent = Agent::spawn(command);
    agent.wait_for_log(&["accepted", "device.session.started"]);

    hand_in(&device, 0..count / 3);
    let received = || -> BTreeMap<String, Vec<u8>> {
        let mut received = BTreeMap::new();
        for message in subscriber.messages() {
            let Some(id) = event_id(&message.payload) else { continue };
            let before = received.insert(id.clone(), message.payload.clone());
            assert!(before.is_none_or(|before| before == message.payload), "{id}: copies differ");
        }
        received
    };
    eventually("the first node delivers", || received().len() > 10);
    nodes[0].crash();
    hand_in(&device, count / 3..2 * count / 3);
    let had = received().len();
    eventually("another node takes over", || received().len() > had + 10);
    nodes[0].restart();
    hand_in(&device, 2 * count / 3..count);
    let missing = || {
        let received = received();
        (0..count).filter(|n| !received.contains_key(&format!("event-{n}"))).count()
    };
    eventually("the durable subscriber has every accepted event", || missing() == 0);
    let copies = subscriber.messages().len();
    println!("{count} events, all there; {copies} messages with the agent's own and duplicates");
    assert!(agent.stop().success());
}

#[test]
fn nats_cluster_that_loses_a_node_loses_no_event() {
    if installed(NATS) {
        survives_the_loss_of_a_node(Nats::cluster());
    }
}

#[test]
fn rabbitmq_cluster_that_loses_a_node_loses_no_event() {
    if installed(RABBITMQ) {
        survives_the_loss_of_a_node(RabbitMq::cluster());
    }
}
