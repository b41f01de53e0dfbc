//! Makes the agent's own events and puts them into the outbox; remembers which parts are at fault.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::broadcast;

use super::Happening;
use super::board::Board;
use crate::clock::{Clock, Rng, WallTime};
use crate::driver::outbox_writer::OutboxHandle;
use crate::event::Event;
use crate::event::Lane;
use crate::event::catalogue::{Maker, Occurrence};
use crate::outbox::Accepted;

/// Cheap to clone; all clones share the faults.
#[derive(Debug, Clone)]
pub(super) struct Reporter {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    maker: Maker,
    clock: Clock,
    rng: Mutex<Rng>,
    outbox: OutboxHandle,
    happenings: broadcast::Sender<Happening>,
    board: Board,
    at_fault: Mutex<BTreeSet<String>>,
}

/// A thread that panicked with the lock held left nothing half done in these small values.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn types(events: &[(Lane, Event)]) -> Vec<String> {
    events.iter().map(|(_, event)| event.event_type().to_owned()).collect()
}

impl Reporter {
    pub(super) fn new(
        maker: Maker,
        clock: Clock,
        rng: Rng,
        outbox: OutboxHandle,
        happenings: broadcast::Sender<Happening>,
        board: Board,
    ) -> Self {
        let (rng, at_fault) = (Mutex::new(rng), Mutex::default());
        let shared = Shared { maker, clock, rng, outbox, happenings, board, at_fault };
        Self { shared: Arc::new(shared) }
    }

    /// Tells whoever watches; nobody may. The board notes it.
    pub(super) fn happened(&self, happening: Happening) {
        self.shared.board.note(&happening);
        let _ = self.shared.happenings.send(happening);
    }

    /// Returns once the event is on stable storage.
    ///
    /// # Errors
    /// One line: the event could not be made or stored.
    pub(super) async fn report(&self, occurrence: &Occurrence) -> Result<(), String> {
        self.store(vec![self.make(occurrence, self.shared.clock.wall())?]).await
    }

    /// Returns once events that were made before are on stable storage, all or none.
    ///
    /// # Errors
    /// One line: they could not be stored.
    pub(super) async fn store(&self, events: Vec<(Lane, Event)>) -> Result<(), String> {
        let types = types(&events);
        let accepted = self.shared.outbox.append(events).await;
        self.accepted(types, accepted.map_err(|e| e.to_string())?);
        Ok(())
    }

    /// The same for a thread.
    pub(super) fn report_blocking(&self, occurrence: &Occurrence) -> Result<(), String> {
        self.report_at_blocking(occurrence, self.shared.clock.wall())
    }

    /// The same for something that happened at `at`.
    pub(super) fn report_at_blocking(
        &self,
        occurrence: &Occurrence,
        at: WallTime,
    ) -> Result<(), String> {
        let events = vec![self.make(occurrence, at)?];
        let types = types(&events);
        let accepted = self.shared.outbox.append_blocking(events);
        self.accepted(types, accepted.map_err(|e| e.to_string())?);
        Ok(())
    }

    /// The event of something that happened at `at`, to be stored later.
    ///
    /// # Errors
    /// One line: it breaks the rules of events.
    pub(super) fn make(
        &self,
        occurrence: &Occurrence,
        at: WallTime,
    ) -> Result<(Lane, Event), String> {
        let Shared { maker, rng, .. } = &*self.shared;
        maker.make(occurrence, at, &mut lock(rng)).map_err(|e| e.to_string())
    }

    fn accepted(&self, types: Vec<String>, accepted: Vec<Accepted>) {
        for (event_type, Accepted { id, lane, sequence, .. }) in types.into_iter().zip(accepted) {
            // Readings come by the second; the log is for what somebody might look for.
            match lane {
                Lane::Telemetry => tracing::debug!(id, %lane, sequence, event_type, "accepted"),
                _ => tracing::info!(id, %lane, sequence, event_type, "accepted"),
            }
            self.happened(Happening::Accepted { id, lane, event_type, sequence });
        }
    }

    /// A part is at fault. Reported once, until it is cleared.
    pub(super) async fn raise(&self, part: &str, problem: &str) {
        if let Some(occurrence) = self.newly_raised(part, problem) {
            self.log_unless_stored(self.report(&occurrence).await);
        }
    }

    /// The same for a thread.
    pub(super) fn raise_blocking(&self, part: &str, problem: &str) {
        if let Some(occurrence) = self.newly_raised(part, problem) {
            self.log_unless_stored(self.report_blocking(&occurrence));
        }
    }

    /// A part works again. Reported only if it was at fault.
    pub(super) async fn clear(&self, part: &str) {
        if let Some(occurrence) = self.newly_cleared(part) {
            self.log_unless_stored(self.report(&occurrence).await);
        }
    }

    /// The same for a thread.
    pub(super) fn clear_blocking(&self, part: &str) {
        if let Some(occurrence) = self.newly_cleared(part) {
            self.log_unless_stored(self.report_blocking(&occurrence));
        }
    }

    fn newly_raised(&self, part: &str, problem: &str) -> Option<Occurrence> {
        tracing::error!(part, "{problem}");
        let (part, problem) = (part.to_owned(), problem.to_owned());
        if !lock(&self.shared.at_fault).insert(part.clone()) {
            return None;
        }
        self.happened(Happening::Fault { part: part.clone(), problem: problem.clone() });
        Some(Occurrence::FaultRaised { part, problem })
    }

    fn newly_cleared(&self, part: &str) -> Option<Occurrence> {
        if !lock(&self.shared.at_fault).remove(part) {
            return None;
        }
        tracing::info!(part, "works again");
        self.happened(Happening::Mended(part.to_owned()));
        Some(Occurrence::FaultCleared { part: part.to_owned() })
    }

    fn log_unless_stored(&self, stored: Result<(), String>) {
        if let Err(error) = stored {
            tracing::error!("a change of faults is not recorded: {error}");
        }
    }
}
