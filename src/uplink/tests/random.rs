//! Random schedules: deliveries cut at any byte, PUBACKs late, lost, doubled and out of order,
//! connections cut, sessions lost, time passing. The whole log is checked while it is written.
//!
//! proptest prints the shortest failing schedule and keeps its seed in `proptest-regressions/`.
//! The controls at the end spoil the run on purpose: each must be caught.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use bytes::BytesMut;
use proptest::prelude::*;

use super::peer::{self, Grants, Reader, Seen};
use super::{epoch, outgoing, s, settings};
use crate::uplink::{Notice, Protocol, Refusal, Session, Version};

#[derive(Debug, Clone)]
enum Step {
    Publish { count: usize, filler: usize },
    ToBroker(usize),
    ToDevice(usize),
    Ack { which: usize, times: usize, code: u8 },
    LateAck(usize),
    Incoming { qos: u8 },
    Cut { keep_session: bool },
    Advance(u64),
}

#[derive(Debug, Clone)]
struct Shape {
    version: Version,
    window: u16,
    receive_max: Option<u16>,
}

/// What to do wrong, for the controls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sabotage {
    None,
    ClearDup,
    ForgeAck,
    SwallowPublish,
}

struct World {
    shape: Shape,
    sabotage: Sabotage,
    now: Instant,
    session: Session,
    /// Bytes under way.
    up: BytesMut,
    down: BytesMut,
    /// Sees everything that was written on this connection, even what never arrives.
    tap: Reader,
    broker: Reader,
    broker_has_session: bool,
    next_token: u64,
    log: Log,
}

/// What the oracle knows.
#[derive(Default)]
struct Log {
    handed_in: BTreeSet<u64>,
    settled: BTreeSet<u64>,
    given_back: BTreeSet<u64>,
    received: BTreeMap<u64, usize>,
    /// Packet id under which the present session sent each token that is still in flight.
    ids: BTreeMap<u64, u16>,
    /// Tokens that an earlier connection of the present session sent.
    due_with_dup: BTreeSet<u64>,
    sent_here: Vec<u64>,
    births_here: usize,
    birth_id: u16,
    /// Publishes that the broker holds unacknowledged: packet id and token (none for presence).
    unacknowledged: Vec<(u16, Option<u64>)>,
    /// Tokens for which the broker wrote a PUBACK on this connection.
    acks_here: BTreeSet<u64>,
    acked_ids: Vec<u16>,
    reconnects: usize,
}

impl World {
    fn new(shape: Shape, sabotage: Sabotage) -> Self {
        let mut settings = settings();
        settings.window = shape.window;
        settings.protocol = match shape.version {
            Version::V5 => Protocol::V5,
            Version::V311 => Protocol::V311,
        };
        let mut world = Self {
            session: Session::new(settings).expect("valid settings"),
            shape,
            sabotage,
            now: epoch(),
            up: BytesMut::new(),
            down: BytesMut::new(),
            tap: Reader::default(),
            broker: Reader::default(),
            broker_has_session: false,
            next_token: 1,
            log: Log::default(),
        };
        world.connect();
        world
    }

    fn connect(&mut self) {
        self.tap = Reader::default();
        self.broker = Reader::default();
        self.up.clear();
        self.down.clear();
        self.log.sent_here.clear();
        self.log.births_here = 0;
        self.log.unacknowledged.clear();
        self.log.acks_here.clear();
        self.session.handle_connected(self.now);
        self.pump();
    }

    fn reconnect(&mut self, keep_session: bool) {
        self.session.handle_disconnected(self.now, "cut");
        self.drain_notices();
        self.broker_has_session &= keep_session;
        self.log.reconnects += 1;
        self.connect();
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Publish { count, filler } => {
                for _ in 0..(*count).min(self.session.free_slots()) {
                    let token = self.next_token;
                    self.next_token += 1;
                    self.session.publish(outgoing(token, *filler)).expect("a free slot");
                    self.log.handed_in.insert(token);
                }
            }
            Step::ToBroker(bytes) => self.carry_up(*bytes),
            Step::ToDevice(bytes) => {
                let bytes = self.down.split_to((*bytes).min(self.down.len()));
                self.session.handle_bytes(self.now, &bytes);
            }
            // `times` 0 is a PUBACK that the broker lost.
            Step::Ack { which, times, code } => self.ack(*which, *times, *code),
            Step::LateAck(which) => {
                let ids = &self.log.acked_ids;
                let open = |id| self.log.unacknowledged.iter().any(|(open, _)| *open == id);
                if let Some(id) = ids.get(which % ids.len().max(1)).copied().filter(|id| !open(*id))
                    && !self.log.ids.values().any(|used| *used == id)
                    && self.log.birth_id != id
                {
                    self.down.extend_from_slice(&peer::puback(self.shape.version, id, 0));
                }
            }
            Step::Incoming { qos } => {
                // Only a broker that has said CONNACK may publish.
                if self.log.births_here > 0 {
                    self.down.extend_from_slice(&peer::publish(self.shape.version, *qos, 77));
                }
            }
            Step::Cut { keep_session } => self.reconnect(*keep_session),
            Step::Advance(seconds) => {
                self.now += s(*seconds);
                self.session.handle_timeout(self.now);
            }
        }
        self.pump();
        if self.session.ended() {
            self.reconnect(true);
        }
        self.check();
    }

    /// Takes what the session says, and checks it.
    fn pump(&mut self) {
        let mut out = BytesMut::new();
        loop {
            self.drain_notices();
            out.clear();
            self.session.poll_transmit(self.now, &mut out);
            if out.is_empty() {
                break;
            }
            for mut seen in self.tap.read(&out) {
                if let Seen::Publish(p) = &mut seen {
                    p.dup &= self.sabotage != Sabotage::ClearDup;
                }
                self.log.written(&self.shape, seen);
            }
            self.up.extend_from_slice(&out);
        }
    }

    fn drain_notices(&mut self) {
        while let Some(notice) = self.session.poll_notice() {
            match notice {
                Notice::Connected { session_present, protocol, .. } => {
                    assert_eq!(protocol, self.shape.version);
                    self.log.connected(session_present);
                }
                Notice::Acknowledged { token, .. } => {
                    assert!(self.log.acks_here.contains(&token), "{token} acknowledged by nobody");
                    self.log.settle(token);
                }
                Notice::Refused { token, reason: Refusal::Unanswered { .. } } => {
                    // Given back: the caller publishes it again, here it is out of the run.
                    assert!(self.log.reconnects >= 4, "{token} given back too soon");
                    self.log.given_back.insert(token);
                    self.log.settle(token);
                }
                Notice::Refused { token, .. } => {
                    assert!(self.log.acks_here.contains(&token), "{token} refused by nobody");
                    self.log.settle(token);
                }
                Notice::Published { token, .. } => assert!(self.log.handed_in.contains(&token)),
                Notice::Closed { .. }
                | Notice::PresenceRefused { .. }
                | Notice::Contested { .. } => {}
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    fn carry_up(&mut self, bytes: usize) {
        let bytes = self.up.split_to(bytes.min(self.up.len()));
        for seen in self.broker.read(&bytes) {
            match seen {
                Seen::Connect(connect) => {
                    assert!(!connect.clean);
                    let grants =
                        Grants { receive_max: self.shape.receive_max, ..Grants::default() };
                    let version = self.broker.version();
                    let connack = peer::connack(version, self.broker_has_session, grants);
                    self.down.extend_from_slice(&connack);
                    self.broker_has_session = true;
                }
                Seen::Publish(p) => {
                    let token = p.token();
                    if self.sabotage == Sabotage::SwallowPublish && token == Some(2) {
                        self.log.acks_here.insert(2);
                        let ack = peer::puback(self.shape.version, p.packet_id, 0);
                        self.down.extend_from_slice(&ack);
                        continue;
                    }
                    if let Some(token) = token {
                        *self.log.received.entry(token).or_default() += 1;
                    }
                    self.log.unacknowledged.push((p.packet_id, token));
                    let limit = usize::from(self.shape.receive_max.unwrap_or(u16::MAX));
                    assert!(self.log.unacknowledged.len() <= limit, "over Receive Maximum");
                }
                Seen::PingReq => self.down.extend_from_slice(&[0xd0, 0]),
                Seen::PubAck(id) => assert_eq!(id, 77),
                Seen::Subscribe(..) => panic!("nothing is to be subscribed to"),
                Seen::Disconnect(_) => {}
            }
        }
    }

    fn ack(&mut self, which: usize, times: usize, code: u8) {
        if self.sabotage == Sabotage::ForgeAck
            && let Some((_, id)) = self.log.ids.last_key_value()
        {
            self.down.extend_from_slice(&peer::puback(self.shape.version, *id, 0));
        }
        if self.log.unacknowledged.is_empty() {
            return;
        }
        let at = which % self.log.unacknowledged.len();
        let (id, token) = self.log.unacknowledged.remove(at);
        self.log.acks_here.extend(token);
        self.log.acked_ids.push(id);
        for _ in 0..times {
            self.down.extend_from_slice(&peer::puback(self.shape.version, id, code));
        }
    }

    fn check(&self) {
        let open = self.log.handed_in.len() - self.log.settled.len();
        assert_eq!(self.session.in_flight(), open, "handed in = settled + in flight");
        assert!(open <= usize::from(self.shape.window), "window overrun");
    }

    /// From here on everything works: everything must arrive. A PUBACK that got lost without a cut
    /// (TCP does not do that, a broker might) is made good by the next connection.
    fn heal(&mut self) {
        self.reconnect(true);
        for _ in 0..10_000 {
            self.step(&Step::ToBroker(usize::MAX));
            self.step(&Step::Ack { which: 0, times: 1, code: 0 });
            self.step(&Step::ToDevice(usize::MAX));
            if self.log.handed_in.len() == self.log.settled.len() {
                break;
            }
        }
        assert_eq!(self.log.handed_in, self.log.settled, "all is delivered in the end");
        let (log, window) = (&self.log, usize::from(self.shape.window));
        for token in log.settled.difference(&log.given_back) {
            assert!(log.received.contains_key(token), "{token} settled but never received");
        }
        let copies: usize = log.received.values().sum();
        let duplicates = copies - log.received.len();
        assert!(duplicates <= window * log.reconnects, "more duplicates than a window a reconnect");
    }
}

impl Log {
    fn connected(&mut self, session_present: bool) {
        if !session_present {
            self.ids.clear();
        }
        self.due_with_dup = self.ids.keys().copied().collect();
    }

    fn settle(&mut self, token: u64) {
        assert!(self.settled.insert(token), "{token} settled twice");
        self.ids.remove(&token);
    }

    /// The session wrote this, whether it arrives or not.
    fn written(&mut self, shape: &Shape, seen: Seen) {
        let Seen::Publish(p) = seen else { return };
        assert_ne!(p.packet_id, 0);
        let Some(token) = p.token() else {
            assert_eq!(&p.payload[..], b"online");
            self.births_here += 1;
            self.birth_id = p.packet_id;
            assert_eq!(self.births_here, 1, "one birth a connection");
            assert!(!self.ids.values().any(|id| *id == p.packet_id), "birth shares an id");
            return;
        };
        assert!(self.sent_here.last().is_none_or(|last| *last < token), "{token} out of order");
        self.sent_here.push(token);
        assert_eq!(p.dup, self.due_with_dup.contains(&token), "DUP of {token}");
        match self.ids.insert(token, p.packet_id) {
            Some(before) => assert_eq!(before, p.packet_id, "{token} changed its id"),
            None => {
                let same = self.ids.values().filter(|id| **id == p.packet_id).count();
                assert_eq!(same, 1, "packet id {} twice in flight", p.packet_id);
            }
        }
        let resent = self.sent_here.iter().filter(|t| self.due_with_dup.contains(t)).count();
        assert!(resent <= usize::from(shape.window));
    }
}

fn run(shape: Shape, steps: &[Step], sabotage: Sabotage) {
    let mut world = World::new(shape, sabotage);
    for step in steps {
        world.step(step);
    }
    world.heal();
}

fn any_step() -> impl Strategy<Value = Step> {
    let few = prop_oneof![3 => 1usize..40, 2 => 40usize..2000, 2 => Just(usize::MAX)];
    let code = prop_oneof![6 => Just(0u8), 1 => Just(0x10), 1 => Just(0x87), 1 => Just(0x97)];
    prop_oneof![
        5 => (1usize..6, 0usize..600).prop_map(|(count, filler)| Step::Publish { count, filler }),
        6 => few.clone().prop_map(Step::ToBroker),
        6 => few.prop_map(Step::ToDevice),
        5 => (any::<usize>(), 0usize..3, code).prop_map(|(which, times, code)| Step::Ack { which, times, code }),
        1 => any::<usize>().prop_map(Step::LateAck),
        1 => (0u8..3).prop_map(|qos| Step::Incoming { qos }),
        2 => any::<bool>().prop_map(|keep_session| Step::Cut { keep_session }),
        1 => (1u64..25).prop_map(Step::Advance),
    ]
}

fn any_shape() -> impl Strategy<Value = Shape> {
    let version = prop_oneof![Just(Version::V5), Just(Version::V311)];
    (version, 1u16..9, proptest::option::of(1u16..9)).prop_map(|(version, window, receive_max)| {
        let receive_max = receive_max.filter(|_| version == Version::V5);
        Shape { version, window, receive_max }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn nothing_handed_in_is_lost_or_acknowledged_by_nobody(
        shape in any_shape(),
        steps in proptest::collection::vec(any_step(), 1..160),
    ) {
        run(shape, &steps, Sabotage::None);
    }
}

/// A schedule that resends over a kept session and acknowledges some.
fn busy_steps() -> Vec<Step> {
    let all = usize::MAX;
    let ack = Step::Ack { which: 0, times: 1, code: 0 };
    vec![
        Step::ToBroker(all),
        Step::ToDevice(all),
        Step::Publish { count: 4, filler: 10 },
        Step::Cut { keep_session: true },
        Step::ToBroker(all),
        Step::ToDevice(all),
        Step::ToBroker(40),
        ack,
        Step::ToDevice(all),
    ]
}

fn busy_shape() -> Shape {
    Shape { version: Version::V311, window: 8, receive_max: None }
}

#[test]
fn the_schedule_of_the_controls_passes_unspoilt() {
    run(busy_shape(), &busy_steps(), Sabotage::None);
}

#[test]
#[should_panic(expected = "DUP of 1")]
fn control_a_resend_without_dup_is_caught() {
    run(busy_shape(), &busy_steps(), Sabotage::ClearDup);
}

#[test]
#[should_panic(expected = "4 acknowledged by nobody")]
fn control_an_acknowledgement_that_no_broker_gave_is_caught() {
    run(busy_shape(), &busy_steps(), Sabotage::ForgeAck);
}

#[test]
#[should_panic(expected = "2 settled but never received")]
fn control_a_publish_swallowed_by_the_broker_is_caught() {
    run(busy_shape(), &busy_steps(), Sabotage::SwallowPublish);
}
