//! Receipts, refusals, takeover and binary mode, from outside: the agent as a process, mosquitto, and
//! mosquitto's own clients as the consumer.
#![allow(clippy::disallowed_methods, reason = "real brokers and processes need real time")]

mod support;

use std::process::{Command, Stdio};

use support::agent::Device;
use support::mosquitto::{Message, Mosquitto, Options, Subscriber};
use support::wire::event_id;

const ALERT: &str = r#"{"specversion":"1.0","id":"cry","source":"/test","type":"t","lane":"alert","data":{"b": 1.0,"a":2}}"#;
const RECEIPTS: &str = "[lanes.alert]\nconfirm = \"receipt\"\nreceipt_timeout = \"1s\"\n";

fn publish(port: u16, topic: &str, payload: &str, options: &[&str]) {
    let mut command = Command::new("mosquitto_pub");
    command.args([
        "-h",
        "127.0.0.1",
        "-p",
        &port.to_string(),
        "-q",
        "1",
        "-t",
        topic,
        "-m",
        payload,
    ]);
    assert!(command.args(options).status().expect("mosquitto_pub").success());
}

/// The consumer says that it has the alert.
fn send_receipt(port: u16) {
    let receipt = r#"{"specversion":"1.0","id":"r1","source":"/consumer","type":"receipt.events.received","data":{"lane":"alert","ids":["cry"]}}"#;
    publish(port, "hark/test/receipts", receipt, &[]);
}

fn text(message: &Message) -> String {
    String::from_utf8_lossy(&message.payload).into_owned()
}

fn copies(all: &[Message]) -> Vec<&Message> {
    all.iter().filter(|m| event_id(&m.payload).as_deref() == Some("cry")).collect()
}

/// Waits until nothing is under way: mosquitto closes over a forbidden publish, and what it has not read
/// yet then costs the answer (RST).
fn wait_for_start(eye: &Subscriber) {
    eye.wait_for("the session's start", |all| {
        all.iter().any(|m| text(m).contains("session.started"))
    });
}

/// Whether a fault of this part has come, raised or cleared.
fn fault(all: &[Message], state: &str, part: &str) -> bool {
    let part = format!("\"part\":\"{part}\"");
    all.iter().map(text).any(|m| m.contains(&format!("device.fault.{state}")) && m.contains(&part))
}

#[test]
fn an_alert_is_repeated_until_its_receipt_across_restarts_and_then_is_gone() {
    let broker = Mosquitto::start();
    let consumer = Subscriber::start(broker.port(), "hark/test/events/#");
    let device = Device::new(&broker.url(), "none");
    device.configure(RECEIPTS);
    let agent = device.start();
    support::wait_until("the socket is there", || device.socket().exists());
    device.post(ALERT).expect("accepted");
    let all = consumer.wait_for("a repetition and a fault", |all| {
        copies(all).len() >= 2 && fault(all, "raised", "receipt")
    });
    let copies_so_far = copies(&all);
    assert!(copies_so_far.iter().all(|m| m.payload == copies_so_far[0].payload), "the same bytes");
    agent.kill();

    let before = copies(&consumer.messages()).len();
    let mut agent = device.start();
    consumer.wait_for("it comes again after a restart", |all| copies(all).len() > before);
    agent.wait_for_log(&["no receipt within 1 s"]);
    send_receipt(broker.port());
    consumer.wait_for("the fault is cleared", |all| fault(all, "cleared", "receipt"));
    // An orderly end waits for the outbox to be empty, at most five seconds.
    assert!(agent.stop().success());

    let before = copies(&consumer.messages()).len();
    let sessions =
        |all: &[Message]| all.iter().filter(|m| text(m).contains("session.started")).count();
    let seen = sessions(&consumer.messages());
    let _agent = device.start();
    // The alert lane goes first: were the alert still there, it would come before this.
    let all = consumer.wait_for("a new session", |all| sessions(all) > seen);
    assert_eq!(copies(&all).len(), before, "an alert with its receipt is not published any more");
}

/// FACTS: mosquitto answers a publish over 3.1.1 that its access rules forbid with a PUBACK of success.
#[test]
fn a_lane_with_receipts_notices_a_broker_that_swallows() {
    let acl = "user test\ntopic write hark/test/presence\ntopic write hark/test/events/status\ntopic read hark/test/receipts\nuser eye\ntopic read #\n";
    for receipts in [true, false] {
        let options = Options {
            users: vec![("test", "pw"), ("eye", "pw")],
            acl: Some(acl),
            ..Options::default()
        };
        let broker = Mosquitto::with(options);
        let eye = Subscriber::with(broker.port(), "hark/test/events/#", &["-u", "eye", "-P", "pw"]);
        let device = Device::new(&broker.url(), "none");
        std::fs::write(device.path().join("password"), "pw").expect("password");
        if receipts {
            device.configure(RECEIPTS);
        }
        let mut command = device.command();
        command
            .env("HARK__UPLINK__USERNAME", "test")
            .env("HARK__UPLINK__PASSWORD_FILE", device.path().join("password"))
            .env("HARK__UPLINK__PROTOCOL", "3.1.1")
            .env("HARK_LOG", "debug");
        let mut agent = support::agent::Agent::spawn(command);
        agent.wait_for_log(&["connected over MQTT 3.1.1"]);
        wait_for_start(&eye);
        device.post(ALERT).expect("accepted");
        if receipts {
            eye.wait_for("the fault", |all| fault(all, "raised", "receipt"));
        } else {
            // The control: believed, removed, gone.
            agent.wait_for_log(&["acknowledged", "cry"]);
        }
        assert_eq!(copies(&eye.messages()).len(), 0, "the broker swallows it");
    }
}

#[test]
fn a_refused_lane_is_a_fault_that_the_others_report() {
    let acl = "user test\ntopic write hark/test/presence\ntopic write hark/test/events/status\nuser eye\ntopic read #\n";
    let options = Options {
        users: vec![("test", "pw"), ("eye", "pw")],
        acl: Some(acl),
        ..Options::default()
    };
    let broker = Mosquitto::with(options);
    let eye = Subscriber::with(broker.port(), "hark/test/events/#", &["-u", "eye", "-P", "pw"]);
    let device = Device::new(&broker.url(), "none");
    std::fs::write(device.path().join("password"), "pw").expect("password");
    let mut command = device.command();
    command
        .env("HARK__UPLINK__USERNAME", "test")
        .env("HARK__UPLINK__PASSWORD_FILE", device.path().join("password"));
    let mut agent = support::agent::Agent::spawn(command);
    agent.wait_for_log(&["connected over MQTT 5"]);
    wait_for_start(&eye);
    device.post(ALERT).expect("accepted");
    eye.wait_for("the fault", |all| fault(all, "raised", "uplink.refused.alert"));
    agent.wait_for_log(&["offered again in"]);
}

#[test]
fn another_device_with_the_same_client_id_is_a_fault_and_no_tight_loop() {
    let broker = Mosquitto::start();
    let device = Device::new(&broker.url(), "none");
    let mut agent = device.start();
    agent.wait_for_log(&["connected over"]);
    // It comes back a second after each time it is thrown out.
    let mut other = Command::new("mosquitto_sub")
        .args(["-h", "127.0.0.1", "-p", &broker.port().to_string(), "-i", "test", "-t", "x"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("mosquitto_sub");
    // Three sessions are cut short first, and the backoff grows from one to the next.
    let began = std::time::Instant::now();
    while !agent.log().iter().any(|line| line.contains("ERROR") && line.contains("client-id")) {
        assert!(began.elapsed().as_secs() < 150, "no fault:\n{}", agent.log().join("\n"));
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let connects = || agent.log().iter().filter(|l| l.contains("connected over")).count();
    let (all, seconds) = (connects(), began.elapsed().as_secs() as usize);
    other.kill().expect("kill");
    other.wait().expect("wait");
    assert!(all <= 2 + seconds, "{all} connections in {seconds} s");
}

#[test]
fn binary_mode_is_what_mosquittos_own_client_reads() {
    let broker = Mosquitto::start();
    let file = tempfile::NamedTempFile::new().expect("file");
    let mut sub = Command::new("mosquitto_sub")
        .args(["-h", "127.0.0.1", "-p", &broker.port().to_string(), "-V", "mqttv5", "-q", "1"])
        .args(["-t", "hark/test/events/telemetry", "-C", "2", "-F", "%C|%P|%E|%p"])
        .stdout(file.reopen().expect("reopen"))
        .spawn()
        .expect("mosquitto_sub");
    support::wait_until("subscribed", || broker.log().contains("hark/test/events/telemetry"));
    let device = Device::new(&broker.url(), "none");
    let mut command = device.command();
    command.env("HARK__UPLINK__MODE", "binary");
    let mut agent = support::agent::Agent::spawn(command);
    agent.wait_for_log(&["connected over MQTT 5"]);
    let event = |id: &str, rest: &str| {
        format!(
            r#"{{"specversion":"1.0","id":"{id}","source":"/s","type":"t","flag":true,{rest}}}"#
        )
    };
    let data = r#"{"b": 1.0,"a":12345678901234567890}"#;
    device.post(&event("1", &format!(r#""data":{data}"#))).expect("accepted");
    device
        .post(&event("2", r#""datacontenttype":"text/plain","data_base64":"aGVscA==""#))
        .expect("accepted");
    assert!(sub.wait().expect("wait").success());
    let got = std::fs::read_to_string(file.path()).expect("read");
    let lines: Vec<_> = got.lines().map(|line| line.split('|').collect::<Vec<_>>()).collect();
    assert_eq!((lines[0][0], lines[0][3]), ("application/json", data));
    assert_eq!((lines[1][0], lines[1][3]), ("text/plain", "help"));
    for (line, id) in lines.iter().zip(["1", "2"]) {
        for property in [
            "specversion:1.0",
            &format!("id:{id}"),
            "source:/s",
            "type:t",
            "flag:true",
            "lane:telemetry",
        ] {
            assert!(line[1].split(' ').any(|p| p == property), "{property} in {}", line[1]);
        }
    }
}
