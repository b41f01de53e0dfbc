//! Opens the outbox whatever state its files are in: a damaged store never keeps a device from
//! starting.
//!
//! ```text
//! open ─► sled opens, state sound, not behind its marks ─► as it is
//!     └─► anything else ─► scan the files ─► sled.new ─► damaged-N ◄ sled ◄ sled.new
//! ```
//! - sled's recovery zeroes what it takes for a torn tail, so the newest segments are held in
//!   memory while it opens the store.
//! - Records are found in the raw bytes ([`salvage`](crate::outbox::salvage)); the damaged files
//!   are not handed to sled again, whose recovery panics, and could hang, on them.
//! - The new store is complete and synced before it takes the place of the damaged one: `sled` is
//!   missing beside a `sled.new` only between two renames. What was salvaged and lost is part of
//!   it, so that it is told even if the power goes now.
//! - The damaged files are kept as `damaged-N` for somebody to look at: [`ASIDE_STORES`] of them,
//!   while they have at most [`ASIDE_BYTES`] and as much is free.
//! - An opening that ended neither well nor badly (a crash or a hang inside sled) leaves the file
//!   `opening`, whose removal is synced. After [`UNFINISHED_OPENINGS`] in a row the store counts as damaged.
//! - A store that opens and then fails is written down as `distrusted` and salvaged at the next
//!   opening.
//! - Salvage is bounded in time: after [`SALVAGE_TIME`] the device starts with what was found,
//!   alerts first.
//!
//! What the operator must mend is an error and never salvage: a read-only or full disk, rights,
//! another process.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::ballast::{BALLAST_BYTES, Ballast};
use super::marks::{Copy, Marks};
use super::sled_store::{
    Locked, OpenError, SEGMENT_BYTES, SledStore, file_error, is_full, panic_text, sync_directory,
};
use super::sys;
use crate::clock::Clock;
use crate::outbox::salvage::{OVERLAP, Place, Scan};
use crate::outbox::{Batch, Outbox, Store};

/// Damaged stores that are kept.
pub const ASIDE_STORES: usize = 2;
/// Bytes of a damaged store that is kept at most.
pub const ASIDE_BYTES: u64 = 128 * 1024 * 1024;
/// How long salvage may look for records.
pub const SALVAGE_TIME: Duration = Duration::from_secs(3);
/// Openings without an end after which the store counts as damaged.
pub const UNFINISHED_OPENINGS: u8 = 4;

/// Segments at the end of sled's log that are held in memory while sled opens it.
const TAIL_SEGMENTS: usize = 8;
const WINDOW_BYTES: usize = 1024 * 1024;
/// Bytes of records in one commit of the new store.
const BATCH_BYTES: usize = 1024 * 1024;
/// Its presence means that the store fails although it opens; its content why.
const DISTRUSTED: &str = "distrusted";
/// How a [`Scan`] is told the log from the segments in memory.
const LOG: u8 = 0;
const TAIL: u8 = 1;

/// How many bytes of frames the files hold without growing over `max_size`.
///
/// sled needs room for what it has not cleaned yet: under records of all sizes as fast as the disk
/// takes them 4.6 bytes a byte were measured (`tests/outbox_room.rs`), at rest under 2.
pub fn payload_limit(max_size: u64) -> u64 {
    max_size.saturating_sub(BALLAST_BYTES) / 10 * 3
}

/// Opens the outbox in the directory `path`, made if it is missing (its parent must be there).
///
/// What was lost is told by the first commit of an outbox that has a
/// [`Chronicle`](crate::outbox::Chronicle).
///
/// # Errors
/// What the operator must mend.
pub fn open(path: &Path, clock: Clock) -> Result<Outbox<SledStore>, OpenError> {
    match open_once(path, clock) {
        Err(OpenError::File { kind, cause, .. })
            if is_full(kind) && Ballast::new(path).give_up() =>
        {
            tracing::error!("the disk is full; the room kept back for alerts is given up: {cause}");
            open_once(path, clock)
        }
        result => result,
    }
}

fn open_once(path: &Path, clock: Clock) -> Result<Outbox<SledStore>, OpenError> {
    let outbox = open_locked(&Locked::new(path)?, clock)?;
    remove_old(path);
    Ok(outbox)
}

/// As [`open`], for who has the lock already.
pub(super) fn open_locked(locked: &Locked, clock: Clock) -> Result<Outbox<SledStore>, OpenError> {
    let path = locked.path.as_path();
    let until = clock.now() + SALVAGE_TIME;
    finish_swap(path)?;
    let marked = Marks::open(&path.join("marks"));
    let copy = marked.as_ref().map(|(_, copy)| copy.clone()).unwrap_or_default();
    let mut marks = marked.ok().map(|(marks, _)| marks);
    if marks.is_none() {
        tracing::warn!("the outbox keeps no second copy of its counters in {}", path.display());
    }
    let opening = Opening::begin(path);
    let tail = Tail::read(&path.join("sled/db"));
    let distrusted = fs::read_to_string(path.join(DISTRUSTED)).ok();
    let cause = if let Some(cause) = distrusted {
        cause
    } else if opening.unfinished >= UNFINISHED_OPENINGS {
        format!("the last {} openings did not end", opening.unfinished)
    } else {
        match attempt(locked, marks.take(), &copy) {
            Ok(outbox) => {
                opening.end();
                return Ok(outbox);
            }
            Err(Trouble::Refused(error)) => {
                opening.end();
                return Err(error);
            }
            Err(Trouble::Damaged(cause)) => cause,
        }
    };
    tracing::error!("the outbox is damaged and is salvaged: {cause}");
    let mut salvage = Salvage { locked, tail, copy, clock, until, cause };
    salvage.run()?;
    remove(&path.join(DISTRUSTED))?;
    let marks = Marks::open(&path.join("marks")).ok().map(|(marks, _)| marks);
    // The new store is held against nothing but itself: its marks are about to be made.
    let outbox = attempt(locked, marks, &BTreeMap::new()).map_err(|trouble| match trouble {
        Trouble::Refused(error) => error,
        Trouble::Damaged(cause) => OpenError::Engine { cause },
    })?;
    opening.end();
    Ok(outbox)
}

/// Has the next opening take the store for damaged, since it fails although it opens.
pub fn distrust(path: &Path, cause: &str) {
    if let Err(error) = fs::write(path.join(DISTRUSTED), cause) {
        tracing::warn!("{} cannot be written: {error}", path.join(DISTRUSTED).display());
    }
}

enum Trouble {
    Refused(OpenError),
    Damaged(String),
}

/// Opens what is there; a panic anywhere, also in closing it again, is damage.
fn attempt(
    locked: &Locked,
    marks: Option<Marks>,
    copy: &Copy,
) -> Result<Outbox<SledStore>, Trouble> {
    let opened = panic::catch_unwind(AssertUnwindSafe(|| {
        let known = !copy.is_empty() && !locked.path.join("sled/db").exists();
        let store = SledStore::open_in(locked, "sled", marks).map_err(|error| {
            if error.is_refusal() {
                Trouble::Refused(error)
            } else {
                Trouble::Damaged(error.to_string())
            }
        })?;
        let outbox = Outbox::open_checked(store, copy);
        let outbox = outbox.map_err(|error| Trouble::Damaged(error.to_string()))?;
        if known { Err(Trouble::Damaged("its files are missing".to_owned())) } else { Ok(outbox) }
    }));
    opened.unwrap_or_else(|panic| Err(Trouble::Damaged(panic_text(&*panic))))
}

/// A power cut between the two renames of a salvage or a [renewal](super::outbox_renew): the complete new
/// store has not taken its place yet. Anywhere else a `sled.new` is incomplete.
fn finish_swap(path: &Path) -> Result<(), OpenError> {
    let [current, new, old] = ["sled", "sled.new", "sled.old"].map(|name| path.join(name));
    if current.exists() {
        return remove(&new);
    }
    // The old one only where somebody has removed the others.
    let Some(whole) = [new, old].into_iter().find(|store| store.exists()) else { return Ok(()) };
    fs::rename(&whole, &current).map_err(|e| file_error("rename", &whole, &e))?;
    sync_directory(path)
}

/// Removes the store from before a renewal, once the new one is open.
pub(super) fn remove_old(path: &Path) {
    if let Err(error) = remove(&path.join("sled.old")) {
        tracing::warn!("{error}");
    }
}

pub(super) fn remove(path: &Path) -> Result<(), OpenError> {
    let result = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match result {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(file_error("remove", path, &e)),
        _ => Ok(()),
    }
}

/// Notes that an opening is under way. Best effort: a full disk must not stop it.
struct Opening {
    path: PathBuf,
    unfinished: u8,
}

impl Opening {
    fn begin(path: &Path) -> Self {
        let path = path.join("opening");
        let unfinished = fs::read(&path).ok().and_then(|text| text.first().copied());
        let unfinished = unfinished.map_or(0, |digit| digit.saturating_sub(b'0').min(9));
        let _ = fs::write(&path, [b'0' + (unfinished + 1).min(9)]);
        Self { path, unfinished }
    }

    /// On the disk, too: a home whose mains fail a few seconds after each start is no damage.
    fn end(self) {
        let _ = fs::remove_file(&self.path);
        if let Some(directory) = self.path.parent() {
            let _ = sync_directory(directory);
        }
    }
}

/// The segments of sled's log that its recovery may overwrite: those with the highest numbers.
#[derive(Default)]
struct Tail {
    segments: Vec<Vec<u8>>,
}

impl Tail {
    fn read(database: &Path) -> Self {
        let Ok(file) = File::open(database) else { return Self::default() };
        let length = file.metadata().map_or(0, |meta| meta.len());
        let mut newest: BTreeMap<u64, u64> = BTreeMap::new();
        for segment in 0..length.div_ceil(SEGMENT_BYTES as u64) {
            let offset = segment * SEGMENT_BYTES as u64;
            let mut header = [0; 20];
            if file.read_exact_at(&mut header, offset).is_err() {
                continue;
            }
            // CRC-32 of what follows, inverted; the segment's number and another, inverted as well.
            let sum = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
            if sum ^ u32::MAX != crc32fast::hash(&header[4..]) {
                continue;
            }
            let number = header[4..12].iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte));
            newest.insert(number ^ 0x7FFF_FFFF_FFFF_FFFF, offset);
            if newest.len() > TAIL_SEGMENTS {
                newest.pop_first();
            }
        }
        let read = |offset: u64| {
            let mut bytes = vec![0; SEGMENT_BYTES];
            let length = read_window(&file, &mut bytes, offset);
            bytes.truncate(length);
            bytes
        };
        Self { segments: newest.into_values().map(read).collect() }
    }
}

/// Reads what can be read; a piece that cannot is left as zeros. Returns how far the file goes.
fn read_window(file: &File, window: &mut [u8], offset: u64) -> usize {
    const PIECE: usize = 4096;
    window.fill(0);
    let mut at = 0;
    while at < window.len() {
        match file.read_at(&mut window[at..], offset + at as u64) {
            Ok(0) => break,
            Ok(read) => at += read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // A bad sector: behind it there may be more.
            Err(_) => at += PIECE.min(window.len() - at),
        }
    }
    at
}

struct Salvage<'a> {
    locked: &'a Locked,
    tail: Tail,
    copy: Copy,
    clock: Clock,
    until: Instant,
    cause: String,
}

impl Salvage<'_> {
    fn run(&mut self) -> Result<(), OpenError> {
        let path = &self.locked.path;
        let (current, new) = (path.join("sled"), path.join("sled.new"));
        let log =
            File::open(current.join("db")).ok().filter(|f| f.metadata().is_ok_and(|m| m.is_file()));
        let mut scan = self.scan(log.as_ref());
        if self.build(&mut scan, log.as_ref()).is_err() {
            // Most likely for want of room: the records stay aside, and the device starts.
            self.cause.push_str("; there was no room to recover records");
            self.build(&mut Scan::default(), None)?;
        }
        let aside = self.set_aside(&current)?;
        fs::rename(&new, &current).map_err(|e| file_error("rename", &new, &e))?;
        sync_directory(path)?;
        self.thin_out(aside);
        Ok(())
    }

    fn is_late(&self) -> bool {
        self.clock.now() >= self.until
    }

    fn scan(&mut self, log: Option<&File>) -> Scan {
        let mut scan = Scan::default();
        for frame in self.copy.values() {
            // Counters are no states and are passed over.
            scan.take_state(frame);
        }
        for (number, segment) in self.tail.segments.iter().enumerate() {
            scan.look(TAIL, (number * SEGMENT_BYTES) as u64, segment);
        }
        let Some(log) = log else { return scan };
        let length = log.metadata().map_or(0, |meta| meta.len());
        let mut window = vec![0; WINDOW_BYTES + OVERLAP];
        let mut offset = 0;
        while offset < length && !self.is_late() {
            let filled = read_window(log, &mut window, offset);
            scan.look(LOG, offset, &window[..filled]);
            offset += WINDOW_BYTES as u64;
        }
        if offset < length {
            self.cause.push_str("; the time did not suffice to look through all of it");
        }
        scan
    }

    /// Makes the new store, complete and synced.
    fn build(&self, scan: &mut Scan, log: Option<&File>) -> Result<(), OpenError> {
        let engine = |e: &dyn std::fmt::Display| OpenError::Engine { cause: e.to_string() };
        remove(&self.locked.path.join("sled.new"))?;
        let mut store = SledStore::open_in(self.locked, "sled.new", None)?;
        let read = |place: Place| {
            let mut bytes = vec![0; usize::from(place.length)];
            match place.file {
                LOG => log?.read_exact_at(&mut bytes, place.offset).ok()?,
                _ => {
                    let offset = usize::try_from(place.offset).ok()?;
                    let segment = self.tail.segments.get(offset / SEGMENT_BYTES)?;
                    let begin = offset % SEGMENT_BYTES;
                    bytes = segment.get(begin..begin + bytes.len())?.to_vec();
                }
            }
            Some(bytes)
        };
        let (mut batch, mut bytes) = (Batch::default(), 0);
        let summary = scan.recover(read, |record| {
            bytes += record.put_into(&mut batch);
            if bytes >= BATCH_BYTES {
                store.commit(&std::mem::take(&mut batch))?;
                bytes = 0;
            }
            Ok(!self.is_late())
        });
        let summary = summary.map_err(|e: crate::outbox::StoreError| engine(&e))?;
        store.commit(&batch).map_err(|e| engine(&e))?;
        let last = scan.conclude(&self.cause, &summary, &self.copy).map_err(|e| engine(&e))?;
        store.commit(&last).map_err(|e| engine(&e))?;
        tracing::warn!(recovered = summary.total(), "the outbox was salvaged");
        Ok(())
    }

    /// Moves the damaged store aside, whatever stands under its name.
    fn set_aside(&self, current: &Path) -> Result<PathBuf, OpenError> {
        let number = asides(&self.locked.path).last().map_or(1, |(number, _)| number + 1);
        let aside = self.locked.path.join(format!("damaged-{number}"));
        match fs::rename(current, &aside) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(file_error("rename", current, &e));
            }
            _ => {}
        }
        Ok(aside)
    }

    /// Keeps the newest of the damaged stores, while they are small and there is room.
    fn thin_out(&self, newest: PathBuf) {
        let path = &self.locked.path;
        let asides = asides(path);
        let surplus = asides.len().saturating_sub(ASIDE_STORES);
        for (_, aside) in &asides[..surplus] {
            let _ = remove(aside);
        }
        let bytes = size(&newest);
        let free = sys::free_bytes(path).unwrap_or(u64::MAX);
        if bytes > ASIDE_BYTES || free < bytes {
            tracing::warn!(bytes, "the damaged store is not kept: it is too large for the disk");
            let _ = remove(&newest);
        }
    }
}

/// The damaged stores that were set aside, oldest first.
fn asides(path: &Path) -> Vec<(u32, PathBuf)> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.strip_prefix("damaged-")?.parse().ok()?;
            Some((number, entry.path()))
        })
        .collect();
    found.sort();
    found
}

/// Bytes of all files below a directory; what cannot be read counts nothing.
pub(super) fn size(path: &Path) -> u64 {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let sizes = entries.filter_map(|entry| {
        let meta = entry.metadata().ok()?;
        Some(if meta.is_dir() { size(&entry.path()) } else { meta.len() })
    });
    sizes.sum()
}
