//! A reference store in memory, and faults around any store: for tests and for the simulator.

use std::collections::BTreeMap;

use super::keys;
use super::record::Position;
use super::store::{Batch, Pair, Store, StoreError};
use crate::event::Lane;

/// What [`Store`] means, in its plainest form. Survives nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryStore {
    pairs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl MemoryStore {
    /// Changes one byte of the value at `key`, as rot on a disk would; false where there is none.
    pub fn flip_byte(&mut self, key: &[u8], at: usize) -> bool {
        let byte = self.pairs.get_mut(key).and_then(|value| value.get_mut(at));
        byte.map(|byte| *byte ^= 0x40).is_some()
    }

    /// How many pairs there are.
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }
}

impl Store for MemoryStore {
    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        for (key, change) in batch.changes() {
            match change {
                Some(value) => self.pairs.insert(key.to_vec(), value.to_vec()),
                None => self.pairs.remove(key),
            };
        }
        Ok(())
    }

    fn discard(&mut self, lane: Lane, first: Position) {
        let range = keys::part(lane, Position(0), 0)..keys::part(lane, first, 0);
        self.pairs.extract_if(range, |_, _| true).for_each(drop);
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.pairs.get(key).cloned())
    }

    fn range(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Pair>, StoreError> {
        if from >= to {
            return Ok(Vec::new());
        }
        let range = self.pairs.range(from.to_vec()..to.to_vec()).take(limit);
        Ok(range.map(|(key, value)| (key.clone(), value.clone())).collect())
    }
}

/// What becomes of the commit at which a fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Power went before the sync: none of it is there.
    Lost,
    /// Power went after the sync and before its answer: all of it is there.
    KeptUnanswered,
}

/// A store whose commit fails once, after a countdown; reads go on. It shows what was [discarded](Store::discard) for ever.
#[derive(Debug, Clone)]
pub struct FaultyStore<S> {
    inner: S,
    countdown: Option<(u32, Fault)>,
}

impl<S> FaultyStore<S> {
    /// A store that never fails until [`Self::arm`] is called.
    pub fn new(inner: S) -> Self {
        Self { inner, countdown: None }
    }

    /// Lets `commits` more succeed, and the next one fail with `fault`.
    pub fn arm(&mut self, commits: u32, fault: Fault) {
        self.countdown = Some((commits, fault));
    }

    /// What is on the disk, as the next start finds it.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S: Store> Store for FaultyStore<S> {
    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        match self.countdown {
            Some((0, fault)) => {
                self.countdown = None;
                if fault == Fault::KeptUnanswered {
                    self.inner.commit(batch)?;
                }
                Err(StoreError("injected fault".to_owned()))
            }
            Some((left, fault)) => {
                self.countdown = Some((left - 1, fault));
                self.inner.commit(batch)
            }
            None => self.inner.commit(batch),
        }
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.inner.get(key)
    }

    fn range(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Pair>, StoreError> {
        self.inner.range(from, to, limit)
    }
}
