//! What goes into a session and what it says: publishes, notices, counters.
//!
//! A [`Notice`] is the uplink's own word for what happened. It is not called an event: an *event*
//! in this program is the CloudEvent of `crate::event`, the thing that is carried.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::Version;
use super::receive::Received;

/// One publish, QoS 1, not retained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// The caller's number for it; comes back in every [`Notice`] about it.
    pub token: u64,
    /// The topic name, no wildcards.
    pub topic: Arc<str>,
    /// The payload, sent as it is.
    pub payload: Bytes,
    /// MQTT 5 Content Type; 3.1.1 has no place for it.
    pub content_type: Option<Arc<str>>,
    /// What goes out instead of payload and content type over MQTT 5, where there is such a form.
    pub binary: Option<Box<Binary>>,
    /// MQTT 5 Message Expiry Interval: how long the broker may keep it for an absent subscriber. It
    /// counts from the first sending; a resend does not shorten it.
    pub expiry_s: Option<u32>,
    /// Goes before everything that is not urgent and has not been sent on this connection.
    pub urgent: bool,
}

impl Outgoing {
    /// A plain one: neither binary nor urgent, without content type, never expiring.
    pub fn new(token: u64, topic: Arc<str>, payload: Bytes) -> Self {
        Self {
            token,
            topic,
            payload,
            content_type: None,
            binary: None,
            expiry_s: None,
            urgent: false,
        }
    }
}

/// A publish whose attributes stand beside its payload: MQTT 5 only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binary {
    /// The payload.
    pub payload: Bytes,
    /// Content Type.
    pub content_type: Option<String>,
    /// User Properties.
    pub user_properties: Vec<(String, String)>,
}

/// What happened, in the order in which it happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// The broker accepted us; publishes flow.
    Connected {
        /// The MQTT that is spoken.
        protocol: Version,
        /// The broker had kept our session.
        session_present: bool,
        /// How many publishes may be in flight: ours, or less by the broker's Receive Maximum.
        window: u16,
    },
    /// The broker sends us what is published to [`super::Settings::subscriptions`].
    Subscribed,
    /// It does not.
    SubscriptionRefused {
        /// The topic filter and why.
        reason: String,
    },
    /// A publish from the broker, on a topic that was subscribed to.
    Received {
        /// For [`super::Session::acknowledge`], once the message is dealt with; none at QoS 0.
        delivery: Option<u64>,
        /// What came.
        message: Received,
    },
    /// Sessions end in a way that looks as if another device used the same client id.
    Contested {
        /// What was seen and what to do about it.
        reason: String,
    },
    /// The broker does not (seem to) speak the MQTT we tried; the next attempt uses another.
    ProtocolChanged {
        /// The MQTT of the next attempt.
        to: Version,
        /// What made us change.
        reason: String,
    },
    /// The publish went into the send buffer.
    Published {
        /// Of the [`Outgoing`].
        token: u64,
        /// It had gone there before: on an earlier connection.
        resent: bool,
    },
    /// The broker's PUBACK for this very publish came. It is the broker's now.
    Acknowledged {
        /// Of the [`Outgoing`].
        token: u64,
        /// MQTT 5 reason 0x10: nobody subscribes to the topic, the message went nowhere.
        no_subscribers: bool,
    },
    /// Not delivered, and the slot is free again: the record stays, its owner decides.
    Refused {
        /// Of the [`Outgoing`].
        token: u64,
        /// Why.
        reason: Refusal,
    },
    /// The broker refused birth or offline message (MQTT 5): its ACL lacks the presence topic.
    PresenceRefused {
        /// Why.
        reason: Refusal,
    },
    /// The broker answered CONNECT with a refusal; one line that says what to do.
    ConnectionRefused {
        /// What is wrong and what to do about it.
        reason: String,
    },
    /// The connection ended. What was in flight stays in flight.
    Closed {
        /// Why.
        reason: CloseReason,
    },
    /// There is a transport, and it is more than bare TCP.
    Reached {
        /// Where, and how in a few words: `broker:8883 (TLS 1.3, resumed)`.
        how: String,
    },
    /// The next attempt uses another URL.
    PathChanged {
        /// It is the first of the configuration, the wanted one.
        first: bool,
        /// What changed and why, in one line.
        message: String,
    },
    /// Files that the connection needs (certificates, key, password) have changed and are in force.
    FilesInForce,
    /// Such files have changed and cannot be used; what was in force before stays.
    FilesUnusable {
        /// Which, what is wrong, what would be right.
        problem: String,
    },
    /// The driver waits before it connects again.
    Retrying {
        /// Attempts in a row that brought no session, this one included.
        attempt: u32,
        /// How long it waits.
        delay: Duration,
        /// The whole story in one line, for people.
        message: String,
    },
}

/// Why a publish was not delivered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Over the broker's Maximum Packet Size or ours; it was never sent.
    #[error(
        "packet of {bytes} bytes is over the limit of {limit}: make the event smaller or raise the broker's packet limit"
    )]
    TooLarge {
        /// The packet with its header.
        bytes: usize,
        /// What is allowed on this connection.
        limit: usize,
    },
    /// Empty, over 65535 bytes, or with a wildcard or NUL; it was never sent.
    #[error("not a topic name to publish to: it needs 1 to 65535 bytes, no `+`, no `#`, no NUL")]
    InvalidTopic,
    /// A Content Type over 65535 bytes; it was never sent.
    #[error("content type is over 65535 bytes")]
    InvalidContentType,
    /// A User Property over 65535 bytes; it was never sent.
    #[error("an attribute is over 65535 bytes: only structured mode can carry it")]
    InvalidProperty,
    /// The broker acknowledged later publishes and never this one, several times in a row.
    #[error("broker left this publish without an answer on {connections} connections in a row")]
    Ignored {
        /// How often.
        connections: u8,
    },
    /// Sent alone, and instead of a PUBACK the connection broke, several times in a row. That is how
    /// some brokers answer what they do not like; it may also have been the network.
    #[error(
        "connection broke {connections} times in a row after this publish was sent alone: see the \
         broker's log for a packet too large or a topic not allowed"
    )]
    Unanswered {
        /// How often.
        connections: u8,
    },
    /// A negative PUBACK (MQTT 5 §3.4.2.1).
    #[error("broker refused the publish: {text} (0x{code:02x})")]
    Broker {
        /// The reason code.
        code: u8,
        /// What it means, with the broker's own words where it gave some.
        text: String,
    },
}

impl Refusal {
    /// Whether the same publish would be refused again: it is too large, its topic or payload is not
    /// accepted, or the broker's rules forbid it. A quota, a busy broker may pass.
    pub fn is_final(&self) -> bool {
        match self {
            Self::TooLarge { .. }
            | Self::InvalidTopic
            | Self::InvalidContentType
            | Self::InvalidProperty => true,
            Self::Unanswered { .. } | Self::Ignored { .. } => false,
            Self::Broker { code, .. } => matches!(code, 0x87 | 0x90 | 0x95 | 0x99),
        }
    }

    /// Whether nobody said no: it looks like a publish that the broker cannot bear, and a very bad
    /// network looks the same.
    pub fn is_silence(&self) -> bool {
        matches!(self, Self::Unanswered { .. } | Self::Ignored { .. })
    }
}

/// Why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// [`super::Session::close`] was asked for and is done.
    #[error("closed in good order")]
    Orderly,
    /// The transport broke.
    #[error("connection lost: {0}")]
    Lost(String),
    /// CONNACK said no; the text is that of [`Notice::ConnectionRefused`].
    #[error("broker refused the session: {0}")]
    Refused(String),
    /// The transport was there, the broker did not answer.
    #[error("no CONNACK within {0:?}: is that port an MQTT broker's?")]
    ConnackTimeout(Duration),
    /// Nothing was heard for two keepalives, PINGREQ included.
    #[error("nothing heard from the broker for {0:?}")]
    Silent(Duration),
    /// The broker sent what MQTT does not allow.
    #[error("broker broke the protocol: {0}")]
    Protocol(String),
    /// The broker said DISCONNECT (MQTT 5).
    #[error("broker ended the session: {0}")]
    ByBroker(String),
    /// The broker said that another client connected with our client id (MQTT 5).
    #[error("broker ended the session: {0}")]
    TakenOver(String),
    /// A publish went without PUBACK for this long on a connection that lives.
    #[error("no PUBACK for a publish for {0:?}")]
    Unacknowledged(Duration),
    /// SUBSCRIBE went without an answer for this long on a connection that lives.
    #[error("no SUBACK for {0:?}")]
    NoSubAck(Duration),
}

/// Why [`super::Session::publish`] did not take a publish; it is handed back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// There is no session; wait for [`Notice::Connected`].
    #[error("not connected")]
    NotConnected(Outgoing),
    /// The window is full; wait for [`super::Session::free_slots`].
    #[error("in-flight window is full")]
    WindowFull(Outgoing),
}

/// Totals since the session was made. They only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// CONNACKs that accepted us.
    pub connects: u64,
    /// CONNACKs that refused us.
    pub connects_refused: u64,
    /// Connections on which the broker had forgotten our session while publishes were in flight.
    pub sessions_lost: u64,
    /// Publishes sent for the first time.
    pub published: u64,
    /// Publishes sent again after a reconnect.
    pub resent: u64,
    /// Publishes acknowledged.
    pub acknowledged: u64,
    /// Of these: nobody subscribed (MQTT 5 reason 0x10).
    pub no_subscribers: u64,
    /// Publishes refused, by the broker or by a limit.
    pub refused: u64,
    /// PUBACKs for nothing that this connection has in flight: duplicate, late or invented.
    pub pubacks_ignored: u64,
    /// Publishes from the broker on topics that were subscribed to.
    pub received: u64,
    /// Publishes from the broker on other topics, as from a subscription of an earlier life.
    pub publishes_ignored: u64,
    /// PINGREQs sent.
    pub pings: u64,
    /// Connections ended because the broker broke the protocol.
    pub protocol_errors: u64,
    /// Connections ended because a publish or SUBSCRIBE went unanswered while the broker lived.
    pub unacknowledged: u64,
    /// Connections ended by silence: no CONNACK, or nothing heard for two keepalives.
    pub silences: u64,
}
