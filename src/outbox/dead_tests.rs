use super::*;
use crate::clock::{ClockState, Rng, WallTime};
use crate::event::catalogue::Maker;
use crate::event::{Event, json};
use crate::outbox::memory::MemoryStore;
use crate::outbox::{Chronicle, PageLimit};

const NOW: WallTime = WallTime { unix_ms: 1_795_000_000_000, state: ClockState::Synced };
const ALL: PageLimit = PageLimit { records: 100_000, bytes: usize::MAX };

fn outbox() -> Outbox<MemoryStore> {
    let chronicle = Chronicle { maker: Maker::new("d", "io.hark"), rng: Rng::from_seed(1) };
    Outbox::open(MemoryStore::default()).unwrap().with_chronicle(chronicle)
}

fn event(id: usize, bytes: usize) -> Event {
    let data = "x".repeat(bytes);
    let text =
        format!(r#"{{"specversion":"1.0","id":"{id}","source":"/s","type":"t","data":"{data}"}}"#);
    json::parse(text.as_bytes()).unwrap()
}

fn kill(outbox: &mut Outbox<MemoryStore>, lane: Lane, position: u64) -> bool {
    let mut group = outbox.begin(NOW).unwrap();
    let done = group.deadletter(lane, Position(position), "refused").unwrap();
    group.commit().unwrap();
    done
}

#[test]
fn a_dead_letter_leaves_its_lane_is_told_and_comes_back_with_its_sequence() {
    let mut outbox = outbox();
    for id in 0..3 {
        outbox.append(&[(Lane::Alert, event(id, 10_000))], NOW).unwrap();
    }
    let before = outbox.page(Lane::Alert, None, ALL).unwrap();
    assert!(kill(&mut outbox, Lane::Alert, 2));
    assert!(kill(&mut outbox, Lane::Alert, 2), "once more is no error");
    let ids = |outbox: &Outbox<_>| -> Vec<String> {
        let page = outbox.page(Lane::Alert, None, ALL).unwrap();
        page.iter().map(|record| record.event.id().to_owned()).collect()
    };
    assert_eq!(ids(&outbox), ["0", "2"]);
    let letters = outbox.dead_letters(Lane::Alert, None, ALL).unwrap();
    assert_eq!((letters.len(), letters[0].reason.as_str()), (1, "refused"));
    assert_eq!(letters[0].record, before[1]);
    let told = outbox.page(Lane::Status, None, ALL).unwrap();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].event.event_type(), "io.hark.outbox.events.deadlettered");

    let mut outbox = Outbox::open(outbox.into_store()).unwrap();
    let mut group = outbox.begin(NOW).unwrap();
    assert!(group.requeue(Lane::Alert, Position(2)).unwrap());
    assert!(!group.requeue(Lane::Alert, Position(2)).unwrap());
    group.commit().unwrap();
    assert_eq!(ids(&outbox), ["0", "2", "1"]);
    let back = outbox.page(Lane::Alert, None, ALL).unwrap().pop().unwrap();
    assert_eq!((back.sequence, back.event), (2, before[1].event.clone()));
    assert_eq!(outbox.dead_letters(Lane::Alert, None, ALL).unwrap(), []);
    let next = outbox.append(&[(Lane::Alert, event(9, 1))], NOW).unwrap();
    assert_eq!(next[0].sequence, 4);
    assert_eq!(outbox.depth()[Lane::Alert.index()], 4);
}

#[test]
fn dead_letters_are_bounded_and_alerts_among_them_never_go() {
    let mut outbox = outbox();
    let half = MAX_DEAD_LETTERS / 2;
    for id in 0..half {
        let both = [(Lane::Alert, event(id, 1)), (Lane::Telemetry, event(id, 1))];
        outbox.append(&both, NOW).unwrap();
    }
    for position in 1..=half as u64 {
        assert!(kill(&mut outbox, Lane::Alert, position));
        assert!(kill(&mut outbox, Lane::Telemetry, position));
    }
    let count = |outbox: &Outbox<_>, lane| outbox.dead_letters(lane, None, ALL).unwrap().len();
    assert_eq!(count(&outbox, Lane::Telemetry), half);
    for id in 0..half + 3 {
        let accepted = outbox.append(&[(Lane::Alert, event(id, 1))], NOW).unwrap();
        assert_eq!(kill(&mut outbox, Lane::Alert, accepted[0].position.0), id < half, "{id}");
    }
    assert_eq!(count(&outbox, Lane::Telemetry), 0);
    assert_eq!(count(&outbox, Lane::Alert), MAX_DEAD_LETTERS);
    assert_eq!(outbox.depth()[Lane::Alert.index()], 3);
}
