//! `hark outbox`, through the agent and on its files.
#![allow(clippy::disallowed_methods, reason = "real processes need real time and real threads")]

mod support;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::SystemTime;

use hark::clock::{ClockState, WallTime};
use hark::driver::sled_store::SledStore;
use hark::event::Lane;
use hark::outbox::Outbox;
use serde_json::Value;
use support::agent::{Agent, Device, hark};
use support::mosquitto::Mosquitto;
use support::wait_until;

/// Nobody listens there: what is handed in stays.
const NOWHERE: &str = "mqtt://127.0.0.1:1";

fn event(id: &str, lane: &str, data: &str) -> String {
    format!(
        r#"{{"specversion":"1.0","id":"{id}","source":"/test","type":"com.example.t","time":"2026-01-02T03:04:05Z","lane":"{lane}","data":{data}}}"#
    )
}

fn outbox(device: &Device, words: &[&str]) -> Command {
    let mut command = hark();
    command.arg("outbox").args(words).arg("--config").arg(device.config());
    command
}

fn output(device: &Device, words: &[&str]) -> Output {
    outbox(device, words).output().expect("run")
}

/// The standard output of a command that goes well.
#[track_caller]
fn ask(device: &Device, words: &[&str]) -> String {
    let output = output(device, words);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {said}");
    String::from_utf8(output.stdout).expect("text")
}

/// The one line of standard error of a command that fails with this code.
#[track_caller]
fn refused(device: &Device, words: &[&str], code: i32) -> String {
    let output = output(device, words);
    let said = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(code), "{words:?}: {said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(output.stdout.is_empty());
    said
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(json).collect()
}

fn start(device: &Device) -> Agent {
    let agent = device.start();
    wait_until("the agent listens", || {
        std::os::unix::net::UnixStream::connect(device.socket()).is_ok()
    });
    agent
}

/// A device that is off, with two alerts, a reading and the status events of its life.
fn filled() -> Device {
    let device = Device::new(NOWHERE, "none");
    let agent = start(&device);
    device.post(&event("a1", "alert", "{\"b\": 1.0,  \"a\":12345678901234567890}")).expect("taken");
    device.post(&event("a2", "alert", "{\n  \"pretty\": [1,\n 2]\n}")).expect("taken");
    device.post(&event("t1", "telemetry", &format!("\"{}\"", "x".repeat(20_000)))).expect("taken");
    assert!(agent.stop().success());
    device
}

/// Every file and directory: its length, its bytes, its time.
fn snapshot(path: &Path) -> BTreeMap<PathBuf, (Vec<u8>, SystemTime)> {
    let mut found = BTreeMap::new();
    let mut open = vec![path.to_owned()];
    while let Some(path) = open.pop() {
        let meta = std::fs::metadata(&path).expect("metadata");
        let bytes = if meta.is_dir() { Vec::new() } else { std::fs::read(&path).expect("read") };
        if meta.is_dir() {
            open.extend(std::fs::read_dir(&path).expect("read").map(|e| e.expect("entry").path()));
        }
        found.insert(path, (bytes, meta.modified().expect("time")));
    }
    found
}

#[test]
fn looking_at_the_files_shows_all_and_changes_not_a_byte() {
    let device = filled();
    let scratch = tempfile::tempdir().expect("directory");
    let before = snapshot(&device.outbox());
    let look = |words: &[&str]| {
        let output = outbox(&device, words).env("TMPDIR", scratch.path()).output().expect("run");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    };
    let stats = json(&look(&["stats", "--json"]));
    assert_eq!(stats["lanes"]["alert"]["waiting"], 2);
    assert_eq!(stats["lanes"]["telemetry"]["waiting"], 1);
    assert_eq!(stats["dead_letters"], 0);
    assert!(stats["size_on_disk"].as_u64() > Some(1 << 20), "{stats}");

    let listed = lines(&look(&["list", "--json"]));
    let ids: Vec<_> = listed.iter().filter_map(|e| e["id"].as_str()).collect();
    assert_eq!((ids[..2].to_vec(), ids.last()), (vec!["a1", "a2"], Some(&"t1")));
    assert_eq!(listed[0]["state"], "waiting");
    assert_eq!(listed[0]["sequence"], "00000000000000000001");
    assert_eq!(lines(&look(&["list", "--json", "--lane", "alert", "--limit", "1"])).len(), 1);
    assert_eq!(look(&["list", "--dead", "--json"]), "");

    let table = look(&["list"]);
    let head = table.lines().next().expect("a head");
    for line in table.lines() {
        // Aligned: in every row a lane stands below the word.
        let at = head.find("LANE").expect("a column");
        assert!(["LANE", "alert", "status", "telemetry"].iter().any(|l| line[at..].starts_with(l)));
    }
    assert!(look(&["stats"]).contains("telemetry"));
    let shown = look(&["show", "a2"]);
    assert!(shown.contains("{\n  \"pretty\": [1,\n 2]\n}"), "{shown}");
    assert_eq!(json(&look(&["show", "a1", "--json"]))["event"]["source"], "/test");
    assert_eq!(look(&["export"]).lines().count(), listed.len());

    assert_eq!(snapshot(&device.outbox()), before);
    assert_eq!(std::fs::read_dir(scratch.path()).expect("read").count(), 0, "a copy was left");
    // The control: the store itself, opened, is not what it was.
    refused(&device, &["requeue", "a1"], 64);
    assert_ne!(snapshot(&device.outbox()), before);
}

#[test]
fn a_signal_ends_a_look_and_leaves_no_copy_behind() {
    let device = Device::new(NOWHERE, "none");
    // Several answers' worth, so that the command still has to ask when the signal comes.
    {
        let store = SledStore::open(&device.outbox()).expect("open store");
        let mut outbox = Outbox::open(store).expect("open outbox");
        let now = WallTime { unix_ms: 1_795_000_000_000, state: ClockState::Synced };
        for number in 0..40 {
            let text =
                event(&format!("e{number}"), "status", &format!("\"{}\"", "x".repeat(60_000)));
            let event = hark::event::json::parse(text.as_bytes()).expect("an event");
            outbox.append(&[(Lane::Status, event)], now).expect("accepted");
        }
    }
    for (signal, all) in [("TERM", false), ("INT", false), ("HUP", false), ("0", true)] {
        let scratch = tempfile::tempdir().expect("directory");
        let copies = || std::fs::read_dir(scratch.path()).expect("read").count();
        let mut command = outbox(&device, &["export"]);
        command.env("TMPDIR", scratch.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut export = command.spawn().expect("run");
        let mut out = export.stdout.take().expect("piped");
        let mut text = vec![0; 1];
        out.read_exact(&mut text).expect("read");
        // It cannot write on: the pipe is full.
        assert_eq!(copies(), 1);
        let mut kill = Command::new("kill");
        kill.args(["-s", signal, &export.id().to_string()]);
        assert!(kill.status().expect("kill").success());
        out.read_to_end(&mut text).expect("read");
        let status = export.wait().expect("wait");
        assert_eq!(status.code(), Some(if all { 0 } else { 69 }), "{signal}: {status}");
        let lines = text.split(|byte| *byte == b'\n').count() - 1;
        assert_eq!(lines == 40, all, "{signal}: {lines}");
        assert_eq!(copies(), 0, "{signal}");
    }
}

/// Every file and directory below one, with the one to whom it belongs.
fn owners(path: &Path) -> BTreeMap<PathBuf, u32> {
    snapshot(path).into_keys().map(|path| (path.clone(), owner(&path))).collect()
}

fn owner(path: &Path) -> u32 {
    std::fs::metadata(path).expect("metadata").uid()
}

#[test]
fn what_root_changes_stays_with_the_service() {
    // As of a service with `DynamicUser=`.
    const SERVICE: u32 = 61_184;
    if owner(Path::new("/proc/self")) != 0 {
        eprintln!("only root can give files away");
        return;
    }
    let device = filled();
    for path in owners(&device.outbox()).keys() {
        std::os::unix::fs::chown(path, Some(SERVICE), Some(SERVICE)).expect("chown");
    }
    let before = owners(&device.outbox());
    let elsewhere = tempfile::NamedTempFile::new().expect("file");
    std::os::unix::fs::symlink(elsewhere.path(), device.outbox().join("link")).expect("link");
    ask(&device, &["purge", "--lane", "telemetry", "--yes"]);
    std::fs::remove_file(device.outbox().join("link")).expect("the link is still there");
    let after = owners(&device.outbox());
    assert!(after.keys().any(|path| !before.contains_key(path)), "sled makes a snapshot");
    assert!(after.values().all(|owner| *owner == SERVICE), "{after:?}");
    assert_eq!(owner(elsewhere.path()), 0, "a link leads nowhere");

    // One who is neither root nor the service is told before anything is made.
    let open = std::fs::Permissions::from_mode(0o777);
    for path in before.keys() {
        std::fs::set_permissions(path, open.clone()).expect("permissions");
    }
    std::fs::set_permissions(device.path(), open).expect("permissions");
    let before = snapshot(&device.outbox());
    let mut purge = outbox(&device, &["purge", "--lane", "alert", "--yes"]);
    purge.env("HARK__INGEST__SOCKET", "");
    let output = purge.uid(SERVICE + 1).gid(SERVICE + 1).output().expect("run");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(74), "{said}");
    assert!(said.contains("belongs to another user"), "{said}");
    assert_eq!(snapshot(&device.outbox()), before);
}

#[test]
fn what_is_exported_is_taken_back_with_its_id_source_and_data() {
    let device = filled();
    let exported = ask(&device, &["export", "--lane", "alert"]);
    assert_eq!(exported.lines().count(), 2);
    let fresh = Device::new(NOWHERE, "none");
    let _agent = start(&fresh);
    let mut emit = hark();
    emit.arg("emit").arg("--socket").arg(fresh.socket());
    let mut emit = emit.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("run");
    emit.stdin.take().expect("piped").write_all(exported.as_bytes()).expect("write");
    assert!(emit.wait().expect("wait").success());
    // Live this time.
    assert_eq!(ask(&fresh, &["export", "--lane", "alert"]), exported);
    let data = |line: &str| {
        let event = hark::event::json::parse(line.as_bytes()).expect("an event");
        hark::event::mqtt::to_binary(&event).payload
    };
    let mut lines = exported.lines();
    assert_eq!(
        data(lines.next().expect("a1")),
        b"{\"b\": 1.0,  \"a\":12345678901234567890}".as_slice()
    );
    assert_eq!(data(lines.next().expect("a2")), b"{\n  \"pretty\": [1,\n 2]\n}".as_slice());
}

#[test]
fn a_missing_store_is_an_error_and_nothing_is_made() {
    let device = Device::new(NOWHERE, "none");
    for words in [
        &["stats"][..],
        &["list"],
        &["show", "x"],
        &["export"],
        &["requeue", "--all"],
        &["purge", "--dead", "--yes"],
    ] {
        let said = refused(&device, words, 74);
        assert!(said.contains("there is no outbox in") && said.contains("outbox"), "{said}");
        assert!(!device.outbox().exists());
    }
    std::fs::create_dir(device.outbox()).expect("directory");
    refused(&device, &["stats"], 74);
    assert_eq!(std::fs::read_dir(device.outbox()).expect("read").count(), 0);
    let mut nowhere = hark();
    let output = nowhere.args(["outbox", "stats", "--config", "/nonexistent/hark.toml"]).output();
    assert_eq!(output.expect("run").status.code(), Some(78));
}

#[test]
fn a_store_in_use_by_a_silent_process_is_refused() {
    let device = filled();
    let agent = {
        let mut command = device.command();
        command.env("HARK__INGEST__SOCKET", "");
        Agent::spawn(command)
    };
    let lock = std::fs::File::open(device.outbox().join("lock")).expect("lock");
    wait_until("the agent has the outbox", || {
        lock.try_lock_shared().is_err() || {
            lock.unlock().expect("unlock");
            false
        }
    });
    for words in [&["stats"][..], &["requeue", "--all"], &["purge", "--dead", "--yes"]] {
        let said = refused(&device, words, 74);
        assert!(said.contains("in use by another process"), "{said}");
    }
    drop(agent);
}

#[test]
fn words_are_checked_before_anything_is_destroyed() {
    let device = filled();
    for words in [&["purge"][..], &["purge", "--yes"]] {
        let said = refused_usage(&device, words);
        assert!(said.contains("--dead") && said.contains("--lane"), "{said}");
    }
    refused_usage(&device, &["requeue"]);
    refused_usage(&device, &["list", "--lane", "loud"]);
    let said = refused(&device, &["purge", "--lane", "alert"], 64);
    assert!(said.contains("2 events of lane alert") && said.contains("--yes"), "{said}");
    let said = refused(&device, &["show", "nobody"], 64);
    assert!(said.contains("`nobody`"), "{said}");
    refused(&device, &["requeue", "nobody"], 64);
    assert_eq!(json(&ask(&device, &["stats", "--json"]))["lanes"]["alert"]["waiting"], 2);
}

/// Usage that the parser itself refuses, and the first line of what it says.
#[track_caller]
fn refused_usage(device: &Device, words: &[&str]) -> String {
    let output = output(device, words);
    assert_eq!(output.status.code(), Some(64), "{words:?}");
    let said = String::from_utf8(output.stderr).expect("text");
    said.lines().take_while(|line| !line.starts_with("Usage")).collect()
}

#[test]
fn a_purge_is_told_and_spares_what_was_not_named() {
    let device = filled();
    let gone = json(&ask(&device, &["purge", "--lane", "telemetry", "--yes", "--json"]));
    assert_eq!((&gone["purged"], &gone["lanes"]["telemetry"]), (&1.into(), &1.into()));
    let told = |device: &Device| {
        let events = lines(&ask(device, &["export", "--lane", "status"]));
        let told = events.into_iter().filter(|e| e["type"] == "io.hark.outbox.events.evicted");
        told.map(|e| e["data"].clone()).collect::<Vec<_>>()
    };
    let first = told(&device);
    assert_eq!(first.len(), 1);
    assert_eq!((&first[0]["count"], &first[0]["lanes"]["telemetry"]), (&1.into(), &1.into()));
    assert_eq!(first[0]["ranges"][0]["source"], "/test");

    // The same through the agent, with more than one commit's worth.
    let _agent = start(&device);
    let batch: Vec<_> = (0..256).map(|n| event(&format!("n{n}"), "telemetry", "1")).collect();
    let batch = format!("[{}]", batch.join(","));
    for _ in 0..10 {
        support::agent::post(&device.socket(), "application/cloudevents-batch+json", &batch)
            .expect("taken");
    }
    assert_eq!(ask(&device, &["purge", "--lane", "telemetry", "--yes"]), "2560 events destroyed\n");
    assert_eq!(json(&ask(&device, &["stats", "--json"]))["lanes"]["telemetry"]["waiting"], 0);
    assert_eq!(json(&ask(&device, &["stats", "--json"]))["lanes"]["alert"]["waiting"], 2);
    let counts: u64 = told(&device).iter().filter_map(|data| data["count"].as_u64()).sum();
    assert_eq!(counts, 2561);
    assert_eq!(ask(&device, &["purge", "--lane", "alert", "--yes"]), "2 events destroyed\n");
}

/// Makes dead letters as the forwarder does.
fn bury(device: &Device, ids: &[(&str, Lane)]) {
    let store = SledStore::open(&device.outbox()).expect("open store");
    let mut outbox = Outbox::open(store).expect("open outbox");
    let now = WallTime { unix_ms: 1_795_000_000_000, state: ClockState::Synced };
    for (id, lane) in ids {
        let text = event(id, lane.as_str(), &format!("\"{}\"", "x".repeat(10_000)));
        let event = hark::event::json::parse(text.as_bytes()).expect("an event");
        let accepted = outbox.append(&[(*lane, event)], now).expect("accepted");
        let mut group = outbox.begin(now).expect("begin");
        assert!(group.deadletter(*lane, accepted[0].position, "too large").expect("dead"));
        group.commit().expect("commit");
    }
}

#[test]
fn dead_letters_are_listed_put_back_and_destroyed() {
    let device = Device::new(NOWHERE, "none");
    bury(
        &device,
        &[("dead-alert", Lane::Alert), ("dead-1", Lane::Status), ("dead-2", Lane::Telemetry)],
    );
    let mut agent = start(&device);
    let dead = |device: &Device| {
        let listed = lines(&ask(device, &["list", "--dead", "--json"]));
        assert!(listed.iter().all(|e| e["state"] == "dead-letter" && e["reason"].is_string()));
        let ids = listed.iter().map(|e| e["id"].as_str().unwrap_or_default().to_owned());
        ids.collect::<Vec<_>>()
    };
    assert_eq!(dead(&device), ["dead-alert", "dead-1", "dead-2"]);
    let table = ask(&device, &["list", "--dead"]);
    assert!(table.contains("dead letter: "), "{table}");
    assert!(ask(&device, &["show", "dead-1"]).contains("dead since"));
    assert_eq!(lines(&ask(&device, &["export", "--dead"])).len(), 3);

    assert_eq!(ask(&device, &["purge", "--dead", "--yes"]), "2 events destroyed\n");
    assert_eq!(dead(&device), ["dead-alert"], "an alert was not named");
    agent.wait_for_log(&["purged by hand"]);
    assert!(agent.stop().success());
    assert_eq!(dead(&device), ["dead-alert"]);

    let told = |what: &str| {
        let events = lines(&ask(&device, &["export", "--lane", "status"]));
        let of_part = |e: &&Value| e["data"]["part"] == "dead-letter";
        events.iter().filter(of_part).filter(|e| e["type"] == what).count()
    };
    assert_eq!(told("io.hark.device.fault.raised"), 1, "at the start, since one is there");

    // Off line: back into its lane, with its old sequence.
    assert_eq!(ask(&device, &["requeue", "dead-alert"]), "1 dead letter put back\n");
    let back = lines(&ask(&device, &["list", "--lane", "alert", "--json"]));
    assert_eq!(back.len(), 1);
    assert_eq!(
        (back[0]["state"].as_str(), back[0]["sequence"].as_str()),
        (Some("waiting"), Some("00000000000000000001"))
    );
    let said = refused(&device, &["requeue", "dead-alert"], 64);
    assert!(said.contains("no dead letter"), "{said}");
    assert_eq!(ask(&device, &["requeue", "--all"]), "0 dead letters put back\n");

    // Named, it goes, and with it the fault.
    bury(&device, &[("dead-again", Lane::Alert)]);
    let _agent = start(&device);
    wait_until("the fault is raised", || told("io.hark.device.fault.raised") == 2);
    assert_eq!(ask(&device, &["purge", "--lane", "alert", "--yes"]), "1 event destroyed\n");
    assert_eq!(
        ask(&device, &["purge", "--dead", "--lane", "alert", "--yes"]),
        "1 event destroyed\n"
    );
    wait_until("the fault is cleared", || told("io.hark.device.fault.cleared") == 1);
}

#[test]
fn what_is_published_and_unanswered_is_shown_as_in_flight() {
    let broker = Mosquitto::start();
    let device = Device::new(&broker.url(), "none");
    let mut agent = start(&device);
    agent.wait_for_log(&["connected over"]);
    wait_until("all is delivered", || json(&ask(&device, &["stats", "--json"]))["waiting"] == 0);
    broker.freeze();
    device.post(&event("flying", "alert", "1")).expect("taken");
    wait_until("it is in flight", || {
        let listed = lines(&ask(&device, &["list", "--json"]));
        listed.iter().any(|e| e["id"] == "flying" && e["state"] == "in-flight")
    });
    assert_eq!(json(&ask(&device, &["stats", "--json"]))["lanes"]["alert"]["in_flight"], 1);
}
