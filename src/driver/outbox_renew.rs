//! A fresh store in the place of one whose file has become too large for what it holds.
//!
//! sled's file never shrinks: after a backlog of 500,000 events it stays at hundreds of megabytes. Once
//! little is left of it, that is copied to a store of its own, which takes the old one's place:
//!
//! ```text
//! copy all keys ─► sled.new, synced │ sled ─► sled.old, sync │ sled.new ─► sled, sync │ open │ remove sled.old
//! ```
//! - All keys are copied as they are, but for those of records that are gone: records, dead letters, counters, state, whatever else stands there. The
//!   state is the one that the marks know.
//! - Nothing is committed in between, and each of the three bars is a sync of the directory. Whenever the
//!   power goes, a whole store is there under a name that the next opening takes: `sled`, or, where that is
//!   missing, `sled.new`, which is complete from the moment in which `sled` has lost its name.
//! - It is bounded: [`MAX_BYTES`] and [`MAX_TIME`] for the copy, else it is given up and the old store goes on.
//!
//! Absent: when it is done, which [`outbox_disk`](super::outbox_disk) decides.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::time::Duration;

use super::outbox_open::{self, remove};
use super::sled_store::{Locked, OpenError, SledStore, file_error, sync_directory};
use crate::clock::Clock;
use crate::outbox::{Batch, Outbox, Store, StoreError};

/// Keys and values that are copied at most.
pub const MAX_BYTES: usize = 2 * 1024 * 1024;
/// How long copying may take.
pub const MAX_TIME: Duration = Duration::from_secs(1);

/// Pairs that are read at a time.
const READ_PAIRS: usize = 64;
/// How often and with what pauses it is seen whether sled's threads have let go of its files.
const CLOSE_ATTEMPTS: u32 = 200;
const CLOSE_PAUSE: Duration = Duration::from_millis(2);
/// Bytes of one commit of the new store.
const BATCH_BYTES: usize = 256 * 1024;

/// An outbox that is open again.
#[derive(Debug)]
pub struct Renewed {
    /// Without its chronicle and its limits.
    pub outbox: Outbox<SledStore>,
    /// Why the store is still the old one, if it is.
    pub abandoned: Option<String>,
}

/// Puts a fresh store in the place of this one.
///
/// # Errors
/// The outbox cannot be opened any more; nothing of it is lost.
pub fn renew(outbox: Outbox<SledStore>, clock: Clock) -> Result<Renewed, OpenError> {
    let store = outbox.into_store();
    let locked = store.locked().clone();
    let until = clock.now() + MAX_TIME;
    if let Err(reason) = copy(&store, &locked, || clock.now() >= until) {
        remove(&locked.path.join("sled.new"))?;
        let outbox = Outbox::open_checked(store, &BTreeMap::new())
            .map_err(|e| OpenError::Engine { cause: e.to_string() })?;
        return Ok(Renewed { outbox, abandoned: Some(reason) });
    }
    drop(store);
    // Not before sled has let go of both: one of its threads could still write by the old name.
    let closed = ["sled", "sled.new"].iter().all(|name| is_closed(&locked, name));
    if closed {
        swap(&locked)?;
    }
    let abandoned = (!closed).then(|| "sled did not close its files in time".to_owned());
    let outbox = outbox_open::open_locked(&locked, clock)?;
    Ok(Renewed { outbox, abandoned })
}

/// Whether the last of sled's threads has dropped the lock on its log.
fn is_closed(locked: &Locked, name: &str) -> bool {
    let Ok(log) = File::open(locked.path.join(name).join("db")) else { return false };
    (0..CLOSE_ATTEMPTS).any(|_| {
        let closed = log.try_lock().is_ok();
        if !closed {
            std::thread::sleep(CLOSE_PAUSE);
        }
        closed
    })
}

/// Makes `sled.new`, complete, synced and closed.
fn copy(store: &SledStore, locked: &Locked, late: impl Fn() -> bool) -> Result<(), String> {
    let failed = |StoreError(cause)| cause;
    remove(&locked.path.join("sled.new")).map_err(|e| e.to_string())?;
    let mut fresh = SledStore::open_in(locked, "sled.new", None).map_err(|e| e.to_string())?;
    let (mut from, mut total) = (Vec::new(), 0);
    let (mut batch, mut bytes) = (Batch::default(), 0);
    loop {
        let pairs = store.range(&from, &[u8::MAX], READ_PAIRS).map_err(failed)?;
        if pairs.is_empty() {
            break;
        }
        for (key, value) in pairs {
            if let Some(behind) = store.behind_discarded(&key) {
                from = behind;
                break;
            }
            from = [&key[..], &[0]].concat();
            bytes += key.len() + value.len();
            batch.put(key, value);
        }
        if bytes >= BATCH_BYTES {
            total += std::mem::take(&mut bytes);
            fresh.commit(&std::mem::take(&mut batch)).map_err(failed)?;
        }
        if total + bytes > MAX_BYTES {
            return Err(format!("more than {MAX_BYTES} bytes are left in it"));
        }
        if late() {
            return Err(format!("copying took more than {} s", MAX_TIME.as_secs()));
        }
    }
    fresh.commit(&batch).map_err(failed)
}

fn swap(locked: &Locked) -> Result<(), OpenError> {
    let path = &locked.path;
    let [current, new, old] = ["sled", "sled.new", "sled.old"].map(|name| path.join(name));
    remove(&old)?;
    fs::rename(&current, &old).map_err(|e| file_error("rename", &current, &e))?;
    sync_directory(path)?;
    fs::rename(&new, &current).map_err(|e| file_error("rename", &new, &e))?;
    sync_directory(path)
}
