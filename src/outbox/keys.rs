//! The keys of the store, and how a frame is cut into values.
//!
//! | key | value |
//! |---|---|
//! | `s` | the committed state: next positions, depths |
//! | `l` | what was lost to damage and is still to be told |
//! | `x` lane position part | a part of a record that cannot be read, as it was found |
//! | `d` lane position part | one part of a dead letter |
//! | `n` lane position 0 | why it is one, and since when |
//! | `m` name | what another part of the agent remembers |
//! | `c` lane source | the last sequence of that source in that lane |
//! | `r` lane position part | one part of a record's frame |
//!
//! Lane and part are one byte, position is 8 bytes, big-endian, so that keys sort as records do.
//! The first part begins with a header: the number of parts (1 byte) and the length of the whole
//! frame (4 bytes, big-endian). Each further part begins with [`MARKER`], lane, position, its
//! number and its length (2 bytes, big-endian), so that [`salvage`](super::salvage) finds it in
//! bytes of which the engine makes nothing any more; the first part is found by its frame. A value
//! has at most [`PART_BYTES`]: sled puts up to sixteen values into one leaf and moves a leaf over
//! 128 KiB into a file of its own that it never syncs (`docs/outbox.md`), and sixteen parts stay
//! at half of that.

use super::record::Position;
use crate::event::Lane;

/// The largest value that is put into the store.
pub const PART_BYTES: usize = 3584;

/// Number of parts, length of the frame.
pub(super) const HEADER_BYTES: usize = 5;

/// Begins every part of a record but the first. The first byte is not one of UTF-8.
pub const MARKER: [u8; 6] = [0xF7, b'h', b'a', b'r', b'k', 0xF7];

/// Marker, lane, position, part, length.
pub const FURTHER_HEADER_BYTES: usize = 6 + 1 + 8 + 1 + 2;

/// The key of the committed state.
pub const STATE: &[u8] = b"s";

/// The key of what salvage has still to tell.
pub const SALVAGED: &[u8] = b"l";

const MEMO: u8 = b'm';
const COUNTER: u8 = b'c';
const SET_ASIDE: u8 = b'x';
const DEAD: u8 = b'd';
const NOTE: u8 = b'n';
const RECORD: u8 = b'r';
const RECORD_KEY_BYTES: usize = 1 + 1 + 8 + 1;

/// The key of a memo.
pub fn memo(name: &str) -> Vec<u8> {
    [&[MEMO], name.as_bytes()].concat()
}

/// The key of the counter of a source in a lane.
pub fn counter(lane: Lane, source: &str) -> Vec<u8> {
    let mut key = vec![COUNTER, lane_byte(lane)];
    key.extend_from_slice(source.as_bytes());
    key
}

/// All counters: from, to.
pub fn counters() -> (Vec<u8>, Vec<u8>) {
    (vec![COUNTER], vec![COUNTER + 1])
}

/// Lane and source of a counter's key.
pub fn parse_counter(key: &[u8]) -> Option<(Lane, &str)> {
    let (&prefix, rest) = key.split_first()?;
    let (&lane, source) = rest.split_first()?;
    if prefix != COUNTER {
        return None;
    }
    Some((*Lane::ALL.get(usize::from(lane))?, std::str::from_utf8(source).ok()?))
}

/// The key of one part of a record.
pub fn part(lane: Lane, position: Position, part: u8) -> Vec<u8> {
    let mut key = Vec::with_capacity(RECORD_KEY_BYTES);
    key.extend_from_slice(&[RECORD, lane_byte(lane)]);
    key.extend_from_slice(&position.0.to_be_bytes());
    key.push(part);
    key
}

/// The key under which one part of an unreadable record is kept.
pub fn set_aside(lane: Lane, position: Position, part: u8) -> Vec<u8> {
    let mut key = self::part(lane, position, part);
    key[0] = SET_ASIDE;
    key
}

/// All parts of unreadable records: from, to.
pub fn all_set_aside() -> (Vec<u8>, Vec<u8>) {
    (vec![SET_ASIDE], vec![SET_ASIDE + 1])
}

/// The key of one part of a dead letter.
pub fn dead(lane: Lane, position: Position, part: u8) -> Vec<u8> {
    let mut key = self::part(lane, position, part);
    key[0] = DEAD;
    key
}

/// The key of the note about a dead letter.
pub fn note(lane: Lane, position: Position) -> Vec<u8> {
    let mut key = self::part(lane, position, 0);
    key[0] = NOTE;
    key
}

/// All notes of a lane: from, to.
pub fn notes(lane: Lane) -> (Vec<u8>, Vec<u8>) {
    (vec![NOTE, lane_byte(lane)], vec![NOTE, lane_byte(lane) + 1])
}

/// The position in the key of a note.
pub fn parse_note(key: &[u8]) -> Option<Position> {
    let key: &[u8; RECORD_KEY_BYTES] = key.try_into().ok()?;
    let position = u64::from_be_bytes(key[2..10].try_into().ok()?);
    (key[0] == NOTE).then_some(Position(position))
}

/// Behind the last possible record of a lane.
pub fn lane_end(lane: Lane) -> Vec<u8> {
    vec![RECORD, lane_byte(lane) + 1]
}

/// Position and part of a record's key.
pub fn parse_part(key: &[u8]) -> Option<(Position, u8)> {
    let key: &[u8; RECORD_KEY_BYTES] = key.try_into().ok()?;
    let position = u64::from_be_bytes(key[2..10].try_into().ok()?);
    (key[0] == RECORD).then_some((Position(position), key[10]))
}

/// The lane of a record's key.
pub fn lane_of(key: &[u8]) -> Option<Lane> {
    Lane::ALL.into_iter().find(|lane| key.starts_with(&[RECORD, lane_byte(*lane)]))
}

/// Cuts a frame into the values of its parts, in order; `None` if it takes more than 255.
pub fn split(lane: Lane, position: Position, frame: &[u8]) -> Option<Vec<Vec<u8>>> {
    let length = u32::try_from(frame.len()).ok()?;
    let (first, rest) = frame.split_at(frame.len().min(PART_BYTES - HEADER_BYTES));
    let rest = rest.chunks(PART_BYTES - FURTHER_HEADER_BYTES);
    let parts = u8::try_from(1 + rest.len()).ok()?;
    let mut values = vec![[&[parts][..], &length.to_be_bytes(), first].concat()];
    for (part, bytes) in (1..=u8::MAX).zip(rest) {
        values.push([&further_header(lane, position, part, bytes.len())?[..], bytes].concat());
    }
    Some(values)
}

fn further_header(lane: Lane, position: Position, part: u8, length: usize) -> Option<Vec<u8>> {
    let length = u16::try_from(length).ok()?.to_be_bytes();
    Some([&MARKER[..], &[lane_byte(lane)], &position.0.to_be_bytes(), &[part], &length].concat())
}

/// What the header of a further part says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Further {
    /// The lane of the record.
    pub lane: Lane,
    /// Its position.
    pub position: Position,
    /// Which part of it this is, from 1.
    pub part: u8,
    /// Bytes of the frame behind the header.
    pub length: usize,
}

/// Reads the header of a further part; more bytes may follow.
pub fn parse_further(value: &[u8]) -> Option<Further> {
    let header: &[u8; FURTHER_HEADER_BYTES] = value.first_chunk()?;
    let lane = *Lane::ALL.get(usize::from(header[6]))?;
    let position = Position(u64::from_be_bytes(header[7..15].try_into().ok()?));
    let length = usize::from(u16::from_be_bytes([header[16], header[17]]));
    let fits = header.starts_with(&MARKER)
        && header[15] > 0
        && length <= PART_BYTES - FURTHER_HEADER_BYTES;
    fits.then_some(Further { lane, position, part: header[15], length })
}

/// A frame on its way back from its parts.
#[derive(Debug, Clone)]
pub struct Joining {
    parts: u8,
    next: u8,
    length: usize,
    frame: Vec<u8>,
}

impl Joining {
    /// Begins with the value of part 0; `None` if that is not one.
    pub fn begin(value: &[u8]) -> Option<Self> {
        let (parts, length) = header(value)?;
        let frame = value.get(HEADER_BYTES..)?.to_vec();
        Some(Self { parts, next: 1, length, frame })
    }

    /// Adds the value of the next part; false if it is another one.
    pub fn push(&mut self, part: u8, value: &[u8]) -> bool {
        let Some(header) = parse_further(value) else { return false };
        let bytes = &value[FURTHER_HEADER_BYTES..];
        let fits = part == self.next
            && part < self.parts
            && header.part == part
            && header.length == bytes.len();
        if fits {
            self.next += 1;
            self.frame.extend_from_slice(bytes);
        }
        fits
    }

    /// How many parts there are.
    pub(super) fn parts(&self) -> u8 {
        self.parts
    }

    /// Whether all parts are there.
    pub fn is_complete(&self) -> bool {
        self.next == self.parts
    }

    /// The frame, if its length is what the header says.
    pub fn finish(self) -> Option<Vec<u8>> {
        (self.is_complete() && self.frame.len() == self.length).then_some(self.frame)
    }
}

/// Number of parts and length of the frame, from the value of part 0.
pub fn header(value: &[u8]) -> Option<(u8, usize)> {
    let header = value.get(..HEADER_BYTES)?;
    let length = u32::from_be_bytes(header[1..].try_into().ok()?);
    (header[0] > 0).then_some((header[0], usize::try_from(length).ok()?))
}

/// The frame of a record that has no other part than this value.
pub(super) fn only_part(value: &[u8]) -> Option<&[u8]> {
    let frame = value.get(HEADER_BYTES..)?;
    (header(value)? == (1, frame.len())).then_some(frame)
}

pub(super) fn lane_byte(lane: Lane) -> u8 {
    match lane {
        Lane::Alert => 0,
        Lane::Status => 1,
        Lane::Telemetry => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_every_length_come_back_from_their_parts() {
        for length in [0, 1, 100, 3578, 3579, 3580, 7162, 7163, 7164, 64 * 1024, 70_000] {
            let frame: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
            let parts = split(Lane::Status, Position(7), &frame).unwrap();
            assert!(parts.iter().all(|part| part.len() <= PART_BYTES));
            let mut joining = Joining::begin(&parts[0]).unwrap();
            for (at, value) in parts.iter().enumerate().skip(1) {
                assert!(!joining.is_complete());
                assert!(joining.push(u8::try_from(at).unwrap(), value));
            }
            assert_eq!(joining.finish().as_ref(), Some(&frame), "length {length}");
        }
    }

    #[test]
    fn a_missing_or_repeated_part_is_noticed() {
        let parts = split(Lane::Alert, Position(1), &[7; 10_000]).unwrap();
        let mut joining = Joining::begin(&parts[0]).unwrap();
        assert!(!joining.push(2, &parts[2]));
        assert!(joining.push(1, &parts[1]));
        assert!(!joining.push(1, &parts[1]));
        assert_eq!(joining.finish(), None);
    }

    #[test]
    fn keys_sort_as_records_do() {
        let keys = [
            part(Lane::Alert, Position(1), 0),
            part(Lane::Alert, Position(1), 1),
            part(Lane::Alert, Position(256), 0),
            lane_end(Lane::Alert),
            part(Lane::Status, Position(0), 0),
            part(Lane::Telemetry, Position(u64::MAX), 255),
            lane_end(Lane::Telemetry),
        ];
        assert!(keys.is_sorted());
        assert_eq!(parse_part(&keys[2]), Some((Position(256), 0)));
        assert_eq!(parse_counter(&counter(Lane::Status, "/a")), Some((Lane::Status, "/a")));
    }
}
