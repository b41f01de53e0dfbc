//! An alert on an idle device: from the moment at which another program hands it in until the broker's
//! PUBACK, beside the least that it takes: one fdatasync and one round trip of QoS 1.

use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use hark::agent::{self, Happening, Parts};
use hark::config;
use tokio::sync::{broadcast, oneshot};

use super::support::agent::post;
use super::support::mosquitto::Mosquitto;
use super::{BYTES, TOPIC, quiet, runtime};

const ALERTS: usize = 400;
/// Between two, so that each finds an idle agent.
const PAUSE: Duration = Duration::from_millis(25);

pub(crate) fn table() {
    let broker = Mosquitto::with(quiet());
    let directory = tempfile::tempdir().unwrap();
    let url = format!("mqtt://127.0.0.1:{}", broker.port());
    let mut agent = Agent::start(directory.path(), &url);
    let mut peer = Peer::connect(broker.port());
    // Written over, and at its end: a file that grows has the file system's journal in its sync.
    let [over, end] =
        ["over", "end"].map(|name| std::fs::File::create(directory.path().join(name)).unwrap());
    over.write_all_at(&vec![b'x'; (ALERTS + 20) * 4096], 0).unwrap();
    over.sync_all().unwrap();
    let (mut ours, mut accepted, mut after) = (Vec::new(), Vec::new(), Vec::new());
    let mut bare = [Vec::new(), Vec::new()];
    // The first few warm everything up.
    for n in 0..ALERTS + 20 {
        std::thread::sleep(PAUSE);
        let (until_accepted, until_acknowledged) = agent.alert(n);
        for (file, bare) in [&over, &end].into_iter().zip(&mut bare) {
            std::thread::sleep(PAUSE);
            let began = Instant::now();
            file.write_all_at(&[b'y'; 4096], n as u64 * 4096).unwrap();
            file.sync_data().unwrap();
            peer.round_trip();
            if n >= 20 {
                bare.push(began.elapsed());
            }
        }
        if n >= 20 {
            ours.push(until_acknowledged);
            accepted.push(until_accepted);
            after.push(until_acknowledged.saturating_sub(until_accepted));
        }
    }
    println!(
        "\n| an alert on an idle agent, {ALERTS} of each | p50, ms | p99, ms |\n|---|---|---|"
    );
    let ms = |values: &mut Vec<Duration>, q: usize| {
        values.sort_unstable();
        values[(values.len() * q).div_ceil(100) - 1].as_secs_f64() * 1e3
    };
    let [mut over, mut end] = bare;
    for (name, values) in [
        ("hark: handed in to accepted (synced)", &mut accepted),
        ("hark: accepted to PUBACK", &mut after),
        ("hark: handed in to PUBACK", &mut ours),
        ("4 KiB written over, bare fdatasync, bare round trip of QoS 1", &mut over),
        ("4 KiB at the end of a file, bare fdatasync, bare round trip of QoS 1", &mut end),
    ] {
        println!("| {name} | {:.2} | {:.2} |", ms(values, 50), ms(values, 99));
    }
    for (name, bare) in [("written over", &mut over), ("at the end", &mut end)] {
        let mut ratio = |q| ms(&mut ours, q) / ms(bare, q);
        println!("| handed in to PUBACK, to bare {name} | {:.2} | {:.2} |", ratio(50), ratio(99));
        let mut ratio = |q| ms(&mut after, q) / ms(bare, q);
        println!("| accepted to PUBACK, to bare {name} | {:.2} | {:.2} |", ratio(50), ratio(99));
    }
}

/// The agent in a thread of its own.
pub(crate) struct Agent {
    pub(crate) socket: std::path::PathBuf,
    acknowledged: std::sync::mpsc::Receiver<(std::sync::Arc<str>, Instant)>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Agent {
    pub(crate) fn start(directory: &std::path::Path, url: &str) -> Self {
        let socket = directory.join("ingest.sock");
        let text = format!(
            "[device]\nid = \"bench\"\n[audio]\ninput = \"none\"\n[outbox]\npath = {:?}\n\
             [uplink]\nurl = {url:?}\n[ingest]\nsocket = {socket:?}\n[ops]\nlisten = \"\"\n",
            directory.join("outbox")
        );
        let config = config::load("bench", &text, std::iter::empty()).unwrap().config;
        let parts = Parts::device();
        let mut happenings = parts.happenings.subscribe();
        let (stop, stopped) = oneshot::channel::<()>();
        let (tell, acknowledged) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let agent = agent::run(config, parts, async {
                stopped.await.ok();
                "measured"
            });
            let watch = async move {
                loop {
                    match happenings.recv().await {
                        Ok(Happening::Acknowledged { id, .. }) => {
                            tell.send((id, Instant::now())).ok();
                        }
                        Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                        Err(_) => break,
                    }
                }
            };
            let (ended, ()) = runtime().block_on(async { tokio::join!(agent, watch) });
            ended.unwrap();
        });
        super::support::wait_until("the agent listens", || socket.exists());
        Self { socket, acknowledged, stop: Some(stop), thread: Some(thread) }
    }

    /// How long until it was accepted, and until it was acknowledged.
    pub(crate) fn alert(&mut self, n: usize) -> (Duration, Duration) {
        let id = format!("alert-{n}");
        let filler = "x".repeat(BYTES - 100);
        let event = format!(
            r#"{{"specversion":"1.0","id":"{id}","source":"/bench","type":"t","lane":"alert","data":"{filler}"}}"#
        );
        let began = Instant::now();
        post(&self.socket, "application/cloudevents+json", &event).unwrap();
        let accepted = began.elapsed();
        loop {
            let (other, at) = self.acknowledged.recv_timeout(Duration::from_secs(30)).unwrap();
            if *other == id {
                return (accepted, at.duration_since(began));
            }
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop.take().map(|stop| stop.send(()));
        self.thread.take().map(std::thread::JoinHandle::join);
    }
}

/// rumqttc, connected.
struct Peer {
    runtime: tokio::runtime::Runtime,
    client: rumqttc::v5::AsyncClient,
    events: rumqttc::v5::EventLoop,
}

impl Peer {
    fn connect(port: u16) -> Self {
        use rumqttc::v5::{AsyncClient, Event, MqttOptions, mqttbytes::v5::Packet};
        let runtime = runtime();
        let mut options = MqttOptions::new("peer", "127.0.0.1", port);
        options.set_keep_alive(Duration::from_secs(600));
        let (client, mut events) = AsyncClient::new(options, 8);
        runtime.block_on(async {
            while !matches!(events.poll().await.unwrap(), Event::Incoming(Packet::ConnAck(_))) {}
        });
        Self { runtime, client, events }
    }

    fn round_trip(&mut self) {
        use rumqttc::v5::mqttbytes::{QoS, v5::Packet};
        let Self { runtime, client, events } = self;
        runtime.block_on(async {
            client.publish(TOPIC, QoS::AtLeastOnce, false, vec![b'x'; BYTES]).await.unwrap();
            loop {
                let event = events.poll().await.unwrap();
                if matches!(event, rumqttc::v5::Event::Incoming(Packet::PubAck(_))) {
                    break;
                }
            }
        });
    }
}
