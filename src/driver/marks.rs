//! A second copy of the outbox's state and counters, outside the engine.
//!
//! After each commit the small values that it changed are written to `PATH/marks` as well, *without
//! a sync of their own*: the copy costs no flush of the drive, the kernel writes the few pages when
//! it likes. So the copy may be behind the store, by nothing after a kill and by what the kernel
//! had not written yet (seconds) after a power cut, and it is never ahead of it, since it is
//! written after the commit. A store that is behind its copy has lost commits.
//!
//! ```text
//! slot (2,048 bytes) = CRC-32 of the rest (4) | generation (8) | key length (2) | value length (2) | key | value
//! ```
//! Each key has two slots that are written in turn: a torn write leaves the other one. All numbers
//! are big-endian. The file is sparse and at most 12 MiB.
//!
//! What it can detect and what not: `docs/adr/0007`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::outbox::{Batch, keys};

const SLOT_BYTES: usize = 2048;
const HEADER_BYTES: usize = 16;
/// The state, and each counter there may be.
const MAX_KEYS: usize = 1 + 3 * crate::outbox::MAX_SOURCES;

/// The newest sound values by key.
pub(super) type Copy = BTreeMap<Vec<u8>, Vec<u8>>;

/// The file, open for writing.
#[derive(Debug)]
pub(super) struct Marks {
    file: File,
    /// Which pair of slots a key has, and the generation that was written last.
    pairs: BTreeMap<Vec<u8>, (usize, u64)>,
    failing: bool,
}

impl Marks {
    /// Opens the file, or makes it; the values that it holds come along.
    ///
    /// # Errors
    /// It cannot be opened or read.
    pub(super) fn open(path: &Path) -> io::Result<(Self, Copy)> {
        let mut options = File::options();
        let file = options.create(true).truncate(false).read(true).write(true).open(path)?;
        let (pairs, copy) = read(&file)?;
        Ok((Self { file, pairs, failing: false }, copy))
    }

    /// Copies what a commit changed. A failure is logged once and harms no event.
    pub(super) fn follow(&mut self, batch: &Batch) {
        for (key, change) in batch.changes() {
            let Some(value) = change.filter(|_| is_marked(key)) else { continue };
            let result = self.write(key, value);
            if let (Err(error), false) = (&result, self.failing) {
                tracing::warn!("the copy of the outbox's counters is not written: {error}");
            }
            self.failing = result.is_err();
        }
    }

    fn write(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        let (pair, generation) = match self.pairs.get(key) {
            Some((pair, generation)) => (*pair, generation.wrapping_add(1)),
            None => (self.free_pair(), 1),
        };
        if pair >= MAX_KEYS {
            return Err(io::Error::other("there are too many keys"));
        }
        let slot = encode(generation, key, value)
            .ok_or_else(|| io::Error::other("a value is too large for its slot"))?;
        let place = pair * 2 + usize::from(generation % 2 == 1);
        self.file.write_all_at(&slot, (place * SLOT_BYTES) as u64)?;
        self.pairs.insert(key.to_vec(), (pair, generation));
        Ok(())
    }

    fn free_pair(&self) -> usize {
        let used: BTreeSet<usize> = self.pairs.values().map(|(pair, _)| *pair).collect();
        (0..).find(|pair| !used.contains(pair)).unwrap_or(MAX_KEYS)
    }

    /// Syncs the file: at the ends of a run, not with each commit.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

/// State and counters; all else is in the store alone.
fn is_marked(key: &[u8]) -> bool {
    key == keys::STATE || keys::parse_counter(key).is_some()
}

fn encode(generation: u64, key: &[u8], value: &[u8]) -> Option<Vec<u8>> {
    let mut slot = vec![0; 4];
    slot.extend_from_slice(&generation.to_be_bytes());
    slot.extend_from_slice(&u16::try_from(key.len()).ok()?.to_be_bytes());
    slot.extend_from_slice(&u16::try_from(value.len()).ok()?.to_be_bytes());
    slot.extend_from_slice(key);
    slot.extend_from_slice(value);
    let sum = crc32fast::hash(&slot[4..]);
    slot[..4].copy_from_slice(&sum.to_be_bytes());
    (slot.len() <= SLOT_BYTES).then_some(slot)
}

fn decode(slot: &[u8]) -> Option<(u64, Vec<u8>, Vec<u8>)> {
    let header: &[u8; HEADER_BYTES] = slot.first_chunk()?;
    let generation = u64::from_be_bytes(header[4..12].try_into().ok()?);
    let key = usize::from(u16::from_be_bytes([header[12], header[13]]));
    let value = usize::from(u16::from_be_bytes([header[14], header[15]]));
    let body = slot.get(HEADER_BYTES..HEADER_BYTES + key + value)?;
    let sum = crc32fast::hash(&slot[4..HEADER_BYTES + key + value]);
    let (key, value) = body.split_at(key);
    (header[..4] == sum.to_be_bytes()).then(|| (generation, key.to_vec(), value.to_vec()))
}

type Pairs = BTreeMap<Vec<u8>, (usize, u64)>;

fn read(file: &File) -> io::Result<(Pairs, Copy)> {
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    let slots = length.div_ceil(SLOT_BYTES).min(2 * MAX_KEYS);
    let (mut pairs, mut copy) = (BTreeMap::new(), BTreeMap::new());
    let mut buffer = vec![0; SLOT_BYTES];
    for slot in 0..slots {
        buffer.fill(0);
        let mut filled = 0;
        while filled < SLOT_BYTES {
            let at = (slot * SLOT_BYTES + filled) as u64;
            // A piece of the disk that cannot be read is a slot that is not there.
            match file.read_at(&mut buffer[filled..], at) {
                Ok(0) | Err(_) => break,
                Ok(read) => filled += read,
            }
        }
        let Some((generation, key, value)) = decode(&buffer) else { continue };
        let known = pairs.get(&key).is_some_and(|(_, known)| *known >= generation);
        if is_marked(&key) && !known {
            pairs.insert(key.clone(), (slot / 2, generation));
            copy.insert(key, value);
        }
    }
    Ok((pairs, copy))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Lane;

    fn batch(key: &[u8], value: &[u8]) -> Batch {
        let mut batch = Batch::default();
        batch.put(key.to_vec(), value.to_vec());
        batch
    }

    #[test]
    fn the_newest_sound_value_of_each_key_comes_back() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("marks");
        let counter = keys::counter(Lane::Alert, "/s");
        let (mut marks, copy) = Marks::open(&path).unwrap();
        assert!(copy.is_empty());
        for round in 0..5u8 {
            marks.follow(&batch(keys::STATE, &[round; 100]));
            marks.follow(&batch(&counter, &[round; 9]));
            marks.follow(&batch(b"r and not for us", b"x"));
        }
        let (_, copy) = Marks::open(&path).unwrap();
        assert_eq!((copy[keys::STATE].clone(), copy[&counter].clone()), (vec![4; 100], vec![4; 9]));
        assert_eq!(copy.len(), 2);

        // The slot that was written last is torn: the one before it counts.
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[SLOT_BYTES + 50] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let (mut marks, copy) = Marks::open(&path).unwrap();
        assert_eq!(copy[keys::STATE], [3; 100]);
        marks.follow(&batch(keys::STATE, b"new"));
        let (_, copy) = Marks::open(&path).unwrap();
        assert_eq!(copy[keys::STATE], b"new");
    }

    #[test]
    fn rubbish_is_an_empty_copy() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("marks");
        for rubbish in [vec![], vec![0; 9000], vec![0xFF; 9000], vec![7; 3]] {
            std::fs::write(&path, &rubbish).unwrap();
            assert!(Marks::open(&path).unwrap().1.is_empty());
        }
    }
}
