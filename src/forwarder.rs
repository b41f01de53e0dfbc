//! Outbox → in-flight window → PUBACK or receipt → removal: the only module that knows both ends.
//!
//! Invariants:
//! - A record is offered for removal only after the PUBACK for the publish that carried it, and where
//!   its lane asks for more ([`Confirm::Receipt`]) only after a receipt that names it.
//! - The most urgent record goes next: no record of a lane is handed out while one of a higher lane
//!   waits. What the session already has is the only head start, and that is bounded: of the lanes below
//!   alerts at most three quarters of the window, or all of it but eight, and at most as many bytes as `pace` allows (8 KiB
//!   on a slow link).
//! - Within a lane records go in the order of their positions, except those that were refused or that
//!   no receipt came for.
//! - Memory is bounded: four pages a lane, what is in flight, [`MAX_DEFERRED`] refused ones, the names of
//!   those that wait for a receipt.
//!
//! Terms: a *tail* is the position of the newest record of a lane; a *cursor* the newest that was
//! read; a record is *deferred* when the broker refused it and its turn comes again later, *poisoned*
//! when it was refused so often, for a reason that will not pass, that its owner must decide;
//! *unconfirmed* while the broker has it and its consumer has not said so.
//!
//! How it works: the caller says how far the outbox reaches ([`Forwarder::reach`]), reads the pages
//! that are [`Forwarder::wanted`], one at a time and beside all else, takes [`Forwarder::next`] when the session has room, and passes
//! on every notice ([`Forwarder::handle`]), every receipt ([`Forwarder::receipt`]) and the time
//! ([`Forwarder::overdue`]). Nothing of this survives a restart and nothing needs to: the outbox is
//! read again from its beginning, and what was unconfirmed is published once more.
//!
//! Absent: dead letters, which are the outbox's: the caller moves a poisoned record there, or offers
//! it again ([`Forwarder::defer`]) where that cannot be.

mod pace;
mod receipts;
mod types;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::clock::{ClockState, WallTime};
use crate::event::{Lane, json, mqtt};
use crate::outbox::{PageLimit, Position, Structured};
use crate::uplink::{Binary, Notice, Outgoing, Refusal};
use pace::Pace;
use receipts::{AWAITING_MAX, Awaiting, GRACE};
pub use types::{Confirm, Fate, Flight, Mode, Overdue, Rules, Settled, Wanted};

/// A page: enough to keep the window full between two reads, little enough for a small device.
const PAGE: PageLimit = PageLimit { records: 128, bytes: 128 * 1024 };
/// So many pages are held: the next is wanted as soon as one is used up, so that it is there when the others are gone. A
/// commit, behind which it may have to wait, takes as long as some hundred publishes.
const PAGES: usize = 4;
/// Slots of the window that are kept for alerts at most; more alerts at once wait for a PUBACK each.
const ALERT_SLOTS: usize = 8;
/// Refused records that wait for their next turn; while there are so many, the lanes below
/// alerts rest, and at four times as many alerts too.
pub const MAX_DEFERRED: usize = 64;
/// The first pause after a refusal; it doubles with each one.
const DEFER_FIRST: Duration = Duration::from_secs(5);
/// The longest pause after a refusal.
const DEFER_MOST: Duration = Duration::from_secs(300);
/// Refusals that will not pass, after which a record counts as poisoned: an access rule may have been
/// mended between two of them.
pub const FINAL_REFUSALS: u32 = 3;
/// Silences in answer to a record below alerts after which it counts as poisoned; each counts only if others
/// were acknowledged since the one before. That is a broker that hangs up on what it does not like. On a bad
/// network others do not get through either, and nothing counts.
pub const SILENT_REFUSALS: u32 = 8;

#[derive(Debug, Default)]
struct Queue {
    tail: Option<Position>,
    cursor: Option<Position>,
    /// None is empty.
    pages: VecDeque<VecDeque<Structured>>,
    /// A record that no receipt came for, read again.
    again: Option<(Structured, u32)>,
    /// Alerts were published that [`Awaiting`] had no place for: read the lane from its beginning once
    /// there is.
    passed_over: bool,
    /// How often the lane was read from its beginning anew: what is still under way must be left out.
    rewinds: u64,
    /// What was under way when the page that is being read was wanted.
    under_way: HashSet<Position>,
}

impl Queue {
    fn rewind(&mut self) {
        (self.passed_over, self.rewinds) = (false, self.rewinds + 1);
        (self.cursor, self.pages) = (None, VecDeque::new());
    }

    fn pop(&mut self) -> Option<Structured> {
        let page = self.pages.front_mut()?;
        let record = page.pop_front();
        if page.is_empty() {
            self.pages.pop_front();
        }
        record
    }
}

/// The way of the records from the outbox to the session and back; see the [module](self).
#[derive(Debug)]
pub struct Forwarder {
    rules: Rules,
    /// By lane.
    topics: [Arc<str>; 3],
    content_type: Arc<str>,
    queues: [Queue; 3],
    flights: HashMap<u64, Flight>,
    deferred: VecDeque<(Instant, Flight)>,
    awaiting: Awaiting,
    pace: Pace,
    connected: bool,
    /// Of the session; before the first connection nothing is known and one is assumed.
    window: usize,
    /// Flights below alerts, and their bytes.
    lower: (usize, usize),
    /// PUBACKs so far.
    acknowledged: u64,
    last_token: u64,
}

/// The topic of a lane's events.
pub fn events_topic(device: &str, lane: Lane) -> Arc<str> {
    format!("hark/{device}/events/{lane}").into()
}

impl Forwarder {
    /// For the events of one device, which stands in the topics.
    pub fn new(device: &str, rules: Rules) -> Self {
        Self {
            rules,
            topics: Lane::ALL.map(|lane| events_topic(device, lane)),
            content_type: json::MEDIA_TYPE.into(),
            queues: Default::default(),
            flights: HashMap::new(),
            deferred: VecDeque::new(),
            awaiting: Awaiting::default(),
            pace: Pace::default(),
            connected: false,
            window: 1,
            lower: (0, 0),
            acknowledged: 0,
            last_token: 0,
        }
    }

    /// Tells how far each lane of the outbox reaches. Index: [`Lane::index`].
    pub fn reach(&mut self, tails: [Option<Position>; 3]) {
        for (queue, tail) in self.queues.iter_mut().zip(tails) {
            queue.tail = queue.tail.max(tail);
        }
    }

    /// The outbox was opened anew, and what it gives from now on need not be what it gave before: records
    /// that were salvaged may stand before what was read already. All lanes are read from their beginning;
    /// what is under way is not handed out a second time.
    pub fn rewind(&mut self) {
        self.queues.iter_mut().for_each(Queue::rewind);
    }

    /// The page to read next: of the most urgent lane that has more than was read; then one record
    /// for which no receipt came. Not to be asked again before that page is [loaded](Self::loaded).
    pub fn wanted(&mut self) -> Option<Wanted> {
        let page = Lane::ALL.into_iter().find_map(|lane| {
            let Queue { pages, tail, cursor, rewinds, .. } = &self.queues[lane.index()];
            let more = pages.len() < PAGES && tail > cursor;
            let (after, tail, rewinds) = (*cursor, *tail, *rewinds);
            more.then_some(Wanted { lane, after, limit: PAGE, again: None, tail, rewinds })
        });
        if let Some(Wanted { lane, .. }) = page {
            self.queues[lane.index()].under_way = self.under_way(lane);
        }
        page.or_else(|| {
            let (lane, position) = self.awaiting.over()?;
            let queue = &self.queues[lane.index()];
            let after = position.0.checked_sub(1).map(Position);
            let limit = PageLimit { records: 1, ..PAGE };
            let (again, tail, rewinds) = (Some(position), queue.tail, queue.rewinds);
            let wanted = Wanted { lane, after, limit, again, tail, rewinds };
            queue.again.is_none().then_some(wanted)
        })
    }

    /// Takes the page that was wanted. An empty one means that there was nothing up to the tail.
    pub fn loaded(&mut self, wanted: Wanted, records: Vec<Structured>) {
        let queue = &mut self.queues[wanted.lane.index()];
        if let Some(position) = wanted.again {
            // Its receipt may have come meanwhile.
            let Some(rounds) = self.awaiting.remove((wanted.lane, position)) else { return };
            // Another record in its place means that it is gone: expired, purged.
            let same = records.into_iter().next().filter(|record| record.position == position);
            queue.again = same.map(|record| (record, rounds + 1));
            return;
        }
        // The lane may have been taken back to its beginning meanwhile.
        if queue.rewinds != wanted.rewinds {
            return;
        }
        queue.cursor = records.last().map_or(wanted.tail, |record| Some(record.position));
        let under_way = std::mem::take(&mut queue.under_way);
        let records = records.into_iter().filter(|r| !under_way.contains(&r.position));
        let page: VecDeque<Structured> = records.collect();
        if !page.is_empty() {
            queue.pages.push_back(page);
        }
    }

    /// Positions of a lane that was rewound which must not be published a second time.
    fn under_way(&self, lane: Lane) -> HashSet<Position> {
        if self.queues[lane.index()].rewinds == 0 {
            return HashSet::new();
        }
        let deferred = self.deferred.iter().map(|(_, flight)| flight);
        let all = self.flights.values().chain(deferred);
        let published = all.map(|flight| (flight.lane, flight.position));
        let of_lane = |(l, position)| (l == lane).then_some(position);
        let again = self.queues[lane.index()].again.iter().map(|(record, _)| record.position);
        published.chain(self.awaiting.places()).filter_map(of_lane).chain(again).collect()
    }

    /// Whether [`Self::next`] has something at `now`.
    pub fn has_next(&self, now: Instant) -> bool {
        self.source(now).is_some()
    }

    /// When, after `now`, [`Self::has_next`] or [`Self::overdue`] may have something new if nothing else
    /// happens.
    pub fn next_due(&self, now: Instant) -> Option<Instant> {
        let deferred = self.deferred.iter().map(|(due, _)| *due).filter(|due| *due > now);
        deferred.chain(self.awaiting.next_due().filter(|_| self.connected)).min()
    }

    /// Whether a record of this lane was refused and is neither acknowledged nor given up since.
    pub fn has_refused(&self, lane: Lane) -> bool {
        let deferred = self.deferred.iter().map(|(_, flight)| flight);
        deferred.chain(self.flights.values()).any(|f| f.lane == lane && f.refusals > 0)
    }

    /// The most urgent record that is to be published now; `wall` is for its expiry.
    pub fn next(&mut self, now: Instant, wall: WallTime) -> Option<Outgoing> {
        let mut flight = match self.source(now)? {
            Source::Deferred(place) => self.deferred.remove(place)?.1,
            Source::Page(lane) => {
                let record = self.queues[lane.index()].pop()?;
                self.flight(record, 0, wall)
            }
            Source::Again(lane) => {
                let (record, rounds) = self.queues[lane.index()].again.take()?;
                self.flight(record, rounds, wall)
            }
        };
        self.last_token += 1;
        flight.outgoing.token = self.last_token;
        flight.sent = None;
        let outgoing = flight.outgoing.clone();
        if flight.lane != Lane::Alert {
            self.lower = (self.lower.0 + 1, self.lower.1 + flight.bytes());
        }
        self.flights.insert(self.last_token, flight);
        Some(outgoing)
    }

    fn flight(&self, record: Structured, rounds: u32, wall: WallTime) -> Flight {
        let Structured { lane, position, id, source, expirytime, json } = record;
        // That it cannot be read, which is not seen, is no reason to hold it back.
        let event = (self.rules.mode == Mode::Binary).then(|| json::parse(&json).ok()).flatten();
        let mut outgoing = Outgoing::new(0, Arc::clone(&self.topics[lane.index()]), json);
        outgoing.content_type = Some(Arc::clone(&self.content_type));
        outgoing.urgent = lane == Lane::Alert;
        outgoing.expiry_s = expirytime.and_then(|at| expiry_s(&at, wall));
        outgoing.binary = event.map(|event| {
            let mqtt::Binary { content_type, user_properties, payload } = mqtt::to_binary(&event);
            Box::new(Binary { payload: payload.into(), content_type, user_properties })
        });
        Flight {
            lane,
            position,
            id,
            source,
            outgoing,
            refusals: 0,
            final_refusals: 0,
            silences: (0, self.acknowledged),
            rounds,
            sent: None,
            received: false,
        }
    }

    fn source(&self, now: Instant) -> Option<Source> {
        let for_alerts = (self.window / 4).clamp(1, ALERT_SLOTS).min(self.window - 1);
        let lower_slots = self.window - for_alerts;
        Lane::ALL.into_iter().find_map(|lane| {
            let (most, limit) = match lane {
                Lane::Alert => (4 * MAX_DEFERRED, self.window),
                _ => (MAX_DEFERRED, lower_slots),
            };
            let room = lane == Lane::Alert || self.lower.0 < limit;
            let may = |bytes: usize| {
                room && (lane == Lane::Alert || self.pace.allows(self.lower.1, bytes))
            };
            let due = self.deferred.iter().position(|(due, f)| f.lane == lane && *due <= now);
            if let Some(place) = due.filter(|place| may(self.deferred[*place].1.bytes())) {
                return Some(Source::Deferred(place));
            }
            let queue = &self.queues[lane.index()];
            let rests = self.deferred.len() >= most || self.too_many_await(lane);
            // What the record will weigh is known once it is written; a guess will do.
            if !rests && !queue.pages.is_empty() && may(TYPICAL) {
                return Some(Source::Page(lane));
            }
            (queue.again.is_some() && may(TYPICAL)).then_some(Source::Again(lane))
        })
    }

    fn too_many_await(&self, lane: Lane) -> bool {
        let asks = self.rules.confirm[lane.index()] == Confirm::Receipt;
        asks && lane != Lane::Alert && self.awaiting.len() + self.flights.len() >= AWAITING_MAX
    }

    /// What a notice of the session means for a record; `None` if it is about none.
    pub fn handle(&mut self, notice: &Notice, now: Instant) -> Option<Fate> {
        match notice {
            Notice::Closed { .. } => {
                self.connected = false;
                None
            }
            Notice::Connected { window, .. } => {
                self.connected = true;
                self.window = usize::from(*window).max(1);
                self.pace = Pace::default();
                self.awaiting.grant(now + GRACE);
                None
            }
            Notice::Published { token, resent } => {
                let flight = self.flights.get_mut(token)?;
                flight.sent = Some(now);
                let again = *resent || flight.rounds > 0;
                Some(Fate::Published { id: flight.id.clone(), lane: flight.lane, again })
            }
            Notice::Acknowledged { token, no_subscribers } => {
                let flight = self.land(*token)?;
                self.acknowledged += 1;
                if let Some(sent) = flight.sent.filter(|_| flight.lane != Lane::Alert) {
                    self.pace.answered(flight.bytes(), now.saturating_duration_since(sent));
                }
                Some(self.acknowledged(flight, *no_subscribers, now))
            }
            Notice::Refused { token, reason } => {
                let mut flight = self.land(*token)?;
                if flight.received {
                    // The consumer has it from an earlier publish.
                    return Some(Fate::Delivered(flight));
                }
                if self.is_poisoned(&mut flight, reason) {
                    return Some(Fate::Poisoned { flight, reason: reason.clone() });
                }
                let (id, lane) = (flight.id.clone(), flight.lane);
                let pause = self.defer(flight, now);
                Some(Fate::Deferred { id, lane, reason: reason.to_string(), pause })
            }
            _ => None,
        }
    }

    /// Counts a refusal; whether it was the last that the record gets. An alert is not given up for what
    /// may be the network's doing.
    fn is_poisoned(&self, flight: &mut Flight, reason: &Refusal) -> bool {
        if reason.is_final() {
            flight.final_refusals += 1;
            return flight.final_refusals >= FINAL_REFUSALS;
        }
        let (silences, acknowledged) = &mut flight.silences;
        if reason.is_silence() && flight.lane != Lane::Alert && self.acknowledged > *acknowledged {
            (*silences, *acknowledged) = (*silences + 1, self.acknowledged);
            return *silences >= SILENT_REFUSALS;
        }
        false
    }

    fn land(&mut self, token: u64) -> Option<Flight> {
        let flight = self.flights.remove(&token)?;
        if flight.lane != Lane::Alert {
            self.lower = (self.lower.0 - 1, self.lower.1 - flight.bytes());
        }
        Some(flight)
    }

    fn acknowledged(&mut self, flight: Flight, no_subscribers: bool, now: Instant) -> Fate {
        let lane = flight.lane;
        if self.rules.confirm[lane.index()] == Confirm::Broker || flight.received {
            return Fate::Delivered(flight);
        }
        let Flight { position, id, source, rounds, .. } = flight;
        if self.awaiting.len() < AWAITING_MAX {
            let names = (id.clone(), source);
            let timeout = self.rules.receipt_timeout[lane.index()];
            self.awaiting.insert((lane, position), names, rounds, now, timeout);
        } else {
            self.queues[lane.index()].passed_over = true;
        }
        Fate::Unconfirmed { id, lane, no_subscribers }
    }

    /// Offers a record that was refused again later. Returns how much later.
    pub fn defer(&mut self, mut flight: Flight, now: Instant) -> Duration {
        let pause = (DEFER_FIRST * 2u32.saturating_pow(flight.refusals)).min(DEFER_MOST);
        flight.refusals = (flight.refusals + 1).min(16);
        self.deferred.push_back((now + pause, flight));
        pause
    }

    /// A consumer's receipt: it has the events of these ids in this lane (and of this source, where
    /// one is named). Returns what is to be removed from the outbox, and how many more will be at
    /// their PUBACK. Ids that nothing waits for are passed over: receipts come twice, too.
    pub fn receipt(
        &mut self,
        lane: Lane,
        source: Option<&str>,
        ids: &[String],
    ) -> (Vec<Settled>, usize) {
        let (mut settled, mut in_flight) = (Vec::new(), 0);
        if self.rules.confirm[lane.index()] == Confirm::Broker {
            return (settled, in_flight);
        }
        for id in ids {
            let named = |f: &Flight| {
                f.lane == lane && *f.id == **id && source.is_none_or(|source| *source == *f.source)
            };
            let done = |position| Settled { lane, position, id: id.as_str().into() };
            settled.extend(self.awaiting.take(lane, source, id).into_iter().map(done));
            // Its PUBACK is still to come, and the session must not lose count of it.
            for flight in self.flights.values_mut().filter(|f| named(f)) {
                flight.received = true;
                in_flight += 1;
            }
            while let Some(at) = self.deferred.iter().position(|(_, f)| named(f)) {
                settled.extend(self.deferred.remove(at).map(|(_, f)| done(f.position)));
            }
            let queue = &mut self.queues[lane.index()];
            let read_again = queue.again.take_if(|(r, _)| {
                *r.id == **id && source.is_none_or(|source| *source == *r.source)
            });
            settled.extend(read_again.map(|(record, _)| done(record.position)));
        }
        let queue = &mut self.queues[lane.index()];
        if queue.passed_over && self.awaiting.of(lane) == 0 {
            queue.rewind();
        }
        (settled, in_flight)
    }

    /// Ends the waits for receipts that are over; what waited is published again. Nothing is overdue
    /// while there is no session: without one no receipt can come.
    pub fn overdue(&mut self, now: Instant) -> Option<Overdue> {
        if !self.connected {
            return None;
        }
        let (count, lane, id) = self.awaiting.expire(now)?;
        Some(Overdue { count, lane, id })
    }

    /// Records that were handed out and are neither acknowledged nor refused.
    pub fn in_flight(&self) -> usize {
        self.flights.len()
    }

    /// Where those stand that are in flight.
    pub fn in_flight_places(&self) -> impl Iterator<Item = (Lane, Position)> {
        self.flights.values().map(|flight| (flight.lane, flight.position))
    }

    /// Where those stand whose receipt is missing.
    pub fn unconfirmed_places(&self) -> impl Iterator<Item = (Lane, Position)> {
        self.awaiting.places()
    }

    /// Records that the broker has and whose consumer has not said so.
    pub fn unconfirmed(&self) -> usize {
        self.awaiting.len()
    }
}

/// Bytes of an ordinary event.
const TYPICAL: usize = 700;

/// Seconds until the `expirytime`, where there is one and the clock can be believed. One that is past
/// is a second away: whether it is still to be published is the outbox's decision.
fn expiry_s(expirytime: &str, wall: WallTime) -> Option<u32> {
    if wall.state == ClockState::Unsynced {
        return None;
    }
    let at = chrono::DateTime::parse_from_rfc3339(expirytime).ok()?;
    let left_ms = at.timestamp_millis() - i64::try_from(wall.unix_ms).ok()?;
    Some(u32::try_from((left_ms / 1000).max(1)).unwrap_or(u32::MAX))
}

enum Source {
    Deferred(usize),
    Page(Lane),
    Again(Lane),
}

#[cfg(test)]
mod random_tests;
#[cfg(test)]
mod tests;
