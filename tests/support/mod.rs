//! What the integration tests share: a real broker, a real subscriber, a bad network.
//!
//! A test file says `mod support;` and begins with the `allow` of the banned methods: these tests
//! need real time, real threads and real processes. Everything listens on 127.0.0.1; every process
//! is ended by its id when its handle is dropped, also when the test fails.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]

pub mod agent;
pub mod brokers;
pub mod mosquitto;
pub mod proxy;
pub mod tunnel;
pub mod uplink;
pub mod wire;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

/// How long anything may take before a test gives up. Generous: the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A port that nobody listens on, below the range from which the kernel takes ports of outgoing
/// connections: else a client that keeps trying could take it, or even connect to itself.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let base = 12_000 + (std::process::id() % 900) as u16 * 20;
    for _ in 0..1000 {
        let port = base + NEXT.fetch_add(1, Ordering::Relaxed) % 2_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port from {base} on");
}

/// Waits until `condition` holds.
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "gave up waiting: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The certificates of the TLS tests, made once a process; see `tests/tls/make-kit`.
pub fn kit() -> PathBuf {
    static KIT: OnceLock<tempfile::TempDir> = OnceLock::new();
    let made = KIT.get_or_init(|| {
        let directory = tempfile::tempdir().expect("temporary directory");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls/make-kit");
        let output = Command::new(script).arg(directory.path()).output().expect("make-kit");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "make-kit (is openssl installed?): {errors}");
        directory
    });
    made.path().to_owned()
}
