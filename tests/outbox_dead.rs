//! Poison: what a broker never takes is set aside, told, and blocks nobody.
#![allow(clippy::disallowed_methods, reason = "real processes need real time and real threads")]

mod support;

use hark::driver::sled_store::SledStore;
use hark::event::Lane;
use hark::outbox::{Outbox, PageLimit};
use support::agent::Device;
use support::mosquitto::{Mosquitto, Options, Subscriber};

fn event(id: &str, lane: Lane, bytes: usize) -> String {
    let data = "x".repeat(bytes);
    format!(
        r#"{{"specversion":"1.0","id":"{id}","source":"/test","type":"t","lane":"{lane}","data":"{data}"}}"#
    )
}

#[test]
fn an_event_too_large_for_the_broker_becomes_a_dead_letter_and_the_lane_goes_on() {
    let broker = Mosquitto::with(Options { extra: "max_packet_size 4000", ..Options::default() });
    let subscriber = Subscriber::start(broker.port(), "hark/test/events/#");
    let device = Device::new(&broker.url(), "none");
    let mut agent = device.start();
    agent.wait_for_log(&["connected over"]);
    for (id, bytes) in [("before", 10), ("poison", 10_000), ("after", 10)] {
        device.post(&event(id, Lane::Alert, bytes)).expect("accepted");
    }
    let arrived = |id: &str| {
        subscriber.wait_for(id, |messages| {
            let named = format!("\"id\":\"{id}\"");
            messages.iter().any(|m| String::from_utf8_lossy(&m.payload).contains(&named))
        });
    };
    arrived("before");
    arrived("after");
    agent.wait_for_log(&["set aside as a dead letter", "poison"]);
    subscriber.wait_for("the event that tells", |messages| {
        let told = |text: &str| {
            text.contains("outbox.events.deadlettered") && text.contains("\"id\":\"poison\"")
        };
        messages.iter().any(|m| told(&String::from_utf8_lossy(&m.payload)))
    });
    subscriber.wait_for("the fault", |messages| {
        let told = |text: &str| {
            text.contains("device.fault.raised") && text.contains("\"part\":\"dead-letter\"")
        };
        messages.iter().any(|m| told(&String::from_utf8_lossy(&m.payload)))
    });
    assert!(agent.stop().success());

    let store = SledStore::open(&device.outbox()).expect("open store");
    let outbox = Outbox::open(store).expect("open outbox");
    let letters = outbox
        .dead_letters(Lane::Alert, None, PageLimit { records: 256, bytes: 1 << 20 })
        .expect("dead letters");
    assert_eq!(letters.len(), 1);
    assert_eq!((letters[0].record.event.id(), letters[0].record.sequence), ("poison", 2));
    assert_eq!(outbox.depth()[Lane::Alert.index()], 0);
    drop(outbox);

    // The next connection offers it again: the broker takes larger ones now.
    let mended = Mosquitto::start();
    let subscriber = Subscriber::start(mended.port(), "hark/test/events/alert");
    let mut command = device.command();
    command.env("HARK__UPLINK__URL", mended.url());
    let mut agent = support::agent::Agent::spawn(command);
    agent.wait_for_log(&["connected over"]);
    subscriber.wait_for("poison", |messages| {
        messages.iter().any(|m| {
            let text = String::from_utf8_lossy(&m.payload).into_owned();
            text.contains("\"id\":\"poison\"") && text.contains("00000000000000000002")
        })
    });
    assert!(agent.stop().success());
}
