//! Threads that read sensors, so that one which hangs holds up no other.
//!
//! One thread reads what waits, one sensor after the other, as long as reads are quick. While nothing was begun for
//! [`SLOW`] and something waits, another thread takes it over; a thread that comes back is used again. There is
//! never more than one read of a sensor under way, so there are never more threads than sensors, however many
//! hang.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Measured, Probe};
use crate::clock::Clock;

/// A read that takes longer than this no longer makes the others wait.
pub const SLOW: Duration = Duration::from_millis(100);
/// Readers do little: the default of 2 MiB each would be address space for nothing.
const STACK_BYTES: usize = 256 * 1024;

/// A read that has ended.
#[derive(Debug)]
pub struct Done {
    /// Which sensor.
    pub place: usize,
    /// Its probe, for the next time.
    pub probe: Probe,
    /// What came of it.
    pub measured: Measured,
}

#[derive(Debug)]
struct Job {
    place: usize,
    probe: Probe,
}

/// The threads and what waits for them. They end when this is dropped, those that hang when they
/// no longer do.
#[derive(Debug)]
pub struct Readers {
    clock: Clock,
    shared: Arc<Shared>,
    threads: usize,
    /// Reads that had been begun when that number last changed, and when that was.
    begun: (u64, Option<Instant>),
    done: Receiver<Done>,
    sender: Sender<Done>,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    /// At most one for each sensor.
    jobs: VecDeque<Job>,
    begun: u64,
    /// Threads that wait for a job.
    idle: usize,
    closed: bool,
}

impl Shared {
    /// Nothing that could panic is done with the queue in hand.
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.shared.queue().closed = true;
        self.shared.more.notify_all();
    }
}

impl Readers {
    /// No thread yet. `clock` is that of the recordings.
    pub fn new(clock: Clock) -> Self {
        let (sender, done) = channel();
        Self { clock, shared: Arc::default(), threads: 0, begun: (0, None), done, sender }
    }

    /// Has a sensor read; its probe comes back with [`Done`].
    ///
    /// # Errors
    /// There is no thread and none can be started.
    pub fn submit(&mut self, now: Instant, place: usize, probe: Probe) -> std::io::Result<()> {
        let mut queue = self.shared.queue();
        queue.jobs.push_back(Job { place, probe });
        let (is_first, idle) = (queue.jobs.len() == 1, queue.idle);
        drop(queue);
        if is_first {
            // It waits from now on.
            self.begun.1 = Some(now);
        }
        match self.threads {
            0 => self.hire(),
            _ if is_first && idle > 0 => {
                // One thread takes all that follows as well.
                self.shared.more.notify_one();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Has another thread take over what waits, if all that are busy have been so for too long.
    fn attend(&mut self, now: Instant) {
        let queue = self.shared.queue();
        let (waiting, begun, idle) = (!queue.jobs.is_empty(), queue.begun, queue.idle);
        drop(queue);
        if begun != self.begun.0 {
            self.begun = (begun, Some(now));
        }
        let is_slow = self.begun.1.is_none_or(|since| now.duration_since(since) >= SLOW);
        if !waiting || !is_slow {
            return;
        }
        if idle > 0 {
            self.shared.more.notify_one();
        } else {
            // Without another thread the others are waited for.
            let _ = self.hire();
        }
        self.begun.1 = Some(now);
    }

    fn hire(&mut self) -> std::io::Result<()> {
        let (shared, done, clock) = (Arc::clone(&self.shared), self.sender.clone(), self.clock);
        let builder = std::thread::Builder::new().name("sensor-reader".to_owned());
        builder.stack_size(STACK_BYTES).spawn(move || work(&shared, &done, clock))?;
        self.threads += 1;
        Ok(())
    }

    /// Whether reads wait for a thread; then [`Self::next`] is to be called again after [`SLOW`].
    pub fn is_waiting(&self) -> bool {
        !self.shared.queue().jobs.is_empty()
    }

    /// The next read that has ended, if one does within `patience`.
    pub fn next(&mut self, now: Instant, patience: Duration) -> Option<Done> {
        self.attend(now);
        self.done.recv_timeout(patience).ok()
    }
}

fn work(shared: &Shared, done: &Sender<Done>, clock: Clock) {
    while let Some(Job { place, mut probe }) = job(shared) {
        let measured = probe.read(clock.now());
        if done.send(Done { place, probe, measured }).is_err() {
            return;
        }
    }
}

/// Waits for one; `None` at the end.
fn job(shared: &Shared) -> Option<Job> {
    let mut queue = shared.queue();
    loop {
        if queue.closed {
            return None;
        }
        if let Some(job) = queue.jobs.pop_front() {
            queue.begun += 1;
            return Some(job);
        }
        queue.idle += 1;
        queue = shared.more.wait(queue).unwrap_or_else(PoisonError::into_inner);
        queue.idle -= 1;
    }
}
