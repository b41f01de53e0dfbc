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
//! - A record that is deleted leaves its keys behind.
//! - Before the head of its lane there is nothing of use ([`Store::discard`](crate::outbox::Store::discard)); the keys there, with
//!   a value or without, go with later commits, [`GONE`] positions or more at a time, and the last [`GONE`] before the head stay: so whole leaves go,
//!   and no record that is still of use is written anew for it.
//! - A commit clears away twice as many keys and bytes as it brings, and [`GONE`] keys at least; where room is short eight times
//!   as many ([`MOST`] keys), and none before the head stays. What is applied and not waited for clears away next to nothing: a backlog
//!   is drained without one write for each of its records. What is left of them goes faster than new ones come, or,
//!   mostly, stays behind in the file that is replaced by a fresh one.
//! - An empty value is none. The store shows it to nobody, and the outbox stores none.
//! - No record stands at or behind the first place.
//! - All of it is part of the commit that brings it about.
//!
//! What it brings: `docs/performance.md`.

use crate::event::Lane;
use crate::outbox::{Batch, Position, keys};

/// Places that are made ahead in a lane; half as many are always there.
const AHEAD: u64 = 64;
/// Positions before the head of a lane whose keys stay, and that are cleared away together at least.
const GONE: u64 = 64;
/// Keys that one commit clears away at most.
const MOST: usize = 4096;

/// See the [module](self). Index of all: [`Lane::index`].
#[derive(Debug, Default)]
pub(super) struct Places {
    /// Behind the last place that this process has made. One that another has left is made once more, which sled does not write.
    made: [u64; 3],
    /// At or before the first key of each lane; not known before something is cleared away.
    cleared: [u64; 3],
    /// Where each lane begins for the outbox.
    heads: [u64; 3],
}

impl Places {
    /// The records of a lane before this one are of no more use.
    pub(super) fn discard(&mut self, lane: Lane, first: Position) {
        self.heads[lane.index()] = first.0;
    }

    /// The head of the lane, where the key stands before it.
    pub(super) fn behind_discarded(&self, key: &[u8]) -> Option<Vec<u8>> {
        let (lane, (position, _)) = keys::lane_of(key).zip(keys::parse_part(key))?;
        let head = Position(self.heads[lane.index()]);
        (position < head).then(|| keys::part(lane, head, 0))
    }

    /// The changes as sled is told of them.
    ///
    /// # Errors
    /// sled cannot read what is to be cleared away.
    pub(super) fn stage(
        &mut self,
        db: &sled::Db,
        batch: &Batch,
        mut surplus: Surplus,
    ) -> Result<sled::Batch, sled::Error> {
        let mut changes = sled::Batch::default();
        let mut newest: [Option<u64>; 3] = [None; 3];
        for (key, change) in batch.changes() {
            surplus.grow(key.len() + change.map_or(0, <[u8]>::len));
            let place = keys::parse_part(key).zip(keys::lane_of(key));
            match (change, place) {
                (Some(value), place) => {
                    changes.insert(key, value);
                    if let Some(((Position(position), _), lane)) = place {
                        newest[lane.index()] = newest[lane.index()].max(Some(position));
                    }
                }
                (None, Some(_)) => changes.insert(key, NOTHING),
                (None, None) => changes.remove(key),
            }
        }
        for (lane, newest) in Lane::ALL.into_iter().zip(newest) {
            if let Some(newest) = newest {
                self.make(lane, newest, &mut changes);
            }
            self.clear(db, lane, &mut surplus, &mut changes)?;
        }
        Ok(changes)
    }

    fn clear(
        &mut self,
        db: &sled::Db,
        lane: Lane,
        surplus: &mut Surplus,
        changes: &mut sled::Batch,
    ) -> Result<(), sled::Error> {
        let cleared = &mut self.cleared[lane.index()];
        let until = self.heads[lane.index()].saturating_sub(surplus.stay);
        if until.saturating_sub(*cleared) < surplus.stay.max(1) {
            return Ok(());
        }
        let (from, to) =
            (keys::part(lane, Position(*cleared), 0), keys::part(lane, Position(until), 0));
        *cleared = until;
        for pair in db.range(from.as_slice()..to.as_slice()) {
            let (key, value) = pair?;
            if !surplus.take(key.len() + value.len()) {
                *cleared = keys::parse_part(&key).map_or(until, |(position, _)| position.0);
                break;
            }
            changes.remove(key);
        }
        Ok(())
    }

    fn make(&mut self, lane: Lane, newest: u64, changes: &mut sled::Batch) {
        let made = &mut self.made[lane.index()];
        *made = (*made).max(newest.saturating_add(1));
        let end = newest.saturating_add(1 + AHEAD);
        if end.saturating_sub(*made) < AHEAD / 2 {
            return;
        }
        for position in *made..end {
            changes.insert(keys::part(lane, Position(position), 0), NOTHING);
        }
        *made = end;
    }
}

const NOTHING: &[u8] = &[];

/// How much a commit may clear away.
#[derive(Debug, Clone, Copy)]
pub(super) struct Surplus {
    keys: usize,
    bytes: usize,
    most: usize,
    /// For each key and byte that it brings.
    times: usize,
    /// Positions before the head that stay.
    stay: u64,
}

impl Surplus {
    /// Of a commit that somebody waits for.
    pub(super) const COMMIT: Self =
        Self { keys: GONE as usize, bytes: 0, most: MOST, times: 2, stay: GONE };
    /// The same where the files are near the size that they may have.
    pub(super) const SHORT: Self = Self { times: 8, stay: 0, ..Self::COMMIT };
    /// Of what is applied and nobody waits for.
    pub(super) const APPLIED: Self = Self { keys: 0, ..Self::COMMIT };

    fn grow(&mut self, bytes: usize) {
        self.keys += self.times;
        self.bytes += self.times * bytes;
    }

    /// False if it is used up.
    fn take(&mut self, bytes: usize) -> bool {
        let some = self.most > 0 && (self.keys > 0 || self.bytes > 0);
        self.most = self.most.saturating_sub(1);
        self.keys = self.keys.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
        some
    }
}

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

    fn shown(store: &SledStore, from: u64) -> Vec<u64> {
        let pairs = store.range(&record(from), &keys::lane_end(Lane::Status), 10_000).unwrap();
        let number = |value: Vec<u8>| u64::from_be_bytes(value.try_into().unwrap());
        pairs.into_iter().map(|(_, value)| number(value)).collect()
    }

    fn keys_of(store: &SledStore) -> usize {
        store.db.scan_prefix(&record(0)[..2]).count()
    }

    #[test]
    fn places_are_there_and_nobody_sees_them_across_openings() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("outbox");
        let mut store = SledStore::open(&path).unwrap();
        let (mut next, mut first) = (1, 1);
        for round in 0..200u64 {
            let (new, left) = (next + round % 7, first + (round % 5).min(next - first));
            // The last of those that go goes out of order.
            let gone = if left > first { left - 1..left } else { 0..0 };
            commit(&mut store, next..new, gone.clone());
            (next, first) = (new, left);
            assert!(gone.clone().all(|gone| store.get(&record(gone)).unwrap().is_none()));
            store.discard(Lane::Status, Position(first));
            assert_eq!(shown(&store, first), (first..next).collect::<Vec<_>>(), "{round}");
            assert_eq!(store.get(&record(next)).unwrap(), None);
            assert!(
                store.range(&record(next), &keys::lane_end(Lane::Status), 1).unwrap().is_empty()
            );
            let most = (next - first + 2 * GONE + 2 * AHEAD) as usize;
            assert!(keys_of(&store) <= most, "{} keys", keys_of(&store));
            if round > 0 && next > first {
                assert!(store.db.get(record(next)).unwrap().is_some(), "a place is there");
            }
            if round % 20 == 19 {
                drop(store);
                store = SledStore::open(&path).unwrap();
                store.discard(Lane::Status, Position(first));
            }
        }
    }

    #[test]
    fn what_was_discarded_goes_faster_than_new_records_come() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("outbox");
        let mut store = SledStore::open(&path).unwrap();
        commit(&mut store, 1..1000, 0..0);
        store.discard(Lane::Status, Position(1000));
        let before = keys_of(&store);
        commit(&mut store, 0..0, 0..0);
        assert_eq!(keys_of(&store), before - GONE as usize);
        drop(store);
        let mut store = SledStore::open(&path).unwrap();
        commit(&mut store, 1000..1100, 0..0);
        store.discard(Lane::Status, Position(1000));
        let before = keys_of(&store);
        commit(&mut store, 1100..1200, 0..0);
        assert!(keys_of(&store) < before, "{} of {before} keys", keys_of(&store));
        for next in 1200..1230 {
            commit(&mut store, next..next + 1, 0..0);
        }
        assert!(keys_of(&store) <= (230 + 2 * GONE + AHEAD) as usize, "{}", keys_of(&store));
        assert_eq!(shown(&store, 1000), (1000..1230).collect::<Vec<_>>());
        assert_eq!(store.behind_discarded(&record(999)), Some(record(1000)));
        assert_eq!(store.behind_discarded(&record(1000)), None);
    }

    #[test]
    fn a_drained_lane_is_cleared_and_its_next_record_stays() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("outbox");
        let mut store = SledStore::open(&path).unwrap();
        commit(&mut store, 1..100, 0..0);
        store.discard(Lane::Status, Position(100));
        for position in 100..110 {
            drop(store);
            store = SledStore::open(&path).unwrap();
            store.discard(Lane::Status, Position(100));
            commit(&mut store, position..position + 1, 0..0);
            assert_eq!(shown(&store, 100), (100..=position).collect::<Vec<_>>());
        }
        store.discard(Lane::Status, Position(500));
        commit(&mut store, 110..600, 0..0);
        assert_eq!(shown(&store, 500), (500..600).collect::<Vec<_>>());
    }
}
