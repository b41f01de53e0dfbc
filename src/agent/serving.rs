//! What the agent answers and says unasked: the ingest socket, metrics, heartbeats.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::board::Board;
use super::{BUDGET, Reporter};
use crate::cli::{Failure, exit};
use crate::driver::{ingest, ops};
use crate::event::catalogue::Occurrence;
use crate::status::Status;
use crate::supervisor::{Stage, Supervisor};

/// Between two attempts to listen for whoever asks for metrics.
const REBIND: Duration = Duration::from_secs(30);
/// Its name as a service.
pub(super) const INGEST: &str = "ingest";
/// The part that is at fault when that fails, and its service.
pub(super) const OPS: &str = "ops";

/// Makes the socket, so that a wrong path is found before anything else depends on it.
///
/// # Errors
/// 69: the socket cannot be made, or somebody listens there already.
pub(super) async fn bind_ingest(path: &Path) -> Result<UnixListener, Failure> {
    ingest::bind(path).await.map_err(|e| Failure::new(exit::UNAVAILABLE, e.to_string()))
}

/// Takes events of other programs.
pub(super) fn start_ingest(
    supervisor: &mut Supervisor,
    path: PathBuf,
    first: UnixListener,
    services: ingest::Services,
) {
    let mut first = Some(first);
    supervisor.task(Stage::Source, INGEST, BUDGET, move |stop| {
        let (bound, path, services) = (first.take(), path.clone(), services.clone());
        async move {
            let listener = match bound {
                Some(listener) => listener,
                None => ingest::bind(&path).await.map_err(|e| e.to_string())?,
            };
            let served = ingest::serve(listener, services, stop.receiver()).await;
            served.map_err(|e| format!("serve {}: {e}", path.display()))
        }
    });
}

/// What `hark status` and metrics are asked of.
pub(super) fn source(board: &Board) -> ops::Source {
    let board = board.clone();
    ops::Source::new(move || board.status())
}

/// A port that another program has must not keep the device from alarming: a fault, and another try.
pub(super) fn start_ops(
    supervisor: &mut Supervisor,
    address: SocketAddr,
    board: &Board,
    reporter: &Reporter,
) {
    let (status, reporter) = (source(board), reporter.clone());
    supervisor.task(Stage::Source, OPS, BUDGET, move |stop| {
        let (status, reporter) = (status.clone(), reporter.clone());
        async move {
            let mut stopped = stop.receiver();
            while !*stopped.borrow() {
                match ops::bind(address).await {
                    Ok(listener) => {
                        reporter.clear(OPS).await;
                        let served = ops::serve(listener, status, stopped).await;
                        return served.map_err(|e| format!("serve {address}: {e}"));
                    }
                    Err(error) => {
                        let problem = format!(
                            "no metrics: listen on {address}: {error}; set ops.listen to a free port, or to \"\""
                        );
                        reporter.raise(OPS, &problem).await;
                    }
                }
                let _ = tokio::time::timeout(REBIND, stopped.wait_for(|stop| *stop)).await;
            }
            Ok(())
        }
    });
}

/// Sends a heartbeat now and then, for ever.
pub(super) async fn beat(
    mut interval: watch::Receiver<Duration>,
    board: &Board,
    reporter: &Reporter,
) -> Infallible {
    loop {
        let every = *interval.borrow_and_update();
        tokio::select! {
            never = beat_every(every, board, reporter) => match never {},
            Ok(()) = interval.changed() => {}
        }
    }
}

async fn beat_every(interval: Duration, board: &Board, reporter: &Reporter) -> Infallible {
    let mut heart = tokio::time::interval(interval);
    // Behind a hang or a sleep of the machine one says it all.
    heart.set_missed_tick_behavior(MissedTickBehavior::Skip);
    // The first tick is at once, and what begins is told by `device.session.started`.
    heart.tick().await;
    loop {
        heart.tick().await;
        // An alarm has events of its own.
        let health = Status { alarm: None, ..board.status() }.to_value();
        let heartbeat = Occurrence::Heartbeat { health };
        if let Err(error) = reporter.report(&heartbeat).await {
            tracing::error!("a heartbeat is not recorded: {error}");
        }
    }
}
