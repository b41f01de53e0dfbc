//! More than one way to a broker, and the waits between attempts: two mosquittos, one of which dies.

#![allow(
    clippy::disallowed_methods,
    reason = "real brokers, real sockets and real time are what is tested here"
)]
#![allow(clippy::unwrap_used, reason = "a test says what it expects")]

mod support;

use std::fs;
use std::time::Duration;

use hark::uplink::{Backoff, CloseReason, Notice, Protocol};
use support::mosquitto::{Mosquitto, Subscriber};
use support::uplink::{Device, config};
use support::wait_until;

const EVENTS: &str = "hark/flat-12/events/#";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fallback_takes_over_and_what_was_under_way_arrives_there() {
    let (mut first, mut second) = (Mosquitto::start(), Mosquitto::start());
    let subscriber = Subscriber::start(second.port(), EVENTS);
    let mut config = config(&first.url(), Protocol::Auto);
    config.fallbacks = vec![second.url().parse().unwrap()];
    let mut device = Device::start(config);
    device.connected().await;
    first.kill();
    let told = device.wait_for(|n| matches!(n, Notice::PathChanged { .. })).await;
    let Notice::PathChanged { first: false, message } = told else { panic!("{told:?}") };
    assert!(message.contains(&format!("fallback {} is next", second.url())), "{message}");
    assert!(message.contains(&format!("broker at 127.0.0.1:{}", first.port())), "{message}");
    device.connected().await;
    device.publish_all(0..100).await;
    subscriber.wait_for("100 messages", |all| all.len() >= 100);
    second.kill();
    first.restart();
    device.wait_for(|n| matches!(n, Notice::PathChanged { first: true, .. })).await;
    device.connected().await;
    device.publish_all(100..200).await;
}

/// On the second of two brokers, with a session; the first one is down.
async fn on_fallback(first: &mut Mosquitto, second: &Mosquitto) -> Device {
    first.kill();
    let mut config = config(&first.url(), Protocol::Auto);
    config.fallbacks = vec![second.url().parse().unwrap()];
    config.probe_pause = Duration::from_millis(100);
    let mut device = Device::start(config);
    device.wait_for(|n| matches!(n, Notice::PathChanged { first: false, .. })).await;
    device.connected().await;
    device
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_session_returns_in_good_order_once_the_first_broker_is_back() {
    let (mut first, second) = (Mosquitto::start(), Mosquitto::start());
    let presence = Subscriber::start(second.port(), "hark/flat-12/presence");
    let at_second = Subscriber::start(second.port(), EVENTS);
    let mut device = on_fallback(&mut first, &second).await;
    device.publish_all(0..50).await;
    let before = device.seen.len();
    first.restart();
    let at_first = Subscriber::start(first.port(), EVENTS);
    // Goes on publishing while it moves: every event reaches one of the two.
    device.publish(50..5000, |_| false).await;
    let moved = |n: &&Notice| matches!(n, Notice::PathChanged { first: true, .. });
    if !device.seen.iter().any(|n| moved(&n)) {
        device.wait_for(|n| moved(&n)).await;
        device.connected().await;
    }
    device.publish_all(5000..5050).await;
    let tokens = |subscriber: &Subscriber| -> Vec<u64> {
        let token = |m: &support::mosquitto::Message| {
            u64::from_be_bytes(m.payload[..8].try_into().unwrap())
        };
        subscriber.messages().iter().map(token).collect()
    };
    wait_until("every event is at one of the brokers", || {
        let mut all = [tokens(&at_first), tokens(&at_second)].concat();
        all.sort_unstable();
        all.dedup();
        all.len() == 5050
    });
    assert!(tokens(&at_first).contains(&5049));
    // The old broker was told, not left to its will: our own word stands there, retained.
    presence.wait_for_payload(b"offline");
    let story = &device.seen[before..];
    let orderly = |n: &Notice| *n == Notice::Closed { reason: CloseReason::Orderly };
    assert!(story.iter().any(orderly), "{story:?}");
    assert!(!story.iter().any(|n| matches!(n, Notice::Retrying { .. })), "no wait in between");
    wait_until("DISCONNECT was said", || second.log().contains("Client flat-12 disconnected"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_address_that_answers_and_is_no_broker_costs_the_session_one_excursion() {
    let (mut first, second) = (Mosquitto::start(), Mosquitto::start());
    let mut device = on_fallback(&mut first, &second).await;
    // It hangs up on whoever says CONNECT, as a balancer does that has no broker behind it.
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", first.port())).await.unwrap();
    let balancer = tokio::spawn(async move {
        loop {
            let Ok((mut stream, _)) = listener.accept().await else { return };
            tokio::io::AsyncReadExt::read_u8(&mut stream).await.ok();
        }
    });
    device.wait_for(|n| matches!(n, Notice::PathChanged { first: true, .. })).await;
    let before = device.seen.len();
    device.wait_for(|n| matches!(n, Notice::PathChanged { first: false, .. })).await;
    device.connected().await;
    let waited = device.seen[before..].iter().any(|n| matches!(n, Notice::Retrying { .. }));
    assert!(!waited, "back at once: {:?}", &device.seen[before..]);
    device.publish_all(0..10).await;
    balancer.abort();
}

#[test]
fn a_change_of_path_is_an_event_that_reaches_the_fallback_and_its_end_too() {
    let (mut first, mut second) = (Mosquitto::start(), Mosquitto::start());
    let device = support::agent::Device::new(&first.url(), "none");
    let fallback = format!("url = {:?}\nfallback_urls = [{:?}]\n", first.url(), second.url());
    let text = fs::read_to_string(device.config()).unwrap();
    let text = text.replace(&format!("url = {:?}\n", first.url()), &fallback);
    fs::write(device.config(), text).unwrap();
    first.kill();
    let at_second = Subscriber::start(second.port(), "hark/test/events/status");
    let mut agent = device.start();
    let holds = |subscriber: &Subscriber, words: [&str; 3]| {
        // The waits between attempts are the real ones: half a minute at worst, twice.
        let deadline = std::time::Instant::now() + 3 * support::PATIENCE;
        let has = |all: &[support::mosquitto::Message]| {
            let text =
                |m: &support::mosquitto::Message| String::from_utf8_lossy(&m.payload).into_owned();
            all.iter().map(text).any(|text| words.iter().all(|word| text.contains(word)))
        };
        while !has(&subscriber.messages()) {
            assert!(std::time::Instant::now() < deadline, "never came: {words:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    agent.wait_for_log(&["connected over"]);
    holds(&at_second, ["device.fault.raised", "\"path\"", &second.url()]);
    first.restart();
    let at_first = Subscriber::start(first.port(), "hark/test/events/status");
    second.kill();
    holds(&at_first, ["device.fault.cleared", "\"path\"", ""]);
    assert!(agent.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alert_cuts_the_wait_of_the_fleet_short() {
    let mut broker = Mosquitto::start();
    let mut config = config(&broker.url(), Protocol::Auto);
    let ms = Duration::from_millis;
    let quick = Backoff::new(ms(10), ms(100), ms(0)).unwrap();
    config.backoff = quick.with_spread(Duration::from_secs(3600));
    let mut device = Device::start(config);
    device.connected().await;
    broker.restart();
    let waits = device.wait_for(|n| matches!(n, Notice::Retrying { .. })).await;
    let Notice::Retrying { delay, .. } = waits else { panic!() };
    assert!(delay > support::PATIENCE, "the wait is long enough to mean something: {delay:?}");
    device.urgent.send(true).unwrap();
    device.connected().await;
}
