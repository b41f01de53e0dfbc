//! What is left of a damaged store: finds records in bytes of which the engine makes nothing.
//!
//! The engine writes values as they are, so a record's frame stands in its files byte for byte,
//! often several times. A [`Scan`] looks through those bytes for what begins like the first part
//! of a record, like a further part, or like the state, and believes only what a checksum covers.
//! [`Scan::recover`] says which records are to be there again:
//!
//! - each that is whole and stands at or behind the head of its lane, the highest of all heads
//!   that were found: before it there are only removed ones;
//! - hence also some that were removed out of order behind the head. They are delivered twice,
//!   with the same `source` and `id`.
//!
//! What is missing is what the last known state counts beyond that; the sequences that no record
//! has, between those that were found and the counters, are told as ranges.
//!
//! No byte of a damaged store is handed to the engine a second time. Absent: IO; repair of a
//! record with a wrong byte.

use std::collections::{BTreeMap, BTreeSet};

use super::codec;
use super::dead::{self, Note};
use super::error::OutboxError;
use super::keys::{self, FURTHER_HEADER_BYTES, Joining, MARKER, PART_BYTES};
use super::memo;
use super::queue::{Salvaged, State};
use super::record::{Position, Record};
use super::store::Batch;
use crate::event::{Lane, Losses};

/// How much the windows of a [`Scan`] must overlap, so that nothing is cut in two.
pub const OVERLAP: usize = 2 * PART_BYTES;

/// A part's value somewhere in the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Which file, as the caller numbers them.
    pub file: u8,
    /// Where its value begins.
    pub offset: u64,
    /// Its length.
    pub length: u16,
}

/// What was found so far. Memory: about 60 bytes a record.
#[derive(Debug, Default)]
pub struct Scan {
    /// Parts of each record by number; the first of several copies whose checksum holds, and all
    /// copies of parts that only the whole can judge.
    parts: BTreeMap<(u8, u64, u8), Vec<Place>>,
    /// The highest sequences by source and lane, of all records, also of removed ones.
    sequences: BTreeMap<(String, u8), BTreeSet<u64>>,
    /// Dead letters that once were: their notes by lane and position.
    notes: BTreeMap<(u8, u64), Vec<u8>>,
    /// Frames of the newest memos by name, with the number of their commit.
    memos: BTreeMap<String, (u64, Vec<u8>)>,
    state: Option<State>,
    heads: [u64; 3],
    next: [u64; 3],
}

/// Memos that are looked for: there is a handful of names.
const MAX_MEMOS: usize = 64;
/// Copies of one part that are remembered: leaves are written anew with every change.
const MAX_COPIES: usize = 8;

impl Scan {
    /// Looks through a window of a file. Windows overlap by [`OVERLAP`].
    pub fn look(&mut self, file: u8, base: u64, window: &[u8]) {
        for (at, byte) in window.iter().enumerate() {
            let rest = &window[at..];
            match byte {
                0xA7 if rest.starts_with(codec::RECORD_BEGINS) => {
                    self.first_part(file, base, window, at);
                }
                0xF7 if rest.starts_with(&MARKER) => {
                    self.further_part(file, base + at as u64, rest)
                }
                0xA3 if rest.starts_with(memo::MEMO_BEGINS) => self.memo(window, at),
                0x6B if rest.starts_with(dead::NOTE_BEGINS) => self.note(window, at),
                0x6D if rest.starts_with(codec::STATE_BEGINS) => self.state(window, at),
                _ => {}
            }
        }
    }

    /// Takes a frame of the state from elsewhere.
    pub fn take_state(&mut self, frame: &[u8]) {
        if let Ok(state) = codec::decode(frame) {
            self.learn(state);
        }
    }

    fn learn(&mut self, state: State) {
        for at in 0..3 {
            self.heads[at] = self.heads[at].max(state.heads[at]);
            self.next[at] = self.next[at].max(state.next_position[at]);
        }
        if self.state.is_none_or(|known| known.commits < state.commits) {
            self.state = Some(state);
        }
    }

    /// The body begins at `at`; before it the frame's version and checksum, and the part's header.
    fn first_part(&mut self, file: u8, base: u64, window: &[u8], at: usize) {
        let Some(begin) = at.checked_sub(10) else { return };
        let Some((parts, length)) = keys::header(&window[begin..]) else { return };
        let frame = &window[begin + 5..];
        let Some((lane, position)) = codec::peek_place(frame) else { return };
        let value = length.saturating_add(5).min(PART_BYTES);
        if frame.len() < value - 5 || parts > 1 && value < PART_BYTES {
            return;
        }
        let key = (keys::lane_byte(lane), position.0, 0);
        let known = self.parts.get(&key).map_or(0, Vec::len);
        if known >= MAX_COPIES || parts == 1 && known > 0 {
            return;
        }
        if parts == 1 {
            // What stands there by chance may say that it is longer than any part is.
            let Some(Ok(record)) = frame.get(..length).map(codec::decode_record) else { return };
            self.note_sequence(&record);
        }
        let Ok(length) = u16::try_from(value) else { return };
        let place = Place { file, offset: base + begin as u64, length };
        self.parts.entry(key).or_default().push(place);
    }

    fn further_part(&mut self, file: u8, offset: u64, rest: &[u8]) {
        let Some(header) = keys::parse_further(rest) else { return };
        let Ok(length) = u16::try_from(FURTHER_HEADER_BYTES + header.length) else { return };
        if rest.len() < usize::from(length) {
            return;
        }
        let key = (keys::lane_byte(header.lane), header.position.0, header.part);
        let copies = self.parts.entry(key).or_default();
        if copies.len() < MAX_COPIES {
            copies.push(Place { file, offset, length });
        }
    }

    fn state(&mut self, window: &[u8], at: usize) {
        // One byte begins the map, five the frame.
        let Some(begin) = at.checked_sub(6) else { return };
        if let Some(state) = codec::decode_beginning(&window[begin..]) {
            self.learn(state);
        }
    }

    fn note(&mut self, window: &[u8], at: usize) {
        let Some(begin) = at.checked_sub(6) else { return };
        if let Some(note) = codec::decode_beginning::<Note>(&window[begin..])
            && let Ok(frame) = codec::encode(&note)
        {
            self.notes.insert((note.lane, note.position), frame);
        }
    }

    fn memo(&mut self, window: &[u8], at: usize) {
        let Some(begin) = at.checked_sub(5) else { return };
        let Some(stored) = codec::decode_beginning::<memo::Stored>(&window[begin..]) else {
            return;
        };
        let newer = self.memos.get(&stored.memo).is_none_or(|(commit, _)| *commit < stored.commit);
        if newer
            && self.memos.len() < MAX_MEMOS
            && let Ok(frame) = codec::encode(&stored)
        {
            self.memos.insert(stored.memo, (stored.commit, frame));
        }
    }

    fn note_sequence(&mut self, record: &Record) {
        let key = (record.event.source().to_owned(), keys::lane_byte(record.lane));
        self.sequences.entry(key).or_default().insert(record.sequence);
    }

    /// Puts the whole records together, most urgent lane first, oldest first. `read` fetches the
    /// bytes of a place; `keep` takes the parts of a record and says whether there is time for more.
    ///
    /// # Errors
    /// Those of `keep`.
    pub fn recover<E>(
        &mut self,
        mut read: impl FnMut(Place) -> Option<Vec<u8>>,
        mut keep: impl FnMut(Recovered) -> Result<bool, E>,
    ) -> Result<Summary, E> {
        let mut summary = Summary::default();
        let records: BTreeSet<(u8, u64)> =
            self.parts.keys().map(|(lane, position, _)| (*lane, *position)).collect();
        for (lane_byte, position) in records {
            let Some(&lane) = Lane::ALL.get(usize::from(lane_byte)) else { continue };
            let Some((record, values)) = self.join(lane, position, &mut read) else { continue };
            self.note_sequence(&record);
            let at = lane.index();
            summary.ends[at] = summary.ends[at].max(position.saturating_add(1));
            if let Some(note) = self.notes.get(&(lane_byte, position)) {
                // Also one that was put back or removed since: rather twice than not at all.
                let (position, note) = (Position(position), Some(note.clone()));
                if !keep(Recovered { lane, position, values, note })? {
                    break;
                }
                continue;
            }
            if position < self.heads[at] {
                summary.removed(lane, &record);
                continue;
            }
            let bytes = values.iter().map(Vec::len).sum::<usize>() as u64;
            summary.recovered(lane, position, &record, bytes);
            if !keep(Recovered { lane, position: Position(position), values, note: None })? {
                break;
            }
        }
        Ok(summary)
    }

    /// The record at a position, if some choice of copies of its parts is whole. Parts of one
    /// record are written once, so that all sound copies are equal: the first one that fits is it.
    fn join(
        &self,
        lane: Lane,
        position: u64,
        read: &mut impl FnMut(Place) -> Option<Vec<u8>>,
    ) -> Option<(Record, Vec<Vec<u8>>)> {
        let byte = keys::lane_byte(lane);
        let copies = |part: u8| self.parts.get(&(byte, position, part)).map_or(&[][..], |c| c);
        for first in copies(0) {
            let Some(value) = read(*first) else { continue };
            let Some(joining) = Joining::begin(&value) else { continue };
            let mut candidates = vec![(joining, vec![value])];
            // Different copies of a part are tried against the checksum, a few of them.
            while let Some((joining, values)) = candidates.pop() {
                if joining.is_complete() {
                    let frame = joining.finish();
                    let record = frame.and_then(|frame| codec::decode_record(&frame).ok());
                    match record {
                        Some(record) if record.position.0 == position && record.lane == lane => {
                            return Some((record, values));
                        }
                        _ => continue,
                    }
                }
                let part = u8::try_from(values.len()).ok()?;
                let mut tried: Vec<Vec<u8>> = Vec::new();
                for place in copies(part) {
                    let Some(value) = read(*place) else { continue };
                    if tried.contains(&value) || candidates.len() >= MAX_COPIES {
                        continue;
                    }
                    let mut longer = joining.clone();
                    if longer.push(part, &value) {
                        let mut values = values.clone();
                        values.push(value.clone());
                        candidates.push((longer, values));
                    }
                    tried.push(value);
                }
            }
        }
        None
    }

    /// The state and the counters of the new store, and what is to be told; `copy` holds the
    /// counters that were kept elsewhere.
    ///
    /// # Errors
    /// A small value cannot be encoded.
    pub fn conclude(
        &self,
        cause: &str,
        summary: &Summary,
        copy: &BTreeMap<Vec<u8>, Vec<u8>>,
    ) -> Result<Batch, OutboxError> {
        let mut counters: BTreeMap<(String, u8), u64> = BTreeMap::new();
        for (key, frame) in copy {
            if let (Some((lane, source)), Ok(sequence)) =
                (keys::parse_counter(key), codec::decode::<u64>(frame))
            {
                counters.insert((source.to_owned(), keys::lane_byte(lane)), sequence);
            }
        }
        for (key, sequences) in &self.sequences {
            let counter = counters.entry(key.clone()).or_default();
            *counter = (*counter).max(sequences.last().copied().unwrap_or(0));
        }
        let losses = self.losses(summary, &counters);
        let mut state = State { commits: self.state.map_or(0, |s| s.commits), ..State::default() };
        for at in 0..3 {
            state.next_position[at] = self.next[at].max(summary.ends[at]).max(1);
            state.records[at] = summary.records[at];
            state.bytes[at] = summary.bytes[at];
            state.heads[at] = summary.heads[at].unwrap_or(state.next_position[at]);
        }
        state.commits += 1;
        let mut batch = Batch::default();
        let encode = |value| codec::encode(value).map_err(OutboxError::Encode);
        batch.put(keys::STATE.to_vec(), codec::encode(&state).map_err(OutboxError::Encode)?);
        for ((source, lane), sequence) in &counters {
            if let Some(lane) = Lane::ALL.get(usize::from(*lane)) {
                batch.put(keys::counter(*lane, source), encode(sequence)?);
            }
        }
        for (name, (_, frame)) in &self.memos {
            batch.put(keys::memo(name), frame.clone());
        }
        let recovered = summary.records.iter().sum();
        let told = Salvaged { cause: cause.to_owned(), recovered, losses };
        let told = codec::encode(&told).map_err(OutboxError::Encode)?;
        batch.put(keys::SALVAGED.to_vec(), told);
        Ok(batch)
    }

    fn losses(&self, summary: &Summary, counters: &BTreeMap<(String, u8), u64>) -> Losses {
        let mut losses = Losses::default();
        for lane in Lane::ALL {
            let at = lane.index();
            let expected = self.state.map_or(0, |state| state.records[at]);
            losses.add_count(lane, expected.saturating_sub(summary.records[at]));
        }
        for ((source, lane_byte), counter) in counters {
            let Some(&lane) = Lane::ALL.get(usize::from(*lane_byte)) else { continue };
            let lost = losses.counts[lane.index()];
            if lost == 0 {
                continue;
            }
            let none = BTreeSet::new();
            let known = summary.sequences.get(&(source.clone(), *lane_byte)).unwrap_or(&none);
            // Before the first that is known lie removed ones, or at most as many as are lost.
            let newest = summary.removed.get(&(source.clone(), *lane_byte)).copied();
            let first = known.first().copied().unwrap_or(counter + 1);
            let mut from = newest
                .map_or(first.saturating_sub(lost).max(1), |removed| removed.min(first - 1) + 1);
            for &sequence in known.range(from..) {
                if sequence > from {
                    losses.add_range(lane, source, from, sequence - 1);
                }
                from = sequence + 1;
            }
            if *counter >= from {
                losses.add_range(lane, source, from, *counter);
            }
        }
        losses
    }
}

/// A record that is to be there again.
#[derive(Debug)]
pub struct Recovered {
    lane: Lane,
    position: Position,
    values: Vec<Vec<u8>>,
    /// Of a dead letter.
    note: Option<Vec<u8>>,
}

impl Recovered {
    /// Puts it where it stood; returns its bytes.
    pub fn put_into(self, batch: &mut Batch) -> usize {
        let mut bytes = 0;
        let key = if self.note.is_some() { keys::dead } else { keys::part };
        for (part, value) in (0..=u8::MAX).zip(self.values) {
            bytes += value.len();
            batch.put(key(self.lane, self.position, part), value);
        }
        if let Some(note) = self.note {
            batch.put(keys::note(self.lane, self.position), note);
        }
        bytes
    }
}

/// What [`Scan::recover`] brought back.
#[derive(Debug, Default)]
pub struct Summary {
    records: [u64; 3],
    bytes: [u64; 3],
    heads: [Option<u64>; 3],
    ends: [u64; 3],
    /// Of the recovered records.
    sequences: BTreeMap<(String, u8), BTreeSet<u64>>,
    /// The newest known sequence of those before the heads.
    removed: BTreeMap<(String, u8), u64>,
}

impl Summary {
    /// Records that were recovered.
    pub fn total(&self) -> u64 {
        self.records.iter().sum()
    }

    fn removed(&mut self, lane: Lane, record: &Record) {
        let key = (record.event.source().to_owned(), keys::lane_byte(lane));
        let newest = self.removed.entry(key).or_default();
        *newest = (*newest).max(record.sequence);
    }

    fn recovered(&mut self, lane: Lane, position: u64, record: &Record, bytes: u64) {
        let at = lane.index();
        self.records[at] += 1;
        self.bytes[at] += bytes;
        self.heads[at].get_or_insert(position);
        let key = (record.event.source().to_owned(), keys::lane_byte(lane));
        self.sequences.entry(key).or_default().insert(record.sequence);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{ClockState, WallTime};
    use crate::event::json;
    use crate::outbox::memory::MemoryStore;
    use crate::outbox::{Outbox, Store};

    const NOW: WallTime = WallTime { unix_ms: 1_795_000_000_000, state: ClockState::Synced };

    /// The value of a record's first part, of a record that has one part and of one that has three.
    fn first_parts() -> Vec<Vec<u8>> {
        let value = |bytes: usize| {
            let data = "x".repeat(bytes);
            let text = format!(
                r#"{{"specversion":"1.0","id":"1","source":"/s","type":"t","data":"{data}"}}"#
            );
            let event = json::parse(text.as_bytes()).unwrap();
            let mut outbox = Outbox::open(MemoryStore::default()).unwrap();
            outbox.append(&[(Lane::Alert, event)], NOW).unwrap();
            let key = keys::part(Lane::Alert, Position(1), 0);
            outbox.store_mut().get(&key).unwrap().unwrap()
        };
        vec![value(100), value(9_000)]
    }

    #[test]
    fn whatever_length_a_first_part_claims_is_borne() {
        for part in first_parts() {
            for parts in [0, 1, 3, 255] {
                for length in [0, 1, 100, 3_578, 3_579, 3_580, 65_535, 0xA1ED_0A1E, u32::MAX] {
                    let mut window = part.clone();
                    window[0] = parts;
                    window[1..5].copy_from_slice(&length.to_be_bytes());
                    window.resize(window.len() + 2 * PART_BYTES, 0);
                    let mut scan = Scan::default();
                    scan.look(0, 0, &window);
                    assert!(parts != 1 || scan.parts.is_empty(), "{parts} parts, {length}");
                }
            }
        }
    }

    #[test]
    fn bytes_that_are_wrong_anywhere_are_borne() {
        let mut state = 7u64;
        let mut draw = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as usize % below
        };
        let good: Vec<u8> = first_parts().into_iter().flatten().chain([0; PART_BYTES]).collect();
        for _ in 0..5_000 {
            let mut window = good.clone();
            for _ in 0..=draw(4) {
                let within = if draw(2) == 0 { 40 } else { window.len() };
                let at = draw(within);
                window[at] = draw(256) as u8;
            }
            let left = 1 + draw(window.len());
            window.truncate(left);
            Scan::default().look(0, 0, &window);
        }
    }
}
