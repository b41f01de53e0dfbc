//! Dead letters: records that cannot be delivered, set aside with the reason.
//!
//! A dead letter leaves its lane, so that it blocks nobody, and keeps its bytes, its sequence and
//! its position, under keys of its own. An event tells of it in the same commit. At most
//! [`MAX_DEAD_LETTERS`] are kept: then the oldest telemetry goes, then the oldest status, and
//! `outbox.events.evicted` tells; an alert never goes, it stays in its lane if only alerts are left.
//!
//! [`Group::requeue`] puts one back at the end of its lane, with its old sequence.

use serde::{Deserialize, Serialize};

use super::codec::{self, RecordFields};
use super::error::OutboxError;
use super::group::Group;
use super::keys::{self, Joining};
use super::queue::{Outbox, Position, Record};
use super::store::Store;
use crate::event::Lane;
use crate::event::catalogue::Occurrence;

/// Dead letters that are kept at most.
pub const MAX_DEAD_LETTERS: usize = 256;

/// A record that was set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The record, with the position at which it stood.
    pub record: Record,
    /// Why it cannot be delivered, in one line.
    pub reason: String,
    /// Since when, milliseconds since 1970.
    pub since_ms: u64,
}

/// What is kept beside the record. Its first key, `dead_reason`, is what salvage looks for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Note {
    dead_reason: String,
    since_ms: u64,
    pub(super) lane: u8,
    pub(super) position: u64,
}

/// How the body of every note begins, behind the byte that begins the map.
pub(super) const NOTE_BEGINS: &[u8] = b"\x6bdead_reason";

impl<S: Store> Outbox<S> {
    /// All dead letters of a lane, oldest first; damaged ones are passed over.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn dead_letters(&self, lane: Lane) -> Result<Vec<DeadLetter>, OutboxError> {
        let (from, to) = keys::notes(lane);
        let notes = self.store.range(&from, &to, MAX_DEAD_LETTERS).map_err(OutboxError::Read)?;
        let mut letters = Vec::new();
        for (key, frame) in notes {
            let Some(position) = keys::parse_note(&key) else { continue };
            let (Ok(note), Some(record)) =
                (codec::decode::<Note>(&frame), self.dead_record(lane, position)?)
            else {
                continue;
            };
            letters.push(DeadLetter { record, reason: note.dead_reason, since_ms: note.since_ms });
        }
        Ok(letters)
    }

    fn dead_record(&self, lane: Lane, position: Position) -> Result<Option<Record>, OutboxError> {
        self.join(|part| keys::dead(lane, position, part))
    }

    /// The record whose parts stand under these keys, if it is whole.
    fn join(&self, key: impl Fn(u8) -> Vec<u8>) -> Result<Option<Record>, OutboxError> {
        let get = |part| self.store.get(&key(part)).map_err(OutboxError::Read);
        let Some(first) = get(0)? else { return Ok(None) };
        let Some(mut joining) = Joining::begin(&first) else { return Ok(None) };
        for part in 1..=u8::MAX {
            if joining.is_complete() {
                break;
            }
            let Some(value) = get(part)? else { return Ok(None) };
            if !joining.push(part, &value) {
                return Ok(None);
            }
        }
        Ok(joining.finish().and_then(|frame| codec::decode_record(&frame).ok()))
    }
}

impl<S: Store> Group<'_, S> {
    /// Takes a record out of its lane for good, and tells. One that is gone already is passed
    /// over; false if it must stay, since there are only alerts among the dead letters.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn deadletter(
        &mut self,
        lane: Lane,
        position: Position,
        reason: &str,
    ) -> Result<bool, OutboxError> {
        if self.removed.contains(&(lane, position)) {
            return Ok(true);
        }
        let found = self.outbox.join(|part| keys::part(lane, position, part))?;
        let Some(record) = found else { return Ok(true) };
        if !self.make_room_among_the_dead()? {
            return Ok(false);
        }
        let store = &self.outbox.store;
        for part in 0..=u8::MAX {
            let value = store.get(&keys::part(lane, position, part)).map_err(OutboxError::Read)?;
            let Some(value) = value else { break };
            self.batch.put(keys::dead(lane, position, part), value);
        }
        let note = Note {
            dead_reason: reason.to_owned(),
            since_ms: self.now.unix_ms,
            lane: keys::lane_byte(lane),
            position: position.0,
        };
        let note = codec::encode(&note).map_err(OutboxError::Encode)?;
        self.batch.put(keys::note(lane, position), note);
        self.remove(&[(lane, position)])?;
        self.dead.push(Occurrence::EventDeadlettered {
            id: record.event.id().to_owned(),
            source: record.event.source().to_owned(),
            lane,
            sequence: record.sequence,
            cause: reason.to_owned(),
        });
        Ok(true)
    }

    fn make_room_among_the_dead(&mut self) -> Result<bool, OutboxError> {
        let mut letters = Vec::new();
        for lane in Lane::ALL {
            letters.push(self.outbox.dead_letters(lane)?);
        }
        if letters.iter().map(Vec::len).sum::<usize>() + self.dead.len() < MAX_DEAD_LETTERS {
            return Ok(true);
        }
        for lane in [Lane::Telemetry, Lane::Status] {
            let buried =
                |letter: &&DeadLetter| !self.buried.contains(&(lane, letter.record.position));
            if let Some(oldest) = letters[lane.index()].iter().find(buried) {
                let record = oldest.record.clone();
                self.evicted.add(lane, record.event.source(), record.sequence);
                self.bury(lane, record.position);
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Removes a dead letter for good.
    pub fn bury(&mut self, lane: Lane, position: Position) {
        self.buried.insert((lane, position));
        self.batch.delete(keys::note(lane, position));
        // An absent part is no error.
        for part in 0..=MAX_PARTS {
            self.batch.delete(keys::dead(lane, position, part));
        }
    }

    /// Puts a dead letter back at the end of its lane; false if there is none.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn requeue(&mut self, lane: Lane, position: Position) -> Result<bool, OutboxError> {
        if self.buried.contains(&(lane, position)) {
            return Ok(false);
        }
        let Some(record) = self.outbox.dead_record(lane, position)? else { return Ok(false) };
        let at = lane.index();
        let new = Position(self.state.next_position[at]);
        let attributes = record.event.attributes().iter();
        let attributes = attributes.map(|(name, value)| (name.as_str(), value)).collect();
        let frame = codec::encode_record(RecordFields {
            lane,
            position: new,
            sequence: record.sequence,
            accepted_ms: record.accepted_ms,
            attributes: &attributes,
            data: record.event.data(),
        });
        let frame = frame.map_err(OutboxError::Encode)?;
        let Some(values) = keys::split(lane, new, &frame) else { return Ok(false) };
        for (part, value) in (0..=u8::MAX).zip(values) {
            self.batch.put(keys::part(lane, new, part), value);
        }
        self.state.next_position[at] += 1;
        self.state.records[at] += 1;
        self.state.bytes[at] += frame.len() as u64;
        self.bury(lane, position);
        Ok(true)
    }
}

/// The number of the last part that the largest event has.
const MAX_PARTS: u8 = 24;

#[cfg(test)]
#[path = "dead_tests.rs"]
mod tests;
