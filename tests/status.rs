//! What the agent says of itself while it works, loses its broker, or finds its port taken.
#![allow(clippy::disallowed_methods, reason = "real processes and sockets need real time")]

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use support::agent::{Agent, Device, hark};
use support::mosquitto::{Mosquitto, Subscriber};
use support::{free_port, wait_until};

fn start(device: &Device, port: u16, more: &[(&str, &str)]) -> Agent {
    let mut command = device.command();
    command.env("HARK__OPS__LISTEN", format!("127.0.0.1:{port}"));
    command.envs(more.iter().copied());
    Agent::spawn(command)
}

/// Status code and body; `None` while nobody answers.
fn get(port: u16, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: hark\r\nconnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let code = head.split(' ').nth(1)?.parse().ok()?;
    Some((code, body.to_owned()))
}

fn code(port: u16, path: &str) -> Option<u16> {
    get(port, path).map(|(code, _)| code)
}

#[test]
fn a_device_is_ready_while_a_broker_is_connected_and_healthy_without_one() {
    let mut broker = Mosquitto::start();
    let device = Device::new(&broker.url(), "none");
    let port = free_port();
    let agent = start(&device, port, &[]);
    wait_until("it is ready", || code(port, "/readyz") == Some(200));
    assert_eq!(code(port, "/healthz"), Some(200));
    assert_eq!(code(port, "/nothing"), Some(404));
    device.post(r#"{"specversion":"1.0","id":"1","source":"/t","type":"t"}"#).expect("accepted");
    wait_until("the metrics count the event", || {
        let (_, text) = get(port, "/metrics").expect("metrics");
        text.contains("hark_outbox_accepted_total{lane=\"telemetry\"} 1\n")
            && text.contains("hark_outbox_waiting{lane=\"telemetry\"} 0\n")
            && text.contains("hark_uplink_connected 1\n")
    });
    broker.kill();
    wait_until("it is no longer ready", || code(port, "/readyz") == Some(503));
    let (_, why) = get(port, "/readyz").expect("an answer");
    assert!(why.contains("uplink: not connected: "), "{why}");
    assert_eq!(code(port, "/healthz"), Some(200));
    let (_, text) = get(port, "/metrics").expect("metrics");
    assert!(text.contains("hark_uplink_connected 0\n") && text.contains("hark_ready 0\n"));
    drop(agent);
}

#[test]
fn a_port_that_is_taken_is_a_fault_and_events_go_on() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("its address").port();
    let broker = Mosquitto::start();
    let subscriber = Subscriber::start(broker.port(), "hark/test/events/#");
    let device = Device::new(&broker.url(), "none");
    let agent = start(&device, port, &[]);
    let has = |what: &'static str| {
        subscriber.wait_for(what, |messages| {
            messages.iter().any(|m| String::from_utf8_lossy(&m.payload).contains(what))
        });
    };
    has("set ops.listen to a free port");
    device.post(r#"{"specversion":"1.0","id":"still-here","source":"/t","type":"t"}"#).unwrap();
    has("still-here");
    drop(agent);
}

#[test]
fn a_heartbeat_tells_how_the_device_is() {
    let broker = Mosquitto::start();
    let subscriber = Subscriber::start(broker.port(), "hark/test/events/status");
    let device = Device::new(&broker.url(), "none");
    let agent = start(&device, free_port(), &[("HARK__OPS__HEARTBEAT_INTERVAL", "1s")]);
    let messages = subscriber.wait_for("a heartbeat", |messages| {
        messages.iter().any(|m| String::from_utf8_lossy(&m.payload).contains("device.heartbeat"))
    });
    let beat = messages
        .iter()
        .filter_map(|m| serde_json::from_slice::<serde_json::Value>(&m.payload).ok())
        .find(|event| event["type"] == "io.hark.device.heartbeat.sent")
        .expect("a heartbeat");
    assert_eq!(beat["data"]["uplink"]["connected"], true, "{beat}");
    assert_eq!(beat["data"]["healthy"], true);
    assert_eq!(beat["data"]["audio"], serde_json::Value::Null);
    drop(agent);
}

#[test]
fn hark_status_shows_an_open_alarm_and_whom_it_calls_and_heartbeats_leave_that_to_its_events() {
    let broker = Mosquitto::start();
    let subscriber = Subscriber::start(broker.port(), "hark/test/events/status");
    let device = Device::new(&broker.url(), "none");
    device.configure(
        "[alarm]\ncancel_window = \"0s\"\nreceipt_timeout = \"1s\"\n\
         [[alarm.contact]]\nname = \"Anna\"\ntimeout = \"1h\"\nexec = [\"/bin/true\"]\n\
         [[ingest.route]]\ntype = \"cry\"\nlane = \"alert\"\nalarm = true\n[signal]\ntone = \"none\"\n",
    );
    let agent = start(&device, free_port(), &[("HARK__OPS__HEARTBEAT_INTERVAL", "1s")]);
    let status = |more: &[&str]| {
        let output = hark().arg("status").arg("--socket").arg(device.socket()).args(more).output();
        String::from_utf8(output.expect("run hark status").stdout).expect("text")
    };
    wait_until("it answers", || status(&["--json"]).starts_with('{'));
    assert!(!status(&["--json"]).contains("\"alarm\":"));
    device.post(r#"{"specversion":"1.0","id":"1","source":"/t","type":"cry"}"#).expect("accepted");
    wait_until("Anna is being called", || status(&[]).contains(", calling Anna: "));
    let json: serde_json::Value = serde_json::from_str(&status(&["--json"])).expect("JSON");
    let alarm = &json["alarm"];
    assert_eq!((&alarm["state"], &alarm["testalarm"]), (&"raised".into(), &false.into()));
    assert!(alarm["since"].as_str().is_some_and(|at| at.ends_with('Z')), "{alarm}");
    let beats = |all: &[support::mosquitto::Message]| {
        let texts = all.iter().map(|m| String::from_utf8_lossy(&m.payload).into_owned());
        texts.filter(|text| text.contains("device.heartbeat")).collect::<Vec<_>>()
    };
    let before = beats(&subscriber.messages()).len();
    let all = subscriber.wait_for("the next heartbeat", |all| beats(all).len() > before);
    assert!(beats(&all).iter().all(|beat| !beat.contains("\"alarm\":")), "{all:?}");
    drop(agent);
}

#[test]
fn hark_status_shows_the_running_agent_and_says_when_there_is_none() {
    let broker = Mosquitto::start();
    let device = Device::new(&broker.url(), "none");
    let status = |more: &[&str]| {
        let output = hark().arg("status").arg("--socket").arg(device.socket()).args(more).output();
        let output = output.expect("run hark status");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, out, error) = status(&[]);
    assert_eq!((code, out.as_str()), (Some(69), ""), "{error}");
    assert!(error.contains("no agent listens on") && error.lines().count() == 1, "{error}");
    let agent = device.start();
    wait_until("it is connected", || status(&[]).1.contains("uplink    connected: "));
    let (_, out, _) = status(&["--json"]);
    let json: serde_json::Value = serde_json::from_str(&out).expect("one JSON object");
    assert_eq!((&json["device"], &json["ready"]), (&"test".into(), &true.into()), "{out}");
    assert!(agent.stop().success());
}
