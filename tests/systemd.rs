//! What systemd hears of the agent: ready, alive, stopping (sd_notify(3)).
#![allow(clippy::disallowed_methods, reason = "the watchdog is fed in real time")]

mod support;

use std::os::unix::net::UnixDatagram;

use support::PATIENCE;
use support::agent::{Agent, Device};

#[test]
fn the_agent_says_that_it_is_ready_alive_and_stopping() {
    let device = Device::new("mqtt://127.0.0.1:1", "none");
    let path = device.path().join("notify.sock");
    let systemd = UnixDatagram::bind(&path).expect("bind");
    systemd.set_read_timeout(Some(PATIENCE)).expect("timeout");
    let hear = |wanted: &str| {
        let mut buffer = [0; 4096];
        loop {
            let length = systemd.recv(&mut buffer).expect(wanted);
            if String::from_utf8_lossy(&buffer[..length]).lines().any(|line| line == wanted) {
                return;
            }
        }
    };
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
