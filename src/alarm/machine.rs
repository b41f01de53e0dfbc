//! The states and the steps between them.

use std::time::Duration;

use serde_json::{Value, json};

use super::durable::{Alarm, Deadline, Moment, Restored, State, Walk, short};
use super::signal::Signal;
use super::{
    Actor, Call, Input, Now, Open, REAL_MEMO, Refusal, Request, Settings, TEST_MEMO, Told, Trigger,
};
use crate::clock::{ClockState, Rng, WallTime};
use crate::event::catalogue::{AlarmStep, Occurrence};

/// The alarms of a device: at most a real one and a test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alarms {
    pub(super) settings: Settings,
    pub(super) boot: String,
    real: Option<Alarm>,
    test: Option<Alarm>,
}

/// Steps that time alone can bring about at once: window, walk.
const STEPS_AT_ONCE: usize = 4;

/// One input at one moment, and what comes of it.
pub(super) struct Turn<'a> {
    pub(super) now: Now,
    pub(super) rng: &'a mut Rng,
    pub(super) told: Told,
}

impl Alarms {
    /// What was open goes on. `boot` is the kernel's id of this boot. Also says which memo could not be
    /// read: then that alarm is lost, and somebody must be told.
    pub fn restore(settings: Settings, boot: &str, restored: &Restored) -> (Self, Vec<String>) {
        let mut problems = Vec::new();
        let mut read = |name: &str, bytes: &Option<Vec<u8>>| {
            let bytes = bytes.as_deref().filter(|bytes| !bytes.is_empty())?;
            match serde_json::from_slice(bytes) {
                Ok(alarm) => Some(alarm),
                Err(error) => {
                    problems.push(format!("{name} cannot be read and is lost: {error}"));
                    None
                }
            }
        };
        let real = read(REAL_MEMO, &restored.real);
        let test = read(TEST_MEMO, &restored.test);
        (Self { settings, boot: boot.to_owned(), real, test }, problems)
    }

    /// Other settings count from now on. Deadlines that run already stay as they are.
    pub fn set(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// What is to be remembered of this state, under [`REAL_MEMO`] and [`TEST_MEMO`]: only what
    /// differs from `before`. Empty bytes: no alarm is open.
    pub fn memos(&self, before: &Self) -> Vec<(&'static str, Vec<u8>)> {
        let bytes = |alarm: &Option<Alarm>| alarm.as_ref().map_or(Vec::new(), Alarm::to_bytes);
        let slots = [(REAL_MEMO, &self.real, &before.real), (TEST_MEMO, &self.test, &before.test)];
        let changed = slots.into_iter().filter(|(_, now, then)| now != then);
        changed.map(|(name, now, _)| (name, bytes(now))).collect()
    }

    /// What light and tone are to say: what asks for something goes before what only informs.
    pub fn signal(&self) -> Signal {
        let of = |alarm: &Alarm| match alarm.state {
            State::Pending => Signal::Pending,
            State::Raised => Signal::Raised,
            State::Acknowledged => Signal::Acknowledged,
        };
        let all = [&self.real, &self.test].into_iter().flatten().map(of);
        all.max().unwrap_or(Signal::Off)
    }

    /// The open alarms, the real one first.
    pub fn open(&self) -> impl Iterator<Item = Open<'_>> {
        [&self.real, &self.test].into_iter().flatten().map(Alarm::open)
    }

    /// Whether a short press would call something off.
    pub fn is_pending(&self) -> bool {
        [&self.real, &self.test].into_iter().flatten().any(|alarm| alarm.state == State::Pending)
    }

    /// How long it is until [`Self::tick`] has something to do.
    pub fn due(&self, now: Now) -> Option<Duration> {
        let open = [&self.real, &self.test].into_iter().flatten();
        let deadlines = open.filter_map(|alarm| alarm.deadline.as_ref());
        deadlines.map(|deadline| deadline.left(&self.boot, now)).min()
    }

    /// Calls that were under way when the process ended: they are made again, since nobody knows
    /// whether they went out.
    pub fn resume(&self, now: Now) -> Vec<Call> {
        let open = [&self.real, &self.test].into_iter().flatten();
        open.filter_map(|alarm| self.call_again(alarm, now)).collect()
    }

    /// Something happened.
    ///
    /// # Errors
    /// It asks for a step that cannot be taken; nothing has changed.
    pub fn handle(&mut self, input: Input, now: Now, rng: &mut Rng) -> Result<Told, Refusal> {
        let mut turn = Turn { now, rng, told: Told::default() };
        match input {
            Input::Trigger(trigger) => self.trigger(&trigger, &mut turn)?,
            Input::Request { step, alarm, not_after_ms, actor } => {
                let test = self.find(step, alarm.as_deref(), not_after_ms)?;
                self.request(step, test, &actor, &mut turn)?;
            }
            Input::Receipt { ids, actor } => self.receipt(&ids, &actor, &mut turn),
            Input::Dialled { alarm, call, outcome } => self.dialled(&alarm, call, &outcome, now),
        }
        Ok(turn.told)
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Now, rng: &mut Rng) -> Told {
        let mut turn = Turn { now, rng, told: Told::default() };
        for test in [false, true] {
            for _ in 0..STEPS_AT_ONCE {
                let Some(mut alarm) = self.slot(test).take() else { break };
                let over =
                    alarm.deadline.as_ref().is_some_and(|d| d.left(&self.boot, now).is_zero());
                if over {
                    match alarm.state {
                        State::Pending => {
                            let by = json!({ "via": "time" });
                            self.raise(&mut alarm, by, None, &mut turn);
                        }
                        State::Raised => self.walk_on(&mut alarm, &mut turn),
                        State::Acknowledged => alarm.deadline = None,
                    }
                    turn.told.alarm = Some(alarm.id.clone());
                }
                *self.slot(test) = Some(alarm);
                if !over {
                    break;
                }
            }
        }
        turn.told
    }

    fn slot(&mut self, test: bool) -> &mut Option<Alarm> {
        if test { &mut self.test } else { &mut self.real }
    }

    fn trigger(&mut self, trigger: &Trigger, turn: &mut Turn<'_>) -> Result<(), Refusal> {
        if let (true, Some(real)) = (trigger.test, &self.real) {
            return Err(Refusal(format!("alarm {} is open: no test beside it", real.id)));
        }
        let open = self.slot(trigger.test).take();
        let mut alarm = match open {
            Some(alarm) => alarm,
            None => self.opened(trigger, turn),
        };
        if turn.told.occurrences.is_empty() {
            alarm.join(trigger, turn.now);
        }
        let by = json!({ "via": trigger.kind.as_str() });
        let raise = match alarm.state {
            State::Pending => trigger.at_once,
            State::Acknowledged => trigger.at_once || self.is_long_ago(&alarm, turn.now),
            State::Raised => {
                alarm.walk.exhausted && (trigger.at_once || self.is_long_ago(&alarm, turn.now))
            }
        };
        if raise {
            self.raise(&mut alarm, by, trigger.cause.clone(), turn);
        }
        turn.told.alarm = Some(alarm.id.clone());
        *self.slot(trigger.test) = Some(alarm);
        Ok(())
    }

    fn is_long_ago(&self, alarm: &Alarm, now: Now) -> bool {
        alarm.step.elapsed(&self.boot, now).is_none_or(|past| past >= self.settings.again_after)
    }

    fn opened(&self, trigger: &Trigger, turn: &mut Turn<'_>) -> Alarm {
        let now = turn.now;
        let window = self.settings.cancel_window;
        let mut alarm = Alarm {
            id: turn.rng.uuid_v7(now.wall),
            test: trigger.test,
            state: State::Pending,
            opened_ms: now.wall.unix_ms,
            triggers: Vec::new(),
            joined: 0,
            step: Moment::new(&self.boot, now),
            last_event: String::new(),
            raised_events: Vec::new(),
            raised: 0,
            deadline: Some(Deadline::new(&self.boot, now, window)),
            walk: Walk::default(),
            last_call: None,
            calls: 0,
            seen_by: None,
        };
        alarm.join(trigger, now);
        let extra = json!({ "cancel_window_s": window.as_secs_f64() });
        self.tell(&mut alarm, AlarmStep::Pending, trigger.cause.clone(), extra, turn);
        alarm
    }

    fn raise(&self, alarm: &mut Alarm, by: Value, cause: Option<String>, turn: &mut Turn<'_>) {
        alarm.state = State::Raised;
        alarm.walk = Walk::default();
        alarm.seen_by = None;
        alarm.deadline = Some(Deadline::new(&self.boot, turn.now, self.settings.receipt_timeout));
        let extra = json!({ "by": by, "again": alarm.raised > 0 });
        let cause = cause.or_else(|| Some(alarm.last_event.clone()));
        self.tell(alarm, AlarmStep::Raised, cause, extra, turn);
        alarm.was_raised(alarm.last_event.clone());
    }

    /// Which alarm is meant: the one that is named, or the one that can take the step.
    fn find(
        &self,
        step: Request,
        named: Option<&str>,
        not_after_ms: Option<u64>,
    ) -> Result<bool, Refusal> {
        let open = || [&self.real, &self.test].into_iter().flatten();
        if let Some(id) = named {
            let found = open().find(|alarm| alarm.id == id);
            let found = found.map(|alarm| alarm.test);
            return found.ok_or_else(|| Refusal(format!("no alarm {id} is open")));
        }
        let fits = |alarm: &&Alarm| match step {
            Request::Cancel => alarm.state == State::Pending,
            Request::Acknowledge => alarm.state == State::Raised,
            Request::Resolve => alarm.state != State::Pending,
        };
        let found = open().find(fits).or_else(|| open().next());
        let found = found.ok_or_else(|| Refusal("no alarm is open".to_owned()))?;
        if not_after_ms.is_some_and(|asked| asked < found.opened_ms) {
            let id = &found.id;
            let text = format!("alarm {id} was opened after this was sent: name it as the subject");
            return Err(Refusal(text));
        }
        Ok(found.test)
    }

    fn request(
        &mut self,
        step: Request,
        test: bool,
        actor: &Actor,
        turn: &mut Turn<'_>,
    ) -> Result<(), Refusal> {
        let Some(mut alarm) = self.slot(test).clone() else {
            return Err(Refusal("no alarm is open".to_owned()));
        };
        let by = json!({ "by": describe(actor) });
        let cause = Some(actor.cause.clone());
        let refuse = |what: &str| Err(Refusal(format!("alarm {} {what}", alarm.id)));
        match (step, alarm.state) {
            (Request::Cancel, State::Pending) => {
                self.tell(&mut alarm, AlarmStep::Cancelled, cause, by, turn);
            }
            (Request::Cancel, _) => {
                return refuse("is raised: acknowledge and resolve it instead");
            }
            (Request::Acknowledge, State::Raised) => {
                self.acknowledge(&mut alarm, actor, turn);
            }
            (Request::Resolve, State::Raised | State::Acknowledged) => {
                if alarm.state == State::Raised {
                    self.acknowledge(&mut alarm, actor, turn);
                }
                self.tell(&mut alarm, AlarmStep::Resolved, cause, by, turn);
            }
            (Request::Acknowledge, State::Acknowledged) => {
                let who = alarm.seen_by.as_deref().unwrap_or("somebody");
                return refuse(&format!("was acknowledged already, by {who}"));
            }
            (_, State::Pending) => {
                return refuse("is pending: cancel it, or wait until it is raised");
            }
        }
        turn.told.alarm = Some(alarm.id.clone());
        let over = step != Request::Acknowledge;
        *self.slot(test) = (!over).then_some(alarm);
        Ok(())
    }

    fn acknowledge(&self, alarm: &mut Alarm, actor: &Actor, turn: &mut Turn<'_>) {
        alarm.state = State::Acknowledged;
        alarm.deadline = None;
        alarm.seen_by = Some(short(actor.name.as_deref().unwrap_or(&actor.who)));
        let by = json!({ "by": describe(actor) });
        self.tell(alarm, AlarmStep::Acknowledged, Some(actor.cause.clone()), by, turn);
    }

    /// A receipt for a raised alarm is its acknowledgement; one for anything else is not for us.
    fn receipt(&mut self, ids: &[String], actor: &Actor, turn: &mut Turn<'_>) {
        for test in [false, true] {
            let Some(mut alarm) = self.slot(test).clone() else { continue };
            let named = alarm.raised_events.iter().any(|event| ids.contains(event));
            if named && alarm.state == State::Raised {
                self.acknowledge(&mut alarm, actor, turn);
                turn.told.alarm = Some(alarm.id.clone());
                *self.slot(test) = Some(alarm);
            }
        }
    }

    fn dialled(&mut self, id: &str, call: u32, outcome: &Result<String, String>, now: Now) {
        let boot = self.boot.clone();
        let open = [&mut self.real, &mut self.test].into_iter().flatten();
        for alarm in open.filter(|alarm| alarm.id == id) {
            let Some(last) = alarm.last_call.as_mut().filter(|last| last.number == call) else {
                continue;
            };
            last.failed = outcome.is_err();
            last.outcome = Some(short(outcome.as_ref().unwrap_or_else(|failure| failure)));
            // Nobody was reached: there is nothing to wait for.
            if last.failed && alarm.state == State::Raised && !alarm.walk.exhausted {
                alarm.deadline = Some(Deadline::new(&boot, now, Duration::ZERO));
            }
        }
    }

    /// Makes the event of a step, and remembers that it was taken.
    pub(super) fn tell(
        &self,
        alarm: &mut Alarm,
        step: AlarmStep,
        cause: Option<String>,
        extra: Value,
        turn: &mut Turn<'_>,
    ) {
        let id = turn.rng.uuid_v7(turn.now.wall);
        let mut data = summary(alarm);
        if let (Value::Object(data), Value::Object(extra)) = (&mut data, extra) {
            data.extend(extra);
        }
        alarm.step = Moment::new(&self.boot, turn.now);
        alarm.last_event.clone_from(&id);
        let (alarm, test) = (alarm.id.clone(), alarm.test);
        turn.told.occurrences.push((id, Occurrence::Alarm { step, alarm, cause, test, data }));
    }
}

/// What every event of an alarm says of it.
pub(super) fn summary(alarm: &Alarm) -> Value {
    let time = |unix_ms| WallTime { unix_ms, state: ClockState::Unsynced }.to_rfc3339();
    let trigger = |joined: &super::durable::Joined| {
        json!({
            "kind": joined.kind.as_str(),
            "event": joined.cause,
            "at": time(joined.at_ms),
            "text": joined.text,
        })
    };
    json!({
        "opened": time(alarm.opened_ms),
        "triggers": alarm.triggers.iter().map(trigger).collect::<Vec<_>>(),
        "triggers_total": alarm.joined,
    })
}

fn describe(actor: &Actor) -> Value {
    json!({
        "via": actor.via,
        "who": actor.who,
        "name": actor.name,
        "note": actor.note,
        "at": actor.at,
    })
}
