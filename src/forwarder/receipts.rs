//! Records that the broker has acknowledged and whose consumer has not yet said that it has them.
//!
//! # Invariants
//! - A record is here from its PUBACK until a receipt names it or its next publish begins.
//! - Only names are kept, no payloads: a record that is to be published again is read from the outbox
//!   again. Bounded by [`AWAITING_MAX`].
//! - The wait doubles with each publish of the same record, up to [`WAIT_MAX`], so that a consumer that
//!   never answers costs little.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::event::Lane;
use crate::outbox::Position;

/// Records that wait for their receipt at most. Beyond it `status` and `telemetry` rest; an alert is
/// published all the same and read from the outbox again once the others have theirs.
pub(super) const AWAITING_MAX: usize = 8192;
/// The longest wait, unless the timeout itself is longer.
const WAIT_MAX: Duration = Duration::from_secs(600);
/// After a reconnect the broker may have receipts for us: so long nothing is published again.
pub(super) const GRACE: Duration = Duration::from_secs(5);

type Place = (Lane, Position);

#[derive(Debug)]
struct Wait {
    id: Arc<str>,
    source: Arc<str>,
    /// `None`: the wait is over and the record is to be read and published again.
    due: Option<Instant>,
    rounds: u32,
}

#[derive(Debug, Default)]
pub(super) struct Awaiting {
    waits: BTreeMap<Place, Wait>,
    due: BTreeSet<(Instant, Place)>,
    over: BTreeSet<Place>,
    places: HashMap<Arc<str>, Vec<Place>>,
}

impl Awaiting {
    pub(super) fn len(&self) -> usize {
        self.waits.len()
    }

    /// How many of a lane there are.
    pub(super) fn of(&self, lane: Lane) -> usize {
        let all = (lane, Position(0))..=(lane, Position(u64::MAX));
        self.waits.range(all).count()
    }

    /// All of them.
    pub(super) fn places(&self) -> impl Iterator<Item = Place> {
        self.waits.keys().copied()
    }

    /// The broker has it. `rounds` is how often it had been published before.
    pub(super) fn insert(
        &mut self,
        (lane, position): Place,
        (id, source): (Arc<str>, Arc<str>),
        rounds: u32,
        now: Instant,
        timeout: Duration,
    ) {
        let wait = timeout.saturating_mul(2u32.saturating_pow(rounds.min(16)));
        let due = now + wait.min(WAIT_MAX.max(timeout));
        let place = (lane, position);
        self.places.entry(id.clone()).or_default().push(place);
        self.due.insert((due, place));
        self.waits.insert(place, Wait { id, source, due: Some(due), rounds });
    }

    /// Takes out what a receipt names: this id in this lane, of this source if it gives one.
    pub(super) fn take(&mut self, lane: Lane, source: Option<&str>, id: &str) -> Vec<Position> {
        let Some(places) = self.places.get(id) else { return Vec::new() };
        let named = |place: &&Place| {
            let of_source = |wait: &Wait| source.is_none_or(|source| *source == *wait.source);
            place.0 == lane && self.waits.get(place).is_some_and(of_source)
        };
        let named: Vec<Place> = places.iter().filter(named).copied().collect();
        for place in &named {
            self.remove(*place);
        }
        named.into_iter().map(|(_, position)| position).collect()
    }

    /// Takes one out; returns how often it had been published before.
    pub(super) fn remove(&mut self, place: Place) -> Option<u32> {
        let wait = self.waits.remove(&place)?;
        if let Some(due) = wait.due {
            self.due.remove(&(due, place));
        }
        self.over.remove(&place);
        if let Some(places) = self.places.get_mut(&wait.id) {
            places.retain(|p| *p != place);
            if places.is_empty() {
                self.places.remove(&wait.id);
            }
        }
        Some(wait.rounds)
    }

    /// When the next wait is over.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    /// Ends the waits that are over by `now`. Returns how many, and the first with its id.
    pub(super) fn expire(&mut self, now: Instant) -> Option<(usize, Lane, Arc<str>)> {
        let mut first = None;
        let mut count = 0;
        while let Some((due, place)) = self.due.first().copied().filter(|(due, _)| *due <= now) {
            self.due.remove(&(due, place));
            self.over.insert(place);
            if let Some(wait) = self.waits.get_mut(&place) {
                wait.due = None;
                count += 1;
                first.get_or_insert_with(|| (place.0, wait.id.clone()));
            }
        }
        first.map(|(lane, id)| (count, lane, id))
    }

    /// The record to be read and published again.
    pub(super) fn over(&self) -> Option<Place> {
        self.over.first().copied()
    }

    /// No wait is over before `until`: the connection is new.
    pub(super) fn grant(&mut self, until: Instant) {
        while let Some((due, place)) = self.due.first().copied().filter(|(due, _)| *due < until) {
            self.due.remove(&(due, place));
            self.due.insert((until, place));
            if let Some(wait) = self.waits.get_mut(&place) {
                wait.due = Some(until);
            }
        }
    }
}
