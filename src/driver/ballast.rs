//! Room kept back on the disk for alerts: a file that is given up when the disk is full.
//!
//! sled fails for good at the first write for which there is no room, and needs some to be opened
//! again. So `PATH/ballast` holds [`BALLAST_BYTES`] with allocated blocks, made while there is
//! plenty. On a full disk it is removed, the store is opened again, and alerts and status go on in
//! what it leaves; telemetry is refused from the moment in which the room gets short. When room
//! has come back the file is made again and telemetry is taken.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::sys;

/// Bytes that are kept back: one to open the store, the rest for some hundred alerts.
pub const BALLAST_BYTES: u64 = 4 * 1024 * 1024;
/// With less than this free, telemetry is refused, and a failed write is for want of room.
pub const SHORT_BYTES: u64 = 2 * 1024 * 1024;

/// The file and what is known of the room around it.
#[derive(Debug)]
pub struct Ballast {
    path: PathBuf,
    short: bool,
}

impl Ballast {
    /// The ballast of the outbox in `path`, made if there is room for it.
    pub fn new(path: &Path) -> Self {
        let mut ballast = Self { path: path.join("ballast"), short: false };
        ballast.is_short();
        ballast
    }

    /// Whether there is so little room that it must be left to what is urgent. Makes the ballast
    /// again where it is missing and there is room; a little more than to be short, so that the
    /// answer does not change with every event.
    pub fn is_short(&mut self) -> bool {
        // A file system that does not tell is taken to have room: the store will say.
        let free =
            sys::free_bytes(self.path.parent().unwrap_or(Path::new("."))).unwrap_or(u64::MAX);
        let missing = BALLAST_BYTES.saturating_sub(self.length());
        let enough = if self.short { 2 * SHORT_BYTES } else { SHORT_BYTES };
        self.short = free < enough + if self.short { missing } else { 0 };
        if missing > 0 && free >= 2 * SHORT_BYTES + missing {
            match self.make() {
                Ok(()) => tracing::info!(bytes = BALLAST_BYTES, "room is kept back for alerts"),
                Err(error) => {
                    tracing::warn!("no room is kept back for alerts: {error}");
                    let _ = fs::remove_file(&self.path);
                }
            }
        }
        self.short
    }

    /// Gives the room up; false if there is none to give.
    pub fn give_up(&mut self) -> bool {
        let had = self.length() > 0;
        let removed = fs::remove_file(&self.path).is_ok();
        self.short = true;
        had && removed
    }

    fn length(&self) -> u64 {
        fs::metadata(&self.path).map_or(0, |meta| meta.len())
    }

    fn make(&self) -> io::Result<()> {
        let file = File::options().create(true).truncate(false).write(true).open(&self.path)?;
        sys::allocate(&file, BALLAST_BYTES)?;
        file.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ballast_has_blocks_of_its_own_and_is_given_up_once() {
        use std::os::unix::fs::MetadataExt;
        let root = tempfile::tempdir().unwrap();
        let mut ballast = Ballast::new(root.path());
        assert!(!ballast.is_short());
        let meta = fs::metadata(root.path().join("ballast")).unwrap();
        assert_eq!(meta.len(), BALLAST_BYTES);
        assert!(meta.blocks() * 512 >= BALLAST_BYTES);
        assert!(ballast.give_up());
        assert!(!ballast.give_up());
        // There is room: it is made again and nothing is short.
        assert!(!ballast.is_short());
        assert_eq!(ballast.length(), BALLAST_BYTES);
    }
}
