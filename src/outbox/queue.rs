//! The queue itself: opening and reading. [`Group`](super::Group) writes.

use std::cell::RefCell;
use std::collections::BTreeMap;

use bytes::BytesMut;
use serde::{Deserialize, Serialize};

use super::codec;
use super::error::OutboxError;
use super::group::Group;
use super::keys;
use super::page::{Damage, Decode, Full, Page, PageBuilder, Placed};
use super::record::{Accepted, Levels, PageLimit, Position, Record, Structured};
use super::room::Limits;
use super::seen::Seen;
use super::store::{Pair, Store};
use super::times::Times;
use crate::clock::{Rng, WallTime};
use crate::event::catalogue::Maker;
use crate::event::{Event, Lane, Losses, MAX_EVENT_BYTES, Moment, json};

/// The most events in one commit. A commit is held in memory and in sled's log as a whole.
pub const MAX_COMMIT_EVENTS: usize = 256;
/// The most bytes of structured JSON in one commit; one event always fits.
pub const MAX_COMMIT_BYTES: usize = 1024 * 1024;
/// The most distinct sources: each keeps a counter for good, in memory too.
pub const MAX_SOURCES: usize = 1024;
/// The longest `source`, since it is the key of its counter.
pub const MAX_SOURCE_BYTES: usize = 1024;

/// Records that are read for publishing are written into buffers of this size, a score of ordinary events in each.
const JSON_BYTES: usize = 16 * 1024;
/// Pairs that are read from the store at a time: bounds the memory of a page.
const READ_PAIRS: usize = 64;

/// What is committed besides records and counters. Index: [`Lane::index`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    pub(super) next_position: [u64; 3],
    pub(super) records: [u64; 3],
    /// Bytes of frames: what a quota counts.
    pub(super) bytes: [u64; 3],
    /// No record stands before these: what the store still has there was removed.
    #[serde(default)]
    pub(super) heads: [u64; 3],
    /// Grows by one with each commit: of two states the later one is known.
    #[serde(default)]
    pub(super) commits: u64,
}

impl Default for State {
    fn default() -> Self {
        Self { next_position: [1; 3], records: [0; 3], bytes: [0; 3], heads: [1; 3], commits: 0 }
    }
}

impl State {
    /// A head that is too far on would hide what waits: there are at least as many positions from it as records.
    pub(super) fn check(&self, lane: Lane) -> Result<(), OutboxError> {
        let at = lane.index();
        let (head, next, records) = (self.heads[at], self.next_position[at], self.records[at]);
        if records <= next.saturating_sub(head) {
            return Ok(());
        }
        let cause = format!(
            "lane {lane} counts {records} records and has only the positions {head} to {next}"
        );
        Err(OutboxError::StateDamaged { cause })
    }
}

/// Events of its own that the outbox writes beside what it tells of: in the same commit.
#[derive(Debug, Clone)]
pub struct Chronicle {
    /// Makes them.
    pub maker: Maker,
    /// For their ids.
    pub rng: Rng,
}

/// Losses that the next commit reports; kept in the store until then.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Salvaged {
    /// What was wrong with the store.
    pub cause: String,
    /// Records that were recovered.
    pub recovered: u64,
    /// What was not.
    pub losses: Losses,
}

/// The durable queue; see the [module](super).
#[derive(Debug)]
pub struct Outbox<S> {
    pub(super) store: S,
    pub(super) state: State,
    /// The last sequence of each source in each lane; 0 means none yet.
    pub(super) counters: BTreeMap<String, [u64; 3]>,
    pub(super) failed: Option<String>,
    /// Something was [applied](Group::apply) since the last commit.
    pub(super) unsettled: bool,
    pub(super) chronicle: Option<Chronicle>,
    /// What is still to be told.
    pub(super) salvaged: Option<Salvaged>,
    pub(super) limits: Option<Limits>,
    /// Dead letters of each lane.
    pub(super) dead: [u64; 3],
    /// Room is left to what is urgent.
    short: bool,
    refused: u64,
    opened: u64,
    /// How long this boot lasts already.
    pub(super) moment: Option<Moment>,
    pub(super) times: Times,
    /// What was read for publishing.
    pub(super) seen: Seen,
}

impl<S: Store> Outbox<S> {
    /// Reads the committed state: a few small values, never the backlog.
    ///
    /// # Errors
    /// The store cannot be read, or its state is damaged or contradicts its records.
    pub fn open(store: S) -> Result<Self, OutboxError> {
        Self::open_checked(store, &BTreeMap::new())
    }

    /// As [`Self::open`], held against a copy of state and counters that was kept elsewhere: the
    /// store may be ahead of its copy and never behind it.
    ///
    /// # Errors
    /// As those of [`Self::open`].
    pub fn open_checked(store: S, copy: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<Self, OutboxError> {
        let state = match store.get(keys::STATE).map_err(OutboxError::Read)? {
            Some(frame) => codec::decode(&frame).map_err(damaged_state)?,
            None => State::default(),
        };
        let copied = copy.get(keys::STATE).and_then(|frame| codec::decode::<State>(frame).ok());
        if let Some(behind) = copied.and_then(|copied| copied.commits.checked_sub(state.commits))
            && behind > 0
        {
            return Err(OutboxError::StateDamaged {
                cause: format!("its last {behind} commits are missing"),
            });
        }
        let counters = read_counters(&store)?;
        let salvaged = match store.get(keys::SALVAGED).map_err(OutboxError::Read)? {
            Some(frame) => Some(codec::decode(&frame).map_err(damaged_state)?),
            None => None,
        };
        let mut outbox = Self {
            store,
            state,
            counters,
            failed: None,
            unsettled: false,
            chronicle: None,
            salvaged,
            limits: None,
            dead: [0; 3],
            short: false,
            refused: 0,
            opened: 1,
            moment: None,
            times: Times::default(),
            seen: Seen::default(),
        };
        outbox.times = Times::recall(&outbox);
        outbox.count_dead()?;
        outbox.check_positions()?;
        outbox.discard_before_heads([0; 3]);
        Ok(outbox)
    }

    /// Lets the outbox tell of losses by events of its own. Without it they are kept untold.
    pub fn with_chronicle(mut self, chronicle: Chronicle) -> Self {
        self.chronicle = Some(chronicle);
        self
    }

    /// Bounds what is kept. Without it nothing is evicted and nothing expires.
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.set_limits(limits);
        self
    }

    /// The same from now on.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = Some(limits);
    }

    /// Says whether the disk is so full that its room must be left to alerts and status.
    pub fn set_short(&mut self, short: bool) {
        self.short = short;
    }

    /// Takes over what the outbox in whose place this one was opened knew and no store holds. No
    /// position that was given before is given again.
    pub fn succeed(&mut self, before: &Levels) {
        self.short = before.short;
        self.refused = before.refused;
        self.opened = before.opened + 1;
        for (next, tail) in self.state.next_position.iter_mut().zip(before.tails) {
            *next = tail.map_or(*next, |Position(tail)| (*next).max(tail + 1));
        }
    }

    /// What was read before is to be read again.
    pub(super) fn opened_anew(&mut self) {
        self.opened += 1;
    }

    pub(super) fn refuse(&mut self, events: usize) {
        self.refused = self.refused.saturating_add(events as u64);
    }

    pub(super) fn is_short(&self) -> bool {
        self.short
    }

    /// What salvage could not recover and is still to be told: the next commit does.
    pub fn untold(&self) -> Option<&Salvaged> {
        self.salvaged.as_ref()
    }

    /// Begins a group: whatever is added to it becomes durable with one sync.
    ///
    /// # Errors
    /// [`OutboxError::Failed`] after a failed commit.
    pub fn begin(&mut self, now: WallTime) -> Result<Group<'_, S>, OutboxError> {
        if let Some(cause) = &self.failed {
            return Err(OutboxError::Failed { cause: cause.clone() });
        }
        Ok(Group::new(self, now))
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

    /// The oldest records of a lane behind `after`, in their order, where all of them are sound.
    ///
    /// # Errors
    /// The store cannot be read, or a record among them is damaged; the error names it.
    pub fn page(
        &self,
        lane: Lane,
        after: Option<Position>,
        limit: PageLimit,
    ) -> Result<Vec<Record>, OutboxError> {
        let Page { records, damaged, .. } = self.read(lane, after, limit)?;
        match damaged.into_iter().next() {
            None => Ok(records),
            Some(Damage { position, cause }) => Err(OutboxError::Damaged { lane, position, cause }),
        }
    }

    /// The oldest records of a lane behind `after`, in their order, and beside them those that are
    /// damaged.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn read(
        &self,
        lane: Lane,
        after: Option<Position>,
        limit: PageLimit,
    ) -> Result<Page, OutboxError> {
        self.read_as(lane, after, limit, &|frame| {
            codec::decode_record(frame).map(|record| self.times.present(record))
        })
    }

    /// As [`Self::read`], in the form in which records are published.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn read_structured(
        &mut self,
        lane: Lane,
        after: Option<Position>,
        limit: PageLimit,
    ) -> Result<Page<Structured>, OutboxError> {
        let present = |record| self.times.present(record);
        let buffer = RefCell::new(BytesMut::with_capacity(JSON_BYTES));
        let decode =
            |frame: &[u8]| codec::decode_structured(frame, &mut buffer.borrow_mut(), present);
        let page = self.read_as(lane, after, limit, &decode)?;
        for (record, header) in page.records.iter().zip(&page.headers) {
            self.seen.note(lane, record.position, *header);
        }
        Ok(page)
    }

    fn read_as<T: Placed>(
        &self,
        lane: Lane,
        after: Option<Position>,
        limit: PageLimit,
        decode: Decode<'_, T>,
    ) -> Result<Page<T>, OutboxError> {
        let first = match after {
            None => Some(0),
            Some(Position(after)) => after.checked_add(1),
        };
        let Some(first) = first.filter(|_| limit.records > 0) else { return Ok(Page::default()) };
        let first = first.max(self.state.heads[lane.index()]);
        let mut page = PageBuilder::new(lane, limit, decode);
        let Some(next) = self.read_by_key(lane, first, &mut page)? else {
            return Ok(page.finish(false));
        };
        let by_key = page.records();
        let (mut from, to) = (next, keys::lane_end(lane));
        loop {
            let pairs = self.store.range(&from, &to, READ_PAIRS).map_err(OutboxError::Read)?;
            for (key, value) in &pairs {
                if page.add(key, value) == Full::Yes {
                    return self.agreed(lane, page.finish(false), by_key);
                }
            }
            match pairs.last() {
                Some((key, _)) if pairs.len() == READ_PAIRS => {
                    from.clone_from(key);
                    from.push(0);
                }
                _ => return self.agreed(lane, page.finish(true), by_key),
            }
        }
    }

    /// Nearly always records stand one behind the other: then each is found by its key, which costs a store less than
    /// going from one to the next. `None` once the page is full; else the key from which to go on in passing.
    fn read_by_key<T: Placed>(
        &self,
        lane: Lane,
        first: u64,
        page: &mut PageBuilder<'_, T>,
    ) -> Result<Option<Vec<u8>>, OutboxError> {
        let mut from = keys::part(lane, Position(first), 0);
        for position in first..self.state.next_position[lane.index()] {
            let mut parts = 1;
            let mut part = 0;
            while part < parts {
                let key = keys::part(lane, Position(position), part);
                let added = self.store.look(&key, |value| {
                    if part == 0 {
                        parts = keys::header(value).map_or(1, |(parts, _)| parts);
                    }
                    page.add(&key, value)
                });
                match added.map_err(OutboxError::Read)? {
                    None => return Ok(Some(from)),
                    Some(Full::Yes) => return Ok(None),
                    Some(Full::No) => {}
                }
                from = key;
                from.push(0);
                part += 1;
            }
        }
        Ok(Some(from))
    }

    /// A page whose records behind the first `by_key` are found by their keys as well. In a damaged index a record can be
    /// met in passing and not be found: it could then never be removed, and would come again and
    /// again.
    ///
    /// A lane that counts records and holds none has lost them where nothing noticed.
    fn agreed<T: Placed>(
        &self,
        lane: Lane,
        page: Page<T>,
        by_key: usize,
    ) -> Result<Page<T>, OutboxError> {
        let counted = self.state.records[lane.index()];
        let is_empty = page.records.is_empty() && page.damaged.is_empty();
        if is_empty && counted > 0 && self.first_pairs(lane, Position(0), 1)?.is_empty() {
            let cause = format!("lane {lane} counts {counted} records and holds none");
            return Err(OutboxError::StateDamaged { cause });
        }
        for record in page.records.iter().skip(by_key) {
            let (_, position) = record.place();
            if !self.stands(lane, position)? {
                let cause = format!("record {lane}/{position} stands in its lane and is not found");
                return Err(OutboxError::StateDamaged { cause });
            }
        }
        Ok(page)
    }

    /// Whether a record is found by its key.
    pub(super) fn stands(&self, lane: Lane, position: Position) -> Result<bool, OutboxError> {
        let found = self.store.look(&keys::part(lane, position, 0), |_| ());
        Ok(found.map_err(OutboxError::Read)?.is_some())
    }

    /// Records in each lane. Index: [`Lane::index`].
    pub fn depth(&self) -> [u64; 3] {
        self.state.records
    }

    /// How much there is and how far it reaches, as of the last commit.
    pub fn levels(&self) -> Levels {
        let tail = |next: u64| (next > 1).then(|| Position(next - 1));
        Levels {
            records: self.state.records,
            dead: self.dead,
            tails: self.state.next_position.map(tail),
            short: self.short,
            refused: self.refused,
            opened: self.opened,
        }
    }

    /// Bytes of frames in each lane. Index: [`Lane::index`].
    pub fn bytes(&self) -> [u64; 3] {
        self.state.bytes
    }

    /// When the oldest record of each lane was accepted, milliseconds since 1970. Damaged ones are
    /// passed over.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn oldest(&self) -> Result<[Option<u64>; 3], OutboxError> {
        let mut oldest = [None; 3];
        for lane in Lane::ALL {
            let head = Position(self.state.heads[lane.index()]);
            let before = head.0.checked_sub(1).map(Position);
            let page = self.read(lane, before, PageLimit { records: 1, bytes: 1 })?;
            oldest[lane.index()] = page.records.first().map(|record| record.accepted_ms);
        }
        Ok(oldest)
    }

    /// The store, after an orderly end or for a second look.
    pub fn into_store(self) -> S {
        self.store
    }

    /// The store, for tests that reach under the outbox.
    pub fn store_mut(&mut self) -> &mut S {
        &mut self.store
    }

    /// No record may stand at or behind a position that is still to be given, and where records are
    /// counted there is one.
    fn check_positions(&self) -> Result<(), OutboxError> {
        for lane in Lane::ALL {
            self.state.check(lane)?;
            let at = lane.index();
            let next = Position(self.state.next_position[at]);
            let damaged = |cause: String| Err(OutboxError::StateDamaged { cause });
            if !self.first_pairs(lane, next, 1)?.is_empty() {
                return damaged(format!(
                    "lane {lane} holds records at or behind its next position {next}"
                ));
            }
            let records = self.state.records[at];
            if records > 0 && self.first_pairs(lane, Position(0), 1)?.is_empty() {
                return damaged(format!("lane {lane} holds none of its {records} records"));
            }
        }
        Ok(())
    }

    /// Whether the lane begins behind this position.
    pub(super) fn is_gone(&self, lane: Lane, position: Position) -> bool {
        position.0 < self.state.heads[lane.index()]
    }

    /// Tells the store what it need not keep any more; `before`: the heads of which it was told.
    pub(super) fn discard_before_heads(&mut self, before: [u64; 3]) {
        for lane in Lane::ALL {
            let head = self.state.heads[lane.index()];
            if head != before[lane.index()] {
                self.store.discard(lane, Position(head));
            }
        }
    }

    /// The first pairs of a lane from a position on, or from its head on.
    pub(super) fn first_pairs(
        &self,
        lane: Lane,
        from: Position,
        limit: usize,
    ) -> Result<Vec<Pair>, OutboxError> {
        let head = Position(self.state.heads[lane.index()]);
        let from = keys::part(lane, from.max(head), 0);
        self.store.range(&from, &keys::lane_end(lane), limit).map_err(OutboxError::Read)
    }

    pub(super) fn sequences(&self, source: &str) -> Option<[u64; 3]> {
        self.counters.get(source).copied()
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
        let bytes = event_bytes(event);
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

/// The size of an event that is handed in: as structured JSON, without the extensions that the outbox
/// sets itself, so that what was taken once can be taken again.
pub fn event_bytes(event: &Event) -> usize {
    let own = ["lane", "sequence"].iter().filter_map(|name| event.attribute(name));
    let text = json::to_vec(event).len();
    text.saturating_sub(own.map(|value| value.to_string().len()).sum())
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

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
