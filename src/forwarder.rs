//! Outbox → in-flight window → PUBACK → removal: the only module that knows both ends.
//!
//! Invariants:
//! - A record is offered for removal only after the PUBACK for the publish that carried it.
//! - The most urgent record goes next: no record of a lane is handed out while one of a higher lane
//!   waits. What the session already has is the only head start.
//! - Within a lane records go in the order of their positions, except those that were refused.
//! - Memory is bounded: one page a lane, what is in flight, [`MAX_DEFERRED`] refused ones.
//!
//! Terms: a *tail* is the position of the newest record of a lane; a *cursor* the newest that was
//! read; a record is *deferred* when the broker refused it and its turn comes again later.
//!
//! How it works: the caller says how far the outbox reaches ([`Forwarder::reach`]), reads the pages
//! that are [`Forwarder::wanted`], takes [`Forwarder::next`] when the session has room, and passes
//! on every notice ([`Forwarder::handle`]). Nothing of this survives a restart and nothing needs to:
//! the outbox is read again from its beginning.
//!
//! Absent: dead letters (a refused record is offered again for ever, ever more rarely) and receipts.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::event::{Lane, json};
use crate::outbox::{PageLimit, Position, Record};
use crate::uplink::{Notice, Outgoing};

/// A page: enough to keep the window full between two reads, little enough for a small device.
const PAGE: PageLimit = PageLimit { records: 128, bytes: 128 * 1024 };
/// Refused records that wait for their next turn; while there are so many, the lanes below
/// alerts rest.
pub const MAX_DEFERRED: usize = 64;
/// The first pause after a refusal; it doubles with each one.
const DEFER_FIRST: Duration = Duration::from_secs(5);
/// The longest pause after a refusal.
const DEFER_MOST: Duration = Duration::from_secs(300);

/// A page that is to be read from the outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Of this lane,
    pub lane: Lane,
    /// the records behind this position (`None`: from the first),
    pub after: Option<Position>,
    /// so many.
    pub limit: PageLimit,
}

/// A record on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flight {
    /// Its lane.
    pub lane: Lane,
    /// Its position there.
    pub position: Position,
    /// The event's id.
    pub id: String,
    outgoing: Outgoing,
    refusals: u32,
}

/// What a notice means for a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// Handed to the network; `again` if it had been before.
    Published {
        /// The event's id.
        id: String,
        /// Its lane.
        lane: Lane,
        /// On an earlier connection.
        again: bool,
    },
    /// The broker has it: remove it from the outbox.
    Delivered(Flight),
    /// The broker refused it; it stays and is offered again after the pause.
    Deferred {
        /// The event's id.
        id: String,
        /// Its lane.
        lane: Lane,
        /// Why, in one line.
        reason: String,
        /// Until the next attempt.
        pause: Duration,
    },
}

#[derive(Debug, Default)]
struct Queue {
    tail: Option<Position>,
    cursor: Option<Position>,
    page: VecDeque<Record>,
}

/// The way of the records from the outbox to the session and back; see the [module](self).
#[derive(Debug)]
pub struct Forwarder {
    device: String,
    content_type: Arc<str>,
    queues: [Queue; 3],
    flights: HashMap<u64, Flight>,
    deferred: VecDeque<(Instant, Flight)>,
    last_token: u64,
}

/// The topic of a lane's events.
pub fn events_topic(device: &str, lane: Lane) -> Arc<str> {
    format!("hark/{device}/events/{lane}").into()
}

impl Forwarder {
    /// For the events of one device, which stands in the topics.
    pub fn new(device: &str) -> Self {
        Self {
            device: device.to_owned(),
            content_type: json::MEDIA_TYPE.into(),
            queues: Default::default(),
            flights: HashMap::new(),
            deferred: VecDeque::new(),
            last_token: 0,
        }
    }

    /// Tells how far each lane of the outbox reaches. Index: [`Lane::index`].
    pub fn reach(&mut self, tails: [Option<Position>; 3]) {
        for (queue, tail) in self.queues.iter_mut().zip(tails) {
            queue.tail = queue.tail.max(tail);
        }
    }

    /// The page to read next: of the most urgent lane that has more than was read.
    pub fn wanted(&self) -> Option<Wanted> {
        Lane::ALL.into_iter().find_map(|lane| {
            let queue = &self.queues[lane.index()];
            let more = queue.page.is_empty() && queue.tail > queue.cursor;
            more.then_some(Wanted { lane, after: queue.cursor, limit: PAGE })
        })
    }

    /// Takes the page that was wanted. An empty one means that there is nothing up to the tail.
    pub fn loaded(&mut self, wanted: Wanted, records: Vec<Record>) {
        let queue = &mut self.queues[wanted.lane.index()];
        queue.cursor = records.last().map_or(queue.tail, |record| Some(record.position));
        queue.page.extend(records);
    }

    /// Whether [`Self::next`] has something at `now`.
    pub fn has_next(&self, now: Instant) -> bool {
        self.source(now).is_some()
    }

    /// When a deferred record's turn comes, if one waits.
    pub fn next_deferred(&self) -> Option<Instant> {
        self.deferred.iter().map(|(due, _)| *due).min()
    }

    /// The most urgent record that is to be published now.
    pub fn next(&mut self, now: Instant) -> Option<Outgoing> {
        let mut flight = match self.source(now)? {
            Source::Deferred(place) => self.deferred.remove(place)?.1,
            Source::Page(lane) => {
                let record = self.queues[lane.index()].page.pop_front()?;
                let outgoing = Outgoing {
                    token: 0,
                    topic: events_topic(&self.device, lane),
                    payload: json::to_vec(&record.event).into(),
                    content_type: Some(Arc::clone(&self.content_type)),
                };
                let id = record.event.id().to_owned();
                Flight { lane, position: record.position, id, outgoing, refusals: 0 }
            }
        };
        self.last_token += 1;
        flight.outgoing.token = self.last_token;
        let outgoing = flight.outgoing.clone();
        self.flights.insert(self.last_token, flight);
        Some(outgoing)
    }

    fn source(&self, now: Instant) -> Option<Source> {
        let rest = self.deferred.len() >= MAX_DEFERRED;
        Lane::ALL.into_iter().find_map(|lane| {
            let due = self.deferred.iter().position(|(due, f)| f.lane == lane && *due <= now);
            if let Some(place) = due {
                return Some(Source::Deferred(place));
            }
            let page = !self.queues[lane.index()].page.is_empty();
            (page && !(rest && lane != Lane::Alert)).then_some(Source::Page(lane))
        })
    }

    /// What a notice of the session means for a record; `None` if it is about none.
    pub fn handle(&mut self, notice: &Notice, now: Instant) -> Option<Fate> {
        match notice {
            Notice::Published { token, resent } => {
                let flight = self.flights.get(token)?;
                Some(Fate::Published { id: flight.id.clone(), lane: flight.lane, again: *resent })
            }
            Notice::Acknowledged { token, .. } => self.flights.remove(token).map(Fate::Delivered),
            Notice::Refused { token, reason } => {
                let mut flight = self.flights.remove(token)?;
                let pause = (DEFER_FIRST * 2u32.saturating_pow(flight.refusals)).min(DEFER_MOST);
                flight.refusals = (flight.refusals + 1).min(16);
                let (id, lane) = (flight.id.clone(), flight.lane);
                self.deferred.push_back((now + pause, flight));
                Some(Fate::Deferred { id, lane, reason: reason.to_string(), pause })
            }
            _ => None,
        }
    }

    /// Records that were handed out and are neither acknowledged nor refused.
    pub fn in_flight(&self) -> usize {
        self.flights.len()
    }
}

enum Source {
    Deferred(usize),
    Page(Lane),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Data, Event, Value};
    use crate::uplink::Refusal;

    fn record(lane: Lane, position: u64) -> Record {
        let text = |text: &str| Value::String(text.to_owned());
        let attributes = [
            ("specversion", text("1.0")),
            ("id", text(&format!("{lane}-{position}"))),
            ("source", text("/s")),
            ("type", text("t")),
        ];
        let attributes = attributes.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        let event = Event::new(attributes, Data::Absent).unwrap();
        Record { lane, position: Position(position), sequence: position, accepted_ms: 0, event }
    }

    /// An outbox in memory that answers what is wanted.
    struct Bench {
        forwarder: Forwarder,
        stored: Vec<Record>,
        now: Instant,
    }

    impl Bench {
        #[allow(clippy::disallowed_methods, reason = "an Instant has no other beginning")]
        fn new(stored: &[(Lane, u64)]) -> Self {
            let stored = stored.iter().map(|&(lane, position)| record(lane, position)).collect();
            let mut bench = Self { forwarder: Forwarder::new("d"), stored, now: Instant::now() };
            bench.load();
            bench
        }

        fn load(&mut self) {
            let of = |lane| self.stored.iter().filter(move |r| r.lane == lane);
            let tails = Lane::ALL.map(|lane| of(lane).map(|r| r.position).max());
            self.forwarder.reach(tails);
            while let Some(wanted) = self.forwarder.wanted() {
                let behind = |r: &&Record| wanted.after.is_none_or(|after| r.position > after);
                let page = self.stored.iter().filter(|r| r.lane == wanted.lane).filter(behind);
                let page = page.take(2).cloned().collect();
                self.forwarder.loaded(wanted, page);
            }
        }

        fn next(&mut self) -> Option<(u64, String)> {
            let outgoing = self.forwarder.next(self.now)?;
            self.load();
            let event = json::parse(&outgoing.payload).unwrap();
            Some((outgoing.token, event.id().to_owned()))
        }

        fn ids(&mut self) -> Vec<String> {
            std::iter::from_fn(|| self.next()).map(|(_, id)| id).collect()
        }
    }

    #[test]
    fn lanes_are_drained_in_order_and_each_in_its_own() {
        use Lane::{Alert, Status, Telemetry};
        let mut bench =
            Bench::new(&[(Telemetry, 1), (Status, 7), (Telemetry, 2), (Telemetry, 3), (Alert, 4)]);
        assert_eq!(
            bench.ids(),
            ["alert-4", "status-7", "telemetry-1", "telemetry-2", "telemetry-3"]
        );
    }

    #[test]
    fn an_alert_overtakes_what_was_read_before_it_came() {
        let backlog: Vec<_> = (1..=10).map(|n| (Lane::Telemetry, n)).collect();
        let mut bench = Bench::new(&backlog);
        assert_eq!(bench.next().unwrap().1, "telemetry-1");
        bench.stored.push(record(Lane::Alert, 1));
        bench.load();
        assert_eq!(bench.next().unwrap().1, "alert-1");
        assert_eq!(bench.next().unwrap().1, "telemetry-2");
    }

    #[test]
    fn only_a_puback_makes_a_record_removable_and_only_once() {
        let mut bench = Bench::new(&[(Lane::Alert, 3)]);
        let (token, _) = bench.next().unwrap();
        let published = Notice::Published { token, resent: false };
        assert!(matches!(
            bench.forwarder.handle(&published, bench.now),
            Some(Fate::Published { .. })
        ));
        assert_eq!(bench.forwarder.in_flight(), 1);
        let acknowledged = Notice::Acknowledged { token, no_subscribers: false };
        let Some(Fate::Delivered(flight)) = bench.forwarder.handle(&acknowledged, bench.now) else {
            panic!("not delivered")
        };
        assert_eq!((flight.lane, flight.position), (Lane::Alert, Position(3)));
        assert_eq!(bench.forwarder.handle(&acknowledged, bench.now), None);
    }

    #[test]
    fn a_refused_record_comes_again_later_and_does_not_block_the_others() {
        let mut bench = Bench::new(&[(Lane::Alert, 1), (Lane::Alert, 2)]);
        let (token, _) = bench.next().unwrap();
        let reason = Refusal::Broker { code: 0x97, text: "quota exceeded".to_owned() };
        let refused = Notice::Refused { token, reason };
        let fate = bench.forwarder.handle(&refused, bench.now);
        assert!(
            matches!(fate, Some(Fate::Deferred { pause, .. }) if pause == DEFER_FIRST),
            "{fate:?}"
        );
        assert_eq!(bench.ids(), ["alert-2"]);
        bench.now = bench.forwarder.next_deferred().unwrap();
        assert_eq!(bench.ids(), ["alert-1"]);
    }

    #[test]
    fn refusals_without_end_keep_memory_bounded_and_alerts_moving() {
        let backlog: Vec<_> = (1..=200).map(|n| (Lane::Telemetry, n)).collect();
        let mut bench = Bench::new(&backlog);
        while let Some((token, _)) = bench.next() {
            let reason = Refusal::Broker { code: 0x87, text: "not authorized".to_owned() };
            bench.forwarder.handle(&Notice::Refused { token, reason }, bench.now);
        }
        assert_eq!(bench.forwarder.deferred.len(), MAX_DEFERRED);
        bench.stored.push(record(Lane::Alert, 1));
        bench.load();
        assert_eq!(bench.next().unwrap().1, "alert-1");
    }
}
