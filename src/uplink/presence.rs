//! Birth and will: whether anybody watching the presence topic sees us online.
//!
//! The will is inside CONNECT and the broker's to send. The birth is published after each CONNACK,
//! since the broker may have sent the will for the connection before. Both are retained, QoS 1. An
//! orderly close publishes the will's payload itself: DISCONNECT makes the broker drop the will.
//!
//! Their packet ids come from the common counter but stand outside the window: a full window must
//! not keep a device looking offline.

use std::sync::Arc;

use bytes::Bytes;

/// The presence topic and what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Presence {
    /// Where; retained.
    pub topic: Arc<str>,
    /// Published after each CONNACK.
    pub birth: Bytes,
    /// Published by the broker when we vanish, by us on an orderly close.
    pub will: Bytes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Birth,
    Offline,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// To be sent on this connection; `dup` if an earlier one of the same session sent it.
    Waiting { dup: bool },
    /// Sent on this connection, no PUBACK yet.
    Sent,
}

#[derive(Debug)]
struct Message {
    kind: Kind,
    packet_id: u16,
    stage: Stage,
}

/// The presence publishes of a session: at most one birth and one offline message.
#[derive(Debug, Default)]
pub(super) struct PresenceState {
    messages: Vec<Message>,
}

impl PresenceState {
    /// After CONNACK: there is exactly one birth to send. One that the last connection left
    /// unacknowledged is sent again under its own id when the session was kept.
    pub(super) fn connected(&mut self, session_present: bool, fresh_id: u16) {
        let left = self.messages.first().filter(|m| session_present && m.kind == Kind::Birth);
        let birth = match left {
            Some(m) => Message {
                kind: Kind::Birth,
                packet_id: m.packet_id,
                stage: Stage::Waiting { dup: !matches!(m.stage, Stage::Waiting { dup: false }) },
            },
            None => Message {
                kind: Kind::Birth,
                packet_id: fresh_id,
                stage: Stage::Waiting { dup: false },
            },
        };
        self.messages.clear();
        self.messages.push(birth);
    }

    /// On an orderly close. A birth that has not gone out yet is pointless now.
    pub(super) fn going_offline(&mut self, fresh_id: u16) {
        self.messages.retain(|m| m.stage == Stage::Sent);
        let stage = Stage::Waiting { dup: false };
        self.messages.push(Message { kind: Kind::Offline, packet_id: fresh_id, stage });
    }

    /// What is to be sent now, with its packet id and DUP; it counts as sent from here on.
    pub(super) fn take_next(&mut self) -> Option<(Kind, u16, bool)> {
        for m in &mut self.messages {
            if let Stage::Waiting { dup } = m.stage {
                m.stage = Stage::Sent;
                return Some((m.kind, m.packet_id, dup));
            }
        }
        None
    }

    /// Takes the message that this PUBACK is for, if there is one.
    pub(super) fn acknowledge(&mut self, packet_id: u16) -> bool {
        let is_it = |m: &Message| m.packet_id == packet_id && m.stage == Stage::Sent;
        let found = self.messages.iter().position(is_it);
        found.map(|at| self.messages.remove(at)).is_some()
    }

    /// Whether the id belongs to one of ours.
    pub(super) fn uses(&self, packet_id: u16) -> bool {
        self.messages.iter().any(|m| m.packet_id == packet_id)
    }

    /// Sent on this connection without PUBACK: they count against Receive Maximum.
    pub(super) fn unacknowledged(&self) -> usize {
        self.messages.iter().filter(|m| m.stage == Stage::Sent).count()
    }

    /// Whether something still has to go out.
    pub(super) fn waiting(&self) -> bool {
        self.messages.iter().any(|m| m.stage != Stage::Sent)
    }
}
