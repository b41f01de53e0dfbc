//! Makes the agent's own events and puts them into the outbox; remembers which parts are at fault.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{broadcast, watch};

use super::Happening;
use super::board::Board;
use crate::alarm::Signal;
use crate::clock::{Clock, Rng, WallTime};
use crate::driver::outbox_writer::OutboxHandle;
use crate::event::Event;
use crate::event::Lane;
use crate::event::catalogue::{Maker, Occurrence};
use crate::outbox::{Accepted, Memo};
use crate::supervisor::Outcome;

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
    /// What of it the person beside the device is to see.
    signal: watch::Sender<Signal>,
}

fn event_types(events: &[(Lane, Event)]) -> Vec<String> {
    events.iter().map(|(_, event)| event.event_type().to_owned()).collect()
}

/// A thread that panicked with the lock held left nothing half done in these small values.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
        let signal = watch::Sender::new(Signal::Off);
        let shared = Shared { maker, clock, rng, outbox, happenings, board, at_fault, signal };
        Self { shared: Arc::new(shared) }
    }

    /// What light and tone are to say of the faults.
    pub(super) fn signal(&self) -> watch::Receiver<Signal> {
        self.shared.signal.subscribe()
    }

    fn signal_faults(&self, at_fault: &BTreeSet<String>) {
        let signal = if ["microphone", "detector"].iter().any(|part| at_fault.contains(*part)) {
            Signal::MicrophoneDead
        } else if at_fault.contains("uplink") {
            Signal::PathDown
        } else {
            Signal::Off
        };
        self.shared.signal.send_if_modified(|was| std::mem::replace(was, signal) != signal);
    }

    /// Tells whoever watches; nobody may. The board notes it.
    pub(super) fn happened(&self, happening: Happening) {
        self.shared.board.note(&happening);
        let _ = self.shared.happenings.send(happening);
    }

    /// The board shows this alarm as open, or none.
    pub(super) fn show_alarm(&self, alarm: Option<crate::status::Alarm>) {
        self.shared.board.note_alarm(alarm);
    }

    /// Returns once the event is on stable storage.
    ///
    /// # Errors
    /// One line: the event could not be made or stored.
    pub(super) async fn report(&self, occurrence: &Occurrence) -> Outcome {
        let event = self.make(occurrence)?;
        self.commit(vec![event], Vec::new()).await.map(drop)
    }

    /// Returns once these events and memos are on stable storage, in one commit; the events in their
    /// order.
    ///
    /// # Errors
    /// One line: nothing was stored.
    pub(super) async fn commit(
        &self,
        events: Vec<(Lane, Event)>,
        memos: Vec<Memo>,
    ) -> Result<Vec<Accepted>, String> {
        let types = event_types(&events);
        let accepted = self.shared.outbox.append_with(events, memos).await;
        let accepted = accepted.map_err(|e| e.to_string())?;
        self.accepted(types, accepted.clone());
        Ok(accepted)
    }

    /// The same for a thread.
    pub(super) fn report_blocking(&self, occurrence: &Occurrence) -> Outcome {
        self.report_at_blocking(occurrence, self.shared.clock.wall())
    }

    /// The same for something that happened at `at`.
    pub(super) fn report_at_blocking(&self, occurrence: &Occurrence, at: WallTime) -> Outcome {
        let events = vec![self.make_at(occurrence, at)?];
        let types = event_types(&events);
        let accepted = self.shared.outbox.append_blocking(events);
        self.accepted(types, accepted.map_err(|e| e.to_string())?);
        Ok(())
    }

    /// An event of the agent's own, not stored yet.
    ///
    /// # Errors
    /// One line: it breaks a rule of CloudEvents.
    pub(super) fn make(&self, occurrence: &Occurrence) -> Result<(Lane, Event), String> {
        self.make_at(occurrence, self.shared.clock.wall())
    }

    /// The same of something that happened at `at`.
    ///
    /// # Errors
    /// As [`Self::make`].
    pub(super) fn make_at(
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
            let id = id.into();
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
        let (part, problem) = (part.to_owned(), problem.to_owned());
        {
            let mut at_fault = lock(&self.shared.at_fault);
            if !at_fault.insert(part.clone()) {
                tracing::debug!(part, "{problem}");
                return None;
            }
            self.signal_faults(&at_fault);
        }
        tracing::error!(part, "{problem}");
        self.happened(Happening::Fault { part: part.clone(), problem: problem.clone() });
        Some(Occurrence::FaultRaised { part, problem })
    }

    fn newly_cleared(&self, part: &str) -> Option<Occurrence> {
        {
            let mut at_fault = lock(&self.shared.at_fault);
            if !at_fault.remove(part) {
                return None;
            }
            self.signal_faults(&at_fault);
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
