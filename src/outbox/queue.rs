//! The queue itself: staging, committing, reading.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::codec::{self, RecordFields};
use super::error::OutboxError;
use super::keys::{self, Joining};
use super::store::{Batch, Store, StoreError};
use crate::clock::WallTime;
use crate::event::{Event, Lane, MAX_EVENT_BYTES, Value, json};

/// The most events in one commit. A commit is held in memory and in sled's log as a whole.
pub const MAX_COMMIT_EVENTS: usize = 256;
/// The most bytes of structured JSON in one commit; one event always fits.
pub const MAX_COMMIT_BYTES: usize = 1024 * 1024;
/// The most distinct sources: each keeps a counter for good, in memory too.
pub const MAX_SOURCES: usize = 1024;
/// The longest `source`, since it is the key of its counter.
pub const MAX_SOURCE_BYTES: usize = 1024;

/// Pairs that are read from the store at a time: bounds the memory of a page.
const READ_PAIRS: usize = 64;

/// The place of a record in its lane: given once, growing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Position(pub u64);

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An event as it is kept, and what was noted at its acceptance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its lane.
    pub lane: Lane,
    /// Its place there.
    pub position: Position,
    /// Its number among those of its source and lane, from 1.
    pub sequence: u64,
    /// Wall time of acceptance, milliseconds since 1970; as wrong as the clock was then.
    pub accepted_ms: u64,
    /// The event, with `lane` and `sequence`.
    pub event: Event,
}

/// The outbox's word that an event is on stable storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// The event's `id`.
    pub id: String,
    /// The lane in which it stands.
    pub lane: Lane,
    /// Its sequence; [`sequence_text`] is how the event carries it.
    pub sequence: u64,
    /// Its position, by which it is removed.
    pub position: Position,
}

/// The value of the extension `sequence`: 20 digits, so that text sorts as numbers do.
pub fn sequence_text(sequence: u64) -> String {
    format!("{sequence:020}")
}

/// How much [`Outbox::page`] may return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageLimit {
    /// At most so many records.
    pub records: usize,
    /// At most so many bytes of frames, except that one record always fits.
    pub bytes: usize,
}

/// The state of the lanes. Index of both: [`Lane::index`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Levels {
    /// Records in each lane.
    pub records: [u64; 3],
    /// The position given last in each lane; the record may be removed already.
    pub tails: [Option<Position>; 3],
}

impl Levels {
    /// Records in all lanes.
    pub fn total(&self) -> u64 {
        self.records.iter().sum()
    }
}

/// What is committed besides records and counters. Index: [`Lane::index`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    next_position: [u64; 3],
    records: [u64; 3],
    /// Bytes of frames: what a quota counts.
    bytes: [u64; 3],
}

/// The durable queue; see the [module](super).
#[derive(Debug)]
pub struct Outbox<S> {
    store: S,
    state: State,
    /// The last sequence of each source in each lane; 0 means none yet.
    counters: BTreeMap<String, [u64; 3]>,
    failed: Option<String>,
}

impl<S: Store> Outbox<S> {
    /// Reads the committed state: a few small values, never the backlog.
    ///
    /// # Errors
    /// The store cannot be read, or its state is damaged or contradicts its records.
    pub fn open(store: S) -> Result<Self, OutboxError> {
        let state = match store.get(keys::STATE).map_err(OutboxError::Read)? {
            Some(frame) => codec::decode(&frame).map_err(damaged_state)?,
            None => State { next_position: [1; 3], records: [0; 3], bytes: [0; 3] },
        };
        let counters = read_counters(&store)?;
        let outbox = Self { store, state, counters, failed: None };
        outbox.check_positions()?;
        Ok(outbox)
    }

    /// Begins a group: whatever is added to it becomes durable with one sync.
    ///
    /// # Errors
    /// [`OutboxError::Failed`] after a failed commit.
    pub fn begin(&mut self, now: WallTime) -> Result<Group<'_, S>, OutboxError> {
        if let Some(cause) = &self.failed {
            return Err(OutboxError::Failed { cause: cause.clone() });
        }
        Ok(Group {
            state: self.state,
            outbox: self,
            accepted_ms: now.unix_ms,
            counters: BTreeMap::new(),
            batch: Batch::default(),
            accepted: Vec::new(),
            removed: BTreeSet::new(),
            bytes: 0,
        })
    }

    /// Appends events, all or none, and returns once they are on stable storage.
    ///
    /// # Errors
    /// Those of [`Group::append`] and [`Group::commit`].
    pub fn append(
        &mut self,
        events: &[(Lane, Event)],
        now: WallTime,
    ) -> Result<Vec<Accepted>, OutboxError> {
        let mut group = self.begin(now)?;
        group.append(events)?;
        group.commit()
    }

    /// Removes records for good; those that are gone already are no error.
    ///
    /// # Errors
    /// Those of [`Group::remove`] and [`Group::commit`].
    pub fn remove(
        &mut self,
        records: &[(Lane, Position)],
        now: WallTime,
    ) -> Result<(), OutboxError> {
        let mut group = self.begin(now)?;
        group.remove(records)?;
        group.commit().map(drop)
    }

    /// The oldest records of a lane behind `after`, in their order.
    ///
    /// # Errors
    /// The store cannot be read, or a record among them is damaged; the error names it.
    pub fn page(
        &self,
        lane: Lane,
        after: Option<Position>,
        limit: PageLimit,
    ) -> Result<Vec<Record>, OutboxError> {
        let first = match after {
            None => Some(0),
            Some(Position(after)) => after.checked_add(1),
        };
        let Some(first) = first.filter(|_| limit.records > 0) else { return Ok(Vec::new()) };
        let mut page = PageBuilder { lane, limit, records: Vec::new(), bytes: 0, joining: None };
        let (mut from, to) = (keys::part(lane, Position(first), 0), keys::lane_end(lane));
        loop {
            let pairs = self.store.range(&from, &to, READ_PAIRS).map_err(OutboxError::Read)?;
            for (key, value) in &pairs {
                if page.add(key, value)? == Full::Yes {
                    return Ok(page.records);
                }
            }
            match pairs.last() {
                Some((key, _)) if pairs.len() == READ_PAIRS => {
                    from.clone_from(key);
                    from.push(0);
                }
                _ => break,
            }
        }
        page.finish()
    }

    /// Records in each lane. Index: [`Lane::index`].
    pub fn depth(&self) -> [u64; 3] {
        self.state.records
    }

    /// How much there is and how far it reaches, as of the last commit.
    pub fn levels(&self) -> Levels {
        let tail = |next: u64| (next > 1).then(|| Position(next - 1));
        Levels { records: self.state.records, tails: self.state.next_position.map(tail) }
    }

    /// Bytes of frames in each lane. Index: [`Lane::index`].
    pub fn bytes(&self) -> [u64; 3] {
        self.state.bytes
    }

    /// The store, after an orderly end or for a second look.
    pub fn into_store(self) -> S {
        self.store
    }

    /// The store, for tests that reach under the outbox.
    pub fn store_mut(&mut self) -> &mut S {
        &mut self.store
    }

    /// No record may stand at or behind a position that is still to be given.
    fn check_positions(&self) -> Result<(), OutboxError> {
        for lane in Lane::ALL {
            let next = Position(self.state.next_position[lane.index()]);
            let from = keys::part(lane, next, 0);
            let behind = self.store.range(&from, &keys::lane_end(lane), 1);
            if !behind.map_err(OutboxError::Read)?.is_empty() {
                return Err(OutboxError::StateDamaged {
                    cause: format!(
                        "lane {lane} holds records at or behind its next position {next}"
                    ),
                });
            }
        }
        Ok(())
    }

    fn sequences(&self, source: &str) -> Option<[u64; 3]> {
        self.counters.get(source).copied()
    }
}

/// Work that becomes durable together. Dropping it forgets it.
#[derive(Debug)]
#[must_use = "nothing is accepted before `commit` has returned"]
pub struct Group<'a, S> {
    outbox: &'a mut Outbox<S>,
    accepted_ms: u64,
    state: State,
    /// Counters that this group advances.
    counters: BTreeMap<String, [u64; 3]>,
    batch: Batch,
    accepted: Vec<Accepted>,
    removed: BTreeSet<(Lane, Position)>,
    bytes: usize,
}

impl<S: Store> Group<'_, S> {
    /// Stages events, all or none. Their places in what [`Self::commit`] returns come back.
    ///
    /// The extensions `lane` and `sequence` are set, also where the event brings its own.
    ///
    /// # Errors
    /// An event or the batch is over a bound (the caller's fault), or the group is full
    /// ([`OutboxError::GroupFull`]: commit it and try again). The group is as before.
    pub fn append(&mut self, events: &[(Lane, Event)]) -> Result<Range<usize>, OutboxError> {
        let added_bytes = check_batch(events)?;
        let count = self.accepted.len() + events.len();
        if count > MAX_COMMIT_EVENTS || self.bytes + added_bytes > MAX_COMMIT_BYTES {
            return Err(OutboxError::GroupFull);
        }
        let (mut state, mut counters) = (self.state, BTreeMap::new());
        let (mut parts, mut accepted) = (Vec::new(), Vec::with_capacity(events.len()));
        for (lane, event) in events {
            let sequence = self.next_sequence(&mut counters, *lane, event.source())?;
            let at = lane.index();
            let position = Position(state.next_position[at]);
            let frame = encode(*lane, position, sequence, self.accepted_ms, event)?;
            state.next_position[at] += 1;
            state.records[at] += 1;
            state.bytes[at] += frame.len() as u64;
            let values = keys::split(&frame).ok_or_else(|| OutboxError::EventTooLarge {
                id: event.id().to_owned(),
                bytes: frame.len(),
            })?;
            for (part, value) in (0..=u8::MAX).zip(values) {
                parts.push((keys::part(*lane, position, part), value));
            }
            accepted.push(Accepted { id: event.id().to_owned(), lane: *lane, sequence, position });
        }
        // From here on nothing can fail.
        let places = self.accepted.len()..count;
        self.state = state;
        self.bytes += added_bytes;
        self.counters.extend(counters);
        self.accepted.append(&mut accepted);
        for (key, value) in parts {
            self.batch.put(key, value);
        }
        Ok(places)
    }

    /// Stages removals; records that are gone already are passed over.
    ///
    /// # Errors
    /// The store cannot be read, or a record's first part is damaged. The group is as before.
    pub fn remove(&mut self, records: &[(Lane, Position)]) -> Result<(), OutboxError> {
        let mut found = Vec::new();
        for &(lane, position) in records {
            let key = keys::part(lane, position, 0);
            let value = self.outbox.store.get(&key).map_err(OutboxError::Read)?;
            let Some(value) = value else { continue };
            let header = keys::header(&value).ok_or_else(|| OutboxError::Damaged {
                lane,
                position,
                cause: "its first part has no header".to_owned(),
            })?;
            found.push((lane, position, header));
        }
        for (lane, position, (parts, length)) in found {
            if !self.removed.insert((lane, position)) {
                continue;
            }
            let at = lane.index();
            self.state.records[at] = self.state.records[at].saturating_sub(1);
            self.state.bytes[at] = self.state.bytes[at].saturating_sub(length as u64);
            for part in 0..parts {
                self.batch.delete(keys::part(lane, position, part));
            }
        }
        Ok(())
    }

    /// Whether there is nothing to commit.
    pub fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    /// Makes the group durable, and only then says what was accepted, in the order of staging.
    ///
    /// # Errors
    /// [`OutboxError::Failed`]: the outbox is of no more use; see there.
    pub fn commit(mut self) -> Result<Vec<Accepted>, OutboxError> {
        if self.batch.is_empty() {
            return Ok(Vec::new());
        }
        for (source, sequences) in &self.counters {
            let before = self.outbox.sequences(source).unwrap_or_default();
            for lane in Lane::ALL {
                let sequence = sequences[lane.index()];
                if sequence != before[lane.index()] {
                    let frame = codec::encode(&sequence).map_err(OutboxError::Encode)?;
                    self.batch.put(keys::counter(lane, source), frame);
                }
            }
        }
        let state = codec::encode(&self.state).map_err(OutboxError::Encode)?;
        self.batch.put(keys::STATE.to_vec(), state);
        if let Err(StoreError(cause)) = self.outbox.store.commit(&self.batch) {
            self.outbox.failed = Some(cause.clone());
            return Err(OutboxError::Failed { cause });
        }
        self.outbox.state = self.state;
        self.outbox.counters.append(&mut self.counters);
        Ok(self.accepted)
    }

    /// Advances the counter of `source`, in `staged` only.
    fn next_sequence(
        &self,
        staged: &mut BTreeMap<String, [u64; 3]>,
        lane: Lane,
        source: &str,
    ) -> Result<u64, OutboxError> {
        let known = staged
            .get(source)
            .or_else(|| self.counters.get(source))
            .copied()
            .or_else(|| self.outbox.sequences(source));
        let mut sequences = match known {
            Some(sequences) => sequences,
            None => {
                let is_new = |other: &&String| self.outbox.sequences(other).is_none();
                let new = self.counters.keys().chain(staged.keys()).filter(is_new).count();
                if self.outbox.counters.len() + new >= MAX_SOURCES {
                    return Err(OutboxError::TooManySources { source_name: source.to_owned() });
                }
                [0; 3]
            }
        };
        sequences[lane.index()] += 1;
        staged.insert(source.to_owned(), sequences);
        Ok(sequences[lane.index()])
    }
}

/// Holds a batch against every bound that does not depend on what the outbox holds; returns its
/// bytes of structured JSON.
///
/// # Errors
/// An event is too large, a source too long, or the batch more than one commit takes.
pub fn check_batch(events: &[(Lane, Event)]) -> Result<usize, OutboxError> {
    let mut total = 0;
    for (_, event) in events {
        let bytes = json::to_vec(event).len();
        if bytes > MAX_EVENT_BYTES {
            return Err(OutboxError::EventTooLarge { id: event.id().to_owned(), bytes });
        }
        if event.source().len() > MAX_SOURCE_BYTES {
            let (id, bytes) = (event.id().to_owned(), event.source().len());
            return Err(OutboxError::SourceTooLong { id, bytes });
        }
        total += bytes;
    }
    if events.len() > MAX_COMMIT_EVENTS || total > MAX_COMMIT_BYTES {
        return Err(OutboxError::BatchTooLarge { events: events.len(), bytes: total });
    }
    Ok(total)
}

fn encode(
    lane: Lane,
    position: Position,
    sequence: u64,
    accepted_ms: u64,
    event: &Event,
) -> Result<Vec<u8>, OutboxError> {
    let lane_value = Value::from(lane.as_str());
    let sequence_value = Value::from(sequence_text(sequence));
    let mut attributes: BTreeMap<&str, &Value> =
        event.attributes().iter().map(|(name, value)| (name.as_str(), value)).collect();
    attributes.insert("lane", &lane_value);
    attributes.insert("sequence", &sequence_value);
    let data = event.data();
    let fields =
        RecordFields { lane, position, sequence, accepted_ms, attributes: &attributes, data };
    codec::encode_record(fields).map_err(OutboxError::Encode)
}

fn read_counters<S: Store>(store: &S) -> Result<BTreeMap<String, [u64; 3]>, OutboxError> {
    let mut counters = BTreeMap::<String, [u64; 3]>::new();
    let (from, to) = keys::counters();
    let pairs = store.range(&from, &to, MAX_SOURCES * Lane::ALL.len());
    for (key, frame) in pairs.map_err(OutboxError::Read)? {
        let Some((lane, source)) = keys::parse_counter(&key) else {
            return Err(OutboxError::StateDamaged { cause: "a counter has a foreign key".into() });
        };
        let sequence = codec::decode(&frame).map_err(damaged_state)?;
        counters.entry(source.to_owned()).or_default()[lane.index()] = sequence;
    }
    Ok(counters)
}

fn damaged_state(error: codec::CodecError) -> OutboxError {
    OutboxError::StateDamaged { cause: error.to_string() }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Full {
    Yes,
    No,
}

/// Puts the parts of consecutive records together.
struct PageBuilder {
    lane: Lane,
    limit: PageLimit,
    records: Vec<Record>,
    bytes: usize,
    joining: Option<(Position, Joining)>,
}

impl PageBuilder {
    fn add(&mut self, key: &[u8], value: &[u8]) -> Result<Full, OutboxError> {
        let Some((position, part)) = keys::parse_part(key) else {
            return Err(self.damaged(Position(0), "it has a foreign key"));
        };
        let joined = match self.joining.take() {
            None if part == 0 => Joining::begin(value),
            Some((begun, mut joining)) if begun == position => {
                joining.push(part, value).then_some(joining)
            }
            Some((begun, _)) => return Err(self.damaged(begun, "a part is missing")),
            None => None,
        };
        let Some(joining) = joined else {
            return Err(self.damaged(position, "its parts do not belong together"));
        };
        if !joining.is_complete() {
            self.joining = Some((position, joining));
            return Ok(Full::No);
        }
        let Some(frame) = joining.finish() else {
            return Err(self.damaged(position, "its length is wrong"));
        };
        if !self.records.is_empty() && self.bytes + frame.len() > self.limit.bytes {
            return Ok(Full::Yes);
        }
        let record =
            codec::decode_record(&frame).map_err(|e| self.damaged(position, &e.to_string()))?;
        if (record.lane, record.position) != (self.lane, position) {
            return Err(self.damaged(position, "it is the record of another place"));
        }
        self.bytes += frame.len();
        self.records.push(record);
        Ok(if self.records.len() < self.limit.records { Full::No } else { Full::Yes })
    }

    fn finish(self) -> Result<Vec<Record>, OutboxError> {
        match self.joining {
            None => Ok(self.records),
            Some((begun, _)) => Err(self.damaged(begun, "a part is missing")),
        }
    }

    fn damaged(&self, position: Position, cause: &str) -> OutboxError {
        OutboxError::Damaged { lane: self.lane, position, cause: cause.to_owned() }
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
