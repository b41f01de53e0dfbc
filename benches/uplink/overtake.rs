//! An alert behind a backlog on a link of 64 kbit/s and 100 ms each way: hark, which lets it pass, and a
//! mosquitto bridge, which has one queue.

use std::time::{Duration, Instant};

use super::latency::Agent;
use super::support::agent::post;
use super::support::mosquitto::Mosquitto;
use super::support::wire::{Weather, Wire};
use super::{BYTES, TOPIC, peers, quiet, spread};

/// Readings that wait: 35 s of that link for the bridge, which sets how long the measurement takes.
const BACKLOG: usize = 400;
const ALERTS: usize = 9;
const BATCH: &str = "application/cloudevents-batch+json";
const LINK: Weather = Weather::Slow { bytes_per_s: 8000.0, delay: Duration::from_millis(100) };

pub(crate) fn table() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let (mut ours, theirs) = (runtime.block_on(ours()), runtime.block_on(theirs()));
    ours.sort_unstable();
    let seconds = ours.iter().map(Duration::as_secs_f64);
    println!(
        "\n| an alert behind {BACKLOG} readings of {BYTES} bytes at 64 kbit/s, 100 ms each way | s, median (range) |\n\
         |---|---|\n| hark: handed in to PUBACK, {ALERTS} alerts | {} |\n\
         | mosquitto as a bridge: handed in to the broker behind the link, one alert | {:.2} |",
        spread(seconds, 2),
        theirs.as_secs_f64()
    );
}

async fn ours() -> Vec<Duration> {
    let broker = Mosquitto::with(quiet());
    let wire = Wire::start(broker.port(), LINK, 1).await;
    let url = wire.url();
    tokio::task::spawn_blocking(move || {
        let directory = tempfile::tempdir().unwrap();
        let mut agent = Agent::start(directory.path(), &url);
        let filler = "x".repeat(BYTES - 100);
        let reading = |n| {
            format!(r#"{{"specversion":"1.0","id":"t{n}","source":"/bench","type":"t","data":"{filler}"}}"#)
        };
        for first in (0..BACKLOG).step_by(100) {
            let batch: Vec<_> = (first..first + 100).map(reading).collect();
            post(&agent.socket, BATCH, &format!("[{}]", batch.join(","))).unwrap();
        }
        (0..ALERTS).map(|n| agent.alert(n).1).collect()
    })
    .await
    .unwrap()
}

async fn theirs() -> Duration {
    use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
    let broker = Mosquitto::with(quiet());
    let wire = Wire::start(broker.port(), LINK, 1).await;
    let port = wire.url().rsplit(':').next().unwrap().parse().unwrap();
    let topic = format!("{TOPIC}/alert");
    let (far, mut arrivals) =
        AsyncClient::new(MqttOptions::new("far", "127.0.0.1", broker.port()), 8);
    far.subscribe(&topic, QoS::AtMostOnce).await.unwrap();
    while !matches!(arrivals.poll().await.unwrap(), Event::Incoming(Packet::SubAck(_))) {}
    let bridge = peers::bridge(port);
    peers::hold(&bridge, BACKLOG).await;
    let (near, mut sent) =
        AsyncClient::new(MqttOptions::new("near", "127.0.0.1", bridge.port()), 8);
    let began = Instant::now();
    near.publish(&topic, QoS::AtLeastOnce, false, vec![b'x'; BYTES]).await.unwrap();
    loop {
        tokio::select! {
            _ = sent.poll() => {}
            arrival = arrivals.poll() => {
                if let Event::Incoming(Packet::Publish(_)) = arrival.unwrap() {
                    return began.elapsed();
                }
            }
        }
    }
}
