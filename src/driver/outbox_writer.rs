//! The one thread that writes the outbox, and the handle by which everybody else does.
//!
//! One sync can carry many events, so callers hand their events to this thread and wait; it puts
//! what has gathered into one commit (*group commit*) and answers all of them.
//!
//! - An alert waits for nobody and takes nobody along: the less is in its commit, the sooner it is done. It waits
//!   for the commit that is being made, if one is; of many groups that are due it goes before the next.
//! - `status` and `telemetry` wait for company up to the `coalesce` of their lane.
//! - Removals are not waited for. They ride along with the next commit that is no alert's, or are committed after
//!   [`Settings::removal_delay`]. Until then [`OutboxHandle::page`] leaves them out already; after a
//!   crash the removed records may be back, which makes duplicates and no loss. Where many come within that time, as when a
//!   backlog is drained, they are applied a group at a time, and the commit makes all of them stable with one sync.
//! - After a commit that failed the outbox is closed and opened again ([`run_on`]) while all
//!   wait. If that does not help, everybody who waits gets the error and it is returned: the
//!   process is to end, and the next one opens the outbox afresh.
//!
//! Bounds: [`QUEUED_REQUESTS`] requests of at most one commit each, and as many removals as
//! [`MAX_REMOVALS`]; whoever comes later waits for room.
//!
//! Absent: starting the thread (the supervisor's task), a time limit on a commit that hangs.

mod answers;
mod handle;

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};

use crate::clock::Clock;
use crate::event::{Lane, Moment};
use crate::outbox::{
    Accepted, Damage, Levels, Limits, MAX_COMMIT_EVENTS, Memo, Outbox, OutboxError, Page,
    PageLimit, Position, Store,
};
use handle::{Append, Request, refuse};
pub use handle::{Bounds, Census, OutboxHandle, Purge, Requests, channel};

/// Requests that wait to be taken up at most.
pub const QUEUED_REQUESTS: usize = 32;
/// Removals that wait at most; with so many they are committed at once.
pub const MAX_REMOVALS: usize = 1024;
/// Removals that are applied together without waiting for a commit: few enough that a page or an alert which comes meanwhile
/// is soon served.
const REMOVED_AT_ONCE: usize = 256;

/// How often a full disk is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How often telemetry is looked through for what is too old.
const EXPIRE_EVERY: Duration = Duration::from_secs(60);

/// How long after a commit it is seen whether the file has become too large.
const RENEW_LOOK: Duration = Duration::from_secs(1);
/// How often a clock that is not right yet is looked at.
const CLOCK_LOOK: Duration = Duration::from_secs(2);

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
    run_on(outbox, requests, clock, settings, stop, NoCare)
}

/// What the writer needs of the disk besides the store.
pub trait Disk<S> {
    /// Opens the outbox again, whatever that takes, after it failed and was closed. It is told
    /// how often in a row it was asked.
    ///
    /// # Errors
    /// It cannot be opened: the process is to end.
    fn revive(&mut self, failures: u32, error: &OutboxError) -> Result<Outbox<S>, OutboxError>;

    /// Whether room is so short that it must be left to alerts and status.
    fn is_short(&mut self) -> bool;

    /// Other limits are in force, and the files may take `max_size` bytes.
    fn bound(&mut self, _: &mut Outbox<S>, _limits: Limits, _max_size: u64) {}

    /// How long this boot lasts now; `None` where nobody knows.
    fn moment(&self) -> Option<Moment> {
        None
    }

    /// Whether the outbox's file has become so large for what it holds that a fresh one pays.
    fn wants_renewal(&mut self, _: &Outbox<S>) -> bool {
        false
    }

    /// Gives the outbox a fresh file; nobody is answered meanwhile.
    ///
    /// # Errors
    /// It is to be opened again.
    fn renew(&mut self, outbox: Outbox<S>) -> Result<Outbox<S>, OutboxError> {
        Ok(outbox)
    }
}

struct NoCare;

impl<S> Disk<S> for NoCare {
    fn revive(&mut self, _: u32, error: &OutboxError) -> Result<Outbox<S>, OutboxError> {
        Err(error.clone())
    }

    fn is_short(&mut self) -> bool {
        false
    }
}

/// As [`run`], with a way to go on after a failure: once the failed outbox is closed, `disk`
/// opens it again.
///
/// Nobody who waits is refused meanwhile. What of a failed commit is found in the revived outbox
/// was accepted; the rest is committed again.
///
/// # Errors
/// What [`Disk::revive`] answers, or the failure that followed [`MAX_REVIVALS`] others without a
/// commit in between.
pub fn run_on<S: Store, D: Disk<S>>(
    outbox: Outbox<S>,
    requests: Requests,
    clock: Clock,
    settings: Settings,
    stop: watch::Receiver<bool>,
    mut disk: D,
) -> Result<(), OutboxError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.map_err(|e| OutboxError::Failed {
        cause: format!("the writer's timer cannot be made: {e}"),
    })?;
    let Requests { mut requests, levels } = requests;
    let pending = Pending::default();
    let mut writer = Writer { outbox, disk: &mut disk, clock, settings, levels, pending };
    loop {
        writer.begin();
        let served = runtime.block_on(writer.serve(&mut requests, stop.clone()));
        let Writer { outbox, disk, clock, settings, levels, mut pending } = writer;
        let renewed = match served {
            Ok(End::Stopped) => return Ok(()),
            Ok(End::Renew) => disk.renew(outbox),
            Err(error) => {
                drop(outbox);
                Err(error)
            }
        };
        let outbox = match renewed {
            Ok(outbox) => outbox,
            Err(error) => {
                pending.failures += 1;
                tracing::error!(failures = pending.failures, "the outbox is opened again: {error}");
                let revived = if pending.failures > MAX_REVIVALS {
                    Err(error)
                } else {
                    disk.revive(pending.failures, &error)
                };
                match revived {
                    Ok(outbox) => outbox,
                    Err(error) => {
                        pending.refuse_all(&mut requests, &error);
                        return Err(error);
                    }
                }
            }
        };
        writer = Writer { outbox, disk, clock, settings, levels, pending };
    }
}

/// Why the writer does not serve for the moment, or any more.
enum End {
    Stopped,
    /// The outbox is to have a fresh file.
    Renew,
}

/// Revivals without a commit in between; then the process ends.
pub const MAX_REVIVALS: u32 = 3;

struct Writer<'a, S, D> {
    outbox: Outbox<S>,
    disk: &'a mut D,
    clock: Clock,
    settings: Settings,
    levels: watch::Sender<Levels>,
    pending: Pending,
}

/// What outlives a failed outbox.
#[derive(Default)]
struct Pending {
    /// Appends with an alert, or that may not wait for another reason ([`Append::lane`]).
    alerts: VecDeque<Append>,
    /// All others.
    waiting: VecDeque<Append>,
    /// Events in both.
    events: usize,
    removals: BTreeSet<(Lane, Position)>,
    /// Found while reading; set aside with the next commit.
    damaged: Vec<(Lane, Damage)>,
    /// What a commit that failed would have accepted.
    uncertain: Vec<(Append, Vec<Accepted>)>,
    /// What was asked when the outbox failed: asked of the next one again.
    unanswered: Option<Request>,
    /// When the next commit is to be made; `None` while there is nothing to commit.
    due: Option<Instant>,
    /// In a row.
    failures: u32,
    /// When to look for telemetry that is too old; `None`: with the next commit.
    expire_at: Option<Instant>,
    /// When to see whether there is room again; `None` while there is.
    look_at: Option<Instant>,
    /// When to see whether the file has become too large; `None`: not before the next commit.
    renew_at: Option<Instant>,
    /// When to see whether the clock is right; `None` once it was, or where that is of no use.
    clock_at: Option<Instant>,
}

impl Pending {
    fn refuse_all(self, requests: &mut mpsc::Receiver<Request>, error: &OutboxError) {
        requests.close();
        let queued = std::iter::from_fn(|| requests.try_recv().ok()).chain(self.unanswered);
        queued.for_each(|request| request.refuse(error));
        let uncertain = self.uncertain.into_iter().map(|(append, _)| append);
        for append in self.alerts.into_iter().chain(self.waiting).chain(uncertain) {
            refuse(append.reply, error);
        }
    }

    fn queue(&mut self, lane: Lane) -> &mut VecDeque<Append> {
        if lane == Lane::Alert { &mut self.alerts } else { &mut self.waiting }
    }

    fn push_back(&mut self, append: Append) {
        self.events += append.events.len();
        self.queue(append.lane()).push_back(append);
    }

    fn push_front(&mut self, append: Append) {
        self.events += append.events.len();
        self.queue(append.lane()).push_front(append);
    }

    fn pop(&mut self, who: Who) -> Option<Append> {
        let next = match who {
            Who::Alerts => self.alerts.pop_front(),
            Who::All => self.alerts.pop_front().or_else(|| self.waiting.pop_front()),
            Who::Removals => None,
        };
        self.events -= next.as_ref().map_or(0, |append| append.events.len());
        next
    }

    /// Whether something waits that is part of a commit with company.
    fn has_company(&self) -> bool {
        !(self.waiting.is_empty() && self.removals.is_empty() && self.damaged.is_empty())
    }
}

/// Who goes with a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    /// What may not wait, and nothing else.
    Alerts,
    /// All removals, and as many of the waiting events as fit.
    All,
    /// Removals, which are applied and no more.
    Removals,
}

impl<S: Store, D: Disk<S>> Writer<'_, S, D> {
    /// Settles what the outbox before this one left open.
    fn begin(&mut self) {
        for (append, accepted) in std::mem::take(&mut self.pending.uncertain).into_iter().rev() {
            if !accepted.is_empty() && accepted.iter().all(|accepted| self.holds(accepted)) {
                let _ = append.reply.send(Ok(accepted));
                self.remember_again(append.memos);
            } else {
                self.pending.push_front(append);
            }
        }
        // Salvage may have found a sound copy of what was damaged.
        let damaged = std::mem::take(&mut self.pending.damaged);
        let still = |(lane, damage): &(Lane, Damage)| self.is_damaged(*lane, damage.position);
        self.pending.damaged = damaged.into_iter().filter(still).collect();
        self.outbox.succeed(&self.levels.borrow());
        self.levels.send_replace(self.outbox.levels());
        let something = self.pending.has_company() || !self.pending.alerts.is_empty();
        self.pending.renew_at.get_or_insert(self.clock.now() + RENEW_LOOK);
        self.pending.clock_at = Some(self.clock.now());
        // What salvage has to tell is told at once.
        if something || self.outbox.untold().is_some() {
            self.due_in(Duration::ZERO);
        }
    }

    /// Salvage finds records and memos by themselves: that the records are there says nothing of
    /// the memos.
    fn remember_again(&mut self, memos: Vec<Memo>) {
        if !memos.is_empty() {
            let (reply, _) = oneshot::channel();
            self.pending.push_front(Append { events: Vec::new(), memos, reply });
        }
    }

    fn holds(&self, accepted: &Accepted) -> bool {
        self.look_at(accepted.lane, accepted.position).is_some_and(|page| {
            page.records.first().is_some_and(|record| {
                record.position == accepted.position
                    && record.sequence == accepted.sequence
                    && record.event.id() == accepted.id
            })
        })
    }

    fn is_damaged(&self, lane: Lane, position: Position) -> bool {
        let page = self.look_at(lane, position);
        page.is_some_and(|page| page.damaged.iter().any(|damage| damage.position == position))
    }

    /// What stands at a position, or else behind it.
    fn look_at(&self, lane: Lane, position: Position) -> Option<Page> {
        let before = position.0.checked_sub(1).map(Position);
        self.outbox.read(lane, before, PageLimit { records: 1, bytes: 1 }).ok()
    }

    async fn serve(
        &mut self,
        requests: &mut mpsc::Receiver<Request>,
        mut stop: watch::Receiver<bool>,
    ) -> Result<End, OutboxError> {
        // `passed_by`: others were due when alerts were committed.
        let (mut open, mut passed_by) = (true, false);
        if let Some(request) = self.pending.unanswered.take() {
            self.take(request)?;
        }
        loop {
            for _ in 0..QUEUED_REQUESTS {
                let Ok(request) = requests.try_recv() else { break };
                // Rare: room is made first, then the request is taken.
                if self.is_full()
                    && let Err(error) = self.commit_all()
                {
                    self.pending.unanswered = Some(request);
                    return Err(error);
                }
                self.take(request)?;
            }
            if self.pending.alerts.is_empty() {
                self.look_at_the_clock()?;
                if open && self.is_too_large() {
                    self.commit_all()?;
                    return Ok(End::Renew);
                }
            }
            let due = self.is_full() || self.next().is_some_and(|due| due <= self.clock.now());
            // Alerts go first, and one behind the other they do not keep all else waiting for ever.
            let turn = !(due && passed_by);
            if turn && !self.pending.alerts.is_empty() {
                self.commit(Who::Alerts)?;
                passed_by = due;
                continue;
            }
            if due {
                self.commit(Who::All)?;
                passed_by = false;
                // What is left stays due.
                if !self.pending.has_company() {
                    self.pending.due = None;
                }
                continue;
            }
            if self.pending.removals.len() >= REMOVED_AT_ONCE {
                self.commit(Who::Removals)?;
                continue;
            }
            if !open && requests.is_empty() {
                return self.commit_all().map(|()| End::Stopped);
            }
            let due = self.next().map(tokio::time::Instant::from_std);
            tokio::select! {
                request = requests.recv() => match request {
                    Some(request) => self.take(request)?,
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
        self.pending.events >= MAX_COMMIT_EVENTS || self.pending.removals.len() >= MAX_REMOVALS
    }

    /// Looked at now and then. Not only while nothing is due: under a steady trickle of events and removals
    /// something nearly always is.
    fn is_too_large(&mut self) -> bool {
        if self.pending.renew_at.is_none_or(|at| at > self.clock.now()) {
            return false;
        }
        self.pending.renew_at = None;
        self.disk.wants_renewal(&self.outbox)
    }

    /// Until the clock of this boot is right, it is looked at now and then while records wait: they can be
    /// told with better times then.
    fn look_at_the_clock(&mut self) -> Result<(), OutboxError> {
        let now = self.clock.now();
        if self.pending.clock_at.is_none_or(|at| at > now) {
            return Ok(());
        }
        self.outbox.set_moment(self.disk.moment());
        if self.outbox.learn_time(self.clock.wall())? {
            tracing::info!("the clock is right: times that it was not are corrected");
            self.levels.send_replace(self.outbox.levels());
        }
        self.pending.clock_at = (!self.outbox.knows_the_time()).then(|| now + CLOCK_LOOK);
        Ok(())
    }

    fn look_at_the_disk(&mut self) {
        let (short, was) = (self.disk.is_short(), self.outbox.levels().short);
        self.outbox.set_short(short);
        // Told even if there is nothing to commit.
        if short != was {
            self.levels.send_replace(self.outbox.levels());
        }
        self.pending.look_at = short.then(|| self.clock.now() + LOOK_EVERY);
    }

    /// When something is to be done next without being asked.
    fn next(&self) -> Option<Instant> {
        let telemetry = self.outbox.depth()[Lane::Telemetry.index()] > 0;
        let expire_at = self.pending.expire_at.filter(|_| telemetry);
        let some = self.outbox.depth().iter().any(|records| *records > 0);
        let clock_at = self.pending.clock_at.filter(|_| some);
        let looks = self.pending.look_at.into_iter().chain(self.pending.renew_at).chain(clock_at);
        self.pending.due.into_iter().chain(expire_at).chain(looks).min()
    }

    fn due_in(&mut self, wait: Duration) {
        let due = self.clock.now() + wait;
        self.pending.due = Some(self.pending.due.map_or(due, |earlier| earlier.min(due)));
    }

    /// Commits all that waits.
    fn commit_all(&mut self) -> Result<(), OutboxError> {
        self.commit(Who::All)?;
        while self.pending.has_company() || !self.pending.alerts.is_empty() {
            self.commit(Who::All)?;
        }
        self.pending.due = None;
        Ok(())
    }

    /// One commit.
    fn commit(&mut self, who: Who) -> Result<(), OutboxError> {
        self.look_at_the_disk();
        self.outbox.set_moment(self.disk.moment());
        let mut group = self.outbox.begin(self.clock.wall())?;
        if who != Who::Alerts {
            for (lane, damage) in &self.pending.damaged {
                group.set_aside(*lane, damage)?;
            }
            for record in &self.pending.removals {
                match group.remove(&[*record]) {
                    Err(OutboxError::Damaged { lane, position, cause }) => {
                        group.set_aside(lane, &Damage { position, cause })?;
                    }
                    result => result?,
                }
            }
        }
        let now = self.clock.now();
        if who == Who::All && self.pending.expire_at.is_none_or(|at| at <= now) {
            let pause = if group.expire()? { EXPIRE_EVERY } else { Duration::ZERO };
            self.pending.expire_at = Some(now + pause);
        }
        let mut answers: Vec<(Append, Range<usize>)> = Vec::new();
        while let Some(append) = self.pending.pop(who) {
            let staged = group.append(&append.events);
            let staged = staged.and_then(|places| {
                append.memos.iter().try_for_each(|memo| group.remember(memo)).map(|()| places)
            });
            match staged {
                Ok(places) => answers.push((append, places)),
                Err(OutboxError::GroupFull) => {
                    self.pending.push_front(append);
                    break;
                }
                Err(error) => refuse(append.reply, &error),
            }
        }
        let staged = group.staged().to_vec();
        let own = |places: Range<usize>| staged.get(places).unwrap_or_default().to_vec();
        let answers = answers.into_iter().map(|(append, places)| (append, own(places)));
        let done = if who == Who::Removals { group.apply() } else { group.commit() };
        if let Err(error) = done {
            self.pending.uncertain = answers.collect();
            return Err(error);
        }
        if who != Who::Alerts {
            self.pending.damaged.clear();
            self.pending.removals.clear();
        }
        self.pending.failures = 0;
        self.pending.renew_at.get_or_insert(now + RENEW_LOOK);
        // Levels first, so that whoever is told `accepted` finds its event counted.
        self.levels.send_replace(self.outbox.levels());
        for (append, accepted) in answers {
            let _ = append.reply.send(Ok(accepted));
        }
        Ok(())
    }
}

async fn sleep_until(due: Option<tokio::time::Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod revival_tests;
#[cfg(test)]
#[path = "outbox_writer_tests.rs"]
mod tests;
