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
use super::queue::Outbox;
use super::record::{PageLimit, Position, Record};
use super::store::Store;
use crate::event::catalogue::Occurrence;
use crate::event::{Lane, Losses};

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
    /// The oldest dead letters of a lane behind `after`, in their order; damaged ones are passed over.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn dead_letters(
        &self,
        lane: Lane,
        after: Option<Position>,
        limit: PageLimit,
    ) -> Result<Vec<DeadLetter>, OutboxError> {
        let (mut letters, mut bytes) = (Vec::new(), 0);
        for (position, note) in self.notes(lane)? {
            if after.is_some_and(|after| position <= after) {
                continue;
            }
            if letters.len() >= limit.records || bytes >= limit.bytes {
                break;
            }
            let (Ok(note), Some((record, size))) =
                (codec::decode::<Note>(&note), self.dead_record(lane, position)?)
            else {
                continue;
            };
            bytes += size;
            let record = self.times.present(record);
            letters.push(DeadLetter { record, reason: note.dead_reason, since_ms: note.since_ms });
        }
        Ok(letters)
    }

    /// Where the dead letters of a lane stood, oldest first; damaged ones included.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn dead_positions(&self, lane: Lane) -> Result<Vec<Position>, OutboxError> {
        Ok(self.notes(lane)?.into_iter().map(|(position, _)| position).collect())
    }

    fn notes(&self, lane: Lane) -> Result<Vec<(Position, Vec<u8>)>, OutboxError> {
        let (from, to) = keys::notes(lane);
        let notes = self.store.range(&from, &to, MAX_DEAD_LETTERS).map_err(OutboxError::Read)?;
        let parse = |(key, frame): (Vec<u8>, _)| Some((keys::parse_note(&key)?, frame));
        Ok(notes.into_iter().filter_map(parse).collect())
    }

    /// Counts the dead letters anew.
    pub(super) fn count_dead(&mut self) -> Result<(), OutboxError> {
        for lane in Lane::ALL {
            self.dead[lane.index()] = self.dead_positions(lane)?.len() as u64;
        }
        Ok(())
    }

    fn dead_record(
        &self,
        lane: Lane,
        position: Position,
    ) -> Result<Option<(Record, usize)>, OutboxError> {
        self.join(|part| keys::dead(lane, position, part))
    }

    /// The record whose parts stand under these keys, if it is whole, and the bytes of its frame.
    fn join(&self, key: impl Fn(u8) -> Vec<u8>) -> Result<Option<(Record, usize)>, OutboxError> {
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
        let Some(frame) = joining.finish() else { return Ok(None) };
        Ok(codec::decode_record(&frame).ok().map(|record| (record, frame.len())))
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
        if self.outbox.is_gone(lane, position) || self.removed.contains_key(&(lane, position)) {
            return Ok(true);
        }
        let found = self.outbox.join(|part| keys::part(lane, position, part))?;
        let Some((record, _)) = found else { return Ok(true) };
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
        let mut left = [Vec::new(), Vec::new(), Vec::new()];
        for lane in Lane::ALL {
            let mut positions = self.outbox.dead_positions(lane)?;
            positions.retain(|position| !self.buried.contains(&(lane, *position)));
            left[lane.index()] = positions;
        }
        if left.iter().map(Vec::len).sum::<usize>() + self.dead.len() < MAX_DEAD_LETTERS {
            return Ok(true);
        }
        for lane in [Lane::Telemetry, Lane::Status] {
            if let Some(&oldest) = left[lane.index()].first() {
                let gone = self.bury_told(lane, oldest)?;
                self.evicted.merge(&gone);
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Removes a dead letter for good, and says what is gone.
    fn bury_told(&mut self, lane: Lane, position: Position) -> Result<Losses, OutboxError> {
        let mut gone = Losses::default();
        match self.outbox.dead_record(lane, position)? {
            Some((record, _)) => gone.add(lane, record.event.source(), record.sequence),
            None => gone.add_count(lane, 1),
        }
        self.bury(lane, position)?;
        Ok(gone)
    }

    fn bury(&mut self, lane: Lane, position: Position) -> Result<(), OutboxError> {
        self.buried.insert((lane, position));
        self.batch.delete(keys::note(lane, position));
        for part in 0..=MAX_PARTS {
            let key = keys::dead(lane, position, part);
            if self.outbox.store.get(&key).map_err(OutboxError::Read)?.is_some() {
                self.batch.delete(key);
            }
        }
        Ok(())
    }

    /// Destroys all dead letters of a lane because somebody asks for it, and tells. Returns what is
    /// gone.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn purge_dead(&mut self, lane: Lane) -> Result<Losses, OutboxError> {
        let mut gone = Losses::default();
        for position in self.outbox.dead_positions(lane)? {
            if !self.buried.contains(&(lane, position)) {
                gone.merge(&self.bury_told(lane, position)?);
            }
        }
        self.purged.merge(&gone);
        Ok(gone)
    }

    /// Puts a dead letter back at the end of its lane; false if there is none.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn requeue(&mut self, lane: Lane, position: Position) -> Result<bool, OutboxError> {
        if self.buried.contains(&(lane, position)) {
            return Ok(false);
        }
        let found = self.outbox.dead_record(lane, position)?;
        let Some((record, _)) = found else { return Ok(false) };
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
            noted: record.event.noted(),
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
        self.bury(lane, position)?;
        Ok(true)
    }
}

/// The number of the last part that the largest event has.
const MAX_PARTS: u8 = 24;

#[cfg(test)]
#[path = "dead_tests.rs"]
mod tests;
