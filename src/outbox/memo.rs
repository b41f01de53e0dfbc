//! Memos: small values of other parts of the agent that become durable with events.
//!
//! Who must remember something exactly as long as the world was told of it (an alarm that is open, a
//! command that was carried out) hands it in beside the events that tell of it: one commit has both
//! or neither. A memo is overwritten and never deleted; the last one counts, also for
//! [`salvage`](super::salvage), which tells by the number of the commit which that is.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::codec;
use super::error::OutboxError;
use super::group::Group;
use super::keys::{self, PART_BYTES};
use super::queue::Outbox;
use super::store::Store;

/// The largest memo, in bytes: with its frame it is one value of the store.
pub const MAX_MEMO_BYTES: usize = PART_BYTES - 128;
/// The longest name.
const MAX_MEMO_NAME_BYTES: usize = 32;

/// A value under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memo {
    /// Whose it is, for good.
    pub name: &'static str,
    /// What only its owner understands.
    pub bytes: Vec<u8>,
}

/// What is stored. Its first key, `memo`, is what salvage looks for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stored {
    pub(super) memo: String,
    pub(super) commit: u64,
    bytes: ByteBuf,
}

/// How the body of every memo begins: a map of three, its first key.
pub(super) const MEMO_BEGINS: &[u8] = b"\xa3\x64memo";

impl<S: Store> Outbox<S> {
    /// What was remembered last under a name.
    ///
    /// # Errors
    /// The store cannot be read, or the memo is damaged.
    pub fn memo(&self, name: &str) -> Result<Option<Vec<u8>>, OutboxError> {
        let frame = self.store.get(&keys::memo(name)).map_err(OutboxError::Read)?;
        let Some(frame) = frame else { return Ok(None) };
        match codec::decode::<Stored>(&frame) {
            Ok(stored) => Ok(Some(stored.bytes.into_vec())),
            Err(e) => Err(OutboxError::MemoDamaged { name: name.to_owned(), cause: e.to_string() }),
        }
    }
}

impl<S: Store> Group<'_, S> {
    /// Stages a memo in the place of the one before it.
    ///
    /// # Errors
    /// It is too large. The group is as before.
    pub fn remember(&mut self, memo: &Memo) -> Result<(), OutboxError> {
        check_memo(memo)?;
        let stored = Stored {
            memo: memo.name.to_owned(),
            commit: self.state.commits + 1,
            bytes: ByteBuf::from(memo.bytes.clone()),
        };
        let frame = codec::encode(&stored).map_err(OutboxError::Encode)?;
        self.batch.put(keys::memo(memo.name), frame);
        Ok(())
    }
}

/// Holds a memo against its bounds.
///
/// # Errors
/// It is larger, or its name longer, than a value of the store can be.
pub fn check_memo(memo: &Memo) -> Result<(), OutboxError> {
    if memo.bytes.len() > MAX_MEMO_BYTES || memo.name.len() > MAX_MEMO_NAME_BYTES {
        let (name, bytes) = (memo.name.to_owned(), memo.bytes.len());
        return Err(OutboxError::MemoTooLarge { name, bytes });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::memory::{Fault, FaultyStore, MemoryStore};
    use super::super::salvage::Scan;
    use super::*;
    use crate::clock::{ClockState, WallTime};
    use crate::event::{Lane, json};

    const NOW: WallTime = WallTime { unix_ms: 1_795_000_000_000, state: ClockState::Synced };

    fn memo(bytes: &[u8]) -> Memo {
        Memo { name: "alarm", bytes: bytes.to_vec() }
    }

    fn event() -> (Lane, crate::event::Event) {
        let text = r#"{"specversion":"1.0","id":"1","source":"/s","type":"t"}"#;
        (Lane::Alert, json::parse(text.as_bytes()).unwrap())
    }

    #[test]
    fn a_commit_has_its_events_and_its_memo_or_neither() {
        for (fault, there) in [(Fault::Lost, false), (Fault::KeptUnanswered, true)] {
            let mut store = FaultyStore::new(MemoryStore::default());
            store.arm(1, fault);
            let mut outbox = Outbox::open(store).unwrap();
            let mut group = outbox.begin(NOW).unwrap();
            group.remember(&memo(b"old")).unwrap();
            group.commit().unwrap();
            let mut group = outbox.begin(NOW).unwrap();
            group.append(&[event()]).unwrap();
            group.remember(&memo(b"new")).unwrap();
            assert!(group.commit().is_err());
            let outbox = Outbox::open(outbox.into_store().into_inner()).unwrap();
            let expected: (&[u8], u64) = if there { (b"new", 1) } else { (b"old", 0) };
            let found = outbox.memo("alarm").unwrap().unwrap();
            assert_eq!((found.as_slice(), outbox.depth()[0]), expected, "{fault:?}");
        }
    }

    #[test]
    fn the_largest_memo_fits_a_value_and_a_larger_one_is_refused() {
        let mut outbox = Outbox::open(MemoryStore::default()).unwrap();
        let mut group = outbox.begin(NOW).unwrap();
        group.remember(&memo(&[0xA7; MAX_MEMO_BYTES])).unwrap();
        assert!(group.remember(&memo(&[0; MAX_MEMO_BYTES + 1])).is_err());
        group.commit().unwrap();
        let value = outbox.store_mut().get(&keys::memo("alarm")).unwrap().unwrap();
        assert!(value.len() <= PART_BYTES, "{}", value.len());
        assert_eq!(outbox.memo("alarm").unwrap().unwrap().len(), MAX_MEMO_BYTES);
        assert_eq!(outbox.memo("other").unwrap(), None);
    }

    #[test]
    fn a_damaged_memo_is_noticed() {
        let mut outbox = Outbox::open(MemoryStore::default()).unwrap();
        let mut group = outbox.begin(NOW).unwrap();
        group.remember(&memo(b"open")).unwrap();
        group.commit().unwrap();
        assert!(outbox.store_mut().flip_byte(&keys::memo("alarm"), 20));
        assert!(matches!(outbox.memo("alarm"), Err(OutboxError::MemoDamaged { .. })));
    }

    #[test]
    fn salvage_finds_the_newest_memo_wherever_it_stands_in_the_files() {
        let mut files = Vec::new();
        let mut outbox = Outbox::open(MemoryStore::default()).unwrap();
        let mut frames = Vec::new();
        for bytes in [b"one".as_slice(), b"two", b"three"] {
            let mut group = outbox.begin(NOW).unwrap();
            group.remember(&memo(bytes)).unwrap();
            group.commit().unwrap();
            frames.push(outbox.store_mut().get(&keys::memo("alarm")).unwrap().unwrap());
        }
        for at in [1, 2, 0] {
            files.extend_from_slice(b"something");
            files.extend_from_slice(&frames[at]);
        }
        files.extend_from_slice(&[0; 40]);
        let mut scan = Scan::default();
        scan.look(0, 0, &files);
        let last = scan.conclude("damaged", &Default::default(), &Default::default()).unwrap();
        let mut store = MemoryStore::default();
        store.commit(&last).unwrap();
        let found = Outbox::open(store).unwrap().memo("alarm").unwrap();
        assert_eq!(found.as_deref(), Some(b"three".as_slice()));

        // The control: of the newest a byte is wrong, so the one before it counts.
        let at = files.windows(5).position(|w| w == b"three").unwrap();
        files[at] ^= 1;
        let mut scan = Scan::default();
        scan.look(0, 0, &files);
        let last = scan.conclude("damaged", &Default::default(), &Default::default()).unwrap();
        let mut store = MemoryStore::default();
        store.commit(&last).unwrap();
        let found = Outbox::open(store).unwrap().memo("alarm").unwrap();
        assert_eq!(found.as_deref(), Some(b"two".as_slice()));
    }
}
