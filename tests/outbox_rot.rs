//! Rotten bytes: whatever happens to the files of an outbox, it opens within five seconds, every
//! record is there again or counted as lost, and no record has a byte that was not written.
//!
//! Each round makes a store, damages it once, opens it and reads it to its end as the agent does.
//! `HARK_ROTS` says how many rounds (`scripts/torture` runs 500), `HARK_SEED` where they begin.
#![allow(clippy::disallowed_methods, reason = "real files need real time")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hark::clock::{Clock, ClockState, Rng, WallTime};
use hark::driver::outbox_open;
use hark::driver::sled_store::SledStore;
use hark::event::catalogue::Maker;
use hark::event::{Data, Event, Lane, json};
use hark::outbox::{Chronicle, Outbox, OutboxError, PageLimit, Position};

const NOW: WallTime = WallTime { unix_ms: 1_795_000_000_000, state: ClockState::Synced };
const OURS: &str = "/test";
/// The id of the event that is appended after the damage.
const CANARY: usize = 1_000_000;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |n| n.parse().expect(name))
}

fn clock() -> Clock {
    Clock::new(|| ClockState::Synced)
}

fn open(path: &Path) -> Outbox<SledStore> {
    let chronicle = Chronicle { maker: Maker::new("test", "io.hark"), rng: Rng::from_seed(9) };
    outbox_open::open(path, clock()).expect("the outbox opens").with_chronicle(chronicle)
}

fn event(id: usize, bytes: usize) -> Event {
    let data: String = (0..bytes).map(|i| char::from(b'a' + ((i * 7 + id) % 26) as u8)).collect();
    let text = format!(
        r#"{{"specversion":"1.0","id":"{id}","source":"{OURS}","type":"t","data":"{data}"}}"#
    );
    json::parse(text.as_bytes()).expect("an event")
}

/// What was accepted and not removed, by lane and position: id and data.
type Kept = BTreeMap<(Lane, Position), (String, Data)>;

/// Fills a store: several openings (hence snapshots), removals, records of one and of many parts.
fn fill(path: &Path, rng: &mut Rng, events: usize) -> (Kept, Kept) {
    let (mut kept, mut removed) = (Kept::new(), Kept::new());
    let mut outbox = open(path);
    for id in 0..events {
        let lane = Lane::ALL[(rng.u64() % 3) as usize];
        let bytes = if rng.u64().is_multiple_of(12) { 9_000 } else { (rng.u64() % 1_500) as usize };
        let event = event(id, bytes);
        let mut group = outbox.begin(NOW).expect("begin");
        group.append(&[(lane, event.clone())]).expect("append");
        if rng.u64().is_multiple_of(2) && kept.len() > 20 {
            let (&key, _) = kept.iter().find(|((of, _), _)| *of == lane).expect("of this lane");
            group.remove(&[key]).expect("remove");
            let value = kept.remove(&key).expect("kept");
            removed.insert(key, value);
        }
        let accepted = group.commit().expect("commit");
        let value = (event.id().to_owned(), event.data().clone());
        kept.insert((lane, accepted[0].position), value);
        if rng.u64().is_multiple_of(60) {
            drop(outbox);
            outbox = open(path);
        }
    }
    (kept, removed)
}

fn files(path: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(path).expect("directory").map(|e| e.expect("entry").path()) {
        if entry.is_dir() {
            found.extend(files(&entry));
        } else {
            found.push(entry);
        }
    }
    found.sort();
    found
}

/// Damages one file; says how.
fn damage(path: &Path, rng: &mut Rng) -> String {
    let mut all = files(path);
    all.retain(|file| !file.ends_with("lock"));
    // The log is where nearly everything is: half of the damage goes there.
    let log = path.join("sled/db");
    let pick = (rng.u64() % all.len() as u64) as usize;
    let file = if rng.u64().is_multiple_of(2) { log } else { all[pick].clone() };
    let length = fs::metadata(&file).expect("file").len();
    let at = rng.u64() % length.max(1);
    let span = [1, 4, 64, 512, 4096, 65_536, 700_000][(rng.u64() % 7) as usize];
    let span = span.min(length.saturating_sub(at)) as usize;
    let write = |bytes: &[u8]| {
        let open = fs::File::options().write(true).open(&file).expect("open");
        open.write_all_at(bytes, at).expect("write");
    };
    let short = file.strip_prefix(path).expect("inside").display().to_string();
    match rng.u64() % 9 {
        0 | 1 => {
            let mut bytes = vec![0; span];
            fs::File::open(&file).expect("open").read_exact_at(&mut bytes, at).expect("read");
            for byte in &mut bytes {
                *byte ^= 1 << (rng.u64() % 8);
            }
            write(&bytes);
            format!("{span} bytes of {short} flipped at {at}")
        }
        2 => {
            write(&vec![0; span]);
            format!("{span} bytes of {short} zeroed at {at}")
        }
        3 => {
            let bytes: Vec<u8> = (0..span).map(|_| rng.u64() as u8).collect();
            write(&bytes);
            format!("{span} bytes of {short} random at {at}")
        }
        4 => {
            fs::File::options().write(true).open(&file).expect("open").set_len(at).expect("cut");
            format!("{short} cut at {at}")
        }
        5 => {
            fs::remove_file(&file).expect("remove");
            format!("{short} removed")
        }
        6 => {
            fs::write(&file, vec![0; length as usize]).expect("write");
            format!("{short} all zeros")
        }
        7 => {
            fs::write(&file, b"").expect("write");
            format!("{short} empty")
        }
        _ => {
            let name = ["snap.00000000000FFFFF", "snap.x", "db.old", "conf.bak", "blobs/7"]
                [(rng.u64() % 5) as usize];
            fs::write(path.join("sled").join(name), b"foreign").expect("write");
            format!("foreign file {name}")
        }
    }
}

/// Reads a lane to its end as the writer does: what is damaged is set aside, and a store that
/// fails is salvaged.
fn drain(
    outbox: &mut Outbox<SledStore>,
    path: &Path,
    lane: Lane,
    mut each: impl FnMut(&hark::outbox::Record),
) {
    let limit = PageLimit { records: 64, bytes: 1 << 20 };
    let mut failures = 0;
    loop {
        match drain_page(outbox, lane, limit, &mut each) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) => {
                failures += 1;
                assert!(failures < 4, "salvage does not help: {error}");
                println!("opened again after {error}");
                reopen(outbox, path, &error);
            }
        }
    }
}

/// Delivers a page and then removes it, in this order, as the agent does: a removal that fails may
/// have happened all the same. Returns how many records it had.
fn drain_page(
    outbox: &mut Outbox<SledStore>,
    lane: Lane,
    limit: PageLimit,
    each: &mut impl FnMut(&hark::outbox::Record),
) -> Result<usize, OutboxError> {
    loop {
        let page = outbox.read(lane, None, limit)?;
        page.records.iter().for_each(&mut *each);
        let mut group = outbox.begin(NOW)?;
        for damage in &page.damaged {
            group.set_aside(lane, damage)?;
        }
        for record in &page.records {
            group.remove(&[(lane, record.position)])?;
        }
        group.commit()?;
        if !page.records.is_empty() || page.damaged.is_empty() {
            return Ok(page.records.len());
        }
    }
}

fn reopen(outbox: &mut Outbox<SledStore>, path: &Path, error: &OutboxError) {
    let other = tempfile::tempdir().expect("directory");
    drop(std::mem::replace(outbox, open(&other.path().join("outbox"))));
    outbox_open::distrust(path, &error.to_string());
    *outbox = open(path);
}

/// The canary's sequence, if it is there.
fn canary_sequence(outbox: &Outbox<SledStore>) -> Option<u64> {
    let all = PageLimit { records: 10_000, bytes: 1 << 30 };
    let page = outbox.read(Lane::Alert, None, all).ok()?;
    page.records.iter().find(|r| r.event.id() == CANARY.to_string()).map(|r| r.sequence)
}

fn told(record: &hark::outbox::Record) -> Option<u64> {
    if record.event.event_type() != "io.hark.outbox.events.lost" {
        return None;
    }
    let Data::Json(data) = record.event.data() else { panic!("no data") };
    let data: serde_json::Value = serde_json::from_slice(data).expect("JSON");
    data["count"].as_u64()
}

struct Round {
    recovered: usize,
    lost: usize,
    again: usize,
    opened_in: Duration,
}

fn round(seed: u64) -> Round {
    let mut rng = Rng::from_seed(seed);
    let root = tempfile::tempdir().expect("directory");
    let path = root.path().join("outbox");
    let events = 60 + (rng.u64() % 400) as usize;
    let (mut kept, mut removed) = fill(&path, &mut rng, events);
    let how = damage(&path, &mut rng);
    let alerts = kept.keys().chain(removed.keys()).filter(|(lane, _)| *lane == Lane::Alert).count();

    let begun = Instant::now();
    let mut outbox = open(&path);
    let canary = (Lane::Alert, event(CANARY, 10));
    let next =
        outbox.append(std::slice::from_ref(&canary), NOW).map(|accepted| accepted[0].sequence);
    let next = next.unwrap_or_else(|error| {
        // It opens and then fails: as the agent's writer does. What the failed commit had put
        // down may have been salvaged; it is recognised, not written twice.
        println!("seed {seed}: {how}: opened again after {error}");
        reopen(&mut outbox, &path, &error);
        let kept = canary_sequence(&outbox);
        kept.unwrap_or_else(|| outbox.append(&[canary], NOW).expect("append")[0].sequence)
    });
    let opened_in = begun.elapsed();
    assert_eq!(next, alerts as u64 + 1, "seed {seed}: {how}: not the next sequence");

    let (mut lost, mut recovered, mut again) = (0, 0, 0);
    // Telemetry first, so that what is told of it stands in the status lane by then.
    for lane in [Lane::Telemetry, Lane::Alert, Lane::Status] {
        drain(&mut outbox, &path, lane, |record| {
            if record.event.source() != OURS {
                lost += told(record).unwrap_or(0);
                return;
            }
            let found = (record.event.id().to_owned(), record.event.data().clone());
            if record.event.id() == CANARY.to_string() {
                return;
            }
            let key = (lane, record.position);
            match (kept.remove(&key), removed.remove(&key)) {
                (Some(right), _) => {
                    assert_eq!(right, found, "seed {seed}: {how}: a wrong payload");
                    recovered += 1;
                    removed.insert(key, right);
                }
                // As often as the outbox is opened again while it is drained.
                (None, Some(right)) => {
                    assert_eq!(right, found, "seed {seed}: {how}: a wrong payload");
                    again += 1;
                    removed.insert(key, right);
                }
                (None, None) => panic!("seed {seed}: {how}: {key:?} was never written"),
            }
        });
    }
    // What the last commits of the draining had to tell.
    drain(&mut outbox, &path, Lane::Status, |record| lost += told(record).unwrap_or(0));
    assert!(
        lost >= kept.len() as u64,
        "seed {seed}: {how}: {} records are gone and {lost} are told: {:?}",
        kept.len(),
        kept.keys().take(5).collect::<Vec<_>>()
    );
    assert!(opened_in < Duration::from_secs(5), "seed {seed}: {how}: {opened_in:?}");
    println!("seed {seed}: {how}: {recovered} recovered, {} lost, {again} again", kept.len());
    Round { recovered, lost: kept.len(), again, opened_in }
}

#[test]
fn a_damaged_outbox_opens_in_time_and_every_record_is_recovered_or_counted() {
    let (rounds, first) = (number("HARK_ROTS", 40), number("HARK_SEED", 1));
    std::panic::set_hook(Box::new(|panic| {
        // sled's panics are expected; ours are told by the test harness's own message.
        if panic.location().is_some_and(|at| at.file().contains("outbox_rot")) {
            eprintln!("{panic}");
        }
    }));
    let (mut recovered, mut lost, mut again, mut slowest) = (0, 0, 0, Duration::ZERO);
    for seed in first..first + rounds {
        let round = round(seed);
        recovered += round.recovered;
        lost += round.lost;
        again += round.again;
        slowest = slowest.max(round.opened_in);
    }
    println!(
        "{rounds} rounds: {recovered} records recovered, {lost} lost and told, {again} delivered again, slowest opening {slowest:?}"
    );
    assert!(recovered > 0, "the test damages too much to mean anything");
}

#[test]
fn dead_letters_are_salvaged_as_such() {
    let root = tempfile::tempdir().expect("directory");
    let path = root.path().join("outbox");
    let mut outbox = open(&path);
    for id in 0..30 {
        outbox.append(&[(Lane::Alert, event(id, 5_000))], NOW).expect("append");
    }
    let mut group = outbox.begin(NOW).expect("begin");
    group.deadletter(Lane::Alert, Position(7), "refused for good").expect("dead letter");
    group.commit().expect("commit");
    drop(outbox);
    outbox_open::distrust(&path, "a test");
    let outbox = open(&path);
    let letters = outbox
        .dead_letters(Lane::Alert, None, PageLimit { records: 256, bytes: 1 << 20 })
        .expect("dead letters");
    assert_eq!((letters.len(), letters[0].reason.as_str()), (1, "refused for good"));
    assert_eq!((letters[0].record.position, letters[0].record.event.id()), (Position(7), "6"));
    let limit = PageLimit { records: 100, bytes: 1 << 20 };
    assert_eq!(outbox.page(Lane::Alert, None, limit).expect("page").len(), 29);
    assert_eq!(outbox.untold().expect("to tell").losses.counts, [0; 3]);
}
