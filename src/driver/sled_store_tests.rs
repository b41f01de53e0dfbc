use super::*;
use crate::clock::{ClockState, WallTime};
use crate::event::{Lane, json};
use crate::outbox::{Outbox, PageLimit};

const NOW: WallTime = WallTime { unix_ms: 1_795_000_000_000, state: ClockState::Synced };
const ALL: PageLimit = PageLimit { records: 10_000, bytes: usize::MAX };

fn event(id: usize, data_bytes: usize) -> crate::event::Event {
    let data = "x".repeat(data_bytes);
    let text =
        format!(r#"{{"specversion":"1.0","id":"{id}","source":"/s","type":"t","data":"{data}"}}"#);
    json::parse(text.as_bytes()).unwrap()
}

fn batch(pairs: &[(&[u8], Option<&[u8]>)]) -> Batch {
    let mut batch = Batch::default();
    for (key, value) in pairs {
        match value {
            Some(value) => batch.put(key.to_vec(), value.to_vec()),
            None => batch.delete(key.to_vec()),
        }
    }
    batch
}

fn pairs(store: &SledStore) -> Vec<Pair> {
    store.range(b"a", b"z", 100).unwrap()
}

#[test]
fn committed_pairs_are_there_after_reopening() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("outbox");
    let mut store = SledStore::open(&path).unwrap();
    store.commit(&batch(&[(b"a", Some(b"1")), (b"b", Some(b"2")), (b"c", Some(b"3"))])).unwrap();
    store.commit(&batch(&[(b"b", None), (b"c", Some(b"4"))])).unwrap();
    drop(store);
    let store = SledStore::open(&path).unwrap();
    let expected = [(b"a".to_vec(), b"1".to_vec()), (b"c".to_vec(), b"4".to_vec())];
    assert_eq!(pairs(&store), expected);
    assert_eq!(store.get(b"b").unwrap(), None);
    assert_eq!(store.range(b"a", b"z", 1).unwrap(), expected[..1]);
    assert_eq!(store.range(b"z", b"a", 1).unwrap(), []);
}

#[test]
fn every_commit_makes_a_real_sync() {
    let root = tempfile::tempdir().unwrap();
    let mut store = SledStore::open(&root.path().join("outbox")).unwrap();
    for i in 0..20u8 {
        let before = sys::real_syncs();
        store.commit(&batch(&[(b"a", Some(&[i]))])).unwrap();
        assert!(sys::real_syncs() > before);
    }
}

#[test]
fn a_build_whose_writes_reach_no_real_sync_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let mut store = SledStore::open(&root.path().join("outbox")).unwrap();
    let error = store.prove_durability(|| 7).unwrap_err();
    assert!(error.to_string().contains("refuses to claim durability"), "{error}");
    // Twice in a row: the check itself must write something each time.
    for _ in 0..3 {
        store.prove_durability(sys::real_syncs).unwrap();
    }
}

#[test]
fn the_largest_events_make_no_blob_file() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("outbox");
    let mut outbox = Outbox::open(SledStore::open(&path).unwrap()).unwrap();
    for round in 0..12 {
        let events: Vec<_> = (0..15).map(|i| (Lane::ALL[i % 3], event(i, 65_000))).collect();
        outbox.append(&events, NOW).unwrap();
        let page = outbox.page(Lane::Alert, None, ALL).unwrap();
        if round % 3 == 2 {
            let gone: Vec<_> = page.iter().step_by(2).map(|r| (r.lane, r.position)).collect();
            outbox.remove(&gone, NOW).unwrap();
        }
    }
    drop(outbox);
    let outbox = Outbox::open(SledStore::open(&path).unwrap()).unwrap();
    assert_eq!(outbox.depth()[1..], [60, 60]);
    assert_eq!(outbox.page(Lane::Status, None, ALL).unwrap().len(), 60);
    let blobs: Vec<_> = fs::read_dir(path.join("sled/blobs")).unwrap().collect();
    assert!(blobs.is_empty(), "{blobs:?}");
}

#[test]
fn a_second_opener_is_told_who_is_in_the_way() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("outbox");
    let _store = SledStore::open(&path).unwrap();
    let error = SledStore::open(&path).unwrap_err();
    assert_eq!(error, OpenError::InUse { path: path.display().to_string() });
}

#[test]
fn a_log_that_another_process_holds_is_in_use_and_not_damaged() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("outbox");
    drop(SledStore::open(&path).unwrap());
    let log = File::open(path.join("sled/db")).unwrap();
    log.lock().unwrap();
    let clock = crate::clock::Clock::new(|| ClockState::Synced);
    let error = crate::driver::outbox_open::open(&path, clock).unwrap_err();
    assert_eq!(error, OpenError::InUse { path: path.join("sled").display().to_string() });
    assert!(!path.join("damaged-1").exists());
    log.unlock().unwrap();
    crate::driver::outbox_open::open(&path, clock).unwrap();
}

#[test]
fn a_missing_parent_and_a_file_in_the_way_are_clear_errors() {
    let root = tempfile::tempdir().unwrap();
    let error = SledStore::open(&root.path().join("not/there")).unwrap_err();
    assert!(matches!(error, OpenError::NoParent { .. }), "{error}");
    let file = root.path().join("file");
    fs::write(&file, "").unwrap();
    let error = SledStore::open(&file).unwrap_err();
    assert!(matches!(error, OpenError::File { .. }), "{error}");
}

#[test]
fn leftovers_of_an_opening_cut_short_are_cleared() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("outbox");
    let mut store = SledStore::open(&path).unwrap();
    store.commit(&batch(&[(b"a", Some(b"1"))])).unwrap();
    drop(store);
    for conf in [&b""[..], &[0; 60], b"segment_size: 52"] {
        fs::write(path.join("sled/conf"), conf).unwrap();
        fs::write(path.join("sled/snap.FFFFFFFFFFFFFFFF.generating"), "half").unwrap();
        let store = SledStore::open(&path).unwrap();
        assert_eq!(pairs(&store).len(), 1);
    }
}

#[test]
fn a_whole_conf_is_left_alone() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("outbox");
    drop(SledStore::open(&path).unwrap());
    assert!(is_whole_conf(&path.join("sled/conf")).unwrap());
}

#[test]
fn a_panic_within_sled_is_an_error_of_opening() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("outbox");
    let mut store = SledStore::open(&path).unwrap();
    for i in 0..100u8 {
        store.commit(&batch(&[(&[b'a', i], Some(&[i; 1000]))])).unwrap();
    }
    drop(store);
    drop(SledStore::open(&path).unwrap());
    // The snapshot points into a log of which nothing is left.
    for log in [&b""[..], &[0x55; 2 * SEGMENT_BYTES]] {
        fs::write(path.join("sled/db"), log).unwrap();
        let error = SledStore::open(&path).unwrap_err();
        assert!(matches!(error, OpenError::Engine { .. }), "{error}");
    }
}
