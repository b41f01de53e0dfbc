//! What comes from the broker besides PUBACKs, and what does not come.

use std::time::Duration;

use super::peer::{self, Grants, Seen};
use super::table::Wire;
use super::{outgoing, s, settings};
use crate::uplink::{CloseReason, Notice, Refusal, Settings, Version};
use Version::{V5, V311};

fn with_subscription() -> Settings {
    Settings { subscriptions: vec!["a/b".into()], ..settings() }
}

/// The packet id of the SUBSCRIBE that was just written.
fn subscribed(wire: &mut Wire) -> u16 {
    let subscribes = wire.written().into_iter().find_map(|seen| match seen {
        Seen::Subscribe(packet_id, filters) => {
            assert_eq!(filters, ["a/b"]);
            Some(packet_id)
        }
        _ => None,
    });
    subscribes.expect("a SUBSCRIBE")
}

/// Connected with a subscription that the broker has granted.
fn listening(version: Version) -> Wire {
    let mut wire =
        Wire::new(Settings { protocol: super::table::only(version), ..with_subscription() });
    wire.connect();
    wire.hear(&peer::connack(version, false, Grants::default()));
    let packet_id = subscribed(&mut wire);
    wire.hear(&peer::suback(version, packet_id, &[1]));
    let notices = wire.notices();
    assert!(matches!(notices[..], [Notice::Connected { .. }, Notice::Subscribed]), "{notices:?}");
    wire
}

fn deliveries(wire: &mut Wire) -> Vec<Option<u64>> {
    let notices = wire.notices().into_iter();
    let of = |notice| match notice {
        Notice::Received { delivery, message } => {
            assert_eq!((&message.topic[..], &message.payload[..]), ("a/b", &b"hello"[..]));
            Some(delivery)
        }
        other => panic!("{other:?}"),
    };
    notices.filter_map(of).collect()
}

#[test]
fn what_was_subscribed_to_is_acknowledged_when_its_consumer_is_done_and_in_order() {
    for version in [V5, V311] {
        let mut wire = listening(version);
        for (qos, packet_id) in [(1, 7), (1, 8), (0, 0)] {
            wire.hear(&peer::publish(version, qos, packet_id));
        }
        let came = deliveries(&mut wire);
        let [Some(first), Some(second), None] = came[..] else { panic!("{came:?}") };
        assert_eq!(wire.written(), []);
        wire.acknowledge(second);
        assert_eq!(wire.written(), [], "its turn is after the first");
        wire.acknowledge(first);
        assert_eq!(wire.written(), [Seen::PubAck(7), Seen::PubAck(8)]);
        assert_eq!(wire.session.counters().received, 3);
    }
}

#[test]
fn reading_stops_while_too_many_messages_wait_for_their_consumer() {
    let mut wire = listening(V311);
    for packet_id in 1..=16 {
        assert!(wire.session.wants_bytes());
        wire.hear(&peer::publish(V311, 1, packet_id));
    }
    assert!(!wire.session.wants_bytes());
    for delivery in deliveries(&mut wire) {
        wire.acknowledge(delivery.expect("QoS 1"));
    }
    assert!(wire.session.wants_bytes());
}

#[test]
fn of_many_messages_in_one_read_no_more_are_handed_out_than_may_wait_and_none_is_forgotten() {
    let mut wire = listening(V5);
    let flood: Vec<u8> = (1..=40).flat_map(|id| peer::publish(V5, 1, id)).collect();
    wire.hear(&flood);
    let mut acknowledged = Vec::new();
    for expected in [16, 16, 8] {
        let came = deliveries(&mut wire);
        assert_eq!(came.len(), expected);
        for delivery in came {
            wire.acknowledge(delivery.expect("QoS 1"));
        }
        acknowledged.extend(wire.written());
    }
    assert_eq!(acknowledged, (1..=40).map(Seen::PubAck).collect::<Vec<_>>());
    assert!(wire.session.wants_bytes());
}

#[test]
fn a_message_of_an_earlier_connection_is_not_acknowledged_on_a_later_one() {
    let mut wire = listening(V5);
    wire.hear(&peer::publish(V5, 1, 7));
    let old = deliveries(&mut wire)[0].expect("QoS 1");
    wire.cut();
    wire.connect();
    wire.hear(&peer::connack(V5, true, Grants::default()));
    wire.written();
    wire.acknowledge(old);
    assert_eq!(wire.written(), []);
}

#[test]
fn a_kept_session_is_not_subscribed_again_and_a_lost_one_is() {
    for version in [V5, V311] {
        let mut wire = listening(version);
        for (session_present, expected) in [(true, 0), (false, 1)] {
            wire.cut();
            wire.connect();
            wire.hear(&peer::connack(version, session_present, Grants::default()));
            let written = wire.written();
            let count = written.iter().filter(|s| matches!(s, Seen::Subscribe(..))).count();
            assert_eq!(count, expected, "session present: {session_present}");
        }
        // The last SUBSCRIBE went unanswered: it is said again, whatever the broker kept.
        wire.cut();
        wire.connect();
        wire.hear(&peer::connack(version, true, Grants::default()));
        subscribed(&mut wire);
    }
}

#[test]
fn a_refused_subscription_is_said_and_publishing_goes_on() {
    let mut wire = Wire::new(with_subscription());
    wire.connect();
    wire.hear(&peer::connack(V5, false, Grants::default()));
    let packet_id = subscribed(&mut wire);
    wire.hear(&peer::suback(V5, packet_id, &[0x87]));
    let Some(Notice::SubscriptionRefused { reason }) = wire.notices().pop() else { panic!() };
    assert!(reason.starts_with("subscribe to a/b: the broker's access rules"), "{reason}");
    assert!(!wire.session.ended());
}

#[test]
fn a_subscribe_without_an_answer_ends_the_connection() {
    let mut wire = Wire::new(with_subscription());
    wire.connect();
    wire.hear(&peer::connack(V5, false, Grants::default()));
    subscribed(&mut wire);
    wire.notices();
    wire.pass(s(59));
    wire.hear(&[0xd0, 0]);
    wire.pass(s(1));
    assert_eq!(wire.closed(), CloseReason::NoSubAck(s(60)));
}

/// Lets time pass on a connection whose broker answers every PINGREQ.
fn pass_alive(wire: &mut Wire, time: Duration) {
    for _ in 0..time.as_secs() {
        if wire.session.ended() {
            return;
        }
        if wire.pass(s(1)).iter().any(|(_, seen)| *seen == Seen::PingReq) {
            wire.hear(&[0xd0, 0]);
        }
    }
}

#[test]
fn a_puback_lost_on_a_living_connection_is_fetched_by_another() {
    for version in [V5, V311] {
        let mut wire = Wire::active(version, settings(), Grants::default());
        for token in 1..=2 {
            wire.session.publish(outgoing(token, 0)).expect("a slot");
        }
        let sent = wire.publishes();
        wire.hear(&peer::puback(version, sent[1].packet_id, 0));
        pass_alive(&mut wire, s(59));
        assert!(!wire.session.ended());
        pass_alive(&mut wire, s(1));
        assert_eq!(wire.closed(), CloseReason::Unacknowledged(s(60)));
        wire.cut();
        wire.connect();
        wire.hear(&peer::connack(version, true, Grants::default()));
        let again = wire.publishes();
        assert_eq!((again[1].token(), again[1].dup), (Some(1), true));
    }
}

#[test]
fn a_broker_that_acknowledges_nothing_is_given_ten_keepalives() {
    let mut wire = Wire::active(V5, settings(), Grants::default());
    wire.session.publish(outgoing(1, 0)).expect("a slot");
    wire.publishes();
    pass_alive(&mut wire, s(299));
    assert!(!wire.session.ended());
    pass_alive(&mut wire, s(1));
    assert_eq!(wire.closed(), CloseReason::Unacknowledged(s(300)));
}

#[test]
fn a_publish_that_the_broker_never_answers_is_given_back() {
    let mut wire = Wire::active(V5, settings(), Grants::default());
    wire.session.publish(outgoing(1, 0)).expect("a slot");
    for token in 2..=4 {
        wire.session.publish(outgoing(token, 0)).expect("a slot");
        for publish in wire.publishes().iter().filter(|p| p.token().is_some_and(|t| t > 1)) {
            wire.hear(&peer::puback(V5, publish.packet_id, 0));
        }
        pass_alive(&mut wire, s(100));
        assert!(wire.session.ended());
        let given_back = wire.notices().into_iter().find_map(|n| match n {
            Notice::Refused { token, reason } => Some((token, reason)),
            _ => None,
        });
        let expected = (token == 4).then_some((1, Refusal::Ignored { connections: 3 }));
        assert_eq!(given_back, expected);
        wire.cut();
        wire.connect();
        wire.hear(&peer::connack(V5, true, Grants::default()));
    }
    assert_eq!(wire.session.in_flight(), 0);
}

#[test]
fn an_urgent_publish_goes_before_what_is_still_to_be_resent() {
    let mut wire = Wire::active(V311, settings(), Grants::default());
    for token in 1..=4 {
        wire.session.publish(outgoing(token, 5000)).expect("a slot");
        wire.publishes();
    }
    wire.cut();
    wire.connect();
    wire.hear(&peer::connack(V311, true, Grants::default()));
    let first: Vec<_> = wire.publishes().iter().filter_map(peer::Publish::token).collect();
    assert_eq!(first, [1, 2], "up to the send mark");
    let mut alert = outgoing(9, 0);
    alert.urgent = true;
    wire.session.publish(alert).expect("a slot");
    let rest: Vec<_> = wire.publishes().iter().filter_map(peer::Publish::token).collect();
    assert_eq!(rest, [9, 3, 4]);
}

#[test]
fn pubacks_are_owed_for_what_was_sent_and_none_while_an_alert_is_under_way() {
    let mut wire = Wire::active(V5, settings(), Grants::default());
    assert_eq!(wire.session.owed(), 0);
    for token in 1..=2 {
        wire.session.publish(outgoing(token, 10)).expect("a slot");
    }
    assert_eq!(wire.session.owed(), 0, "nothing was sent yet");
    wire.publishes();
    assert_eq!(wire.session.owed(), 2);
    let mut alert = outgoing(9, 0);
    alert.urgent = true;
    wire.session.publish(alert).expect("a slot");
    assert_eq!(wire.session.owed(), 0, "somebody is in a hurry");
    wire.publishes();
    assert_eq!(wire.session.owed(), 0);
}

#[test]
fn another_device_with_our_client_id_is_noticed_over_both_versions() {
    let mut wire = Wire::active(V5, settings(), Grants::default());
    wire.hear(&[0xe0, 1, 0x8e]);
    let notices = wire.notices();
    assert!(
        matches!(&notices[..], [Notice::Contested { reason }, Notice::Closed { reason: CloseReason::TakenOver(_) }]
            if reason.contains("give each device its own")),
        "{notices:?}"
    );

    // Others do not say it; three sessions closed soon after they began look like it.
    for version in [V5, V311] {
        let mut wire = Wire::active(version, settings(), Grants::default());
        let mut contested = Vec::new();
        for _ in 0..3 {
            wire.pass(s(3));
            wire.cut();
            contested.push(wire.notices().iter().any(|n| matches!(n, Notice::Contested { .. })));
            wire.accept(false, Grants::default());
        }
        assert_eq!(contested, [false, false, true]);
    }
}
