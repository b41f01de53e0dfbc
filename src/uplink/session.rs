//! The session itself: one connection after another, one window through all of them.
//!
//! ```text
//!          handle_connected          CONNACK                 close
//!   Idle ──────────────────▶ Connecting ─────▶ Active ──────────────▶ Draining
//!    ▲                           │               │                       │
//!    │ handle_disconnected       ▼ refusal,      ▼ silence, broken       ▼ all acknowledged
//!    └───────────────────────── Ended ◀──────────┴── protocol ───────────┘ or deadline
//! ```

mod incoming;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::{BufMut, BytesMut};

use super::codec::{self, Header};
use super::inflight::{InFlight, PacketIds};
use super::negotiate::Negotiation;
use super::presence::{Kind, PresenceState};
use super::receive::{DELIVERIES_MAX, Deliveries};
use super::{
    CloseReason, Counters, Notice, Outgoing, PublishError, Refusal, Settings, SettingsError,
};

/// No further publish is encoded while this many bytes wait to be written. It bounds what stands
/// before an alert that comes next: an alert handed in is behind these bytes and one packet.
pub const SEND_MARK: usize = 8 * 1024;

/// After this many connections without a PUBACK, publishes go out one at a time until one is
/// answered. mosquitto 2.0.11 closes the connection after a negative PUBACK; when more publishes
/// were under way, its reset destroys that PUBACK before it is read, every time anew. It resets
/// MQTT 3.1.1 connections for a packet over its limit, with no PUBACK at all.
const PROBE_AFTER: u32 = 2;
/// A publish that broke this many connections, alone, is given back.
const PROBES: u8 = 3;

/// A publish that later ones overtook is given up on this connection after so many keepalives
/// without a PUBACK, and SUBSCRIBE without SUBACK too: the answer is lost, and only another connection
/// brings it back.
const OVERTAKEN_KEEPALIVES: u32 = 2;
/// The same for a publish while the broker acknowledges nothing at all: it may be busy, and another
/// connection would only add duplicates.
const UNANSWERED_KEEPALIVES: u32 = 10;
/// A publish that was overtaken on this many connections in a row is given back.
const IGNORED: u8 = 3;

/// Sessions that end without a word so soon after they began,
const SHORT: Duration = Duration::from_secs(30);
/// and so often in a row, look like two devices with one client id.
const SHORT_IN_A_ROW: u32 = 3;

/// Ends a connection that broke the protocol (MQTT 5 §3.14.2.1).
const PROTOCOL_ERROR: u8 = 0x82;
/// Ends a connection in order, but has the broker publish the will.
const WITH_WILL: u8 = 0x04;

/// A connection that CONNACK has opened.
#[derive(Debug)]
struct Link {
    keepalive: Duration,
    receive_maximum: usize,
    /// The largest packet that may be sent.
    limit: usize,
    began: Instant,
    last_sent: Instant,
    last_heard: Instant,
    /// SUBSCRIBE that has no SUBACK yet: its packet id, and when it was sent.
    subscribing: Option<(u16, Instant)>,
    /// A PUBACK for a publish has come.
    answered: bool,
    /// Set by `close`: until when PUBACKs are waited for.
    draining: Option<Instant>,
}

#[derive(Debug)]
enum State {
    Idle,
    Connecting { deadline: Instant },
    Active(Link),
    Ended,
}

/// An MQTT session over whatever transport the caller has; the module's documentation says how to
/// drive it. Synchronous, never blocks; memory is bounded by the window and one packet.
#[derive(Debug)]
pub struct Session {
    settings: Settings,
    negotiation: Negotiation,
    state: State,
    inflight: InFlight,
    presence: PresenceState,
    deliveries: Deliveries,
    /// SUBACK has come in the session that the broker keeps.
    subscribed: bool,
    ids: PacketIds,
    /// Small packets that go out before any publish.
    control: BytesMut,
    rx: BytesMut,
    notices: VecDeque<Notice>,
    counters: Counters,
    retry_at_once: bool,
    closed: bool,
    last_close: Option<CloseReason>,
    /// Connections in a row on which publishes were sent and none was answered.
    fruitless: u32,
    /// Sessions in a row that ended without a word soon after they began.
    short_lived: u32,
}

impl Session {
    /// A session that has not connected yet.
    ///
    /// # Errors
    /// A setting that MQTT cannot carry.
    pub fn new(settings: Settings) -> Result<Self, SettingsError> {
        settings.validate()?;
        Ok(Self {
            negotiation: Negotiation::new(settings.protocol),
            settings,
            state: State::Idle,
            inflight: InFlight::default(),
            presence: PresenceState::default(),
            deliveries: Deliveries::default(),
            subscribed: false,
            ids: PacketIds::default(),
            control: BytesMut::new(),
            rx: BytesMut::new(),
            notices: VecDeque::new(),
            counters: Counters::default(),
            retry_at_once: false,
            closed: false,
            last_close: None,
            fruitless: 0,
            short_lived: 0,
        })
    }

    /// Totals since the session was made.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Publishes handed in and not yet acknowledged.
    pub fn in_flight(&self) -> usize {
        self.inflight.len()
    }

    /// PUBACKs that are to come and that nobody is in a hurry for: none while an alert is under way.
    pub fn owed(&self) -> usize {
        if self.inflight.is_urgent() { 0 } else { self.inflight.unacknowledged() }
    }

    /// How many publishes [`Session::publish`] takes now.
    pub fn free_slots(&self) -> usize {
        match &self.state {
            State::Active(link) if link.draining.is_none() => {
                let window = usize::from(self.settings.window).min(link.receive_maximum);
                window.saturating_sub(self.inflight.len())
            }
            _ => 0,
        }
    }

    /// Whether this connection is over: write what [`Session::poll_transmit`] still gives, close
    /// the transport, call [`Session::handle_disconnected`].
    pub fn ended(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    /// Whether [`Session::close`] is done: no further connection is wanted.
    pub fn finished(&self) -> bool {
        self.closed && matches!(self.state, State::Idle | State::Ended)
    }

    /// Why the last connection ended.
    pub fn last_close(&self) -> Option<&CloseReason> {
        self.last_close.as_ref()
    }

    /// Whether [`Session::close`] was asked for.
    pub fn closing(&self) -> bool {
        self.closed
    }

    /// Whether the next attempt should not wait, because the broker has just refused the version of
    /// MQTT and another is left. Asking resets it.
    pub fn take_retry_at_once(&mut self) -> bool {
        std::mem::take(&mut self.retry_at_once)
    }

    /// There is a transport: says CONNECT.
    pub fn handle_connected(&mut self, now: Instant) {
        debug_assert!(matches!(self.state, State::Idle), "connected twice");
        self.rx.clear();
        self.control.clear();
        if self.closed {
            self.state = State::Ended;
            return;
        }
        let version = self.negotiation.begin();
        self.state = State::Connecting { deadline: now + self.settings.connack_timeout };
        if let Err(error) = codec::connect(version, &self.settings, &mut self.control) {
            // Settings were validated: only a codec that changed can get here.
            self.end(CloseReason::Protocol(format!("cannot write CONNECT: {error}")), None);
        }
    }

    /// The transport is gone, for the reason given. Also called after [`Session::ended`].
    pub fn handle_disconnected(&mut self, _now: Instant, cause: &str) {
        match self.state {
            State::Idle => return,
            State::Ended => {}
            State::Connecting { .. } => {
                self.unanswered();
                self.end(CloseReason::Lost(cause.into()), None);
            }
            State::Active(_) => self.end(CloseReason::Lost(cause.into()), None),
        }
        self.deliveries.reconnected();
        self.state = State::Idle;
        self.control.clear();
        self.rx.clear();
    }

    /// The broker refused us below MQTT, for the reason given: its TLS does not take our certificate.
    /// Says nothing about the version of MQTT.
    pub fn handle_refused(&mut self, reason: &str) {
        if !matches!(self.state, State::Idle | State::Ended) {
            self.connection_refused(reason.to_owned());
        }
    }

    /// The password of the connections to come; nothing where there is no user name.
    pub fn set_password(&mut self, password: Vec<u8>) {
        if let Some(login) = &mut self.settings.credentials {
            login.password = password;
        }
    }

    /// Bytes from the broker, cut anywhere.
    pub fn handle_bytes(&mut self, now: Instant, bytes: &[u8]) {
        if matches!(self.state, State::Idle | State::Ended) {
            return;
        }
        self.rx.extend_from_slice(bytes);
        self.decode(now);
    }

    /// Takes up what came, as far as there is room for deliveries: one read can hold hundreds of them, and
    /// whoever takes them counts on the bound.
    fn decode(&mut self, now: Instant) {
        let max_bytes = self.settings.max_packet_bytes as usize;
        while !self.ended() && self.wants_bytes() {
            match codec::decode(self.negotiation.current(), &mut self.rx, max_bytes) {
                Ok(Some(packet)) => self.handle_packet(now, packet),
                Ok(None) => return,
                Err(what) => self.protocol_error(what),
            }
        }
    }

    /// When [`Session::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.state {
            State::Idle | State::Ended => None,
            State::Connecting { deadline } => Some(*deadline),
            State::Active(link) => {
                let ping = link.last_sent + link.keepalive;
                let silent = link.last_heard + 2 * link.keepalive;
                let due = ping.min(silent).min(link.draining.unwrap_or(silent));
                Some(self.unanswered_at(link).map_or(due, |at| due.min(at)))
            }
        }
    }

    /// When a publish or SUBSCRIBE has been without its answer for too long.
    fn unanswered_at(&self, link: &Link) -> Option<Instant> {
        let publish = self.inflight.oldest().map(|(sent, overtaken)| {
            sent + link.keepalive
                * if overtaken { OVERTAKEN_KEEPALIVES } else { UNANSWERED_KEEPALIVES }
        });
        let subscribe =
            link.subscribing.map(|(_, sent)| sent + link.keepalive * OVERTAKEN_KEEPALIVES);
        publish.into_iter().chain(subscribe).min()
    }

    /// Does what is due by `now`; harmless when nothing is.
    pub fn handle_timeout(&mut self, now: Instant) {
        if let State::Active(link) = &self.state
            && link.draining.is_none()
            && self.unanswered_at(link).is_some_and(|at| now >= at)
        {
            return self.end_unanswered(now);
        }
        match &mut self.state {
            State::Idle | State::Ended => {}
            State::Connecting { deadline } if now >= *deadline => {
                self.counters.silences += 1;
                self.unanswered();
                self.end(CloseReason::ConnackTimeout(self.settings.connack_timeout), None);
            }
            State::Connecting { .. } => {}
            State::Active(link) => {
                if link.draining.is_some_and(|deadline| now >= deadline) {
                    return self.drained();
                }
                let silence = now.saturating_duration_since(link.last_heard);
                if silence >= 2 * link.keepalive {
                    self.counters.silences += 1;
                    return self.end(CloseReason::Silent(silence), None);
                }
                if now >= link.last_sent + link.keepalive {
                    // Marked as sent here, not when the bytes are taken: a writer that is stuck
                    // must not make us ask again and again.
                    link.last_sent = now;
                    self.counters.pings += 1;
                    codec::pingreq(&mut self.control);
                }
            }
        }
    }

    /// The broker lives and left something without its answer. What is in flight is sent again on the
    /// next connection, where brokers answer what they had forgotten.
    fn end_unanswered(&mut self, now: Instant) {
        self.counters.unacknowledged += 1;
        let reason = match self.inflight.oldest() {
            Some((sent, _)) => CloseReason::Unacknowledged(now.saturating_duration_since(sent)),
            None => CloseReason::NoSubAck(self.settings.keepalive * OVERTAKEN_KEEPALIVES),
        };
        let given_back = self.inflight.ignored(IGNORED);
        self.end(reason, Some(0));
        if let Some(entry) = given_back {
            let reason = Refusal::Ignored { connections: IGNORED };
            self.refused(entry.outgoing.token, reason);
        }
    }

    /// Appends what is to be sent to `out`, publishes only up to [`SEND_MARK`]. What is appended
    /// counts as sent.
    pub fn poll_transmit(&mut self, now: Instant, out: &mut BytesMut) {
        let before = out.len();
        out.put(self.control.split());
        if matches!(self.state, State::Active(_)) {
            self.send_presence(out);
            self.send_publishes(now, out);
        }
        if let State::Active(link) = &mut self.state
            && out.len() > before
        {
            link.last_sent = now;
        }
    }

    /// What happened since the last call, oldest first.
    pub fn poll_notice(&mut self) -> Option<Notice> {
        self.notices.pop_front()
    }

    /// How many notices wait; the driver stops reading while there are many.
    pub fn waiting_notices(&self) -> usize {
        self.notices.len()
    }

    /// Takes a publish into the window.
    ///
    /// # Errors
    /// The publish comes back when there is no session or no free slot.
    pub fn publish(&mut self, outgoing: Outgoing) -> Result<(), PublishError> {
        let State::Active(_) = self.state else {
            return Err(PublishError::NotConnected(outgoing));
        };
        if self.free_slots() == 0 {
            return Err(PublishError::WindowFull(outgoing));
        }
        self.inflight.push(outgoing);
        Ok(())
    }

    /// The message of [`Notice::Received`] is dealt with: the broker may forget it. Without effect for
    /// a delivery of an earlier connection, whose message the broker sends again.
    pub fn acknowledge(&mut self, now: Instant, delivery: u64) {
        self.settle(delivery);
        self.decode(now);
    }

    fn settle(&mut self, delivery: u64) {
        for packet_id in self.deliveries.settle(delivery) {
            codec::puback(packet_id, &mut self.control);
        }
    }

    /// Whether more may be read from the broker: not while too many messages wait for their consumer.
    pub fn wants_bytes(&self) -> bool {
        self.deliveries.len() < DELIVERIES_MAX
    }

    /// Ends the session in good order: offline message, the PUBACKs that are still due, DISCONNECT;
    /// at most [`Settings::drain_timeout`]. No later connection is made.
    pub fn close(&mut self, now: Instant) {
        if !std::mem::replace(&mut self.closed, true) {
            self.leave(now);
        }
    }

    /// Ends this connection in the same good order; a later one, to wherever, goes on with what is
    /// in flight.
    pub fn leave(&mut self, now: Instant) {
        match &mut self.state {
            State::Idle | State::Ended | State::Active(Link { draining: Some(_), .. }) => {}
            State::Connecting { .. } => self.end(CloseReason::Orderly, Some(0)),
            State::Active(link) => {
                link.draining = Some(now + self.settings.drain_timeout);
                let id = self.fresh_id();
                self.presence.going_offline(id);
            }
        }
    }

    fn fresh_id(&mut self) -> u16 {
        let (inflight, presence) = (&self.inflight, &self.presence);
        let subscribing = match &self.state {
            State::Active(link) => link.subscribing.map_or(0, |(id, _)| id),
            _ => 0,
        };
        self.ids.next(|id| inflight.uses(id) || presence.uses(id) || id == subscribing)
    }

    /// Whether Receive Maximum lets one more publish onto the wire.
    fn may_send(&self) -> bool {
        let State::Active(link) = &self.state else { return false };
        self.inflight.unacknowledged() + self.presence.unacknowledged() < link.receive_maximum
    }

    /// Whether publishes go out one at a time on this connection, and one is out.
    fn awaiting_probe(&self) -> bool {
        self.probing() && self.inflight.unacknowledged() > 0
    }

    fn probing(&self) -> bool {
        matches!(&self.state, State::Active(link) if !link.answered && self.fruitless >= PROBE_AFTER)
    }

    fn send_limit(&self) -> usize {
        match &self.state {
            State::Active(link) => link.limit,
            _ => 0,
        }
    }

    fn send_presence(&mut self, out: &mut BytesMut) {
        while self.may_send() {
            let Some((kind, packet_id, dup)) = self.presence.take_next() else { return };
            let presence = &self.settings.presence;
            let payload = match kind {
                Kind::Birth => presence.birth.clone(),
                Kind::Offline => presence.will.clone(),
            };
            let message = Outgoing::new(0, presence.topic.clone(), payload);
            let header = Header { packet_id, dup, retain: true };
            let version = self.negotiation.current();
            let sent = codec::publish_packet(version, header, &message, self.send_limit(), out);
            if let Err(reason) = sent {
                self.presence.acknowledge(packet_id);
                self.notices.push_back(Notice::PresenceRefused { reason });
                self.check_drained();
            }
        }
    }

    fn send_publishes(&mut self, now: Instant, out: &mut BytesMut) {
        let draining = matches!(&self.state, State::Active(link) if link.draining.is_some());
        while !draining && out.len() < SEND_MARK && self.may_send() && !self.awaiting_probe() {
            let Some(entry) = self.inflight.next() else { return };
            let (token, dup, resent) = (entry.outgoing.token, entry.attempted, entry.repeated);
            let known_id = entry.packet_id;
            let packet_id = if known_id == 0 { self.fresh_id() } else { known_id };
            let header = Header { packet_id, dup, retain: false };
            let (version, limit) = (self.negotiation.current(), self.send_limit());
            let Some(entry) = self.inflight.next() else { return };
            match codec::publish_packet(version, header, &entry.outgoing, limit, out) {
                Ok(()) => {
                    self.inflight.mark_sent(packet_id, now);
                    let counter = match resent {
                        true => &mut self.counters.resent,
                        false => &mut self.counters.published,
                    };
                    *counter += 1;
                    self.notices.push_back(Notice::Published { token, resent });
                }
                Err(reason) => {
                    self.inflight.take_next();
                    self.refused(token, reason);
                }
            }
        }
    }

    fn refused(&mut self, token: u64, reason: Refusal) {
        self.counters.refused += 1;
        self.notices.push_back(Notice::Refused { token, reason });
    }

    fn connection_refused(&mut self, reason: String) {
        self.counters.connects_refused += 1;
        self.notices.push_back(Notice::ConnectionRefused { reason: reason.clone() });
        self.end(CloseReason::Refused(reason), None);
    }

    /// The connection ended without CONNACK: perhaps the broker's way to refuse MQTT 5.
    fn unanswered(&mut self) {
        let tried = self.negotiation.current();
        if let Some(to) = self.negotiation.unanswered() {
            let reason = format!("broker did not answer CONNECT of {tried}");
            self.notices.push_back(Notice::ProtocolChanged { to, reason });
        }
    }

    fn protocol_error(&mut self, what: String) {
        self.counters.protocol_errors += 1;
        if matches!(self.state, State::Connecting { .. }) {
            self.unanswered();
            return self.end(CloseReason::Protocol(what), None);
        }
        self.end(CloseReason::Protocol(what), Some(PROTOCOL_ERROR));
    }

    /// While draining: ends when everything that went out is acknowledged.
    fn check_drained(&mut self) {
        let State::Active(Link { draining: Some(_), .. }) = self.state else { return };
        let open = self.inflight.unacknowledged() + self.presence.unacknowledged();
        if open == 0 && !self.presence.waiting() {
            self.drained();
        }
    }

    /// DISCONNECT makes the broker drop the will. Where our own offline message did not go out,
    /// the will has to speak: MQTT 5 can ask for it, for 3.1.1 it is enough to say nothing.
    fn drained(&mut self) {
        let goodbye = if self.presence.waiting() { WITH_WILL } else { 0 };
        self.end(CloseReason::Orderly, Some(goodbye));
    }

    /// Ends this connection, saying DISCONNECT with `goodbye` where there is one.
    fn end(&mut self, reason: CloseReason, goodbye: Option<u8>) {
        let probing = self.probing();
        if let State::Active(Link { answered: false, draining: None, .. }) = self.state
            && self.inflight.unacknowledged() > 0
        {
            self.fruitless = self.fruitless.saturating_add(1);
            if probing && let Some(entry) = self.inflight.probe_failed(PROBES) {
                let reason = Refusal::Unanswered { connections: PROBES };
                self.refused(entry.outgoing.token, reason);
            }
        }
        self.note_short_life(&reason);
        if let Some(code) = goodbye {
            codec::disconnect(self.negotiation.current(), code, &mut self.control);
        }
        self.state = State::Ended;
        self.last_close = Some(reason.clone());
        self.notices.push_back(Notice::Closed { reason });
    }

    /// Many brokers close the older of two connections of one client id without a word: those of 3.1.1,
    /// and mosquitto 2.0.11 over MQTT 5 too. A close that left publishes unanswered has another reason.
    fn note_short_life(&mut self, reason: &CloseReason) {
        let State::Active(link) = &self.state else { return };
        let lost = matches!(reason, CloseReason::Lost(_));
        let content = link.answered || self.inflight.unacknowledged() == 0;
        let lasted = link.last_heard.saturating_duration_since(link.began);
        if !lost || !content || lasted >= SHORT {
            self.short_lived = 0;
            return;
        }
        self.short_lived = self.short_lived.saturating_add(1);
        if self.short_lived == SHORT_IN_A_ROW {
            let reason = format!(
                "{SHORT_IN_A_ROW} sessions in a row were closed soon after they began: another device \
                 may have the same client id (give each its own [device] id), or the network is bad"
            );
            self.notices.push_back(Notice::Contested { reason });
        }
    }
}
