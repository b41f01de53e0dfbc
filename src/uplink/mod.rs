//! The MQTT session: device → broker, QoS 1, until the PUBACK for that very publish.
//!
//! # Purpose
//! [`Session`] speaks MQTT 5 or 3.1.1 over any byte stream. It does no IO: bytes, connections and
//! the time are handed in, bytes and [`Notice`]s are taken out. `driver::uplink` gives it a socket
//! and a timer; the tests give it a scripted broker and virtual time.
//!
//! # Invariants
//! - A publish handed in leaves the session only as [`Notice::Acknowledged`] (the broker's PUBACK
//!   for the packet id under which this connection sent it) or as [`Notice::Refused`]. A cut, a lost
//!   session, a broker restart leave it in flight.
//! - Packet ids are never 0 and never shared by two publishes in flight.
//! - At most [`Settings::window`] publishes are in flight, and on the wire never more than the
//!   broker's Receive Maximum; so a reconnect repeats at most one window.
//! - What is sent again goes in the order of the first time: with DUP and the same packet id when
//!   the broker kept the session, as a fresh publish when it did not.
//! - One publish that a broker answers with a reset cannot hold up the others for ever: after
//!   two connections without any PUBACK, one publish at a time is sent until one is answered, and
//!   one that breaks three such connections is given back as [`Refusal::Unanswered`].
//! - A PUBACK that got lost on a connection that lives is fetched by another connection: after two
//!   keepalives if later publishes were acknowledged, after ten if nothing is. A publish overtaken
//!   like that on three connections in a row is given back as [`Refusal::Ignored`].
//! - A publish from the broker is acknowledged once its consumer is done with it
//!   ([`Session::acknowledge`]), in the order of coming. Subscriptions are renewed in each session that
//!   the broker did not keep.
//! - Everything is bounded: the window, the receive buffer (one packet), the send buffer
//!   ([`SEND_MARK`] and one packet), every wait.
//!
//! # Terms
//! *Session*: what the broker remembers of us between connections (MQTT 5 §4.1). *In flight*:
//! handed to the session, not yet acknowledged. *Token*: the caller's number for a publish; the
//! session only carries it. *Birth* and *will*: the retained messages on the presence topic that
//! say `online` (ours, after each CONNACK) and `offline` (the broker's, when we vanish; ours, on
//! an orderly close).
//!
//! # How it works
//! ```text
//!  publish ─▶ InFlight ─▶ poll_transmit ─▶ bytes ─▶ broker
//!  Notice::Acknowledged ◀─ PUBACK ◀─ handle_bytes ◀─┘
//! ```
//! The caller's part: [`Session::handle_connected`] once there is a transport; move bytes with
//! [`Session::handle_bytes`] and [`Session::poll_transmit`]; call [`Session::handle_timeout`] at
//! [`Session::poll_timeout`]; when [`Session::ended`] says so, write what is left, close the
//! transport and call [`Session::handle_disconnected`], which is also how a lost transport is
//! reported. After that, connect again.
//!
//! The wire format is rumqttc's codec (`codec.rs` lists its traps); its event loop is not used,
//! because it hides packet ids, forgets what was in flight when a session is lost and never sets DUP.
//!
//! # Deliberately absent
//! QoS 0 and 2, wildcards in subscriptions, topic aliases, an Assigned Client Identifier (the client id
//! is always ours), enhanced authentication, TLS (it belongs below the byte stream). What to do with a
//! refused publish is the forwarder's decision, what a received one means that of its consumer.
//!
//! Source: MQTT 5.0 and MQTT 3.1.1, OASIS.

mod backoff;
mod codec;
mod inflight;
mod negotiate;
mod notice;
mod paths;
mod presence;
mod receive;
mod session;
mod settings;

#[cfg(test)]
mod tests;

pub use backoff::{Backoff, BackoffError};
pub use notice::{Binary, CloseReason, Counters, Notice, Outgoing, PublishError, Refusal};
pub use paths::{Next, Paths};
pub use presence::Presence;
pub use receive::Received;
pub use session::{SEND_MARK, Session};
pub use settings::{Credentials, Protocol, Settings, SettingsError, Version};
