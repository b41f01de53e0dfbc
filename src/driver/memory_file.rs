//! A small file that is always whole: what it held before, or what was written last.
//!
//! Written beside it, synced, renamed over it, and the directory synced: a power cut at any moment leaves one of the
//! two. What a disk does to it later is not noticed here: its owner puts a sum into what it writes.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// What the file holds; `None` if there is none.
///
/// # Errors
/// It cannot be read.
pub fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Replaces the content; returns once the new one is on stable storage.
///
/// # Errors
/// There is no room, or the disk failed: one of the two contents is there, and which one after a power cut is
/// not known.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = with_suffix(path, "new");
    let mut file = File::create(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

/// Puts a file that cannot be used aside, so that somebody can look at it.
///
/// # Errors
/// It cannot be renamed.
pub fn set_aside(path: &Path) -> io::Result<()> {
    fs::rename(path, with_suffix(path, "damaged"))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_an_attempt_that_was_cut_off_changes_nothing() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("memory");
        assert_eq!(read(&path).unwrap(), None);
        write(&path, b"one").unwrap();
        // What a power cut in the middle of the next attempt leaves.
        fs::write(root.path().join("memory.new"), b"tw").unwrap();
        assert_eq!(read(&path).unwrap().unwrap(), b"one");
        write(&path, b"three").unwrap();
        assert_eq!(read(&path).unwrap().unwrap(), b"three");
        set_aside(&path).unwrap();
        assert_eq!(read(&path).unwrap(), None);
        assert!(root.path().join("memory.damaged").exists());
        assert!(write(&root.path().join("no/memory"), b"x").is_err());
    }
}
