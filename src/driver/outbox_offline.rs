//! The outbox of an agent that does not run.
//!
//! Looking changes nothing: sled writes whenever it opens a store, so the files are copied to a directory
//! of their own, and the copy is opened, salvaged where it is damaged, and removed. No lock is held
//! meanwhile, so that an agent can start at any time; a copy that was made while one did is refused.
//! Changing opens the store itself, under its lock. What that makes is given to the owner of the directory: a
//! service that is not root could not open it else.
//!
//! A directory without an outbox is an error and stays as it is: nothing is made here.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::SystemTime;

use tokio::sync::watch;

use super::outbox_admin::Admin;
use super::outbox_writer::{self, Settings};
use super::sled_store::{OpenError, SledStore};
use super::{outbox_open, sys};
use crate::clock::{Clock, Rng};
use crate::event::catalogue::Maker;
use crate::outbox::{Chronicle, Outbox};

/// What is not copied: what salvage set aside, what a fresh store has replaced, what is given up on a full disk, the lock, notes.
const LEFT_OUT: [&str; 5] = ["damaged-", "ballast", "lock", "opening", "sled.old"];
/// Room that opening the copy takes beside it.
const SPARE_BYTES: u64 = 8 * 1024 * 1024;

/// Why the files cannot be looked at or changed.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// There is none.
    #[error("there is no outbox in {0}: does `[outbox] path` name the right directory?")]
    Absent(PathBuf),
    /// A process has it open that does not answer.
    #[error("{0} is in use by another process: ask that one, or stop it first")]
    InUse(PathBuf),
    /// An agent started in between.
    #[error("{0} has changed while it was copied: an agent has just started; try again")]
    Changed(PathBuf),
    /// The copy does not fit.
    #[error(
        "a copy of {path} takes {bytes} bytes and {scratch} has no room for it: name another directory in TMPDIR"
    )]
    NoRoom {
        /// The outbox.
        path: PathBuf,
        /// What it takes.
        bytes: u64,
        /// Where the copy would have been made.
        scratch: PathBuf,
    },
    /// What changing makes could not be given to who is to open it next.
    #[error(
        "{0} belongs to another user, who could not open what this would make there: run it as that user or as root"
    )]
    Foreign(PathBuf),
    /// A file cannot be read or the copy not be written.
    #[error("{action} {path}: {cause}")]
    File {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// The system's answer.
        cause: io::Error,
    },
    /// The store cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// An outbox that is open for this process alone. Dropping it closes it.
#[derive(Debug)]
pub struct Offline {
    admin: Admin,
    stop: watch::Sender<bool>,
    writer: Option<JoinHandle<()>>,
    /// What may be changed, in contrast to a copy.
    changed: Option<PathBuf>,
    // Dropped last: the writer has closed the files by then.
    _copy: Option<Scratch>,
}

impl Offline {
    /// Opens a copy of the outbox in `path`, which stays as it is to the byte.
    ///
    /// # Errors
    /// See [`OfflineError`].
    pub fn look(
        path: &Path,
        max_size: u64,
        clock: Clock,
        rng: &mut Rng,
    ) -> Result<Self, OfflineError> {
        check(path)?;
        let before = fingerprint(path);
        let copy = Scratch::of(path, rng)?;
        check(path)?;
        if fingerprint(path) != before {
            return Err(OfflineError::Changed(path.to_owned()));
        }
        let outbox = outbox_open::open(&copy.path, clock)?;
        Self::serve(outbox, Some(copy), path, max_size, clock)
    }

    /// Opens the outbox in `path` to change it. What is destroyed is told by an event.
    ///
    /// # Errors
    /// See [`OfflineError`].
    pub fn change(
        path: &Path,
        max_size: u64,
        clock: Clock,
        maker: Maker,
        rng: Rng,
    ) -> Result<Self, OfflineError> {
        check(path)?;
        may_give_away(path)?;
        let outbox = outbox_open::open(path, clock)?.with_chronicle(Chronicle { maker, rng });
        // At once as well: what ends this process must not leave the device without its outbox.
        give_to_owner(path)?;
        let mut offline = Self::serve(outbox, None, path, max_size, clock)?;
        offline.changed = Some(path.to_owned());
        Ok(offline)
    }

    fn serve(
        outbox: Outbox<SledStore>,
        copy: Option<Scratch>,
        path: &Path,
        max_size: u64,
        clock: Clock,
    ) -> Result<Self, OfflineError> {
        let (handle, requests) = outbox_writer::channel();
        let (stop, stopped) = watch::channel(false);
        let writer = std::thread::Builder::new().name("outbox".to_owned()).spawn(move || {
            let served = outbox_writer::run(outbox, requests, clock, Settings::default(), stopped);
            if let Err(error) = served {
                tracing::error!("{error}");
            }
        });
        let writer = writer.map_err(|cause| OfflineError::File {
            action: "start a thread for",
            path: path.to_owned(),
            cause,
        })?;
        let admin = Admin::new(handle, path.to_owned(), max_size, None);
        Ok(Self { admin, stop, writer: Some(writer), changed: None, _copy: copy })
    }

    /// What can be done with it.
    pub fn admin(&self) -> &Admin {
        &self.admin
    }
}

impl Drop for Offline {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        // A panic of the writer has been logged.
        let _ = self.writer.take().map(JoinHandle::join);
        if let Some(Err(error)) = self.changed.as_deref().map(give_to_owner) {
            tracing::error!("{error}");
        }
    }
}

/// Whether there is an outbox that nobody has open.
fn check(path: &Path) -> Result<(), OfflineError> {
    // `sled` alone is missing between two renames of a salvage.
    let store = match fs::metadata(path.join("sled")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::metadata(path.join("sled.new"))
        }
        found => found,
    };
    store.map_err(|cause| match cause.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            OfflineError::Absent(path.to_owned())
        }
        _ => OfflineError::File { action: "read", path: path.to_owned(), cause },
    })?;
    let Ok(lock) = File::open(path.join("lock")) else { return Ok(()) };
    // Given up at once: an agent that starts in this moment tries again.
    match lock.try_lock_shared() {
        Err(TryLockError::WouldBlock) => Err(OfflineError::InUse(path.to_owned())),
        _ => Ok(()),
    }
}

/// Whether this process may give files to the owner of the directory: it is that owner, or root.
fn may_give_away(path: &Path) -> Result<(), OfflineError> {
    let directory = open_directory(path)?;
    let same = directory.metadata().and_then(|meta| fchown(&directory, Some(meta.uid()), None));
    match same {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(OfflineError::Foreign(path.to_owned()))
        }
        // What else is wrong with the disk, opening the outbox says better.
        _ => Ok(()),
    }
}

/// Gives what belongs to others below the directory to its owner.
fn give_to_owner(path: &Path) -> Result<(), OfflineError> {
    let directory = open_directory(path)?;
    let given = directory.metadata().and_then(|meta| give_below(&directory, &meta));
    let action = "give what was made to the owner of";
    given.map_err(|cause| OfflineError::File { action, path: path.to_owned(), cause })
}

/// By descriptors and without following a link: the owner of the directory, who is less than root, may lay
/// links there and change names at any moment.
fn give_below(directory: &File, owner: &fs::Metadata) -> io::Result<()> {
    let here = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    for entry in fs::read_dir(&here)? {
        let mut options = File::options();
        options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        let file = match options.open(here.join(entry?.file_name())) {
            Ok(file) => file,
            // sled's threads remove files; a link or a socket is none of ours.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) if matches!(e.raw_os_error(), Some(libc::ELOOP | libc::ENXIO)) => continue,
            Err(e) => return Err(e),
        };
        let meta = file.metadata()?;
        if meta.is_dir() {
            give_below(&file, owner)?;
        }
        let ours = meta.is_dir() || meta.is_file() && meta.nlink() == 1;
        if ours && meta.uid() != owner.uid() {
            fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
        }
    }
    Ok(())
}

fn open_directory(path: &Path) -> Result<File, OfflineError> {
    let failed = |cause| OfflineError::File { action: "open", path: path.to_owned(), cause };
    File::open(path).map_err(failed)
}

/// What changes when somebody writes to the store.
fn fingerprint(path: &Path) -> Option<(u64, SystemTime)> {
    let meta = fs::metadata(path.join("sled/db")).ok()?;
    Some((meta.len(), meta.modified().ok()?))
}

/// A copy in a directory of its own that only this user may read; removed when it is dropped.
#[derive(Debug)]
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    fn of(path: &Path, rng: &mut Rng) -> Result<Self, OfflineError> {
        let directory = scratch_directory();
        let bytes = walk(path, None)?;
        let free = sys::free_bytes(&directory).unwrap_or(u64::MAX);
        if free < bytes + SPARE_BYTES {
            let (path, scratch) = (path.to_owned(), directory);
            return Err(OfflineError::NoRoom { path, bytes, scratch });
        }
        let name = format!("hark-outbox-{:016x}", rng.u64());
        let copy = Self { path: directory.join(name) };
        make_private(&copy.path)?;
        walk(path, Some(&copy.path))?;
        Ok(copy)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!("the copy {} is left behind: {error}", self.path.display());
        }
    }
}

/// `/tmp` is memory on many devices, `/var/tmp` is not.
fn scratch_directory() -> PathBuf {
    let disk = Path::new("/var/tmp");
    if std::env::var_os("TMPDIR").is_none() && disk.is_dir() {
        return disk.to_owned();
    }
    std::env::temp_dir()
}

fn make_private(path: &Path) -> Result<(), OfflineError> {
    let made = DirBuilder::new().mode(0o700).create(path);
    made.map_err(|cause| OfflineError::File { action: "create", path: path.to_owned(), cause })
}

/// Bytes of the files that are copied; with `into` they are.
fn walk(from: &Path, into: Option<&Path>) -> Result<u64, OfflineError> {
    let failed = |cause: io::Error| match cause.kind() {
        // It was there a moment ago: sled, or a salvage, has removed it.
        io::ErrorKind::NotFound => OfflineError::Changed(from.to_owned()),
        _ => OfflineError::File { action: "copy", path: from.to_owned(), cause },
    };
    let mut bytes = 0;
    for entry in fs::read_dir(from).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        if LEFT_OUT.iter().any(|left| name.to_string_lossy().starts_with(left)) {
            continue;
        }
        let (source, target) = (entry.path(), into.map(|into| into.join(&name)));
        let meta = fs::metadata(&source).map_err(failed)?;
        if meta.is_dir() {
            if let Some(target) = &target {
                make_private(target)?;
            }
            bytes += walk(&source, target.as_deref())?;
        } else if meta.is_file() {
            bytes += meta.len();
            if let Some(target) = &target {
                fs::copy(&source, target).map_err(failed)?;
            }
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_vanishes_while_it_is_copied_means_that_an_agent_works_there() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("db"), "log").unwrap();
        assert_eq!(walk(root.path(), None).unwrap(), 3);
        // A name that is read and leads nowhere.
        std::os::unix::fs::symlink("gone", root.path().join("snap.1")).unwrap();
        let error = walk(root.path(), None).unwrap_err();
        assert!(matches!(error, OfflineError::Changed(_)), "{error}");
    }
}
