//! The main job end to end, as a person sees it: real speech, real detector, real broker, one command.
#![cfg(feature = "simulator")]
#![allow(clippy::disallowed_methods, reason = "the recording is played in real time")]

mod support;

use std::io::{BufRead, BufReader, Write};

use support::agent::hark;

/// The lines of the simulator's terminal that hold `what`.
fn lines<'a>(shown: &'a str, what: &str) -> Vec<&'a str> {
    shown.lines().filter(|line| line.contains(what)).collect()
}

#[test]
fn a_cry_for_help_is_heard_stored_published_and_acknowledged() {
    let output = hark().args(["simulate", "--for", "13s"]).output().expect("run hark simulate");
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{shown}\n{}", String::from_utf8_lossy(&output.stderr));

    assert!(!lines(&shown, "HEARD").is_empty(), "{shown}");
    let accepted = lines(&shown, "io.hark.voice.keyphrase.detected");
    assert!(!accepted.is_empty(), "{shown}");
    for line in accepted {
        // `  9.8 s  accepted     ID alert #1 TYPE`: the same id must come by three times.
        let id = line.split_whitespace().nth(3).expect("an id");
        // `accepted` is told by the thread that waited for it, so it may be shown after `published`.
        let mut story: Vec<_> =
            lines(&shown, id).iter().filter_map(|line| line.split_whitespace().nth(2)).collect();
        story.retain(|what| *what != "accepted");
        assert_eq!(story, ["published", "acknowledged"], "{shown}");
    }
    assert!(!lines(&shown, "hark/simulated/events/alert").is_empty(), "{shown}");
    // It is an alarm as well, whose window is still open.
    let alarms = lines(&shown, "ALARM");
    assert!(alarms.len() == 1 && alarms[0].contains("pending"), "{shown}");
    assert!(shown.trim_end().ends_with("0 waiting"), "{shown}");
    assert!(!lines(&shown, "dBFS").is_empty(), "{shown}");
}

#[test]
fn a_broker_of_ones_own_that_is_not_there_keeps_the_events_and_says_where() {
    let output = hark()
        .args(["simulate", "--for", "1s", "--broker", "mqtt://127.0.0.1:9"])
        .output()
        .expect("run hark simulate");
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{shown}");
    assert!(shown.contains("127.0.0.1:9"), "{shown}");
    let kept = lines(&shown, "they are kept in");
    let directory = kept.first().and_then(|line| line.split(" kept in ").nth(1)).expect("kept");
    assert!(std::path::Path::new(directory).join("outbox").is_dir(), "{shown}");
    std::fs::remove_dir_all(directory).expect("remove what the test has kept");
}

#[test]
fn ctrl_c_drains_and_ends_well() {
    let mut command = hark();
    command.arg("simulate").stdout(std::process::Stdio::piped());
    let mut child = command.spawn().expect("run hark simulate");
    let mut shown = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut next = || shown.next().expect("it goes on").expect("text");
    while !next().contains("listening") {}
    let pid = child.id().to_string();
    let sent = std::process::Command::new("kill").args(["-INT", &pid]).status();
    assert!(sent.expect("kill").success());
    let mut last = String::new();
    while !last.contains("done") {
        last = next();
    }
    assert!(last.ends_with("0 waiting"), "{last}");
    assert!(child.wait().expect("wait").success());
}

#[test]
fn a_made_up_home_lives_through_its_morning_and_a_power_cut_in_seconds() {
    // From half past five: 3600 times as fast, lost mains are five seconds away.
    let output = hark()
        .args(["simulate", "--speed", "3600", "--for", "8s"])
        .output()
        .expect("run hark simulate");
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{shown}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(!lines(&shown, "is up and about").is_empty(), "{shown}");
    assert!(!lines(&shown, "mains power is lost").is_empty(), "{shown}");
    assert!(!lines(&shown, "FAULT        mains").is_empty(), "{shown}");
    assert!(!lines(&shown, "mended       mains").is_empty(), "{shown}");
    assert!(shown.trim_end().ends_with("0 waiting"), "{shown}");
}

#[test]
fn keys_are_the_button_and_the_alarm_is_shown() {
    let directory = tempfile::tempdir().expect("directory");
    let config = directory.path().join("hark.toml");
    std::fs::write(&config, "[audio]\ninput = \"none\"\n").expect("write");
    let mut command = hark();
    command.arg("simulate").arg("--config").arg(&config);
    command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut child = command.spawn().expect("run hark simulate");
    let mut keys = child.stdin.take().expect("piped");
    let mut shown = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut wait_for = |texts: &[&str]| {
        let mut line = String::new();
        while !texts.iter().all(|text| line.contains(text)) {
            line = shown.next().expect("it goes on").expect("text");
        }
        line
    };
    wait_for(&["connected over"]);
    for (key, step) in [("b", "pending"), ("c", "cancelled"), ("l", "raised")] {
        writeln!(keys, "{key}").expect("type");
        wait_for(&["ALARM", step]);
    }
    // A test is told, and does not begin beside a real alarm.
    writeln!(keys, "t").expect("type");
    wait_for(&["accepted", "button.press.detected"]);
    let pid = child.id().to_string();
    assert!(
        std::process::Command::new("kill").args(["-INT", &pid]).status().expect("kill").success()
    );
    assert!(wait_for(&["done"]).ends_with("0 waiting"));
    assert!(child.wait().expect("wait").success());
}
