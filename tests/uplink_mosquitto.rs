//! The uplink against Debian's mosquitto: what is acknowledged has arrived, byte for byte, through
//! broker crashes and cut connections; and what people are told when it cannot.

#![allow(
    clippy::disallowed_methods,
    reason = "a real broker, real sockets and real time are what is tested here"
)]
#![allow(clippy::unwrap_used, reason = "a test says what it expects")]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use hark::uplink::{Credentials, Notice, Protocol, Refusal, Version};
use support::free_port;
use support::mosquitto::{Message, Mosquitto, Options, Subscriber};
use support::proxy::{Mood, Proxy};
use support::uplink::{Device, config, ended_orderly, outgoing};
use tokio::io::AsyncWriteExt;

const EVENTS: &str = "hark/flat-12/events/#";
const PRESENCE: &str = "hark/flat-12/presence";

/// How often each token came; every payload must be exactly the one that was sent.
fn copies(messages: &[Message]) -> BTreeMap<u64, usize> {
    let mut copies = BTreeMap::new();
    for message in messages {
        let token = u64::from_be_bytes(message.payload[..8].try_into().unwrap());
        let sent = outgoing(token);
        assert_eq!(message.topic, *sent.topic);
        assert_eq!(message.payload, sent.payload, "payload of {token}");
        *copies.entry(token).or_default() += 1;
    }
    copies
}

async fn five_thousand_arrive(protocol: Protocol, version: Version) {
    let broker = Mosquitto::start();
    let subscriber = Subscriber::start(broker.port(), EVENTS);
    let mut device = Device::start(config(&broker.url(), protocol));
    let began = std::time::Instant::now();
    device.publish_all(0..5000).await;
    println!("{version}: 5000 publishes acknowledged in {:?}", began.elapsed());
    let connected = Notice::Connected { protocol: version, session_present: false, window: 32 };
    assert_eq!(device.seen[0], connected);
    let received = subscriber.wait_for("5000 messages", |all| all.len() >= 5000);
    let copies = copies(&received);
    assert!(copies.into_iter().eq((0..5000).map(|token| (token, 1))), "each once");
    let (counters, notices) = device.shut_down().await;
    assert_eq!((counters.published, counters.acknowledged), (5000, 5000));
    assert_eq!((counters.resent, counters.pubacks_ignored, counters.connects), (0, 0, 1));
    assert!(ended_orderly(&notices));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_publishes_arrive_byte_for_byte_over_mqtt_5() {
    five_thousand_arrive(Protocol::Auto, Version::V5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_publishes_arrive_byte_for_byte_over_mqtt_3_1_1() {
    five_thousand_arrive(Protocol::V311, Version::V311).await;
}

/// What mosquitto acknowledged and then lost in the crash is its own fault (it writes to disk at
/// intervals). What it had not acknowledged must come to the subscriber of the broker's next life.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_killed_in_the_middle_loses_nothing_unacknowledged() {
    for protocol in [Protocol::V5, Protocol::V311] {
        let mut broker = Mosquitto::start();
        // The gate keeps the device out until the second subscriber is there.
        let gate = Proxy::start(broker.port(), Mood::Good, 0).await;
        let first_life = Subscriber::start(broker.port(), EVENTS);
        let mut device = Device::start(config(&gate.url(), protocol));
        let mut later = device.publish(0..3000, |acknowledged| acknowledged.len() >= 700).await;
        assert!(later.len() > 2, "the broker must die in the middle");
        // Frozen first: else a quick broker has acknowledged everything by the time it dies.
        broker.freeze();
        let mut left = device.put_in_flight([later.remove(0), later.remove(0)]).await;
        left.append(&mut later);
        gate.set_open(false);
        broker.kill();
        device.wait_for(|n| matches!(n, Notice::Closed { .. })).await;
        let acknowledged_before = device.acknowledged.clone();
        broker.restart();
        let second_life = Subscriber::start(broker.port(), EVENTS);
        gate.set_open(true);
        let first_left = left[0];
        device.publish_all(left).await;
        assert_eq!(device.acknowledged.len(), 3000);
        let needed: Vec<u64> = (0..3000).filter(|t| !acknowledged_before.contains(t)).collect();
        assert!(needed.iter().any(|t| *t < first_left), "nothing was in flight: no test");
        let received = second_life.wait_for("all that was not acknowledged", |all| {
            let copies = copies(all);
            needed.iter().all(|token| copies.contains_key(token))
        });
        let twice = copies(&received).values().filter(|n| **n > 1).count();
        assert_eq!(twice, 0, "one life, one copy");
        drop(first_life);
        let (counters, _) = device.shut_down().await;
        assert_eq!((counters.connects, counters.sessions_lost), (2, 1));
        assert!(counters.resent <= 32, "at most one window: {}", counters.resent);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_cut_at_any_byte_lose_nothing_and_double_at_most_a_window() {
    for (protocol, seed) in [(Protocol::V5, 1), (Protocol::V311, 2)] {
        let broker = Mosquitto::start();
        let mood = Mood::Cutting { cuts: 40, within: 60_000 };
        let network = Proxy::start(broker.port(), mood, seed).await;
        let subscriber = Subscriber::start(broker.port(), EVENTS);
        let mut device = Device::start(config(&network.url(), protocol));
        device.publish_all(0..5000).await;
        let received = subscriber.wait_for("every token", |all| copies(all).len() == 5000);
        let doubled = copies(&received).values().map(|n| n - 1).sum::<usize>();
        let reconnects = network.accepted() - 1;
        let (counters, _) = device.shut_down().await;
        println!(
            "{protocol:?}: {} cuts, {} connects, {} resent, {doubled} doubled",
            network.cuts(),
            counters.connects,
            counters.resent
        );
        assert!(network.cuts() >= 10, "too few cuts for a test: {}", network.cuts());
        assert!(doubled <= 32 * reconnects && doubled as u64 <= counters.resent);
        assert_eq!(counters.protocol_errors, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_is_told_in_plain_words_and_tried_again() {
    for protocol in [Protocol::V5, Protocol::V311] {
        let options = Options { users: vec![("flat-12", "right")], ..Options::default() };
        let broker = Mosquitto::with(options);
        let mut config = config(&broker.url(), protocol);
        let login = |password: &str| Credentials {
            username: "flat-12".into(),
            password: password.as_bytes().to_vec(),
        };
        config.session.credentials = Some(login("wrong"));
        let mut device = Device::start(config.clone());
        let refused = device.wait_for(|n| matches!(n, Notice::ConnectionRefused { .. })).await;
        let Notice::ConnectionRefused { reason } = refused else { unreachable!() };
        assert!(reason.contains("check [uplink] username and password_file"), "{reason}");
        let third = |n: &Notice| matches!(n, Notice::Retrying { attempt: 3, .. });
        let Notice::Retrying { message, .. } = device.wait_for(third).await else { unreachable!() };
        let start = format!("broker at 127.0.0.1:{}: broker refused the session:", broker.port());
        assert!(message.starts_with(&start) && message.ends_with("(attempt 3)"), "{message}");
        assert!(!message.contains("wrong"), "a password must not be printed: {message}");
        assert!(device.counters.borrow().connects_refused >= 3);

        config.session.credentials = Some(login("right"));
        let mut device = Device::start(config);
        device.connected().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_comes_later_is_found() {
    let port = free_port();
    let url = format!("mqtt://127.0.0.1:{port}");
    let mut device = Device::start(config(&url, Protocol::Auto));
    let third = |n: &Notice| matches!(n, Notice::Retrying { attempt: 3, .. });
    let Notice::Retrying { message, .. } = device.wait_for(third).await else { unreachable!() };
    let start = format!(
        "broker at 127.0.0.1:{port} refused the connection: is it running? trying again in 0."
    );
    assert!(message.starts_with(&start) && message.ends_with(" s (attempt 3)"), "{message}");
    assert_eq!(device.counters.borrow().connects, 0);

    let broker = Mosquitto::on(port, Options::default());
    let subscriber = Subscriber::start(broker.port(), EVENTS);
    let connected = device.connected().await;
    assert!(matches!(connected, Notice::Connected { protocol: Version::V5, .. }));
    device.publish_all(0..10).await;
    subscriber.wait_for("ten messages", |all| all.len() == 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_see_the_device_come_vanish_return_and_leave() {
    for protocol in [Protocol::V5, Protocol::V311] {
        let broker = Mosquitto::start();
        let watcher = Subscriber::start(broker.port(), PRESENCE);
        let said = |payloads: &[&str]| {
            let all = watcher.wait_for(payloads.last().unwrap(), |all| all.len() >= payloads.len());
            let all: Vec<_> = all.iter().map(|m| String::from_utf8_lossy(&m.payload)).collect();
            assert_eq!(all, payloads);
        };
        let kept = || Subscriber::start(broker.port(), PRESENCE);

        let mut device = Device::start(config(&broker.url(), protocol));
        device.connected().await;
        said(&["online"]);
        assert!(kept().wait_for_payload(b"online").retained);

        device.cut().await;
        said(&["online", "offline"]);
        assert!(kept().wait_for_payload(b"offline").retained, "the will is retained");

        let mut device = Device::start(config(&broker.url(), protocol));
        device.connected().await;
        said(&["online", "offline", "online"]);
        let (_, notices) = device.shut_down().await;
        assert!(ended_orderly(&notices), "{notices:?}");
        said(&["online", "offline", "online", "offline"]);
        // The broker writes its log after it has acted.
        support::wait_until("no will, but a goodbye", || {
            broker.log().contains("Received DISCONNECT from flat-12")
        });
        assert!(kept().wait_for_payload(b"offline").retained);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn auto_finds_a_broker_that_knows_only_3_1_1_without_a_wait() {
    let broker = Mosquitto::start();
    let old = Proxy::start(broker.port(), Mood::OldBroker, 0).await;
    let mut device = Device::start(config(&old.url(), Protocol::Auto));
    let connected = device.connected().await;
    assert!(matches!(connected, Notice::Connected { protocol: Version::V311, .. }));
    let changed = |n: &Notice| matches!(n, Notice::ProtocolChanged { to: Version::V311, .. });
    assert!(device.seen.iter().any(changed), "it says so");
    assert!(!device.seen.iter().any(|n| matches!(n, Notice::Retrying { .. })), "no wait");
    device.publish_all(0..5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_brokers_packet_limit_and_access_rules_are_refusals_and_no_deliveries() {
    let options = Options {
        users: vec![("flat-12", "pw")],
        acl: Some("user flat-12\ntopic hark/flat-12/#\n"),
        extra: "max_packet_size 3000",
        ..Options::default()
    };
    let broker = Mosquitto::with(options);
    let mut config = config(&broker.url(), Protocol::Auto);
    let password = b"pw".to_vec();
    config.session.credentials = Some(Credentials { username: "flat-12".into(), password });
    let mut device = Device::start(config);
    device.connected().await;
    let mut large = outgoing(1);
    large.payload = vec![0; 5000].into();
    let mut elsewhere = outgoing(2);
    elsewhere.topic = "hark/flat-13/events/alert".into();
    for publish in [large, elsewhere, outgoing(3)] {
        device.outgoing.send(publish).await.unwrap();
    }
    let about = |token: u64| {
        move |n: &Notice| match n {
            Notice::Refused { token: t, .. } | Notice::Acknowledged { token: t, .. } => *t == token,
            _ => false,
        }
    };
    let refused = device.wait_for(about(1)).await;
    let Notice::Refused { reason: Refusal::TooLarge { limit: 3000, .. }, .. } = refused else {
        panic!("{refused:?}");
    };
    let refused = device.wait_for(about(2)).await;
    let Notice::Refused { reason: Refusal::Broker { code: 0x87, .. }, .. } = refused else {
        panic!("{refused:?}");
    };
    let nobody = Notice::Acknowledged { token: 3, no_subscribers: true };
    assert_eq!(device.wait_for(about(3)).await, nobody);
    // mosquitto 2.0.11 closes the connection after a negative PUBACK, and its reset destroys that
    // PUBACK while another publish is under way: found out by sending one at a time.
    assert!(device.counters.borrow().connects <= 5);
}

/// MQTT 3.1.1 has no way to state a limit: mosquitto resets the connection, every time anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publish_that_the_broker_answers_with_a_reset_does_not_hold_up_the_others() {
    let options = Options { extra: "max_packet_size 3000", ..Options::default() };
    let broker = Mosquitto::with(options);
    let subscriber = Subscriber::start(broker.port(), EVENTS);
    let mut device = Device::start(config(&broker.url(), Protocol::V311));
    device.connected().await;
    let mut large = outgoing(1);
    large.payload = vec![0; 5000].into();
    for publish in [large, outgoing(2), outgoing(3)] {
        device.outgoing.send(publish).await.unwrap();
    }
    let given_back = |n: &Notice| matches!(n, Notice::Refused { token: 1, .. });
    let refused = device.wait_for(given_back).await;
    let Notice::Refused { reason: Refusal::Unanswered { connections: 3 }, .. } = refused else {
        panic!("{refused:?}");
    };
    subscriber.wait_for("the others", |all| copies(all).len() == 2);
    device.wait_for(|n| matches!(n, Notice::Acknowledged { token: 3, .. })).await;
}

/// It answers pings that it never read, so silence alone would not find it out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_no_longer_reads_is_dropped_after_two_keepalives() {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", free_port())).await.unwrap();
    let url = format!("mqtt://{}", listener.local_addr().unwrap());
    let peer = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(&[0x20, 2, 0, 0]).await.unwrap();
        let mut tick = tokio::time::interval(Duration::from_millis(100));
        while stream.write_all(&[0xd0, 0]).await.is_ok() {
            tick.tick().await;
        }
    });
    let mut config = config(&url, Protocol::V311);
    config.session.keepalive = Duration::from_secs(1);
    let mut device = Device::start(config);
    device.connected().await;
    let sender = device.outgoing.clone();
    let filler = tokio::spawn(async move {
        for token in 0.. {
            let mut large = outgoing(token);
            large.payload = vec![0; 200_000].into();
            if sender.send(large).await.is_err() {
                return;
            }
        }
    });
    let closed = device.wait_for(|n| matches!(n, Notice::Closed { .. })).await;
    let Notice::Closed { reason } = closed else { unreachable!() };
    assert_eq!(reason.to_string(), "connection lost: nothing could be written for 2s");
    filler.abort();
    peer.abort();
}
