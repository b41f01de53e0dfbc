//! The seam to the disk: what the outbox needs of a storage engine, and nothing beyond it.

use std::collections::BTreeMap;

use super::record::Position;
use crate::event::Lane;

/// The engine failed. The text says what and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StoreError(pub String);

/// A key and its value.
pub type Pair = (Vec<u8>, Vec<u8>);

/// Changes that are made all together or not at all. The last change of a key counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    changes: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
}

impl Batch {
    /// Sets `key` to `value`.
    pub fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.changes.insert(key, Some(value));
    }

    /// Removes `key`; that it is absent is no error.
    pub fn delete(&mut self, key: Vec<u8>) {
        self.changes.insert(key, None);
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// The changes by key: a value to set, or `None` to remove.
    pub fn changes(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        self.changes.iter().map(|(key, value)| (key.as_slice(), value.as_deref()))
    }
}

/// An ordered map from bytes to bytes with an atomic, durable write.
///
/// Keys are under 1.1 KiB, values under 4 KiB (see [`super::keys`]) and never empty; one writer at a time.
pub trait Store {
    /// Makes all changes or none, and returns only once they are on stable storage: a sync that
    /// the device has answered, for every byte of the batch.
    ///
    /// # Errors
    /// Whether the changes are made is unknown; the caller must not go on with this store.
    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError>;

    /// As [`Self::commit`], without the wait for the device: the changes count for whoever reads from now on, and the
    /// next commit makes them stable as well. After a crash before that all of this batch is there or nothing, and nothing of
    /// it without all that was applied and committed before.
    ///
    /// # Errors
    /// As those of [`Self::commit`].
    fn apply(&mut self, batch: &Batch) -> Result<(), StoreError> {
        self.commit(batch)
    }

    /// Says that the records of `lane` before `first` are of no more use, and that no key of theirs will be written again.
    /// The store takes the keys away when it suits it, after all that was committed and applied so far; until then it may show
    /// them. It is said anew after each opening.
    fn discard(&mut self, _lane: Lane, _first: Position) {}

    /// The value of `key`.
    ///
    /// # Errors
    /// The engine cannot read it.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// What `look` makes of the value of `key`, where there is one: a store may spare itself the copy.
    ///
    /// # Errors
    /// The engine cannot read it.
    fn look<T>(&self, key: &[u8], look: impl FnOnce(&[u8]) -> T) -> Result<Option<T>, StoreError> {
        Ok(self.get(key)?.map(|value| look(&value)))
    }

    /// The first `limit` pairs with `from <= key < to`, by key.
    ///
    /// # Errors
    /// The engine cannot read them.
    fn range(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Pair>, StoreError>;
}
