//! Room: what gives way when the outbox is full, and what becomes too old.
//!
//! ```text
//! 0 ──────────────── telemetry may fill ────────────────┤ status ├── alerts ──┤ limit
//! ```
//! - The limit counts bytes of frames; what of the disk that takes is the engine's matter
//!   (`docs/outbox.md`). Of it [`ALERT_SHARE`] is kept for alerts and [`STATUS_SHARE`] for status.
//! - An event for which there is no room in its part evicts: telemetry oldest first, then status,
//!   never an alert. Telemetry evicts telemetry only; an alert is taken in any case.
//! - Eviction frees more than is needed at once (`EVICTED_SHARE`), so that not every commit
//!   writes an event that tells of it.
//! - Telemetry older than its expiry is removed, if the clock can be believed now and could then.
//!
//! - What somebody asks to be destroyed ([`Group::purge`]) goes in the same way.
//!
//! All are told by an event in the same commit.

use std::time::Duration;

use super::error::OutboxError;
use super::group::Group;
use super::record::{PageLimit, Position, Record};
use super::store::Store;
use crate::clock::ClockState;
use crate::event::{Event, Lane, Losses, json};

/// The part of the limit that only alerts may fill: one in so many.
pub const ALERT_SHARE: u64 = 4;
/// The part of the limit that status may fill and telemetry may not: one in so many.
pub const STATUS_SHARE: u64 = 8;
/// The part of the limit that is freed at once: one in so many.
const EVICTED_SHARE: u64 = 64;
/// Records that one commit evicts or expires at most, beyond what it must.
const MAX_RECORDS: usize = 2048;
/// Records that one commit destroys at somebody's request: an alert waits for that commit.
pub const PURGED_AT_ONCE: usize = 256;
/// What a frame has beyond the structured JSON of its event, about.
const FRAME_BYTES: u64 = 128;
/// 2024-01-01: an older time of acceptance is that of a clock that did not know better.
const EARLIEST_MS: u64 = 1_704_067_200_000;

const PAGE: PageLimit = PageLimit { records: 128, bytes: 256 * 1024 };

/// How much is kept, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of frames in all lanes.
    pub bytes: u64,
    /// How long telemetry is of use.
    pub expiry: Duration,
}

impl Limits {
    /// What all lanes together may fill when an event of this lane comes.
    fn ceiling(self, lane: Lane) -> u64 {
        let status = self.bytes - self.bytes / ALERT_SHARE;
        match lane {
            Lane::Alert => self.bytes,
            Lane::Status => status,
            Lane::Telemetry => status - self.bytes / STATUS_SHARE,
        }
    }
}

impl<S: Store> Group<'_, S> {
    /// Makes room for events, or says that there is none.
    pub(super) fn make_room(&mut self, events: &[(Lane, Event)]) -> Result<(), OutboxError> {
        let Some(lane) = events.iter().map(|(lane, _)| *lane).min() else { return Ok(()) };
        let result = self.make_room_for(lane, events);
        if result.is_err() {
            self.outbox.refuse(events.len());
        }
        result
    }

    fn make_room_for(&mut self, lane: Lane, events: &[(Lane, Event)]) -> Result<(), OutboxError> {
        if lane == Lane::Telemetry && self.outbox.is_short() {
            return Err(OutboxError::DiskFull);
        }
        let Some(limits) = self.outbox.limits else { return Ok(()) };
        let size = |event: &Event| json::to_vec(event).len() as u64 + FRAME_BYTES;
        let needed: u64 = events.iter().map(|(_, event)| size(event)).sum();
        let ceiling = limits.ceiling(lane);
        let filled = |group: &Self| group.state.bytes.iter().sum::<u64>() + needed;
        if filled(self) <= ceiling {
            return Ok(());
        }
        let goal = ceiling.saturating_sub(limits.bytes / EVICTED_SHARE);
        self.evict(Lane::Telemetry, |group| filled(group) > goal)?;
        if lane < Lane::Telemetry && filled(self) > ceiling {
            self.evict(Lane::Status, |group| filled(group) > goal)?;
        }
        // Alerts are taken in any case, and so is the status that tells of a loss.
        if filled(self) > ceiling && lane == Lane::Telemetry {
            return Err(OutboxError::Full { lane, bytes: limits.bytes });
        }
        if filled(self) > limits.bytes && lane == Lane::Status {
            return Err(OutboxError::Full { lane, bytes: limits.bytes });
        }
        Ok(())
    }

    fn evict(&mut self, lane: Lane, more: impl Fn(&Self) -> bool) -> Result<(), OutboxError> {
        let gone = self.remove_oldest(lane, MAX_RECORDS, |group, _| more(group))?;
        self.evicted.merge(&gone);
        Ok(())
    }

    /// Removes telemetry that is too old to be of use, a bounded number of records; false if there
    /// may be more.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn expire(&mut self) -> Result<bool, OutboxError> {
        let Some(limits) = self.outbox.limits else { return Ok(true) };
        if self.now.state != ClockState::Synced {
            return Ok(true);
        }
        let expiry = u64::try_from(limits.expiry.as_millis()).unwrap_or(u64::MAX);
        let until = self.now.unix_ms.saturating_sub(expiry);
        let old = |record: &Record| (EARLIEST_MS..=until).contains(&record.accepted_ms);
        let gone = self.remove_oldest(Lane::Telemetry, MAX_RECORDS, |_, record| old(record))?;
        self.expired.merge(&gone);
        Ok(gone.total() < MAX_RECORDS as u64)
    }

    /// Destroys the records of a lane up to a position because somebody asks for it, [`PURGED_AT_ONCE`]
    /// of them, and tells. Returns what is gone; nothing if none is left.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn purge(&mut self, lane: Lane, until: Position) -> Result<Losses, OutboxError> {
        let named = |_: &Self, record: &Record| record.position <= until;
        let gone = self.remove_oldest(lane, PURGED_AT_ONCE, named)?;
        self.purged.merge(&gone);
        Ok(gone)
    }

    /// Removes the oldest records of a lane, `most` of them, while `unwanted` says so.
    fn remove_oldest(
        &mut self,
        lane: Lane,
        most: usize,
        unwanted: impl Fn(&Self, &Record) -> bool,
    ) -> Result<Losses, OutboxError> {
        let mut gone = Losses::default();
        let mut after: Option<Position> = None;
        while gone.total() < most as u64 {
            let page = self.outbox.read(lane, after, PAGE)?;
            for damage in &page.damaged {
                self.set_aside(lane, damage)?;
            }
            let damaged = page.damaged.last().map(|damage| damage.position);
            after = damaged.max(page.records.last().map(|record| record.position));
            if after.is_none() {
                break;
            }
            for record in page.records {
                if self.removed.contains_key(&(lane, record.position)) {
                    continue;
                }
                if !unwanted(self, &record) {
                    return Ok(gone);
                }
                self.remove(&[(lane, record.position)])?;
                gone.add(lane, record.event.source(), record.sequence);
            }
        }
        Ok(gone)
    }
}

#[cfg(test)]
#[path = "room_tests.rs"]
mod tests;
