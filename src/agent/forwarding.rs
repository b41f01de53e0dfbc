//! Joins forwarder, outbox and uplink session: one task, started anew as a whole if it fails.

mod faults;
mod news;
mod plan;

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, mpsc, oneshot, watch};

use super::alarming::{AlarmHandle, Settle};
use super::{BUDGET, Happening, Reporter};
use crate::alarm::Actor;
use crate::clock::{Clock, Rng, WallTime};
use crate::downlink;
use crate::driver::outbox_admin::{AskUnderWay, UnderWay};
use crate::driver::outbox_writer::OutboxHandle;
use crate::driver::uplink as driver;
use crate::event::Lane;
use crate::forwarder::{Confirm, Fate, Flight, Forwarder, Overdue, Rules, Wanted, events_topic};
use crate::outbox::{Levels, OutboxError, Position, Structured};
use crate::supervisor::{Outcome, Stage, Stop, Supervisor};
use crate::uplink::{Counters, Notice, Outgoing, Received};
pub(super) use faults::{Change, report};
use faults::{Faults, refused_part};
pub(super) use plan::{Plan, plan};

/// Notices of the session that wait for the forwarder at most.
const NOTICES: usize = 256;
/// Messages from the cloud that are dealt with and whose PUBACK is still to be written; more than the
/// session ever has open.
const SETTLED: usize = 64;
/// Publishes that wait for the session.
const OUTGOING: usize = 32;
/// Questions about what is under way that wait.
const QUESTIONS: usize = 4;
/// Changes of faults that wait to be reported.
const CHANGES: usize = 64;
/// So long the wall clock's last reading is good enough for what is published meanwhile.
const WALL_FOR: Duration = Duration::from_secs(1);
/// Alerts among the dead letters are offered again at most so often, however often the broker hangs up.
const DEAD_EVERY: Duration = Duration::from_secs(60);
/// The part that is at fault while an alert is a dead letter.
const DEAD_LETTER: &str = "dead-letter";

/// The part that is at fault while no command can come.
const COMMANDS: &str = "commands";

/// Its name as a service.
pub(super) const SERVICE: &str = "uplink";

/// Faults that only the run that raised them can end.
pub(super) const FAULTS: [&str; 8] = [
    "receipt",
    "subscriber",
    "client-id",
    "certificates",
    COMMANDS,
    refused_part(Lane::Alert),
    refused_part(Lane::Status),
    refused_part(Lane::Telemetry),
];

type Asked = mpsc::Receiver<oneshot::Sender<UnderWay>>;

/// What outlives each run of the task, and each plan.
#[derive(Debug, Clone)]
pub(super) struct Links {
    /// Whether there is a session with the broker.
    connected: watch::Sender<bool>,
    asked: Arc<Mutex<Asked>>,
}

impl Links {
    /// The sender is for questions about what is under way.
    pub(super) fn new() -> (Self, AskUnderWay) {
        let (ask, asked) = mpsc::channel(QUESTIONS);
        let asked = Arc::new(Mutex::new(asked));
        (Self { connected: watch::Sender::new(false), asked }, ask)
    }

    /// Whether there is a session with the broker.
    pub(super) fn connected(&self) -> watch::Receiver<bool> {
        self.connected.subscribe()
    }
}

/// What the task is joined to.
pub(super) struct Wires {
    pub(super) outbox: OutboxHandle,
    pub(super) reporter: Reporter,
    pub(super) alarms: AlarmHandle,
    pub(super) clock: Clock,
    pub(super) rng: Rng,
}

/// Starts the task.
pub(super) fn start(supervisor: &mut Supervisor, plan: Plan, links: &Links, wires: Wires) {
    let Links { connected, asked } = links.clone();
    let Wires { outbox, reporter, alarms, clock, mut rng } = wires;
    supervisor.task(Stage::Uplink, SERVICE, BUDGET, move |stop| {
        let (tell, changes) = mpsc::channel(CHANGES);
        let pump = Pump {
            tell,
            asked: Arc::clone(&asked),
            forwarder: Forwarder::new(&plan.device, plan.rules),
            delivered: Vec::new(),
            device: plan.device.clone(),
            rules: plan.rules,
            outbox: outbox.clone(),
            reporter: reporter.clone(),
            alarms: alarms.clone(),
            clock,
            opened: outbox.levels().borrow().opened,
            connected: connected.clone(),
            faults: Faults::default(),
            urgent: watch::Sender::new(false),
            off_first_path: None,
            wall: (clock.now(), clock.wall()),
        };
        forward(plan.clone(), pump, report(reporter.clone(), changes), rng.fork(), stop)
    });
}

async fn forward(
    plan: Plan,
    pump: Pump,
    report: impl Future<Output = ()>,
    rng: Rng,
    stop: Stop,
) -> Outcome {
    // What waits here goes into one write. It counts as under way, which the forwarder bounds, and the
    // session puts an alert before it.
    let (outgoing, taken) = mpsc::channel(OUTGOING);
    let (noticed, notices) = mpsc::channel(NOTICES);
    let clock = pump.clock;
    let (counters, _) = watch::channel(Counters::default());
    let (settled, dealt_with) = mpsc::channel(SETTLED);
    let wires = driver::Wires {
        outgoing: taken,
        notices: noticed,
        settled: dealt_with,
        counters,
        urgent: pump.urgent.subscribe(),
        shutdown: stop.receiver(),
    };
    let session = driver::run(plan.driver, wires, clock, rng);
    let (session, pump, ()) = tokio::join!(session, pump.run(outgoing, notices, settled), report);
    session.map_err(|e| e.to_string())?;
    pump
}

/// A page that was wanted, and what came of it.
type Read = (Wanted, Result<Vec<Structured>, OutboxError>);

/// Waits for the page that is being read, if one is.
async fn done<F: Future<Output = Read>>(reading: &mut Option<Pin<Box<F>>>) -> Read {
    let Some(page) = reading else { return std::future::pending().await };
    let read = page.await;
    *reading = None;
    read
}

struct Pump {
    forwarder: Forwarder,
    /// Records that the outbox is to be told of with the notices at hand.
    delivered: Vec<(Lane, Position)>,
    tell: mpsc::Sender<Change>,
    /// Questions about what is under way; they outlive a restart.
    asked: Arc<Mutex<Asked>>,
    device: String,
    rules: Rules,
    faults: Faults,
    outbox: OutboxHandle,
    reporter: Reporter,
    alarms: AlarmHandle,
    clock: Clock,
    /// How often the outbox had been opened when its lanes were read.
    opened: u64,
    connected: watch::Sender<bool>,
    /// An alert waits in the outbox.
    urgent: watch::Sender<bool>,
    /// Why the session stands, or is being tried, on another URL than the first.
    off_first_path: Option<String>,
    /// The wall clock, and when it was read.
    wall: (Instant, WallTime),
}

impl Pump {
    /// Runs until the session has ended and its last notice is read.
    async fn run(
        mut self,
        outgoing: mpsc::Sender<Outgoing>,
        mut notices: mpsc::Receiver<Notice>,
        settled: mpsc::Sender<u64>,
    ) -> Outcome {
        let mut levels = self.outbox.levels();
        levels.mark_changed();
        let asked = Arc::clone(&self.asked);
        let mut asked = asked.lock().await;
        let mut reading = None;
        loop {
            let now = self.clock.now();
            self.round(now);
            if reading.is_none() {
                reading = self.forwarder.wanted().map(|wanted| Box::pin(self.read(wanted)));
            }
            let due = self.forwarder.next_due(now).into_iter().chain(self.faults.steady).min();
            let due = due.map_or(Duration::MAX, |at| at.saturating_duration_since(now));
            tokio::select! {
                notice = notices.recv() => match notice {
                    Some(notice) => {
                        let now = self.clock.now();
                        self.noticed(&notice, &settled, now).await?;
                        for _ in 0..NOTICES {
                            let Ok(notice) = notices.try_recv() else { break };
                            self.noticed(&notice, &settled, now).await?;
                        }
                        self.remove_delivered().await?;
                    }
                    None => break,
                },
                (wanted, page) = done(&mut reading) => {
                    self.forwarder.loaded(wanted, page.map_err(|e| e.to_string())?);
                }
                permit = outgoing.reserve(), if self.forwarder.has_next(now) => match permit {
                    Ok(permit) => self.hand_out(permit, &outgoing, now),
                    // The session takes nothing more; its last notices are still to come.
                    Err(_) => while let Some(notice) = notices.recv().await {
                        self.noticed(&notice, &settled, self.clock.now()).await?;
                        self.remove_delivered().await?;
                    },
                },
                changed = levels.changed() => match changed {
                    Ok(()) => {
                        let levels = *levels.borrow_and_update();
                        self.reached(&levels);
                    }
                    Err(_) => return Err("the outbox is closed".to_owned()),
                },
                Some(reply) = asked.recv() => {
                    let _ = reply.send(UnderWay {
                        in_flight: self.forwarder.in_flight_places().collect(),
                        unconfirmed: self.forwarder.unconfirmed_places().collect(),
                    });
                }
                () = tokio::time::sleep(due), if due != Duration::MAX => {}
            }
        }
        self.connected.send_replace(false);
        Ok(())
    }

    /// How far the outbox reaches now, whether it was opened anew, and whether alerts wait or are dead
    /// letters.
    fn reached(&mut self, levels: &Levels) {
        if std::mem::replace(&mut self.opened, levels.opened) != levels.opened {
            self.forwarder.rewind();
        }
        self.forwarder.reach(levels.tails);
        let at = Lane::Alert.index();
        let urgent = levels.records[at] > 0;
        self.urgent.send_if_modified(|was| std::mem::replace(was, urgent) != urgent);
        if levels.dead[at] > 0 && !self.faults.dead {
            self.faults.dead = true;
            let problem = format!(
                "{} alerts are dead letters: see `hark outbox list --dead`",
                levels.dead[at]
            );
            self.tell(DEAD_LETTER, Some(&problem));
        }
        // One that was put back is not delivered yet.
        if self.faults.dead && levels.dead[at] == 0 && !urgent {
            self.faults.dead = false;
            self.tell(DEAD_LETTER, None);
        }
    }

    /// Gives the session as much as there is room for: what is handed out is bounded by the forwarder.
    fn hand_out(
        &mut self,
        first: mpsc::Permit<'_, Outgoing>,
        outgoing: &mpsc::Sender<Outgoing>,
        now: Instant,
    ) {
        // Whether the kernel's clock is right is a system call; expiries are in seconds.
        let (read, mut wall) = self.wall;
        if now.saturating_duration_since(read) >= WALL_FOR {
            wall = self.clock.wall();
            self.wall = (now, wall);
        }
        let mut permit = Some(first);
        while let Some(room) = permit.take()
            && let Some(next) = self.forwarder.next(now, wall)
        {
            room.send(next);
            permit = outgoing.try_reserve().ok();
        }
    }

    /// Reads a page beside all else, so that nothing waits for the disk meanwhile.
    fn read(&self, wanted: Wanted) -> impl Future<Output = Read> + use<> {
        let outbox = self.outbox.clone();
        async move { (wanted, outbox.structured(wanted.lane, wanted.after, wanted.limit).await) }
    }

    async fn remove_delivered(&mut self) -> Outcome {
        if self.delivered.is_empty() {
            return Ok(());
        }
        let delivered = std::mem::take(&mut self.delivered);
        self.outbox.remove(delivered).await.map_err(|e| e.to_string())
    }

    /// What time alone brings.
    fn round(&mut self, now: Instant) {
        if let Some(Overdue { count, lane, id }) = self.forwarder.overdue(now) {
            let timeout = self.rules.receipt_timeout[lane.index()].as_secs();
            let problem = format!(
                "no receipt within {timeout} s for {count} events published to {} (first: {id}); they \
                 are published again",
                events_topic(&self.device, lane)
            );
            tracing::warn!("{problem}");
            self.no_receipts(&problem);
        }
        if self.faults.steady.is_some_and(|at| at <= now) {
            self.faults.steady = None;
            self.faults.contested = false;
            self.tell("client-id", None);
        }
    }

    /// Has a fault of this part raised, or cleared where there is no problem. Not waited for: the event
    /// waits for company in a commit, and no alert may wait for it.
    fn tell(&self, part: &'static str, problem: Option<&str>) {
        if self.tell.try_send((part, problem.map(str::to_owned))).is_err() {
            tracing::error!(
                part,
                ?problem,
                "too many changes of faults at once: this one is not reported"
            );
        }
    }

    fn no_receipts(&mut self, problem: &str) {
        if !std::mem::replace(&mut self.faults.receipt, true) {
            self.tell("receipt", Some(problem));
        }
    }

    async fn noticed(
        &mut self,
        notice: &Notice,
        settled: &mpsc::Sender<u64>,
        now: Instant,
    ) -> Outcome {
        self.show(notice);
        if matches!(notice, Notice::Connected { .. }) {
            self.offer_dead_alerts(now).await?;
        }
        if let Notice::Received { delivery, message } = notice {
            let settle = Settle(delivery.map(|delivery| (settled.clone(), delivery)));
            self.received(message, settle).await?;
        }
        match self.forwarder.handle(notice, now) {
            None => {}
            Some(Fate::Published { id, lane, again }) => {
                tracing::debug!(id = &*id, %lane, again, "published");
                self.reporter.happened(Happening::Published { id, lane, again });
            }
            Some(Fate::Delivered(flight)) => {
                tracing::debug!(id = &*flight.id, lane = %flight.lane, "acknowledged");
                self.delivered.push((flight.lane, flight.position));
                let nobody = matches!(notice, Notice::Acknowledged { no_subscribers: true, .. });
                self.taken(flight.lane, nobody);
                let (id, lane) = (flight.id, flight.lane);
                self.reporter.happened(Happening::Acknowledged { id, lane });
            }
            Some(Fate::Unconfirmed { id, lane, no_subscribers }) => {
                tracing::debug!(id = &*id, %lane, "acknowledged, waits for its receipt");
                if no_subscribers {
                    let topic = events_topic(&self.device, lane);
                    let problem =
                        format!("nobody subscribes to {topic}: no receipt can come for {id}");
                    self.no_receipts(&problem);
                }
                self.taken(lane, false);
                self.reporter.happened(Happening::Unconfirmed { id, lane });
            }
            Some(Fate::Deferred { id, lane, reason, pause }) => {
                self.refused(id, lane, reason, pause);
            }
            Some(Fate::Poisoned { flight, reason }) => {
                self.set_aside(flight, &reason.to_string()).await?;
            }
        }
        Ok(())
    }

    /// A record that cannot be delivered becomes a dead letter; where there is no room for it among
    /// them, it stays and is offered ever more rarely.
    async fn set_aside(&mut self, flight: Flight, reason: &str) -> Outcome {
        let (id, lane) = (flight.id.clone(), flight.lane);
        let done = self.outbox.deadletter(lane, flight.position, reason.to_owned()).await;
        if !done.map_err(|e| e.to_string())? {
            let pause = self.forwarder.defer(flight, self.clock.now());
            self.refused(id, lane, reason.to_owned(), pause);
            return Ok(());
        }
        tracing::error!(id = &*id, %lane, "{reason}; set aside as a dead letter");
        if lane == Lane::Alert {
            let problem = format!(
                "alert {id} cannot be delivered ({reason}); it is offered again with each connection"
            );
            self.tell(DEAD_LETTER, Some(&problem));
            self.faults.dead = true;
        }
        Ok(())
    }

    /// Alerts among the dead letters get another chance: somebody may have mended the broker.
    async fn offer_dead_alerts(&mut self, now: Instant) -> Outcome {
        if self.faults.offered_dead.is_some_and(|at| now.duration_since(at) < DEAD_EVERY) {
            return Ok(());
        }
        self.faults.offered_dead = Some(now);
        let count = self.outbox.requeue(Lane::Alert, None).await.map_err(|e| e.to_string())?;
        if count > 0 {
            tracing::warn!(count, "alerts among the dead letters are offered again");
        }
        Ok(())
    }

    /// The broker did not take it.
    fn refused(&mut self, id: Arc<str>, lane: Lane, reason: String, pause: Duration) {
        tracing::warn!(id = &*id, %lane, "{reason}; offered again in {} s", pause.as_secs());
        if !std::mem::replace(&mut self.faults.refused[lane.index()], true) {
            let problem = format!("{} refused: {reason}", events_topic(&self.device, lane));
            self.tell(refused_part(lane), Some(&problem));
        }
        self.reporter.happened(Happening::Deferred { id, reason });
    }

    /// The broker took a record of this lane; `nobody`: and threw it away, since nobody subscribes.
    fn taken(&mut self, lane: Lane, nobody: bool) {
        let faults = &mut self.faults;
        if faults.refused[lane.index()] && !self.forwarder.has_refused(lane) {
            faults.refused[lane.index()] = false;
            self.tell(refused_part(lane), None);
        }
        if lane != Lane::Alert || nobody == self.faults.subscriber {
            return;
        }
        self.faults.subscriber = nobody;
        if nobody {
            let topic = events_topic(&self.device, lane);
            let problem =
                format!("nobody subscribes to {topic}: the broker has thrown an alert away");
            self.tell("subscriber", Some(&problem));
        } else {
            self.tell("subscriber", None);
        }
    }

    /// A message from the cloud. Whoever deals with it has it acknowledged.
    async fn received(&mut self, message: &Received, settle: Settle) -> Outcome {
        if *message.topic == *downlink::commands_topic(&self.device) {
            self.alarms.command(message.clone(), settle);
            return Ok(());
        }
        let receipt = match downlink::decode(message) {
            Ok(receipt) => receipt,
            Err(error) => {
                tracing::warn!("downlink: {error}; it is passed over");
                settle.done();
                return Ok(());
            }
        };
        self.settle_receipt(&receipt).await?;
        // What it says of an alarm must be on the disk before it is acknowledged.
        if receipt.lane == Lane::Alert
            && self.rules.confirm[Lane::Alert.index()] == Confirm::Receipt
        {
            let actor = Actor {
                via: "receipt",
                who: receipt.by,
                name: None,
                note: None,
                at: receipt.time,
                cause: receipt.id,
            };
            self.alarms.receipt(receipt.ids, actor, settle);
        } else {
            settle.done();
        }
        Ok(())
    }

    /// The consumer has these events: they are removed.
    async fn settle_receipt(&mut self, receipt: &downlink::Receipt) -> Outcome {
        let (lane, source) = (receipt.lane, receipt.source.as_deref());
        let (settled, in_flight) = self.forwarder.receipt(lane, source, &receipt.ids);
        tracing::debug!(%lane, named = receipt.ids.len(), removed = settled.len(), in_flight, "receipt");
        if settled.is_empty() && in_flight == 0 {
            return Ok(());
        }
        let remove: Vec<_> = settled.iter().map(|done| (done.lane, done.position)).collect();
        self.outbox.remove(remove).await.map_err(|e| e.to_string())?;
        for done in settled {
            self.reporter.happened(Happening::Received { id: done.id, lane: done.lane });
        }
        if std::mem::take(&mut self.faults.receipt) {
            self.tell("receipt", None);
        }
        Ok(())
    }
}
