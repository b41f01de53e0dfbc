//! Single situations: refusals, fallback, keepalive, deadlines, limits, the orderly close.

use std::time::{Duration, Instant};

use bytes::BytesMut;

use super::peer::{self, Grants, Publish, Reader, Seen};
use super::{epoch, outgoing, s, settings};
use crate::uplink::{
    CloseReason, Credentials, Notice, Protocol, PublishError, Refusal, SEND_MARK, Session,
    Settings, SettingsError, Version,
};
use Version::{V5, V311};

/// The setting for this version alone.
pub(super) fn only(version: Version) -> Protocol {
    if version == V5 { Protocol::V5 } else { Protocol::V311 }
}

/// A session with a broker that the test plays by hand.
pub(super) struct Wire {
    pub(super) session: Session,
    now: Instant,
    reader: Reader,
}

impl Wire {
    pub(super) fn new(settings: Settings) -> Self {
        let session = Session::new(settings).expect("valid settings");
        Self { session, now: epoch(), reader: Reader::default() }
    }

    /// Connected and accepted by a broker of this version; birth taken and acknowledged.
    pub(super) fn active(version: Version, mut settings: Settings, grants: Grants) -> Self {
        settings.protocol = if version == V5 { Protocol::V5 } else { Protocol::V311 };
        let mut wire = Self::new(settings);
        wire.accept(false, grants);
        wire
    }

    pub(super) fn accept(&mut self, session_present: bool, grants: Grants) {
        self.connect();
        let version = self.reader.version();
        self.hear(&peer::connack(version, session_present, grants));
        let birth = self.publishes().pop().expect("a birth");
        assert_eq!((&birth.payload[..], birth.retain), (&b"online"[..], true));
        self.hear(&peer::puback(version, birth.packet_id, 0));
        assert!(matches!(self.notices()[..], [Notice::Connected { .. }]));
    }

    pub(super) fn connect(&mut self) -> peer::Connect {
        self.reader = Reader::default();
        self.session.handle_connected(self.now);
        match self.written().pop() {
            Some(Seen::Connect(connect)) => connect,
            other => panic!("CONNECT expected, not {other:?}"),
        }
    }

    pub(super) fn hear(&mut self, bytes: &[u8]) {
        self.session.handle_bytes(self.now, bytes);
    }

    pub(super) fn acknowledge(&mut self, delivery: u64) {
        self.session.acknowledge(self.now, delivery);
    }

    pub(super) fn cut(&mut self) {
        self.session.handle_disconnected(self.now, "cut");
    }

    pub(super) fn written(&mut self) -> Vec<Seen> {
        let mut out = BytesMut::new();
        self.session.poll_transmit(self.now, &mut out);
        self.reader.read(&out)
    }

    pub(super) fn publishes(&mut self) -> Vec<Publish> {
        let seen = self.written().into_iter();
        seen.filter_map(|s| if let Seen::Publish(p) = s { Some(p) } else { None }).collect()
    }

    pub(super) fn notices(&mut self) -> Vec<Notice> {
        std::iter::from_fn(|| self.session.poll_notice()).collect()
    }

    pub(super) fn closed(&mut self) -> CloseReason {
        match self.notices().pop() {
            Some(Notice::Closed { reason }) => reason,
            other => panic!("Closed expected, not {other:?}"),
        }
    }

    /// Lets time pass, waking the session exactly when it wants to be woken.
    pub(super) fn pass(&mut self, time: Duration) -> Vec<(Duration, Seen)> {
        let (from, until) = (self.now, self.now + time);
        let mut seen = Vec::new();
        while let Some(at) = self.session.poll_timeout().filter(|at| *at <= until) {
            self.now = at;
            self.session.handle_timeout(at);
            seen.extend(self.written().into_iter().map(|p| (at - from, p)));
        }
        self.now = until;
        seen
    }
}

#[test]
fn connect_asks_for_a_kept_session_and_leaves_a_retained_will() {
    for version in [V5, V311] {
        let mut settings = settings();
        settings.protocol = if version == V5 { Protocol::V5 } else { Protocol::V311 };
        settings.credentials =
            Some(Credentials { username: "flat-12".into(), password: b"p\xc3\xa4ss".to_vec() });
        let connect = Wire::new(settings).connect();
        assert_eq!(
            connect,
            peer::Connect {
                version,
                client_id: "flat-12".into(),
                keepalive_s: 30,
                clean: false,
                will: ("hark/flat-12/presence".into(), "offline".into(), true),
                login: Some(("flat-12".into(), "päss".into())),
                session_expiry_s: (version == V5).then_some(86_400),
            }
        );
    }
}

#[test]
fn a_password_may_be_any_bytes_and_long() {
    let mut settings = settings();
    let password: Vec<u8> = (0..1000).map(|i| (i % 251) as u8 | 0x80).collect();
    settings.credentials =
        Some(Credentials { username: String::new(), password: password.clone() });
    assert!(!format!("{settings:?}").contains("128, 129"), "a password is never printed");
    let mut session = Session::new(settings).expect("valid settings");
    session.handle_connected(epoch());
    let mut out = BytesMut::new();
    session.poll_transmit(epoch(), &mut out);
    assert!(out.ends_with(&password));
    let remaining = usize::from(out[1] & 0x7f) | usize::from(out[2]) << 7;
    assert_eq!(out.len(), 3 + remaining);
    assert_eq!(out[10] & 0b1100_0000, 0b1100_0000, "both flags, though the user name is empty");
}

#[test]
fn settings_that_mqtt_cannot_carry_are_refused() {
    let with = |change: fn(&mut Settings)| {
        let mut settings = settings();
        change(&mut settings);
        Session::new(settings).err()
    };
    assert_eq!(with(|_| {}), None);
    assert_eq!(with(|s| s.client_id.clear()), Some(SettingsError::ClientId(0)));
    assert_eq!(with(|s| s.window = 0), Some(SettingsError::Window(0)));
    assert_eq!(with(|s| s.window = 60_000), Some(SettingsError::Window(60_000)));
    let half = Duration::from_millis(500);
    assert_eq!(with(|s| s.keepalive /= 60), Some(SettingsError::Keepalive(half)));
    let topic = SettingsError::PresenceTopic("a/+".into());
    assert_eq!(with(|s| s.presence.topic = "a/+".into()), Some(topic));
    let payload = SettingsError::PresencePayload(65_536);
    assert_eq!(with(|s| s.presence.will = vec![0; 65_536].into()), Some(payload));
    assert_eq!(with(|s| s.max_packet_bytes = 10), Some(SettingsError::MaxPacket(10)));
}

#[test]
fn refusals_by_connack_say_what_to_do() {
    let table: [(Version, &[u8], &str); 7] = [
        (V311, &[0x20, 2, 0, 4], "bad user name or password: check [uplink] username"),
        (V311, &[0x20, 2, 0, 5], "not authorized: check [uplink] username and password_file"),
        (V311, &[0x20, 2, 0, 2], "client id not accepted"),
        (V311, &[0x20, 2, 0, 0x95], "CONNECT too large"),
        (V5, &[0x20, 3, 0, 0x86, 0], "bad user name or password"),
        (V5, &[0x20, 9, 0, 0x87, 6, 0x1f, 0, 3, b'n', b'o', b'!'], "(broker says \"no!\")"),
        (V5, &[0x20, 5, 0, 0, 2, 0x24, 0], "QoS 0 only"),
    ];
    for (version, connack, expected) in table {
        let mut settings = settings();
        settings.protocol = if version == V5 { Protocol::V5 } else { Protocol::V311 };
        let mut wire = Wire::new(settings);
        wire.connect();
        wire.hear(connack);
        match &wire.notices()[..] {
            [Notice::ConnectionRefused { reason }, Notice::Closed { .. }] => {
                assert!(reason.contains(expected), "{reason}");
            }
            other => panic!("{expected}: {other:?}"),
        }
        assert!(wire.session.ended());
        assert_eq!(wire.session.counters().connects_refused, 1);
        assert!(!wire.session.take_retry_at_once());
    }
}

#[test]
fn a_broker_of_3_1_1_is_found_by_its_refusal_and_without_a_wait() {
    for refusal in [&[0x20, 2, 0, 1][..], &[0x20, 3, 0, 0x84, 0]] {
        let mut wire = Wire::new(settings());
        assert_eq!(wire.connect().version, V5);
        wire.hear(refusal);
        assert!(matches!(
            wire.notices()[..],
            [Notice::ProtocolChanged { to: V311, .. }, Notice::Closed { .. }]
        ));
        assert!(wire.session.take_retry_at_once());
        assert!(!wire.session.take_retry_at_once());
        wire.cut();
        assert_eq!(wire.notices(), []);
        wire.accept(false, Grants::default());
        wire.cut();
        assert_eq!(wire.connect().version, V311, "what worked is kept");
    }
}

#[test]
fn a_version_that_was_asked_for_is_not_left() {
    let mut wire = Wire::new(Settings { protocol: Protocol::V5, ..settings() });
    wire.connect();
    wire.hear(&[0x20, 2, 0, 1]);
    assert!(matches!(&wire.notices()[0], Notice::ConnectionRefused { reason }
        if reason == "broker does not speak MQTT 5: set [uplink] protocol = \"auto\""));
    assert!(!wire.session.take_retry_at_once());
}

#[test]
fn a_cut_before_connack_tries_3_1_1_once_and_comes_back() {
    let mut wire = Wire::new(settings());
    assert_eq!(wire.connect().version, V5);
    wire.cut();
    assert!(matches!(wire.notices()[0], Notice::ProtocolChanged { to: V311, .. }));
    wire.accept(false, Grants::default());
    wire.cut();
    assert_eq!(wire.connect().version, V5);
}

#[test]
fn connack_has_a_deadline() {
    let mut wire = Wire::new(settings());
    wire.connect();
    assert!(wire.pass(Duration::from_millis(9_999)).is_empty());
    assert!(!wire.session.ended());
    wire.pass(Duration::from_millis(1));
    assert_eq!(wire.closed(), CloseReason::ConnackTimeout(s(10)));
    assert_eq!(wire.session.counters().silences, 1);
}

#[test]
fn pings_at_the_keepalive_and_drops_a_silent_broker_after_two() {
    let mut wire = Wire::active(V311, settings(), Grants::default());
    assert_eq!(wire.pass(s(30)), [(s(30), Seen::PingReq)]);
    wire.hear(&[0xd0, 0]);
    assert_eq!(wire.pass(s(30)), [(s(30), Seen::PingReq)]);
    assert!(!wire.session.ended());
    wire.pass(s(30));
    assert_eq!(wire.closed(), CloseReason::Silent(s(60)));
    assert_eq!(wire.session.counters().pings, 2);
}

#[test]
fn half_a_packet_is_no_sign_of_life() {
    let mut wire = Wire::active(V311, settings(), Grants::default());
    for _ in 0..6 {
        wire.pass(s(9));
        wire.hear(&[]);
    }
    wire.hear(&[0xd0]);
    wire.pass(s(6));
    assert!(matches!(wire.closed(), CloseReason::Silent(_)));
}

#[test]
fn a_shorter_keepalive_of_the_server_counts() {
    let grants = Grants { server_keepalive_s: Some(5), ..Grants::default() };
    let mut wire = Wire::active(V5, settings(), grants);
    assert_eq!(wire.pass(s(5)), [(s(5), Seen::PingReq)]);
}

#[test]
fn a_publish_takes_a_slot_until_its_puback() {
    let mut wire = Wire::active(V5, Settings { window: 2, ..settings() }, Grants::default());
    wire.session.publish(outgoing(1, 0)).expect("a slot");
    wire.session.publish(outgoing(2, 0)).expect("a slot");
    let full = wire.session.publish(outgoing(3, 0));
    assert_eq!(full, Err(PublishError::WindowFull(outgoing(3, 0))));
    let sent = wire.publishes();
    assert_eq!(sent[0].content_type.as_deref(), Some("application/cloudevents+json"));
    wire.hear(&peer::puback(V5, sent[1].packet_id, 0x10));
    assert_eq!(wire.session.free_slots(), 1);
    wire.hear(&peer::puback(V5, sent[1].packet_id, 0));
    wire.hear(&peer::puback(V5, 999, 0));
    assert_eq!(
        wire.notices(),
        [
            Notice::Published { token: 1, resent: false },
            Notice::Published { token: 2, resent: false },
            Notice::Acknowledged { token: 2, no_subscribers: true },
        ]
    );
    assert_eq!(wire.session.counters().pubacks_ignored, 2);
    wire.cut();
    let late = wire.session.publish(outgoing(3, 0));
    assert_eq!(late, Err(PublishError::NotConnected(outgoing(3, 0))));
}

#[test]
fn a_kept_session_is_resent_with_dup_and_a_lost_one_afresh() {
    for version in [V5, V311] {
        let mut wire = Wire::active(version, settings(), Grants::default());
        for token in 1..=3 {
            wire.session.publish(outgoing(token, 0)).expect("a slot");
        }
        let first = wire.publishes();
        wire.hear(&peer::puback(version, first[1].packet_id, 0));
        wire.notices();
        wire.cut();
        wire.notices();
        let id = |p: &Publish| (p.token(), p.packet_id, p.dup);

        wire.connect();
        wire.hear(&peer::connack(version, true, Grants::default()));
        let again = wire.publishes();
        assert!(again[0].retain && !again[0].dup, "a fresh birth: the last one was acknowledged");
        let expected = [(Some(1), first[0].packet_id, true), (Some(3), first[2].packet_id, true)];
        assert_eq!(again[1..].iter().map(id).collect::<Vec<_>>(), expected);
        wire.cut();

        wire.connect();
        wire.hear(&peer::connack(version, false, Grants::default()));
        let afresh = wire.publishes();
        assert!(!afresh[0].dup);
        let tokens: Vec<_> = afresh[1..].iter().map(|p| (p.token(), p.dup)).collect();
        assert_eq!(tokens, [(Some(1), false), (Some(3), false)]);
        let old = [first[0].packet_id, first[2].packet_id];
        assert!(afresh.iter().all(|p| !old.contains(&p.packet_id)));
        let counters = wire.session.counters();
        assert_eq!((counters.published, counters.resent, counters.sessions_lost), (3, 4, 1));
    }
}

#[test]
fn an_unacknowledged_birth_of_a_kept_session_is_resent_under_its_id() {
    let mut wire = Wire::new(Settings { protocol: Protocol::V311, ..settings() });
    wire.connect();
    wire.hear(&peer::connack(V311, true, Grants::default()));
    let birth = wire.publishes().remove(0);
    wire.cut();
    wire.connect();
    wire.hear(&peer::connack(V311, true, Grants::default()));
    assert_eq!(wire.publishes(), [Publish { dup: true, ..birth }]);
}

#[test]
fn a_negative_puback_frees_the_slot_and_is_no_delivery() {
    let mut wire = Wire::active(V5, settings(), Grants::default());
    wire.session.publish(outgoing(1, 0)).expect("a slot");
    let sent = wire.publishes();
    wire.notices();
    wire.hear(&peer::puback(V5, sent[0].packet_id, 0x87));
    let notice = wire.notices().remove(0);
    let Notice::Refused { token: 1, reason: Refusal::Broker { code: 0x87, text } } = notice else {
        panic!("{notice:?}");
    };
    assert!(text.contains("access rules"), "{text}");
    assert_eq!(wire.session.in_flight(), 0);
    assert_eq!(wire.session.counters().acknowledged, 0);
}

#[test]
fn what_cannot_be_sent_is_refused_and_does_not_hold_up_the_rest() {
    let grants = Grants { max_packet: Some(2000), ..Grants::default() };
    let mut wire = Wire::active(V5, settings(), grants);
    let mut wild = outgoing(2, 0);
    wild.topic = "hark/+/events".into();
    for publish in [outgoing(1, 2000), wild, outgoing(3, 0)] {
        wire.session.publish(publish).expect("a slot");
    }
    let sent: Vec<_> = wire.publishes().iter().map(Publish::token).collect();
    assert_eq!(sent, [Some(3)]);
    assert!(matches!(
        wire.notices()[..],
        [
            Notice::Refused { token: 1, reason: Refusal::TooLarge { limit: 2000, .. } },
            Notice::Refused { token: 2, reason: Refusal::InvalidTopic },
            Notice::Published { token: 3, .. },
        ]
    ));
    assert_eq!(wire.session.in_flight(), 1);
}

#[test]
fn receive_maximum_counts_the_birth_too() {
    let grants = Grants { receive_max: Some(1), ..Grants::default() };
    let mut wire = Wire::new(Settings { protocol: Protocol::V5, ..settings() });
    wire.connect();
    wire.hear(&peer::connack(V5, false, grants));
    wire.session.publish(outgoing(1, 0)).expect("a slot");
    let sent = wire.publishes();
    assert_eq!(sent.len(), 1, "the birth alone");
    wire.hear(&peer::puback(V5, sent[0].packet_id, 0));
    assert_eq!(wire.publishes()[0].token(), Some(1));
    assert_eq!(wire.session.free_slots(), 0);
}

#[test]
fn publishes_are_encoded_only_up_to_the_send_mark() {
    let mut wire = Wire::active(V311, settings(), Grants::default());
    for token in 1..=8 {
        wire.session.publish(outgoing(token, 3000)).expect("a slot");
    }
    let mut out = BytesMut::new();
    wire.session.poll_transmit(wire.now, &mut out);
    assert!((SEND_MARK..SEND_MARK + 3100).contains(&out.len()), "{}", out.len());
    let before = out.len();
    wire.session.poll_transmit(wire.now, &mut out);
    assert_eq!(out.len(), before);
}

#[test]
fn what_mqtt_does_not_allow_ends_the_connection_with_a_reason() {
    let table: [(Version, &[u8], &str); 8] = [
        (V311, &[0x20, 2, 0, 0], "second CONNACK"),
        (V311, &[0x90, 3, 0, 1, 0], "SUBACK that nothing asked for"),
        (V311, &[0xe0, 0], "DISCONNECT from a broker of MQTT 3.1.1"),
        (V311, &[0x40, 1, 0], "malformed PUBACK"),
        (V311, &[0x40, 0xff, 0xff, 0xff, 0xff, 1], "remaining length"),
        (V311, &[0x30, 0xff, 0xff, 0x7f], "over our limit of 262144"),
        (V5, &[0x40, 4, 0, 1, 0, 0x85], "malformed PUBACK"),
        (V5, &[0xf0, 0], "malformed AUTH"),
    ];
    for (version, bytes, expected) in table {
        let mut wire = Wire::active(version, settings(), Grants::default());
        wire.hear(bytes);
        let reason = wire.closed().to_string();
        assert!(reason.contains(expected), "{expected}: {reason}");
        let goodbye: &[Seen] = if version == V5 { &[Seen::Disconnect(0x82)] } else { &[] };
        assert_eq!(wire.written(), goodbye);
        assert_eq!(wire.session.counters().protocol_errors, 1);
    }
}

#[test]
fn publishes_from_the_broker_are_acknowledged_and_ignored() {
    for version in [V5, V311] {
        let mut wire = Wire::active(version, settings(), Grants::default());
        for qos in 0..=2 {
            wire.hear(&peer::publish(version, qos, 7));
        }
        assert_eq!(wire.written(), [Seen::PubAck(7)]);
        assert_eq!(wire.session.counters().publishes_ignored, 3);
    }
}

#[test]
fn a_disconnect_of_the_broker_is_read_in_every_legal_form() {
    let table: [(&[u8], &str); 3] = [
        (&[0xe0, 0], "normal disconnection"),
        (&[0xe0, 1, 0x8e], "another client connected with our client id"),
        (&[0xe0, 2, 0x8b, 0], "broker shutting down"),
    ];
    for (bytes, expected) in table {
        let mut wire = Wire::active(V5, settings(), Grants::default());
        wire.hear(bytes);
        let (CloseReason::ByBroker(text) | CloseReason::TakenOver(text)) = wire.closed() else {
            panic!("{expected}")
        };
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn an_orderly_close_says_offline_waits_for_pubacks_and_disconnects() {
    for version in [V5, V311] {
        let mut wire = Wire::active(version, settings(), Grants::default());
        wire.session.publish(outgoing(1, 0)).expect("a slot");
        let sent = wire.publishes();
        wire.session.close(wire.now);
        assert_eq!(wire.session.free_slots(), 0);
        let offline = wire.publishes().remove(0);
        assert_eq!((&offline.payload[..], offline.retain), (&b"offline"[..], true));
        wire.hear(&peer::puback(version, offline.packet_id, 0));
        assert!(!wire.session.ended());
        wire.hear(&peer::puback(version, sent[0].packet_id, 0));
        assert_eq!(wire.closed(), CloseReason::Orderly);
        assert_eq!(wire.written(), [Seen::Disconnect(0)]);
        assert!(wire.session.finished());
    }
}

#[test]
fn an_orderly_close_does_not_wait_for_ever() {
    let mut wire = Wire::active(V311, settings(), Grants::default());
    wire.session.close(wire.now);
    assert_eq!(wire.publishes().len(), 1);
    assert_eq!(wire.pass(s(3)), [(s(3), Seen::Disconnect(0))]);
    assert_eq!(wire.closed(), CloseReason::Orderly);
}

#[test]
fn where_the_offline_message_cannot_go_out_the_will_speaks() {
    let grants = Grants { receive_max: Some(1), ..Grants::default() };
    let mut wire = Wire::active(V5, settings(), grants);
    wire.session.publish(outgoing(1, 0)).expect("a slot");
    wire.publishes();
    wire.session.close(wire.now);
    assert_eq!(wire.pass(s(3)), [(s(3), Seen::Disconnect(4))]);
}

#[test]
fn closing_without_a_connection_is_done_at_once() {
    let mut wire = Wire::new(settings());
    assert!(!wire.session.finished());
    wire.session.close(wire.now);
    assert!(wire.session.finished());
}

/// What mosquitto 2.0.11 does with a publish that its access rules forbid, and a broker of 3.1.1 with
/// one over its limit: without probing, the publishes behind it would never get through.
#[test]
fn a_publish_answered_by_a_reset_is_given_back_and_the_others_get_through() {
    let mut wire = Wire::active(V311, settings(), Grants::default());
    for token in 1..=3 {
        wire.session.publish(outgoing(token, 0)).expect("a slot");
    }
    let mut acknowledged = Vec::new();
    let mut given_back = Vec::new();
    for connection in 0..10 {
        let sent: Vec<_> = wire.publishes().into_iter().filter(|p| !p.retain).collect();
        let poison = sent.iter().any(|p| p.token() == Some(1));
        assert!(connection < 2 || !poison || sent.len() == 1, "sent alone");
        for publish in sent.iter().filter(|_| !poison) {
            wire.hear(&peer::puback(V311, publish.packet_id, 0));
        }
        if !poison {
            // Once one was answered, the window is open again.
            for publish in wire.publishes() {
                wire.hear(&peer::puback(V311, publish.packet_id, 0));
            }
        }
        wire.cut();
        for notice in wire.notices() {
            match notice {
                Notice::Acknowledged { token, .. } => acknowledged.push(token),
                Notice::Refused { token, reason } => {
                    assert_eq!(reason, Refusal::Unanswered { connections: 3 });
                    given_back.push((connection, token));
                }
                _ => {}
            }
        }
        wire.connect();
        wire.hear(&peer::connack(V311, true, Grants::default()));
    }
    assert_eq!(given_back, [(4, 1)]);
    assert_eq!(acknowledged, [2, 3]);
}
