//! Wrong input gets one clear line and its exit code; right input gets what was asked for.
#![allow(clippy::disallowed_methods, reason = "real processes need real time and real threads")]

mod support;

use std::fs;
use std::io::Write;
use std::process::{Output, Stdio};

use support::agent::{Agent, Device, hark, post};
use support::mosquitto::{Mosquitto, Options, Subscriber};

const EVENT: &str =
    r#"{"specversion":"1.0","id":"1","source":"/test","type":"t","data":{"b":1.0,"a":2}}"#;

fn run(arguments: &[&str]) -> Output {
    hark().args(arguments).output().expect("run hark")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim_end().to_owned()
}

#[track_caller]
fn assert_fails(output: &Output, code: i32, says: &str) {
    assert_eq!(output.status.code(), Some(code), "{}", stderr(output));
    assert!(stderr(output).contains(says), "{}", stderr(output));
    assert!(!stderr(output).contains("panicked"), "{}", stderr(output));
}

#[test]
fn a_configuration_with_three_errors_names_all_three_and_exits_78() {
    let directory = tempfile::tempdir().expect("directory");
    let file = directory.path().join("hark.toml");
    fs::write(&file, "[uplink]\nurl = \"broker\"\nwindow = 0\n[audio]\ninptu = \"none\"\n")
        .expect("write");
    for command in ["run", "config"] {
        let name = file.to_str().expect("UTF-8");
        let arguments: &[&str] = if command == "run" {
            &["run", "--config", name]
        } else {
            &["config", "check", "--config", name]
        };
        let output = run(arguments);
        assert_fails(&output, 78, ":2: uplink.url");
        assert_eq!(stderr(&output).lines().count(), 3, "{}", stderr(&output));
    }
}

#[test]
fn config_check_and_show_answer_for_a_good_file() {
    let device = Device::new("mqtt://127.0.0.1:1", "none");
    let file = device.config();
    let name = file.to_str().expect("UTF-8");
    assert!(run(&["config", "check", name]).status.success());
    let shown = String::from_utf8(run(&["config", "show", name]).stdout).expect("UTF-8");
    assert!(shown.contains("device.id = \"test\"  # line 2"), "{shown}");
    assert!(shown.contains("uplink.window = 32  # default"), "{shown}");
}

#[test]
fn wrong_words_on_the_command_line_exit_64_and_help_exits_0() {
    assert_fails(&run(&["frobnicate"]), 64, "frobnicate");
    assert_fails(&run(&["emit", "--lane", "urgent"]), 64, "no lane");
    assert!(run(&["--help"]).status.success());
    assert!(run(&["--version"]).status.success());
}

#[test]
fn what_the_agent_cannot_start_with_is_said_in_one_line() {
    let broker = "mqtt://127.0.0.1:1";
    let missing = Device::new(broker, "wav:/nowhere/cry.wav");
    assert_fails(&missing.command().output().expect("run"), 74, "/nowhere/cry.wav");

    let corrupt = Device::new(broker, "none");
    let wav = corrupt.path().join("corrupt.wav");
    fs::write(&wav, b"RIFF, or so it says").expect("write");
    let corrupt = Device::new(broker, &format!("wav:{}", wav.display()));
    assert_fails(&corrupt.command().output().expect("run"), 74, "corrupt.wav");

    let no_models = Device::new(
        broker,
        &format!("wav:{}/src/sim/cry-for-help.flac", env!("CARGO_MANIFEST_DIR")),
    );
    let output = no_models
        .command()
        .env("HARK_MODELS", "/nowhere/models")
        .current_dir(no_models.path())
        .output()
        .expect("run");
    assert_fails(&output, 78, "scripts/fetch-models");

    let file_for_outbox = Device::new(broker, "none");
    fs::write(file_for_outbox.outbox(), "in the way").expect("write");
    assert_fails(&file_for_outbox.command().output().expect("run"), 74, "outbox");

    let unmounted = Device::new(broker, "none");
    let output = unmounted.command().env("HARK__OUTBOX__PATH", "/nowhere/outbox").output();
    assert_fails(&output.expect("run"), 74, "mount its disk");

    let no_password = Device::new(broker, "none");
    let missing = "HARK__UPLINK__PASSWORD_FILE";
    let output = no_password.command().env(missing, "/nowhere/password").output().expect("run");
    assert_fails(&output, 78, "uplink.password_file: read /nowhere/password");
}

#[test]
fn a_second_agent_on_the_same_outbox_is_refused_and_the_first_goes_on() {
    let device = Device::new("mqtt://127.0.0.1:1", "none");
    let mut first = device.start();
    first.wait_for_log(&["accepted", "device.session.started"]);
    assert_fails(&device.command().output().expect("run"), 74, "outbox");
    assert!(device.post(EVENT).is_ok());
}

#[test]
fn a_broker_that_is_not_there_is_tried_again_and_counted_until_it_is() {
    let mut broker = Mosquitto::start();
    broker.kill();
    let device = Device::new(&broker.url(), "none");
    let mut agent = device.start();
    agent.wait_for_log(&[&broker.port().to_string(), "attempt 2"]);
    broker.restart();
    agent.wait_for_log(&["connected over"]);
}

#[test]
fn a_wrong_password_is_said_as_such_and_becomes_a_fault() {
    let broker = Mosquitto::with(Options { users: vec![("flat", "right")], ..Options::default() });
    let device = Device::new(&broker.url(), "none");
    let secret = device.path().join("password");
    fs::write(&secret, "wrong\n").expect("write");
    let text = fs::read_to_string(device.config()).expect("read");
    let login = format!("[uplink]\nusername = \"flat\"\npassword_file = {secret:?}\n");
    fs::write(device.config(), text.replace("[uplink]\n", &login)).expect("write");
    let mut agent = device.start();
    agent.wait_for_log(&["accepted", "device.fault.raised"]);
    agent.wait_for_log(&["password"]);
    fs::write(&secret, "right\n").expect("write");
    assert!(agent.stop().success());
    let mut agent = device.start();
    agent.wait_for_log(&["connected over"]);
}

#[test]
fn emit_exits_0_only_after_its_events_are_accepted_and_their_data_stays_as_it_was() {
    let broker = Mosquitto::start();
    let subscriber = Subscriber::start(broker.port(), "hark/test/events/alert");
    let device = Device::new(&broker.url(), "none");
    let mut agent = device.start();
    agent.wait_for_log(&["connected over"]);

    let socket = device.socket();
    let emit = |input: &str, more: &[&str]| {
        let mut child = hark()
            .args(["emit", "--socket", socket.to_str().expect("UTF-8")])
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("run hark emit");
        child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("write");
        child.wait_with_output().expect("wait")
    };
    let output = emit(EVENT, &["--lane", "alert"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let accepted = String::from_utf8(output.stdout).expect("UTF-8");
    assert_eq!(accepted.trim(), r#"{"id":"1","lane":"alert","sequence":"00000000000000000001"}"#);
    let got = subscriber.wait_for("the event", |messages| !messages.is_empty());
    let text = String::from_utf8(got[0].payload.clone()).expect("UTF-8");
    assert!(text.ends_with(r#""data":{"b":1.0,"a":2}}"#), "{text}");

    assert_fails(&emit(r#"{"specversion":"1.0"}"#, &[]), 74, "attribute `id`");
    assert_fails(&emit("", &[]), 74, "holds no event");
    assert_fails(&run(&["emit", "--socket", "/nowhere/socket", "/dev/null"]), 74, "holds no event");
    let file = device.path().join("event.json");
    fs::write(&file, EVENT).expect("write");
    let output = run(&["emit", "--socket", "/nowhere/socket", file.to_str().expect("UTF-8")]);
    assert_fails(&output, 69, "hark run");
}

#[test]
fn the_ingest_socket_names_what_is_wrong() {
    let device = Device::new("mqtt://127.0.0.1:1", "none");
    let mut agent = device.start();
    agent.wait_for_log(&["accepted", "device.session.started"]);
    let single = "application/cloudevents+json";
    let batch = "application/cloudevents-batch+json";
    let many = format!("[{}]", vec![EVENT; 300].join(","));
    let large = EVENT.replace("2}", &format!("{:?}}}", "x".repeat(70_000)));
    let mixed = format!("[{EVENT},{}]", EVENT.replace("\"id\":\"1\",", ""));
    for (media_type, body, says) in [
        (
            single,
            EVENT.replace("\"type\":\"t\"", "\"type\":\"\""),
            vec!["400", "\"attribute\":\"type\""],
        ),
        (
            single,
            EVENT.replace("}}", "},\"lane\":\"urgent\"}"),
            vec!["400", "\"attribute\":\"lane\""],
        ),
        (single, "{".to_owned(), vec!["400", "application/problem+json"]),
        (batch, mixed, vec!["400", "\"attribute\":\"id\"", "event 1 of the batch"]),
        (batch, many, vec!["413"]),
        (single, large, vec!["413"]),
        ("application/json", EVENT.to_owned(), vec!["415"]),
        ("image/png\r\nce-specversion: 1.0", "x".to_owned(), vec!["400", "\"attribute\":\"id\""]),
    ] {
        let refused = post(&device.socket(), media_type, &body).expect_err("refused");
        assert!(says.iter().all(|text| refused.contains(text)), "{says:?}: {refused}");
    }
    // Nothing of the refused batch was kept: the next event is the first of its lane.
    let accepted = device.post(EVENT).expect("accepted");
    assert!(
        accepted.contains(r#""lane":"telemetry","sequence":"00000000000000000001""#),
        "{accepted}"
    );
    let accepted = post(&device.socket(), batch, &format!("[{EVENT},{EVENT}]")).expect("accepted");
    assert!(accepted.contains(r#""sequence":"00000000000000000003""#), "{accepted}");
    let binary =
        "image/png\r\nce-specversion: 1.0\r\nce-id: caf%C3%A9\r\nce-source: /test\r\nce-type: t";
    let accepted = post(&device.socket(), binary, "\u{1}").expect("accepted");
    assert!(
        accepted.contains(r#"{"id":"café","lane":"telemetry","sequence":"00000000000000000004"}"#),
        "{accepted}"
    );
}

#[test]
fn a_disk_that_takes_no_more_ends_the_agent_with_74_and_a_reason() {
    let device = Device::new("mqtt://127.0.0.1:1", "none");
    // A limit on file sizes stands in for a full disk: writes fail, the process lives on.
    let limited = format!(
        "ulimit -f 3000; trap '' XFSZ; exec {} run --config {}",
        env!("CARGO_BIN_EXE_hark"),
        device.config().display()
    );
    let mut command = std::process::Command::new("bash");
    command.args(["-c", &limited]);
    let mut agent = Agent::spawn(command);
    agent.wait_for_log(&["accepted", "device.session.started"]);
    let large = EVENT.replace("2}", &format!("{:?}}}", "x".repeat(60_000)));
    let mut refused = None;
    for _ in 0..200 {
        if let Err(error) = device.post(&large) {
            refused = Some(error);
            break;
        }
    }
    assert!(refused.is_some(), "the limit was never reached");
    let log = agent.wait_for_log(&["hark:", "outbox failed for good"]);
    assert!(log.contains("restart"), "{log}");
    assert_eq!(agent.wait().code(), Some(74));
}
