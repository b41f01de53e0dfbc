//! What the broker says: CONNACK opens the session, PUBACK ends a publish, the rest is small.

use std::time::{Duration, Instant};

use super::super::codec::{self, Accepted, ConnAck, Incoming};
use super::super::receive::{self, Publish};
use super::super::{CloseReason, Notice, Version};
use super::{Link, Session, State};

impl Session {
    /// A whole packet of the broker's.
    pub(super) fn handle_packet(&mut self, now: Instant, packet: Incoming) {
        match (&mut self.state, packet) {
            (State::Connecting { .. }, Incoming::ConnAck(answer)) => self.connack(now, answer),
            (State::Active(link), packet) => {
                link.last_heard = now;
                self.handle_active(packet);
            }
            (_, packet) => self.protocol_error(format!("{packet:?} before CONNACK")),
        }
    }

    fn handle_active(&mut self, packet: Incoming) {
        match packet {
            Incoming::PubAck { packet_id, code, text } => self.puback(packet_id, code, text),
            Incoming::PingResp => {}
            Incoming::Publish(publish) => self.received(publish),
            Incoming::SubAck { packet_id, codes } => self.suback(packet_id, &codes),
            Incoming::Disconnect { .. } if self.negotiation.current() == Version::V311 => {
                self.protocol_error("DISCONNECT from a broker of MQTT 3.1.1".into());
            }
            Incoming::Disconnect { code, text } => {
                let reason = codec::disconnect_text(code, text.as_deref());
                if code == codec::TAKEN_OVER {
                    self.notices.push_back(Notice::Contested { reason: reason.clone() });
                    return self.end(CloseReason::TakenOver(reason), None);
                }
                self.end(CloseReason::ByBroker(reason), None);
            }
            Incoming::ConnAck(_) => self.protocol_error("second CONNACK".into()),
            Incoming::Unexpected(what) => self.protocol_error(format!("unexpected {what}")),
        }
    }

    fn connack(&mut self, now: Instant, answer: ConnAck) {
        match answer {
            ConnAck::Accepted(accepted) => self.accepted(now, &accepted),
            ConnAck::Refused(reason) => {
                self.negotiation.answered();
                self.connection_refused(reason);
            }
            ConnAck::VersionRefused => {
                let tried = self.negotiation.current();
                let reason = format!("broker does not speak {tried}");
                match self.negotiation.version_refused() {
                    Some(to) => {
                        self.retry_at_once = tried == Version::V5;
                        self.counters.connects_refused += 1;
                        let change = Notice::ProtocolChanged { to, reason: reason.clone() };
                        self.notices.push_back(change);
                        self.end(CloseReason::Refused(reason), None);
                    }
                    None => self
                        .connection_refused(format!("{reason}: set [uplink] protocol = \"auto\"")),
                }
            }
        }
    }

    fn accepted(&mut self, now: Instant, accepted: &Accepted) {
        self.negotiation.answered();
        let session_present = accepted.session_present;
        self.counters.connects += 1;
        if !session_present && self.inflight.len() > 0 {
            self.counters.sessions_lost += 1;
        }
        let ours = self.settings.keepalive;
        let keepalive = match accepted.server_keepalive_s {
            None | Some(0) => ours,
            Some(seconds) => ours.min(Duration::from_secs(seconds.into())),
        };
        let limit =
            accepted.max_packet_bytes.unwrap_or(u32::MAX).min(self.settings.max_packet_bytes);
        self.state = State::Active(Link {
            keepalive,
            receive_maximum: accepted.receive_maximum.into(),
            limit: limit as usize,
            began: now,
            last_sent: now,
            last_heard: now,
            subscribing: None,
            answered: false,
            draining: None,
        });
        self.inflight.reconnected(session_present);
        let id = self.fresh_id();
        self.presence.connected(session_present, id);
        let protocol = self.negotiation.current();
        let window = self.settings.window.min(accepted.receive_maximum);
        self.notices.push_back(Notice::Connected { protocol, session_present, window });
        self.subscribed &= session_present;
        self.subscribe(now);
    }

    /// Says SUBSCRIBE, unless the broker's session still has what an earlier one asked for.
    fn subscribe(&mut self, now: Instant) {
        if self.settings.subscriptions.is_empty() || self.subscribed {
            return;
        }
        let packet_id = self.fresh_id();
        let version = self.negotiation.current();
        receive::subscribe(version, packet_id, &self.settings.subscriptions, &mut self.control);
        if let State::Active(link) = &mut self.state {
            link.subscribing = Some((packet_id, now));
        }
    }

    fn suback(&mut self, packet_id: u16, codes: &[u8]) {
        let State::Active(link) = &mut self.state else { return };
        if link.subscribing.is_none_or(|(asked, _)| asked != packet_id) {
            return self.protocol_error("SUBACK that nothing asked for".into());
        }
        link.subscribing = None;
        let filters = &self.settings.subscriptions;
        let refused = filters.iter().zip(codes).find(|(_, code)| **code >= 0x80);
        let notice = match refused {
            None if codes.len() < filters.len() => {
                return self.protocol_error("SUBACK with fewer codes than filters".into());
            }
            None => Notice::Subscribed,
            Some((filter, code)) => Notice::SubscriptionRefused {
                reason: format!("subscribe to {filter}: {}", receive::suback_refusal(*code)),
            },
        };
        self.subscribed = notice == Notice::Subscribed;
        self.notices.push_back(notice);
    }

    fn received(&mut self, publish: Publish) {
        let Publish { qos, packet_id, message } = publish;
        let ours = self.settings.subscriptions.iter().any(|topic| **topic == *message.topic);
        // QoS 2 is never granted to us, and its handshake is not spoken.
        if !ours || qos > 1 {
            self.counters.publishes_ignored += 1;
            if qos == 1 {
                let number = self.deliveries.came(packet_id);
                self.settle(number);
            }
            return;
        }
        self.counters.received += 1;
        let delivery = (qos == 1).then(|| self.deliveries.came(packet_id));
        self.notices.push_back(Notice::Received { delivery, message });
    }

    fn puback(&mut self, packet_id: u16, code: u8, text: Option<String>) {
        let negative = (code >= 0x80).then(|| codec::puback_refusal(code, text.as_deref()));
        if self.presence.acknowledge(packet_id) {
            if let Some(reason) = negative {
                self.notices.push_back(Notice::PresenceRefused { reason });
            }
        } else if let Some(entry) = self.inflight.acknowledge(packet_id) {
            let token = entry.outgoing.token;
            self.fruitless = 0;
            if let State::Active(link) = &mut self.state {
                link.answered = true;
            }
            match negative {
                Some(reason) => self.refused(token, reason),
                None => {
                    let no_subscribers = code == 0x10;
                    self.counters.acknowledged += 1;
                    self.counters.no_subscribers += u64::from(no_subscribers);
                    self.notices.push_back(Notice::Acknowledged { token, no_subscribers });
                }
            }
        } else {
            self.counters.pubacks_ignored += 1;
        }
        self.check_drained();
    }
}
