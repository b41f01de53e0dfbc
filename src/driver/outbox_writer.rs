//! The one thread that writes the outbox, and the handle by which everybody else does.
//!
//! One sync can carry many events, so callers hand their events to this thread and wait; it puts
//! what has gathered into one commit (*group commit*) and answers all of them.
//!
//! - An alert waits for nobody: what is queued beside it goes along, then it is committed.
//! - `status` and `telemetry` wait for company up to the `coalesce` of their lane.
//! - Removals are not waited for. They ride along with the next commit, or are committed after
//!   [`Settings::removal_delay`]. Until then [`OutboxHandle::page`] leaves them out already; after a
//!   crash the removed records may be back, which makes duplicates and no loss.
//! - After a commit that failed everybody who waits gets the error and [`run`] returns it: the
//!   process is to end. The outbox is opened again by the next one.
//!
//! Bounds: [`QUEUED_REQUESTS`] requests of at most one commit each, and as many removals as
//! [`MAX_REMOVALS`]; whoever comes later waits for room.
//!
//! Absent: starting the thread (the supervisor's task), a time limit on a commit that hangs.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};

use crate::clock::Clock;
use crate::event::{Event, Lane};
use crate::outbox::{
    Accepted, Levels, MAX_COMMIT_EVENTS, Outbox, OutboxError, PageLimit, Position, Record, Store,
    check_batch,
};

/// Requests that wait to be taken up at most.
pub const QUEUED_REQUESTS: usize = 32;
/// Removals that wait for a commit at most; with so many they are committed at once.
pub const MAX_REMOVALS: usize = 1024;

/// How long what may wait does wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// For company, by lane; an alert's is zero. Index: [`Lane::index`].
    pub coalesce: [Duration; 3],
    /// Of a removal, for a commit to ride along with.
    pub removal_delay: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        let company = Duration::from_millis(250);
        Self {
            coalesce: [Duration::ZERO, company, company],
            removal_delay: Duration::from_millis(100),
        }
    }
}

type Reply<T> = oneshot::Sender<Result<T, OutboxError>>;

#[derive(Debug)]
enum Request {
    Append(Append),
    Remove(Vec<(Lane, Position)>),
    Page { lane: Lane, after: Option<Position>, limit: PageLimit, reply: Reply<Vec<Record>> },
}

#[derive(Debug)]
struct Append {
    events: Vec<(Lane, Event)>,
    reply: Reply<Vec<Accepted>>,
}

impl Append {
    /// The highest lane among the events; an empty batch is answered at once as well.
    fn lane(&self) -> Lane {
        self.events.iter().map(|(lane, _)| *lane).min().unwrap_or(Lane::Alert)
    }
}

/// The outbox, for everybody but its writer. Cheap to clone.
#[derive(Debug, Clone)]
pub struct OutboxHandle {
    requests: mpsc::Sender<Request>,
    levels: watch::Receiver<Levels>,
}

/// The writer's end of the handles.
#[derive(Debug)]
pub struct Requests {
    requests: mpsc::Receiver<Request>,
    levels: watch::Sender<Levels>,
}

/// The two ends: handles for everybody, requests for [`run`].
pub fn channel() -> (OutboxHandle, Requests) {
    let (sender, receiver) = mpsc::channel(QUEUED_REQUESTS);
    let (levels_sender, levels) = watch::channel(Levels::default());
    (
        OutboxHandle { requests: sender, levels },
        Requests { requests: receiver, levels: levels_sender },
    )
}

impl OutboxHandle {
    /// Appends events, all or none; returns once they are on stable storage.
    ///
    /// Dropping the future does not take the events back.
    ///
    /// # Errors
    /// The batch breaks a bound, the outbox has failed, or it is closed.
    pub async fn append(&self, events: Vec<(Lane, Event)>) -> Result<Vec<Accepted>, OutboxError> {
        check_batch(&events)?;
        let (reply, answer) = oneshot::channel();
        let request = Request::Append(Append { events, reply });
        self.requests.send(request).await.map_err(|_| OutboxError::Closed)?;
        answer.await.map_err(|_| OutboxError::Closed)?
    }

    /// As [`Self::append`], for threads.
    ///
    /// # Errors
    /// As [`Self::append`].
    ///
    /// # Panics
    /// When called within a tokio runtime, which it would block.
    pub fn append_blocking(
        &self,
        events: Vec<(Lane, Event)>,
    ) -> Result<Vec<Accepted>, OutboxError> {
        check_batch(&events)?;
        let (reply, answer) = oneshot::channel();
        let request = Request::Append(Append { events, reply });
        self.requests.blocking_send(request).map_err(|_| OutboxError::Closed)?;
        answer.blocking_recv().map_err(|_| OutboxError::Closed)?
    }

    /// Has records removed soon; waits for room in the queue only, not for the disk.
    ///
    /// # Errors
    /// The outbox is closed or has failed; the records will be there again after a restart.
    pub async fn remove(&self, records: Vec<(Lane, Position)>) -> Result<(), OutboxError> {
        self.requests.send(Request::Remove(records)).await.map_err(|_| OutboxError::Closed)
    }

    /// The oldest records of a lane behind `after`, without those that are to be removed.
    ///
    /// # Errors
    /// See [`Outbox::page`]; or the outbox is closed.
    pub async fn page(
        &self,
        lane: Lane,
        after: Option<Position>,
        limit: PageLimit,
    ) -> Result<Vec<Record>, OutboxError> {
        let (reply, answer) = oneshot::channel();
        let request = Request::Page { lane, after, limit, reply };
        self.requests.send(request).await.map_err(|_| OutboxError::Closed)?;
        answer.await.map_err(|_| OutboxError::Closed)?
    }

    /// The state of the lanes as of the last commit; changes with each.
    ///
    /// All zero until [`run`] has begun.
    pub fn levels(&self) -> watch::Receiver<Levels> {
        self.levels.clone()
    }
}

/// Serves the handles until `stop` is true (or all handles are gone), commits what is left, and
/// closes the store. Blocks the calling thread, which must not be one of a runtime's workers.
///
/// # Errors
/// The first commit that failed: the process is to end and to start again.
pub fn run<S: Store>(
    outbox: Outbox<S>,
    requests: Requests,
    clock: Clock,
    settings: Settings,
    stop: watch::Receiver<bool>,
) -> Result<(), OutboxError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.map_err(|e| OutboxError::Failed {
        cause: format!("the writer's timer cannot be made: {e}"),
    })?;
    let Requests { requests, levels } = requests;
    levels.send_replace(outbox.levels());
    let mut writer = Writer {
        outbox,
        clock,
        settings,
        levels,
        waiting: VecDeque::new(),
        events: 0,
        removals: BTreeSet::new(),
        due: None,
    };
    runtime.block_on(writer.serve(requests, stop))
}

struct Writer<S> {
    outbox: Outbox<S>,
    clock: Clock,
    settings: Settings,
    levels: watch::Sender<Levels>,
    waiting: VecDeque<Append>,
    /// Events in `waiting`.
    events: usize,
    removals: BTreeSet<(Lane, Position)>,
    /// When the next commit is to be made; `None` while there is nothing to commit.
    due: Option<Instant>,
}

impl<S: Store> Writer<S> {
    async fn serve(
        &mut self,
        mut requests: mpsc::Receiver<Request>,
        mut stop: watch::Receiver<bool>,
    ) -> Result<(), OutboxError> {
        let mut open = true;
        loop {
            for _ in 0..QUEUED_REQUESTS {
                match requests.try_recv() {
                    Ok(request) if !self.is_full() => self.take(request),
                    Ok(request) => {
                        // Rare: room is made first, then the request is taken.
                        self.commit_or_close(&mut requests)?;
                        self.take(request);
                    }
                    Err(_) => break,
                }
            }
            if self.is_full() || self.due.is_some_and(|due| due <= self.clock.now()) {
                self.commit_or_close(&mut requests)?;
                continue;
            }
            if !open && requests.is_empty() {
                return self.commit_or_close(&mut requests);
            }
            let due = self.due.map(tokio::time::Instant::from_std);
            tokio::select! {
                request = requests.recv() => match request {
                    Some(request) => self.take(request),
                    None => open = false,
                },
                () = sleep_until(due) => {}
                _ = stop.wait_for(|stop| *stop), if open => {
                    requests.close();
                    open = false;
                }
            }
        }
    }

    fn is_full(&self) -> bool {
        self.events >= MAX_COMMIT_EVENTS || self.removals.len() >= MAX_REMOVALS
    }

    fn take(&mut self, request: Request) {
        match request {
            Request::Append(append) => {
                self.due_in(self.settings.coalesce[append.lane().index()]);
                self.events += append.events.len();
                self.waiting.push_back(append);
            }
            Request::Remove(records) => {
                self.due_in(self.settings.removal_delay);
                self.removals.extend(records);
            }
            Request::Page { lane, after, limit, reply } => {
                // That nobody waits for the answer any more is no fault.
                let _ = reply.send(self.page(lane, after, limit));
            }
        }
    }

    fn due_in(&mut self, wait: Duration) {
        let due = self.clock.now() + wait;
        self.due = Some(self.due.map_or(due, |earlier| earlier.min(due)));
    }

    fn page(
        &self,
        lane: Lane,
        mut after: Option<Position>,
        limit: PageLimit,
    ) -> Result<Vec<Record>, OutboxError> {
        loop {
            let mut page = self.outbox.page(lane, after, limit)?;
            let Some(last) = page.last() else { return Ok(page) };
            after = Some(last.position);
            page.retain(|record| !self.removals.contains(&(lane, record.position)));
            if !page.is_empty() {
                return Ok(page);
            }
        }
    }

    /// Commits all that waits; after a failure everybody is told and nobody is served any more.
    fn commit_or_close(
        &mut self,
        requests: &mut mpsc::Receiver<Request>,
    ) -> Result<(), OutboxError> {
        let result = self.commit_all();
        if let Err(error) = &result {
            requests.close();
            while let Ok(request) = requests.try_recv() {
                match request {
                    Request::Append(append) => refuse(append.reply, error),
                    Request::Page { reply, .. } => refuse(reply, error),
                    Request::Remove(_) => {}
                }
            }
            for append in self.waiting.drain(..) {
                refuse(append.reply, error);
            }
        }
        result
    }

    fn commit_all(&mut self) -> Result<(), OutboxError> {
        // An alert goes with the first of several commits; within a lane the order stays.
        self.waiting.make_contiguous().sort_by_key(Append::lane);
        while !self.waiting.is_empty() || !self.removals.is_empty() {
            self.commit_group()?;
        }
        self.events = 0;
        self.due = None;
        Ok(())
    }

    /// One commit: all removals and as many of the waiting events as fit.
    fn commit_group(&mut self) -> Result<(), OutboxError> {
        let mut group = self.outbox.begin(self.clock.wall())?;
        for record in std::mem::take(&mut self.removals) {
            match group.remove(&[record]) {
                Err(error @ OutboxError::Damaged { .. }) => {
                    tracing::warn!(%error, "a record cannot be removed");
                }
                result => result?,
            }
        }
        let mut answers: Vec<(Range<usize>, Reply<Vec<Accepted>>)> = Vec::new();
        while let Some(append) = self.waiting.pop_front() {
            match group.append(&append.events) {
                Ok(places) => answers.push((places, append.reply)),
                Err(OutboxError::GroupFull) => {
                    self.waiting.push_front(append);
                    break;
                }
                Err(error) => refuse(append.reply, &error),
            }
        }
        match group.commit() {
            Ok(accepted) => {
                // Levels first, so that whoever is told `accepted` finds its event counted.
                self.levels.send_replace(self.outbox.levels());
                for (places, reply) in answers {
                    let own = accepted.get(places).unwrap_or_default().to_vec();
                    let _ = reply.send(Ok(own));
                }
                Ok(())
            }
            Err(error) => {
                for (_, reply) in answers {
                    refuse(reply, &error);
                }
                Err(error)
            }
        }
    }
}

/// That nobody waits for the answer any more is no fault.
fn refuse<T>(reply: Reply<T>, error: &OutboxError) {
    let _ = reply.send(Err(error.clone()));
}

async fn sleep_until(due: Option<tokio::time::Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
#[path = "outbox_writer_tests.rs"]
mod tests;
