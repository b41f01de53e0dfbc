//! The others: rumqttc's event loop and Paho's C client fed from memory, and a mosquitto that bridges what
//! it holds in memory.

use std::process::Command;
use std::time::{Duration, Instant};

use super::support::free_port;
use super::support::mosquitto::{Mosquitto, Options};
use super::{BYTES, TOPIC, WINDOW, quiet};

pub(crate) async fn rumqttc_v4(port: u16, count: usize) -> Duration {
    use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
    let mut options = MqttOptions::new("bench", "127.0.0.1", port);
    options.set_inflight(WINDOW).set_max_packet_size(1 << 18, 1 << 18);
    let (client, mut events) = AsyncClient::new(options, usize::from(WINDOW));
    let payload = vec![b'x'; BYTES];
    let feed = tokio::spawn(async move {
        for _ in 0..count {
            client.publish(TOPIC, QoS::AtLeastOnce, false, payload.clone()).await.unwrap();
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

pub(crate) async fn rumqttc_v5(port: u16, count: usize) -> Duration {
    use rumqttc::v5::mqttbytes::{QoS, v5::Packet};
    use rumqttc::v5::{AsyncClient, Event, MqttOptions};
    let mut options = MqttOptions::new("bench", "127.0.0.1", port);
    options.set_outgoing_inflight_upper_limit(WINDOW);
    let (client, mut events) = AsyncClient::new(options, usize::from(WINDOW));
    let payload = vec![b'x'; BYTES];
    let feed = tokio::spawn(async move {
        for _ in 0..count {
            client.publish(TOPIC, QoS::AtLeastOnce, false, payload.clone()).await.unwrap();
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

/// `paho.c`, compiled by `scripts/bench`.
pub(crate) fn paho(port: u16, count: usize) -> Duration {
    let program = std::env::var("HARK_BENCH_PAHO").expect("scripts/bench compiles it");
    let arguments = [port.into(), count, WINDOW.into(), BYTES].map(|n: usize| n.to_string());
    let output = Command::new(program).args(arguments).output().expect("run paho");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "paho: {errors}");
    Duration::from_secs_f64(String::from_utf8_lossy(&output.stdout).trim().parse().unwrap())
}

/// A mosquitto with a bridge to `port`, which must be free still.
pub(crate) fn bridge(port: u16) -> Mosquitto {
    let extra = format!(
        "persistence false\nconnection bench\naddress 127.0.0.1:{port}\n\
         bridge_protocol_version mqttv50\ncleansession false\nrestart_timeout 3\n\
         notifications false\ntopic # out 1\nmax_inflight_messages {WINDOW}\n"
    );
    Mosquitto::with(Options { extra: extra.leak(), ..quiet() })
}

/// Hands `bridge` messages of QoS 1 for it to hold; the last goes to `{TOPIC}/last`, the first to
/// `{TOPIC}/first`.
pub(crate) async fn hold(bridge: &Mosquitto, count: usize) {
    use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
    let mut options = MqttOptions::new("feed", "127.0.0.1", bridge.port());
    options.set_inflight(WINDOW);
    let (client, mut events) = AsyncClient::new(options, usize::from(WINDOW));
    let feed = tokio::spawn(async move {
        for n in 0..count {
            let end = if n == 0 {
                "/first"
            } else if n + 1 == count {
                "/last"
            } else {
                ""
            };
            let topic = format!("{TOPIC}{end}");
            client.publish(topic, QoS::AtLeastOnce, false, vec![b'x'; BYTES]).await.unwrap();
        }
        client
    });
    let mut acknowledged = 0;
    while acknowledged < count {
        if let Event::Incoming(Packet::PubAck(_)) = events.poll().await.unwrap() {
            acknowledged += 1;
        }
    }
    feed.abort();
}

/// When the first and the last message reached the broker on `port`. The bridge comes back only every
/// three seconds, so that the subscription is there before it.
async fn first_and_last(port: u16) -> Duration {
    use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
    let (client, mut events) = AsyncClient::new(MqttOptions::new("see", "127.0.0.1", port), 8);
    for end in ["first", "last"] {
        client.subscribe(format!("{TOPIC}/{end}"), QoS::AtMostOnce).await.unwrap();
    }
    let mut began = None;
    loop {
        if let Event::Incoming(Packet::Publish(message)) = events.poll().await.unwrap() {
            match began {
                None => assert!(message.topic.ends_with("first"), "subscribed too late"),
                Some(began) => return Instant::duration_since(&Instant::now(), began),
            }
            began = Some(Instant::now());
        }
    }
}

pub(crate) async fn mosquitto_bridge(count: usize) -> Duration {
    let port = free_port();
    let bridge = bridge(port);
    hold(&bridge, count).await;
    let _broker = Mosquitto::on(port, quiet());
    first_and_last(port).await
}
