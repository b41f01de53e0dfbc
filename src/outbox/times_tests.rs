use proptest::prelude::*;

use super::*;
use crate::clock::Rng;
use crate::event::catalogue::{Maker, Occurrence};
use crate::event::{Event, Lane, json};
use crate::outbox::memory::MemoryStore;
use crate::outbox::{MAX_COMMIT_EVENTS, PageLimit, Structured};

const ALL: PageLimit = PageLimit { records: MAX_COMMIT_EVENTS, bytes: usize::MAX };
/// When the story begins, by the true clock.
const TRUTH_MS: u64 = 1_795_000_000_000;

/// A device whose wall clock is wrong until somebody sets it.
struct Device {
    outbox: Outbox<MemoryStore>,
    boot: u64,
    /// By the true clock.
    now_ms: u64,
    booted_ms: u64,
    /// What the wall clock is ahead by; negative: behind.
    wrong_by_ms: i64,
    synced: bool,
    rng: Rng,
    number: u64,
    /// Nobody knows how long this boot lasts.
    blind: bool,
}

impl Device {
    fn new(wrong_by_ms: i64) -> Self {
        Self {
            outbox: Outbox::open(MemoryStore::default()).unwrap(),
            boot: 1,
            now_ms: TRUTH_MS,
            booted_ms: TRUTH_MS - 7_000,
            wrong_by_ms,
            synced: false,
            rng: Rng::from_seed(7),
            number: 0,
            blind: false,
        }
    }

    fn wall(&self) -> WallTime {
        let unix_ms = self.now_ms.saturating_add_signed(self.wrong_by_ms);
        let state = if self.synced { ClockState::Synced } else { ClockState::Unsynced };
        WallTime { unix_ms, state }
    }

    fn pass(&mut self, ms: u64) {
        self.now_ms += ms;
        let ms = self.now_ms - self.booted_ms;
        let moment = Moment { boot: format!("boot-{}", self.boot), ms };
        self.outbox.set_moment((!self.blind).then_some(moment));
    }

    fn sync(&mut self) {
        (self.synced, self.wrong_by_ms) = (true, 0);
    }

    /// The store is what survives.
    fn reboot(&mut self, wrong_by_ms: i64) {
        let store =
            std::mem::replace(&mut self.outbox, Outbox::open(MemoryStore::default()).unwrap());
        self.outbox = Outbox::open(store.into_store()).unwrap();
        (self.boot, self.booted_ms) = (self.boot + 1, self.now_ms);
        (self.synced, self.wrong_by_ms) = (false, wrong_by_ms);
        self.pass(2_000);
    }

    /// Stores an event of the device's own that waited so long for the disk; when it really was.
    fn record(&mut self, waited_ms: u64) -> u64 {
        let occurrence = Occurrence::SessionStopped { reason: "test".to_owned() };
        let maker = Maker::new("d", "io.hark");
        let (lane, event) = maker.make(&occurrence, self.wall(), &mut self.rng).unwrap();
        let truth = self.now_ms;
        self.pass(waited_ms);
        self.outbox.append(&[(lane, event)], self.wall()).unwrap();
        truth
    }

    /// Stores an event of another program, with all that could be taken for ours.
    fn hand_in(&mut self) -> Event {
        self.number += 1;
        let text = format!(
            r#"{{"specversion":"1.0","id":"{}","source":"urn:hark:device:d","type":"t","time":"1970-01-01T00:00:01.000Z","clock":"unsynced","data":{{"b": 1.0}}}}"#,
            self.number
        );
        let event = json::parse(text.as_bytes()).unwrap();
        self.outbox.append(&[(Lane::Status, event.clone())], self.wall()).unwrap();
        event
    }

    fn read(&mut self) -> Vec<Record> {
        let page = self.outbox.page(Lane::Status, None, ALL).unwrap();
        let published = self.outbox.read_structured(Lane::Status, None, ALL).unwrap();
        assert!(published.records.into_iter().eq(page.iter().map(Structured::from)));
        page
    }
}

fn text<'a>(event: &'a Event, name: &str) -> Option<&'a str> {
    event.attribute(name).and_then(|value| value.as_str())
}

fn rfc3339(unix_ms: u64) -> String {
    WallTime { unix_ms, state: ClockState::Synced }.to_rfc3339()
}

/// 1970 and a bit, as a board without a battery has it.
const EPOCH: i64 = -(TRUTH_MS as i64) + 20_000;

#[test]
fn an_event_of_1970_has_its_time_once_the_clock_is_right_and_keeps_what_it_had_beside_it() {
    let mut device = Device::new(EPOCH);
    device.pass(0);
    let recorded = rfc3339(device.wall().unix_ms);
    let truth = device.record(1_500);
    let before = device.read().remove(0);
    assert_eq!(text(&before.event, "clock"), Some("unsynced"));
    assert_eq!(text(&before.event, "time"), Some(&*recorded));
    device.pass(300_000);
    assert_eq!(device.outbox.learn_time(device.wall()), Ok(false), "it is still wrong");
    device.sync();
    let opened = device.outbox.levels().opened;
    assert_eq!(device.outbox.learn_time(device.wall()), Ok(true));
    assert_eq!(device.outbox.learn_time(device.wall()), Ok(false), "once");
    assert_eq!(device.outbox.levels().opened, opened + 1, "who has read it reads it again");
    let after = device.read().remove(0);
    assert_eq!(text(&after.event, "time"), Some(&*rfc3339(truth)));
    assert_eq!(text(&after.event, "recordedtime"), Some(&*recorded));
    assert_eq!(text(&after.event, "clock"), Some("corrected"));
    assert_eq!(after.accepted_ms, truth + 1_500);
    assert_eq!(
        (after.event.id(), after.event.data(), after.sequence),
        (before.event.id(), before.event.data(), before.sequence)
    );
    // What is right from the start is not touched.
    device.record(10);
    let right = device.read().remove(1).event;
    assert_eq!((text(&right, "clock"), text(&right, "recordedtime")), (Some("synced"), None));
}

#[test]
fn nothing_of_what_is_noted_is_published_and_a_record_without_it_stays_as_it_is() {
    let mut device = Device::new(EPOCH);
    device.record(0);
    // The control: nothing is noted.
    device.blind = true;
    device.record(0);
    device.blind = false;
    device.record(0);
    device.sync();
    assert_eq!(device.outbox.learn_time(device.wall()), Ok(true));
    let all = device.read();
    let clocks: Vec<_> = all.iter().map(|record| text(&record.event, "clock").unwrap()).collect();
    assert_eq!(clocks, ["corrected", "unsynced", "corrected"]);
    for record in all {
        let bytes = json::to_vec(&record.event);
        assert!(!String::from_utf8(bytes).unwrap().contains("noted"));
        assert!(json::parse(&json::to_vec(&record.event)).is_ok());
    }
}

#[test]
fn telemetry_that_a_stale_clock_dates_months_back_does_not_expire_when_the_clock_is_right() {
    use crate::outbox::Limits;
    use std::time::Duration;
    let limits = Limits { bytes: u64::MAX / 4, expiry: Duration::from_secs(7 * 86_400) };
    let expires = |knows: bool| {
        let mut device = Device::new(-90 * 86_400_000);
        device.outbox.set_limits(limits);
        device.pass(0);
        if !knows {
            device.outbox.set_moment(None);
        }
        let event = json::parse(br#"{"specversion":"1.0","id":"1","source":"/s","type":"t"}"#);
        device.outbox.append(&[(Lane::Telemetry, event.unwrap())], device.wall()).unwrap();
        device.sync();
        device.outbox.learn_time(device.wall()).unwrap();
        let mut group = device.outbox.begin(device.wall()).unwrap();
        group.expire().unwrap();
        group.commit().unwrap();
        device.outbox.depth()[Lane::Telemetry.index()] == 0
    };
    assert!(!expires(true));
    assert!(expires(false), "the control: by the stale time it would");
}

#[test]
fn a_dead_letter_that_is_put_back_is_still_corrected() {
    let mut device = Device::new(EPOCH);
    device.pass(0);
    let truth = device.record(0);
    let position = device.read()[0].position;
    let wall = device.wall();
    let mut group = device.outbox.begin(wall).unwrap();
    assert!(group.deadletter(Lane::Status, position, "refused").unwrap());
    group.commit().unwrap();
    device.sync();
    let wall = device.wall();
    device.outbox.learn_time(wall).unwrap();
    let letters = device.outbox.dead_letters(Lane::Status, None, ALL).unwrap();
    assert_eq!(text(&letters[0].record.event, "time"), Some(&*rfc3339(truth)));
    let mut group = device.outbox.begin(wall).unwrap();
    assert!(group.requeue(Lane::Status, position).unwrap());
    group.commit().unwrap();
    let back = device.read().remove(0).event;
    assert_eq!(text(&back, "time"), Some(&*rfc3339(truth)));
}

#[derive(Debug, Clone)]
enum Step {
    Pass(u64),
    Record(u64),
    HandIn,
    Sync,
    Learn,
    Reboot(i64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0u64..4_000_000).prop_map(Step::Pass),
        (0u64..50_000).prop_map(Step::Record),
        Just(Step::HandIn),
        Just(Step::Sync),
        Just(Step::Learn),
        prop_oneof![Just(EPOCH), -40_000_000_000i64..40_000_000].prop_map(Step::Reboot),
    ]
}

/// What the outbox should tell of one event.
struct Told {
    boot: u64,
    truth_ms: u64,
    doubtful: bool,
    recorded: String,
}

proptest! {
    /// Whatever happens: an event of a boot whose clock was right once has its true time; of another boot, the
    /// time that it was recorded with. It reads the same ever after, and what others hand in is never touched.
    #[test]
    fn times_are_true_where_they_can_be_known_and_never_made_up(
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let mut device = Device::new(EPOCH);
        device.pass(0);
        let (mut own, mut foreign, mut known) = (Vec::new(), Vec::new(), Vec::new());
        let mut settled = std::collections::BTreeMap::new();
        for step in steps {
            match step {
                Step::Pass(ms) => device.pass(ms),
                Step::Record(waited) => {
                    let (recorded, doubtful) = (rfc3339(device.wall().unix_ms), !device.synced);
                    let truth_ms = device.record(waited);
                    own.push(Told { boot: device.boot, truth_ms, doubtful, recorded });
                }
                Step::HandIn => foreign.push(device.hand_in()),
                Step::Sync => device.sync(),
                Step::Learn => {
                    let learned = device.outbox.learn_time(device.wall()).unwrap();
                    prop_assert_eq!(learned, device.synced && !known.contains(&device.boot));
                    known.extend(learned.then_some(device.boot));
                }
                Step::Reboot(wrong_by) => device.reboot(wrong_by),
            }
        }
        let (mut own, mut foreign) = (own.into_iter(), foreign.into_iter());
        for round in 0..2 {
            for record in device.read() {
                let bytes = json::to_vec(&record.event);
                if round > 0 {
                    prop_assert_eq!(settled.get(&record.position), Some(&bytes));
                    continue;
                }
                settled.insert(record.position, bytes);
                let event = record.event;
                if event.event_type() == "t" {
                    let handed = foreign.next().unwrap();
                    prop_assert_eq!(text(&event, "time"), text(&handed, "time"));
                    prop_assert_eq!(text(&event, "clock"), Some("unsynced"));
                    prop_assert_eq!(event.data(), handed.data());
                    continue;
                }
                let told = own.next().unwrap();
                let (time, recorded) = (text(&event, "time"), text(&event, "recordedtime"));
                match (told.doubtful, known.contains(&told.boot)) {
                    (true, true) => {
                        prop_assert_eq!(time, Some(&*rfc3339(told.truth_ms)));
                        prop_assert_eq!(recorded, Some(&*told.recorded));
                        prop_assert_eq!(text(&event, "clock"), Some("corrected"));
                    }
                    _ => {
                        prop_assert_eq!(time, Some(&*told.recorded));
                        prop_assert_eq!(recorded, None);
                    }
                }
            }
            // Whatever comes later: another boot, with another clock.
            device.reboot(-5_000);
            device.sync();
            device.outbox.learn_time(device.wall()).unwrap();
        }
        prop_assert!(own.next().is_none() && foreign.next().is_none());
    }
}
