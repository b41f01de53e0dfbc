//! The faults of the uplink: which stand, and how they are told.

use std::time::Instant;

use tokio::sync::mpsc;

use crate::agent::Reporter;
use crate::event::Lane;

/// Which faults of the uplink stand, so that each is raised once.
#[derive(Debug, Default)]
pub(super) struct Faults {
    /// Records of the lane are refused. Index: [`Lane::index`].
    pub(super) refused: [bool; 3],
    /// No receipts come.
    pub(super) receipt: bool,
    /// Nobody subscribes to the alerts.
    pub(super) subscriber: bool,
    /// Another device seems to have our client id.
    pub(super) contested: bool,
    /// There is no session for several attempts already.
    pub(super) down: bool,
    /// When the session at hand has held long enough to end that suspicion.
    pub(super) steady: Option<Instant>,
    /// An alert is a dead letter.
    pub(super) dead: bool,
    /// When such alerts were offered again last.
    pub(super) offered_dead: Option<Instant>,
}

/// A part, and its problem if it has one.
pub(in crate::agent) type Change<Part = &'static str> = (Part, Option<String>);

/// Raises and clears faults in the order in which they were told, until nobody can tell any more.
pub(in crate::agent) async fn report<Part: AsRef<str>>(
    reporter: Reporter,
    mut changes: mpsc::Receiver<Change<Part>>,
) {
    while let Some((part, problem)) = changes.recv().await {
        match problem {
            Some(problem) => reporter.raise(part.as_ref(), &problem).await,
            None => reporter.clear(part.as_ref()).await,
        }
    }
}

/// The part that is at fault while records of a lane are refused.
pub(super) const fn refused_part(lane: Lane) -> &'static str {
    match lane {
        Lane::Alert => "uplink.refused.alert",
        Lane::Status => "uplink.refused.status",
        Lane::Telemetry => "uplink.refused.telemetry",
    }
}
