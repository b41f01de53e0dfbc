//! The task that owns the alarms: takes triggers, presses, commands and receipts, and lets nothing happen
//! before the disk has it.
//!
//! ```text
//! detector, buttons, ingest ─▶ urgent ─┐                       ┌─▶ outbox: events and memos, one commit
//! commands, receipts ────────▶ asks ───┼─▶ Alarms (clone) ─────┤ then
//! time ────────────────────────────────┘                       └─▶ light and tone, dialler, PUBACK
//! ```
//! Each input is tried on a copy of the state. The copy takes its place once the commit has returned; a
//! commit that fails leaves the state as it was, and whoever waits is told.
//!
//! Urgent inputs go first, so that no flood of commands delays a cry.

mod handle;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, mpsc, watch};

use super::commanding::Commands;
use super::{Activity, BUDGET, Happening, Reporter};
use crate::alarm::{
    Actor, Alarms, Call, Contact, Input, Kind, Local, Now, Refusal, Request, Restored, Schedule,
    Settings, Signal, Told, Trigger,
};
use crate::clock::{Clock, ClockState, Rng, WallTime, Zone};
use crate::config;
use crate::downlink::Command;
use crate::driver::dialler::{self, Dial};
use crate::driver::ingest::{self, Alarming};
use crate::driver::sys;
use crate::event::catalogue::{Maker, Occurrence};
use crate::event::{Event, Lane};
use crate::outbox::{Accepted, Memo, Outbox, Store};
use crate::sensor::button::Press;
use crate::sensor::inactivity::Away;
use crate::status;
use crate::supervisor::{Outcome, Stage, Stop, Supervisor};
use crate::uplink::Received;
pub(super) use handle::{AlarmHandle, Settle};
use handle::{Ask, Urgent};

/// Inputs that wait at most; whoever has more waits for room.
const QUEUED: usize = 64;
/// Calls that wait for the dialler at most: one an alarm is under way.
const CALLS: usize = 8;
/// How often the schedule of test alarms is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(20);
/// The memo of the day on which a scheduled test was last.
const SCHEDULE_MEMO: &str = "alarm.schedule";
/// How long the watch over activity may take to remember a holiday.
const HOLIDAY: Duration = Duration::from_millis(500);
/// The part that is at fault when an alarm could not be read back.
const ALARM: &str = "alarm";

/// What the configuration says of the alarms.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rules {
    settings: Settings,
    schedule: Option<Schedule>,
    zone: Zone,
    on_button: bool,
    /// Whose commands are carried out.
    sources: Vec<String>,
}

impl Rules {
    pub(super) fn new(config: &config::Config, zone: Zone) -> Self {
        let config::Alarm { cancel_window, receipt_timeout, again_after, rounds, .. } =
            config.alarm;
        let contacts = config.alarm.contacts.iter().map(|contact| Contact {
            name: contact.name.clone(),
            timeout: contact.timeout,
            exec: contact.exec.clone(),
        });
        let contacts = contacts.collect();
        let schedule = config.alarm.test_schedule;
        Self {
            settings: Settings { cancel_window, receipt_timeout, rounds, again_after, contacts },
            schedule: schedule.map(|s| Schedule { weekday: s.weekday, minute: s.minute }),
            zone,
            on_button: config.alarm.on_button,
            sources: config.commands.sources.clone(),
        }
    }
}

/// What the alarms need, and what was open at the last end.
#[derive(Debug)]
pub(super) struct Plan {
    rules: Rules,
    restored: Restored,
    last_test: Option<i64>,
    commands: Commands,
    problems: Vec<String>,
}

/// Reads back what was open.
pub(super) fn plan<S: Store>(rules: Rules, outbox: &Outbox<S>) -> Plan {
    let mut problems = Vec::new();
    let mut memo = |name: &str| match outbox.memo(name) {
        Ok(bytes) => bytes,
        Err(error) => {
            problems.push(error.to_string());
            None
        }
    };
    let real = memo(crate::alarm::REAL_MEMO);
    let test = memo(crate::alarm::TEST_MEMO);
    let day = memo(SCHEDULE_MEMO).and_then(|bytes| bytes.try_into().ok()).map(i64::from_be_bytes);
    let done = memo(crate::downlink::DONE_MEMO).unwrap_or_default();
    let commands = Commands::new(&done, rules.sources.clone());
    Plan { rules, restored: Restored { real, test }, last_test: day, commands, problems }
}

/// What the task is joined to.
pub(super) struct Wires {
    pub(super) reporter: Reporter,
    pub(super) maker: Maker,
    pub(super) clock: Clock,
    pub(super) rng: Rng,
    pub(super) boot: String,
    /// Events of other programs that are to make an alarm.
    pub(super) ingested: mpsc::Receiver<Alarming>,
    /// What light and tone are to say.
    pub(super) signal: watch::Sender<Signal>,
    /// What holidays are told.
    pub(super) activity: Activity,
}

/// Starts the task and the dialler.
pub(super) fn start(supervisor: &mut Supervisor, plan: Plan, wires: Wires) -> AlarmHandle {
    let (urgent, urgent_inputs) = mpsc::channel(QUEUED);
    let (asks, asked) = mpsc::channel(QUEUED);
    let handle = AlarmHandle { urgent, asks, reporter: wires.reporter.clone() };
    let dials = start_dialler(supervisor, &handle, wires.clock);
    let settings = plan.rules.settings.clone();
    let (alarms, problems) = Alarms::restore(settings, &wires.boot, &plan.restored);
    for alarm in alarms.open() {
        let (id, state, test) = (alarm.id, alarm.state, alarm.test);
        tracing::warn!(alarm = id, state, test, "an alarm is open from before");
    }
    let task = Task {
        alarms,
        urgent: urgent_inputs,
        asks: asked,
        ingested: wires.ingested,
        reporter: wires.reporter,
        maker: wires.maker,
        time: Time::new(wires.clock),
        rng: wires.rng,
        signal: wires.signal,
        dials,
        rules: plan.rules,
        last_test: plan.last_test,
        commands: plan.commands,
        activity: wires.activity,
        problems: plan.problems.into_iter().chain(problems).collect(),
        resumed: false,
    };
    let task = Arc::new(Mutex::new(task));
    // Sources still cry while they stop.
    supervisor.task(Stage::Uplink, "alarm", BUDGET, move |stop| {
        let task = Arc::clone(&task);
        async move { task.lock().await.run(stop).await }
    });
    handle
}

fn start_dialler(
    supervisor: &mut Supervisor,
    handle: &AlarmHandle,
    clock: Clock,
) -> std::sync::mpsc::SyncSender<Dial> {
    let (dials, calls) = std::sync::mpsc::sync_channel(CALLS);
    let urgent = handle.urgent.clone();
    supervisor.thread(Stage::Source, "dialler", BUDGET, move |stop| {
        let ended = |alarm, call, outcome| {
            let _ = urgent.blocking_send(Urgent::Dialled { alarm, call, outcome });
        };
        dialler::run(&calls, clock, || stop.is_set(), ended);
        Ok(())
    });
    dials
}

/// Monotonic time since boot, which holds across a restart of the process.
#[derive(Debug, Clone, Copy)]
struct Time {
    clock: Clock,
    base: Duration,
    at: Instant,
}

impl Time {
    fn new(clock: Clock) -> Self {
        Self { clock, base: sys::since_boot(), at: clock.now() }
    }

    fn now(&self) -> Now {
        let past = self.clock.now().saturating_duration_since(self.at);
        Now { mono: self.base + past, wall: self.clock.wall() }
    }
}

struct Task {
    alarms: Alarms,
    urgent: mpsc::Receiver<Urgent>,
    asks: mpsc::Receiver<Ask>,
    ingested: mpsc::Receiver<Alarming>,
    reporter: Reporter,
    maker: Maker,
    time: Time,
    rng: Rng,
    signal: watch::Sender<Signal>,
    dials: std::sync::mpsc::SyncSender<Dial>,
    rules: Rules,
    last_test: Option<i64>,
    commands: Commands,
    activity: Activity,
    problems: Vec<String>,
    resumed: bool,
}

impl Task {
    async fn run(&mut self, mut stop: Stop) -> Outcome {
        self.signal.send_replace(self.alarms.signal());
        self.reporter.show_alarm(shown(&self.alarms));
        if !std::mem::replace(&mut self.resumed, true) {
            for problem in std::mem::take(&mut self.problems) {
                self.reporter.raise(ALARM, &problem).await;
            }
            let calls = self.alarms.resume(self.time.now());
            self.dial(calls);
        }
        let mut look = tokio::time::interval(LOOK_EVERY);
        loop {
            let due = self.alarms.due(self.time.now());
            tokio::select! {
                biased;
                () = stop.wait() => return Ok(()),
                Some(input) = self.urgent.recv() => self.urgent(input).await?,
                () = after(due) => {
                    self.step(Vec::new(), Vec::new(), |alarms, now, rng| Ok(alarms.tick(now, rng)))
                        .await?;
                }
                Some(alarming) = self.ingested.recv() => self.ingested(alarming).await,
                Some(ask) = self.asks.recv() => if let Err(error) = self.asked(ask).await {
                    tracing::error!("what came from the broker is not recorded, and comes again: {error}");
                },
                _ = look.tick(), if self.rules.schedule.is_some() => self.look_at_schedule().await?,
            }
        }
    }

    async fn urgent(&mut self, input: Urgent) -> Outcome {
        match input {
            Urgent::Trigger { causes, trigger, done } => {
                let stored = self.handle(causes, Input::Trigger(trigger)).await;
                let _ = done.send(stored.clone());
                stored
            }
            Urgent::Press { button, press, held } => self.pressed(&button, press, held).await,
            Urgent::Cancel { who } => self.handle(Vec::new(), cancel(&who, who.clone())).await,
            Urgent::Dialled { alarm, call, outcome } => {
                tracing::info!(alarm, call, ?outcome, "the dialler has ended");
                self.handle(Vec::new(), Input::Dialled { alarm, call, outcome }).await
            }
        }
    }

    /// A short press calls a pending alarm off; any other press is an alarm, or a test.
    async fn pressed(&mut self, button: &str, press: Press, held: Duration) -> Outcome {
        let held_ms = u64::try_from(held.as_millis()).unwrap_or(u64::MAX);
        let name = button.to_owned();
        let occurrence = Occurrence::ButtonPressed { button: name, press: press.as_str(), held_ms };
        let (lane, event) = self.reporter.make(&occurrence)?;
        let cause = event.id().to_owned();
        let causes = vec![(lane, event)];
        if press == Press::Short && self.alarms.is_pending() {
            return self.handle(causes, cancel(button, cause)).await;
        }
        let test = press == Press::Hold;
        if !self.rules.on_button && !test {
            return self.step(causes, Vec::new(), |_, _, _| Ok(Told::default())).await.map(drop);
        }
        let text = format!("{} press of {button}", press.as_str());
        let trigger = Trigger::new(Kind::Button, Some(cause), text);
        let trigger = Trigger { test, at_once: press == Press::Long, ..trigger };
        self.handle(causes, Input::Trigger(trigger)).await
    }

    /// What cannot be stored is the client's to hand in again.
    async fn ingested(&mut self, alarming: Alarming) {
        let Alarming { events, triggers, done } = alarming;
        let inputs = triggers.into_iter().map(|ingest::Trigger { id, event_type, test }| {
            let text = format!("event of type {event_type}");
            Input::Trigger(Trigger { test, ..Trigger::new(Kind::Ingest, Some(id), text) })
        });
        let inputs: Vec<_> = inputs.collect();
        let count = events.len();
        let stored = self.step(events, Vec::new(), |alarms, now, rng| {
            let mut all = Told::default();
            for input in inputs {
                match alarms.handle(input, now, rng) {
                    Ok(told) => all.join(told),
                    // A test beside a real alarm; the others count all the same.
                    Err(refusal) => tracing::warn!("{refusal}"),
                }
            }
            Ok(all)
        });
        let accepted = stored.await.map(|(_, mut accepted)| {
            accepted.truncate(count);
            accepted
        });
        let _ = done.send(accepted);
    }

    async fn asked(&mut self, ask: Ask) -> Outcome {
        match ask {
            Ask::Receipt { ids, actor, settle } => {
                self.handle(Vec::new(), Input::Receipt { ids, actor }).await?;
                settle.done();
            }
            Ask::Command { message, settle } => {
                self.command(&message).await?;
                settle.done();
            }
            Ask::Set { rules, done } => {
                self.alarms.set(rules.settings.clone());
                self.commands.set_sources(rules.sources.clone());
                self.rules = *rules;
                let _ = done.send(());
            }
        }
        Ok(())
    }

    /// Carries a command out and answers it, in one commit with the memory of it.
    async fn command(&mut self, message: &Received) -> Outcome {
        let now = self.time.now();
        let Some(asked) = self.commands.take(message, now) else { return Ok(()) };
        let mut next = self.alarms.clone();
        let told = asked.input.map(|input| next.handle(input, now, &mut self.rng));
        let mut refusal = told.as_ref().and_then(|t| t.as_ref().err()).map(ToString::to_string);
        if let Ok(command) = &asked.request {
            refusal = refusal.or(self.holiday(command).await.err());
        }
        let told = told.and_then(Result::ok).unwrap_or_default();
        let answer = self.commands.answer(asked.request, told.alarm.clone(), refusal);
        let mut events = Vec::new();
        for (id, occurrence) in &told.occurrences {
            events.push(self.event(id.clone(), occurrence, now)?);
        }
        let id = self.rng.uuid_v7(now.wall);
        events.push(self.event(id, &answer.occurrence, now)?);
        let memos = answer.memo.into_iter().collect();
        self.commit(next, events, memos, told).await?;
        self.commands.answered();
        Ok(())
    }

    /// Begins or ends a holiday, where that is asked for. The answer comes from a thread that may just now
    /// wait for this task with an alarm of its own, so it is not waited for without end.
    async fn holiday(&self, command: &Command) -> Outcome {
        let away = match command.name {
            "activity.away" => Some(Away { until_ms: command.until_ms }),
            "activity.home" => None,
            _ => return Ok(()),
        };
        let set = tokio::time::timeout(HOLIDAY, self.activity.set_away(away)).await;
        set.unwrap_or_else(|_| Err("the watch over activity is busy; ask again".to_owned()))
    }

    async fn look_at_schedule(&mut self) -> Outcome {
        let Some(schedule) = self.rules.schedule else { return Ok(()) };
        let now = self.time.now();
        let local = local(&self.rules.zone, now);
        let due = schedule.due(local, self.last_test);
        let Some(day) = due.filter(|_| now.wall.state == ClockState::Synced) else {
            return Ok(());
        };
        let trigger = Trigger::new(Kind::Schedule, None, "scheduled test");
        let input = Input::Trigger(Trigger { test: true, ..trigger });
        let bytes = day.to_be_bytes().to_vec();
        let memos = vec![Memo { name: SCHEDULE_MEMO, bytes }];
        let step = self.step(Vec::new(), memos, |alarms, now, rng| alarms.handle(input, now, rng));
        match step.await? {
            (None, _) => self.last_test = Some(day),
            (Some(refusal), _) => tracing::warn!("the scheduled test alarm waits: {refusal}"),
        }
        Ok(())
    }

    async fn handle(&mut self, causes: Vec<(Lane, Event)>, input: Input) -> Outcome {
        let change = |alarms: &mut Alarms, now, rng: &mut Rng| alarms.handle(input, now, rng);
        self.step(causes, Vec::new(), change).await.map(drop)
    }

    /// Tries a change on a copy. A refusal leaves the state, and what caused it is stored all the same.
    async fn step(
        &mut self,
        causes: Vec<(Lane, Event)>,
        memos: Vec<Memo>,
        change: impl FnOnce(&mut Alarms, Now, &mut Rng) -> Result<Told, Refusal>,
    ) -> Result<(Option<Refusal>, Vec<Accepted>), String> {
        let now = self.time.now();
        let mut next = self.alarms.clone();
        let (told, memos, refusal) = match change(&mut next, now, &mut self.rng) {
            Ok(told) => (told, memos, None),
            Err(refusal) => {
                tracing::warn!("{refusal}");
                (Told::default(), Vec::new(), Some(refusal))
            }
        };
        let mut events = causes;
        for (id, occurrence) in &told.occurrences {
            events.push(self.event(id.clone(), occurrence, now)?);
        }
        let accepted = self.commit(next, events, memos, told).await?;
        Ok((refusal, accepted))
    }

    fn event(
        &self,
        id: String,
        occurrence: &Occurrence,
        now: Now,
    ) -> Result<(Lane, Event), String> {
        self.maker.make_as(id, occurrence, now.wall).map_err(|e| e.to_string())
    }

    /// Makes it durable, and only then lets it happen.
    async fn commit(
        &mut self,
        next: Alarms,
        events: Vec<(Lane, Event)>,
        mut memos: Vec<Memo>,
        told: Told,
    ) -> Result<Vec<Accepted>, String> {
        let changed = next.memos(&self.alarms);
        memos.extend(changed.into_iter().map(|(name, bytes)| Memo { name, bytes }));
        let accepted = match (events.is_empty(), memos.is_empty()) {
            (true, true) => Vec::new(),
            _ => self.reporter.commit(events, memos).await?,
        };
        self.alarms = next;
        self.reporter.show_alarm(shown(&self.alarms));
        self.signal.send_if_modified(|signal| {
            let now = self.alarms.signal();
            std::mem::replace(signal, now) != now
        });
        for (_, occurrence) in &told.occurrences {
            if let Occurrence::Alarm { step, alarm, test, .. } = occurrence {
                let (alarm, step, test) = (alarm.clone(), step.as_str(), *test);
                tracing::warn!(alarm, step, test, "alarm");
                self.reporter.happened(Happening::Alarm { alarm, step, test });
            }
        }
        self.dial(told.calls);
        Ok(accepted)
    }

    fn dial(&self, calls: Vec<Call>) {
        for Call { alarm, number, contact, json } in calls {
            tracing::warn!(alarm, contact = contact.name, "calling");
            let dial =
                Dial { alarm, call: number, exec: contact.exec, json, limit: contact.timeout };
            if self.dials.try_send(dial).is_err() {
                tracing::error!("the dialler takes no more calls; the next contact has its turn");
            }
        }
    }
}

/// The open alarm, as the status shows it.
fn shown(alarms: &Alarms) -> Option<status::Alarm> {
    let alarm = alarms.open().next()?;
    let since = WallTime { unix_ms: alarm.opened_ms, state: ClockState::Unsynced };
    Some(status::Alarm {
        id: alarm.id.to_owned(),
        state: alarm.state,
        since: since.to_rfc3339(),
        contact: alarm.contact.map(str::to_owned),
        testalarm: alarm.test,
    })
}

/// Somebody on the spot calls the pending alarm off.
fn cancel(who: &str, cause: String) -> Input {
    let who = who.to_owned();
    let actor = Actor { via: "button", who, name: None, note: None, at: None, cause };
    Input::Request { step: Request::Cancel, alarm: None, not_after_ms: None, actor }
}

async fn after(due: Option<Duration>) {
    match due {
        // A sleep of no time at all is not ready at once, and something else always is.
        Some(Duration::ZERO) => {}
        Some(due) => tokio::time::sleep(due).await,
        None => std::future::pending().await,
    }
}

/// What the clock on the wall of the home shows.
fn local(zone: &Zone, now: Now) -> Local {
    let at = zone.local(now.wall.unix_ms);
    let hour = u32::try_from(at.hour_of_week()).unwrap_or(0);
    let minute = hour % 24 * 60 + u32::from(at.minute_of_hour());
    Local { day: at.day(), weekday: hour / 24, minute }
}
