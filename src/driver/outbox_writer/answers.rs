//! What the writer is asked, one request at a time.
//!
//! Appends and removals wait for a commit; all else is done at once, and where the outbox fails
//! meanwhile, it is asked of the one that takes its place.

use std::time::Duration;

use super::handle::{Bounds, Census, Purge, Reply, Request};
use super::{Disk, Writer};
use crate::event::{Lane, Losses};
use crate::outbox::{Damage, Group, Outbox, OutboxError, Page, PageLimit, Placed, Position, Store};

/// Dead letters that are put back with one commit at most: with 64 KiB each as much as one takes.
const REQUEUED_AT_ONCE: usize = 16;
/// Damaged records that are set aside with one commit at most.
pub(super) const MAX_DAMAGED: usize = 64;

impl<S: Store, D: Disk<S>> Writer<'_, S, D> {
    /// # Errors
    /// The store cannot be read: it is salvaged when it is opened next.
    pub(super) fn take(&mut self, request: Request) -> Result<(), OutboxError> {
        match request {
            Request::Append(append) => {
                if append.lane() != Lane::Alert {
                    self.due_in(self.settings.coalesce[append.lane().index()]);
                }
                self.pending.push_back(append);
            }
            Request::Remove(records) => {
                self.due_in(self.settings.removal_delay);
                self.pending.removals.extend(records);
            }
            Request::Bound(Bounds { settings, limits, max_size }) => {
                self.settings = settings;
                self.disk.bound(&mut self.outbox, limits, max_size);
                self.pending.expire_at = None;
                self.due_in(Duration::ZERO);
            }
            Request::Deadletter { lane, position, reason, reply } => {
                let done = self.deadletter(lane, position, &reason);
                let again = |reply| Request::Deadletter { lane, position, reason, reply };
                self.answer(done, reply, again)?;
            }
            Request::Requeue { lane, only, reply } => {
                let done = self.requeue(lane, only);
                self.answer(done, reply, |reply| Request::Requeue { lane, only, reply })?;
            }
            Request::Purge { lane, what, reply } => {
                let gone = self.purge(lane, what);
                self.answer(gone, reply, |reply| Request::Purge { lane, what, reply })?;
            }
            Request::Census { reply } => {
                let census = self.census();
                self.answer(census, reply, |reply| Request::Census { reply })?;
            }
            Request::DeadLetters { lane, after, limit, reply } => {
                let letters = self.outbox.dead_letters(lane, after, limit);
                let again = |reply| Request::DeadLetters { lane, after, limit, reply };
                self.answer(letters, reply, again)?;
            }
            Request::Page { lane, after, limit, reply } => {
                let page = self.page(lane, after, limit, |outbox, lane, after, limit| {
                    outbox.read(lane, after, limit)
                });
                self.answer(page, reply, |reply| Request::Page { lane, after, limit, reply })?;
            }
            Request::Structured { lane, after, limit, reply } => {
                let page = self.page(lane, after, limit, Outbox::read_structured);
                let again = |reply| Request::Structured { lane, after, limit, reply };
                self.answer(page, reply, again)?;
            }
        }
        Ok(())
    }

    /// Answers, or keeps what was asked for the outbox that takes the place of this one. Each of these
    /// can be done twice: what is done already is passed over.
    fn answer<T>(
        &mut self,
        done: Result<T, OutboxError>,
        reply: Reply<T>,
        again: impl FnOnce(Reply<T>) -> Request,
    ) -> Result<(), OutboxError> {
        match done {
            // That nobody waits for the answer any more is no fault.
            Ok(done) => drop(reply.send(Ok(done))),
            Err(error) => {
                self.pending.unanswered = Some(again(reply));
                return Err(error);
            }
        }
        Ok(())
    }

    /// A commit of its own, for what is rare.
    fn commit_alone<T>(
        &mut self,
        stage: impl FnOnce(&mut Group<'_, S>) -> Result<T, OutboxError>,
    ) -> Result<T, OutboxError> {
        self.outbox.set_moment(self.disk.moment());
        let mut group = self.outbox.begin(self.clock.wall())?;
        let done = stage(&mut group)?;
        group.commit()?;
        self.pending.failures = 0;
        self.levels.send_replace(self.outbox.levels());
        Ok(done)
    }

    fn deadletter(
        &mut self,
        lane: Lane,
        position: Position,
        reason: &str,
    ) -> Result<bool, OutboxError> {
        self.commit_alone(|group| group.deadletter(lane, position, reason))
    }

    /// What was delivered already is neither destroyed nor told.
    fn purge(&mut self, lane: Lane, what: Purge) -> Result<Losses, OutboxError> {
        if !self.pending.removals.is_empty() {
            self.commit_all()?;
        }
        self.commit_alone(|group| match what {
            Purge::UpTo(position) => group.purge(lane, position),
            Purge::DeadLetters => group.purge_dead(lane),
        })
    }

    fn census(&self) -> Result<Census, OutboxError> {
        let (levels, bytes) = (self.outbox.levels(), self.outbox.bytes());
        Ok(Census { levels, bytes, oldest_ms: self.outbox.oldest()? })
    }

    /// Puts dead letters back, a bounded number of them in a commit.
    fn requeue(&mut self, lane: Lane, only: Option<Position>) -> Result<usize, OutboxError> {
        let positions = match only {
            Some(position) => vec![position],
            None => self.outbox.dead_positions(lane)?,
        };
        let mut done = 0;
        for some in positions.chunks(REQUEUED_AT_ONCE) {
            done += self.commit_alone(|group| {
                some.iter().try_fold(0, |done, position| {
                    Ok(done + usize::from(group.requeue(lane, *position)?))
                })
            })?;
        }
        Ok(done)
    }

    fn page<T: Placed>(
        &mut self,
        lane: Lane,
        mut after: Option<Position>,
        limit: PageLimit,
        read: impl Fn(&mut Outbox<S>, Lane, Option<Position>, PageLimit) -> Result<Page<T>, OutboxError>,
    ) -> Result<Vec<T>, OutboxError> {
        loop {
            let Page { mut records, damaged, .. } = read(&mut self.outbox, lane, after, limit)?;
            let last = records.last().map(|record| record.place().1);
            let last = last.max(damaged.last().map(|damage| damage.position));
            records.retain(|record| !self.pending.removals.contains(&record.place()));
            for damage in damaged {
                self.note_damage(lane, damage)?;
            }
            if last.is_none() || !records.is_empty() {
                return Ok(records);
            }
            after = last;
        }
    }

    /// Has a damaged record set aside with the next commit. Nobody reads it a second time, so that
    /// where no place is left for it, that commit is made first.
    fn note_damage(&mut self, lane: Lane, damage: Damage) -> Result<(), OutboxError> {
        let place = (lane, damage.position);
        if self.pending.damaged.iter().any(|(lane, known)| (*lane, known.position) == place) {
            return Ok(());
        }
        if self.pending.damaged.len() >= MAX_DAMAGED {
            self.commit_all()?;
        }
        tracing::error!(%lane, position = %damage.position, "a record is damaged and set aside: {}", damage.cause);
        self.pending.damaged.push((lane, damage));
        self.due_in(self.settings.removal_delay);
        Ok(())
    }
}
