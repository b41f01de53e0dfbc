//! What is known of the wall clock of each boot, and what follows for records that were accepted before it was
//! right.
//!
//! # Invariants
//! - What is known of a boot is learned once, committed before it is used, and never changed: from then on a record
//!   reads the same each time, across restarts and reboots.
//! - What is stored is never rewritten. `id`, `source`, `sequence` and data are as they were; an event that was
//!   handed in by another program keeps its `time`.
//!
//! # How it works
//! While the wall clock cannot be believed, each record carries the boot and the time since it ([`Noted`]).
//! When a group of the same boot begins with a clock that is synchronised, the two readings together say when
//! that boot began. That is a memo, so that a record of the last boot is corrected in this one, too.
//!
//! Absent: judging whether a synchronised clock is right.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::codec;
use super::error::OutboxError;
use super::memo::Memo;
use super::queue::Outbox;
use super::record::Record;
use super::store::Store;
use crate::clock::{ClockState, WallTime};
use crate::event::{Moment, Noted};

/// The memo's name.
const MEMO: &str = "clock.boots";
/// Boots that are remembered. An older record that still waits keeps the time that it has.
const MAX_BOOTS: usize = 32;

/// When boots began.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Times {
    /// The oldest first: id, and the wall time at which its monotonic clock was 0, milliseconds since 1970.
    boots: VecDeque<(String, u64)>,
}

impl Times {
    /// What was remembered; nothing where that cannot be read, since a record is worth more than its time.
    pub(super) fn recall<S: Store>(outbox: &Outbox<S>) -> Self {
        let bytes = outbox.memo(MEMO).ok().flatten();
        bytes.and_then(|bytes| codec::decode(&bytes).ok()).unwrap_or_default()
    }

    fn knows(&self, boot: &str) -> bool {
        self.boots.iter().any(|(known, _)| known == boot)
    }

    fn wall_ms(&self, boot: &str, ms: u64) -> Option<u64> {
        let (_, began) = self.boots.iter().find(|(known, _)| known == boot)?;
        Some(began.saturating_add(ms))
    }

    /// The record with the times that it should have had, as far as they are known.
    pub(super) fn present(&self, mut record: Record) -> Record {
        let Some(Noted { accepted: Moment { boot, ms }, taken_ms }) = record.event.noted() else {
            return record;
        };
        let accepted_ms = self.wall_ms(boot, *ms);
        let taken_ms = taken_ms.and_then(|taken| self.wall_ms(boot, taken));
        record.accepted_ms = accepted_ms.unwrap_or(record.accepted_ms);
        if let Some(taken_ms) = taken_ms {
            record.event.correct(taken_ms);
        }
        record
    }
}

impl<S: Store> Outbox<S> {
    /// Says how long this boot lasts now. Without it nothing is noted and nothing is learned.
    pub fn set_moment(&mut self, moment: Option<Moment>) {
        self.moment = moment;
    }

    /// Whether the clock was right in this boot already. While it was not, it is worth asking again.
    pub fn knows_the_time(&self) -> bool {
        self.moment.as_ref().is_none_or(|moment| self.times.knows(&moment.boot))
    }

    /// Learns from a clock that is right now when this boot began; true if that is new. Whoever has read
    /// records is to read them again: [`Levels::opened`](super::Levels::opened) has changed.
    ///
    /// # Errors
    /// As those of [`Group::commit`](super::Group::commit).
    pub fn learn_time(&mut self, now: WallTime) -> Result<bool, OutboxError> {
        let Some(Moment { boot, ms }) = self.moment.clone() else { return Ok(false) };
        if now.state != ClockState::Synced || self.times.knows(&boot) {
            return Ok(false);
        }
        let mut times = self.times.clone();
        times.boots.push_back((boot, now.unix_ms.saturating_sub(ms)));
        if times.boots.len() > MAX_BOOTS {
            times.boots.pop_front();
        }
        let bytes = codec::encode(&times).map_err(OutboxError::Encode)?;
        let mut group = self.begin(now)?;
        group.remember(&Memo { name: MEMO, bytes })?;
        group.commit()?;
        self.times = times;
        self.opened_anew();
        Ok(true)
    }
}

#[cfg(test)]
#[path = "times_tests.rs"]
mod tests;
