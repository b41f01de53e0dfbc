use super::*;
use crate::clock::{Rng, WallTime};
use crate::event::catalogue::Maker;
use crate::event::{Data, Event};
use crate::outbox::memory::MemoryStore;
use crate::outbox::{Chronicle, Outbox};

const DAY_MS: u64 = 86_400_000;
const LIMITS: Limits = Limits { bytes: 1_000_000, expiry: Duration::from_secs(86_400) };
const ALL: PageLimit = PageLimit { records: 100_000, bytes: usize::MAX };

fn at(unix_ms: u64, state: ClockState) -> WallTime {
    WallTime { unix_ms, state }
}

const NOW: WallTime = WallTime { unix_ms: 1_795_000_000_000, state: ClockState::Synced };

fn outbox() -> Outbox<MemoryStore> {
    let chronicle = Chronicle { maker: Maker::new("d", "io.hark"), rng: Rng::from_seed(1) };
    Outbox::open(MemoryStore::default()).unwrap().with_chronicle(chronicle).with_limits(LIMITS)
}

fn event(id: u64) -> Event {
    let data = "x".repeat(900);
    let text =
        format!(r#"{{"specversion":"1.0","id":"{id}","source":"/s","type":"t","data":"{data}"}}"#);
    json::parse(text.as_bytes()).unwrap()
}

fn fill(outbox: &mut Outbox<MemoryStore>, lane: Lane, count: u64) -> Result<(), OutboxError> {
    (0..count).try_for_each(|id| outbox.append(&[(lane, event(id))], NOW).map(drop))
}

/// What the outbox tells by events of this type: count and ranges of lane `of`.
fn told(outbox: &Outbox<MemoryStore>, suffix: &str, of: Lane) -> (u64, Vec<(u64, u64)>) {
    let (mut count, mut ranges) = (0, Vec::new());
    for record in outbox.page(Lane::Status, None, ALL).unwrap() {
        if record.event.event_type() != format!("io.hark.outbox.events.{suffix}") {
            continue;
        }
        let Data::Json(data) = record.event.data() else { panic!("no data") };
        let data: serde_json::Value = serde_json::from_slice(data).unwrap();
        count += data["lanes"][of.as_str()].as_u64().unwrap();
        for range in data["ranges"].as_array().unwrap() {
            if range["lane"] == of.as_str() {
                ranges.push((range["from"].as_u64().unwrap(), range["to"].as_u64().unwrap()));
            }
        }
    }
    (count, ranges)
}

#[test]
fn telemetry_gives_way_oldest_first_and_each_loss_is_told() {
    let mut outbox = outbox();
    fill(&mut outbox, Lane::Telemetry, 3_000).unwrap();
    let left = outbox.page(Lane::Telemetry, None, ALL).unwrap();
    let (evicted, ranges) = told(&outbox, "evicted", Lane::Telemetry);
    assert_eq!(evicted + left.len() as u64, 3_000);
    assert_eq!(left.last().unwrap().sequence, 3_000);
    assert_eq!(left[0].sequence, evicted + 1, "not the oldest");
    assert!(ranges.iter().zip(ranges.iter().skip(1)).all(|(a, b)| a.1 + 1 == b.0), "{ranges:?}");
    assert_eq!((ranges[0].0, ranges.last().unwrap().1), (1, evicted));
    assert!(outbox.bytes().iter().sum::<u64>() <= LIMITS.bytes);
    // An event that tells stands for many that went.
    assert!(outbox.depth()[Lane::Status.index()] < evicted / 10);
}

#[test]
fn an_alert_is_never_evicted_and_always_taken() {
    let mut outbox = outbox();
    fill(&mut outbox, Lane::Telemetry, 1_000).unwrap();
    fill(&mut outbox, Lane::Status, 1_000).unwrap();
    fill(&mut outbox, Lane::Alert, 2_000).unwrap();
    assert_eq!(outbox.depth()[Lane::Alert.index()], 2_000);
    assert_eq!(outbox.depth()[Lane::Telemetry.index()], 0);
    let status = told(&outbox, "evicted", Lane::Status).0;
    assert!(status > 0, "status gives way to alerts");
    let error = fill(&mut outbox, Lane::Telemetry, 1).unwrap_err();
    assert!(matches!(error, OutboxError::Full { lane: Lane::Telemetry, .. }), "{error}");
    fill(&mut outbox, Lane::Alert, 1).unwrap();
}

#[test]
fn telemetry_does_not_fill_what_is_kept_for_others() {
    let mut outbox = outbox();
    fill(&mut outbox, Lane::Telemetry, 3_000).unwrap();
    let kept = LIMITS.bytes / ALERT_SHARE + LIMITS.bytes / STATUS_SHARE;
    assert!(outbox.bytes().iter().sum::<u64>() <= LIMITS.bytes - kept + 20_000);
    let before = outbox.depth()[Lane::Telemetry.index()];
    fill(&mut outbox, Lane::Alert, LIMITS.bytes / ALERT_SHARE / 1_300).unwrap();
    assert_eq!(outbox.depth()[Lane::Telemetry.index()], before, "alerts had to evict");
}

#[test]
fn old_telemetry_expires_and_is_told_and_the_rest_stays() {
    let mut outbox = outbox();
    for day in 0..4 {
        let now = at(NOW.unix_ms + day * DAY_MS, ClockState::Synced);
        let events = [(Lane::Telemetry, event(day)), (Lane::Alert, event(day))];
        outbox.append(&events, now).unwrap();
    }
    let now = at(NOW.unix_ms + 3 * DAY_MS + 1, ClockState::Synced);
    let mut group = outbox.begin(now).unwrap();
    assert!(group.expire().unwrap());
    group.commit().unwrap();
    assert_eq!(outbox.depth(), [4, 1, 1]);
    assert_eq!(told(&outbox, "expired", Lane::Telemetry), (3, vec![(1, 3)]));
}

#[test]
fn nothing_expires_by_a_clock_that_cannot_be_believed() {
    let mut outbox = outbox();
    let unset = at(1_000, ClockState::Unsynced);
    outbox.append(&[(Lane::Telemetry, event(1))], unset).unwrap();
    outbox.append(&[(Lane::Telemetry, event(2))], NOW).unwrap();
    let later = NOW.unix_ms + 30 * DAY_MS;
    for now in [at(later, ClockState::Unsynced), unset] {
        let mut group = outbox.begin(now).unwrap();
        group.expire().unwrap();
        group.commit().unwrap();
        assert_eq!(outbox.depth(), [0, 0, 2]);
    }
    // The first was accepted in 1970, as that clock had it: how old it is nobody knows.
    let mut group = outbox.begin(at(later, ClockState::Synced)).unwrap();
    group.expire().unwrap();
    group.commit().unwrap();
    assert_eq!(outbox.page(Lane::Telemetry, None, ALL).unwrap()[0].event.id(), "1");
}

#[test]
fn a_long_backlog_expires_in_bounded_steps() {
    let mut outbox = outbox().with_limits(Limits { bytes: u64::MAX / 2, ..LIMITS });
    for _ in 0..20 {
        outbox.append(&vec![(Lane::Telemetry, event(1)); 250], NOW).unwrap();
    }
    let later = at(NOW.unix_ms + 2 * DAY_MS, ClockState::Synced);
    let mut steps = 0;
    loop {
        let mut group = outbox.begin(later).unwrap();
        let all = group.expire().unwrap();
        group.commit().unwrap();
        steps += 1;
        if all {
            break;
        }
    }
    assert_eq!((steps, outbox.depth()[Lane::Telemetry.index()]), (3, 0));
    assert_eq!(told(&outbox, "expired", Lane::Telemetry).0, 5_000);
}

#[test]
fn one_commit_of_a_purge_destroys_a_bounded_number() {
    let mut outbox = outbox();
    let events: Vec<_> = (0..200).map(|id| (Lane::Alert, event(id))).collect();
    for _ in 0..4 {
        outbox.append(&events, NOW).unwrap();
    }
    let until = outbox.levels().tails[0].unwrap();
    let mut gone = Vec::new();
    while gone.last() != Some(&0) {
        let mut group = outbox.begin(NOW).unwrap();
        gone.push(group.purge(Lane::Alert, until).unwrap().total() as usize);
        group.commit().unwrap();
    }
    assert_eq!(gone.iter().sum::<usize>(), 800);
    assert!(gone.iter().all(|gone| *gone < 384), "{gone:?}");
    assert_eq!(outbox.depth()[0], 0);
}
