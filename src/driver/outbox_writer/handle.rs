//! The handle by which everybody but the writer uses the outbox, and what it asks of the writer.

use tokio::sync::{mpsc, oneshot, watch};

use super::{QUEUED_REQUESTS, Settings};
use crate::event::{Event, Lane, Losses};
use crate::outbox::{
    Accepted, DeadLetter, Levels, Limits, Memo, OutboxError, PageLimit, Position, Record,
    Structured, check_batch, check_memo,
};

pub(super) type Reply<T> = oneshot::Sender<Result<T, OutboxError>>;

#[derive(Debug)]
pub(super) enum Request {
    Append(Append),
    Bound(Bounds),
    Remove(Vec<(Lane, Position)>),
    Deadletter {
        lane: Lane,
        position: Position,
        reason: String,
        reply: Reply<bool>,
    },
    Requeue {
        lane: Lane,
        only: Option<Position>,
        reply: Reply<usize>,
    },
    Purge {
        lane: Lane,
        what: Purge,
        reply: Reply<Losses>,
    },
    Census {
        reply: Reply<Census>,
    },
    DeadLetters {
        lane: Lane,
        after: Option<Position>,
        limit: PageLimit,
        reply: Reply<Vec<DeadLetter>>,
    },
    Page {
        lane: Lane,
        after: Option<Position>,
        limit: PageLimit,
        reply: Reply<Vec<Record>>,
    },
    Structured {
        lane: Lane,
        after: Option<Position>,
        limit: PageLimit,
        reply: Reply<Vec<Structured>>,
    },
}

impl Request {
    /// Tells whoever waits that it will not be done.
    pub(super) fn refuse(self, error: &OutboxError) {
        match self {
            Self::Append(append) => refuse(append.reply, error),
            Self::Remove(_) | Self::Bound(_) => {}
            Self::Deadletter { reply, .. } => refuse(reply, error),
            Self::Requeue { reply, .. } => refuse(reply, error),
            Self::Purge { reply, .. } => refuse(reply, error),
            Self::Census { reply } => refuse(reply, error),
            Self::DeadLetters { reply, .. } => refuse(reply, error),
            Self::Page { reply, .. } => refuse(reply, error),
            Self::Structured { reply, .. } => refuse(reply, error),
        }
    }
}

/// That nobody waits for the answer any more is no fault.
pub(super) fn refuse<T>(reply: Reply<T>, error: &OutboxError) {
    let _ = reply.send(Err(error.clone()));
}

/// What of the writer's work can be set while it works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// How long what may wait does wait.
    pub settings: Settings,
    /// How much is kept, and for how long.
    pub limits: Limits,
    /// Bytes that the files may take.
    pub max_size: u64,
}

/// What somebody asks to be destroyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purge {
    /// The records of the lane up to this position, a bounded number at a time.
    UpTo(Position),
    /// The dead letters of the lane.
    DeadLetters,
}

/// How much there is. Index of all: [`Lane::index`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Census {
    /// As [`OutboxHandle::levels`] has it.
    pub levels: Levels,
    /// Bytes of frames in each lane.
    pub bytes: [u64; 3],
    /// When the oldest record of each lane was accepted, milliseconds since 1970.
    pub oldest_ms: [Option<u64>; 3],
}

#[derive(Debug)]
pub(super) struct Append {
    pub(super) events: Vec<(Lane, Event)>,
    pub(super) memos: Vec<Memo>,
    pub(super) reply: Reply<Vec<Accepted>>,
}

impl Append {
    /// The highest lane among the events; an empty batch is answered at once as well, and so is one
    /// with memos, whose owner can do nothing else before.
    pub(super) fn lane(&self) -> Lane {
        if !self.memos.is_empty() {
            return Lane::Alert;
        }
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
    pub(super) requests: mpsc::Receiver<Request>,
    pub(super) levels: watch::Sender<Levels>,
}

/// The two ends: handles for everybody, requests for [`run`](super::run).
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
        self.append_with(events, Vec::new()).await
    }

    /// As [`Self::append`]; the memos become durable in the same commit.
    ///
    /// # Errors
    /// As [`Self::append`]; or a memo is too large.
    pub async fn append_with(
        &self,
        events: Vec<(Lane, Event)>,
        memos: Vec<Memo>,
    ) -> Result<Vec<Accepted>, OutboxError> {
        check_batch(&events)?;
        memos.iter().try_for_each(check_memo)?;
        self.ask(|reply| Request::Append(Append { events, memos, reply })).await
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
        let request = Request::Append(Append { events, memos: Vec::new(), reply });
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

    /// Sets other bounds, in force for what comes after.
    ///
    /// # Errors
    /// The outbox is closed or has failed.
    pub async fn bound(&self, bounds: Bounds) -> Result<(), OutboxError> {
        self.requests.send(Request::Bound(bounds)).await.map_err(|_| OutboxError::Closed)
    }

    /// Sets a record aside as a dead letter; false if it must stay in its lane.
    ///
    /// # Errors
    /// The outbox is closed or has failed.
    pub async fn deadletter(
        &self,
        lane: Lane,
        position: Position,
        reason: String,
    ) -> Result<bool, OutboxError> {
        self.ask(|reply| Request::Deadletter { lane, position, reason, reply }).await
    }

    /// Puts a dead letter back into its lane, or with `None` all of the lane; how many.
    ///
    /// # Errors
    /// The outbox is closed or has failed.
    pub async fn requeue(&self, lane: Lane, only: Option<Position>) -> Result<usize, OutboxError> {
        self.ask(|reply| Request::Requeue { lane, only, reply }).await
    }

    /// Destroys what somebody asks to be destroyed, and tells by an event. Returns what is gone;
    /// [`Purge::UpTo`] is to be repeated until that is nothing.
    ///
    /// # Errors
    /// The outbox is closed or has failed.
    pub async fn purge(&self, lane: Lane, what: Purge) -> Result<Losses, OutboxError> {
        self.ask(|reply| Request::Purge { lane, what, reply }).await
    }

    /// How much there is.
    ///
    /// # Errors
    /// The outbox is closed or has failed.
    pub async fn census(&self) -> Result<Census, OutboxError> {
        self.ask(|reply| Request::Census { reply }).await
    }

    /// The oldest dead letters of a lane behind `after`.
    ///
    /// # Errors
    /// The outbox is closed or has failed.
    pub async fn dead_letters(
        &self,
        lane: Lane,
        after: Option<Position>,
        limit: PageLimit,
    ) -> Result<Vec<DeadLetter>, OutboxError> {
        self.ask(|reply| Request::DeadLetters { lane, after, limit, reply }).await
    }

    /// The oldest records of a lane behind `after`, without those that are to be removed.
    ///
    /// # Errors
    /// See [`Outbox::page`](crate::outbox::Outbox::page); or the outbox is closed.
    pub async fn page(
        &self,
        lane: Lane,
        after: Option<Position>,
        limit: PageLimit,
    ) -> Result<Vec<Record>, OutboxError> {
        self.ask(|reply| Request::Page { lane, after, limit, reply }).await
    }

    /// As [`Self::page`], in the form in which records are published.
    ///
    /// # Errors
    /// As those of [`Self::page`].
    pub async fn structured(
        &self,
        lane: Lane,
        after: Option<Position>,
        limit: PageLimit,
    ) -> Result<Vec<Structured>, OutboxError> {
        self.ask(|reply| Request::Structured { lane, after, limit, reply }).await
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, OutboxError> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| OutboxError::Closed)?;
        answer.await.map_err(|_| OutboxError::Closed)?
    }

    /// The state of the lanes as of the last commit; changes with each.
    ///
    /// All zero until [`run`](super::run) has begun.
    pub fn levels(&self) -> watch::Receiver<Levels> {
        self.levels.clone()
    }
}
