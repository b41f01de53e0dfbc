//! What systemd hears of the agent: ready, alive, stopping (sd_notify(3)).
#![allow(clippy::disallowed_methods, reason = "the watchdog is fed in real time")]

mod support;

use std::os::unix::net::UnixDatagram;

use support::PATIENCE;
use support::agent::{Agent, Device};

/// Everything that is said until a datagram has this line.
fn hear(systemd: &UnixDatagram, wanted: &str) -> Vec<String> {
    let (mut heard, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let length = systemd.recv(&mut buffer).unwrap_or_else(|e| panic!("{wanted}: {e}"));
        heard.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
        if heard.last().is_some_and(|said| said.lines().any(|line| line == wanted)) {
            return heard;
        }
    }
}

#[test]
fn a_reload_begins_and_ends_for_systemd_and_what_is_wrong_is_the_status_of_the_unit() {
    let device = Device::new("mqtt://127.0.0.1:1", "none");
    let path = device.path().join("notify.sock");
    let systemd = UnixDatagram::bind(&path).expect("bind");
    systemd.set_read_timeout(Some(PATIENCE)).expect("timeout");
    let mut command = device.command();
    command.env("NOTIFY_SOCKET", &path);
    let agent = Agent::spawn(command);
    hear(&systemd, "READY=1");
    agent.hang_up();
    let begun = hear(&systemd, "RELOADING=1").pop().expect("said");
    let at = begun.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC="));
    assert!(at.and_then(|at| at.parse::<u64>().ok()).is_some(), "{begun}");
    let ended = hear(&systemd, "READY=1").pop().expect("said");
    assert!(ended.lines().any(|line| line == "STATUS="), "{ended}");

    let text = std::fs::read_to_string(device.config()).expect("config");
    std::fs::write(device.config(), text + "colour = \"red\"\n").expect("config");
    agent.hang_up();
    hear(&systemd, "RELOADING=1");
    let ended = hear(&systemd, "READY=1").pop().expect("said");
    let said = ended.lines().find_map(|line| line.strip_prefix("STATUS=")).expect("a status");
    assert!(
        said.contains("the old configuration stays in force") && said.contains("colour"),
        "{said}"
    );
}

#[test]
fn the_agent_says_that_it_is_ready_alive_and_stopping() {
    let device = Device::new("mqtt://127.0.0.1:1", "none");
    let path = device.path().join("notify.sock");
    let systemd = UnixDatagram::bind(&path).expect("bind");
    systemd.set_read_timeout(Some(PATIENCE)).expect("timeout");
    let hear = |wanted| hear(&systemd, wanted);
    let mut command = device.command();
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "20000000");
    let agent = Agent::spawn(command);
    hear("READY=1");
    hear("WATCHDOG=1");
    let status = std::thread::scope(|scope| {
        let stopping = scope.spawn(|| agent.stop());
        hear("STOPPING=1");
        stopping.join().expect("stopped")
    });
    assert!(status.success());
}
