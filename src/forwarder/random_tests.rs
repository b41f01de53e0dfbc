//! Random schedules: records come, publishes are acknowledged, refused or forgotten, receipts come
//! early, late, twice and for nothing, connections end, the agent restarts. What must hold is checked at
//! every removal and at the end, when everything works again.
//!
//! The controls at the end spoil the run on purpose: each must be caught.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::tests::{Bench, WALL};
use super::*;
use crate::uplink::CloseReason;

#[derive(Debug, Clone)]
enum Step {
    Append(Lane, u8),
    Publish(u8),
    Acknowledge {
        which: usize,
        no_subscribers: bool,
    },
    Refuse {
        which: usize,
        code: u8,
    },
    Receipt {
        lane: Lane,
        which: usize,
    },
    Pass(u64),
    Reconnect {
        window: u16,
    },
    Restart,
    /// From now on pages take their time, or no longer.
    Slow(bool),
    /// The page that is being read is there.
    Answer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sabotage {
    None,
    /// Every receipt lane takes the PUBACK for enough.
    BelievesPubacks,
    /// A record is removed although its publish was refused.
    RemovesRefused,
}

struct World {
    bench: Bench,
    rules: Rules,
    sabotage: Sabotage,
    last: u64,
    /// Handed out in this life: token, lane and position.
    open: Vec<(u64, Lane, u64)>,
    acknowledged: BTreeSet<(Lane, u64)>,
    received: BTreeSet<(Lane, u64)>,
}

impl World {
    fn new(confirm: [bool; 3], sabotage: Sabotage) -> Self {
        let confirm = confirm.map(|asks| if asks { Confirm::Receipt } else { Confirm::Broker });
        let rules = Rules { confirm, ..Rules::default() };
        let told = match sabotage {
            Sabotage::BelievesPubacks => Rules::default(),
            _ => rules,
        };
        let (open, acknowledged, received) = Default::default();
        Self {
            bench: Bench::with(told, &[]),
            rules,
            sabotage,
            last: 0,
            open,
            acknowledged,
            received,
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Append(lane, count) => {
                for _ in 0..count {
                    self.last += 1;
                    self.bench.append(lane, self.last);
                }
            }
            Step::Publish(count) => {
                for _ in 0..count {
                    let Some(outgoing) = self.bench.forwarder.next(self.bench.now, WALL) else {
                        break;
                    };
                    self.bench.load();
                    let event = json::parse(&outgoing.payload).expect("an event");
                    let (lane, position) = event.id().split_once('-').expect("lane-position");
                    let lane: Lane = lane.parse().expect("a lane");
                    let position = position.parse().expect("a number");
                    let twice = self.open.iter().any(|open| (open.1, open.2) == (lane, position));
                    assert!(!twice, "{lane}-{position} is in flight twice");
                    self.open.push((outgoing.token, lane, position));
                    let notice = Notice::Published { token: outgoing.token, resent: false };
                    self.bench.tell(&notice);
                }
            }
            Step::Acknowledge { which, no_subscribers } => {
                let Some((token, lane, position)) = self.land(which) else { return };
                self.acknowledged.insert((lane, position));
                let fate = self.bench.tell(&Notice::Acknowledged { token, no_subscribers });
                self.met(fate);
            }
            Step::Refuse { which, code } => {
                let Some((token, lane, position)) = self.land(which) else { return };
                let reason = Refusal::Broker { code, text: String::new() };
                let fate = self.bench.tell(&Notice::Refused { token, reason });
                self.met(fate);
                if self.sabotage == Sabotage::RemovesRefused {
                    self.remove(lane, position);
                }
            }
            Step::Receipt { lane, which } => {
                self.receipt(lane, 1 + which as u64 % self.last.max(1))
            }
            Step::Pass(seconds) => drop(self.bench.pass(Duration::from_secs(seconds))),
            Step::Reconnect { window } => {
                let reason = CloseReason::Lost(String::new());
                self.bench.tell(&Notice::Closed { reason });
                self.bench.connect(window);
            }
            Step::Restart => self.restart(),
            Step::Slow(slow) => {
                self.bench.slow = slow;
                self.bench.load();
            }
            Step::Answer => {
                self.bench.answer();
            }
        }
    }

    fn land(&mut self, which: usize) -> Option<(u64, Lane, u64)> {
        let at = which.checked_rem(self.open.len())?;
        Some(self.open.remove(at))
    }

    /// What the caller of the forwarder does with a fate.
    fn met(&mut self, fate: Option<Fate>) {
        match fate.expect("it was in flight") {
            Fate::Delivered(flight) => self.remove(flight.lane, flight.position.0),
            Fate::Poisoned { flight, .. } => {
                self.bench.forwarder.defer(flight, self.bench.now);
            }
            Fate::Published { .. } | Fate::Unconfirmed { .. } | Fate::Deferred { .. } => {}
        }
    }

    fn receipt(&mut self, lane: Lane, position: u64) {
        // A consumer can only have what was published: acknowledged, or on its way.
        let sent = self.open.iter().any(|open| (open.1, open.2) == (lane, position));
        if !sent && !self.acknowledged.contains(&(lane, position)) {
            return;
        }
        self.received.insert((lane, position));
        let id = [format!("{lane}-{position}")];
        let (settled, _) = self.bench.forwarder.receipt(lane, None, &id);
        for done in settled {
            self.remove(done.lane, done.position.0);
        }
        self.bench.load();
    }

    fn remove(&mut self, lane: Lane, position: u64) {
        let named = (lane, position);
        let done = match self.rules.confirm[lane.index()] {
            Confirm::Broker => self.acknowledged.contains(&named),
            Confirm::Receipt => self.received.contains(&named),
        };
        assert!(done, "{lane}-{position} is removed too soon");
        self.bench.stored.retain(|r| (r.lane, r.position.0) != named);
    }

    fn restart(&mut self) {
        let stored = std::mem::take(&mut self.bench.stored);
        let now = self.bench.now;
        self.bench = Bench::with(self.rules, &[]);
        (self.bench.stored, self.bench.now) = (stored, now);
        self.bench.load();
        self.open.clear();
    }

    /// From here on everything works: everything is delivered.
    fn heal(&mut self) {
        self.step(&Step::Slow(false));
        for _ in 0..400 {
            self.step(&Step::Publish(255));
            while !self.open.is_empty() {
                self.step(&Step::Acknowledge { which: 0, no_subscribers: false });
            }
            let waiting: Vec<_> =
                self.bench.stored.iter().map(|r| (r.lane, r.position.0)).collect();
            for (lane, position) in waiting {
                self.receipt(lane, position);
            }
            if self.bench.stored.is_empty() {
                assert_eq!(self.bench.forwarder.in_flight(), 0);
                assert_eq!(self.bench.forwarder.unconfirmed(), 0);
                assert_eq!(self.bench.forwarder.lower, (0, 0), "the count of lower lanes is off");
                return;
            }
            self.step(&Step::Pass(60));
        }
        panic!(
            "never delivered: {:?}",
            self.bench.stored.iter().map(|r| &*r.id).collect::<Vec<_>>()
        );
    }
}

fn run(confirm: [bool; 3], steps: &[Step], sabotage: Sabotage) {
    let mut world = World::new(confirm, sabotage);
    for step in steps {
        world.step(step);
    }
    world.heal();
}

fn any_step() -> impl Strategy<Value = Step> {
    let lane = prop_oneof![Just(Lane::Alert), Just(Lane::Status), Just(Lane::Telemetry)];
    let code = prop_oneof![Just(0x87u8), Just(0x97), Just(0x80), Just(0x99)];
    prop_oneof![
        4 => (lane.clone(), 1u8..8).prop_map(|(lane, count)| Step::Append(lane, count)),
        6 => (1u8..12).prop_map(Step::Publish),
        6 => (any::<usize>(), any::<bool>()).prop_map(|(which, no_subscribers)| Step::Acknowledge { which, no_subscribers }),
        2 => (any::<usize>(), code).prop_map(|(which, code)| Step::Refuse { which, code }),
        5 => (lane, any::<usize>()).prop_map(|(lane, which)| Step::Receipt { lane, which }),
        3 => (1u64..200).prop_map(Step::Pass),
        1 => (1u16..40).prop_map(|window| Step::Reconnect { window }),
        1 => Just(Step::Restart),
        2 => any::<bool>().prop_map(Step::Slow),
        4 => Just(Step::Answer),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_removed_too_soon_and_everything_in_the_end(
        confirm in any::<[bool; 3]>(),
        steps in proptest::collection::vec(any_step(), 1..120),
    ) {
        run(confirm, &steps, Sabotage::None);
    }
}

fn one_alert() -> Vec<Step> {
    vec![Step::Append(Lane::Alert, 1), Step::Publish(1), Step::Refuse { which: 0, code: 0x97 }]
}

#[test]
fn the_schedule_of_the_controls_passes_unspoilt() {
    run([true; 3], &one_alert(), Sabotage::None);
}

#[test]
#[should_panic(expected = "alert-1 is removed too soon")]
fn control_a_puback_taken_for_a_receipt_is_caught() {
    run([true; 3], &one_alert(), Sabotage::BelievesPubacks);
}

#[test]
#[should_panic(expected = "alert-1 is removed too soon")]
fn control_a_refused_record_that_is_removed_is_caught() {
    run([true; 3], &one_alert(), Sabotage::RemovesRefused);
}
