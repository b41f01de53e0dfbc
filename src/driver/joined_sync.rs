//! One sync for a batch of sled's and the manifest that announces it.
//!
//! sled writes a batch in two pieces, each by a thread of its pool, each followed by a sync: first the manifest, 40 bytes at
//! most, which says where the batch ends; then the batch. Neither is of use without the other, and
//! [`commit`](crate::outbox::Store::commit) waits for both. So a manifest waits for the sync of the piece behind it:
//!
//! ```text
//! thread 1   write manifest ─ waits ·················· ─ returns
//! thread 2              write batch ─ fdatasync ─────── ─ returns
//! ```
//! - Nobody is told of a sync that did not begin after its own write had ended: a waiting manifest goes by
//!   the number of a sync that began after it came.
//! - Nothing but a manifest waits, and no longer than [`COMPANY`]; then it is synced by itself, as it is when the
//!   piece behind it came first.
//! - A sync that fails is nobody's but its own caller's: who waited asks the device itself.
//!
//! So all that sled is told is true, whatever it does in between: `docs/adr/0026` says what it rests on.

use std::collections::BTreeMap;
use std::os::fd::RawFd;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a manifest waits for its batch: longer than a thread takes to wake up on a busy device, and
/// shorter than anybody notices should a batch ever come without a piece behind its manifest.
pub(super) const COMPANY: Duration = Duration::from_millis(10);
/// Most bytes of a manifest's message in sled 0.34.7: a CRC, its kind, three numbers of at most nine bytes, a log position.
const MANIFEST_MOST: usize = 4 + 1 + 3 * 9 + 8;
/// Where in a message sled writes its kind, and a manifest's.
const KIND: (usize, u8) = (4, 3);

/// A piece of a file that has been written and is to be synced: its first byte and the one behind its last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) from: i64,
    pub(super) to: i64,
}

/// Whether a piece of sled's log is a manifest and nothing else; `read` reads a piece of the log.
///
/// Source: sled 0.34.7, `pagecache/logger.rs` (`MessageHeader`) and `pagecache/mod.rs` (`MessageKind`).
pub(super) fn is_manifest(piece: Piece, read: impl FnOnce(&mut [u8]) -> bool) -> bool {
    let mut bytes = [0; MANIFEST_MOST];
    let length = usize::try_from(piece.to.saturating_sub(piece.from)).unwrap_or(usize::MAX);
    let (at, kind) = KIND;
    length > at && length <= MANIFEST_MOST && read(&mut bytes[..length]) && bytes[at] == kind
}

/// The syncs of one file, in the order in which they began.
#[derive(Debug, Default, Clone, Copy)]
struct Syncs {
    begun: u64,
    /// The latest that has ended well.
    done: u64,
    /// Where the piece of the latest begins.
    from: i64,
}

/// The syncs of all files of this process. See the [module](self).
#[derive(Debug)]
pub(super) struct JoinedSyncs {
    /// By descriptor: bounded by how many of sled's logs were ever open at once.
    files: Mutex<BTreeMap<RawFd, Syncs>>,
    ended: Condvar,
    company: Duration,
}

impl JoinedSyncs {
    /// A manifest waits for `company` at most.
    pub(super) const fn new(company: Duration) -> Self {
        Self { files: Mutex::new(BTreeMap::new()), ended: Condvar::new(), company }
    }

    /// Returns once a sync of `file` that began after this call has ended: of this call, or of another's that
    /// this one waited for. The piece has been written before.
    ///
    /// # Errors
    /// What `sync` returns.
    pub(super) fn sync<E>(
        &self,
        file: RawFd,
        piece: Piece,
        is_manifest: bool,
        sync: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        if is_manifest && self.joins(file, piece) {
            return Ok(());
        }
        let mut files = self.lock();
        let syncs = files.entry(file).or_default();
        syncs.begun += 1;
        syncs.from = piece.from;
        let number = syncs.begun;
        drop(files);
        sync()?;
        let mut files = self.lock();
        let syncs = files.entry(file).or_default();
        syncs.done = syncs.done.max(number);
        drop(files);
        self.ended.notify_all();
        Ok(())
    }

    /// Whether a sync that began from now on has ended well.
    fn joins(&self, file: RawFd, piece: Piece) -> bool {
        let mut files = self.lock();
        let now = *files.entry(file).or_default();
        if now.begun > 0 && now.from == piece.to {
            return false;
        }
        let alone = |files: &mut BTreeMap<RawFd, Syncs>| {
            files.get(&file).is_none_or(|syncs| syncs.done <= now.begun)
        };
        let waited = self.ended.wait_timeout_while(files, self.company, alone);
        let (_files, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        !waited.timed_out()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<RawFd, Syncs>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    const FILE: RawFd = 7;
    const MANIFEST: Piece = Piece { from: 100, to: 124 };
    const BATCH: Piece = Piece { from: 124, to: 4000 };
    const OTHER: Piece = Piece { from: 9000, to: 9100 };
    const FOR_EVER: Duration = Duration::from_secs(3600);
    const MOMENT: Duration = Duration::from_millis(1);

    /// Counts the syncs that were asked of the device for a piece.
    fn asked(syncs: &JoinedSyncs, piece: Piece, is_manifest: bool) -> usize {
        let count = Cell::new(0);
        let sync = || {
            count.set(count.get() + 1);
            Ok::<(), ()>(())
        };
        syncs.sync(FILE, piece, is_manifest, sync).unwrap();
        count.get()
    }

    #[test]
    fn a_manifest_returns_with_the_sync_of_another_piece() {
        let syncs = JoinedSyncs::new(FOR_EVER);
        let own = thread::scope(|scope| {
            let manifest = scope.spawn(|| asked(&syncs, MANIFEST, true));
            while !manifest.is_finished() {
                assert_eq!(asked(&syncs, OTHER, false), 1);
            }
            manifest.join().unwrap()
        });
        assert_eq!(own, 0);
    }

    #[test]
    fn a_manifest_whose_batch_came_first_and_one_without_any_are_synced_by_themselves() {
        let syncs = JoinedSyncs::new(FOR_EVER);
        assert_eq!(asked(&syncs, BATCH, false), 1);
        assert_eq!(asked(&syncs, MANIFEST, true), 1);
        let syncs = JoinedSyncs::new(MOMENT);
        assert_eq!(asked(&syncs, MANIFEST, true), 1);
    }

    #[test]
    fn a_sync_of_another_file_and_one_that_fails_are_nobody_elses() {
        let syncs = JoinedSyncs::new(MOMENT);
        let own = thread::scope(|scope| {
            let manifest = scope.spawn(|| asked(&syncs, MANIFEST, true));
            while !manifest.is_finished() {
                syncs.sync(FILE + 1, OTHER, false, || Ok::<(), ()>(())).unwrap();
                assert_eq!(syncs.sync(FILE, OTHER, false, || Err(5)), Err(5));
            }
            manifest.join().unwrap()
        });
        assert_eq!(own, 1);
    }

    #[test]
    fn whatever_the_order_a_piece_is_covered_by_a_sync_that_began_after_its_write() {
        let syncs = JoinedSyncs::new(MOMENT);
        // Writes so far, and how many of them the device has made good.
        let (written, stable) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let device = || {
            let now = written.load(Ordering::SeqCst);
            thread::yield_now();
            stable.fetch_max(now, Ordering::SeqCst);
            Ok::<(), ()>(())
        };
        let write_and_sync = |piece, is_manifest| {
            let mine = written.fetch_add(1, Ordering::SeqCst) + 1;
            syncs.sync(FILE, piece, is_manifest, device).unwrap();
            assert!(stable.load(Ordering::SeqCst) >= mine, "write {mine} was not covered");
        };
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| (0..3_000).for_each(|_| write_and_sync(MANIFEST, true)));
                scope.spawn(|| (0..3_000).for_each(|_| write_and_sync(OTHER, false)));
            }
        });
    }

    #[test]
    fn a_manifest_is_told_by_its_kind_and_its_length() {
        let manifest = |buffer: &mut [u8]| {
            buffer.fill(9);
            buffer[4] = 3;
            true
        };
        assert!(is_manifest(MANIFEST, manifest));
        assert!(!is_manifest(BATCH, manifest), "longer than one");
        assert!(!is_manifest(Piece { from: 100, to: 104 }, manifest), "shorter than one");
        assert!(!is_manifest(Piece { from: 104, to: 100 }, manifest));
        assert!(!is_manifest(MANIFEST, |_| false), "cannot be read");
        assert!(!is_manifest(MANIFEST, |buffer| {
            buffer.fill(9);
            true
        }));
    }
}
