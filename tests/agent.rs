//! The agent as a library, with parts that fail when a test wants them to.
#![allow(clippy::disallowed_methods, reason = "the agent is driven in real time")]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hark::agent::{self, Happening, Listener, ListenerFactory, Parts};
use hark::config;
use hark::voice::Detection;
use support::PATIENCE;
use support::mosquitto::{Mosquitto, Subscriber};
use tokio::sync::{broadcast, oneshot};

/// A second of silence, 16 kHz, 16 bits, mono.
fn write_silence(file: &Path) {
    let bytes = 32_000u32;
    let mut wav = Vec::new();
    wav.extend(b"RIFF");
    wav.extend((36 + bytes).to_le_bytes());
    wav.extend(b"WAVEfmt ");
    wav.extend(16u32.to_le_bytes());
    wav.extend([1u16, 1].map(u16::to_le_bytes).concat());
    wav.extend([16_000u32, 32_000].map(u32::to_le_bytes).concat());
    wav.extend([2u16, 16].map(u16::to_le_bytes).concat());
    wav.extend(b"data");
    wav.extend(bytes.to_le_bytes());
    wav.resize(wav.len() + bytes as usize, 0);
    std::fs::write(file, wav).expect("write silence");
}

fn configuration(directory: &Path, broker: &str) -> config::Config {
    let silence = directory.join("silence.wav");
    write_silence(&silence);
    let text = format!(
        "[device]\nid = \"test\"\n[audio]\ninput = \"wav:{}\"\n[outbox]\npath = {:?}\n\
         [uplink]\nurl = {broker:?}\n[ingest]\nsocket = \"\"\n[ops]\nlisten = \"\"\n[lanes.status]\ncoalesce = \"1ms\"\n",
        silence.display(),
        directory.join("outbox"),
    );
    config::load("test", &text, std::iter::empty()).expect("configuration").config
}

/// Panics when it hears its first sound, the first time it is made; then it listens.
struct Fragile {
    panics: bool,
}

impl Listener for Fragile {
    fn push(&mut self, _: &[f32]) -> Result<Vec<Detection>, String> {
        assert!(!self.panics, "the detector met what it was not made for");
        Ok(Vec::new())
    }
}

async fn wait_for(
    happenings: &mut broadcast::Receiver<Happening>,
    wanted: impl Fn(&Happening) -> bool,
) {
    let found = async {
        loop {
            match happenings.recv().await {
                Ok(happening) if wanted(&happening) => return,
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(error) => panic!("the agent ended: {error}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, found).await.expect("it happens");
}

#[tokio::test]
async fn a_panic_in_the_detector_restarts_it_and_raises_a_fault_that_reaches_the_broker() {
    let broker = Mosquitto::start();
    let subscriber = Subscriber::start(broker.port(), "hark/test/events/status");
    let directory = tempfile::tempdir().expect("directory");
    let made = Arc::new(AtomicUsize::new(0));
    let mut parts = Parts::device();
    parts.listener = ListenerFactory::custom({
        let made = Arc::clone(&made);
        move || Box::new(Fragile { panics: made.fetch_add(1, Ordering::SeqCst) == 0 })
    });
    let mut happenings = parts.happenings.subscribe();
    let (stop, stopped) = oneshot::channel::<()>();
    let config = configuration(directory.path(), &broker.url());
    let agent = agent::run(config, parts, async {
        let _ = stopped.await;
        "the test is over"
    });

    let story = async {
        wait_for(
            &mut happenings,
            |h| matches!(h, Happening::Fault { part, .. } if part == "detector"),
        )
        .await;
        wait_for(&mut happenings, |h| matches!(h, Happening::Listening(_))).await;
        wait_for(&mut happenings, |h| matches!(h, Happening::Level(_))).await;
        stop.send(()).expect("the agent runs");
    };
    let (ended, ()) = tokio::join!(agent, story);
    ended.expect("ends well");
    assert_eq!(made.load(Ordering::SeqCst), 2);
    let got = subscriber.wait_for("fault and end", |all| {
        let has =
            |text: &str| all.iter().any(|m| String::from_utf8_lossy(&m.payload).contains(text));
        has("device.fault.raised")
            && has("the detector met what it was not made for")
            && has("device.session.stopped")
    });
    assert!(!got.is_empty());
}

/// Fails whenever it hears something.
struct Broken;

impl Listener for Broken {
    fn push(&mut self, _: &[f32]) -> Result<Vec<Detection>, String> {
        Err("is broken".to_owned())
    }
}

#[tokio::test]
async fn a_detector_that_fails_again_and_again_ends_the_process_for_systemd_to_restart() {
    let directory = tempfile::tempdir().expect("directory");
    let mut parts = Parts::device();
    parts.listener = ListenerFactory::custom(|| Box::new(Broken));
    let config = configuration(directory.path(), "mqtt://127.0.0.1:1");
    let agent = agent::run(config, parts, std::future::pending());
    let ended = tokio::time::timeout(PATIENCE, agent).await.expect("ends by itself");
    let failure = ended.expect_err("with a failure");
    assert_eq!(failure.code, hark::cli::exit::UNAVAILABLE);
    assert!(failure.message.contains("detector failed for good: is broken"), "{failure}");
}
