use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::thread::JoinHandle;

use super::*;
use crate::clock::{ClockState, Rng};
use crate::event::catalogue::Occurrence;
use crate::event::{Event, json};
use crate::outbox::memory::{Fault, FaultyStore, MemoryStore};
use crate::outbox::{Batch, Pair, StoreError};

const ALL: PageLimit = PageLimit { records: 10_000, bytes: usize::MAX };
/// Longer than any test takes: what waits for it waits for ever.
const NEVER: Duration = Duration::from_secs(3600);
/// A status is committed at once, with all that waits.
const PATIENT: Settings =
    Settings { coalesce: [Duration::ZERO, Duration::ZERO, NEVER], removal_delay: NEVER };

/// Counts commits, and can hold them up.
#[derive(Clone, Default)]
struct Watched {
    inner: MemoryStore,
    commits: Arc<Mutex<usize>>,
    applied: Arc<Mutex<usize>>,
    gate: Arc<Mutex<()>>,
}

impl Store for Watched {
    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let _gate = self.gate.lock().unwrap();
        *self.commits.lock().unwrap() += 1;
        self.inner.commit(batch)
    }

    fn apply(&mut self, batch: &Batch) -> Result<(), StoreError> {
        *self.applied.lock().unwrap() += 1;
        self.inner.apply(batch)
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.inner.get(key)
    }

    fn range(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Pair>, StoreError> {
        self.inner.range(from, to, limit)
    }
}

struct Running {
    handle: OutboxHandle,
    stop: watch::Sender<bool>,
    thread: JoinHandle<Result<(), OutboxError>>,
}

#[allow(clippy::disallowed_methods, reason = "the supervisor is not what is tested here")]
fn start<S: Store + Send + 'static>(store: S, settings: Settings) -> Running {
    let (handle, requests) = channel();
    let (stop, stopped) = watch::channel(false);
    let clock = Clock::new(|| ClockState::Synced);
    let thread = std::thread::spawn(move || {
        run(Outbox::open(store).unwrap(), requests, clock, settings, stopped)
    });
    Running { handle, stop, thread }
}

impl Running {
    fn end(self) -> Result<(), OutboxError> {
        self.stop.send_replace(true);
        self.thread.join().unwrap()
    }
}

fn events(lane: Lane, id: usize) -> Vec<(Lane, Event)> {
    let text = format!(r#"{{"specversion":"1.0","id":"{id}","source":"/s","type":"t"}}"#);
    vec![(lane, json::parse(text.as_bytes()).unwrap())]
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
}

#[test]
fn an_alert_is_committed_at_once_and_alone() {
    let store = Watched::default();
    let commits = store.commits.clone();
    let running = start(store, PATIENT);
    runtime().block_on(async {
        let mut waiting = Box::pin(running.handle.append(events(Lane::Telemetry, 1)));
        let mut context = Context::from_waker(Waker::noop());
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        let alert = running.handle.append(events(Lane::Alert, 2)).await.unwrap();
        assert_eq!(alert[0].sequence, 1);
        assert_eq!(running.handle.levels().borrow().records, [1, 0, 0]);
        running.stop.send_replace(true);
        assert_eq!(waiting.await.unwrap()[0].sequence, 1);
    });
    running.end().unwrap();
    assert_eq!(*commits.lock().unwrap(), 2);
}

#[test]
fn an_alert_goes_before_what_is_due_and_many_alerts_do_not_starve_it() {
    let store = Watched::default();
    let gate = store.gate.clone();
    // All is due at once.
    let running = start(store, Settings { coalesce: [Duration::ZERO; 3], ..PATIENT });
    let order = Arc::new(Mutex::new(Vec::new()));
    runtime().block_on(async {
        let held = gate.lock().unwrap();
        let ask = |lane, id| {
            let (handle, order) = (running.handle.clone(), Arc::clone(&order));
            Box::pin(async move {
                let accepted = handle.append(events(lane, id)).await.unwrap();
                order.lock().unwrap().push(accepted[0].lane);
            })
        };
        // The first is being committed while the gate is held.
        let lanes = [Lane::Telemetry, Lane::Telemetry, Lane::Telemetry, Lane::Alert];
        let mut all: Vec<_> =
            lanes.into_iter().enumerate().map(|(id, lane)| ask(lane, id)).collect();
        let mut context = Context::from_waker(Waker::noop());
        for future in &mut all {
            assert!(future.as_mut().poll(&mut context).is_pending());
        }
        drop(held);
        // One alert behind the other until the readings are through.
        let mut alerts = 0;
        while order.lock().unwrap().iter().filter(|lane| **lane == Lane::Telemetry).count() < 3 {
            alerts += 1;
            assert!(alerts < 1000, "the readings starve: {order:?}");
            ask(Lane::Alert, 100 + alerts).await;
            all.retain_mut(|future| future.as_mut().poll(&mut context).is_pending());
        }
    });
    running.end().unwrap();
}

#[test]
fn what_gathers_during_a_commit_shares_the_next_one() {
    let store = Watched::default();
    let (commits, gate) = (store.commits.clone(), store.gate.clone());
    let running = start(store, PATIENT);
    runtime().block_on(async {
        let held = gate.lock().unwrap();
        let many = (0..QUEUED_REQUESTS).map(|id| {
            let handle = running.handle.clone();
            async move { handle.append(events(Lane::Alert, id)).await.unwrap()[0].sequence }
        });
        let mut all: Vec<_> = many.map(Box::pin).collect();
        // Each has handed in its request once it was polled.
        for future in &mut all {
            let mut context = Context::from_waker(Waker::noop());
            assert!(future.as_mut().poll(&mut context).is_pending());
        }
        drop(held);
        let mut sequences = Vec::new();
        for future in all {
            sequences.push(future.await);
        }
        sequences.sort_unstable();
        assert_eq!(sequences, (1..=QUEUED_REQUESTS as u64).collect::<Vec<_>>());
    });
    running.end().unwrap();
    assert!(*commits.lock().unwrap() <= 3, "{commits:?}");
}

#[test]
fn telemetry_is_committed_after_its_coalesce_without_company() {
    let short = Duration::from_millis(20);
    let settings = Settings { coalesce: [Duration::ZERO, NEVER, short], ..PATIENT };
    let running = start(MemoryStore::default(), settings);
    let accepted = running.handle.append_blocking(events(Lane::Telemetry, 1)).unwrap();
    assert_eq!(accepted[0].position, Position(1));
    running.end().unwrap();
}

#[test]
fn a_removed_record_is_in_no_page_before_its_removal_is_committed() {
    let store = Watched::default();
    let commits = store.commits.clone();
    let running = start(store, PATIENT);
    runtime().block_on(async {
        let handle = &running.handle;
        handle.append(events(Lane::Alert, 1)).await.unwrap();
        handle.append(events(Lane::Alert, 2)).await.unwrap();
        handle.remove(vec![(Lane::Alert, Position(1))]).await.unwrap();
        let one = PageLimit { records: 1, bytes: 1 };
        let page = handle.page(Lane::Alert, None, one).await.unwrap();
        assert_eq!(page[0].position, Position(2));
        assert_eq!(*commits.lock().unwrap(), 2);
        assert_eq!(handle.levels().borrow().records, [2, 0, 0]);
        handle.append(events(Lane::Status, 3)).await.unwrap();
        assert_eq!(handle.levels().borrow().records, [1, 1, 0]);
    });
    running.end().unwrap();
    assert_eq!(*commits.lock().unwrap(), 3, "the removal rode along");
}

#[test]
fn removals_are_committed_after_a_bounded_time_without_company() {
    let settings = Settings { removal_delay: Duration::from_millis(20), ..PATIENT };
    let running = start(MemoryStore::default(), settings);
    runtime().block_on(async {
        let handle = &running.handle;
        let mut levels = handle.levels();
        handle.append(events(Lane::Alert, 1)).await.unwrap();
        handle.remove(vec![(Lane::Alert, Position(1))]).await.unwrap();
        let emptied = levels.wait_for(|levels| levels.total() == 0);
        tokio::time::timeout(Duration::from_secs(10), emptied).await.unwrap().unwrap();
    });
    running.end().unwrap();
}

/// Stores three groups, has two of them removed and waits until they are gone; commits so far.
async fn remove_many(handle: &OutboxHandle, commits: &Mutex<usize>) -> usize {
    for first in 0..3 {
        let many = (0..REMOVED_AT_ONCE).map(|n| events(Lane::Status, first * 1000 + n).remove(0));
        handle.append(many.collect()).await.unwrap();
    }
    let appended = *commits.lock().unwrap();
    let positions = (1..=2 * REMOVED_AT_ONCE as u64).map(|at| (Lane::Status, Position(at)));
    for group in positions.collect::<Vec<_>>().chunks(REMOVED_AT_ONCE) {
        handle.remove(group.to_vec()).await.unwrap();
    }
    let mut levels = handle.levels();
    let gone = levels.wait_for(|levels| levels.total() == REMOVED_AT_ONCE as u64);
    tokio::time::timeout(Duration::from_secs(10), gone).await.unwrap().unwrap();
    appended
}

#[test]
fn many_removals_are_applied_together_and_the_next_commit_makes_them_stable() {
    let store = Watched::default();
    let (commits, applied) = (store.commits.clone(), store.applied.clone());
    // Nothing is due before the stop.
    let running = start(store, PATIENT);
    let appended = runtime().block_on(remove_many(&running.handle, &commits));
    // One group or two, as they were taken up.
    assert!((1..=2).contains(&*applied.lock().unwrap()));
    assert_eq!(*commits.lock().unwrap(), appended, "nobody waited for the device");
    running.end().unwrap();
    assert_eq!(*commits.lock().unwrap(), appended + 1);
}

#[test]
fn removals_that_were_applied_are_made_stable_after_a_bounded_time() {
    let store = Watched::default();
    let commits = store.commits.clone();
    let removal_delay = Duration::from_millis(20);
    let running = start(store, Settings { removal_delay, ..PATIENT });
    runtime().block_on(async {
        let mut levels = running.handle.levels();
        let appended = remove_many(&running.handle, &commits).await;
        let settled = async {
            while *commits.lock().unwrap() == appended {
                levels.changed().await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(10), settled).await.unwrap();
    });
    running.end().unwrap();
}

#[test]
fn what_is_queued_at_the_stop_is_committed_first() {
    let running = start(MemoryStore::default(), PATIENT);
    let accepted = runtime().block_on(async {
        let waiting = running.handle.append(events(Lane::Telemetry, 1));
        let stop = async {
            // The answer to a page says that the writer has taken what was queued before it.
            running.handle.page(Lane::Alert, None, ALL).await.unwrap();
            running.stop.send_replace(true);
        };
        tokio::join!(waiting, stop).0
    });
    assert_eq!(accepted.unwrap().len(), 1);
    let handle = running.handle.clone();
    running.end().unwrap();
    assert_eq!(handle.append_blocking(events(Lane::Alert, 2)), Err(OutboxError::Closed));
}

#[test]
fn a_failed_commit_is_told_to_all_and_ends_the_writer() {
    let mut store = FaultyStore::new(MemoryStore::default());
    store.arm(1, Fault::Lost);
    let running = start(store, PATIENT);
    let told = runtime().block_on(async {
        running.handle.append(events(Lane::Alert, 1)).await.unwrap();
        let telemetry = running.handle.append(events(Lane::Telemetry, 2));
        let alert = running.handle.append(events(Lane::Alert, 3));
        tokio::join!(telemetry, alert)
    });
    let failed = OutboxError::Failed { cause: "injected fault".to_owned() };
    assert_eq!(told, (Err(failed.clone()), Err(failed.clone())));
    assert_eq!(running.thread.join().unwrap(), Err(failed));
}

#[test]
fn a_refused_request_does_not_spoil_its_company() {
    let running = start(MemoryStore::default(), PATIENT);
    runtime().block_on(async {
        let too_many = vec![events(Lane::Alert, 1).remove(0); MAX_COMMIT_EVENTS + 1];
        let (refused, taken) = tokio::join!(
            running.handle.append(too_many),
            running.handle.append(events(Lane::Alert, 2))
        );
        assert!(matches!(refused, Err(OutboxError::BatchTooLarge { .. })));
        assert_eq!(taken.unwrap()[0].sequence, 1);
    });
    running.end().unwrap();
}

/// Sets limits as the disk of the agent does.
struct Bounded;

impl<S: Store> Disk<S> for Bounded {
    fn revive(&mut self, _: u32, error: &OutboxError) -> Result<Outbox<S>, OutboxError> {
        Err(error.clone())
    }

    fn is_short(&mut self) -> bool {
        false
    }

    fn bound(&mut self, outbox: &mut Outbox<S>, limits: Limits, _: u64) {
        outbox.set_limits(limits);
    }
}

#[test]
#[allow(clippy::disallowed_methods, reason = "the supervisor is not what is tested here")]
fn other_bounds_are_in_force_at_once_for_what_waits_and_for_what_is_stored() {
    let (handle, requests) = channel();
    let (stop, stopped) = watch::channel(false);
    let clock = Clock::new(|| ClockState::Synced);
    let outbox = Outbox::open(MemoryStore::default()).unwrap();
    let settings = Settings { coalesce: [Duration::ZERO, NEVER, Duration::ZERO], ..PATIENT };
    let thread =
        std::thread::spawn(move || run_on(outbox, requests, clock, settings, stopped, Bounded));
    runtime().block_on(async {
        let mut levels = handle.levels();
        handle.append(events(Lane::Alert, 1)).await.unwrap();
        handle.append(events(Lane::Telemetry, 2)).await.unwrap();
        assert_eq!(levels.borrow_and_update().records, [1, 0, 1]);
        let limits = Limits { bytes: u64::MAX, expiry: Duration::ZERO };
        let settings = Settings { coalesce: [Duration::ZERO; 3], ..PATIENT };
        handle.bound(Bounds { settings, limits, max_size: u64::MAX }).await.unwrap();
        levels.wait_for(|levels| levels.records == [1, 0, 0]).await.unwrap();
        // It would wait for company without end.
        let status = handle.append(events(Lane::Status, 4));
        tokio::time::timeout(Duration::from_secs(30), status).await.unwrap().unwrap();
    });
    stop.send_replace(true);
    thread.join().unwrap().unwrap();
}

/// How long the boot of the test lasts. The wall clock stands where it was told to, so that less of it is as
/// if the wall clock had been set forward.
static SINCE_BOOT_MS: AtomicU64 = AtomicU64::new(0);
static SYNCED: AtomicBool = AtomicBool::new(false);

struct Booted;

impl<S: Store> Disk<S> for Booted {
    fn revive(&mut self, _: u32, error: &OutboxError) -> Result<Outbox<S>, OutboxError> {
        Err(error.clone())
    }

    fn is_short(&mut self) -> bool {
        false
    }

    fn moment(&self) -> Option<Moment> {
        Some(Moment { boot: "b".to_owned(), ms: SINCE_BOOT_MS.load(Ordering::SeqCst) })
    }
}

#[test]
#[allow(clippy::disallowed_methods, reason = "the supervisor is not what is tested here")]
fn records_that_wait_are_read_with_better_times_once_the_clock_is_right_though_nobody_asks() {
    const WALL_MS: u64 = 1_700_000_000_000;
    let (handle, requests) = channel();
    let (stop, stopped) = watch::channel(false);
    let state = || match SYNCED.load(Ordering::SeqCst) {
        true => ClockState::Synced,
        false => ClockState::Unsynced,
    };
    let clock = Clock::new(state).at_speed(WALL_MS, 1.0);
    let outbox = Outbox::open(MemoryStore::default()).unwrap();
    SINCE_BOOT_MS.store(9_000_000, Ordering::SeqCst);
    let thread =
        std::thread::spawn(move || run_on(outbox, requests, clock, PATIENT, stopped, Booted));
    let maker = crate::event::catalogue::Maker::new("d", "io.hark");
    let pressed = Occurrence::SessionStopped { reason: "test".to_owned() };
    let (_, event) = maker.make(&pressed, clock.wall(), &mut Rng::from_seed(1)).unwrap();
    let time = |event: &Event| {
        let time = event.attribute("time").unwrap().as_str().unwrap().to_owned();
        chrono::DateTime::parse_from_rfc3339(&time).unwrap().timestamp_millis()
    };
    runtime().block_on(async {
        let mut levels = handle.levels();
        handle.append(vec![(Lane::Alert, event.clone())]).await.unwrap();
        let before = handle.page(Lane::Alert, None, ALL).await.unwrap();
        assert_eq!(time(&before[0].event), time(&event));
        let opened = levels.borrow_and_update().opened;
        // An hour has passed for the wall clock and none for the other: it was set.
        SINCE_BOOT_MS.store(9_000_000 - 3_600_000, Ordering::SeqCst);
        SYNCED.store(true, Ordering::SeqCst);
        let anew = levels.wait_for(|levels| levels.opened > opened);
        tokio::time::timeout(Duration::from_secs(30), anew).await.unwrap().unwrap();
        let after = handle.page(Lane::Alert, None, ALL).await.unwrap().remove(0).event;
        // To the milliseconds for which the test itself has let the wall clock run.
        let late = time(&after) - time(&event) - 3_600_000;
        assert!((0..30_000).contains(&late), "{late} ms");
        assert_eq!(after.attribute("clock").unwrap().as_str(), Some("corrected"));
        assert_eq!(after.attribute("recordedtime"), event.attribute("time"));
    });
    stop.send_replace(true);
    thread.join().unwrap().unwrap();
}
