//! How much of the disk the outbox takes.
#![allow(clippy::disallowed_methods, reason = "real files need real time")]

use std::time::Duration;

use hark::clock::{Clock, ClockState, Rng, WallTime};
use hark::driver::outbox_open;
use hark::event::catalogue::Maker;
use hark::event::{Event, Lane, json};
use hark::outbox::{Chronicle, Limits, PageLimit};

const NOW: WallTime = WallTime { unix_ms: 1_795_000_000_000, state: ClockState::Synced };

fn event(id: usize, bytes: usize) -> Event {
    let data = "x".repeat(bytes);
    let text =
        format!(r#"{{"specversion":"1.0","id":"{id}","source":"/s","type":"t","data":"{data}"}}"#);
    json::parse(text.as_bytes()).expect("an event")
}

#[test]
fn telemetry_without_end_stays_within_max_size_on_disk() {
    let max_size: u64 = 16 << 20;
    let root = tempfile::tempdir().expect("directory");
    let path = root.path().join("outbox");
    let clock = Clock::new(|| ClockState::Synced);
    let chronicle = Chronicle { maker: Maker::new("d", "io.hark"), rng: Rng::from_seed(1) };
    let limits =
        Limits { bytes: outbox_open::payload_limit(max_size), expiry: Duration::from_secs(86_400) };
    let mut outbox = outbox_open::open(&path, clock)
        .expect("open")
        .with_chronicle(chronicle)
        .with_limits(limits);
    outbox.store_mut().keep_within(max_size);
    let mut largest = 0;
    let mut id = 0;
    for round in 0..600 {
        let (count, bytes) =
            [(64, 550), (1, 550), (8, 5_000), (16, 60_000), (32, 1_500)][round % 5];
        let events: Vec<_> =
            (id..id + count).map(|id| (Lane::Telemetry, event(id, bytes))).collect();
        id += count;
        outbox.append(&events, NOW).expect("append");
        if round % 7 == 0 {
            let limit = PageLimit { records: 1_000, bytes: 1 << 20 };
            let status = outbox.page(Lane::Status, None, limit).expect("page");
            let told: Vec<_> = status.iter().map(|r| (r.lane, r.position)).collect();
            outbox.remove(&told, NOW).expect("remove");
        }
        let size = outbox.store_mut().size_on_disk().expect("size");
        largest = largest.max(size);
    }
    let kept: u64 = outbox.bytes().iter().sum();
    println!("{id} events, {kept} bytes kept, largest file {largest}");
    assert!(largest <= max_size, "{largest}");
    assert!(kept > max_size / 8, "{kept}");
}
