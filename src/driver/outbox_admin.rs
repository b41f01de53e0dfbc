//! What is in the outbox, for people: counts, pages, single events; and the two things that people
//! may do to it: put dead letters back, and destroy.
//!
//! It works on an [`OutboxHandle`], so that the running agent's socket (`outbox_http`)
//! and `hark outbox` on the files of an agent that does not run are one and the same.
//!
//! Bounds: an answer holds at most [`MAX_ENTRIES`] events, about [`MAX_PAGE_BYTES`] and what a look at
//! [`MAX_LOOKED_AT`] records finds; [`Page::next`] says where to go on. The writer is asked for a page at a
//! time, so that alerts pass in between.

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::{mpsc, oneshot};

use super::outbox_open::size;
use super::outbox_writer::{OutboxHandle, Purge};
use crate::clock::{ClockState, WallTime};
use crate::event::{Event, Lane, Losses, json};
use crate::outbox::{DeadLetter, OutboxError, PageLimit, Position, Record, sequence_text};

/// Events in one answer at most.
pub const MAX_ENTRIES: usize = 256;
/// Bytes of events after which an answer ends.
pub const MAX_PAGE_BYTES: usize = 512 * 1024;
/// Records that are looked at for one answer.
pub const MAX_LOOKED_AT: usize = 4096;

const READ: PageLimit = PageLimit { records: 128, bytes: 256 * 1024 };
/// How long the forwarder may take to say what is under way; then nothing is.
const ASK: Duration = Duration::from_secs(1);

/// What the forwarder has handed out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnderWay {
    /// Published, and no PUBACK yet.
    pub in_flight: HashSet<(Lane, Position)>,
    /// The broker has them, the consumer's receipt is missing.
    pub unconfirmed: HashSet<(Lane, Position)>,
}

/// How the forwarder is asked.
pub type AskUnderWay = mpsc::Sender<oneshot::Sender<UnderWay>>;

/// How it stands with an event in the outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// For its turn.
    Waiting,
    /// Published, and no PUBACK yet.
    InFlight,
    /// The broker has it, the consumer's receipt is missing.
    Unconfirmed,
    /// Set aside, since it cannot be delivered.
    DeadLetter,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Waiting => "waiting",
            Self::InFlight => "in flight",
            Self::Unconfirmed => "unconfirmed",
            Self::DeadLetter => "dead letter",
        })
    }
}

/// An event in the outbox, as it is shown.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Entry {
    /// Its attribute `id`.
    pub id: String,
    /// Its attribute `source`.
    pub source: String,
    /// Its attribute `type`.
    #[serde(rename = "type")]
    pub event_type: String,
    /// Its lane.
    pub lane: Lane,
    /// Its place there.
    pub position: u64,
    /// Its extension `sequence`.
    pub sequence: String,
    /// Its attribute `time`, where it has one.
    pub time: Option<String>,
    /// When it was accepted, by the clock of then.
    pub accepted: String,
    /// Its size as structured JSON.
    pub bytes: usize,
    /// How it stands with it.
    pub state: State,
    /// Why it is a dead letter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_since: Option<String>,
    /// The event itself, where it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<Box<RawValue>>,
}

/// What is looked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Query {
    /// In this lane only.
    pub lane: Option<Lane>,
    /// Dead letters only.
    pub dead: bool,
    /// With this `id` only.
    pub id: Option<String>,
    /// Whether the events themselves come along.
    pub events: bool,
    /// Where to go on: what [`Page::next`] said.
    pub after: Option<Cursor>,
    /// Entries at most; 0 and more than [`MAX_ENTRIES`] mean as many as fit.
    pub limit: usize,
}

/// A part of what was looked for.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Page {
    /// Waiting events by lane and position, then dead letters.
    pub entries: Vec<Entry>,
    /// Where to go on; `None` at the end.
    pub next: Option<Cursor>,
}

/// A place between two entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    dead: bool,
    lane: Lane,
    after: Option<Position>,
}

impl Cursor {
    const FIRST: Self = Self { dead: false, lane: Lane::Alert, after: None };

    /// The beginning of the next lane, or of the dead letters.
    fn next(self) -> Option<Self> {
        match (self.dead, Lane::ALL.get(self.lane.index() + 1)) {
            (dead, Some(lane)) => Some(Self { dead, lane: *lane, after: None }),
            (false, None) => Some(Self { dead: true, ..Self::FIRST }),
            (true, None) => None,
        }
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let section = if self.dead { "dead" } else { "waiting" };
        write!(f, "{section}.{}.{}", self.lane, self.after.unwrap_or_default())
    }
}

impl FromStr for Cursor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let [section, lane, after] = text.split('.').collect::<Vec<_>>().try_into().ok()?;
            let dead = ["waiting", "dead"].iter().position(|name| *name == section)? == 1;
            let after = Some(Position(after.parse().ok()?));
            Some(Self { dead, lane: lane.parse().ok()?, after })
        };
        parse().ok_or_else(|| format!("`{text}` is no place to go on from"))
    }
}

impl Serialize for Cursor {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cursor {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// How much there is in a lane.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneStats {
    /// Events that are to be delivered, those under way included.
    pub waiting: u64,
    /// Of these: published, and no PUBACK yet.
    pub in_flight: u64,
    /// Of these: the broker has them, the consumer's receipt is missing.
    pub unconfirmed: u64,
    /// Bytes of what waits.
    pub bytes: u64,
    /// When the oldest of them was accepted.
    pub oldest: Option<String>,
    /// Events that were set aside.
    pub dead_letters: u64,
}

/// How much there is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// By lane. Order: alert, status, telemetry.
    pub lanes: [LaneStats; 3],
    /// Bytes of the outbox's files, the room kept back for alerts included.
    pub size_on_disk: u64,
    /// What they may have at most.
    pub max_size: u64,
    /// The disk is so full that telemetry is refused.
    pub disk_short: bool,
    /// Events that were refused for want of room since the agent started.
    pub refused: u64,
}

/// What is to be put back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Requeue {
    /// The dead letter with this `id`.
    Id(String),
    /// All dead letters.
    All,
}

/// What is to be destroyed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Destroy {
    /// Dead letters instead of what waits.
    pub dead: bool,
    /// In these lanes.
    pub lanes: Vec<Lane>,
}

/// See the [module](self). Cheap to clone.
#[derive(Debug, Clone)]
pub struct Admin {
    outbox: OutboxHandle,
    path: PathBuf,
    max_size: u64,
    ask: Option<AskUnderWay>,
}

impl Admin {
    /// For the outbox whose files are in `path`; `ask` is the way to the forwarder, where one runs.
    pub fn new(
        outbox: OutboxHandle,
        path: PathBuf,
        max_size: u64,
        ask: Option<AskUnderWay>,
    ) -> Self {
        Self { outbox, path, max_size, ask }
    }

    /// How much there is.
    ///
    /// # Errors
    /// The outbox cannot be read.
    pub async fn stats(&self) -> Result<Stats, OutboxError> {
        let census = self.outbox.census().await?;
        let under_way = self.under_way().await;
        let count = |set: &HashSet<(Lane, Position)>, lane| {
            set.iter().filter(|(of, _)| *of == lane).count() as u64
        };
        let lanes = Lane::ALL.map(|lane| LaneStats {
            waiting: census.levels.records[lane.index()],
            in_flight: count(&under_way.in_flight, lane),
            unconfirmed: count(&under_way.unconfirmed, lane),
            bytes: census.bytes[lane.index()],
            oldest: census.oldest_ms[lane.index()].map(rfc3339),
            dead_letters: census.levels.dead[lane.index()],
        });
        Ok(Stats {
            lanes,
            size_on_disk: size(&self.path),
            max_size: self.max_size,
            disk_short: census.levels.short,
            refused: census.levels.refused,
        })
    }

    /// A part of what was looked for.
    ///
    /// # Errors
    /// The outbox cannot be read.
    pub async fn page(&self, query: &Query) -> Result<Page, OutboxError> {
        let limit = if query.limit == 0 { MAX_ENTRIES } else { query.limit.min(MAX_ENTRIES) };
        let under_way = self.under_way().await;
        let mut at = Some(query.after.unwrap_or(Cursor { dead: query.dead, ..Cursor::FIRST }));
        let (mut page, mut looked_at, mut bytes) = (Page::default(), 0, 0);
        while let Some(mut cursor) = at {
            if query.lane.is_some_and(|lane| lane != cursor.lane) {
                at = cursor.next();
                continue;
            }
            let found = self.read(cursor).await?;
            if found.is_empty() {
                at = cursor.next();
                continue;
            }
            for (record, dead) in found {
                if page.entries.len() >= limit
                    || bytes >= MAX_PAGE_BYTES
                    || looked_at >= MAX_LOOKED_AT
                {
                    return Ok(Page { next: Some(cursor), ..page });
                }
                looked_at += 1;
                cursor.after = Some(record.position);
                if query.id.as_ref().is_none_or(|id| id == record.event.id()) {
                    let entry = entry(&record, dead, &under_way, query.events);
                    bytes += entry.bytes;
                    page.entries.push(entry);
                }
            }
            at = Some(cursor);
        }
        Ok(page)
    }

    async fn read(
        &self,
        Cursor { dead, lane, after }: Cursor,
    ) -> Result<Vec<(Record, Option<Dead>)>, OutboxError> {
        if !dead {
            let records = self.outbox.page(lane, after, READ).await?;
            return Ok(records.into_iter().map(|record| (record, None)).collect());
        }
        let letters = self.outbox.dead_letters(lane, after, READ).await?;
        let dead = |letter: DeadLetter| (letter.record, Some((letter.reason, letter.since_ms)));
        Ok(letters.into_iter().map(dead).collect())
    }

    /// Puts dead letters back into their lanes; how many.
    ///
    /// # Errors
    /// The outbox has failed.
    pub async fn requeue(&self, what: &Requeue) -> Result<usize, OutboxError> {
        let mut done = 0;
        for lane in Lane::ALL {
            match what {
                Requeue::All => done += self.outbox.requeue(lane, None).await?,
                Requeue::Id(id) => {
                    let (mut places, mut after) = (Vec::new(), None);
                    loop {
                        let letters = self.outbox.dead_letters(lane, after, READ).await?;
                        let Some(last) = letters.last() else { break };
                        after = Some(last.record.position);
                        let named = letters.iter().filter(|l| l.record.event.id() == id);
                        places.extend(named.map(|letter| letter.record.position));
                    }
                    for place in places {
                        done += self.outbox.requeue(lane, Some(place)).await?;
                    }
                }
            }
        }
        Ok(done)
    }

    /// Destroys events for good; events of the outbox's own tell which. What the forwarder has read
    /// already may still be published. Returns how many are gone, by lane.
    ///
    /// # Errors
    /// The outbox has failed.
    pub async fn purge(&self, what: &Destroy) -> Result<[u64; 3], OutboxError> {
        let mut gone = Losses::default();
        // What comes after this moment stays: also what tells of the purge.
        let until = self.outbox.census().await?.levels.tails;
        for &lane in &what.lanes {
            if what.dead {
                gone.merge(&self.outbox.purge(lane, Purge::DeadLetters).await?);
                continue;
            }
            let Some(until) = until[lane.index()] else { continue };
            loop {
                let some = self.outbox.purge(lane, Purge::UpTo(until)).await?;
                if some.is_empty() {
                    break;
                }
                gone.merge(&some);
            }
        }
        if !gone.is_empty() {
            tracing::warn!(
                dead_letters = what.dead,
                alert = gone.counts[0],
                status = gone.counts[1],
                telemetry = gone.counts[2],
                "events were purged by hand"
            );
        }
        Ok(gone.counts)
    }

    async fn under_way(&self) -> UnderWay {
        let Some(ask) = &self.ask else { return UnderWay::default() };
        let (reply, answer) = oneshot::channel();
        let asked = async {
            ask.send(reply).await.ok()?;
            answer.await.ok()
        };
        tokio::time::timeout(ASK, asked).await.ok().flatten().unwrap_or_default()
    }
}

/// The reason of a dead letter, and since when it is one.
type Dead = (String, u64);

fn entry(record: &Record, dead: Option<Dead>, under_way: &UnderWay, with_event: bool) -> Entry {
    let event = &record.event;
    let place = (record.lane, record.position);
    let state = match &dead {
        Some(_) => State::DeadLetter,
        None if under_way.in_flight.contains(&place) => State::InFlight,
        None if under_way.unconfirmed.contains(&place) => State::Unconfirmed,
        None => State::Waiting,
    };
    let (reason, since_ms) = dead.unzip();
    let text = json::to_vec(event);
    Entry {
        id: event.id().to_owned(),
        source: event.source().to_owned(),
        event_type: event.event_type().to_owned(),
        lane: record.lane,
        position: record.position.0,
        sequence: sequence_text(record.sequence),
        time: event.attribute("time").map(ToString::to_string),
        accepted: rfc3339(record.accepted_ms),
        bytes: text.len(),
        state,
        reason,
        dead_since: since_ms.map(rfc3339),
        event: with_event.then(|| raw(event)).flatten(),
    }
}

fn raw(event: &Event) -> Option<Box<RawValue>> {
    // Our own JSON is JSON.
    RawValue::from_string(String::from_utf8(json::to_vec(event)).ok()?).ok()
}

fn rfc3339(unix_ms: u64) -> String {
    WallTime { unix_ms, state: ClockState::Unsynced }.to_rfc3339()
}
