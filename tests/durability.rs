//! What the product promises, seen from outside: real processes, a real broker, kill -9.
#![allow(clippy::disallowed_methods, reason = "real processes need real time and real threads")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hark::clock::Rng;
use hark::driver::sled_store::SledStore;
use hark::event::{Lane, json};
use hark::outbox::{Outbox, PageLimit};
use support::agent::Device;
use support::mosquitto::{Message, Mosquitto, Subscriber};
use support::wait_until;

/// The payloads of a lane as they stand on the disk of a device whose agent does not run.
fn stored(device: &Device, lane: Lane) -> Vec<Vec<u8>> {
    let store = SledStore::open(&device.outbox()).expect("open store");
    let outbox = Outbox::open(store).expect("open outbox");
    let page = outbox.page(lane, None, PageLimit { records: 10_000, bytes: 1 << 30 });
    page.expect("page").iter().map(|record| json::to_vec(&record.event)).collect()
}

fn demo_recording() -> String {
    format!("wav:{}/src/sim/cry-for-help.flac", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn a_cry_for_help_survives_a_dead_broker_and_a_killed_agent() {
    let mut broker = Mosquitto::start();
    let device = Device::new(&broker.url(), &demo_recording());
    let mut agent = device.start();
    agent.wait_for_log(&["connected over"]);
    broker.kill();
    agent.wait_for_log(&["accepted", "voice.keyphrase.detected"]);
    agent.kill();

    let accepted = stored(&device, Lane::Alert);
    assert!(!accepted.is_empty(), "the accepted event is not on the disk");

    broker.restart();
    let subscriber = Subscriber::start(broker.port(), "hark/test/events/alert");
    let mut command = device.command();
    command.env("HARK__AUDIO__INPUT", "none");
    let mut agent = support::agent::Agent::spawn(command);
    for payload in &accepted {
        subscriber.wait_for_payload(payload);
    }
    agent.wait_for_log(&["connected over"]);
    assert!(agent.stop().success());
    for lane in Lane::ALL {
        assert_eq!(stored(&device, lane), Vec::<Vec<u8>>::new(), "lane {lane} is not empty");
    }
}

/// `id` and `sequence` of every event that arrived, by lane.
fn arrived(messages: &[Message]) -> BTreeMap<String, BTreeMap<String, u64>> {
    let mut lanes: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
    for message in messages {
        let event = json::parse(&message.payload).expect("a CloudEvent");
        if event.source() != "/test" {
            continue;
        }
        let text = |name: &str| event.attribute(name).expect(name).to_string();
        let sequence = text("sequence").parse().expect("a number");
        let known = lanes.entry(text("lane")).or_default().insert(event.id().to_owned(), sequence);
        assert!(known.is_none_or(|known| known == sequence), "{} has two sequences", event.id());
    }
    lanes
}

/// Hands in events one after the other until the agent is gone; the ids of those it accepted.
fn emit_until(killed: &AtomicBool, device: &Device, round: u64, lane: Lane) -> Vec<String> {
    let mut accepted = Vec::new();
    for number in 0.. {
        let id = format!("{round}-{lane}-{number}");
        let event = format!(
            r#"{{"specversion":"1.0","id":"{id}","source":"/test","type":"t","lane":"{lane}","data":{number}}}"#
        );
        match device.post(&event) {
            Ok(_) => accepted.push(id),
            Err(_) if killed.load(Ordering::SeqCst) => break,
            Err(error) => panic!("refused while the agent was alive: {error}"),
        }
    }
    accepted
}

#[test]
fn every_event_reported_accepted_arrives_after_a_hundred_kills_and_no_sequence_is_missing() {
    let rounds = std::env::var("HARK_KILLS").map_or(100, |n| n.parse().expect("HARK_KILLS"));
    let seed = std::env::var("HARK_SEED").map_or(1, |n| n.parse().expect("HARK_SEED"));
    println!("{rounds} rounds, seed {seed}");
    let mut rng = Rng::from_seed(seed);
    let broker = Mosquitto::start();
    let subscriber = Subscriber::start(broker.port(), "hark/test/events/#");
    let device = Device::new(&broker.url(), "none");
    device.configure("[lanes.telemetry]\ncoalesce = \"5ms\"\n");
    let mut accepted = BTreeSet::new();

    for round in 0..rounds {
        let agent = device.start();
        wait_until("the agent listens", || UnixStream::connect(device.socket()).is_ok());
        // Between the first event and some dozens of them; the kill falls where it falls.
        let life = Duration::from_micros(rng.u64() % 60_000);
        let killed = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let emitters = [Lane::Alert, Lane::Telemetry].map(|lane| {
                scope.spawn({
                    let (killed, device) = (&killed, &device);
                    move || emit_until(killed, device, round, lane)
                })
            });
            std::thread::sleep(life);
            killed.store(true, Ordering::SeqCst);
            agent.kill();
            for emitter in emitters {
                accepted.extend(emitter.join().expect("emitter"));
            }
        });
    }

    let agent = device.start();
    wait_until("every accepted event arrives", || {
        let arrived = arrived(&subscriber.messages());
        let ids: BTreeSet<_> = arrived.values().flat_map(BTreeMap::keys).cloned().collect();
        accepted.is_subset(&ids)
    });
    assert!(agent.stop().success());
    println!("{} events were reported accepted", accepted.len());
    assert!(accepted.len() as u64 > rounds, "too few events to mean anything");
    for (lane, events) in arrived(&subscriber.messages()) {
        let sequences: BTreeSet<_> = events.values().copied().collect();
        assert_eq!(sequences.len(), events.len(), "lane {lane}: a sequence was given twice");
        let gapless: BTreeSet<_> = (1..=events.len() as u64).collect();
        assert_eq!(sequences, gapless, "lane {lane} has a gap");
    }
}
