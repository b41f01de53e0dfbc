//! The states one by one, in virtual time.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use super::*;
use crate::clock::{ClockState, Rng};
use crate::event::Data;
use crate::event::catalogue::{AlarmStep, Maker};

pub(super) fn contact(name: &str, seconds: u64) -> Contact {
    let exec = vec!["/usr/bin/dial".to_owned(), name.to_owned()];
    Contact { name: name.to_owned(), timeout: Duration::from_secs(seconds), exec }
}

pub(super) fn settings() -> Settings {
    Settings {
        cancel_window: Duration::from_secs(10),
        receipt_timeout: Duration::from_secs(60),
        rounds: 2,
        again_after: Duration::from_secs(600),
        contacts: vec![contact("anna", 30), contact("bert", 20)],
    }
}

/// A device: its alarms, what is on its disk, and its clocks.
struct Bench {
    alarms: Alarms,
    disk: BTreeMap<&'static str, Vec<u8>>,
    boot: u32,
    mono: u64,
    wall: u64,
    synced: bool,
    rng: Rng,
    said: Vec<(AlarmStep, Value)>,
    calls: Vec<String>,
}

const ACTOR: Actor = Actor {
    via: "command",
    who: String::new(),
    name: None,
    note: None,
    at: None,
    cause: String::new(),
};

fn actor() -> Actor {
    Actor { who: "/care".into(), cause: "c1".into(), ..ACTOR }
}

impl Bench {
    fn new(settings: Settings) -> Self {
        let (alarms, _) = Alarms::restore(settings, "boot-0", &Restored::default());
        Self {
            alarms,
            disk: BTreeMap::new(),
            boot: 0,
            mono: 100,
            wall: 1_795_000_000_000,
            synced: true,
            rng: Rng::from_seed(1),
            said: Vec::new(),
            calls: Vec::new(),
        }
    }

    fn now(&self) -> Now {
        let state = if self.synced { ClockState::Synced } else { ClockState::Unsynced };
        let wall = WallTime { unix_ms: self.wall, state };
        Now { mono: Duration::from_millis(self.mono), wall }
    }

    /// Seconds pass, and everything that is due happens at its time.
    fn pass(&mut self, seconds: u64) {
        let end = self.mono + seconds * 1000;
        while self.mono <= end {
            let left = self.alarms.due(self.now()).map_or(u64::MAX, |due| due.as_millis() as u64);
            if left > end - self.mono {
                self.wall += end - self.mono;
                self.mono = end;
                return;
            }
            self.mono += left;
            self.wall += left;
            let (before, now) = (self.alarms.clone(), self.now());
            let told = self.alarms.tick(now, &mut self.rng);
            self.commit(&before, told);
        }
    }

    fn commit(&mut self, before: &Alarms, told: Told) {
        self.disk.extend(self.alarms.memos(before));
        self.calls.extend(told.calls.into_iter().map(|call| call.contact.name));
        for (_, occurrence) in told.occurrences {
            let Occurrence::Alarm { step, data, .. } = occurrence else { panic!("an alarm's") };
            self.said.push((step, data));
        }
    }

    fn does(&mut self, input: Input) -> Result<(), Refusal> {
        let (before, now) = (self.alarms.clone(), self.now());
        let told = self.alarms.handle(input, now, &mut self.rng)?;
        self.commit(&before, told);
        self.pass(0);
        Ok(())
    }

    fn trigger(&mut self, kind: Kind) {
        self.does(Input::Trigger(Trigger::new(kind, Some("e1".into()), "help"))).unwrap();
    }

    fn asks(&mut self, step: Request) -> Result<(), Refusal> {
        self.does(Input::Request { step, alarm: None, not_after_ms: None, actor: actor() })
    }

    /// The process ends and begins again from its disk; on another boot if `reboot`.
    fn restart(&mut self, reboot: bool) {
        if reboot {
            self.boot += 1;
            self.mono = 5_000;
        }
        let restored = Restored {
            real: self.disk.get(REAL_MEMO).cloned(),
            test: self.disk.get(TEST_MEMO).cloned(),
        };
        let boot = format!("boot-{}", self.boot);
        let (alarms, problems) = Alarms::restore(self.alarms.settings.clone(), &boot, &restored);
        assert_eq!(problems, [""; 0]);
        self.alarms = alarms;
        let calls = self.alarms.resume(self.now());
        self.calls.extend(calls.into_iter().map(|call| call.contact.name));
        self.pass(0);
    }

    fn steps(&self) -> Vec<AlarmStep> {
        self.said.iter().map(|(step, _)| *step).collect()
    }
}

use AlarmStep::{Acknowledged, Cancelled, Escalated, Pending, Raised, Resolved};

#[test]
fn an_alarm_is_raised_when_its_window_is_over_and_not_before() {
    let mut bench = Bench::new(settings());
    bench.trigger(Kind::Keyphrase);
    assert_eq!((bench.steps(), bench.alarms.signal()), (vec![Pending], Signal::Pending));
    bench.pass(9);
    assert_eq!(bench.steps(), [Pending]);
    bench.pass(1);
    assert_eq!((bench.steps(), bench.alarms.signal()), (vec![Pending, Raised], Signal::Raised));
}

#[test]
fn a_cancelled_alarm_is_over_and_the_next_trigger_opens_another() {
    let mut bench = Bench::new(settings());
    bench.trigger(Kind::Button);
    bench.asks(Request::Cancel).unwrap();
    bench.pass(1000);
    assert_eq!((bench.steps(), bench.alarms.signal()), (vec![Pending, Cancelled], Signal::Off));
    assert!(bench.asks(Request::Cancel).is_err());
    bench.trigger(Kind::Button);
    assert_eq!(bench.steps(), [Pending, Cancelled, Pending]);
}

#[test]
fn acknowledged_and_resolved_it_is_over() {
    let mut bench = Bench::new(settings());
    bench.trigger(Kind::Button);
    assert!(bench.asks(Request::Acknowledge).is_err(), "nobody was called yet");
    bench.pass(10);
    assert!(bench.asks(Request::Cancel).is_err(), "help is being called");
    bench.asks(Request::Acknowledge).unwrap();
    assert_eq!(bench.alarms.signal(), Signal::Acknowledged);
    let twice = bench.asks(Request::Acknowledge).unwrap_err().to_string();
    assert!(twice.contains("/care"), "{twice}");
    bench.pass(10_000);
    bench.asks(Request::Resolve).unwrap();
    assert_eq!(bench.steps(), [Pending, Raised, Acknowledged, Resolved]);
    assert_eq!(bench.alarms.open().count(), 0);
    assert_eq!(bench.said[2].1["by"]["who"], "/care");
}

#[test]
fn resolving_a_raised_alarm_acknowledges_it_first() {
    let mut bench = Bench::new(settings());
    bench.trigger(Kind::Button);
    bench.pass(10);
    bench.asks(Request::Resolve).unwrap();
    assert_eq!(bench.steps(), [Pending, Raised, Acknowledged, Resolved]);
}

#[test]
fn triggers_join_the_open_alarm_and_are_told() {
    let mut bench = Bench::new(settings());
    for kind in [Kind::Keyphrase, Kind::Button, Kind::Ingest] {
        bench.trigger(kind);
        bench.pass(1);
    }
    bench.pass(10);
    assert_eq!(bench.steps(), [Pending, Raised]);
    let raised = &bench.said[1].1;
    let kinds: Vec<_> = raised["triggers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| t["kind"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["keyphrase", "button", "ingest"]);
    assert_eq!(raised["triggers_total"], 3);
}

#[test]
fn a_long_press_raises_at_once() {
    let mut bench = Bench::new(settings());
    let press = Trigger { at_once: true, ..Trigger::new(Kind::Button, None, "long") };
    bench.does(Input::Trigger(press.clone())).unwrap();
    assert_eq!(bench.steps(), [Pending, Raised]);
    // And ends the window of a pending one.
    let mut bench = Bench::new(settings());
    bench.trigger(Kind::Keyphrase);
    bench.does(Input::Trigger(press)).unwrap();
    assert_eq!(bench.steps(), [Pending, Raised]);
}

#[test]
fn nobody_acknowledges_and_everybody_is_called_in_order_round_after_round() {
    let mut bench = Bench::new(settings());
    bench.trigger(Kind::Keyphrase);
    bench.pass(10 + 59);
    assert_eq!(bench.calls, [""; 0]);
    bench.pass(1);
    assert_eq!(bench.calls, ["anna"]);
    bench.pass(30 + 1);
    assert_eq!(bench.calls, ["anna", "bert"]);
    // The second round: 60 s after the beginning of the first, not 52.
    bench.pass(20 + 8);
    assert_eq!(bench.calls.len(), 2);
    bench.pass(1 + 31);
    assert_eq!(bench.calls, ["anna", "bert", "anna", "bert"]);
    bench.pass(21);
    let last = &bench.said.last().unwrap().1;
    assert_eq!((&last["exhausted"], &last["contact"]), (&Value::Bool(true), &Value::Null));
    let said = bench.said.len();
    bench.pass(100_000);
    assert_eq!((bench.said.len(), bench.alarms.signal()), (said, Signal::Raised), "still open");
    bench.asks(Request::Acknowledge).unwrap();
    assert_eq!(bench.steps()[said - 1..], [Escalated, Acknowledged]);
}

#[test]
fn a_dialler_that_fails_gives_the_turn_to_the_next_at_once() {
    let mut bench = Bench::new(settings());
    bench.trigger(Kind::Keyphrase);
    bench.pass(70);
    let id = bench.alarms.open().next().unwrap().id.to_owned();
    let outcome = Err("exit status 1".to_owned());
    bench.does(Input::Dialled { alarm: id.clone(), call: 1, outcome: outcome.clone() }).unwrap();
    assert_eq!(bench.calls, ["anna", "bert"]);
    assert_eq!(bench.said.last().unwrap().1["before"]["outcome"], "exit status 1");
    // What is said of a call that is over changes nothing.
    bench.does(Input::Dialled { alarm: id.clone(), call: 1, outcome: outcome.clone() }).unwrap();
    assert_eq!(bench.calls.len(), 2);
    // All fail: the next round waits for its time.
    bench.does(Input::Dialled { alarm: id, call: 2, outcome }).unwrap();
    assert_eq!(bench.calls.len(), 2);
    bench.pass(59);
    assert_eq!(bench.calls.len(), 2);
    bench.pass(1);
    assert_eq!(bench.calls.len(), 3);
}

#[test]
fn without_contacts_the_care_side_is_told_that_nobody_is_left_to_call() {
    let mut bench = Bench::new(Settings { contacts: Vec::new(), ..settings() });
    bench.trigger(Kind::Keyphrase);
    bench.pass(70);
    assert_eq!(bench.steps(), [Pending, Raised, Escalated]);
    assert_eq!(bench.said[2].1["exhausted"], true);
}

#[test]
fn a_receipt_for_the_raised_event_acknowledges_and_one_for_others_does_not() {
    let mut bench = Bench::new(settings());
    bench.trigger(Kind::Keyphrase);
    let (before, now) = (bench.alarms.clone(), bench.now());
    bench.mono += 10_000;
    let told =
        bench.alarms.tick(Now { mono: Duration::from_millis(bench.mono), ..now }, &mut bench.rng);
    let raised = told.occurrences[0].0.clone();
    bench.commit(&before, told);
    bench.does(Input::Receipt { ids: vec!["other".into()], actor: actor() }).unwrap();
    assert_eq!(bench.steps(), [Pending, Raised]);
    for _ in 0..2 {
        let ids = vec!["other".into(), raised.clone()];
        bench.does(Input::Receipt { ids, actor: actor() }).unwrap();
    }
    assert_eq!(bench.steps(), [Pending, Raised, Acknowledged]);
}

#[test]
fn somebody_who_cries_again_long_after_is_not_taken_for_seen_to() {
    for acknowledged in [true, false] {
        let mut bench = Bench::new(Settings { contacts: Vec::new(), ..settings() });
        bench.trigger(Kind::Keyphrase);
        bench.pass(70);
        if acknowledged {
            bench.asks(Request::Acknowledge).unwrap();
        }
        bench.pass(599);
        let said = bench.said.len();
        bench.trigger(Kind::Keyphrase);
        assert_eq!(bench.said.len(), said, "help is on its way");
        bench.pass(1);
        bench.trigger(Kind::Keyphrase);
        assert_eq!(bench.steps()[said..], [Raised]);
        assert_eq!(bench.said[said].1["again"], true);
        bench.pass(60);
        assert_eq!(bench.steps()[said..], [Raised, Escalated]);
    }
}

#[test]
fn a_test_takes_the_same_way_and_a_real_alarm_never_joins_it() {
    let mut bench = Bench::new(settings());
    let test = Trigger { test: true, ..Trigger::new(Kind::Command, None, "test") };
    bench.does(Input::Trigger(test.clone())).unwrap();
    bench.pass(70);
    assert_eq!(bench.steps(), [Pending, Raised, Escalated]);
    bench.trigger(Kind::Keyphrase);
    assert_eq!(bench.steps()[3..], [Pending]);
    assert_eq!(bench.alarms.open().map(|open| open.test).collect::<Vec<_>>(), [false, true]);
    assert!(bench.does(Input::Trigger(test)).is_err(), "no test beside a real alarm");
}

#[test]
fn a_step_for_another_alarm_or_from_before_it_was_opened_is_refused() {
    let mut bench = Bench::new(settings());
    let asked_at = bench.wall;
    bench.pass(5);
    bench.trigger(Kind::Keyphrase);
    let ask = |alarm: Option<&str>, not_after_ms| Input::Request {
        step: Request::Cancel,
        alarm: alarm.map(str::to_owned),
        not_after_ms,
        actor: actor(),
    };
    assert!(bench.does(ask(Some("another"), None)).is_err());
    assert!(bench.does(ask(None, Some(asked_at))).is_err());
    let id = bench.alarms.open().next().unwrap().id.to_owned();
    bench.does(ask(Some(&id), Some(asked_at))).unwrap();
    assert_eq!(bench.steps(), [Pending, Cancelled]);
}

#[test]
fn a_restart_within_the_window_leaves_the_rest_of_it() {
    let mut bench = Bench::new(settings());
    bench.trigger(Kind::Keyphrase);
    bench.pass(6);
    bench.wall -= 3_600_000;
    bench.restart(false);
    bench.pass(3);
    assert_eq!(bench.steps(), [Pending]);
    bench.pass(1);
    assert_eq!(bench.steps(), [Pending, Raised]);
}

#[test]
fn a_power_cut_within_the_window_raises_after_the_reboot_whatever_the_clock_says() {
    // How far wall time moved meanwhile, whether it can be believed, and what is left of the window.
    let table = [
        (8_000i64, true, 2u64),
        (40_000, true, 0),
        (-40_000, true, 0),
        (1, false, 0),
        (-1_000_000_000, false, 0),
    ];
    for (jump, synced, left) in table {
        let mut bench = Bench::new(settings());
        bench.trigger(Kind::Keyphrase);
        bench.wall = bench.wall.saturating_add_signed(jump);
        bench.synced = synced;
        bench.restart(true);
        if left > 0 {
            bench.pass(left - 1);
            assert_eq!(bench.steps(), [Pending], "{jump} {synced}");
            bench.pass(1);
        }
        assert_eq!(bench.steps(), [Pending, Raised], "{jump} {synced}");
    }
}

#[test]
fn a_call_that_was_under_way_at_a_crash_is_made_again_and_one_that_ended_is_not() {
    for ended in [false, true] {
        let mut bench = Bench::new(settings());
        bench.trigger(Kind::Keyphrase);
        bench.pass(70);
        let alarm = bench.alarms.open().next().unwrap().id.to_owned();
        if ended {
            bench
                .does(Input::Dialled { alarm, call: 1, outcome: Ok("exit status 0".into()) })
                .unwrap();
        }
        bench.restart(false);
        assert_eq!(bench.calls.len(), if ended { 1 } else { 2 });
        assert_eq!(bench.steps().len(), 3);
    }
}

#[test]
fn the_largest_alarm_fits_its_memo() {
    let long = "\"\\\u{7}é".repeat(100);
    let contacts = vec![contact(&long, 5); MAX_CONTACTS];
    let mut bench = Bench::new(Settings { contacts, rounds: 100, ..settings() });
    for round in 0..20 {
        let trigger = Trigger::new(Kind::Inactivity, Some(long.clone()), long.clone());
        bench.does(Input::Trigger(Trigger { at_once: true, ..trigger })).unwrap();
        bench.pass(1000 * (round % 3));
        let id = bench.alarms.open().next().unwrap().id.to_owned();
        bench
            .does(Input::Dialled { alarm: id, call: round as u32, outcome: Err(long.clone()) })
            .unwrap();
        let actor = Actor { who: long.clone(), ..actor() };
        let step = Request::Acknowledge;
        bench.does(Input::Request { step, alarm: None, not_after_ms: None, actor }).ok();
        for memo in bench.disk.values() {
            assert!(memo.len() <= crate::outbox::MAX_MEMO_BYTES, "{}", memo.len());
        }
        bench.restart(round % 2 == 0);
    }
}

#[test]
fn a_memo_that_cannot_be_read_is_said_and_stops_nothing() {
    let restored = Restored { real: Some(b"{".to_vec()), test: None };
    let (alarms, problems) = Alarms::restore(settings(), "b", &restored);
    assert_eq!((alarms.open().count(), problems.len()), (0, 1));
    assert!(problems[0].contains(REAL_MEMO));
}

#[test]
fn every_step_has_a_schema_that_names_the_members_of_its_data() {
    let mut bench = Bench::new(settings());
    bench.trigger(Kind::Keyphrase);
    bench.asks(Request::Cancel).unwrap();
    bench.trigger(Kind::Keyphrase);
    bench.pass(1000);
    bench.asks(Request::Resolve).unwrap();
    let maker = Maker::new("flat-12", "io.hark");
    let mut met = std::collections::BTreeSet::new();
    for (step, data) in bench.said {
        let (alarm, cause) = ("a1".to_owned(), Some("e1".to_owned()));
        let occurrence = Occurrence::Alarm { step, alarm, cause, test: true, data };
        let wall = WallTime { unix_ms: 1_795_000_000_000, state: ClockState::Synced };
        let (_, event) = maker.make(&occurrence, wall, &mut bench.rng).unwrap();
        let text = |name: &str| event.attribute(name).unwrap().to_string();
        assert_eq!(
            (text("subject"), text("causationid"), text("testalarm")),
            ("a1".into(), "e1".into(), "true".into())
        );
        let suffix = event.event_type().strip_prefix("io.hark.").unwrap().to_owned();
        let path = format!("{}/docs/schemas/{suffix}.json", env!("CARGO_MANIFEST_DIR"));
        let schema: Value =
            serde_json::from_str(&std::fs::read_to_string(&path).expect(&path)).unwrap();
        assert_eq!(schema["$id"].as_str().unwrap(), text("dataschema"), "{path}");
        let Data::Json(raw) = event.data() else { panic!("{suffix} has no data") };
        let data: Value = serde_json::from_slice(raw).unwrap();
        let members: Vec<_> = data.as_object().unwrap().keys().collect();
        let described: Vec<_> = schema["properties"].as_object().unwrap().keys().collect();
        assert_eq!(members, described, "{path}");
        met.insert(step);
    }
    assert_eq!(met.len(), 6);
}
