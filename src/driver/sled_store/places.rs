//! Places for records to come and of records that are gone: what keeps sled from writing each record three times.
//!
//! sled splits a leaf of more than sixteen keys and writes both halves anew, with all of their values; one of fewer
//! than four it merges into its neighbour. A queue grows at its end and shrinks at its beginning, so that each record
//! was written once by itself, twice with the half of a leaf, and many a fourth time. So both happen where
//! values are empty:
//!
//! ```text
//! key     … │ gone │ gone │ record │ record │ record │ place │ place │ …
//! value         ""     ""    frame    frame    frame      ""      ""
//! ```
//! - The keys of the next positions are made ahead, [`AHEAD`] at most; a record takes its place.
//! - A record that is removed leaves its keys behind; they go once there are more than twice [`GONE`].
//! - An empty value is none. The store shows it to nobody, and the outbox stores none.
//! - No record stands at or behind the first place; only keys without a value are ever cleared away.
//! - All of it is part of the commit that brings it about.
//!
//! Which keys are to be cleared away is known in memory. At opening those before the first record of a lane are found
//! again; others, which removals out of order leave, cost a few bytes each until the store is replaced by a fresh one.
//!
//! What it brings: `docs/performance.md`.

use std::collections::BTreeSet;

use crate::event::Lane;
use crate::outbox::{Batch, Position, keys};

/// Places that are made ahead in a lane; half as many are always there.
const AHEAD: u64 = 64;
/// Keys without a value that are kept, so that whole leaves of them go at once.
const GONE: usize = 64;
/// Keys that are looked through at the beginning of a lane when the store is opened.
const LOOKED_AT: usize = 8 * GONE;

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Places {
    /// Behind the last key of each lane. Index: [`Lane::index`].
    made: [u64; 3],
    gone: BTreeSet<Vec<u8>>,
}

impl Places {
    /// What another process has left.
    ///
    /// # Errors
    /// sled cannot read the beginning or the end of a lane.
    pub(super) fn find(db: &sled::Db) -> Result<Self, sled::Error> {
        let mut places = Self::default();
        for lane in Lane::ALL {
            let (first, end) = (keys::part(lane, Position(0), 0), keys::lane_end(lane));
            for pair in db.range(first.as_slice()..end.as_slice()).take(LOOKED_AT) {
                let (key, value) = pair?;
                if !value.is_empty() {
                    break;
                }
                places.gone.insert(key.to_vec());
            }
            // A lane without any record begins anew.
            let last = db.get_lt(&end)?.map(|(key, _)| key.to_vec());
            let last = last.filter(|key| *key >= first && !places.gone.contains(key));
            if let Some((Position(position), _)) = last.and_then(|key| keys::parse_part(&key)) {
                places.made[lane.index()] = position.saturating_add(1);
            }
        }
        Ok(places)
    }

    /// The changes as sled is told of them.
    pub(super) fn stage(&mut self, batch: &Batch) -> sled::Batch {
        let mut changes = sled::Batch::default();
        let mut newest: [Option<u64>; 3] = [None; 3];
        for (key, change) in batch.changes() {
            let place = keys::parse_part(key).zip(keys::lane_of(key));
            match (change, place) {
                (Some(value), place) => {
                    changes.insert(key, value);
                    if let Some(((Position(position), _), lane)) = place {
                        self.gone.remove(key);
                        newest[lane.index()] = newest[lane.index()].max(Some(position));
                    }
                }
                (None, Some(_)) => {
                    changes.insert(key, NOTHING);
                    self.gone.insert(key.to_vec());
                }
                (None, None) => changes.remove(key),
            }
        }
        for (lane, newest) in Lane::ALL.into_iter().zip(newest) {
            if let Some(newest) = newest {
                self.make(lane, newest, &mut changes);
            }
        }
        if self.gone.len() > 2 * GONE {
            while self.gone.len() > GONE
                && let Some(key) = self.gone.pop_first()
            {
                changes.remove(key);
            }
        }
        changes
    }

    fn make(&mut self, lane: Lane, newest: u64, changes: &mut sled::Batch) {
        let made = &mut self.made[lane.index()];
        *made = (*made).max(newest.saturating_add(1));
        let end = newest.saturating_add(1 + AHEAD);
        if end.saturating_sub(*made) < AHEAD / 2 {
            return;
        }
        for position in *made..end {
            let key = keys::part(lane, Position(position), 0);
            self.gone.remove(&key);
            changes.insert(key, NOTHING);
        }
        *made = end;
    }
}

const NOTHING: &[u8] = &[];

#[cfg(test)]
mod tests {
    use super::super::SledStore;
    use super::*;
    use crate::outbox::Store;

    fn record(position: u64) -> Vec<u8> {
        keys::part(Lane::Status, Position(position), 0)
    }

    fn commit(store: &mut SledStore, put: std::ops::Range<u64>, delete: std::ops::Range<u64>) {
        let mut batch = Batch::default();
        put.for_each(|position| batch.put(record(position), position.to_be_bytes().to_vec()));
        delete.for_each(|position| batch.delete(record(position)));
        store.commit(&batch).unwrap();
    }

    fn shown(store: &SledStore) -> Vec<u64> {
        let pairs = store.range(&record(0), &keys::lane_end(Lane::Status), 10_000).unwrap();
        let number = |value: Vec<u8>| u64::from_be_bytes(value.try_into().unwrap());
        pairs.into_iter().map(|(_, value)| number(value)).collect()
    }

    #[test]
    fn places_are_there_and_nobody_sees_them_across_openings() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("outbox");
        let mut store = SledStore::open(&path).unwrap();
        let (mut next, mut first) = (1, 1);
        for round in 0..200u64 {
            let (new, left) = (next + round % 7, first + (round % 5).min(next - first));
            commit(&mut store, next..new, first..left);
            (next, first) = (new, left);
            assert_eq!(shown(&store), (first..next).collect::<Vec<_>>(), "{round}");
            assert_eq!(store.get(&record(next)).unwrap(), None);
            assert_eq!(store.peek(&record(first.saturating_sub(1)), 0).unwrap(), None);
            assert!(
                store.range(&record(next), &keys::lane_end(Lane::Status), 1).unwrap().is_empty()
            );
            let keys = store.db.scan_prefix(&record(0)[..2]).count();
            let most = (next - first) as usize + 2 * GONE + AHEAD as usize + LOOKED_AT;
            assert!(keys <= most, "{keys} keys");
            if round > 0 && next > first {
                assert!(store.db.get(record(next)).unwrap().is_some(), "a place is there");
            }
            if round % 20 == 19 {
                drop(store);
                store = SledStore::open(&path).unwrap();
            }
        }
    }

    #[test]
    fn a_drained_lane_is_cleared_and_its_next_record_stays() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("outbox");
        let mut store = SledStore::open(&path).unwrap();
        commit(&mut store, 1..100, 0..0);
        commit(&mut store, 0..0, 1..100);
        for position in 100..110 {
            drop(store);
            store = SledStore::open(&path).unwrap();
            commit(&mut store, position..position + 1, 0..0);
            assert_eq!(shown(&store), (100..=position).collect::<Vec<_>>());
        }
        commit(&mut store, 110..600, 100..500);
        assert_eq!(shown(&store), (500..600).collect::<Vec<_>>());
    }
}
