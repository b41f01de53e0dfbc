//! An agent to which nothing happens writes nothing: flash does not wear.
//!
//! The recorder of the power-cut tests notes every write, new name and removal below the device's directory.
//! The control is an event: it must show.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]
#![allow(clippy::disallowed_methods, reason = "real processes need real time and real threads")]

#[path = "power/disk.rs"]
#[allow(dead_code, reason = "only the log is read here")]
mod disk;
#[path = "power/preload.rs"]
mod preload;
mod support;

use std::time::Duration;

use support::agent::{Agent, Device, hark};
use support::mosquitto::Mosquitto;
use support::wait_until;

/// Longer than every period inside: sled's own thread 2 s, a round of the agent 5 s.
const IDLE: Duration = Duration::from_secs(11);

#[test]
fn an_idle_agent_writes_nothing() {
    let scratch = tempfile::tempdir().expect("directory");
    let log = scratch.path().join("log");
    let broker = Mosquitto::start();
    let device = Device::new(&broker.url(), "none");
    let root = device.path().canonicalize().expect("path");
    let mut command = device.command();
    command
        .env("LD_PRELOAD", preload::compile("recorder", scratch.path()))
        .env("HARK_RECORD_ROOT", &root)
        .env("HARK_RECORD_LOG", &log);
    let mut agent = Agent::spawn(command);
    agent.wait_for_log(&["connected over"]);
    let waiting = || {
        let mut stats = hark();
        stats.args(["outbox", "stats", "--json", "--config"]).arg(device.config());
        let stats = stats.output().expect("run").stdout;
        let stats: serde_json::Value = serde_json::from_slice(&stats).unwrap_or_default();
        stats["waiting"].as_u64()
    };
    let writes = || {
        let operations = disk::read_log(&log);
        let changes = |kind| matches!(kind, b'W' | b'C' | b'T' | b'R' | b'U');
        operations.iter().filter(|operation| changes(operation.kind)).count()
    };
    wait_until("all is delivered and removed", || {
        let before = writes();
        std::thread::sleep(Duration::from_millis(300));
        waiting() == Some(0) && writes() == before
    });
    let before = writes();
    std::thread::sleep(IDLE);
    let after = disk::read_log(&log);
    assert_eq!(writes(), before, "{:?}", after.last());

    device
        .post(r#"{"specversion":"1.0","id":"1","source":"/s","type":"t","lane":"alert"}"#)
        .expect("accepted");
    assert!(writes() > before, "the recorder is blind");
    assert!(agent.stop().success());
}
