//! SIGHUP, from outside: what has changed takes effect, what is wrong is said, and nothing is lost meanwhile.
#![allow(clippy::disallowed_methods, reason = "real processes need real time and real threads")]

mod support;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::agent::{Agent, Device};
use support::mosquitto::{Message, Mosquitto, Options, Subscriber};
use support::wait_until;

const ROUTE: &str = "[[ingest.route]]\ntype = \"cry.*\"\nlane = \"alert\"\nalarm = true\n[signal]\ntone = \"none\"\n";
const IN_FORCE: &str = "the configuration is in force";
const REFUSED: &str = "the configuration is not taken over";

/// The events whose type ends so.
fn of(all: &[Message], suffix: &str) -> Vec<Value> {
    let events = all.iter().filter(|m| m.topic.contains("/events/"));
    let events = events.filter_map(|m| serde_json::from_slice::<Value>(&m.payload).ok());
    events.filter(|event| event["type"].as_str().is_some_and(|t| t.ends_with(suffix))).collect()
}

fn wait_for(consumer: &Subscriber, suffix: &str, count: usize) -> Vec<Value> {
    let what = format!("{count} events {suffix}");
    of(&consumer.wait_for(&what, |all| of(all, suffix).len() >= count), suffix)
}

fn is_named(message: &Message, id: &str) -> bool {
    String::from_utf8_lossy(&message.payload).contains(&format!("\"id\":\"{id}\""))
}

fn event(id: &str, event_type: &str) -> String {
    format!(r#"{{"specversion":"1.0","id":"{id}","source":"/t","type":"{event_type}"}}"#)
}

fn start(device: &Device) -> Agent {
    let mut agent = device.start();
    agent.wait_for_log(&["subscribed to what comes down"]);
    agent
}

/// Writes the configuration anew with one text in the place of another.
fn change(device: &Device, from: &str, to: &str) {
    let text = fs::read_to_string(device.config()).expect("config");
    assert!(text.contains(from), "{from} in {text}");
    fs::write(device.config(), text.replacen(from, to, 1)).expect("config");
}

/// SIGHUP; returns the line that says what came of it.
fn reload(agent: &Agent, outcome: &str) -> String {
    let lines =
        || agent.log().into_iter().filter(|line| line.contains(outcome)).collect::<Vec<_>>();
    let before = lines().len();
    agent.hang_up();
    wait_until(outcome, || lines().len() > before);
    lines().pop().expect("just seen")
}

fn ms(event: &Value) -> i64 {
    let time = event["time"].as_str().expect("time");
    chrono::DateTime::parse_from_rfc3339(time).expect("RFC 3339").timestamp_millis()
}

#[test]
fn the_uplink_goes_to_another_broker_a_sensor_comes_and_a_lane_waits_for_receipts() {
    let (first, second) = (Mosquitto::start(), Mosquitto::start());
    let presence = Subscriber::start(first.port(), "hark/test/presence");
    let consumer = Subscriber::start(second.port(), "hark/test/#");
    let device = Device::new(&first.url(), "none");
    let agent = start(&device);
    change(&device, &first.url(), &second.url());
    let value = device.path().join("value");
    fs::write(&value, "21500\n").expect("value");
    device.configure(&format!(
        "[lanes.telemetry]\nconfirm = \"receipt\"\n[[sensor]]\nname = \"room\"\ndriver = \"file\"\npath = {value:?}\n\
         quantity = \"temperature\"\nunit = \"Cel\"\nscale = 0.001\ninterval = \"1h\"\nmax_silence = \"1h\"\n"
    ));
    let waiting = || {
        let mut hark = support::agent::hark();
        let output = hark.args(["status", "--json", "--socket"]).arg(device.socket()).output();
        let status: Value = serde_json::from_slice(&output.expect("status").stdout).expect("JSON");
        status["outbox"]["waiting"]["telemetry"].as_u64().expect("a number")
    };
    // The control: a changed file alone changes nothing.
    device.post(&event("before", "t")).expect("accepted");
    // Otherwise it would rightly go to the second as well.
    wait_until("the first broker has it", || waiting() == 0);
    let line = reload(&agent, IN_FORCE);
    println!("{line}");
    assert!(line.contains("sensors (") && line.contains("uplink ("), "{line}");
    assert!(!line.contains("button") && !line.contains("ingest"), "{line}");
    let reading = wait_for(&consumer, "sensor.reading.recorded", 1);
    assert_eq!(reading[0]["data"]["value"], 21.5);
    assert!(!consumer.messages().iter().any(|m| is_named(m, "before")));
    let said = presence.wait_for("farewell", |all| all.len() >= 2);
    assert!(String::from_utf8_lossy(&said[1].payload).contains("offline"));
    // Published, and kept until its receipt.
    device.post(&event("kept", "t")).expect("accepted");
    consumer.wait_for("kept", |all| all.iter().any(|m| is_named(m, "kept")));
    assert_eq!(waiting(), 2, "the reading and the event");
    let receipt = r#"{"specversion":"1.0","id":"r","source":"/c","type":"io.hark.receipt.events.received","data":{"lane":"telemetry","ids":["kept"]}}"#;
    publish(&second, "hark/test/receipts", receipt);
    wait_until("the receipt is taken", || waiting() == 1);
    // One session all the time.
    assert_eq!(of(&consumer.messages(), "device.session.started").len(), 0);
    assert_eq!(of(&consumer.messages(), "device.session.stopped").len(), 0);
    assert!(agent.stop().success());
}

#[test]
fn a_wrong_configuration_is_told_line_by_line_and_the_old_one_stays_in_force() {
    let broker = Mosquitto::start();
    let consumer = Subscriber::start(broker.port(), "hark/test/events/#");
    let device = Device::new(&broker.url(), "none");
    let agent = start(&device);
    let well = fs::read_to_string(device.config()).expect("config");
    device.configure("[uplink2]\n[alarm]\ncancel_window = \"soon\"\n");
    reload(&agent, REFUSED);
    wait_until("both are named", || {
        let log = agent.log();
        let line = |what: &str| log.iter().any(|l| l.contains(REFUSED) && l.contains(what));
        line("uplink2") && line("cancel_window")
    });
    let raised = wait_for(&consumer, "device.fault.raised", 1);
    assert_eq!(raised[0]["data"]["part"], "config");
    let problem = raised[0]["data"]["problem"].as_str().expect("text");
    assert!(problem.contains("cancel_window") && problem.contains("uplink2"), "{problem}");
    // What can be read and cannot be used is no better: the file of a secret that is not there.
    fs::write(device.config(), well.replace("[ingest]", "password_file = \"/nowhere\"\n[ingest]"))
        .expect("config");
    let line = reload(&agent, REFUSED);
    assert!(line.contains("uplink.password_file"), "{line}");
    wait_for(&consumer, "device.fault.raised", 2);
    device.post(&event("goes-on", "t")).expect("accepted");
    consumer.wait_for("goes on", |all| all.iter().any(|m| is_named(m, "goes-on")));

    fs::write(device.config(), well).expect("config");
    let line = reload(&agent, IN_FORCE);
    assert!(line.contains("no part was stopped"), "{line}");
    wait_for(&consumer, "device.fault.cleared", 2);
    assert!(agent.stop().success());
}

#[test]
fn a_pending_alarm_is_raised_at_its_time_whatever_is_reloaded_and_the_next_by_the_new_window() {
    let broker = Mosquitto::start();
    let consumer = Subscriber::start(broker.port(), "hark/test/events/#");
    let device = Device::new(&broker.url(), "none");
    device.configure(&format!("[alarm]\ncancel_window = \"3s\"\n{ROUTE}"));
    let agent = start(&device);
    device.post(&event("first", "cry.help")).expect("accepted");
    wait_for(&consumer, "alarm.call.pending", 1);
    // All that can be exchanged beside it.
    change(&device, "cancel_window = \"3s\"", "cancel_window = \"500ms\"");
    change(&device, "[ingest]", "keepalive = \"20s\"\n[ingest]");
    change(&device, "[signal]", &format!("[signal]\nled = {:?}", device.path().join("led")));
    let fifo = device.path().join("event0");
    assert!(Command::new("mkfifo").arg(&fifo).status().expect("mkfifo").success());
    device.configure(&format!(
        "[[button]]\nname = \"call\"\nevdev = {{ device = {fifo:?}, key = \"KEY_PHONE\" }}\n"
    ));
    let line = reload(&agent, IN_FORCE);
    println!("{line}");
    for part in ["signal (", "button (", "uplink ("] {
        assert!(line.contains(part), "{part} in {line}");
    }
    assert_eq!(of(&consumer.messages(), "alarm.call.raised").len(), 0, "reloaded in time");
    let raised = wait_for(&consumer, "alarm.call.raised", 1);
    let pending = wait_for(&consumer, "alarm.call.pending", 1);
    assert_eq!(raised[0]["subject"], pending[0]["subject"]);
    let window = ms(&raised[0]) - ms(&pending[0]);
    assert!((3_000..3_900).contains(&window), "{window} ms");

    // The control: the window did change, for what comes after.
    command(&broker, r#"{"specversion":"1.0","id":"c","source":"/care","type":"alarm.resolve"}"#);
    wait_for(&consumer, "alarm.call.resolved", 1);
    device.post(&event("second", "cry.help")).expect("accepted");
    let (raised, pending) =
        (wait_for(&consumer, "alarm.call.raised", 2), wait_for(&consumer, "alarm.call.pending", 2));
    let window = ms(&raised[1]) - ms(&pending[1]);
    assert!((500..1_400).contains(&window), "{window} ms");
    assert!(agent.stop().success());
}

fn command(broker: &Mosquitto, payload: &str) {
    publish(broker, "hark/test/commands", payload);
}

fn publish(broker: &Mosquitto, topic: &str, payload: &str) {
    let port = broker.port().to_string();
    let mut command = Command::new("mosquitto_pub");
    command.args(["-h", "127.0.0.1", "-p", &port, "-q", "1", "-t", topic, "-m", payload]);
    assert!(command.status().expect("mosquitto_pub").success());
}

#[test]
fn a_dialler_at_work_is_not_interrupted_by_a_reload_and_is_by_a_restart() {
    let broker = Mosquitto::start();
    let consumer = Subscriber::start(broker.port(), "hark/test/events/#");
    let device = Device::new(&broker.url(), "none");
    let (dial, dialled) = (device.path().join("dial"), device.path().join("dialled"));
    let script =
        format!("#!/bin/sh\necho begins >> {0}\nsleep 2\necho ends >> {0}\n", dialled.display());
    fs::write(&dial, script).expect("script");
    fs::set_permissions(&dial, fs::Permissions::from_mode(0o755)).expect("mode");
    device.configure(&format!(
        "[alarm]\ncancel_window = \"0s\"\nreceipt_timeout = \"1s\"\n\
         [[alarm.contact]]\nname = \"Anna\"\ntimeout = \"1h\"\nexec = [{dial:?}]\n{ROUTE}"
    ));
    let agent = start(&device);
    let lines = || {
        fs::read_to_string(&dialled)
            .unwrap_or_default()
            .lines()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    device.post(&event("cry", "cry.help")).expect("accepted");
    wait_until("it dials", || lines() == ["begins"]);
    change(&device, "timeout = \"1h\"", "timeout = \"2h\"");
    change(&device, "[ingest]", "keepalive = \"20s\"\n[ingest]");
    reload(&agent, IN_FORCE);
    assert_eq!(lines(), ["begins"], "reloaded in time");
    wait_until("it has dialled", || lines() == ["begins", "ends"]);
    assert_eq!(of(&consumer.messages(), "alarm.call.escalated").len(), 1);

    // The control: a restart in the same place is an interruption.
    command(&broker, r#"{"specversion":"1.0","id":"c","source":"/care","type":"alarm.resolve"}"#);
    wait_for(&consumer, "alarm.call.resolved", 1);
    device.post(&event("cry again", "cry.help")).expect("accepted");
    wait_until("it dials again", || lines().len() == 3);
    assert!(agent.stop().success());
    let _agent = start(&device);
    wait_until("it dials anew", || lines() == ["begins", "ends", "begins", "begins", "ends"]);
}

#[test]
fn events_are_taken_all_the_time_while_routes_uplink_and_parts_are_exchanged() {
    let broker = Mosquitto::start();
    let device = Device::new(&broker.url(), "none");
    device.configure(
        "[[ingest.route]]\ntype = \"t\"\nlane = \"status\"\n[lanes.status]\ncoalesce = \"1ms\"\n",
    );
    let agent = start(&device);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let posting = scope.spawn(|| {
            let (mut count, mut longest) = (0, Duration::ZERO);
            while !over.load(Ordering::SeqCst) {
                let began = Instant::now();
                device.post(&event(&format!("e{count}"), "t")).expect("accepted at any time");
                (count, longest) = (count + 1, longest.max(began.elapsed()));
            }
            (count, longest)
        });
        for round in 0..6 {
            let (from, to) = [("status", "telemetry"), ("telemetry", "status")][round % 2];
            change(&device, &format!("lane = \"{from}\""), &format!("lane = \"{to}\""));
            let keepalive = format!("keepalive = \"{}s\"\n", 20 + round);
            let text = fs::read_to_string(device.config()).expect("config");
            let text: String = text
                .lines()
                .filter(|l| !l.starts_with("keepalive"))
                .map(|l| l.to_owned() + "\n")
                .collect();
            fs::write(device.config(), text.replacen("[ingest]", &(keepalive + "[ingest]"), 1))
                .expect("config");
            reload(&agent, IN_FORCE);
            let answer = device.post(&event(&format!("lane{round}"), "t")).expect("accepted");
            assert!(answer.contains(&format!("\"lane\":\"{to}\"")), "{answer}");
        }
        over.store(true, Ordering::SeqCst);
        let (count, longest) = posting.join().expect("no post was refused");
        println!("{count} events during six reloads, the slowest took {} ms", longest.as_millis());
        assert!(count > 6);
    });
    for line in agent.log().iter().filter(|line| line.contains(IN_FORCE)) {
        println!("{line}");
    }
    assert!(agent.stop().success());
}

#[test]
fn a_password_that_has_changed_is_used_though_the_configuration_has_not() {
    let broker =
        Mosquitto::with(Options { users: vec![("old", "1"), ("new", "2")], ..Options::default() });
    let device = Device::new(&broker.url(), "none");
    let file = device.path().join("password");
    fs::write(&file, "1").expect("password");
    change(&device, "[ingest]", &format!("username = \"old\"\npassword_file = {file:?}\n[ingest]"));
    let agent = start(&device);
    // Nothing has changed: nothing happens, the session stands.
    let line = reload(&agent, IN_FORCE);
    assert!(line.contains("no part was stopped"), "{line}");
    change(&device, "username = \"old\"", "username = \"new\"");
    fs::write(&file, "2").expect("password");
    let line = reload(&agent, IN_FORCE);
    assert!(line.contains("uplink ("), "{line}");
    let connected =
        |agent: &Agent| agent.log().iter().filter(|l| l.contains("connected over")).count();
    wait_until("connected as the other", || connected(&agent) == 2);
    // Only the file: wrong now, and it is tried.
    fs::write(&file, "wrong").expect("password");
    let line = reload(&agent, IN_FORCE);
    assert!(line.contains("uplink ("), "{line}");
    wait_until("refused", || agent.log().iter().any(|line| line.contains("refused")));
    assert!(agent.stop().success());
}

#[test]
fn who_the_device_is_changes_with_a_restart_only_and_that_is_said() {
    let broker = Mosquitto::start();
    let consumer = Subscriber::start(broker.port(), "hark/#");
    let device = Device::new(&broker.url(), "none");
    let agent = start(&device);
    change(&device, "id = \"test\"", "id = \"other\"");
    change(&device, "[ingest]", "keepalive = \"20s\"\n[ingest]");
    let line = reload(&agent, IN_FORCE);
    assert!(line.contains("uplink ("), "all else is in force: {line}");
    let raised = wait_for(&consumer, "device.fault.raised", 1);
    let problem = raised[0]["data"]["problem"].as_str().expect("text");
    assert!(problem.contains("device.id") && problem.contains("restarted"), "{problem}");
    assert!(consumer.messages().iter().all(|m| m.topic.starts_with("hark/test/")));
    assert!(agent.stop().success());
    let _agent = start(&device);
    consumer.wait_for("the other", |all| all.iter().any(|m| m.topic.starts_with("hark/other/")));
}

/// A short press, in what the kernel writes for a key: `struct input_event`s.
fn press(fifo: &mut fs::File) {
    for value in [1i32, 0] {
        let mut event = vec![0; size_of::<u64>() * 2];
        event.extend([1u16, 169].map(u16::to_ne_bytes).concat());
        event.extend(value.to_ne_bytes());
        fifo.write_all(&event).expect("write");
        std::thread::sleep(Duration::from_millis(80));
    }
}

#[test]
fn a_button_whose_settings_change_is_there_again_at_once_and_one_that_is_taken_away_is_not() {
    let broker = Mosquitto::start();
    let consumer = Subscriber::start(broker.port(), "hark/test/events/#");
    let device = Device::new(&broker.url(), "none");
    let (fifo, value) = (device.path().join("event0"), device.path().join("value"));
    assert!(Command::new("mkfifo").arg(&fifo).status().expect("mkfifo").success());
    fs::write(&value, "1\n").expect("value");
    device.configure(&format!(
        "[alarm]\ncancel_window = \"1h\"\n[signal]\ntone = \"none\"\n\
         [[sensor]]\nname = \"room\"\ndriver = \"file\"\npath = {value:?}\nquantity = \"count\"\nunit = \"1\"\n\
         [[button]]\nname = \"gone\"\nevdev = {{ device = \"/nowhere\", key = \"KEY_PHONE\" }}\n\
         [[button]]\nname = \"call\"\nevdev = {{ device = {fifo:?}, key = \"KEY_PHONE\" }}\n"
    ));
    let mut agent = start(&device);
    agent.wait_for_log(&["watching the button", "call"]);
    // Open for reading as well, so that it outlives the reload.
    let mut key = fs::File::options().read(true).write(true).open(&fifo).expect("open");
    wait_for(&consumer, "device.fault.raised", 1);
    change(
        &device,
        "[[button]]\nname = \"gone\"",
        "[[button]]\nstuck_after = \"30s\"\nname = \"call\"",
    );
    change(&device, "\"/nowhere\"", &format!("{fifo:?}"));
    let text = fs::read_to_string(device.config()).expect("config");
    let last = text.rfind("[[button]]").expect("a button");
    fs::write(device.config(), &text[..last]).expect("config");
    change(&device, "unit = \"1\"\n", "unit = \"1\"\ninterval = \"30s\"\n");
    let line = reload(&agent, IN_FORCE);
    println!("{line}");
    assert!(line.contains("button (") && line.contains("sensors ("), "{line}");
    let cleared = wait_for(&consumer, "device.fault.cleared", 1);
    assert_eq!(cleared[0]["data"]["part"], "button.gone");
    press(&mut key);
    let pressed = wait_for(&consumer, "button.press.detected", 1);
    assert_eq!(pressed[0]["subject"], "call");
    wait_for(&consumer, "alarm.call.pending", 1);
    assert!(agent.stop().success());
}
