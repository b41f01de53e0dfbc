//! The in-flight window: what was handed in and is not acknowledged, in order.
//!
//! # Invariants
//! - `entries[..sent]` were sent on this connection, `entries[sent..]` still have to be. Both parts
//!   stand in the order in which they were handed in, so a resend keeps the order by itself.
//! - A packet id is given when an entry is first sent, not when it is handed in: until then the
//!   session it would belong to can still be lost.
//! - An urgent entry stands before all that has not been sent on this connection, behind other urgent
//!   ones: its topic is another than theirs, so no topic's order suffers.
//! - Only `entries[..sent]` can be acknowledged: a PUBACK for what this connection has not sent
//!   proves nothing.

use std::collections::VecDeque;
use std::time::Instant;

use super::Outgoing;

/// One publish in flight.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) outgoing: Outgoing,
    /// 0 until it is first sent in this session.
    pub(super) packet_id: u16,
    /// An earlier connection of this same session sent it: the next send says DUP.
    pub(super) attempted: bool,
    /// Any earlier connection sent it: the next send is a repetition to whoever counts.
    pub(super) repeated: bool,
    /// Connections that broke while it was the only one sent, or that were ended because of it.
    probes: u8,
    /// When this connection sent it.
    sent_at: Option<Instant>,
    /// A later one of this connection was acknowledged before it.
    overtaken: bool,
}

#[derive(Debug, Default)]
pub(super) struct InFlight {
    entries: VecDeque<Entry>,
    sent: usize,
}

impl InFlight {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Sent on this connection, no PUBACK yet.
    pub(super) fn unacknowledged(&self) -> usize {
        self.sent
    }

    /// Whether an urgent one is among them.
    pub(super) fn is_urgent(&self) -> bool {
        self.entries.iter().any(|entry| entry.outgoing.urgent)
    }

    /// Whether the id belongs to an entry.
    pub(super) fn uses(&self, packet_id: u16) -> bool {
        self.entries.iter().any(|e| e.packet_id == packet_id)
    }

    pub(super) fn push(&mut self, outgoing: Outgoing) {
        let unsent_urgent = self.entries.iter().skip(self.sent).take_while(|e| e.outgoing.urgent);
        let at = match outgoing.urgent {
            true => self.sent + unsent_urgent.count(),
            false => self.entries.len(),
        };
        let entry = Entry {
            outgoing,
            packet_id: 0,
            attempted: false,
            repeated: false,
            probes: 0,
            sent_at: None,
            overtaken: false,
        };
        self.entries.insert(at, entry);
    }

    /// The next entry to send.
    pub(super) fn next(&self) -> Option<&Entry> {
        self.entries.get(self.sent)
    }

    /// The next entry was sent under this id.
    pub(super) fn mark_sent(&mut self, packet_id: u16, now: Instant) {
        if let Some(entry) = self.entries.get_mut(self.sent) {
            debug_assert!(entry.packet_id == packet_id || entry.packet_id == 0, "an id changed");
            entry.packet_id = packet_id;
            entry.attempted = true;
            entry.repeated = true;
            entry.sent_at = Some(now);
            entry.overtaken = false;
            self.sent += 1;
        }
    }

    /// Takes out the next entry: it cannot be sent on this connection.
    pub(super) fn take_next(&mut self) -> Option<Entry> {
        self.entries.remove(self.sent)
    }

    /// Takes out the entry that this PUBACK is for, if this connection sent one under the id.
    pub(super) fn acknowledge(&mut self, packet_id: u16) -> Option<Entry> {
        let at = self.entries.iter().take(self.sent).position(|e| e.packet_id == packet_id)?;
        // Whatever stands before it was sent before it.
        for entry in self.entries.iter_mut().take(at) {
            entry.overtaken = true;
        }
        self.sent -= 1;
        self.entries.remove(at)
    }

    /// When the oldest publish of this connection was sent, and whether a later one was acknowledged
    /// before it. No other waits longer, and none is overtaken unless this one is.
    pub(super) fn oldest(&self) -> Option<(Instant, bool)> {
        let first = self.entries.front().filter(|_| self.sent > 0)?;
        Some((first.sent_at?, first.overtaken))
    }

    /// The oldest publish was overtaken and never acknowledged, and the connection ends for it.
    /// Returns it when that happened `limit` times.
    pub(super) fn ignored(&mut self, limit: u8) -> Option<Entry> {
        let first = self.entries.front_mut().filter(|e| self.sent > 0 && e.overtaken)?;
        first.probes = first.probes.saturating_add(1);
        if first.probes < limit {
            return None;
        }
        self.sent -= 1;
        self.entries.pop_front()
    }

    /// The connection broke while the first entry was the only one sent. Returns it when that
    /// happened `limit` times.
    pub(super) fn probe_failed(&mut self, limit: u8) -> Option<Entry> {
        let first = self.entries.front_mut().filter(|_| self.sent == 1)?;
        first.probes = first.probes.saturating_add(1);
        if first.probes < limit {
            return None;
        }
        self.sent = 0;
        self.entries.pop_front()
    }

    /// A new connection: everything has to be sent again. Without the old session nothing of it is
    /// left on the broker's side, so nothing is a duplicate and old ids mean nothing.
    pub(super) fn reconnected(&mut self, session_present: bool) {
        self.sent = 0;
        if !session_present {
            for entry in &mut self.entries {
                entry.packet_id = 0;
                entry.attempted = false;
            }
        }
    }
}

/// Packet ids: 1 to 65535 and round again, leaving out those in use. Going round instead of taking
/// the lowest free one keeps a late duplicate PUBACK from naming a younger publish.
#[derive(Debug, Default)]
pub(super) struct PacketIds {
    last: u16,
}

impl PacketIds {
    /// The next free id. Ends because fewer than 65535 are ever in use (`Settings::validate`).
    pub(super) fn next(&mut self, in_use: impl Fn(u16) -> bool) -> u16 {
        for _ in 0..=u16::MAX {
            self.last = self.last.checked_add(1).unwrap_or(1);
            if !in_use(self.last) {
                return self.last;
            }
        }
        unreachable!("the window is smaller than the number of packet ids")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(clippy::disallowed_methods, reason = "an Instant has no other beginning")]
    fn now() -> Instant {
        Instant::now()
    }

    fn outgoing(token: u64) -> Outgoing {
        Outgoing::new(token, "t".into(), bytes::Bytes::new())
    }

    #[test]
    fn packet_ids_go_round_without_zero_and_without_those_in_use() {
        let mut ids = PacketIds { last: u16::MAX - 1 };
        assert_eq!(ids.next(|_| false), u16::MAX);
        assert_eq!(ids.next(|id| id == 1), 2);
    }

    #[test]
    fn an_entry_not_sent_on_this_connection_cannot_be_acknowledged() {
        let mut inflight = InFlight::default();
        inflight.push(outgoing(1));
        inflight.mark_sent(9, now());
        inflight.reconnected(true);
        assert!(inflight.acknowledge(9).is_none());
        inflight.mark_sent(9, now());
        assert_eq!(inflight.acknowledge(9).map(|e| e.outgoing.token), Some(1));
        assert!(inflight.acknowledge(9).is_none());
    }

    #[test]
    fn a_lost_session_forgets_ids_and_dup_but_not_the_order() {
        let mut inflight = InFlight::default();
        for token in 1..=3 {
            inflight.push(outgoing(token));
            inflight.mark_sent(token as u16, now());
        }
        inflight.acknowledge(2);
        inflight.reconnected(false);
        let tokens: Vec<_> =
            inflight.entries.iter().map(|e| (e.outgoing.token, e.packet_id, e.attempted)).collect();
        assert_eq!(tokens, [(1, 0, false), (3, 0, false)]);
    }

    #[test]
    fn an_urgent_publish_stands_before_all_that_is_unsent_and_behind_its_like() {
        let urgent = |token| Outgoing { urgent: true, ..outgoing(token) };
        let mut inflight = InFlight::default();
        for token in 1..=3 {
            inflight.push(outgoing(token));
        }
        inflight.mark_sent(1, now());
        for token in [4, 5] {
            inflight.push(urgent(token));
        }
        let order: Vec<_> = inflight.entries.iter().map(|e| e.outgoing.token).collect();
        assert_eq!(order, [1, 4, 5, 2, 3]);
    }

    #[test]
    fn a_publish_left_behind_is_known_by_the_later_ones_that_were_not() {
        let mut inflight = InFlight::default();
        for token in 1..=3 {
            inflight.push(outgoing(token));
            inflight.mark_sent(token as u16, now());
        }
        assert_eq!(inflight.oldest().map(|o| o.1), Some(false));
        inflight.acknowledge(3);
        assert_eq!(inflight.oldest().map(|o| o.1), Some(true));
        assert!(inflight.ignored(2).is_none());
        assert_eq!(inflight.ignored(2).map(|e| e.outgoing.token), Some(1));
        assert_eq!(inflight.unacknowledged(), 1);
    }
}
