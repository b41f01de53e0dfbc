//! What the outbox's writer needs of the disk besides the store: opening it again after a failure, the
//! room around it, and a fresh file after a drained backlog.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::ballast::Ballast;
use super::outbox_writer::Disk;
use super::sled_store::SledStore;
use super::{host, outbox_open, outbox_renew, sys};
use crate::clock::Clock;
use crate::event::Moment;
use crate::outbox::{Chronicle, Limits, Outbox, OutboxError};

/// A file of at least this size is worth a fresh one: four megabytes of ballast beside it, the outbox
/// stays under 16 MiB.
pub const RENEW_FILE_BYTES: u64 = 8 * 1024 * 1024;
/// With more bytes of frames left it is not yet the time: copying them delays who comes meanwhile.
pub const RENEW_LEFT_BYTES: u64 = 256 * 1024;
/// How long to leave it after one that was given up.
const RENEW_PAUSE: Duration = Duration::from_secs(3600);

/// See the [module](self).
#[derive(Debug)]
pub struct OutboxDisk {
    path: PathBuf,
    ballast: Ballast,
    chronicle: Chronicle,
    limits: Limits,
    max_size: u64,
    clock: Clock,
    /// The kernel's id of this boot; `None`: unknown.
    boot: Option<String>,
    /// True: taken for full.
    full: Option<Arc<AtomicBool>>,
    /// No fresh file before that: the last attempt came to nothing.
    rests_until: Option<Instant>,
}

impl OutboxDisk {
    /// For the outbox in `path`, whose files may take `max_size` and which is opened with this chronicle and
    /// these limits.
    pub fn new(
        path: PathBuf,
        max_size: u64,
        chronicle: Chronicle,
        limits: Limits,
        clock: Clock,
    ) -> Self {
        let ballast = Ballast::new(&path);
        let boot = Some(host::boot_id()).filter(|boot| boot != "unknown");
        Self {
            path,
            ballast,
            chronicle,
            limits,
            max_size,
            clock,
            boot,
            full: None,
            rests_until: None,
        }
    }

    /// With a switch that has the disk taken for full.
    pub fn taken_for_full(self, full: Option<Arc<AtomicBool>>) -> Self {
        Self { full, ..self }
    }

    /// The outbox with what it needs beside its store.
    pub fn equip(&self, outbox: Outbox<SledStore>) -> Outbox<SledStore> {
        let mut outbox = outbox.with_chronicle(self.chronicle.clone()).with_limits(self.limits);
        outbox.store_mut().keep_within(self.max_size);
        outbox
    }
}

impl Disk<SledStore> for OutboxDisk {
    fn revive(
        &mut self,
        failures: u32,
        error: &OutboxError,
    ) -> Result<Outbox<SledStore>, OutboxError> {
        // For want of room the store is no worse than before; else, if opening it again did not
        // help, its files are salvaged.
        if self.ballast.is_short() {
            self.ballast.give_up();
        } else if failures > 1 {
            outbox_open::distrust(&self.path, &error.to_string());
        }
        let outbox = outbox_open::open(&self.path, self.clock)
            .map_err(|e| OutboxError::Failed { cause: e.to_string() })?;
        Ok(self.equip(outbox))
    }

    fn is_short(&mut self) -> bool {
        let full = self.full.as_ref().is_some_and(|full| full.load(Ordering::Relaxed));
        self.ballast.is_short() || full
    }

    fn bound(&mut self, outbox: &mut Outbox<SledStore>, limits: Limits, max_size: u64) {
        (self.limits, self.max_size) = (limits, max_size);
        outbox.set_limits(limits);
        outbox.store_mut().keep_within(max_size);
    }

    fn moment(&self) -> Option<Moment> {
        let ms = u64::try_from(sys::since_boot().as_millis()).unwrap_or(u64::MAX);
        self.boot.clone().map(|boot| Moment { boot, ms })
    }

    fn wants_renewal(&mut self, outbox: &Outbox<SledStore>) -> bool {
        let left: u64 = outbox.bytes().iter().sum();
        left <= RENEW_LEFT_BYTES
            && fs::metadata(self.path.join("sled/db")).is_ok_and(|db| db.len() > RENEW_FILE_BYTES)
            && self.rests_until.is_none_or(|until| until <= self.clock.now())
            && !self.ballast.is_short()
    }

    fn renew(&mut self, outbox: Outbox<SledStore>) -> Result<Outbox<SledStore>, OutboxError> {
        let file = self.path.join("sled/db");
        let bytes = || fs::metadata(&file).map_or(0, |meta| meta.len());
        let (before, begun) = (bytes(), self.clock.now());
        // Whatever becomes of it, it is not tried again at once.
        self.rests_until = Some(begun + RENEW_PAUSE);
        let renewed = outbox_renew::renew(outbox, self.clock)
            .map_err(|e| OutboxError::Failed { cause: e.to_string() })?;
        if renewed.abandoned.is_none() {
            self.rests_until = None;
            outbox_open::remove_old(&self.path);
        }
        let took_ms = self.clock.now().duration_since(begun).as_millis();
        match renewed.abandoned {
            None => {
                tracing::info!(before, after = bytes(), took_ms, "the outbox has a fresh file");
            }
            Some(reason) => {
                tracing::warn!(took_ms, "the outbox keeps its large file for now: {reason}");
            }
        }
        Ok(self.equip(renewed.outbox))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{ClockState, Rng};
    use crate::event::catalogue::Maker;
    use crate::outbox::{Batch, Store, keys};

    #[test]
    fn a_renewal_that_fails_is_not_tried_again_at_once() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("outbox");
        let clock = Clock::new(|| ClockState::Synced);
        let chronicle = Chronicle { maker: Maker::new("d", "io.hark"), rng: Rng::from_seed(1) };
        let limits = Limits { bytes: 1 << 20, expiry: RENEW_PAUSE };
        let mut disk = OutboxDisk::new(path.clone(), 1 << 28, chronicle, limits, clock);
        let outbox = disk.renew(outbox_open::open(&path, clock).unwrap()).unwrap();
        assert_eq!(disk.rests_until, None, "this one went well");

        // More than is copied, and a state that cannot be read when the old store is to go on.
        let mut outbox = outbox;
        let mut batch = Batch::default();
        for number in 0..800u16 {
            let key = [b"x".as_slice(), &number.to_be_bytes()].concat();
            batch.put(key, vec![0; outbox_renew::MAX_BYTES / 700]);
        }
        batch.put(keys::STATE.to_vec(), b"rubbish".to_vec());
        outbox.store_mut().commit(&batch).unwrap();
        assert!(matches!(disk.renew(outbox), Err(OutboxError::Failed { .. })));
        assert!(disk.rests_until.is_some_and(|until| until > clock.now()));
    }
}
