//! The session against scripted brokers, in virtual time.
//!
//! `peer` is the broker's side over the same codecs, `table` and `downstream` walk through single situations,
//! `random` runs random schedules and checks the log of everything that went over the wire.

mod downstream;
mod peer;
mod random;
mod table;

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Outgoing, Presence, Settings};

/// The virtual time at which every test begins.
#[allow(
    clippy::disallowed_methods,
    reason = "an `Instant` can be had in no other way; only its differences count"
)]
fn epoch() -> Instant {
    Instant::now()
}

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn settings() -> Settings {
    let presence = Presence {
        topic: "hark/flat-12/presence".into(),
        birth: Bytes::from_static(b"online"),
        will: Bytes::from_static(b"offline"),
    };
    Settings::new("flat-12", presence)
}

/// A publish whose payload tells its token.
fn outgoing(token: u64, filler: usize) -> Outgoing {
    let mut payload = token.to_be_bytes().to_vec();
    payload.resize(8 + filler, 0x5a);
    let mut outgoing = Outgoing::new(token, "hark/flat-12/events/alert".into(), payload.into());
    outgoing.content_type = Some("application/cloudevents+json".into());
    outgoing
}
