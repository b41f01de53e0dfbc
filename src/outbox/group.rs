//! Writing: what becomes durable together.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::codec::{self, RecordFields};
use super::error::OutboxError;
use super::keys;
use super::page::Damage;
use super::queue::{
    MAX_COMMIT_BYTES, MAX_COMMIT_EVENTS, MAX_SOURCES, Outbox, Salvaged, State, check_batch,
};
use super::record::{Accepted, Position, sequence_text};
use super::seen::Header;
use super::store::{Batch, Store, StoreError};
use crate::clock::WallTime;
use crate::event::catalogue::Occurrence;
use crate::event::{Event, Lane, Losses, Noted, Value};

/// Parts of unreadable records that are kept for somebody to look at; then only their loss is told.
const MAX_SET_ASIDE: usize = 256;
/// Records that are removed together where a backlog is drained.
const DRAINED: usize = 128;
/// Pairs that are read at a time in search of the first record of a lane.
const HEAD_PAIRS: usize = 16;

/// Work that becomes durable together. Dropping it forgets it.
#[derive(Debug)]
#[must_use = "nothing is accepted before `commit` has returned"]
pub struct Group<'a, S> {
    pub(super) outbox: &'a mut Outbox<S>,
    pub(super) now: WallTime,
    pub(super) state: State,
    /// Counters that this group advances.
    counters: BTreeMap<String, [u64; 3]>,
    pub(super) batch: Batch,
    accepted: Vec<Accepted>,
    /// Records that leave their lane, and how many keys are still to be deleted for each.
    pub(super) removed: BTreeMap<(Lane, Position), u8>,
    bytes: usize,
    /// What was found damaged, to be told with this commit.
    lost: Salvaged,
    pub(super) evicted: Losses,
    pub(super) expired: Losses,
    /// What somebody asked to be destroyed.
    pub(super) purged: Losses,
    /// What this commit tells of new dead letters.
    pub(super) dead: Vec<Occurrence>,
    /// Dead letters that this commit removes.
    pub(super) buried: BTreeSet<(Lane, Position)>,
}

/// Whether a group is on stable storage when it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    ForTheDevice,
    No,
}

impl<'a, S: Store> Group<'a, S> {
    pub(super) fn new(outbox: &'a mut Outbox<S>, now: WallTime) -> Self {
        Self {
            state: outbox.state,
            lost: outbox.salvaged.clone().unwrap_or_default(),
            outbox,
            now,
            counters: BTreeMap::new(),
            batch: Batch::default(),
            accepted: Vec::new(),
            removed: BTreeMap::new(),
            bytes: 0,
            evicted: Losses::default(),
            expired: Losses::default(),
            purged: Losses::default(),
            dead: Vec::new(),
            buried: BTreeSet::new(),
        }
    }

    /// Stages events, all or none. Their places in what [`Self::commit`] returns come back.
    ///
    /// The extensions `lane` and `sequence` are set, also where the event brings its own.
    ///
    /// # Errors
    /// An event or the batch is over a bound (the caller's fault), the outbox has no room for it
    /// ([`OutboxError::Full`]), or the group is full ([`OutboxError::GroupFull`]: commit it and try
    /// again). The group is as before, except for what was evicted.
    pub fn append(&mut self, events: &[(Lane, Event)]) -> Result<Range<usize>, OutboxError> {
        let added_bytes = check_batch(events)?;
        let count = self.accepted.len() + events.len();
        if count > MAX_COMMIT_EVENTS || self.bytes + added_bytes > MAX_COMMIT_BYTES {
            return Err(OutboxError::GroupFull);
        }
        self.make_room(events)?;
        let staged = self.stage(events)?;
        // From here on nothing can fail.
        let places = self.accepted.len()..count;
        self.bytes += added_bytes;
        let accepted = self.keep(staged);
        self.accepted.extend(accepted);
        Ok(places)
    }

    fn stage(&self, events: &[(Lane, Event)]) -> Result<Staged, OutboxError> {
        let mut staged = Staged { state: self.state, ..Staged::default() };
        for (lane, event) in events {
            let sequence = self.next_sequence(&mut staged.counters, *lane, event.source())?;
            let at = lane.index();
            let position = Position(staged.state.next_position[at]);
            let moment = self.outbox.moment.as_ref();
            let noted = moment.and_then(|moment| Noted::new(event, self.now, moment));
            let accepted_ms = self.now.unix_ms;
            let frame = encode(*lane, position, sequence, accepted_ms, event, noted.as_ref())?;
            staged.state.next_position[at] += 1;
            staged.state.records[at] += 1;
            staged.state.bytes[at] += frame.len() as u64;
            let values = keys::split(*lane, position, &frame).ok_or_else(|| {
                OutboxError::EventTooLarge { id: event.id().to_owned(), bytes: frame.len() }
            })?;
            for (part, value) in (0..=u8::MAX).zip(values) {
                staged.parts.push((keys::part(*lane, position, part), value));
            }
            let id = event.id().to_owned();
            staged.accepted.push(Accepted { id, lane: *lane, sequence, position });
        }
        Ok(staged)
    }

    fn keep(&mut self, staged: Staged) -> Vec<Accepted> {
        self.state = staged.state;
        self.counters.extend(staged.counters);
        for (key, value) in staged.parts {
            self.batch.put(key, value);
        }
        staged.accepted
    }

    /// Stages removals; records that are gone already are passed over.
    ///
    /// # Errors
    /// The store cannot be read, or a record's first part is damaged. Those before it are staged.
    pub fn remove(&mut self, records: &[(Lane, Position)]) -> Result<(), OutboxError> {
        for &(lane, position) in records {
            if self.outbox.is_gone(lane, position) || self.removed.contains_key(&(lane, position)) {
                continue;
            }
            let known = self.outbox.seen.get(lane, position);
            let header = if known.is_none() { self.header(lane, position)? } else { known };
            if let Some((parts, length)) = header {
                self.removed.insert((lane, position), parts);
                self.forget(lane, length as u64);
            }
        }
        Ok(())
    }

    /// `None` where no such record is there.
    fn header(&self, lane: Lane, position: Position) -> Result<Option<Header>, OutboxError> {
        let header = self.outbox.store.look(&keys::part(lane, position, 0), keys::header);
        match header.map_err(OutboxError::Read)? {
            None => Ok(None),
            Some(Some(header)) => Ok(Some(header)),
            Some(None) => {
                let cause = "its first part has no header".to_owned();
                Err(OutboxError::Damaged { lane, position, cause })
            }
        }
    }

    fn forget(&mut self, lane: Lane, bytes: u64) {
        let at = lane.index();
        self.state.records[at] = self.state.records[at].saturating_sub(1);
        self.state.bytes[at] = self.state.bytes[at].saturating_sub(bytes);
    }

    /// Takes a record that cannot be read out of its lane, keeps its bytes elsewhere while there
    /// is room for them, and counts it among what this commit tells.
    ///
    /// # Errors
    /// The store cannot be read. The group is as before.
    pub fn set_aside(&mut self, lane: Lane, damage: &Damage) -> Result<(), OutboxError> {
        let next = Position(damage.position.0.saturating_add(1));
        let (from, to) = (keys::part(lane, damage.position, 0), keys::part(lane, next, 0));
        let store = &self.outbox.store;
        let parts = store.range(&from, &to, usize::from(u8::MAX) + 1).map_err(OutboxError::Read)?;
        let (first, last) = keys::all_set_aside();
        let kept = store.range(&first, &last, MAX_SET_ASIDE).map_err(OutboxError::Read)?.len();
        let gone = self.outbox.is_gone(lane, damage.position) || parts.is_empty();
        if gone || self.removed.insert((lane, damage.position), 0).is_some() {
            return Ok(());
        }
        let mut bytes = 0;
        for (key, value) in parts {
            let Some((position, part)) = keys::parse_part(&key) else { continue };
            bytes += value.len() as u64;
            self.batch.delete(key);
            if kept + usize::from(part) < MAX_SET_ASIDE {
                self.batch.put(keys::set_aside(lane, position, part), value);
            }
        }
        self.forget(lane, bytes);
        self.lost.losses.add_count(lane, 1);
        self.lost.cause = format!("record {lane}/{} is damaged: {}", damage.position, damage.cause);
        Ok(())
    }

    /// Whether there is nothing to commit.
    pub fn is_empty(&self) -> bool {
        self.batch.is_empty() && self.removed.is_empty()
    }

    /// What [`Self::commit`] would accept.
    pub fn staged(&self) -> &[Accepted] {
        &self.accepted
    }

    /// Makes the group durable, and only then says what was accepted, in the order of staging.
    ///
    /// # Errors
    /// [`OutboxError::Failed`]: the outbox is of no more use; see there.
    pub fn commit(self) -> Result<Vec<Accepted>, OutboxError> {
        self.finish(Wait::ForTheDevice)
    }

    /// As [`Self::commit`], and where the group does nothing but remove records it does not wait for the device: after
    /// a crash before the next commit they may be back.
    ///
    /// # Errors
    /// As those of [`Self::commit`].
    pub fn apply(self) -> Result<Vec<Accepted>, OutboxError> {
        self.finish(Wait::No)
    }

    fn finish(mut self, wait: Wait) -> Result<Vec<Accepted>, OutboxError> {
        let settled = !self.outbox.unsettled || wait == Wait::No;
        if self.is_empty() && settled && (self.lost.cause.is_empty() || !self.tells()) {
            return Ok(Vec::new());
        }
        self.find_heads()?;
        self.delete_removed();
        let dead_change = !self.dead.is_empty() || !self.buried.is_empty();
        self.tell_of_room()?;
        let untold = self.tell()?;
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
        self.state.commits += 1;
        let state = codec::encode(&self.state).map_err(OutboxError::Encode)?;
        self.batch.put(keys::STATE.to_vec(), state);
        let is_new = self.state.next_position != self.outbox.state.next_position;
        let waits = wait == Wait::ForTheDevice || is_new || dead_change || untold.is_some();
        let store = &mut self.outbox.store;
        let done = if waits { store.commit(&self.batch) } else { store.apply(&self.batch) };
        self.outbox.unsettled = !waits;
        if let Err(StoreError(cause)) = done {
            self.outbox.failed = Some(cause.clone());
            return Err(OutboxError::Failed { cause });
        }
        let heads = std::mem::replace(&mut self.outbox.state, self.state).heads;
        self.outbox.discard_before_heads(heads);
        for (lane, position) in self.removed.keys() {
            self.outbox.seen.forget(*lane, *position);
        }
        self.outbox.salvaged = untold;
        self.outbox.counters.append(&mut self.counters);
        if dead_change {
            self.outbox.count_dead()?;
        }
        Ok(self.accepted)
    }

    fn tells(&self) -> bool {
        self.outbox.chronicle.is_some()
    }

    /// Where the lanes begin after this commit. A lane that turns out to be empty although it
    /// counts records has lost them.
    fn find_heads(&mut self) -> Result<(), OutboxError> {
        let touched: BTreeSet<Lane> = self.removed.keys().map(|(lane, _)| *lane).collect();
        for lane in touched {
            let at = lane.index();
            self.state.heads[at] = self.first_left(lane)?.0;
            // The outbox's own events are staged after this.
            let new = self.state.next_position[at] - self.outbox.state.next_position[at];
            let missing = self.state.records[at].saturating_sub(new);
            if missing > 0 && self.state.heads[at] >= self.outbox.state.next_position[at] {
                self.state.records[at] = new;
                self.lost.losses.add_count(lane, missing);
                self.lost.cause =
                    format!("lane {lane} held {missing} records less than it counted");
            }
            self.state.check(lane)?;
        }
        Ok(())
    }

    /// Before its head a lane holds nothing, whatever the store still has there. So while a backlog is drained only the head is
    /// written of what goes in the order in which it came. Else the keys go at once: a value that goes soon
    /// after it came is not written once more with those beside it, and what gives way makes room.
    fn delete_removed(&mut self) {
        let told = [&self.evicted, &self.expired, &self.purged];
        let drains = self.removed.len() >= DRAINED && told.iter().all(|losses| losses.is_empty());
        for (&(lane, position), &parts) in &self.removed {
            if drains && position.0 < self.state.heads[lane.index()] {
                continue;
            }
            for part in 0..parts {
                self.batch.delete(keys::part(lane, position, part));
            }
        }
    }

    fn first_left(&self, lane: Lane) -> Result<Position, OutboxError> {
        let mut from = Position(self.outbox.state.heads[lane.index()]);
        // Mostly the oldest go, one behind the other: their places need not be looked at.
        while self.removed.contains_key(&(lane, from)) {
            from = Position(from.0.saturating_add(1));
        }
        // The next one mostly stands behind them.
        if self.outbox.stands(lane, from)? {
            return Ok(from);
        }
        loop {
            let pairs = self.outbox.first_pairs(lane, from, HEAD_PAIRS)?;
            let positions = || pairs.iter().filter_map(|(key, _)| keys::parse_part(key));
            let left = positions().find(|(at, _)| !self.removed.contains_key(&(lane, *at)));
            match (left, positions().next_back()) {
                (Some((position, _)), _) => return Ok(position),
                (None, Some((last, _))) if pairs.len() == HEAD_PAIRS => {
                    from = Position(last.0.saturating_add(1));
                }
                // None is left of those before this commit.
                _ => return Ok(Position(self.outbox.state.next_position[lane.index()])),
            }
        }
    }

    /// Puts the event that tells of damage into this commit; what is left untold comes back.
    fn tell(&mut self) -> Result<Option<Salvaged>, OutboxError> {
        if self.lost.cause.is_empty() {
            return Ok(None);
        }
        let Salvaged { cause, recovered, losses } = std::mem::take(&mut self.lost);
        let occurrence = Occurrence::EventsLost { cause, recovered, losses };
        if self.report(&occurrence)? {
            self.batch.delete(keys::SALVAGED.to_vec());
            return Ok(None);
        }
        let Occurrence::EventsLost { cause, recovered, losses } = occurrence else {
            return Ok(None);
        };
        let untold = Salvaged { cause, recovered, losses };
        let frame = codec::encode(&untold).map_err(OutboxError::Encode)?;
        self.batch.put(keys::SALVAGED.to_vec(), frame);
        Ok(Some(untold))
    }

    fn tell_of_room(&mut self) -> Result<(), OutboxError> {
        let (evicted, expired) =
            (std::mem::take(&mut self.evicted), std::mem::take(&mut self.expired));
        for letter in std::mem::take(&mut self.dead) {
            self.report(&letter)?;
        }
        if !evicted.is_empty() {
            let cause = "the outbox has reached its limit".to_owned();
            self.report(&Occurrence::EventsEvicted { cause, losses: evicted })?;
        }
        let purged = std::mem::take(&mut self.purged);
        if !purged.is_empty() {
            let cause = "purged by hand".to_owned();
            self.report(&Occurrence::EventsEvicted { cause, losses: purged })?;
        }
        if let (false, Some(limits)) = (expired.is_empty(), self.outbox.limits) {
            let cause = format!("older than {} s", limits.expiry.as_secs());
            self.report(&Occurrence::EventsExpired { cause, losses: expired })?;
        }
        Ok(())
    }

    /// Stages an event of the outbox's own; false where nobody lent it a pen.
    pub(super) fn report(&mut self, occurrence: &Occurrence) -> Result<bool, OutboxError> {
        let Some(chronicle) = &mut self.outbox.chronicle else { return Ok(false) };
        let made = chronicle.maker.make(occurrence, self.now, &mut chronicle.rng);
        let event = made.map_err(|e| OutboxError::Report { cause: e.to_string() })?;
        let staged = self.stage(&[event])?;
        self.keep(staged);
        Ok(true)
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

#[derive(Default)]
struct Staged {
    state: State,
    counters: BTreeMap<String, [u64; 3]>,
    parts: Vec<super::store::Pair>,
    accepted: Vec<Accepted>,
}

fn encode(
    lane: Lane,
    position: Position,
    sequence: u64,
    accepted_ms: u64,
    event: &Event,
    noted: Option<&Noted>,
) -> Result<Vec<u8>, OutboxError> {
    let lane_value = Value::from(lane.as_str());
    let sequence_value = Value::from(sequence_text(sequence));
    let mut attributes: BTreeMap<&str, &Value> =
        event.attributes().iter().map(|(name, value)| (name.as_str(), value)).collect();
    attributes.insert("lane", &lane_value);
    attributes.insert("sequence", &sequence_value);
    let data = event.data();
    let attributes = &attributes;
    let fields = RecordFields { lane, position, sequence, accepted_ms, attributes, noted, data };
    codec::encode_record(fields).map_err(OutboxError::Encode)
}
