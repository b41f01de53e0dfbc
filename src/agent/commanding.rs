//! Commands: from a message to what is asked of the alarms, and the one answer it gets.
//!
//! More commands than [`BURST`] at once and one each [`REFILL`] are a flood: they are neither carried out
//! nor answered one by one, but counted, and one rejection tells how many there were.

use std::time::Duration;

use crate::alarm::{Actor, Input, Kind, Now, Request, Trigger};
use crate::clock::ClockState;
use crate::downlink::{Command, DONE_MEMO, Done, Rejection, decode_command};
use crate::event::catalogue::{CommandAnswer, Occurrence};
use crate::outbox::Memo;
use crate::uplink::Received;

/// Commands that are taken at once.
const BURST: u32 = 30;
/// One more each.
const REFILL: Duration = Duration::from_secs(2);
/// How far the clocks of device and care side may differ.
const SKEW_MS: u64 = 30_000;

/// The commands that came, and those that were answered.
#[derive(Debug)]
pub(super) struct Commands {
    sources: Vec<String>,
    done: Done,
    /// With the command that is being answered.
    next: Option<Done>,
    tokens: u32,
    refilled: Option<Duration>,
    dropped: u64,
    /// The answer under way says how many.
    flood_told: bool,
}

/// What came, and what is to be done about it.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) request: Result<Command, Rejection>,
    /// `None`: nothing of the alarms.
    pub(super) input: Option<Input>,
}

/// To be committed with what was done.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) occurrence: Occurrence,
    pub(super) memo: Option<Memo>,
}

impl Commands {
    pub(super) fn new(done: &[u8], sources: Vec<String>) -> Self {
        let done = Done::from_bytes(done);
        Self {
            sources,
            done,
            next: None,
            tokens: BURST,
            refilled: None,
            dropped: 0,
            flood_told: false,
        }
    }

    /// From now on only these are obeyed.
    pub(super) fn set_sources(&mut self, sources: Vec<String>) {
        self.sources = sources;
    }

    /// Reads a message; `None` if it needs no answer: it was answered before, or is one of a flood.
    pub(super) fn take(&mut self, message: &Received, now: Now) -> Option<Asked> {
        let request = decode_command(message, &self.sources, now.wall);
        let (id, source) = match &request {
            Ok(command) => (Some(&command.id), Some(&command.source)),
            Err(rejection) => (rejection.id.as_ref(), rejection.source.as_ref()),
        };
        if let Some((id, source)) = id.zip(source)
            && self.done.contains(source, id)
        {
            tracing::info!(id, source, "this command was answered before");
            return None;
        }
        if !self.admits(now) {
            self.dropped += 1;
            tracing::warn!(dropped = self.dropped, "too many commands: this one is dropped");
            return None;
        }
        let mut next = self.done.clone();
        if let Some((id, source)) = id.zip(source) {
            next.insert(source, id);
        }
        self.next = Some(next);
        let input = request.as_ref().ok().and_then(|command| input(command, now));
        Some(Asked { request, input })
    }

    /// A token for each command, so many at most.
    fn admits(&mut self, now: Now) -> bool {
        let since = *self.refilled.get_or_insert(now.mono);
        let due = now.mono.saturating_sub(since).as_millis() / REFILL.as_millis();
        let due = u32::try_from(due).unwrap_or(u32::MAX);
        if due > 0 {
            self.tokens = self.tokens.saturating_add(due).min(BURST);
            self.refilled = Some(since + REFILL.saturating_mul(due));
        }
        let admitted = self.tokens > 0;
        self.tokens -= u32::from(admitted);
        admitted
    }

    /// The answer to what [`Self::take`] gave out; `alarm` is the one that it was about.
    pub(super) fn answer(
        &mut self,
        request: Result<Command, Rejection>,
        alarm: Option<String>,
        refusal: Option<String>,
    ) -> Answer {
        let flood = (self.dropped > 0)
            .then(|| format!("{} commands before this one were dropped: too many", self.dropped));
        let reason = |reason: String| match &flood {
            Some(flood) => Some(format!("{reason}; {flood}")),
            None => Some(reason),
        };
        if let Some(flood) = &flood {
            tracing::warn!("{flood}");
        }
        let occurrence = match request {
            Ok(command) => Occurrence::Command {
                answer: match &refusal {
                    None => CommandAnswer::Completed,
                    Some(_) => CommandAnswer::Failed,
                },
                request: Some(command.id),
                from: Some(command.source),
                command: Some(command.name.to_owned()),
                subject: alarm.or(command.subject),
                reason: refusal.and_then(reason),
            },
            Err(rejection) => Occurrence::Command {
                answer: CommandAnswer::Rejected,
                request: rejection.id,
                from: rejection.source,
                command: rejection.command,
                subject: None,
                reason: reason(rejection.reason),
            },
        };
        // A completed one gives no reason: the next that does tells of the flood.
        let gives = matches!(&occurrence, Occurrence::Command { reason: Some(_), .. });
        self.flood_told = gives && flood.is_some();
        // Also where nothing is new in it: what has a memo is committed at once, and cries wait behind it.
        let memo = self.next.as_ref().map(|next| Memo { name: DONE_MEMO, bytes: next.to_bytes() });
        Answer { occurrence, memo }
    }

    /// The answer is on the disk.
    pub(super) fn answered(&mut self) {
        if let Some(next) = self.next.take() {
            self.done = next;
        }
        if std::mem::take(&mut self.flood_told) {
            self.dropped = 0;
        }
    }
}

fn input(command: &Command, now: Now) -> Option<Input> {
    let step = match command.name {
        "alarm.cancel" => Request::Cancel,
        "alarm.acknowledge" => Request::Acknowledge,
        "alarm.resolve" => Request::Resolve,
        "alarm.test" => {
            let text = format!("asked for by {}", command.source);
            let trigger = Trigger::new(Kind::Command, Some(command.id.clone()), text);
            return Some(Input::Trigger(Trigger { test: true, ..trigger }));
        }
        _ => return None,
    };
    // A clock of which nobody knows what it says cannot be compared with theirs.
    let comparable = now.wall.state == ClockState::Synced;
    let actor = Actor {
        via: "command",
        who: command.source.clone(),
        name: command.by.clone(),
        note: command.note.clone(),
        at: command.time.clone(),
        cause: command.id.clone(),
    };
    Some(Input::Request {
        step,
        alarm: command.subject.clone(),
        not_after_ms: command.time_ms.filter(|_| comparable).map(|at| at.saturating_add(SKEW_MS)),
        actor,
    })
}
