//! From a trigger to help, from outside: the agent as a process, mosquitto, kill -9, diallers.
#![allow(clippy::disallowed_methods, reason = "real processes need real time and real threads")]

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;
use support::agent::{Agent, Device};
use support::mosquitto::{Message, Mosquitto, Subscriber};
use support::{free_port, wait_until};

const ROUTE: &str = "[[ingest.route]]\ntype = \"cry.*\"\nlane = \"alert\"\nalarm = true\n[signal]\ntone = \"none\"\n";

fn json(message: &Message) -> Value {
    serde_json::from_slice(&message.payload).expect("JSON")
}

/// The events whose type ends so, each once.
fn of(all: &[Message], suffix: &str) -> Vec<Value> {
    let mut found: Vec<Value> = Vec::new();
    for event in all.iter().filter(|m| m.topic.contains("/events/")).map(json) {
        let fits = event["type"].as_str().is_some_and(|t| t.ends_with(suffix));
        if fits && !found.iter().any(|known| known["id"] == event["id"]) {
            found.push(event);
        }
    }
    found
}

fn wait_for(consumer: &Subscriber, suffix: &str, count: usize) -> Vec<Value> {
    let what = format!("{count} events {suffix}");
    of(&consumer.wait_for(&what, |all| of(all, suffix).len() >= count), suffix)
}

fn publish(broker: &Mosquitto, topic: &str, payload: &str) {
    let port = broker.port().to_string();
    let mut command = Command::new("mosquitto_pub");
    command.args(["-h", "127.0.0.1", "-p", &port, "-q", "1", "-t", topic, "-m", payload]);
    assert!(command.status().expect("mosquitto_pub").success());
}

fn command(broker: &Mosquitto, id: &str, members: &str) {
    let event = format!(r#"{{"specversion":"1.0","id":"{id}","source":"/care",{members}}}"#);
    publish(broker, "hark/test/commands", &event);
}

fn cry(device: &Device, id: &str) {
    let event = format!(r#"{{"specversion":"1.0","id":"{id}","source":"/t","type":"cry.help"}}"#);
    device.post(&event).expect("accepted");
}

/// An agent that is connected, listens to commands and can be cried to.
fn start(device: &Device) -> Agent {
    let mut agent = device.start();
    agent.wait_for_log(&["subscribed to what comes down"]);
    wait_until("the socket is there", || device.socket().exists());
    agent
}

#[test]
fn a_power_cut_within_the_window_still_raises_and_what_was_cancelled_before_does_not() {
    let broker = Mosquitto::start();
    let consumer = Subscriber::start(broker.port(), "hark/test/events/#");
    let device = Device::new(&broker.url(), "none");
    device.configure(&format!("[alarm]\ncancel_window = \"2s\"\n{ROUTE}"));

    // The control first: it was called off.
    let agent = start(&device);
    cry(&device, "first");
    let pending = wait_for(&consumer, "alarm.call.pending", 1);
    let cancelled = pending[0]["subject"].clone();
    command(&broker, "c1", r#""type":"io.hark.alarm.cancel""#);
    let over = wait_for(&consumer, "alarm.call.cancelled", 1);
    assert_eq!((&over[0]["subject"], &over[0]["causationid"]), (&cancelled, &"c1".into()));
    agent.kill();

    let agent = start(&device);
    cry(&device, "second");
    let pending = wait_for(&consumer, "alarm.call.pending", 2);
    let alarm = pending[1]["subject"].clone();
    assert_eq!(pending[1]["causationid"], "second");
    assert_eq!(pending[1]["data"]["triggers"][0]["kind"], "ingest");
    assert_eq!(of(&consumer.messages(), "alarm.call.raised").len(), 0);
    agent.kill();

    let _agent = device.start();
    let raised = wait_for(&consumer, "alarm.call.raised", 1);
    assert_eq!((raised.len(), &raised[0]["subject"]), (1, &alarm));
    assert_eq!(raised[0]["causationid"], pending[1]["id"]);
    assert_eq!(raised[0]["lane"], "alert");
    // By now the one that was called off would have been raised as well.
    let all = consumer.messages();
    assert_eq!(of(&all, "alarm.call.pending").len(), 2);
    assert_eq!(of(&all, "alarm.call.raised").len(), 1);
}

#[test]
fn every_command_has_one_answer_that_says_what_became_of_it() {
    let broker = Mosquitto::start();
    let consumer = Subscriber::start(broker.port(), "hark/test/events/#");
    let device = Device::new(&broker.url(), "none");
    device.configure(&format!("[alarm]\ncancel_window = \"0s\"\n{ROUTE}"));
    let _agent = start(&device);
    cry(&device, "cry");
    let raised = wait_for(&consumer, "alarm.call.raised", 1);
    let alarm = raised[0]["subject"].as_str().expect("an id").to_owned();

    command(&broker, "c1", r#""type":"alarm.cancel""#);
    let failed = wait_for(&consumer, "command.request.failed", 1);
    assert_eq!(
        (&failed[0]["correlationid"], &failed[0]["data"]["source"]),
        (&"c1".into(), &"/care".into())
    );
    assert!(failed[0]["data"]["reason"].as_str().expect("why").contains("is raised"));

    let by = format!(
        r#""type":"com.care.alarm.acknowledge","subject":"{alarm}","time":"2026-11-22T10:00:00Z","data":{{"by":"Anna","note":"on my way"}}"#
    );
    command(&broker, "c2", &by);
    let seen = wait_for(&consumer, "alarm.call.acknowledged", 1);
    let who = &seen[0]["data"]["by"];
    assert_eq!(
        (&who["who"], &who["name"], &who["at"]),
        (&"/care".into(), &"Anna".into(), &"2026-11-22T10:00:00Z".into())
    );
    command(&broker, "c3", r#""type":"alarm.resolve","subject":"another""#);
    wait_for(&consumer, "command.request.failed", 2);
    command(&broker, "c4", r#""type":"alarm.resolve""#);
    wait_for(&consumer, "alarm.call.resolved", 1);
    // The same again, and what is no command at all.
    command(&broker, "c4", r#""type":"alarm.resolve""#);
    command(&broker, "c5", r#""type":"alarm.burn""#);
    publish(&broker, "hark/test/commands", "resolve it");
    publish(&broker, "hark/test/commands", &" ".repeat(70_000));
    let rejected = wait_for(&consumer, "command.request.rejected", 3);
    assert_eq!(rejected[0]["correlationid"], "c5");
    assert_eq!(rejected[1].get("correlationid"), None);
    assert!(rejected[2]["data"]["reason"].as_str().expect("why").contains("over the limit"));
    let completed: Vec<_> = wait_for(&consumer, "command.request.completed", 2)
        .iter()
        .map(|event| event["correlationid"].as_str().expect("an id").to_owned())
        .collect();
    assert_eq!(completed, ["c2", "c4"]);

    // A test takes the same way and is marked all along.
    command(&broker, "c6", r#""type":"alarm.test""#);
    wait_for(&consumer, "command.request.completed", 3);
    for (suffix, place) in [("alarm.call.pending", 1), ("alarm.call.raised", 1)] {
        let events = wait_for(&consumer, suffix, 2);
        assert_eq!((&events[place]["testalarm"], events[0].get("testalarm")), (&true.into(), None));
    }
}

/// A TCP relay that can be told to let nothing more from the device through.
struct Relay {
    port: u16,
    muted: Arc<AtomicBool>,
}

impl Relay {
    fn start(target: u16) -> Self {
        let port = free_port();
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("bind");
        let muted = Arc::new(AtomicBool::new(false));
        let mute = Arc::clone(&muted);
        std::thread::spawn(move || {
            for device in listener.incoming().map_while(Result::ok) {
                let broker = TcpStream::connect(("127.0.0.1", target)).expect("connect");
                let (from, to) =
                    (device.try_clone().expect("clone"), broker.try_clone().expect("clone"));
                let mute = Arc::clone(&mute);
                std::thread::spawn(move || pump(from, to, || mute.load(Ordering::SeqCst)));
                std::thread::spawn(move || pump(broker, device, || false));
            }
        });
        Self { port, muted }
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, muted: impl Fn() -> bool) {
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        if !muted() && to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    to.shutdown(Shutdown::Both).ok();
    from.shutdown(Shutdown::Both).ok();
}

#[test]
fn a_command_whose_puback_is_lost_with_the_agent_is_carried_out_and_answered_once() {
    let broker = Mosquitto::start();
    let consumer = Subscriber::start(broker.port(), "hark/test/events/#");
    let relay = Relay::start(broker.port());
    let device = Device::new(&format!("mqtt://127.0.0.1:{}", relay.port), "none");
    device.configure(&format!("[alarm]\ncancel_window = \"0s\"\n{ROUTE}"));
    let mut agent = start(&device);
    relay.muted.store(true, Ordering::SeqCst);
    command(&broker, "c1", r#""type":"alarm.test""#);
    agent.wait_for_log(&["accepted", "command.request.completed"]);
    agent.kill();
    relay.muted.store(false, Ordering::SeqCst);

    let mut agent = start(&device);
    // The broker never had a PUBACK, so that it sends the command again.
    agent.wait_for_log(&["this command was answered before", "c1"]);
    wait_for(&consumer, "command.request.completed", 1);
    command(&broker, "c2", r#""type":"alarm.resolve""#);
    let completed = wait_for(&consumer, "command.request.completed", 2);
    assert_eq!(completed.len(), 2);
    let all = consumer.messages();
    assert_eq!((of(&all, "alarm.call.pending").len(), of(&all, "alarm.call.raised").len()), (1, 1));
    agent.kill();

    // Acknowledged by now: a third start does not see it again, and neither does the fourth.
    let mut agent = start(&device);
    command(&broker, "c3", r#""type":"alarm.test""#);
    agent.wait_for_log(&["accepted", "command.request.completed"]);
    assert!(
        !agent.log().iter().any(|line| line.contains("was answered before")),
        "{:?}",
        agent.log()
    );
}

#[test]
fn nobody_acknowledges_so_that_the_contacts_are_called_until_a_receipt_does() {
    let broker = Mosquitto::start();
    let consumer = Subscriber::start(broker.port(), "hark/test/events/#");
    let device = Device::new(&broker.url(), "none");
    let dialler = device.path().join("dial");
    let heard = device.path().join("heard");
    let script = format!("#!/bin/sh\n(echo \"$1\"; cat; echo) >> {}\nexit $2\n", heard.display());
    std::fs::write(&dialler, script).expect("script");
    std::fs::set_permissions(&dialler, std::fs::Permissions::from_mode(0o755)).expect("mode");
    let contact = |name: &str, status: u8| {
        format!(
            "[[alarm.contact]]\nname = \"{name}\"\ntimeout = \"1s\"\nexec = [{dialler:?}, \"{name} $(id)\", \"{status}\"]\n"
        )
    };
    device.configure(&format!(
        "[alarm]\ncancel_window = \"0s\"\nreceipt_timeout = \"1s\"\nrounds = 1\n{}{}{ROUTE}\
         [lanes.alert]\nconfirm = \"receipt\"\n",
        contact("Anna", 1),
        contact("Bert", 0),
    ));
    let mut agent = start(&device);
    cry(&device, "cry");
    let escalated = wait_for(&consumer, "alarm.call.escalated", 3);
    let of =
        |name: &str| escalated.iter().map(|event| event["data"][name].clone()).collect::<Vec<_>>();
    assert_eq!(of("contact"), ["Anna".into(), "Bert".into(), Value::Null]);
    assert_eq!(of("exhausted"), [false, false, true]);
    assert_eq!(escalated[1]["data"]["before"]["outcome"], "exit status 1");
    assert_eq!(escalated[2]["data"]["before"]["outcome"], "exit status 0");
    let heard = std::fs::read_to_string(&heard).expect("the dialler was run");
    let lines: Vec<_> = heard.lines().collect();
    assert_eq!(
        (lines[0], lines[2]),
        ("Anna $(id)", "Bert $(id)"),
        "no shell has read the arguments"
    );
    let alarm: Value = serde_json::from_str(lines[1]).expect("the alarm as JSON");
    assert_eq!((&alarm["alarm"], &alarm["testalarm"]), (&escalated[0]["subject"], &false.into()));

    // It stays open until the consumer says that it has the raised alarm.
    let raised = wait_for(&consumer, "alarm.call.raised", 1)[0]["id"].clone();
    let receipt = format!(
        r#"{{"specversion":"1.0","id":"r1","source":"/centre","type":"receipt.events.received","data":{{"lane":"alert","ids":[{raised}]}}}}"#
    );
    publish(&broker, "hark/test/receipts", &receipt);
    let seen = wait_for(&consumer, "alarm.call.acknowledged", 1);
    let by = &seen[0]["data"]["by"];
    assert_eq!((&by["via"], &by["who"]), (&"receipt".into(), &"/centre".into()));
    agent.wait_for_log(&["alarm", "acknowledged"]);
}

#[test]
fn a_flood_of_commands_is_bounded_and_counted_and_delays_no_alarm() {
    let broker = Mosquitto::start();
    let consumer = Subscriber::start(broker.port(), "hark/test/events/#");
    let device = Device::new(&broker.url(), "none");
    device.configure(&format!("[alarm]\ncancel_window = \"0s\"\n{ROUTE}"));
    let mut agent = start(&device);
    let file = device.path().join("flood");
    let line = |n: usize| {
        format!(r#"{{"specversion":"1.0","id":"f{n}","source":"/f","type":"alarm.burn"}}"#)
    };
    let flood: Vec<_> = (0..80).map(line).collect();
    std::fs::write(&file, flood.join("\n") + "\n").expect("write");
    let mut pub_command = Command::new("mosquitto_pub");
    let port = broker.port().to_string();
    pub_command.args(["-h", "127.0.0.1", "-p", &port, "-q", "1", "-t", "hark/test/commands", "-l"]);
    pub_command.stdin(std::fs::File::open(&file).expect("open"));
    assert!(pub_command.status().expect("mosquitto_pub").success());
    cry(&device, "cry");
    wait_for(&consumer, "alarm.call.raised", 1);
    agent.wait_for_log(&["too many commands", "dropped=20"]);
    let answered = of(&consumer.messages(), "command.request.rejected").len();
    assert!((1..60).contains(&answered), "{answered} answers");
    // The next one that is taken says how many were not.
    wait_until("a token is there again", || {
        command(&broker, &format!("late{}", agent.log().len()), r#""type":"alarm.burn""#);
        of(&consumer.messages(), "command.request.rejected")
            .iter()
            .any(|event| event["data"]["reason"].to_string().contains("were dropped"))
    });
}

/// Writes what the kernel writes for a key: a `struct input_event`.
fn key(fifo: &mut std::fs::File, value: i32) {
    let mut event = vec![0; size_of::<u64>() * 2];
    event.extend(1u16.to_ne_bytes());
    event.extend(169u16.to_ne_bytes());
    event.extend(value.to_ne_bytes());
    fifo.write_all(&event).expect("write");
}

fn short_press(fifo: &mut std::fs::File) {
    key(fifo, 1);
    std::thread::sleep(std::time::Duration::from_millis(80));
    key(fifo, 0);
}

#[test]
fn a_button_alarms_calls_off_and_raises_at_once_and_the_light_shows_it() {
    let broker = Mosquitto::start();
    let consumer = Subscriber::start(broker.port(), "hark/test/events/#");
    let device = Device::new(&broker.url(), "none");
    let fifo = device.path().join("event0");
    assert!(Command::new("mkfifo").arg(&fifo).status().expect("mkfifo").success());
    let led = device.path().join("led");
    std::fs::create_dir(&led).expect("led");
    for (name, content) in
        [("brightness", "0"), ("max_brightness", "255"), ("trigger", "[none] mmc0")]
    {
        std::fs::write(led.join(name), content).expect("led");
    }
    let lit = || std::fs::read_to_string(led.join("brightness")).expect("brightness");
    device.configure(&format!(
        "[[button]]\nname = \"call\"\nevdev = {{ device = {fifo:?}, key = \"KEY_PHONE\" }}\n\
         [alarm]\ncancel_window = \"1h\"\n[signal]\nled = {led:?}\ntone = \"none\"\n"
    ));
    let mut agent = device.start();
    agent.wait_for_log(&["watching the button", "call"]);
    let open = || std::fs::OpenOptions::new().write(true).open(&fifo).expect("open");
    let mut down = open();
    short_press(&mut down);
    let pressed = wait_for(&consumer, "button.press.detected", 1);
    assert_eq!(
        (&pressed[0]["subject"], &pressed[0]["data"]["press"]),
        (&"call".into(), &"short".into())
    );
    let pending = wait_for(&consumer, "alarm.call.pending", 1);
    assert_eq!(pending[0]["causationid"], pressed[0]["id"]);
    wait_until("the light is on", || lit() == "255");
    wait_until("and blinks", || lit() == "0");
    short_press(&mut down);
    let cancelled = wait_for(&consumer, "alarm.call.cancelled", 1);
    assert_eq!(cancelled[0]["data"]["by"]["who"], "call");
    // A long press counts while the button is still down.
    key(&mut down, 1);
    let raised = wait_for(&consumer, "alarm.call.raised", 1);
    assert_ne!(raised[0]["subject"], pending[0]["subject"]);
    key(&mut down, 0);
    // The device goes away and comes back.
    drop(down);
    let fault =
        |events: &[Value]| events.iter().any(|event| event["data"]["part"] == "button.call");
    consumer.wait_for("a fault", |all| fault(&of(all, "device.fault.raised")));
    let mut down = open();
    consumer.wait_for("its end", |all| fault(&of(all, "device.fault.cleared")));
    short_press(&mut down);
    wait_for(&consumer, "button.press.detected", 4);
}

/// An ALSA output that writes what is played, 48 kHz mono of 16 bits, into a FIFO.
const ALSA: &str = r#"
pcm.nothing { type null }
pcm.recorder { type file slave.pcm "nothing" file "@FIFO@" format "raw" }
pcm.!default { type plug slave { pcm "recorder" format S16_LE rate 48000 channels 1 } }
ctl.!default { type null }
"#;
const RATE_HZ: usize = 48_000;

/// Reads a second of sound at the pace of real time; less if the output was closed before.
fn listen(fifo: &mut std::fs::File) -> Vec<f32> {
    let mut samples = Vec::new();
    let mut bytes = vec![0; RATE_HZ / 10 * 2];
    for _ in 0..10 {
        let began = std::time::Instant::now();
        if fifo.read_exact(&mut bytes).is_err() {
            break;
        }
        let read =
            bytes.chunks_exact(2).map(|b| f32::from(i16::from_le_bytes([b[0], b[1]])) / 32768.0);
        samples.extend(read);
        let pace = std::time::Duration::from_millis(100);
        std::thread::sleep(pace.saturating_sub(began.elapsed()));
    }
    samples
}

/// The pitches of pieces of 50 ms, and whether some were silent.
fn pitches(samples: &[f32]) -> (Vec<usize>, bool) {
    let (mut found, mut silent) = (Vec::new(), false);
    for piece in samples.chunks_exact(RATE_HZ / 20) {
        silent |= piece.iter().all(|sample| sample.abs() < 0.01);
        if piece.iter().any(|sample| sample.abs() > 0.5) {
            found.push(piece.windows(2).filter(|w| w[0] < 0.0 && w[1] >= 0.0).count() * 20);
        }
    }
    (found, silent)
}

#[test]
fn a_pending_alarm_is_heard_until_it_is_called_off() {
    let broker = Mosquitto::start();
    let consumer = Subscriber::start(broker.port(), "hark/test/events/#");
    let device = Device::new(&broker.url(), "none");
    let fifo = device.path().join("sound");
    assert!(Command::new("mkfifo").arg(&fifo).status().expect("mkfifo").success());
    let asound = device.path().join("asound.conf");
    let conf = ALSA.replace("@FIFO@", &fifo.display().to_string());
    std::fs::write(&asound, conf).expect("asound.conf");
    device.configure("[alarm]\ncancel_window = \"1h\"\n");
    let mut run = device.command();
    run.env("ALSA_CONFIG_PATH", &asound);
    let mut agent = Agent::spawn(run);
    agent.wait_for_log(&["subscribed to what comes down"]);
    command(&broker, "c1", r#""type":"alarm.test""#);
    // Blocks until the output is opened.
    let opening = std::thread::spawn(move || std::fs::File::open(&fifo).expect("open the FIFO"));
    wait_until("the output is opened", || opening.is_finished());
    let mut sound = opening.join().expect("open");
    let heard: Vec<f32> = (0..3).flat_map(|_| listen(&mut sound)).collect();
    let (found, silent) = pitches(&heard);
    for wanted in [880, 660] {
        assert!(found.iter().any(|hz| hz.abs_diff(wanted) <= 20), "{wanted} Hz in {found:?}");
    }
    assert!(silent, "beeps have pauses");
    command(&broker, "c2", r#""type":"alarm.cancel""#);
    wait_for(&consumer, "alarm.call.cancelled", 1);
    // The output is closed once there is nothing to hear.
    assert!((0..30).any(|_| listen(&mut sound).is_empty()), "it goes on");
    assert!(
        !of(&consumer.messages(), "device.fault.raised")
            .iter()
            .any(|event| event["data"]["part"] == "signal.tone")
    );
}

/// The steps that an alarm may take from each state.
fn step(state: &str, event: &Value, exhausted: bool) -> Option<&'static str> {
    let suffix = event["type"].as_str()?.rsplit('.').next()?;
    match (state, suffix) {
        ("none", "pending") => Some("pending"),
        ("pending" | "acknowledged", "raised") => Some("raised"),
        ("raised", "raised") if exhausted => Some("raised"),
        ("raised", "escalated") if !exhausted => Some("raised"),
        ("raised", "acknowledged") => Some("acknowledged"),
        ("acknowledged", "resolved") => Some("over"),
        _ => None,
    }
}

/// Cries, commands and kill -9 at random moments: of every cry that was accepted there is an alarm, every alarm takes its
/// steps in order and once, and in the end all are over.
#[test]
fn no_alarm_is_lost_or_doubled_by_kills_at_any_moment() {
    let broker = Mosquitto::start();
    let consumer = Subscriber::start(broker.port(), "hark/test/events/#");
    let device = Device::new(&broker.url(), "none");
    device.configure(&format!(
        "[alarm]\ncancel_window = \"200ms\"\nreceipt_timeout = \"1s\"\nagain_after = \"1s\"\nrounds = 1\n\
         [[alarm.contact]]\nname = \"Anna\"\ntimeout = \"1s\"\nexec = [\"/bin/true\"]\n{ROUTE}"
    ));
    let seed = std::env::var("HARK_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(11);
    println!("HARK_SEED={seed}");
    let mut rng = hark::clock::Rng::from_seed(seed);
    let (mut tried, mut accepted) = (0, 0);
    for round in 0..12 {
        let agent = device.start();
        wait_until("the socket answers", || {
            std::os::unix::net::UnixStream::connect(device.socket()).is_ok()
        });
        let (moment, kind) = (rng.u64() % 700, rng.u64() % 3);
        let event = format!(
            r#"{{"specversion":"1.0","id":"cry-{round}","source":"/t","type":"cry.help"}}"#
        );
        let socket = device.socket();
        let crying = std::thread::spawn(move || {
            support::agent::post(&socket, "application/cloudevents+json", &event).is_ok()
        });
        if kind == 0 {
            command(&broker, &format!("a{round}"), r#""type":"alarm.acknowledge""#);
        }
        if kind == 1 {
            command(&broker, &format!("r{round}"), r#""type":"alarm.resolve""#);
        }
        std::thread::sleep(std::time::Duration::from_millis(moment));
        agent.kill();
        tried += 1;
        accepted += u64::from(crying.join().expect("no panic"));
    }
    let _agent = start(&device);
    let open = |all: &[Message]| {
        let opened = of(all, "alarm.call.pending");
        let over = of(all, "alarm.call.resolved");
        opened.iter().filter(|o| !over.iter().any(|r| r["subject"] == o["subject"])).count()
    };
    let mut number = 0;
    wait_until("all alarms are over", || {
        number += 1;
        command(&broker, &format!("end{number}"), r#""type":"alarm.resolve""#);
        std::thread::sleep(std::time::Duration::from_millis(200));
        open(&consumer.messages()) == 0
            && !of(&consumer.messages(), "alarm.call.pending").is_empty()
    });

    let all = consumer.messages();
    // As they were accepted: the broker may have them in another order after a reconnect.
    let mut events: Vec<Value> =
        ["pending", "raised", "escalated", "acknowledged", "resolved", "cancelled"]
            .iter()
            .flat_map(|name| of(&all, &format!("alarm.call.{name}")))
            .collect();
    events.sort_by_key(|event| event["sequence"].as_str().expect("a sequence").to_owned());
    let mut alarms: std::collections::BTreeMap<String, (&str, bool, u64)> = Default::default();
    for event in &events {
        let id = event["subject"].as_str().expect("an id").to_owned();
        let (state, exhausted, _) = alarms.get(&id).copied().unwrap_or(("none", false, 0));
        let next = step(state, event, exhausted).unwrap_or_else(|| panic!("{event} in {state}"));
        let total = event["data"]["triggers_total"].as_u64().expect("a count");
        alarms.insert(id, (next, event["data"]["exhausted"] == true, total));
    }
    assert!(alarms.values().all(|(state, ..)| *state == "over"), "{alarms:?}");
    let told: u64 = alarms.values().map(|(.., total)| total).sum();
    assert!((accepted..=tried).contains(&told), "{accepted} accepted, {tried} tried, {told} told");
    // Every command that was carried out or refused was answered once, whatever was killed.
    let mut answers = std::collections::BTreeMap::new();
    for suffix in ["completed", "failed", "rejected"] {
        for event in of(&all, &format!("command.request.{suffix}")) {
            *answers.entry(event["correlationid"].to_string()).or_insert(0) += 1;
        }
    }
    assert!(answers.values().all(|count| *count == 1), "{answers:?}");
}

#[test]
fn a_holiday_is_remembered_before_it_is_answered_and_refused_where_nothing_is_watched_over() {
    let broker = Mosquitto::start();
    let consumer = Subscriber::start(broker.port(), "hark/test/events/#");
    let device = Device::new(&broker.url(), "none");
    let agent = start(&device);
    command(&broker, "h-1", r#""type":"activity.away""#);
    let refused = &wait_for(&consumer, "command.request.failed", 1)[0];
    assert_eq!(refused["correlationid"], "h-1");
    assert!(refused["data"]["reason"].to_string().contains("no sensor shows activity"));
    assert!(agent.stop().success());

    let motion = device.path().join("motion");
    std::fs::write(&motion, "0\n").expect("a file");
    device.configure(&format!(
        "[[sensor]]\nname = \"hall\"\ndriver = \"file\"\npath = {motion:?}\n\
         quantity = \"motion\"\nunit = \"1\"\nactivity = \"rise\"\nstale_after = \"1h\"\n"
    ));
    let agent = start(&device);
    command(&broker, "h-2", r#""type":"activity.away","data":{"until":"2100-01-01T00:00:00Z"}"#);
    let done = &wait_for(&consumer, "command.request.completed", 1)[0];
    assert_eq!(done["correlationid"], "h-2");
    let file = device.outbox().with_extension("activity");
    assert!(file.exists(), "{file:?}");
    command(&broker, "h-3", r#""type":"activity.home""#);
    let done = wait_for(&consumer, "command.request.completed", 2);
    assert_eq!(done[1]["correlationid"], "h-3");
    assert!(agent.stop().success());
}
