//! Threads that read sensors, so that one which hangs holds up no other.
//!
//! One thread reads as long as reads are quick. While a read takes longer than [`SLOW`] the next sensor
//! gets a thread of its own; a thread that comes back is used again. There is never more than one
//! read of a sensor under way, so there are never more threads than sensors, however many hang.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
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
    worker: usize,
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
    workers: Vec<Sender<Job>>,
    idle: Vec<usize>,
    /// When the last read was handed to a thread.
    given: Option<Instant>,
    waiting: VecDeque<Job>,
    done: Receiver<Done>,
    sender: Sender<Done>,
}

impl Readers {
    /// No thread yet. `clock` is that of the recordings.
    pub fn new(clock: Clock) -> Self {
        let (sender, done) = channel();
        let (workers, idle, waiting) = (Vec::new(), Vec::new(), VecDeque::new());
        Self { clock, workers, idle, given: None, waiting, done, sender }
    }

    /// Has a sensor read; its probe comes back with [`Done`].
    ///
    /// # Errors
    /// There is no thread and none can be started.
    pub fn submit(&mut self, now: Instant, place: usize, probe: Probe) -> std::io::Result<()> {
        self.waiting.push_back(Job { place, probe });
        self.hand_out(now)
    }

    /// Gives reads that wait to threads that are free, or to a new one if all have been busy for
    /// too long.
    fn hand_out(&mut self, now: Instant) -> std::io::Result<()> {
        while !self.waiting.is_empty() {
            let worker = match self.idle.pop() {
                Some(worker) => worker,
                None if self.workers.is_empty() => self.hire()?,
                // Without another thread the others are waited for.
                None if self.is_slow(now) => match self.hire() {
                    Ok(worker) => worker,
                    Err(_) => return Ok(()),
                },
                None => return Ok(()),
            };
            let Some(job) = self.waiting.pop_front() else { return Ok(()) };
            self.given = Some(now);
            if let Err(refused) = self.workers[worker].send(job) {
                // Its thread is gone, which only a panic can do: the next one gets the job.
                self.waiting.push_front(refused.0);
            }
        }
        Ok(())
    }

    fn is_slow(&self, now: Instant) -> bool {
        self.given.is_none_or(|given| now.duration_since(given) >= SLOW)
    }

    fn hire(&mut self) -> std::io::Result<usize> {
        let (jobs, inbox) = channel();
        let (done, worker, clock) = (self.sender.clone(), self.workers.len(), self.clock);
        let builder = std::thread::Builder::new().name("sensor-reader".to_owned());
        builder.stack_size(STACK_BYTES).spawn(move || work(worker, &inbox, &done, clock))?;
        self.workers.push(jobs);
        Ok(worker)
    }

    /// Whether reads wait for a thread; then [`Self::next`] is to be called again after [`SLOW`].
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The next read that has ended, if one does within `patience`.
    ///
    /// # Errors
    /// A thread is needed and cannot be started.
    pub fn next(&mut self, now: Instant, patience: Duration) -> std::io::Result<Option<Done>> {
        self.hand_out(now)?;
        match self.done.recv_timeout(patience) {
            Ok(done) => {
                self.idle.push(done.worker);
                self.hand_out(now)?;
                Ok(Some(done))
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Ok(None),
        }
    }
}

fn work(worker: usize, jobs: &Receiver<Job>, done: &Sender<Done>, clock: Clock) {
    while let Ok(Job { place, mut probe }) = jobs.recv() {
        let measured = probe.read(clock.now());
        if done.send(Done { place, probe, measured, worker }).is_err() {
            return;
        }
    }
}
