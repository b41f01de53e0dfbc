//! The walk through the contacts of an alarm that nobody acknowledges.
//!
//! ```text
//! raised ── receipt_timeout ──▶ 1st ── its timeout ──▶ 2nd ── … ──▶ round 2 … ──▶ exhausted, still raised
//!                                └── dialler failed: at once ──▲
//! ```
//! Each call is an `escalated` before it goes out. A round begins no sooner than `receipt_timeout` after
//! the one before it, so that a dead modem does not use up all rounds in a second.

use std::time::Duration;

use serde_json::json;

use super::durable::{Alarm, Deadline, LastCall, Moment};
use super::machine::{Alarms, Turn, summary};
use super::{Call, Now};
use crate::event::catalogue::AlarmStep;

/// How long a program that was killed at its limit may take to be heard of.
const ENDING: Duration = Duration::from_secs(1);

impl Alarms {
    /// The next contact's turn, or the end of the walk.
    pub(super) fn walk_on(&self, alarm: &mut Alarm, turn: &mut Turn<'_>) {
        let now = turn.now;
        let contacts = &self.settings.contacts;
        let count = u32::try_from(contacts.len()).unwrap_or(0);
        let last = alarm.last_call.as_ref();
        let before = last.map(|last| json!({ "contact": last.contact, "outcome": last.outcome }));
        let walked = alarm.walk.made >= count.saturating_mul(self.settings.rounds);
        if count == 0 || walked {
            alarm.walk.exhausted = true;
            alarm.deadline = None;
            let extra = json!({
                "contact": null,
                "round": self.settings.rounds.min(alarm.walk.made),
                "rounds": self.settings.rounds,
                "exhausted": true,
                "before": before,
            });
            let cause = Some(alarm.last_event.clone());
            return self.tell(alarm, AlarmStep::Escalated, cause, extra, turn);
        }
        let (round, place) = (alarm.walk.made / count, alarm.walk.made % count);
        if place == 0 {
            let began = alarm.walk.round_began.as_ref();
            let past = began.and_then(|began| began.elapsed(&self.boot, now));
            if let Some(past) = past.filter(|past| *past < self.settings.receipt_timeout) {
                let rest = self.settings.receipt_timeout - past;
                alarm.deadline = Some(Deadline::new(&self.boot, now, rest));
                return;
            }
            alarm.walk.round_began = Some(Moment::new(&self.boot, now));
        }
        let contact = &contacts[place as usize];
        alarm.walk.made += 1;
        alarm.calls = alarm.calls.saturating_add(1);
        // A program that runs for too long is killed first, and its end told with the next step.
        alarm.deadline = Some(Deadline::new(&self.boot, now, contact.timeout + ENDING));
        alarm.last_call = Some(LastCall {
            number: alarm.calls,
            contact: super::durable::short(&contact.name),
            outcome: None,
            failed: false,
        });
        let extra = json!({
            "contact": contact.name,
            "round": round + 1,
            "rounds": self.settings.rounds,
            "exhausted": false,
            "before": before,
        });
        let cause = Some(alarm.last_event.clone());
        self.tell(alarm, AlarmStep::Escalated, cause, extra, turn);
        turn.told.calls.extend(self.call(alarm));
    }

    /// The call that an alarm waits for, if nobody knows how it ended.
    pub(super) fn call_again(&self, alarm: &Alarm, now: Now) -> Option<Call> {
        let under_way = alarm.last_call.as_ref().is_some_and(|last| last.outcome.is_none());
        let wanted = alarm.state.as_str() == "raised" && !alarm.walk.exhausted && under_way;
        let left = alarm.deadline.as_ref().map(|deadline| deadline.left(&self.boot, now));
        let left = left.filter(|left| wanted && !left.is_zero())?;
        let mut call = self.call(alarm)?;
        call.contact.timeout = call.contact.timeout.min(left.saturating_sub(ENDING));
        Some(call)
    }

    fn call(&self, alarm: &Alarm) -> Option<Call> {
        let last = alarm.last_call.as_ref()?;
        let count = self.settings.contacts.len();
        let place = (alarm.walk.made.checked_sub(1)? as usize).checked_rem(count)?;
        let contact = self.settings.contacts.get(place)?.clone();
        let mut json = summary(alarm);
        json["alarm"] = alarm.id.as_str().into();
        json["testalarm"] = alarm.test.into();
        json["contact"] = contact.name.as_str().into();
        json["call"] = last.number.into();
        Some(Call { alarm: alarm.id.clone(), number: last.number, contact, json: json.to_string() })
    }
}
