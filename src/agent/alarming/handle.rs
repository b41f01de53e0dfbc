//! The handle by which the rest of the agent reaches the alarms, and what it asks of their task.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::{QUEUED, Reporter, Rules};
use crate::alarm::{Actor, Kind, Trigger};
use crate::event::catalogue::Occurrence;
use crate::event::{Event, Lane};
use crate::sensor::button::Press;
use crate::supervisor::Outcome;
use crate::uplink::Received;

/// How the rest of the agent reaches the alarms. Cheap to clone.
#[derive(Debug, Clone)]
pub(in crate::agent) struct AlarmHandle {
    pub(super) urgent: mpsc::Sender<Urgent>,
    pub(super) asks: mpsc::Sender<Ask>,
    pub(super) reporter: Reporter,
}

#[derive(Debug)]
pub(super) enum Urgent {
    Trigger { causes: Vec<(Lane, Event)>, trigger: Trigger, done: oneshot::Sender<Outcome> },
    Press { button: String, press: Press, held: Duration },
    Cancel { who: String },
    Dialled { alarm: String, call: u32, outcome: Result<String, String> },
}

#[derive(Debug)]
pub(super) enum Ask {
    Command { message: Received, settle: Settle },
    Receipt { ids: Vec<String>, actor: Actor, settle: Settle },
    Set { rules: Box<Rules>, done: oneshot::Sender<()> },
}

/// Has a message from the broker acknowledged, once it is dealt with. Dropped before, it is not, and the
/// broker sends it again on the next connection.
#[derive(Debug)]
pub(in crate::agent) struct Settle(pub(in crate::agent) Option<(mpsc::Sender<u64>, u64)>);

impl Settle {
    pub(in crate::agent) fn done(self) {
        if let Some((settled, delivery)) = self.0 {
            // Without room it is as if it had not been said: it comes again, and is known then.
            let _ = settled.try_send(delivery);
        }
    }
}

impl AlarmHandle {
    /// Opens or joins an alarm; what triggered it becomes durable in the same commit. For threads.
    ///
    /// # Errors
    /// One line: nothing is stored.
    pub(in crate::agent) fn trigger_blocking(
        &self,
        occurrence: &Occurrence,
        kind: Kind,
        text: String,
    ) -> Outcome {
        let (lane, event) = self.reporter.make(occurrence)?;
        let trigger = Trigger::new(kind, Some(event.id().to_owned()), text);
        let (done, answer) = oneshot::channel();
        let causes = vec![(lane, event)];
        match self.urgent.blocking_send(Urgent::Trigger { causes, trigger, done }) {
            Ok(()) => answer.blocking_recv().unwrap_or_else(|_| {
                // The agent ends: what was heard is still told.
                self.reporter.report_blocking(occurrence)
            }),
            Err(_) => self.reporter.report_blocking(occurrence),
        }
    }

    /// A button was pressed.
    pub(in crate::agent) async fn press(&self, button: &str, press: Press, held: Duration) {
        let button = button.to_owned();
        let _ = self.urgent.send(Urgent::Press { button, press, held }).await;
    }

    /// Somebody on the spot calls a pending alarm off without a button.
    pub(in crate::agent) async fn cancel(&self, who: &str) {
        let _ = self.urgent.send(Urgent::Cancel { who: who.to_owned() }).await;
    }

    /// A command came. It waits for no room: one too many is not acknowledged and comes again. Half of
    /// the room is kept for those that the broker counts (QoS 1), of which there are never more.
    pub(in crate::agent) fn command(&self, message: Received, settle: Settle) {
        if settle.0.is_none() && self.asks.capacity() < QUEUED / 2 {
            tracing::warn!("too many commands: one of QoS 0 is dropped");
            return;
        }
        let _ = self.asks.try_send(Ask::Command { message, settle });
    }

    /// Other rules are in force once this returns; what is open goes on, and so does its deadline.
    pub(in crate::agent) async fn set(&self, rules: Rules) {
        let (done, in_force) = oneshot::channel();
        if self.asks.send(Ask::Set { rules: Box::new(rules), done }).await.is_ok() {
            let _ = in_force.await;
        }
    }

    /// The consumer has these events. Waits for no room either.
    pub(in crate::agent) fn receipt(&self, ids: Vec<String>, actor: Actor, settle: Settle) {
        if settle.0.is_none() && self.asks.capacity() < QUEUED / 2 {
            tracing::warn!("too many receipts: one of QoS 0 is dropped");
            return;
        }
        let _ = self.asks.try_send(Ask::Receipt { ids, actor, settle });
    }
}
