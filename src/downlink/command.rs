//! Commands: what may be asked of the device, and the memory that lets it do each once.
//!
//! A command is a CloudEvent on `hark/{device}/commands` whose type is one of [`COMMANDS`], without or
//! behind any prefix. Who may send one is the broker's matter (its access rules for the topic) and, where
//! the configuration lists them, that of the allowed sources.
//!
//! # Invariants
//! - A command is told by `source` and `id`. [`Done`] remembers the last [`DONE_MAX`] of them; it is kept
//!   with the answer, so that a command that comes again is neither carried out nor answered again.
//! - What cannot be read has one answer too, a rejection with the reason, as far as it says who it is.
//!
//! Absent: what a command does.
//!
//! Source: `docs/commands.md` describes them for the people on the other side.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::Deserialize;

use super::MESSAGE_BYTES_MAX;
use crate::clock::{ClockState, WallTime};
use crate::event::{Data, Event, Value, mqtt};
use crate::uplink::Received;

/// What may be asked for.
pub const COMMANDS: [&str; 6] = [
    "alarm.cancel",
    "alarm.acknowledge",
    "alarm.resolve",
    "alarm.test",
    "activity.away",
    "activity.home",
];
/// Commands that are remembered.
pub const DONE_MAX: usize = 128;
/// The memo of [`Done`].
pub const DONE_MEMO: &str = "commands";

/// Bytes of an id or a source that come back in an answer.
const NAME_BYTES_MAX: usize = 256;
const HASH_BYTES: usize = 16;
/// The namespace of the version 5 UUIDs by which commands are remembered. Never change it.
const NAMESPACE: uuid::Uuid = uuid::uuid!("4b0de3f4-3d0b-4f68-8f6f-6d7b2f3a9c15");

/// The topic on which commands come.
pub fn commands_topic(device: &str) -> Arc<str> {
    format!("hark/{device}/commands").into()
}

/// A request that can be understood, of somebody who is allowed to make it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// The request's `id`.
    pub id: String,
    /// Its `source`.
    pub source: String,
    /// One of [`COMMANDS`].
    pub name: &'static str,
    /// What it is about: the alarm's id.
    pub subject: Option<String>,
    /// Its `time`, as it came.
    pub time: Option<String>,
    /// The same, milliseconds since 1970.
    pub time_ms: Option<u64>,
    /// Who asks, for people.
    pub by: Option<String>,
    /// What is said to it.
    pub note: Option<String>,
    /// Of `activity.away`: the end, milliseconds since 1970.
    pub until_ms: Option<u64>,
}

/// What came is no such request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// Its `id`, where it has one that can be given back.
    pub id: Option<String>,
    /// Its `source`, likewise.
    pub source: Option<String>,
    /// What it asks for, where that can be told.
    pub command: Option<String>,
    /// What is wrong, in one line.
    pub reason: String,
}

#[derive(Debug, Default, Deserialize)]
struct CommandData {
    #[serde(default)]
    by: Option<String>,
    #[serde(default)]
    note: Option<String>,
    #[serde(default)]
    alarm: Option<String>,
    #[serde(default)]
    until: Option<String>,
}

/// Reads a command. `allowed` are the sources that may send one; empty: all whom the broker lets in.
///
/// # Errors
/// Why it is none, or not allowed.
pub fn decode_command(
    message: &Received,
    allowed: &[String],
    now: WallTime,
) -> Result<Command, Rejection> {
    let unread = |reason: String| Rejection { id: None, source: None, command: None, reason };
    let bytes = message.payload.len();
    if bytes > MESSAGE_BYTES_MAX {
        return Err(unread(format!("has {bytes} bytes, over the limit of {MESSAGE_BYTES_MAX}")));
    }
    let content_type = message.content_type.as_deref();
    let event = mqtt::parse(content_type, &message.user_properties, &message.payload)
        .map_err(|problem| unread(format!("is no CloudEvent: {problem}")))?;
    read(message, &event, allowed, now).map_err(|reason| Rejection {
        id: returnable(event.id()),
        source: returnable(event.source()),
        command: returnable(event.event_type()),
        reason,
    })
}

fn read(
    message: &Received,
    event: &Event,
    allowed: &[String],
    now: WallTime,
) -> Result<Command, String> {
    if returnable(event.id()).is_none() || returnable(event.source()).is_none() {
        return Err(format!("has an id or a source of more than {NAME_BYTES_MAX} bytes"));
    }
    if message.retained {
        return Err("is retained: it would come again with every connection".to_owned());
    }
    let is_named = |name: &&&str| {
        let prefix = event.event_type().strip_suffix(**name);
        prefix.is_some_and(|prefix| prefix.is_empty() || prefix.ends_with('.'))
    };
    let name = COMMANDS.iter().find(is_named).ok_or_else(|| {
        format!("has type {}; one of: {}", event.event_type(), COMMANDS.join(", "))
    })?;
    if !allowed.is_empty() && !allowed.iter().any(|source| source == event.source()) {
        return Err(format!("comes from {}, which commands.sources does not list", event.source()));
    }
    let instant = |name: &str| event.attribute(name).and_then(Value::as_str).and_then(milliseconds);
    let expired = instant("expirytime").is_some_and(|at| at < now.unix_ms);
    if expired && now.state == ClockState::Synced {
        return Err("has expired".to_owned());
    }
    let data = match event.data() {
        Data::Absent => CommandData::default(),
        Data::Json(raw) if raw.trim_ascii() == b"null" => CommandData::default(),
        Data::Json(raw) => serde_json::from_slice(raw).map_err(|e| format!("data: {e}"))?,
        Data::Base64(_) => return Err("data: must be JSON".to_owned()),
    };
    let until_ms = match &data.until {
        None => None,
        Some(until) => Some(milliseconds(until).ok_or_else(|| {
            format!("data: until is `{}`; RFC 3339 such as 2026-12-24T12:00:00Z", shortened(until))
        })?),
    };
    let text = |name: &str| event.attribute(name).and_then(Value::as_str).map(str::to_owned);
    Ok(Command {
        until_ms,
        id: event.id().to_owned(),
        source: event.source().to_owned(),
        name,
        subject: text("subject").or(data.alarm).filter(|subject| !subject.is_empty()),
        time: text("time"),
        time_ms: instant("time"),
        by: data.by.map(|by| shortened(&by)),
        note: data.note.map(|note| shortened(&note)),
    })
}

/// Since 1970, of an RFC 3339 time.
fn milliseconds(text: &str) -> Option<u64> {
    let at = chrono::DateTime::parse_from_rfc3339(text).ok()?;
    u64::try_from(at.timestamp_millis()).ok()
}

fn returnable(text: &str) -> Option<String> {
    (text.len() <= NAME_BYTES_MAX).then(|| text.to_owned())
}

/// What people write goes on into events, and has a bound there.
fn shortened(text: &str) -> String {
    let end = text.floor_char_boundary(NAME_BYTES_MAX);
    text[..end].chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Which commands were answered already.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Done {
    hashes: VecDeque<[u8; HASH_BYTES]>,
}

impl Done {
    /// Reads what [`Self::to_bytes`] has written; half an entry at the end is passed over.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let hashes = bytes.as_chunks::<HASH_BYTES>().0;
        let skip = hashes.len().saturating_sub(DONE_MAX);
        Self { hashes: hashes[skip..].iter().copied().collect() }
    }

    /// The memo.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.hashes.iter().flatten().copied().collect()
    }

    /// Whether this one was answered.
    pub fn contains(&self, source: &str, id: &str) -> bool {
        self.hashes.contains(&hash(source, id))
    }

    /// It is being answered; the oldest is forgotten where there is no room.
    pub fn insert(&mut self, source: &str, id: &str) {
        if self.hashes.len() >= DONE_MAX {
            self.hashes.pop_front();
        }
        self.hashes.push_back(hash(source, id));
    }
}

/// The length keeps `a` + `bc` and `ab` + `c` apart.
fn hash(source: &str, id: &str) -> [u8; HASH_BYTES] {
    let name = format!("{} {source}{id}", source.len());
    *uuid::Uuid::new_v5(&NAMESPACE, name.as_bytes()).as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: WallTime = WallTime { unix_ms: 1_795_000_000_000, state: ClockState::Synced };

    fn message(members: &str) -> Received {
        let payload = format!(r#"{{"specversion":"1.0","id":"c1","source":"/care",{members}}}"#);
        Received {
            topic: "hark/d/commands".into(),
            payload: payload.into(),
            content_type: Some("application/cloudevents+json".into()),
            user_properties: Vec::new(),
            retained: false,
        }
    }

    fn decode(members: &str) -> Result<Command, Rejection> {
        decode_command(&message(members), &[], NOW)
    }

    #[test]
    fn a_command_is_read_with_and_without_a_prefix() {
        for prefix in ["", "io.hark.", "com.example.command."] {
            let command = decode(&format!(
                r#""type":"{prefix}alarm.acknowledge","subject":"a1","time":"2026-11-22T10:00:00Z","data":{{"by":"Anna","note":"on my way","later":1}}"#
            ));
            let command = command.expect("a command");
            assert_eq!(command.name, "alarm.acknowledge");
            assert_eq!(command.subject.as_deref(), Some("a1"));
            assert_eq!(command.time_ms, Some(1_795_341_600_000));
            assert_eq!(
                (command.by.as_deref(), command.note.as_deref()),
                (Some("Anna"), Some("on my way"))
            );
        }
        let bare = decode(r#""type":"alarm.test""#).expect("a command");
        assert_eq!((bare.subject, bare.time_ms, bare.by), (None, None, None));
        let away = decode(r#""type":"activity.away","data":{"until":"1970-01-01T00:00:01Z"}"#);
        assert_eq!(away.expect("a command").until_ms, Some(1000));
        let named = decode(r#""type":"alarm.cancel","data":{"alarm":"a2"}"#).expect("a command");
        assert_eq!(named.subject.as_deref(), Some("a2"));
    }

    #[test]
    fn what_is_no_command_is_rejected_with_a_line_that_says_why() {
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        let table = [
            (r#""type":"alarm.burn""#.to_owned(), "one of: alarm.cancel"),
            (r#""type":"notalarm.test""#.to_owned(), "one of: alarm.cancel"),
            (r#""type":"alarm.test","data":[1]"#.to_owned(), "data: "),
            (r#""type":"activity.away","data":{"until":"soon"}"#.to_owned(), "until is `soon`"),
            (r#""type":"alarm.test","data_base64":"AA==""#.to_owned(), "must be JSON"),
            (r#""type":"alarm.test","expirytime":"2020-01-01T00:00:00Z""#.to_owned(), "expired"),
        ];
        for (members, expected) in table {
            let rejection = decode(&members).expect_err(expected);
            assert!(rejection.reason.contains(expected), "{expected}: {}", rejection.reason);
            assert_eq!(
                (rejection.id.as_deref(), rejection.source.as_deref()),
                (Some("c1"), Some("/care"))
            );
        }
        let mut garbage = message(r#""type":"alarm.test""#);
        garbage.payload = b"\xff{"[..].into();
        let mut huge = garbage.clone();
        huge.payload = vec![b' '; MESSAGE_BYTES_MAX + 1].into();
        let mut retained = message(r#""type":"alarm.test""#);
        retained.retained = true;
        let mut named = message(r#""type":"alarm.test""#);
        named.payload =
            format!(r#"{{"specversion":"1.0","id":"{long}","source":"/s","type":"alarm.test"}}"#)
                .into();
        let table = [
            (garbage, "no CloudEvent"),
            (huge, "over the limit"),
            (retained, "retained"),
            (named, "more than 256"),
        ];
        for (message, expected) in table {
            let rejection = decode_command(&message, &[], NOW).expect_err(expected);
            assert!(rejection.reason.contains(expected), "{expected}: {}", rejection.reason);
        }
    }

    #[test]
    fn only_listed_sources_are_heard_where_there_is_a_list() {
        let allowed = ["/other".to_owned()];
        let refused =
            decode_command(&message(r#""type":"alarm.test""#), &allowed, NOW).expect_err("no");
        assert!(refused.reason.contains("commands.sources"), "{}", refused.reason);
        let allowed = ["/other".to_owned(), "/care".to_owned()];
        assert!(decode_command(&message(r#""type":"alarm.test""#), &allowed, NOW).is_ok());
    }

    #[test]
    fn commands_are_remembered_across_a_restart_and_their_memory_is_bounded() {
        let mut done = Done::default();
        for number in 0..DONE_MAX + 10 {
            let id = number.to_string();
            assert!(!done.contains("/care", &id));
            done.insert("/care", &id);
            done = Done::from_bytes(&done.to_bytes());
            assert!(done.contains("/care", &id) && !done.contains("/car", &format!("e{id}")));
        }
        assert_eq!(done.to_bytes().len(), DONE_MAX * HASH_BYTES);
        assert!(!done.contains("/care", "9") && done.contains("/care", "10"));
        assert!(Done::from_bytes(&[1, 2, 3]).hashes.is_empty());
    }
}
