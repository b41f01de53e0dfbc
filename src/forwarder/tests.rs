//! The forwarder against an outbox in memory, in virtual time.

use super::*;
use crate::event::{Data, Event};
use crate::outbox::Record;
use crate::uplink::{Refusal, Version};

pub(super) const WALL: WallTime =
    WallTime { unix_ms: 1_700_000_000_000, state: ClockState::Synced };
const S: fn(u64) -> Duration = Duration::from_secs;

fn record(lane: Lane, position: u64) -> Structured {
    record_with(lane, position, &[], Data::Absent)
}

fn record_with(lane: Lane, position: u64, more: &[(&str, &str)], data: Data) -> Structured {
    let id = format!("{lane}-{position}");
    let attributes = [("specversion", "1.0"), ("id", &id), ("source", "/s"), ("type", "t")];
    let attributes = attributes.iter().chain(more);
    let attributes = attributes.map(|(name, value)| ((*name).into(), (*value).into())).collect();
    let event = Event::new(attributes, data).unwrap();
    let position = Position(position);
    Structured::from(&Record { lane, position, sequence: position.0, accepted_ms: 0, event })
}

/// An outbox in memory that answers what is wanted.
pub(super) struct Bench {
    pub(super) forwarder: Forwarder,
    pub(super) stored: Vec<Structured>,
    pub(super) now: Instant,
    /// Pages take their time: what was read comes with [`Bench::answer`] only.
    pub(super) slow: bool,
    reading: Option<(Wanted, Vec<Structured>)>,
}

impl Bench {
    fn new(stored: &[(Lane, u64)]) -> Self {
        Self::with(Rules::default(), stored)
    }

    #[allow(clippy::disallowed_methods, reason = "an Instant has no other beginning")]
    pub(super) fn with(rules: Rules, stored: &[(Lane, u64)]) -> Self {
        let stored = stored.iter().map(|&(lane, position)| record(lane, position)).collect();
        let forwarder = Forwarder::new("d", rules);
        let mut bench = Self { forwarder, stored, now: Instant::now(), slow: false, reading: None };
        bench.load();
        bench.connect(1000);
        bench
    }

    pub(super) fn load(&mut self) {
        let of = |lane| self.stored.iter().filter(move |r| r.lane == lane);
        let tails = Lane::ALL.map(|lane| of(lane).map(|r| r.position).max());
        self.forwarder.reach(tails);
        self.read();
        while !self.slow && self.answer() {}
    }

    /// Reads the page that is wanted as it is now, unless one is being read.
    fn read(&mut self) {
        if self.reading.is_some() {
            return;
        }
        self.reading = self.forwarder.wanted().map(|wanted| {
            let behind = |r: &&Structured| wanted.after.is_none_or(|after| r.position > after);
            let page = self.stored.iter().filter(|r| r.lane == wanted.lane).filter(behind);
            (wanted, page.take(wanted.limit.records.min(2)).cloned().collect())
        });
    }

    /// The page that is being read is there, and the next is read; false if none was.
    pub(super) fn answer(&mut self) -> bool {
        let Some((wanted, page)) = self.reading.take() else { return false };
        self.forwarder.loaded(wanted, page);
        self.read();
        true
    }

    pub(super) fn connect(&mut self, window: u16) {
        let protocol = Version::V5;
        let notice = Notice::Connected { protocol, session_present: true, window };
        assert_eq!(self.tell(&notice), None);
    }

    pub(super) fn tell(&mut self, notice: &Notice) -> Option<Fate> {
        self.forwarder.handle(notice, self.now)
    }

    pub(super) fn append(&mut self, lane: Lane, position: u64) {
        self.stored.push(record(lane, position));
        self.load();
    }

    fn acknowledge(&mut self, token: u64) -> Option<Fate> {
        self.tell(&Notice::Acknowledged { token, no_subscribers: false })
    }

    /// A receipt came; returns the positions that are to be removed, and removes them.
    fn receipt(&mut self, lane: Lane, source: Option<&str>, ids: &[&str]) -> Vec<u64> {
        let ids: Vec<_> = ids.iter().map(|id| (*id).to_owned()).collect();
        let (settled, _) = self.forwarder.receipt(lane, source, &ids);
        self.stored
            .retain(|r| !settled.iter().any(|s| (s.lane, s.position) == (r.lane, r.position)));
        self.load();
        settled.iter().map(|s| s.position.0).collect()
    }

    pub(super) fn pass(&mut self, time: Duration) -> Option<Overdue> {
        self.now += time;
        let overdue = self.forwarder.overdue(self.now);
        self.load();
        overdue
    }

    fn next(&mut self) -> Option<(u64, String)> {
        let outgoing = self.forwarder.next(self.now, WALL)?;
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
    assert_eq!(bench.ids(), ["alert-4", "status-7", "telemetry-1", "telemetry-2", "telemetry-3"]);
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
    assert!(matches!(bench.forwarder.handle(&published, bench.now), Some(Fate::Published { .. })));
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
    assert!(matches!(fate, Some(Fate::Deferred { pause, .. }) if pause == DEFER_FIRST), "{fate:?}");
    assert_eq!(bench.ids(), ["alert-2"]);
    bench.now = bench.forwarder.next_due(bench.now).unwrap();
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

fn receipts() -> Rules {
    let confirm = [Confirm::Receipt, Confirm::Broker, Confirm::Broker];
    Rules { confirm, ..Rules::default() }
}

#[test]
fn a_lane_with_receipts_keeps_its_records_until_the_receipt_names_them() {
    let mut bench =
        Bench::with(receipts(), &[(Lane::Alert, 1), (Lane::Alert, 2), (Lane::Status, 3)]);
    for _ in 0..2 {
        let (token, id) = bench.next().unwrap();
        let unconfirmed =
            Fate::Unconfirmed { id: id.into(), lane: Lane::Alert, no_subscribers: false };
        assert_eq!(bench.acknowledge(token), Some(unconfirmed));
    }
    let (token, _) = bench.next().unwrap();
    assert!(
        matches!(bench.acknowledge(token), Some(Fate::Delivered(_))),
        "status asks for no more"
    );
    assert_eq!(bench.forwarder.unconfirmed(), 2);
    assert_eq!(bench.receipt(Lane::Status, None, &["alert-1"]), [0u64; 0], "of another lane");
    assert_eq!(bench.receipt(Lane::Alert, Some("/other"), &["alert-1"]), [0u64; 0]);
    assert_eq!(bench.receipt(Lane::Alert, None, &["alert-2", "never heard of"]), [2]);
    assert_eq!(bench.receipt(Lane::Alert, Some("/s"), &["alert-1", "alert-2"]), [1]);
    assert_eq!(bench.forwarder.unconfirmed(), 0);
    assert_eq!(bench.pass(S(3600)), None);
}

#[test]
fn without_a_receipt_a_record_is_published_again_ever_more_rarely() {
    let mut bench = Bench::with(receipts(), &[(Lane::Alert, 1)]);
    for wait in [60, 120, 240, 480, 600, 600] {
        let (token, id) = bench.next().expect("to publish");
        assert_eq!(id, "alert-1", "the same event");
        bench.acknowledge(token);
        assert_eq!(bench.pass(S(wait - 1)), None);
        assert!(bench.next().is_none());
        let overdue = Overdue { count: 1, lane: Lane::Alert, id: id.into() };
        assert_eq!(bench.pass(S(1)), Some(overdue));
    }
    let (token, _) = bench.next().unwrap();
    let again = bench.tell(&Notice::Published { token, resent: false });
    assert!(matches!(again, Some(Fate::Published { again: true, .. })), "{again:?}");
}

#[test]
fn a_receipt_that_overtakes_the_puback_waits_for_it() {
    let mut bench = Bench::with(receipts(), &[(Lane::Alert, 1)]);
    let (token, _) = bench.next().unwrap();
    assert_eq!(bench.receipt(Lane::Alert, None, &["alert-1"]), [0u64; 0]);
    assert!(matches!(bench.acknowledge(token), Some(Fate::Delivered(_))));
}

#[test]
fn a_receipt_for_what_is_about_to_be_published_again_removes_it() {
    let mut bench = Bench::with(receipts(), &[(Lane::Alert, 1), (Lane::Alert, 2)]);
    while let Some((token, _)) = bench.next() {
        bench.acknowledge(token);
    }
    assert_eq!(bench.pass(S(60)).unwrap().count, 2);
    // The first is read already, the second is still to be read.
    assert_eq!(bench.receipt(Lane::Alert, None, &["alert-1", "alert-2"]), [1, 2]);
    assert!(bench.next().is_none());
}

#[test]
fn after_a_restart_what_was_unconfirmed_is_published_again() {
    let mut bench = Bench::with(receipts(), &[(Lane::Alert, 1)]);
    let (token, _) = bench.next().unwrap();
    bench.acknowledge(token);
    let mut restarted = Bench::with(receipts(), &[(Lane::Alert, 1)]);
    assert_eq!(restarted.next().unwrap().1, "alert-1");
}

#[test]
fn a_reconnect_gives_receipts_that_wait_at_the_broker_time_to_come() {
    let mut bench = Bench::with(receipts(), &[(Lane::Alert, 1)]);
    let (token, _) = bench.next().unwrap();
    bench.acknowledge(token);
    bench.now += S(3600);
    bench.connect(32);
    assert_eq!(bench.pass(S(4)), None);
    assert!(bench.pass(S(1)).is_some());
}

#[test]
fn no_subscribers_is_no_delivery_for_a_lane_that_asks_for_receipts() {
    let mut bench = Bench::with(receipts(), &[(Lane::Alert, 1), (Lane::Status, 2)]);
    let nobody = |token| Notice::Acknowledged { token, no_subscribers: true };
    let (token, id) = bench.next().unwrap();
    let fate = bench.tell(&nobody(token));
    assert_eq!(
        fate,
        Some(Fate::Unconfirmed { id: id.into(), lane: Lane::Alert, no_subscribers: true })
    );
    let (token, _) = bench.next().unwrap();
    assert!(matches!(bench.tell(&nobody(token)), Some(Fate::Delivered(_))));
}

#[test]
fn alerts_without_any_receipt_keep_flowing_and_are_found_again_when_receipts_come() {
    let many = AWAITING_MAX as u64 + 3;
    let stored: Vec<_> = (1..=many).map(|n| (Lane::Alert, n)).collect();
    let mut bench = Bench::with(receipts(), &[]);
    bench.stored = stored.iter().map(|&(lane, position)| record(lane, position)).collect();
    bench.load();
    let mut ids = Vec::new();
    while let Some(outgoing) = bench.forwarder.next(bench.now, WALL) {
        bench.acknowledge(outgoing.token);
        ids.push(json::parse(&outgoing.payload).unwrap().id().to_owned());
        // Reads as the agent does: a page at a time.
        while let Some(wanted) = bench.forwarder.wanted() {
            let from = wanted.after.map_or(0, |after| after.0 as usize);
            let to = (from + 100).min(bench.stored.len());
            bench.forwarder.loaded(wanted, bench.stored[from..to].to_vec());
        }
    }
    assert_eq!(ids.len(), many as usize, "an alert is never held back");
    assert_eq!(bench.forwarder.unconfirmed(), AWAITING_MAX);
    let named: Vec<_> = ids[..AWAITING_MAX].iter().map(String::as_str).collect();
    assert_eq!(bench.receipt(Lane::Alert, None, &named).len(), AWAITING_MAX);
    assert_eq!(bench.ids(), ids[AWAITING_MAX..], "those that were passed over");
}

#[test]
fn what_salvage_brings_back_goes_out_at_once_and_nothing_under_way_goes_twice() {
    let mut bench = Bench::with(receipts(), &[2, 4, 5, 6].map(|n| (Lane::Alert, n)));
    // One whose receipt is overdue, one that was refused, one that waits for its receipt, one in flight.
    let (token, _) = bench.next().unwrap();
    bench.acknowledge(token);
    assert!(bench.pass(S(60)).is_some());
    let (token, _) = bench.next().unwrap();
    let reason = Refusal::Broker { code: 0x97, text: String::new() };
    bench.tell(&Notice::Refused { token, reason });
    let (token, _) = bench.next().unwrap();
    bench.acknowledge(token);
    assert_eq!(bench.next().unwrap().1, "alert-6");
    bench.stored.splice(0..0, [record(Lane::Alert, 1)]);
    bench.stored.insert(2, record(Lane::Alert, 3));
    bench.append(Lane::Alert, 7);
    // The control: what stands before the cursor is not looked for.
    assert_eq!(bench.ids(), ["alert-7", "alert-2"]);
    bench.forwarder.rewind();
    bench.load();
    assert_eq!(bench.ids(), ["alert-1", "alert-3"]);
}

#[test]
fn a_page_from_before_the_outbox_was_opened_anew_is_not_taken() {
    let mut bench = Bench::new(&[]);
    bench.slow = true;
    bench.append(Lane::Alert, 2);
    bench.stored.splice(0..0, [record(Lane::Alert, 1)]);
    bench.forwarder.rewind();
    while bench.answer() {}
    assert_eq!(bench.ids(), ["alert-1", "alert-2"]);
}

#[test]
fn a_record_read_again_for_its_receipt_is_not_read_twice_after_a_rewind() {
    let mut bench = Bench::with(receipts(), &[(Lane::Alert, 1)]);
    let (token, _) = bench.next().unwrap();
    bench.acknowledge(token);
    assert!(bench.pass(S(60)).is_some());
    bench.forwarder.rewind();
    bench.load();
    assert_eq!(bench.ids(), ["alert-1"]);
}

#[test]
fn a_refusal_for_good_is_the_callers_after_three_and_a_passing_one_never_is() {
    let refused = |token, code| {
        let reason = Refusal::Broker { code, text: String::new() };
        Notice::Refused { token, reason }
    };
    for (code, last) in
        [(0x87, true), (0x90, true), (0x99, true), (0x97, false), (0x80, false), (0x83, false)]
    {
        let mut bench = Bench::new(&[(Lane::Alert, 1)]);
        let mut fates = Vec::new();
        for _ in 0..6 {
            let (token, _) = bench.next().expect("offered again");
            match bench.tell(&refused(token, code)).unwrap() {
                Fate::Poisoned { flight, .. } => {
                    fates.push(true);
                    bench.forwarder.defer(flight, bench.now);
                }
                Fate::Deferred { .. } => fates.push(false),
                other => panic!("{other:?}"),
            }
            bench.now = bench.forwarder.next_due(bench.now).expect("deferred");
        }
        assert_eq!(fates, [false, false, last, last, last, last], "0x{code:02x}");
    }
    assert!(Refusal::TooLarge { bytes: 2, limit: 1 }.is_final());
}

/// How many silences poison the record at position 1 of the lane, of at most 50; between two of them, others
/// are acknowledged or nothing is.
fn silences_until_poisoned(lane: Lane, others_get_through: bool) -> Option<u32> {
    let mut bench = Bench::new(&[(lane, 1)]);
    let name = format!("{lane}-1");
    for silence in 1..=50 {
        if others_get_through {
            bench.append(Lane::Status, 100 + u64::from(silence));
        }
        let mut token = None;
        while let Some((next, id)) = bench.next() {
            if id == name {
                token = Some(next);
            } else {
                bench.acknowledge(next);
            }
        }
        let reason = Refusal::Unanswered { connections: 3 };
        let token = token.expect("offered again");
        match bench.tell(&Notice::Refused { token, reason }) {
            Some(Fate::Poisoned { .. }) => return Some(silence),
            Some(Fate::Deferred { .. }) => {}
            other => panic!("{other:?}"),
        }
        bench.now = bench.forwarder.next_due(bench.now).expect("deferred");
    }
    None
}

#[test]
fn silence_poisons_a_reading_only_while_others_get_through_and_never_an_alert() {
    // The first one is where counting begins.
    assert_eq!(silences_until_poisoned(Lane::Telemetry, true), Some(SILENT_REFUSALS + 1));
    assert_eq!(silences_until_poisoned(Lane::Telemetry, false), None, "a bad network");
    assert_eq!(silences_until_poisoned(Lane::Alert, true), None);
}

#[test]
fn slots_of_the_window_are_left_to_alerts() {
    let backlog: Vec<_> = (1..=60).map(|n| (Lane::Telemetry, n)).collect();
    for (window, lower) in [(60, 52), (40, 32), (32, 24), (8, 6), (4, 3), (2, 1), (1, 1)] {
        let mut bench = Bench::new(&backlog);
        bench.connect(window);
        assert_eq!(bench.ids().len(), lower, "window {window}");
        bench.stored.push(record(Lane::Alert, 1));
        bench.load();
        assert_eq!(bench.next().unwrap().1, "alert-1");
    }
}

#[test]
fn a_slow_link_holds_no_more_than_eight_kib_of_lower_lanes() {
    let mut bench = Bench::new(&[]);
    for n in 1..=100 {
        let data = Data::Json(format!("\"{}\"", "x".repeat(900)).into_bytes());
        bench.stored.push(record_with(Lane::Telemetry, n, &[], data));
    }
    bench.load();
    let first: Vec<_> = std::iter::from_fn(|| bench.next()).collect();
    assert!((8..=9).contains(&first.len()), "{}", first.len());
    for (token, _) in &first {
        bench.tell(&Notice::Published { token: *token, resent: false });
    }
    // Answers that come slowly allow no more, prompt ones do.
    let mut handed_out = first.len();
    for (token, _) in &first {
        bench.now += Duration::from_millis(120);
        bench.acknowledge(*token);
        handed_out += bench.ids().len();
        assert!(bench.forwarder.in_flight() <= 12);
    }
    assert!(handed_out > first.len());
}

#[test]
fn binary_mode_has_both_forms_and_the_expiry_of_the_event() {
    let rules = Rules { mode: Mode::Binary, ..Rules::default() };
    let mut bench = Bench::with(rules, &[]);
    for (position, at) in (1..).zip(["2023-11-14T22:14:20Z", "2020-01-01T00:00:00Z"]) {
        let data = Data::Json(b"7".to_vec());
        let more = [("expirytime", at)];
        bench.stored.push(record_with(Lane::Telemetry, position, &more, data));
    }
    bench.load();
    let outgoing = bench.forwarder.next(bench.now, WALL).unwrap();
    assert_eq!(outgoing.expiry_s, Some(60));
    let binary = outgoing.binary.expect("binary mode");
    assert!(binary.user_properties.contains(&("id".to_owned(), "telemetry-1".to_owned())));
    assert!(json::parse(&outgoing.payload).is_ok(), "and structured, for 3.1.1");
    let unsynced = WallTime { state: ClockState::Unsynced, ..WALL };
    assert_eq!(expiry_s("2023-11-14T22:14:20Z", unsynced), None);
    assert_eq!(bench.forwarder.next(bench.now, WALL).unwrap().expiry_s, Some(1), "past");
}

#[test]
fn the_next_page_is_read_while_records_of_the_last_are_left() {
    let mut bench = Bench::new(&[]);
    let stored: Vec<_> = (1..=900).map(|n| record(Lane::Telemetry, n)).collect();
    bench.forwarder.reach([None, None, Some(Position(900))]);
    let read = |bench: &mut Bench| {
        let wanted = bench.forwarder.wanted()?;
        let from = wanted.after.map_or(0, |after| after.0 as usize);
        let page = stored[from..].iter().take(wanted.limit.records).cloned().collect();
        bench.forwarder.loaded(wanted, page);
        Some(from)
    };
    for page in 0..PAGES {
        assert_eq!(read(&mut bench), Some(page * PAGE.records));
    }
    let handed_out = |bench: &mut Bench, count: usize| {
        for _ in 0..count {
            let token = bench.forwarder.next(bench.now, WALL).unwrap().token;
            bench.acknowledge(token);
        }
    };
    assert_eq!(read(&mut bench), None, "all pages are there");
    handed_out(&mut bench, PAGE.records - 1);
    assert_eq!(read(&mut bench), None, "still");
    handed_out(&mut bench, 1);
    assert_eq!(read(&mut bench), Some(PAGES * PAGE.records));
}

#[test]
fn what_is_stored_while_a_page_is_read_is_not_passed_over() {
    let mut bench = Bench::new(&[]);
    bench.slow = true;
    bench.append(Lane::Status, 1);
    // It is gone before it could be read, and another comes meanwhile.
    bench.reading.as_mut().unwrap().1.clear();
    bench.stored.clear();
    bench.append(Lane::Status, 2);
    while bench.answer() {}
    let outgoing = bench.forwarder.next(bench.now, WALL).unwrap();
    assert!(String::from_utf8_lossy(&outgoing.payload).contains("status-2"));
}
