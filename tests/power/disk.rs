//! What a disk holds after the power went: a recording, replayed up to a point.
//!
//! Three kinds of disk. *A*: with a volatile cache; only `fsync` and `fdatasync` are a barrier, and
//! `sync_file_range` is worth nothing. *B*: without one; `sync_file_range` makes data durable, but
//! the size of a file and its name only a sync does. In both, names are journalled in order: what
//! was done before the last sync of anything is there, what came later up to a random point.
//! *C*: as A, on a file system that promises no more than POSIX does for a new name: it is there
//! once its directory was synced, and by chance before that.
//! Of data behind the last barrier, each piece survives by chance.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use hark::clock::Rng;

/// One operation of the recorded process.
#[derive(Debug, Clone)]
pub(crate) struct Operation {
    pub(crate) kind: u8,
    pub(crate) path: String,
    pub(crate) offset: u64,
    pub(crate) data: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disk {
    /// A.
    VolatileCache,
    /// B.
    NoCache,
    /// C.
    NoJournal,
}

/// Cuts off a last note that an abort of the process, while another thread was writing it, left unfinished.
pub(crate) fn drop_torn_note(path: &Path) {
    let bytes = fs::read(path).unwrap();
    let mut whole = 0;
    while let Some(header) = bytes.get(whole..whole + 19) {
        let path_length = usize::from(u16::from_le_bytes([header[1], header[2]]));
        let length = u64::from_le_bytes(header[11..].try_into().unwrap()) as usize;
        let end = whole + 19 + path_length + length;
        if end > bytes.len() {
            break;
        }
        whole = end;
    }
    fs::File::options().write(true).open(path).unwrap().set_len(whole as u64).unwrap();
}

/// Reads a log; `F` and `S` then count the operations they cover from its beginning.
pub(crate) fn read_log(path: &Path) -> Vec<Operation> {
    let bytes = fs::read(path).unwrap();
    let mut operations: Vec<Operation> = Vec::new();
    let (mut at, mut base) = (0, 0);
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    while at < bytes.len() {
        let kind = bytes[at];
        let path_length = usize::from(u16::from_le_bytes([bytes[at + 1], bytes[at + 2]]));
        let (mut offset, length) = (number(at + 3), number(at + 11) as usize);
        at += 19;
        let path = String::from_utf8(bytes[at..at + path_length].to_vec()).unwrap();
        at += path_length;
        match kind {
            b'P' => base = operations.len() as u64,
            b'F' | b'S' => offset += base,
            _ => {}
        }
        operations.push(Operation { kind, path, offset, data: bytes[at..at + length].to_vec() });
        at += length;
    }
    operations
}

#[derive(Default)]
struct FileState<'a> {
    /// Operation, offset, data; a truncation has no data and stands as `None`.
    writes: Vec<(u64, u64, Option<&'a [u8]>)>,
    /// Operations before this one are durable, data and size.
    synced: u64,
    /// Writes before this one are durable, their data only.
    ranged: u64,
}

/// Makes `target` what the disk holds when the power goes after `cut` operations; returns the notes
/// that had been taken.
pub(crate) fn cut(
    operations: &[Operation],
    cut: usize,
    disk: Disk,
    rng: &mut Rng,
    notes: &str,
    target: &Path,
) -> String {
    let operations = &operations[..cut];
    let mut names: BTreeMap<String, usize> = BTreeMap::new();
    let mut files: Vec<FileState<'_>> = Vec::new();
    let mut taken = Vec::new();
    let mut barrier = 0;
    for (at, operation) in operations.iter().enumerate() {
        let (at, path) = (at as u64, operation.path.as_str());
        if path == notes {
            if operation.kind == b'W' {
                taken.extend_from_slice(&operation.data);
            }
            continue;
        }
        let file = names.get(path).copied();
        match (operation.kind, file) {
            (b'C', _) => {
                names.insert(path.to_owned(), files.len());
                files.push(FileState::default());
            }
            (b'W', Some(file)) => {
                files[file].writes.push((at, operation.offset, Some(&operation.data)));
            }
            (b'T', Some(file)) => files[file].writes.push((at, operation.offset, None)),
            (b'R', Some(_)) => rename(&mut names, path, to(operation)),
            (b'U', _) => {
                names.remove(path);
            }
            (b'F', file) => {
                barrier = barrier.max(operation.offset);
                if let Some(file) = file {
                    files[file].synced = files[file].synced.max(operation.offset);
                }
            }
            (b'S', Some(file)) if disk == Disk::NoCache => {
                files[file].ranged = files[file].ranged.max(operation.offset);
            }
            (b'S' | b'P', _) => {}
            other => panic!("operation {other:?} on unknown file {path}"),
        }
    }
    let journalled = barrier + rng.u64() % (cut as u64 - barrier + 1);
    let piece = if rng.u64().is_multiple_of(2) { 512 } else { 4096 };
    let survival = [0.0, 0.0, 0.3, 0.7, 0.95][(rng.u64() % 5) as usize];
    fs::create_dir_all(target).unwrap();
    let mut entries = durable_names(operations, journalled, notes);
    if disk == Disk::NoJournal {
        entries.retain(|_, entry| is_synced_name(operations, entry) || rng.u64().is_multiple_of(2));
    }
    for (path, entry) in &entries {
        // Sorted by path: a directory that is there has been made by now.
        if !target.join(path).parent().is_some_and(Path::is_dir) {
            continue;
        }
        match &entry.file {
            None => fs::create_dir(target.join(path)).unwrap(),
            Some(file) => {
                let content = contents(&files[*file], journalled, piece, survival, rng);
                fs::write(target.join(path), content).unwrap();
            }
        }
    }
    String::from_utf8(taken).unwrap()
}

/// The new name of a rename.
fn to(operation: &Operation) -> &str {
    std::str::from_utf8(&operation.data).unwrap()
}

/// Gives a file another name, or a directory and all that is in it.
fn rename<T>(names: &mut BTreeMap<String, T>, from: &str, to: &str) {
    let below = format!("{from}/");
    let moved: Vec<String> =
        names.keys().filter(|name| *name == from || name.starts_with(&below)).cloned().collect();
    assert!(!moved.is_empty(), "{from} is renamed and unknown");
    for name in moved {
        if let Some(value) = names.remove(&name) {
            names.insert(format!("{to}{}", &name[from.len()..]), value);
        }
    }
}

/// A name on the disk.
struct Entry<'a> {
    /// `None`: a directory.
    file: Option<usize>,
    /// By which operation, and as which path; the directory above may have been renamed since.
    given: (u64, &'a str),
}

/// Names by the journal.
fn durable_names<'a>(
    operations: &'a [Operation],
    journalled: u64,
    notes: &str,
) -> BTreeMap<String, Entry<'a>> {
    let mut names: BTreeMap<String, Entry<'a>> = BTreeMap::new();
    let mut files = 0;
    for (at, operation) in operations.iter().enumerate().filter(|(_, o)| o.path != notes) {
        let (at, path) = (at as u64, operation.path.as_str());
        let created = operation.kind == b'C';
        if at >= journalled {
            break;
        }
        match operation.kind {
            b'C' => {
                let file = (operation.offset != 1).then_some(files);
                names.insert(path.to_owned(), Entry { file, given: (at, path) });
            }
            b'U' => drop(names.remove(path)),
            b'R' => {
                let to = to(operation);
                rename(&mut names, path, to);
                names.get_mut(to).expect("just renamed").given = (at, to);
            }
            _ => {}
        }
        files += usize::from(created);
    }
    names
}

/// Whether the directory was synced after the name was given.
fn is_synced_name(operations: &[Operation], entry: &Entry<'_>) -> bool {
    let (given, path) = entry.given;
    let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
    operations.iter().any(|o| o.kind == b'F' && o.path == parent && o.offset > given)
}

fn contents(
    file: &FileState<'_>,
    journalled: u64,
    piece: usize,
    survival: f64,
    rng: &mut Rng,
) -> Vec<u8> {
    let mut content: Vec<u8> = Vec::new();
    let mut durable_size = 0;
    for &(at, offset, data) in &file.writes {
        let offset = offset as usize;
        let Some(data) = data else {
            if at < file.synced || at < journalled {
                content.truncate(offset);
                durable_size = durable_size.min(offset);
            }
            continue;
        };
        let end = offset + data.len();
        if at < file.synced {
            durable_size = durable_size.max(end);
        }
        let durable = at < file.synced || at < file.ranged;
        let mut from = offset;
        while from < end {
            let to = ((from / piece + 1) * piece).min(end);
            if durable || rng.unit() < survival {
                content.resize(content.len().max(to), 0);
                content[from..to].copy_from_slice(&data[from - offset..to - offset]);
            }
            from = to;
        }
    }
    // The new size is in the journal, or it is not.
    if rng.u64().is_multiple_of(2) {
        content.truncate(durable_size);
    }
    content
}
