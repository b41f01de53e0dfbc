//! The outbox against a plain model: appends, removals in the same commit, pages, restarts, and a
//! crash at any commit, in any order.
//!
//! The model is a list a lane. After a crash the group that was under way may be there or not, which
//! the fault decides; nothing else may differ.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use hark::clock::{ClockState, WallTime};
use hark::event::{Event, Lane, json};
use hark::outbox::memory::{Fault, FaultyStore, MemoryStore};
use hark::outbox::{Outbox, OutboxError, PageLimit, Position, Store, Structured, sequence_text};
use proptest::prelude::*;
use std::collections::BTreeMap;

const NOW: WallTime = WallTime { unix_ms: 1_795_000_000_000, state: ClockState::Synced };

#[derive(Debug, Clone)]
enum Step {
    /// Lane, source and bytes of each event; removals by place among the records of a lane.
    Commit { appends: Vec<(usize, u8, usize)>, removals: Vec<(usize, usize)> },
    /// Read a lane in pages of so many records and bytes.
    Read { lane: usize, records: usize, bytes: usize },
    /// An orderly restart.
    Reopen,
    /// The commit after so many more fails, and the process starts again.
    ArmCrash { commits: u32, fault: Fault },
}

fn step() -> impl Strategy<Value = Step> {
    let bytes = prop_oneof![4 => 0..300usize, 1 => 3_000..12_000usize, 1 => 60_000..65_000usize];
    let appends = prop::collection::vec((0..3usize, 0..4u8, bytes), 0..5);
    let removals = prop::collection::vec((0..3usize, 0..30usize), 0..6);
    prop_oneof![
        8 => (appends, removals).prop_map(|(appends, removals)| Step::Commit { appends, removals }),
        3 => (0..3usize, 1..9usize, 1..200_000usize)
            .prop_map(|(lane, records, bytes)| Step::Read { lane, records, bytes }),
        1 => Just(Step::Reopen),
        1 => (0..4u32, prop::bool::ANY).prop_map(|(commits, kept)| {
            let fault = if kept { Fault::KeptUnanswered } else { Fault::Lost };
            Step::ArmCrash { commits, fault }
        }),
    ]
}

#[derive(Debug, Clone, Default)]
struct Model {
    /// Position and event of each record, oldest first.
    lanes: [Vec<(Position, Event)>; 3],
    next: [u64; 3],
    sequences: BTreeMap<(usize, u8), u64>,
    made: u64,
}

impl Model {
    fn append(&mut self, lane: usize, source: u8, bytes: usize) -> (Lane, Event) {
        self.made += 1;
        let (id, data) = (self.made, "x".repeat(bytes));
        let text = format!(
            r#"{{"specversion":"1.0","id":"{id}","source":"/{source}","type":"t","data":"{data}"}}"#
        );
        let event = json::parse(text.as_bytes()).unwrap();
        let sequence = self.sequences.entry((lane, source)).or_default();
        *sequence += 1;
        self.next[lane] += 1;
        let mut stored = event.clone();
        stored.set_extension("lane", Lane::ALL[lane].as_str().into()).unwrap();
        stored.set_extension("sequence", sequence_text(*sequence).into()).unwrap();
        self.lanes[lane].push((Position(self.next[lane]), stored));
        (Lane::ALL[lane], event)
    }

    fn depth(&self) -> [u64; 3] {
        [0, 1, 2].map(|lane| self.lanes[lane].len() as u64)
    }
}

/// Reads a lane to its end and compares.
fn check_lane<S: Store>(outbox: &mut Outbox<S>, model: &Model, lane: usize, limit: PageLimit) {
    let (mut after, mut expected) = (None, model.lanes[lane].iter());
    loop {
        let page = outbox.page(Lane::ALL[lane], after, limit).unwrap();
        assert!(page.len() <= limit.records);
        let published = outbox.read_structured(Lane::ALL[lane], after, limit).unwrap();
        assert!(published.records.into_iter().eq(page.iter().map(Structured::from)));
        let Some(last) = page.last() else { break };
        after = Some(last.position);
        for record in page {
            assert_eq!(Some(&(record.position, record.event)), expected.next());
        }
    }
    assert_eq!(expected.next(), None);
    assert_eq!(outbox.depth(), model.depth());
}

/// Runs the steps on stores made by `reopen` from what the last one left.
fn run<S: Store>(store: S, steps: Vec<Step>, reopen: impl Fn(S) -> S) {
    let mut outbox = Outbox::open(FaultyStore::new(store)).unwrap();
    let mut model = Model::default();
    let mut crash = None;
    for step in steps {
        match step {
            Step::Commit { appends, removals } => {
                let before = model.clone();
                let removed: Vec<_> = removals
                    .iter()
                    .filter_map(|&(lane, at)| Some((Lane::ALL[lane], model.lanes[lane].get(at)?.0)))
                    .collect();
                for lane in 0..3 {
                    let gone = |position| removed.contains(&(Lane::ALL[lane], position));
                    model.lanes[lane].retain(|(position, _)| !gone(*position));
                }
                let events: Vec<_> =
                    appends.iter().map(|&(lane, s, bytes)| model.append(lane, s, bytes)).collect();
                let mut group = outbox.begin(NOW).unwrap();
                group.remove(&removed).unwrap();
                group.append(&events).unwrap();
                let reaches_the_store = !group.is_empty();
                let result = group.commit();
                match crash {
                    Some((0, fault)) if reaches_the_store => {
                        assert!(matches!(result, Err(OutboxError::Failed { .. })));
                        assert_eq!(outbox.begin(NOW).err(), result.err());
                        if fault == Fault::Lost {
                            let made = model.made;
                            model = Model { made, ..before };
                        }
                        crash = None;
                        let store = reopen(outbox.into_store().into_inner());
                        outbox = Outbox::open(FaultyStore::new(store)).unwrap();
                    }
                    Some((left, fault)) => {
                        crash = Some((left - u32::from(reaches_the_store), fault));
                        assert_eq!(result.unwrap().len(), events.len());
                    }
                    None => assert_eq!(result.unwrap().len(), events.len()),
                }
                assert_eq!(outbox.depth(), model.depth());
            }
            Step::Read { lane, records, bytes } => {
                check_lane(&mut outbox, &model, lane, PageLimit { records, bytes });
            }
            Step::Reopen => {
                let store = reopen(outbox.into_store().into_inner());
                outbox = Outbox::open(FaultyStore::new(store)).unwrap();
                crash = None;
            }
            Step::ArmCrash { commits, fault } => {
                outbox.store_mut().arm(commits, fault);
                crash = Some((commits, fault));
            }
        }
    }
    for lane in 0..3 {
        check_lane(&mut outbox, &model, lane, PageLimit { records: 100, bytes: usize::MAX });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn outbox_does_what_a_list_a_lane_does(steps in prop::collection::vec(step(), 1..60)) {
        run(MemoryStore::default(), steps, |store| store);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    #[test]
    fn outbox_on_sled_does_what_a_list_a_lane_does(
        steps in prop::collection::vec(step(), 1..40),
    ) {
        use hark::driver::sled_store::SledStore;
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("outbox");
        run(SledStore::open(&path).unwrap(), steps, |store| {
            drop(store);
            SledStore::open(&path).unwrap()
        });
    }
}
