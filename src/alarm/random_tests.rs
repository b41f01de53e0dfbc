//! Random triggers, presses, receipts, dialler results, crashes and clock jumps, against what must hold
//! of every alarm: read off the events that became durable, as the care side sees them.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::tests::settings;
use super::*;
use crate::clock::{ClockState, Rng};
use crate::event::catalogue::AlarmStep;

#[derive(Debug, Clone)]
enum Op {
    Trigger {
        kind: u8,
        test: bool,
        at_once: bool,
    },
    Request(Request),
    /// A receipt for the raised event so many places from the end.
    Receipt(usize),
    Dialled {
        ok: bool,
    },
    Pass {
        seconds: u64,
    },
    WallJump {
        seconds: i64,
        synced: bool,
    },
    /// The process dies; the commit under way is there or not.
    Crash {
        reboot: bool,
        kept: bool,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let request =
        prop_oneof![Just(Request::Cancel), Just(Request::Acknowledge), Just(Request::Resolve)];
    prop_oneof![
        4 => (0..6u8, prop::bool::weighted(0.3), prop::bool::weighted(0.2))
            .prop_map(|(kind, test, at_once)| Op::Trigger { kind, test, at_once }),
        3 => request.prop_map(Op::Request),
        1 => (0..3usize).prop_map(Op::Receipt),
        1 => any::<bool>().prop_map(|ok| Op::Dialled { ok }),
        6 => prop_oneof![0..12u64, 30..90u64, 500..2000u64].prop_map(|seconds| Op::Pass { seconds }),
        1 => (-4000..4000i64, any::<bool>())
            .prop_map(|(seconds, synced)| Op::WallJump { seconds, synced }),
        2 => (any::<bool>(), any::<bool>()).prop_map(|(reboot, kept)| Op::Crash { reboot, kept }),
    ]
}

/// One event as the care side gets it.
#[derive(Debug, Clone)]
struct Seen {
    alarm: String,
    step: AlarmStep,
    id: String,
    test: bool,
    exhausted: bool,
}

struct World {
    alarms: Alarms,
    disk: BTreeMap<&'static str, Vec<u8>>,
    seen: Vec<Seen>,
    accepted_triggers: usize,
    boot: u32,
    mono: u64,
    wall: u64,
    synced: bool,
    rng: Rng,
}

impl World {
    fn new() -> Self {
        let (alarms, _) = Alarms::restore(settings(), "0", &Restored::default());
        Self {
            alarms,
            disk: BTreeMap::new(),
            seen: Vec::new(),
            accepted_triggers: 0,
            boot: 0,
            mono: 1_000_000,
            wall: 1_795_000_000_000,
            synced: true,
            rng: Rng::from_seed(7),
        }
    }

    fn now(&self) -> Now {
        let state = if self.synced { ClockState::Synced } else { ClockState::Unsynced };
        Now { mono: Duration::from_millis(self.mono), wall: WallTime { unix_ms: self.wall, state } }
    }

    fn commit(&mut self, before: &Alarms, told: &Told) {
        self.disk.extend(self.alarms.memos(before));
        for (id, occurrence) in &told.occurrences {
            let Occurrence::Alarm { step, alarm, test, data, .. } = occurrence else { panic!() };
            let exhausted = data["exhausted"] == true;
            let (id, alarm) = (id.clone(), alarm.clone());
            self.seen.push(Seen { alarm, step: *step, id, test: *test, exhausted });
        }
    }

    fn does(&mut self, input: Input) -> bool {
        let (before, now) = (self.alarms.clone(), self.now());
        match self.alarms.handle(input, now, &mut self.rng) {
            Ok(told) => self.commit(&before, &told),
            Err(_) => {
                assert_eq!(self.alarms, before, "a refusal changes nothing");
                return false;
            }
        }
        true
    }

    fn ticks(&mut self) {
        let (before, now) = (self.alarms.clone(), self.now());
        let told = self.alarms.tick(now, &mut self.rng);
        self.commit(&before, &told);
    }

    /// Time passes with everything happening when it is due.
    fn pass(&mut self, ms: u64) {
        let end = self.mono + ms;
        loop {
            let left = self.alarms.due(self.now()).map_or(u64::MAX, |d| d.as_millis() as u64);
            let step = left.min(end - self.mono);
            self.mono += step;
            self.wall += step;
            if left > step {
                return;
            }
            self.ticks();
        }
    }

    /// A change is under way when the power goes: it is on the disk with its events, or not at all.
    fn crash(&mut self, reboot: bool, kept: bool) {
        let before = self.alarms.clone();
        let cry = Input::Trigger(Trigger::new(Kind::Keyphrase, None, "at the crash"));
        let now = self.now();
        let told = self.alarms.handle(cry, now, &mut self.rng).unwrap();
        if kept {
            self.commit(&before, &told);
            self.accepted_triggers += 1;
        }
        if reboot {
            self.boot += 1;
            self.mono = 20_000;
        }
        let restored = Restored {
            real: self.disk.get(REAL_MEMO).cloned(),
            test: self.disk.get(TEST_MEMO).cloned(),
        };
        let (alarms, problems) = Alarms::restore(settings(), &self.boot.to_string(), &restored);
        assert!(problems.is_empty());
        if !kept {
            let same = |a: &Alarms, b: &Alarms| a.open().map(|o| o.id).eq(b.open().map(|o| o.id));
            assert!(same(&alarms, &before), "what was not durable never was");
        }
        self.alarms = alarms;
        let _ = self.alarms.resume(self.now());
        self.ticks();
    }

    fn run(&mut self, op: &Op) {
        let kinds = [
            Kind::Keyphrase,
            Kind::Button,
            Kind::Threshold,
            Kind::Inactivity,
            Kind::Ingest,
            Kind::Command,
        ];
        let actor = Actor {
            via: "command",
            who: "/care".into(),
            name: None,
            note: None,
            at: None,
            cause: "c".into(),
        };
        match op {
            Op::Trigger { kind, test, at_once } => {
                let trigger = Trigger::new(kinds[usize::from(*kind)], None, "x");
                let trigger = Trigger { test: *test, at_once: *at_once, ..trigger };
                let real_open = self.alarms.open().any(|open| !open.test);
                let taken = self.does(Input::Trigger(trigger));
                assert_eq!(taken, !(*test && real_open));
                self.accepted_triggers += usize::from(taken);
            }
            Op::Request(step) => {
                let step = *step;
                self.does(Input::Request { step, alarm: None, not_after_ms: None, actor });
            }
            Op::Receipt(place) => {
                let raised = self.seen.iter().rev().filter(|seen| seen.step == AlarmStep::Raised);
                let ids: Vec<_> = raised.skip(*place).take(1).map(|seen| seen.id.clone()).collect();
                self.does(Input::Receipt { ids, actor });
            }
            Op::Dialled { ok } => {
                let Some(alarm) = self.alarms.open().next().map(|open| open.id.to_owned()) else {
                    return;
                };
                let outcome = if *ok { Ok("0".to_owned()) } else { Err("1".to_owned()) };
                for call in 1..4 {
                    let (alarm, outcome) = (alarm.clone(), outcome.clone());
                    self.does(Input::Dialled { alarm, call, outcome });
                }
                self.ticks();
            }
            Op::Pass { seconds } => self.pass(seconds * 1000),
            Op::WallJump { seconds, synced } => {
                self.wall = self.wall.saturating_add_signed(seconds * 1000);
                self.synced = *synced;
            }
            Op::Crash { reboot, kept } => self.crash(*reboot, *kept),
        }
    }
}

/// What must hold of the events of every alarm.
fn check(world: &World) -> Result<(), String> {
    let mut stories: BTreeMap<&str, Vec<&Seen>> = BTreeMap::new();
    let mut ids = std::collections::BTreeSet::new();
    for seen in &world.seen {
        stories.entry(&seen.alarm).or_default().push(seen);
        if !ids.insert(&seen.id) {
            return Err(format!("event {} twice", seen.id));
        }
    }
    let open: BTreeMap<_, _> = world.alarms.open().map(|open| (open.id, open.state)).collect();
    for (alarm, story) in &stories {
        let steps: Vec<_> = story.iter().map(|seen| seen.step).collect();
        let fails = |what: &str| Err(format!("{what}: {steps:?}"));
        if story.iter().any(|seen| seen.test != story[0].test) {
            return fails("a test is marked all along");
        }
        let mut state = "none";
        let mut exhausted = false;
        for seen in story {
            state = match (state, seen.step) {
                ("none", AlarmStep::Pending) => "pending",
                ("pending", AlarmStep::Cancelled) => "over",
                ("pending" | "acknowledged", AlarmStep::Raised) => "raised",
                ("raised", AlarmStep::Raised) if exhausted => "raised",
                ("raised", AlarmStep::Escalated) if !exhausted => "raised",
                ("raised", AlarmStep::Acknowledged) => "acknowledged",
                ("acknowledged", AlarmStep::Resolved) => "over",
                (state, step) => return fails(&format!("{step:?} in {state}")),
            };
            exhausted = seen.exhausted;
        }
        match (state, open.get(alarm)) {
            ("over", None) => {}
            (told, Some(kept)) if told == *kept => {}
            (told, kept) => return fails(&format!("told {told}, kept {kept:?}")),
        }
    }
    if open.keys().any(|alarm| !stories.contains_key(alarm)) {
        return Err("an alarm of which nobody was told".to_owned());
    }
    if world.accepted_triggers > 0 && stories.is_empty() {
        return Err("a trigger without an alarm".to_owned());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn no_alarm_is_lost_or_doubled_or_ends_in_another_way(ops in prop::collection::vec(op(), 1..60)) {
        let mut world = World::new();
        for op in &ops {
            world.run(op);
            if let Err(problem) = check(&world) {
                prop_assert!(false, "{problem} after {op:?}");
            }
        }
        // Left alone, a pending alarm is raised, and a raised one walks through all contacts.
        world.pass(10_000_000);
        prop_assert!(check(&world).is_ok());
        for state in world.alarms.open().map(|open| open.state) {
            prop_assert_ne!(state, "pending");
        }
        let left_open: Vec<_> = world.alarms.open().filter(|o| o.state == "raised").map(|o| o.id.to_owned()).collect();
        for alarm in left_open {
            let last = world.seen.iter().rfind(|seen| seen.alarm == alarm).unwrap();
            prop_assert!(last.exhausted, "walked through: {last:?}");
        }
    }
}

/// The control: an agent that takes its step before the disk has it loses the alarm at a crash, and the
/// check above notices.
#[test]
fn an_event_without_its_memo_would_be_noticed() {
    let mut world = World::new();
    world.run(&Op::Trigger { kind: 0, test: false, at_once: false });
    assert!(check(&world).is_ok());
    world.disk.clear();
    let (alarms, _) = Alarms::restore(settings(), "0", &Restored::default());
    world.alarms = alarms;
    assert!(check(&world).is_err());
}
