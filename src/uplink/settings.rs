//! What a session is told once: who we are, which MQTT, how long to wait, how much at a time.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::Presence;
use super::codec::valid_topic;

/// The longest string or binary field that MQTT can carry: its length is 16 bits.
const FIELD_MAX: usize = u16::MAX as usize;

/// The smallest packet limit that still lets CONNECT and an event of ordinary size through.
const PACKET_MIN: u32 = 1024;

/// The largest packet that MQTT can carry.
const PACKET_MAX: u32 = 268_435_455;

/// Few are needed, and all go into one SUBSCRIBE.
const SUBSCRIPTIONS_MAX: usize = 8;

/// The largest window. Packet ids are 16 bits and go round; leaving three quarters of them unused
/// keeps the id of a fresh publish far from any id that a late PUBACK can still name.
const WINDOW_MAX: u16 = 16_384;

/// A version of MQTT on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// MQTT 5.0.
    V5,
    /// MQTT 3.1.1.
    V311,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V5 => "MQTT 5",
            Self::V311 => "MQTT 3.1.1",
        })
    }
}

/// Which version to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protocol {
    /// MQTT 5 first, 3.1.1 when the broker does not speak it: a negative PUBACK, without which a
    /// publish forbidden by an ACL looks delivered, exists in 5 only.
    #[default]
    Auto,
    /// MQTT 5 only.
    V5,
    /// MQTT 3.1.1 only.
    V311,
}

/// User name and password. The password is bytes (MQTT does not ask for UTF-8) and never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user name; may be empty.
    pub username: String,
    /// The password; may be empty.
    pub password: Vec<u8>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

/// Everything a [`super::Session`] is configured with; [`Settings::new`] has the defaults.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The MQTT client id: the broker finds our session by it, so it must never change.
    pub client_id: String,
    /// Which MQTT to speak.
    pub protocol: Protocol,
    /// A packet goes out at least this often; nothing heard for twice this long ends the
    /// connection. Default 30 s: NAT tables of home routers forget after one to five minutes.
    pub keepalive: Duration,
    /// How long the broker keeps the session while we are away (MQTT 5; 3.1.1 leaves it to the
    /// broker). Default 24 h: only duplicates are saved by it, never an event, which the outbox keeps.
    pub session_expiry: Duration,
    /// User name and password, where the broker asks for them.
    pub credentials: Option<Credentials>,
    /// Publishes in flight at most. Default 32: enough to fill a 100 ms round trip, few enough that
    /// a reconnect repeats little.
    pub window: u16,
    /// From the transport being there to CONNACK. Default 10 s.
    pub connack_timeout: Duration,
    /// On an orderly close: how long to wait for PUBACKs. Default 3 s, well inside the 90 s that
    /// systemd gives.
    pub drain_timeout: Duration,
    /// The presence topic with birth and will.
    pub presence: Presence,
    /// Topics to subscribe to at QoS 1, letter by letter, no wildcards. Default none: some brokers close
    /// the connection over a subscription that their rules forbid.
    pub subscriptions: Vec<Arc<str>>,
    /// The largest packet sent or received. Default 256 KiB: an event may have 64 KiB.
    pub max_packet_bytes: u32,
}

/// Why [`Settings`] cannot work. Each names the value at fault and what it must be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// Empty or over 65535 bytes; a session that is kept needs a client id of its own.
    #[error("client id must have 1 to 65535 bytes and no NUL character, not {0} bytes")]
    ClientId(usize),
    /// Not a whole number of seconds that MQTT can carry.
    #[error("keepalive must be 1 s to 65535 s, not {0:?}")]
    Keepalive(Duration),
    /// Zero stops everything, too many run out of packet ids.
    #[error("window must be 1 to 16384 publishes, not {0}")]
    Window(u16),
    /// Empty, too long, or with a wildcard.
    #[error("presence topic {0:?} must have 1 to 65535 bytes, no `+`, no `#`, no NUL")]
    PresenceTopic(String),
    /// Empty, too long or with a wildcard; or more than eight of them.
    #[error(
        "subscription {0:?} must have 1 to 65535 bytes, no `+`, no `#`, no NUL, and be one of at most 8"
    )]
    Subscription(String),
    /// The will travels inside CONNECT, where its length is 16 bits.
    #[error("presence payload must have at most 65535 bytes, not {0}")]
    PresencePayload(usize),
    /// Length of the user name or the password over 65535 bytes.
    #[error("user name and password must have at most 65535 bytes each, not {0}")]
    Credentials(usize),
    /// CONNECT itself, or an ordinary event, would not fit; or MQTT cannot say the length.
    #[error("largest packet must be 1024 to 268435455 bytes, not {0}")]
    MaxPacket(u32),
}

impl Settings {
    /// The defaults, for the device `client_id` that announces itself by `presence`.
    pub fn new(client_id: impl Into<String>, presence: Presence) -> Self {
        Self {
            client_id: client_id.into(),
            protocol: Protocol::Auto,
            keepalive: Duration::from_secs(30),
            session_expiry: Duration::from_secs(24 * 3600),
            credentials: None,
            window: 32,
            connack_timeout: Duration::from_secs(10),
            drain_timeout: Duration::from_secs(3),
            presence,
            subscriptions: Vec::new(),
            max_packet_bytes: 256 * 1024,
        }
    }

    /// Checks every value against what MQTT can carry.
    ///
    /// # Errors
    /// The first value at fault; the caller names the configuration key it came from.
    pub fn validate(&self) -> Result<(), SettingsError> {
        let id = &self.client_id;
        if id.is_empty() || id.len() > FIELD_MAX || id.contains('\0') {
            return Err(SettingsError::ClientId(id.len()));
        }
        if !(1..=u64::from(u16::MAX)).contains(&self.keepalive.as_secs()) {
            return Err(SettingsError::Keepalive(self.keepalive));
        }
        if !(1..=WINDOW_MAX).contains(&self.window) {
            return Err(SettingsError::Window(self.window));
        }
        if !valid_topic(&self.presence.topic) {
            return Err(SettingsError::PresenceTopic(self.presence.topic.to_string()));
        }
        let wrong =
            |(at, topic): &(usize, &Arc<str>)| *at >= SUBSCRIPTIONS_MAX || !valid_topic(topic);
        if let Some((_, topic)) = self.subscriptions.iter().enumerate().find(wrong) {
            return Err(SettingsError::Subscription(topic.to_string()));
        }
        let payload = self.presence.birth.len().max(self.presence.will.len());
        if payload > FIELD_MAX {
            return Err(SettingsError::PresencePayload(payload));
        }
        if let Some(login) = &self.credentials {
            let longest = login.username.len().max(login.password.len());
            if longest > FIELD_MAX {
                return Err(SettingsError::Credentials(longest));
            }
        }
        if !(PACKET_MIN..=PACKET_MAX).contains(&self.max_packet_bytes) {
            return Err(SettingsError::MaxPacket(self.max_packet_bytes));
        }
        Ok(())
    }

    /// Keepalive in the unit of CONNECT. Valid settings fit.
    pub(super) fn keepalive_s(&self) -> u16 {
        u16::try_from(self.keepalive.as_secs()).unwrap_or(u16::MAX)
    }

    /// Session expiry in the unit of CONNECT; longer than it can say means for ever.
    pub(super) fn session_expiry_s(&self) -> u32 {
        u32::try_from(self.session_expiry.as_secs()).unwrap_or(u32::MAX)
    }
}
