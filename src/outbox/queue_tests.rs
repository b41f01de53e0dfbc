use super::*;
use crate::clock::ClockState;
use crate::outbox::memory::{Fault, FaultyStore, MemoryStore};
use crate::outbox::{Batch, Pair, StoreError, sequence_text};

const NOW: WallTime = WallTime { unix_ms: 1_795_000_000_000, state: ClockState::Synced };
const ALL: PageLimit = PageLimit { records: 10_000, bytes: usize::MAX };

fn event(source: &str, id: usize, data_bytes: usize) -> Event {
    let data = "x".repeat(data_bytes);
    let text = format!(
        r#"{{"specversion":"1.0","id":"{id}","source":"{source}","type":"t","data":"{data}"}}"#
    );
    json::parse(text.as_bytes()).unwrap()
}

fn outbox() -> Outbox<MemoryStore> {
    Outbox::open(MemoryStore::default()).unwrap()
}

fn reopen<S: Store>(outbox: Outbox<S>) -> Outbox<S> {
    Outbox::open(outbox.into_store()).unwrap()
}

#[test]
fn an_accepted_event_is_read_back_with_lane_and_sequence() {
    let mut outbox = outbox();
    let accepted = outbox.append(&[(Lane::Alert, event("/s", 1, 10))], NOW).unwrap();
    assert_eq!(
        accepted,
        [Accepted { id: "1".into(), lane: Lane::Alert, sequence: 1, position: Position(1) }]
    );
    let page = reopen(outbox).page(Lane::Alert, None, ALL).unwrap();
    let mut expected = event("/s", 1, 10);
    expected.set_extension("lane", "alert".into()).unwrap();
    expected.set_extension("sequence", "00000000000000000001".into()).unwrap();
    assert_eq!(page.len(), 1);
    assert_eq!(page[0].event, expected);
    assert_eq!(page[0].accepted_ms, NOW.unix_ms);
}

#[test]
fn a_sequence_that_the_event_brings_is_replaced() {
    let mut outbox = outbox();
    let mut brought = event("/s", 1, 0);
    brought.set_extension("sequence", "77".into()).unwrap();
    brought.set_extension("lane", "alert".into()).unwrap();
    outbox.append(&[(Lane::Status, brought)], NOW).unwrap();
    let page = outbox.page(Lane::Status, None, ALL).unwrap();
    assert_eq!(page[0].event.attribute("sequence"), Some(&sequence_text(1).into()));
    assert_eq!(page[0].event.attribute("lane"), Some(&"status".into()));
}

#[test]
fn sequence_goes_on_after_a_restart_with_an_empty_outbox() {
    let mut outbox = outbox();
    let first = outbox.append(&[(Lane::Alert, event("/s", 1, 0))], NOW).unwrap();
    outbox.remove(&[(Lane::Alert, first[0].position)], NOW).unwrap();
    assert_eq!(outbox.depth(), [0; 3]);
    let mut outbox = reopen(outbox);
    let second = outbox.append(&[(Lane::Alert, event("/s", 2, 0))], NOW).unwrap();
    assert_eq!((second[0].sequence, second[0].position), (2, Position(2)));
}

#[test]
fn each_source_has_its_own_sequence_in_each_lane() {
    let mut outbox = outbox();
    let (alert, status) = (Lane::Alert, Lane::Status);
    let of = |outbox: &mut Outbox<_>, lane, source| {
        outbox.append(&[(lane, event(source, 0, 0))], NOW).unwrap()[0].sequence
    };
    let given = [(alert, "/a"), (alert, "/b"), (status, "/a"), (alert, "/a"), (status, "/a")]
        .map(|(lane, source)| of(&mut outbox, lane, source));
    assert_eq!(given, [1, 1, 1, 2, 2]);
}

#[test]
fn one_refused_event_refuses_its_batch_and_uses_no_number() {
    let mut outbox = outbox();
    let too_large = event("/s", 2, MAX_EVENT_BYTES);
    let batch = [(Lane::Alert, event("/s", 1, 0)), (Lane::Alert, too_large)];
    let error = outbox.append(&batch, NOW).unwrap_err();
    assert!(matches!(error, OutboxError::EventTooLarge { ref id, .. } if id == "2"), "{error}");
    assert_eq!(outbox.depth(), [0; 3]);
    let next = outbox.append(&[(Lane::Alert, event("/s", 3, 0))], NOW).unwrap();
    assert_eq!(next[0].sequence, 1);
}

#[test]
fn an_event_of_the_largest_size_is_taken_and_comes_back() {
    let mut outbox = outbox();
    let empty = json::to_vec(&event("/s", 1, 0)).len();
    let largest = event("/s", 1, MAX_EVENT_BYTES - empty);
    assert_eq!(json::to_vec(&largest).len(), MAX_EVENT_BYTES);
    outbox.append(&[(Lane::Alert, largest.clone())], NOW).unwrap();
    let page = outbox.page(Lane::Alert, None, ALL).unwrap();
    assert_eq!(page[0].event.data(), largest.data());
    outbox.remove(&[(Lane::Alert, page[0].position)], NOW).unwrap();
    assert_eq!((outbox.depth(), outbox.bytes()), ([0; 3], [0; 3]));
    assert!(outbox.into_store().len() <= 2, "state and counter stay");
}

#[test]
fn batches_over_a_bound_are_refused() {
    let mut outbox = outbox();
    let many = vec![(Lane::Telemetry, event("/s", 1, 0)); MAX_COMMIT_EVENTS + 1];
    let heavy = vec![(Lane::Telemetry, event("/s", 1, 60_000)); 18];
    for batch in [many, heavy] {
        let error = outbox.append(&batch, NOW).unwrap_err();
        assert!(matches!(error, OutboxError::BatchTooLarge { .. }), "{error}");
    }
    let long = event(&format!("/{}", "s".repeat(MAX_SOURCE_BYTES)), 1, 0);
    let error = outbox.append(&[(Lane::Alert, long)], NOW).unwrap_err();
    assert!(matches!(error, OutboxError::SourceTooLong { .. }), "{error}");
}

#[test]
fn sources_are_bounded_and_known_ones_go_on() {
    let mut outbox = outbox();
    for chunk in (0..MAX_SOURCES).collect::<Vec<_>>().chunks(MAX_COMMIT_EVENTS) {
        let batch: Vec<_> =
            chunk.iter().map(|i| (Lane::Telemetry, event(&format!("/{i}"), *i, 0))).collect();
        outbox.append(&batch, NOW).unwrap();
    }
    let mut outbox = reopen(outbox);
    let error = outbox.append(&[(Lane::Alert, event("/new", 1, 0))], NOW).unwrap_err();
    assert!(matches!(error, OutboxError::TooManySources { .. }), "{error}");
    let known = outbox.append(&[(Lane::Telemetry, event("/7", 1, 0))], NOW).unwrap();
    assert_eq!(known[0].sequence, 2);
}

#[test]
fn a_full_group_stays_as_it_was_and_is_committed() {
    let mut outbox = outbox();
    let mut group = outbox.begin(NOW).unwrap();
    let batch = vec![(Lane::Status, event("/s", 1, 0)); 200];
    assert_eq!(group.append(&batch).unwrap(), 0..200);
    assert_eq!(group.append(&batch).unwrap_err(), OutboxError::GroupFull);
    assert_eq!(group.commit().unwrap().len(), 200);
    assert_eq!(outbox.depth(), [0, 200, 0]);
}

#[test]
fn appends_and_removals_ride_in_one_commit() {
    let mut outbox = outbox();
    let old = outbox.append(&[(Lane::Alert, event("/s", 1, 0))], NOW).unwrap();
    let mut group = outbox.begin(NOW).unwrap();
    group.append(&[(Lane::Alert, event("/s", 2, 0))]).unwrap();
    group.remove(&[(Lane::Alert, old[0].position); 2]).unwrap();
    group.commit().unwrap();
    let page = outbox.page(Lane::Alert, None, ALL).unwrap();
    assert_eq!(page.iter().map(|r| r.event.id()).collect::<Vec<_>>(), ["2"]);
    assert_eq!(outbox.depth(), [1, 0, 0]);
}

#[test]
fn pages_are_bounded_and_go_on_where_the_last_ended() {
    let mut outbox = outbox();
    for id in 0..50 {
        outbox.append(&[(Lane::Telemetry, event("/s", id, 5000))], NOW).unwrap();
    }
    let mut seen = Vec::new();
    let mut after = None;
    loop {
        let limit = PageLimit { records: 7, bytes: 12_000 };
        let page = outbox.page(Lane::Telemetry, after, limit).unwrap();
        assert!(page.len() <= 2, "12,000 bytes hold two records of 5,000");
        let Some(last) = page.last() else { break };
        after = Some(last.position);
        seen.extend(page.iter().map(|r| r.sequence));
    }
    assert_eq!(seen, (1..=50).collect::<Vec<_>>());
    let tiny = PageLimit { records: 5, bytes: 1 };
    assert_eq!(outbox.page(Lane::Telemetry, None, tiny).unwrap().len(), 1);
    assert_eq!(outbox.page(Lane::Telemetry, Some(Position(u64::MAX)), ALL).unwrap(), []);
    assert_eq!(outbox.page(Lane::Alert, None, ALL).unwrap(), []);
}

#[test]
fn after_a_failed_commit_everything_is_refused_with_the_same_error() {
    let mut outbox = Outbox::open(FaultyStore::new(MemoryStore::default())).unwrap();
    outbox.append(&[(Lane::Alert, event("/s", 1, 0))], NOW).unwrap();
    outbox.store_mut().arm(0, Fault::Lost);
    let first = outbox.append(&[(Lane::Alert, event("/s", 2, 0))], NOW).unwrap_err();
    let again = outbox.append(&[(Lane::Alert, event("/s", 3, 0))], NOW).unwrap_err();
    let removal = outbox.remove(&[(Lane::Alert, Position(1))], NOW).unwrap_err();
    assert!(matches!(first, OutboxError::Failed { .. }));
    assert_eq!((&first, &first), (&again, &removal));
}

#[test]
fn a_rotten_record_is_named() {
    let mut outbox = outbox();
    outbox.append(&[(Lane::Alert, event("/s", 1, 0))], NOW).unwrap();
    assert!(outbox.store_mut().flip_byte(&keys::part(Lane::Alert, Position(1), 0), 40));
    let error = outbox.page(Lane::Alert, None, ALL).unwrap_err();
    assert_eq!(error.to_string(), "outbox record alert/1 is damaged: the checksum does not hold");
}

#[test]
fn records_without_their_state_are_noticed_at_opening() {
    let mut outbox = outbox();
    outbox.append(&[(Lane::Alert, event("/s", 1, 0))], NOW).unwrap();
    let mut store = outbox.into_store();
    let mut batch = Batch::default();
    batch.delete(keys::STATE.to_vec());
    store.commit(&batch).unwrap();
    let error = Outbox::open(store).unwrap_err();
    assert!(matches!(error, OutboxError::StateDamaged { .. }), "{error}");
}

/// An index that leads past one key, which is met in passing all the same or, if it is `blind`, is not.
#[derive(Debug)]
struct Misled {
    inner: MemoryStore,
    hidden: Vec<u8>,
    blind: bool,
}

impl Store for Misled {
    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        self.inner.commit(batch)
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        if key == self.hidden { Ok(None) } else { self.inner.get(key) }
    }

    fn range(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Pair>, StoreError> {
        let pairs = self.inner.range(from, to, limit)?.into_iter();
        Ok(pairs.filter(|(key, _)| !self.blind || *key != self.hidden).collect())
    }
}

#[test]
fn what_is_drained_in_its_order_is_one_write_and_is_seen_no_more_though_the_store_keeps_it() {
    // This store never takes away what was discarded.
    let mut outbox = Outbox::open(FaultyStore::new(MemoryStore::default())).unwrap();
    for id in 0..10 {
        let events: Vec<_> = (0..30).map(|_| (Lane::Status, event("/s", id, 10))).collect();
        outbox.append(&events, NOW).unwrap();
    }
    let status = |positions: std::ops::RangeInclusive<u64>| -> Vec<_> {
        positions.map(|position| (Lane::Status, Position(position))).collect()
    };
    outbox.remove(&status(1..=10), NOW).unwrap();
    // 207 is out of its order.
    let drained = [status(11..=200), status(207..=207)].concat();
    outbox.remove(&drained, NOW).unwrap();
    // Gone already: no error, and not counted twice.
    outbox.remove(&status(150..=160), NOW).unwrap();
    let mut store = outbox.into_store().into_inner();
    let key = |position| keys::part(Lane::Status, Position(position), 0);
    let kept = [(10, false), (11, true), (200, true), (201, true), (207, false), (208, true)];
    for (position, is_kept) in kept {
        assert_eq!(store.get(&key(position)).unwrap().is_some(), is_kept, "{position}");
    }
    store.discard(Lane::Status, Position(201));
    assert_eq!(store.get(&key(200)), Ok(None));
    assert!(store.get(&key(201)).unwrap().is_some());

    let outbox = Outbox::open(store).unwrap();
    let page = outbox.page(Lane::Status, None, ALL).unwrap();
    let positions: Vec<_> = page.iter().map(|record| record.position.0).collect();
    assert_eq!(positions, (201..=300).filter(|at| *at != 207).collect::<Vec<_>>());
    assert_eq!(outbox.depth(), [0, 99, 0]);
}

#[test]
fn a_head_never_passes_over_a_record_that_the_store_does_not_show() {
    for hidden in [None, Some(3)] {
        let mut outbox = outbox();
        for id in 1..=6 {
            outbox.append(&[(Lane::Status, event("/s", id, 10))], NOW).unwrap();
        }
        let key = hidden.map(|at| keys::part(Lane::Status, Position(at), 0));
        let hidden = key.unwrap_or_default();
        let is_hidden = !hidden.is_empty();
        let store = Misled { inner: outbox.into_store(), hidden, blind: true };
        let mut outbox = Outbox::open(store).unwrap();
        let removed = outbox.remove(&[1, 2, 4].map(|p| (Lane::Status, Position(p))), NOW);
        match is_hidden {
            false => assert_eq!((removed, outbox.state.heads[1]), (Ok(()), 3)),
            true => {
                assert!(matches!(removed, Err(OutboxError::StateDamaged { .. })), "{removed:?}")
            }
        }
    }
}

#[test]
fn a_record_that_its_key_does_not_lead_to_is_damage_wherever_it_stands() {
    for hidden in [None, Some(1), Some(4), Some(6)] {
        let mut outbox = outbox();
        for id in 1..=6 {
            outbox.append(&[(Lane::Status, event("/s", id, 10))], NOW).unwrap();
        }
        // A gap, behind which records are met in passing.
        outbox.remove(&[(Lane::Status, Position(3))], NOW).unwrap();
        let key = hidden.map(|at| keys::part(Lane::Status, Position(at), 0));
        let store =
            Misled { inner: outbox.into_store(), hidden: key.unwrap_or_default(), blind: false };
        let page = Outbox::open(store).unwrap().page(Lane::Status, None, ALL);
        match hidden {
            None => assert_eq!(page.map(|page| page.len()), Ok(5)),
            Some(_) => assert!(matches!(page, Err(OutboxError::StateDamaged { .. })), "{page:?}"),
        }
    }
}

#[test]
fn records_are_read_alike_by_their_keys_and_in_passing() {
    let mut outbox = outbox();
    let sizes = [10, 9_000, 700, 20_000, 10, 10, 5_000, 10];
    for (id, size) in sizes.into_iter().enumerate() {
        outbox.append(&[(Lane::Status, event("/s", id, size))], NOW).unwrap();
    }
    outbox.remove(&[(Lane::Status, Position(2)), (Lane::Status, Position(6))], NOW).unwrap();
    let all = outbox.page(Lane::Status, None, ALL).unwrap();
    let mut one_by_one = Vec::new();
    let mut after = None;
    while let [record] =
        outbox.page(Lane::Status, after, PageLimit { records: 1, ..ALL }).unwrap().as_slice()
    {
        after = Some(record.position);
        one_by_one.push(record.clone());
    }
    assert_eq!(all.len(), 6);
    assert_eq!(one_by_one, all);
    let short = PageLimit { records: 10, bytes: 1_500 };
    assert_eq!(outbox.page(Lane::Status, None, short).unwrap(), all[..2], "as many bytes as asked");
}

#[test]
fn what_was_read_goes_once_with_all_its_parts_and_without_a_look_at_the_store() {
    let mut outbox = outbox();
    let sizes = [10, 9_000, 10, 4_000];
    let events: Vec<_> =
        sizes.iter().zip(1..).map(|(size, id)| (Lane::Status, event("/s", id, *size))).collect();
    outbox.append(&events, NOW).unwrap();
    let place = |position| (Lane::Status, Position(position));
    outbox.read_structured(Lane::Status, None, ALL).unwrap();
    assert_eq!(outbox.seen.get(Lane::Status, Position(2)).map(|(parts, _)| parts), Some(3));
    // Out of their order, twice in one commit and again in the next.
    outbox.remove(&[place(2), place(2), place(3)], NOW).unwrap();
    assert_eq!(outbox.seen.get(Lane::Status, Position(2)), None, "it is gone");
    outbox.read_structured(Lane::Status, None, ALL).unwrap();
    outbox.remove(&[place(3), place(2), place(4)], NOW).unwrap();
    assert_eq!(
        (outbox.depth(), outbox.page(Lane::Status, None, ALL).unwrap().len()),
        ([0, 1, 0], 1)
    );
    outbox.remove(&[place(1)], NOW).unwrap();
    assert_eq!((outbox.depth(), outbox.bytes()), ([0; 3], [0; 3]));
    let (from, to) = (keys::part(Lane::Status, Position(0), 0), keys::lane_end(Lane::Status));
    assert_eq!(outbox.store.range(&from, &to, 100).unwrap(), [], "no part is left behind");
}
