//! No room at every single write of a short run, in turn: a real agent with a library preloaded that lets the
//! disk run full at write number N, and stay full until room is made.
//!
//! `HARK_ENOSPC_STEPS` says at how many of the writes (default 10, spread over the run; `scripts/torture` takes
//! all of them). The control is a disk on which giving up the ballast helps nothing: there, alerts must be
//! refused, or the test could not fail.
#![allow(clippy::disallowed_methods, reason = "real processes need real time and real threads")]

#[path = "power/preload.rs"]
mod preload;
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use hark::clock::{Clock, ClockState};
use hark::driver::ballast::BALLAST_BYTES;
use hark::driver::outbox_open;
use hark::event::Lane;
use hark::outbox::PageLimit;
use support::agent::{Agent, Device};
use support::wait_until;

/// More writes than any run makes.
const ROOM: i64 = 1 << 40;
const NOWHERE: &str = "mqtt://127.0.0.1:1";

/// The numbers that the library keeps.
struct Room {
    state: PathBuf,
    library: PathBuf,
}

impl Room {
    fn new(directory: &Path, writes: i64, ballast: i64) -> Self {
        let room =
            Self { state: directory.join("state"), library: preload::compile("full", directory) };
        fs::write(&room.state, [writes, 0, ballast].map(i64::to_le_bytes).concat()).expect("state");
        room
    }

    /// How many more writes succeed.
    fn left(&self) -> i64 {
        let bytes = fs::read(&self.state).expect("state");
        i64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"))
    }

    fn make(&self) {
        let file = fs::File::options().write(true).open(&self.state).expect("state");
        file.write_all_at(&ROOM.to_le_bytes(), 0).expect("state");
    }

    fn start(&self, device: &Device) -> Agent {
        let mut command = device.command();
        let root = device.outbox().parent().expect("parent").canonicalize().expect("path");
        command
            .env("HARK__LANES__TELEMETRY__COALESCE", "1ms")
            .env("HARK__LANES__STATUS__COALESCE", "1ms")
            .env("LD_PRELOAD", &self.library)
            .env("HARK_FULL_ROOT", root.join("outbox"))
            .env("HARK_FULL_STATE", &self.state);
        Agent::spawn(command)
    }
}

fn event(id: &str, lane: Lane) -> String {
    let data = "x".repeat(600);
    format!(
        r#"{{"specversion":"1.0","id":"{id}","source":"/test","type":"t","lane":"{lane}","data":"{data}"}}"#
    )
}

/// True once it listens, and has its reserve where it is to have one; false if it ends with 74 and says that
/// there is no room.
fn comes_up(device: &Device, agent: &mut Agent, with_reserve: bool) -> bool {
    let mut up = false;
    wait_until("the agent listens or ends", || {
        let reserve = agent.log().iter().any(|line| line.contains("room is kept back"));
        up = std::os::unix::net::UnixStream::connect(device.socket()).is_ok()
            && (reserve || !with_reserve);
        up || agent.has_ended()
    });
    if !up {
        wait_until("it says why it ended", || {
            agent.log().iter().any(|line| line.contains("No space left on device"))
        });
    }
    up
}

/// What a run came to.
#[derive(Debug, Default)]
struct Outcome {
    accepted: BTreeSet<String>,
    alerts_refused: usize,
    telemetry_refused: usize,
    /// What was said of these where it was not 503.
    hung_up: Vec<String>,
    /// It did not come up: before it had a ballast to give up.
    starts_refused: usize,
}

impl Outcome {
    fn post(&mut self, device: &Device, id: &str, lane: Lane) -> bool {
        let answer = device.post(&event(id, lane));
        let taken = answer.is_ok();
        if taken {
            self.accepted.insert(id.to_owned());
        } else if lane == Lane::Alert {
            self.alerts_refused += 1;
        } else {
            let answer = answer.err().unwrap_or_default();
            if !answer.starts_with("HTTP/1.1 503") {
                self.hung_up.push(answer);
            }
            self.telemetry_refused += 1;
        }
        taken
    }
}

/// A short run that ends in a kill, and another start. `check`: whether the promise is to be held.
fn run(room: &Room, check: bool) -> Outcome {
    let device = Device::new(NOWHERE, "none");
    let mut outcome = Outcome::default();
    let mut agent = room.start(&device);
    let mut before = Vec::new();
    // On a disk that gives nothing back it is none.
    let has_reserve = comes_up(&device, &mut agent, check);
    if has_reserve {
        for number in 0..4 {
            outcome.post(&device, &format!("a{number}"), Lane::Alert);
            outcome.post(&device, &format!("t{number}"), Lane::Telemetry);
        }
        before = agent.log();
        agent.kill();
    } else {
        outcome.starts_refused += 1;
    }

    let mut agent = room.start(&device);
    let up = comes_up(&device, &mut agent, false);
    if up {
        outcome.post(&device, "restarted", Lane::Alert);
    } else {
        outcome.starts_refused += 1;
        assert!(
            !check || !has_reserve,
            "it does not start again: {:#?}, and before: {before:#?}",
            agent.log()
        );
    }
    // Without a reserve the agent ends as it should, and systemd's restarts are not the test's matter.
    if !check {
        return outcome;
    }
    room.make();
    if !up {
        agent = room.start(&device);
        assert!(comes_up(&device, &mut agent, false), "there is room again: {:?}", agent.log());
    }
    let mut number = 0;
    wait_until("telemetry is taken again", || {
        number += 1;
        outcome.post(&device, &format!("u{number}"), Lane::Telemetry)
    });
    assert!(agent.stop().success());
    let outbox = outbox_open::open(&device.outbox(), Clock::new(|| ClockState::Synced));
    let outbox = outbox.expect("open");
    assert_eq!(outbox.untold(), None);
    let all = PageLimit { records: 10_000, bytes: 1 << 30 };
    let pages = Lane::ALL.map(|lane| outbox.page(lane, None, all).expect("page"));
    let stored: Vec<_> = pages.iter().flatten().map(|record| record.event.id()).collect();
    for id in &outcome.accepted {
        assert_eq!(stored.iter().filter(|stored| *stored == id).count(), 1, "{id}");
    }
    outcome
}

#[test]
fn a_disk_that_is_full_at_any_write_loses_nothing_and_takes_alerts_throughout() {
    let scratch = tempfile::tempdir().expect("directory");
    let ballast = i64::try_from(BALLAST_BYTES).expect("a small number");
    let room = Room::new(scratch.path(), ROOM, ballast);
    let whole = run(&room, true);
    assert_eq!((whole.alerts_refused, whole.telemetry_refused, whole.starts_refused), (0, 0, 0));
    // `make` sets the number anew, so those after it do not count: they are of no interest.
    let writes = {
        let room = Room::new(scratch.path(), ROOM, ballast);
        let device = Device::new(NOWHERE, "none");
        let mut outcome = Outcome::default();
        for round in 0..2 {
            let mut agent = room.start(&device);
            assert!(comes_up(&device, &mut agent, round == 0));
            for number in 0..4 {
                outcome.post(&device, &format!("a{round}-{number}"), Lane::Alert);
                outcome.post(&device, &format!("t{round}-{number}"), Lane::Telemetry);
            }
            agent.kill();
        }
        ROOM - room.left()
    };
    let steps: i64 =
        std::env::var("HARK_ENOSPC_STEPS").map_or(10, |n| n.parse().expect("a number")).min(writes);
    let (mut refused, mut starts) = (0, 0);
    for step in 0..steps {
        let at = step * writes / steps;
        let room = Room::new(scratch.path(), at, ballast);
        let outcome = run(&room, true);
        let unkind = (outcome.alerts_refused, outcome.hung_up.len());
        assert_eq!(unkind, (0, 0), "full at write {at}: {outcome:?}");
        refused += outcome.telemetry_refused;
        starts += outcome.starts_refused;
    }
    println!(
        "full at {steps} of {writes} writes: 0 accepted lost, 0 alerts refused, {refused} readings refused, {starts} starts refused before there was a reserve"
    );
    assert!(refused > 0, "the disk was never full");
}

#[test]
fn control_without_a_reserve_alerts_are_refused() {
    let scratch = tempfile::tempdir().expect("directory");
    let refused: usize = [40, 60, 80]
        .map(|at| {
            let outcome = run(&Room::new(scratch.path(), at, 0), false);
            outcome.alerts_refused + outcome.starts_refused
        })
        .iter()
        .sum();
    assert!(refused > 0, "nothing was refused without a reserve: the test is blind");
}
