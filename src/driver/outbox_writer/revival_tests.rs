//! What becomes of those who wait while the outbox fails and is opened again.

use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use super::*;
use crate::clock::ClockState;
use crate::event::{Event, json};
use crate::outbox::memory::MemoryStore;
use crate::outbox::{Batch, Limits, Pair, StoreError, keys};

const ALL: PageLimit = PageLimit { records: 10_000, bytes: usize::MAX };
const NEVER: Duration = Duration::from_secs(3600);
const PATIENT: Settings =
    Settings { coalesce: [Duration::ZERO, Duration::ZERO, NEVER], removal_delay: NEVER };
const LIMITS: Limits = Limits { bytes: 1 << 20, expiry: NEVER };

#[derive(Debug, Default)]
struct Disks {
    pairs: MemoryStore,
    /// The commit that fails: 1 is the next one, 0 none.
    commit_fails: u32,
    read_fails: bool,
    short: bool,
    /// Asks for a fresh file once.
    large: bool,
}

/// A store that outlives the outbox on it, and fails once when it is told to.
#[derive(Debug, Clone, Default)]
struct Shared {
    disk: Arc<Mutex<Disks>>,
    /// Held by who wants commits to wait.
    gate: Arc<Mutex<()>>,
}

impl Shared {
    fn disk(&self) -> MutexGuard<'_, Disks> {
        self.disk.lock().unwrap()
    }

    fn fails_to_read(&self) -> Result<(), StoreError> {
        match std::mem::take(&mut self.disk().read_fails) {
            true => Err(StoreError("injected fault".to_owned())),
            false => Ok(()),
        }
    }
}

impl Store for Shared {
    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let _gate = self.gate.lock().unwrap();
        let mut disk = self.disk();
        let fails = disk.commit_fails == 1;
        disk.commit_fails = disk.commit_fails.saturating_sub(1);
        match fails {
            true => Err(StoreError("injected fault".to_owned())),
            false => disk.pairs.commit(batch),
        }
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.fails_to_read()?;
        self.disk().pairs.get(key)
    }

    fn range(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Pair>, StoreError> {
        self.fails_to_read()?;
        self.disk().pairs.range(from, to, limit)
    }
}

impl Disk<Shared> for Shared {
    fn revive(&mut self, _: u32, _: &OutboxError) -> Result<Outbox<Shared>, OutboxError> {
        Ok(Outbox::open(self.clone())?.with_limits(LIMITS))
    }

    fn is_short(&mut self) -> bool {
        self.disk().short
    }

    fn wants_renewal(&mut self, _: &Outbox<Shared>) -> bool {
        std::mem::take(&mut self.disk().large)
    }
}

struct Running {
    handle: OutboxHandle,
    store: Shared,
    stop: watch::Sender<bool>,
    thread: JoinHandle<Result<(), OutboxError>>,
}

#[allow(clippy::disallowed_methods, reason = "the supervisor is not what is tested here")]
fn start(settings: Settings) -> Running {
    let (handle, requests) = channel();
    let (stop, stopped) = watch::channel(false);
    let clock = Clock::new(|| ClockState::Synced);
    let store = Shared::default();
    let (outbox, disk) = (Outbox::open(store.clone()).unwrap().with_limits(LIMITS), store.clone());
    let thread =
        std::thread::spawn(move || run_on(outbox, requests, clock, settings, stopped, disk));
    Running { handle, store, stop, thread }
}

impl Running {
    fn end(self) {
        self.stop.send_replace(true);
        self.thread.join().unwrap().unwrap();
    }

    fn opened(&self) -> u64 {
        self.handle.levels().borrow().opened
    }
}

fn events(lane: Lane, ids: std::ops::Range<usize>) -> Vec<(Lane, Event)> {
    let event = |id| {
        let text = format!(r#"{{"specversion":"1.0","id":"{id}","source":"/s","type":"t"}}"#);
        (lane, json::parse(text.as_bytes()).unwrap())
    };
    ids.map(event).collect()
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let bounded = async { tokio::time::timeout(Duration::from_secs(20), work).await.unwrap() };
    runtime.block_on(bounded)
}

#[test]
fn whoever_asked_when_the_outbox_failed_is_answered_by_the_one_in_its_place() {
    let running = start(PATIENT);
    let Running { handle, store, .. } = &running;
    let fail = |commit: bool| {
        let mut disk = store.disk();
        (disk.commit_fails, disk.read_fails) = (u32::from(commit), !commit);
    };
    block_on(async {
        let accepted = handle.append(events(Lane::Alert, 0..4)).await.unwrap();
        fail(true);
        let reason = "too large".to_owned();
        assert_eq!(handle.deadletter(Lane::Alert, accepted[0].position, reason).await, Ok(true));
        fail(false);
        assert_eq!(handle.census().await.map(|census| census.levels.dead), Ok([1, 0, 0]));
        fail(false);
        assert_eq!(handle.dead_letters(Lane::Alert, None, ALL).await.map(|all| all.len()), Ok(1));
        fail(false);
        assert_eq!(handle.page(Lane::Alert, None, ALL).await.map(|page| page.len()), Ok(3));
        // A commit in between: so many failures in a row would be the end.
        handle.append(Vec::new()).await.unwrap();
        fail(true);
        assert_eq!(handle.requeue(Lane::Alert, None).await, Ok(1));
        fail(true);
        let purge = Purge::UpTo(accepted[2].position);
        assert_eq!(handle.purge(Lane::Alert, purge).await.map(|gone| gone.total()), Ok(2));
        assert_eq!(handle.levels().borrow().records, [2, 0, 0]);
    });
    assert_eq!(running.opened(), 1 + 6);
    running.end();
}

#[test]
fn a_request_that_waits_for_room_outlives_the_commit_that_was_to_make_it() {
    let running = start(PATIENT);
    let Running { handle, store, .. } = &running;
    let held = store.gate.lock().unwrap();
    store.disk().commit_fails = 2;
    block_on(async {
        // What is handed in while the first commit is held up is taken up together: a commit's worth,
        // and a question that must wait until that is made.
        let first = handle.append(events(Lane::Alert, 0..1));
        let full = handle.append(events(Lane::Telemetry, 0..MAX_COMMIT_EVENTS));
        let go_on = async { drop(held) };
        let (first, full, census, ()) = tokio::join!(first, full, handle.census(), go_on);
        assert_eq!(first.map(|accepted| accepted.len()), Ok(1));
        assert_eq!(full.map(|accepted| accepted.len()), Ok(MAX_COMMIT_EVENTS));
        assert_eq!(census.map(|census| census.levels.opened), Ok(2));
    });
    running.end();
}

#[test]
fn a_fresh_file_does_not_wait_until_nothing_is_due() {
    let running = start(PATIENT);
    running.store.disk().large = true;
    // Telemetry would wait for ever for company, and with it the fresh file.
    let accepted = block_on(running.handle.append(events(Lane::Telemetry, 0..1)));
    assert_eq!(accepted.map(|accepted| accepted.len()), Ok(1));
    // Committed first, answered, then renewed: asked only after that.
    let census = block_on(running.handle.census());
    assert_eq!(census.map(|census| census.levels.opened), Ok(2));
    running.end();
}

#[test]
fn what_was_delivered_is_neither_destroyed_nor_counted_by_a_purge() {
    let running = start(PATIENT);
    block_on(async {
        let handle = &running.handle;
        let accepted = handle.append(events(Lane::Alert, 0..3)).await.unwrap();
        handle.remove(vec![(Lane::Alert, accepted[0].position)]).await.unwrap();
        let gone = handle.purge(Lane::Alert, Purge::UpTo(accepted[2].position)).await.unwrap();
        assert_eq!(gone.counts, [2, 0, 0]);
        assert_eq!(handle.levels().borrow().records, [0; 3]);
    });
    running.end();
}

#[test]
fn refusals_and_openings_are_counted_over_a_revival() {
    let running = start(Settings { coalesce: [Duration::ZERO; 3], ..PATIENT });
    let Running { handle, store, .. } = &running;
    block_on(async {
        store.disk().short = true;
        let refused = handle.append(events(Lane::Telemetry, 0..3)).await;
        assert_eq!(refused, Err(OutboxError::DiskFull));
        handle.append(events(Lane::Alert, 0..1)).await.unwrap();
        let before = *handle.levels().borrow();
        assert_eq!((before.refused, before.short, before.opened), (3, true, 1));
        store.disk().read_fails = true;
        handle.census().await.unwrap();
        let after = *handle.levels().borrow();
        assert_eq!((after.refused, after.short, after.opened), (3, true, 2));
    });
    running.end();
}

/// Flips a byte of records: damage where there was none, and the other way round.
fn flip(store: &Shared, positions: impl Iterator<Item = Position>) {
    for position in positions {
        assert!(store.disk().pairs.flip_byte(&keys::part(Lane::Alert, position, 0), 40));
    }
}

#[test]
fn more_damage_than_a_commit_sets_aside_is_set_aside_by_several() {
    const MANY: usize = 3 * answers::MAX_DAMAGED;
    let running = start(PATIENT);
    let Running { handle, store, .. } = &running;
    block_on(async {
        let accepted = handle.append(events(Lane::Alert, 0..MANY + 1)).await.unwrap();
        flip(store, accepted[..MANY].iter().map(|accepted| accepted.position));
        let page = handle.page(Lane::Alert, None, ALL).await.unwrap();
        assert_eq!(page.len(), 1);
        // The rest goes with the next commit.
        handle.append(events(Lane::Status, 0..1)).await.unwrap();
        assert_eq!(handle.levels().borrow().records, [1, 1, 0]);
    });
    running.end();
}

#[test]
fn damage_that_a_salvage_has_mended_is_no_damage_any_more() {
    for (mended, left) in [(true, 2), (false, 1)] {
        let running = start(PATIENT);
        let Running { handle, store, .. } = &running;
        block_on(async {
            let accepted = handle.append(events(Lane::Alert, 0..2)).await.unwrap();
            let position = accepted[0].position;
            flip(store, std::iter::once(position));
            assert_eq!(handle.page(Lane::Alert, None, ALL).await.unwrap().len(), 1);
            if mended {
                flip(store, std::iter::once(position));
            }
            store.disk().commit_fails = 1;
            handle.append(events(Lane::Status, 2..3)).await.unwrap();
            assert_eq!(handle.levels().borrow().records, [left, 1, 0], "mended: {mended}");
            let page = handle.page(Lane::Alert, None, ALL).await.unwrap();
            assert_eq!(page.len() as u64, left);
        });
        running.end();
    }
}
