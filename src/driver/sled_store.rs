//! The outbox's [`Store`] on sled 0.34.7, with a commit that survives a power cut.
//!
//! # What sled does, and what is added
//! - Its log is written by `pwrite` and "synced" by `sync_file_range`. [`sys`] puts `fdatasync` in
//!   the place of that call, *inside* sled's write path: sled counts a piece of its log as stable
//!   only after the device has answered for it, however many segments a commit spans. `flush()`
//!   then waits until all of the log up to the commit is stable. Opening proves that this is in
//!   force in this very process, or fails.
//! - `apply_batch` writes a manifest before the batch that holds the log position of its end; on
//!   recovery a batch whose end is not there is left out as a whole, and so is all behind it.
//!   (Read in `pagecache/iterator.rs` and `reservation.rs`; tested by cuts within commits of more
//!   than a segment.) Commits of one store never overlap, since `commit` takes `&mut self`.
//! - sled syncs neither `conf` nor any directory: done here, before the store is handed out.
//! - A page over a quarter of a segment would become a file of its own that sled never syncs.
//!   The outbox's values are bounded so that there is none ([`keys`](crate::outbox::keys)).
//! - A kill or cut during opening leaves a half-written `snap.….generating`, which sled then
//!   takes for its newest snapshot and refuses to open; a cut just after the first creation leaves
//!   a torn `conf`. Both hold nothing that is not elsewhere and are cleared away first.
//! - Recovery may write a synced snapshot of log pages that a killed process left unsynced in the
//!   kernel's memory, so the log is synced before sled sees it.
//!
//! # Layout
//! ```text
//! PATH/lock     held while open; a second process is told so
//! PATH/marks    a second copy of state and counters (super::marks)
//! PATH/sled/    sled's own files: conf, db, snap.*, blobs/ (empty)
//! ```
//! sled has a directory of its own, so that it can be set aside or replaced as a whole, which
//! [`outbox_open`](super::outbox_open) does with a damaged one.
//!
//! Blocking: `commit` waits for the device. Absent: a time limit on that wait.

mod closing;
mod places;

use std::cell::Cell;
use std::fs::{self, File, TryLockError};
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::marks::Marks;
use super::sys;
use crate::event::Lane;
use crate::outbox::{Batch, Pair, Position, Store, StoreError};
use closing::Closing;
use places::{Places, Surplus};

/// Bytes of a segment of sled's log. Fixed for the life of a store.
pub(super) const SEGMENT_BYTES: usize = 512 * 1024;
/// sled's page cache, of which it counts the bytes on the disk: in memory they are two to three times as many.
/// Pages are read in order and removed soon after, so that more would be of no use; with less than a leaf of
/// sixteen ordinary events (12 KiB) in each of its 256 parts a leaf would be read anew for each of its events.
/// sled's default is 1 GiB.
const CACHE_BYTES: u64 = 3 * 1024 * 1024;
/// How often sled's own thread looks for segments to reuse, and syncs: commits do not wait for it,
/// without it the file only grows, and each time a drive is asked to flush. With 500, 2,000 and
/// 5,000 a drained backlog left the same file.
const CLEAN_EVERY_MS: u64 = 2000;

/// How much may be written before the size of the files is looked at again.
const LOOK_EVERY_BYTES: usize = 256 * 1024;
/// How long a commit holds back at most, once the files have their full size.
const HOLD_BACK: Duration = Duration::from_millis(200);

/// How often and with what pauses sled is asked again while its threads still hold the file.
const LOCK_ATTEMPTS: u32 = 50;
/// The same for our own lock, which another agent holds for as long as it runs.
const CONTENDED_ATTEMPTS: u32 = 5;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// The key that the self-check writes: sorts before all keys of the outbox.
const CHECK_KEY: &[u8] = &[0];

/// The store cannot be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// A file or directory cannot be made, read or written; the operator mends that.
    #[error("open outbox: {action} {path}: {cause}")]
    File {
        /// What was tried.
        action: &'static str,
        /// The path.
        path: String,
        /// The system's answer.
        cause: String,
        /// Its kind.
        kind: io::ErrorKind,
    },
    /// The directory above it is missing; the operator mounts the disk or makes it.
    #[error(
        "open outbox: the directory above {path} is missing: mount its disk, or make the directory"
    )]
    NoParent {
        /// The outbox's directory.
        path: String,
    },
    /// Another process has it open.
    #[error("open outbox: {path} is in use by another process: stop that one first")]
    InUse {
        /// The outbox's directory.
        path: String,
    },
    /// sled refuses it.
    #[error("open outbox: {cause}")]
    Engine {
        /// What was tried where, and sled's reason or its panic.
        cause: String,
    },
    /// The sync of this build does not reach the device.
    #[error(
        "open outbox: {path}: the outbox refuses to claim durability: sled's writes do not go through fdatasync in this build"
    )]
    NotDurable {
        /// sled's directory.
        path: String,
    },
}

impl OpenError {
    /// Whether the operator must mend something before the outbox can be opened, be it damaged or
    /// not: rights, a read-only or full disk, another process, a build without syncs.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::File { kind, .. } => is_refusal(*kind),
            Self::NoParent { .. } | Self::InUse { .. } | Self::NotDurable { .. } => true,
            Self::Engine { .. } => false,
        }
    }
}

/// What the system answers where it will not write, whatever the state of the files.
fn is_refusal(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
    is_full(kind) || matches!(kind, PermissionDenied | ReadOnlyFilesystem)
}

/// What it answers where there is no room.
pub(super) fn is_full(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(kind, FileTooLarge | QuotaExceeded | StorageFull)
}

/// The outbox's directory, locked against other processes. Cheap to clone; the last one unlocks.
#[derive(Debug, Clone)]
pub(super) struct Locked {
    pub(super) path: PathBuf,
    _lock: Arc<File>,
}

impl Locked {
    /// Makes the directory if it is missing (its parent must be there) and locks it.
    pub(super) fn new(path: &Path) -> Result<Self, OpenError> {
        make_directory(path)?;
        Ok(Self { path: path.to_owned(), _lock: Arc::new(lock(path)?) })
    }
}

/// A store on disk; see the [module](self).
#[derive(Debug)]
pub struct SledStore {
    // Dropped in this order: sled flushes and closes before the lock is given up.
    db: Closing<sled::Db>,
    path: PathBuf,
    marks: Option<Marks>,
    places: Places,
    /// Set by a write that failed for want of room.
    full: Cell<Option<io::ErrorKind>>,
    /// What its files may take, if anybody said, and what was written since they were looked at.
    max_size: Option<u64>,
    unlooked: usize,
    /// Whether they are near it.
    short: bool,
    locked: Locked,
}

impl SledStore {
    /// Opens the store in the directory `path`, made if it is missing (its parent must be there).
    ///
    /// Blocks for as long as recovery takes. A panic within sled becomes an error. A damaged store
    /// is an error: [`outbox_open::open`](super::outbox_open::open) opens those as well.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let locked = Locked::new(path)?;
        let marks = Marks::open(&path.join("marks")).ok().map(|(marks, _)| marks);
        Self::open_in(&locked, "sled", marks)
    }

    /// Opens the store in the directory `name` of a locked outbox.
    pub(super) fn open_in(
        locked: &Locked,
        name: &str,
        marks: Option<Marks>,
    ) -> Result<Self, OpenError> {
        let root = &locked.path;
        let directory = root.join(name);
        make_directory(&directory)?;
        clear_leftovers(&directory)?;
        let database = directory.join("db");
        if database.exists() {
            sync_file(&database)?;
        }
        let db = Closing::new(open_sled(&directory)?, closing::LIMIT);
        let (path, full) = (directory.clone(), Cell::new(None));
        let (max_size, unlooked) = (None, 0);
        let (places, locked) = (Places::default(), locked.clone());
        let mut store =
            Self { db, path, marks, places, full, max_size, unlooked, short: false, locked };
        sync_file(&directory.join("conf"))?;
        sync_directory(&directory)?;
        sync_directory(root)?;
        // The parent holds the entry of the outbox itself; "" is the working directory.
        let parent = root.parent().filter(|parent| !parent.as_os_str().is_empty());
        sync_directory(parent.unwrap_or(Path::new(".")))?;
        store.prove_durability(sys::real_syncs)?;
        Ok(store)
    }

    /// The outbox's directory.
    pub(super) fn locked(&self) -> &Locked {
        &self.locked
    }

    /// Bytes of sled's files.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn size_on_disk(&self) -> Result<u64, StoreError> {
        self.db.size_on_disk().map_err(|e| self.error("measure", &e.to_string()))
    }

    /// From where to read on, in the place of a key whose record was discarded and that is still there.
    pub(super) fn behind_discarded(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.places.behind_discarded(key)
    }

    /// Holds commits back when the files come near this size.
    ///
    /// sled reuses a segment once its last page was written elsewhere and no thread can still look at
    /// it. Its cleaner works at most half of the time and a thread that the kernel has set aside looks
    /// for as long: whoever writes on without a pause meanwhile makes the file grow. So from three
    /// quarters on a commit takes longer the more they take, up to `HOLD_BACK`.
    pub fn keep_within(&mut self, max_size: u64) {
        self.max_size = Some(max_size);
    }

    fn hold_back(&mut self, batch: &Batch) {
        let Some(max_size) = self.max_size else { return };
        let bytes =
            |(key, change): (&[u8], Option<&[u8]>)| key.len() + change.map_or(0, <[u8]>::len);
        self.unlooked += batch.changes().map(bytes).sum::<usize>();
        if self.unlooked < LOOK_EVERY_BYTES {
            return;
        }
        self.unlooked = 0;
        let calm = max_size / 4 * 3;
        let over = self.size_on_disk().unwrap_or(0).saturating_sub(calm);
        let share = over as f64 / (max_size - calm).max(1) as f64;
        self.short = over > 0;
        if over > 0 {
            std::thread::sleep(HOLD_BACK.mul_f64(share.min(1.0)));
        }
    }

    /// Writes, and sees whether a real sync came of it. The value counts openings, since sled
    /// writes nothing for a value that is there already.
    fn prove_durability(&mut self, real_syncs: fn() -> u64) -> Result<(), OpenError> {
        let engine = |StoreError(cause)| OpenError::Engine { cause };
        let last = self.get(CHECK_KEY).map_err(engine)?;
        let last = last.and_then(|value| value.try_into().ok()).map_or(0, u64::from_be_bytes);
        let mut batch = Batch::default();
        batch.put(CHECK_KEY.to_vec(), last.wrapping_add(1).to_be_bytes().to_vec());
        let before = real_syncs();
        self.commit(&batch).map_err(|StoreError(cause)| match self.full.take() {
            Some(kind) => {
                let path = self.path.display().to_string();
                OpenError::File { action: "write", path, cause, kind }
            }
            None => OpenError::Engine { cause },
        })?;
        if real_syncs() == before {
            return Err(OpenError::NotDurable { path: self.path.display().to_string() });
        }
        Ok(())
    }

    fn write(&mut self, batch: &Batch, surplus: Surplus) -> Result<(), StoreError> {
        let mut places = std::mem::take(&mut self.places);
        self.guarded("write outbox in", |db| db.apply_batch(places.stage(db, batch, surplus)?))?;
        self.places = places;
        Ok(())
    }

    fn error(&self, action: &str, cause: &str) -> StoreError {
        StoreError(format!("{action} {}: {cause}", self.path.display()))
    }

    /// Runs a call into sled; a panic there is an error of this store.
    fn guarded<T>(
        &self,
        action: &str,
        call: impl FnOnce(&sled::Db) -> Result<T, sled::Error>,
    ) -> Result<T, StoreError> {
        match panic::catch_unwind(AssertUnwindSafe(|| call(&self.db))) {
            Ok(result) => result.map_err(|e| {
                match &e {
                    sled::Error::Io(io) if is_full(io.kind()) => self.full.set(Some(io.kind())),
                    _ => {}
                }
                self.error(action, &e.to_string())
            }),
            Err(panic) => Err(self.error(action, &panic_text(&*panic))),
        }
    }
}

impl Store for SledStore {
    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        self.write(batch, if self.short { Surplus::SHORT } else { Surplus::COMMIT })?;
        self.guarded("write outbox in", |db| db.flush().map(drop))?;
        if let Some(marks) = &mut self.marks {
            marks.follow(batch);
        }
        self.hold_back(batch);
        Ok(())
    }

    /// The marks stay behind: what they say must be on the disk.
    fn apply(&mut self, batch: &Batch) -> Result<(), StoreError> {
        self.write(batch, Surplus::APPLIED)?;
        self.hold_back(batch);
        Ok(())
    }

    fn discard(&mut self, lane: Lane, first: Position) {
        self.places.discard(lane, first);
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.look(key, <[u8]>::to_vec)
    }

    fn look<T>(&self, key: &[u8], look: impl FnOnce(&[u8]) -> T) -> Result<Option<T>, StoreError> {
        let value = self.guarded("read outbox in", |db| Ok(db.get(key)?.filter(is_value)))?;
        Ok(value.map(|value| look(&value)))
    }

    fn range(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Pair>, StoreError> {
        if from >= to {
            return Ok(Vec::new());
        }
        self.guarded("read outbox in", |db| {
            // An error counts as well, so that it is met.
            let pairs = db
                .range(from..to)
                .filter(|pair| pair.as_ref().map_or(true, |(_, value)| is_value(value)));
            let pairs = pairs.take(limit);
            pairs.map(|pair| pair.map(|(key, value)| (key.to_vec(), value.to_vec()))).collect()
        })
    }
}

impl Drop for SledStore {
    fn drop(&mut self) {
        // Whatever the answer: the copy is of use without its sync as well.
        let _ = self.marks.as_ref().map(Marks::sync);
    }
}

/// A [place](places) has none.
fn is_value(value: &sled::IVec) -> bool {
    !value.is_empty()
}

fn open_sled(directory: &Path) -> Result<sled::Db, OpenError> {
    let config = sled::Config::new()
        .path(directory)
        .mode(sled::Mode::LowSpace)
        .segment_size(SEGMENT_BYTES)
        .cache_capacity(CACHE_BYTES)
        .flush_every_ms(Some(CLEAN_EVERY_MS));
    let mut attempts = 0;
    let cause = loop {
        attempts += 1;
        match panic::catch_unwind(AssertUnwindSafe(|| config.open())) {
            Ok(Ok(db)) => return Ok(db),
            Ok(Err(sled::Error::Io(error))) if is_refusal(error.kind()) => {
                return Err(file_error("write", directory, &error));
            }
            // sled's threads may hold on to its file for a moment after it was closed.
            // Whoever else has it, the store is not damaged.
            Ok(Err(sled::Error::Io(error))) if error.to_string().contains("acquire lock") => {
                if attempts >= LOCK_ATTEMPTS {
                    return Err(OpenError::InUse { path: directory.display().to_string() });
                }
                std::thread::sleep(LOCK_PAUSE);
            }
            Ok(Err(error)) => break error.to_string(),
            Err(panic) => break panic_text(&*panic),
        }
    };
    Err(OpenError::Engine { cause: format!("sled cannot read {}: {cause}", directory.display()) })
}

pub(super) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("panic: {}", text.unwrap_or("of unknown kind"))
}

/// Makes the last component only: a missing parent is more likely a disk that is not mounted.
pub(super) fn make_directory(path: &Path) -> Result<(), OpenError> {
    match fs::create_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Err(OpenError::NoParent { path: path.display().to_string() })
        }
        result => result.map_err(|e| file_error("create directory", path, &e)),
    }
}

fn lock(path: &Path) -> Result<File, OpenError> {
    let lock_path = path.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&lock_path);
    let file = file.map_err(|e| file_error("open lock file", &lock_path, &e))?;
    for attempt in 1.. {
        match file.try_lock() {
            Ok(()) => break,
            // `hark outbox` holds it for a moment to see whether it is free.
            Err(TryLockError::WouldBlock) if attempt < CONTENDED_ATTEMPTS => {
                std::thread::sleep(LOCK_PAUSE);
            }
            Err(TryLockError::WouldBlock) => {
                return Err(OpenError::InUse { path: path.display().to_string() });
            }
            Err(TryLockError::Error(e)) => return Err(file_error("lock", &lock_path, &e)),
        }
    }
    Ok(file)
}

/// Removes what an opening that was cut short left behind and sled would stumble over.
fn clear_leftovers(directory: &Path) -> Result<(), OpenError> {
    let entries = fs::read_dir(directory).map_err(|e| file_error("read", directory, &e))?;
    for entry in entries {
        let path = entry.map_err(|e| file_error("read", directory, &e))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let half_snapshot = name.starts_with("snap.") && name.ends_with(".generating");
        let torn = half_snapshot || (name == "conf" && !is_whole_conf(&path)?);
        if torn {
            fs::remove_file(&path).map_err(|e| file_error("remove", &path, &e))?;
        }
    }
    Ok(())
}

/// sled ends `conf` with a CRC-32 of the rest, and writes it anew from our settings if it is absent.
fn is_whole_conf(path: &Path) -> Result<bool, OpenError> {
    let bytes = fs::read(path).map_err(|e| file_error("read", path, &e))?;
    let Some((body, sum)) = bytes.split_last_chunk::<4>() else { return Ok(false) };
    Ok(!body.is_empty() && crc32fast::hash(body) == u32::from_le_bytes(*sum))
}

fn sync_file(path: &Path) -> Result<(), OpenError> {
    let file = File::options().read(true).write(true).open(path);
    file.and_then(|file| file.sync_all()).map_err(|e| file_error("sync", path, &e))
}

pub(super) fn sync_directory(path: &Path) -> Result<(), OpenError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(|e| file_error("sync", path, &e))
}

pub(super) fn file_error(action: &'static str, path: &Path, error: &io::Error) -> OpenError {
    OpenError::File {
        action,
        path: path.display().to_string(),
        cause: error.to_string(),
        kind: error.kind(),
    }
}

#[cfg(test)]
#[path = "sled_store_tests.rs"]
mod tests;
