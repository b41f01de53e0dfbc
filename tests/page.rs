//! The page of `hark simulate`, as a browser uses it and as a foreign page would like to.
#![cfg(feature = "simulator")]
#![allow(
    clippy::disallowed_methods,
    reason = "the simulator is a process of its own, in real time"
)]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::time::Instant;

use serde_json::{Value, json};
use support::PATIENCE;
use support::agent::hark;

/// `hark simulate` with its page on a free port. Dropping it kills it.
struct Simulator {
    child: Child,
    address: String,
}

impl Simulator {
    fn start(arguments: &[&str]) -> Self {
        let mut command = hark();
        command.arg("simulate").args(arguments).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("run hark simulate");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let address = loop {
            let line = lines.next().expect("it goes on").expect("text");
            if let Some((_, address)) = line.split_once("http://") {
                break address.trim_end_matches('/').to_owned();
            }
        };
        // Its terminal is read on, so that it never waits for us.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, address }
    }

    /// One request; the status and everything else.
    fn ask(&self, head: &str, headers: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).expect("connect");
        stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
        let length = body.len();
        write!(stream, "{head} HTTP/1.1\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{body}")
            .expect("write");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
        (status, answer)
    }

    fn get(&self, path: &str) -> (u16, String) {
        self.ask(&format!("GET {path}"), &format!("host: {}\r\n", self.address), "")
    }

    fn act(&self, deed: &Value) -> u16 {
        let headers = format!(
            "host: {0}\r\norigin: http://{0}\r\nsec-fetch-site: same-origin\r\ncontent-type: application/json\r\n",
            self.address
        );
        self.ask("POST /do", &headers, &deed.to_string()).0
    }

    fn watch(&self) -> Stream {
        let mut stream = TcpStream::connect(&self.address).expect("connect");
        stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
        write!(stream, "GET /events HTTP/1.1\r\nhost: {}\r\n\r\n", self.address).expect("write");
        Stream { lines: BufReader::new(stream) }
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The server-sent events.
struct Stream {
    lines: BufReader<TcpStream>,
}

impl Stream {
    /// Reads on until a message is as wanted.
    fn wait_for(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let began = Instant::now();
        let mut line = String::new();
        loop {
            assert!(began.elapsed() < PATIENCE, "gave up waiting: {what}");
            line.clear();
            self.lines.read_line(&mut line).unwrap_or_else(|e| panic!("{what}: {e}"));
            let Some(text) = line.strip_prefix("data: ") else { continue };
            let message: Value = serde_json::from_str(text).expect("JSON");
            if wanted(&message) {
                return message;
            }
        }
    }

    fn wait_for_step(&mut self, step: &str) {
        self.wait_for(step, |message| message["state"]["alarm"]["step"] == step);
    }
}

fn silent() -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().expect("directory");
    let file = directory.path().join("hark.toml");
    std::fs::write(&file, "[audio]\ninput = \"none\"\n").expect("write");
    let name = file.display().to_string();
    (directory, name)
}

#[test]
fn the_page_and_all_that_it_needs_come_from_here_and_may_fetch_nothing_else() {
    let (_directory, config) = silent();
    let simulator = Simulator::start(&["--config", &config]);
    assert!(
        simulator.address.starts_with("127.0.0.1:"),
        "this machine alone: {}",
        simulator.address
    );
    for (path, media_type) in
        [("/", "text/html"), ("/style.css", "text/css"), ("/page.js", "text/javascript")]
    {
        let (status, answer) = simulator.get(path);
        assert_eq!(status, 200, "{path}");
        assert!(answer.contains(&format!("content-type: {media_type}")), "{answer}");
        assert!(answer.contains("content-security-policy: default-src 'none'"), "{answer}");
        let (_, text) = answer.split_once("\r\n\r\n").expect("a body");
        assert!(
            !text.contains("http://") && !text.contains("https://"),
            "{path} names another place"
        );
    }
    assert_eq!(simulator.get("/else").0, 404);
}

#[test]
fn the_button_is_pressed_the_alarm_is_seen_and_the_care_side_ends_it() {
    let (_directory, config) = silent();
    let simulator = Simulator::start(&["--config", &config]);
    let mut stream = simulator.watch();
    let first = stream.wait_for("the beginning", |message| message["story"].is_array());
    assert_eq!(first["state"]["device"], "simulated");
    assert_eq!(first["state"]["cries"], false, "it does not listen");
    stream.wait_for("connected", |message| message["state"]["connected"] == true);
    assert_eq!(simulator.act(&json!({"do": "press", "press": "short"})), 204);
    stream.wait_for_step("pending");
    assert_eq!(simulator.act(&json!({"do": "press", "press": "short"})), 204);
    stream.wait_for("called off", |message| message["line"]["text"] == "cancelled");
    assert_eq!(simulator.act(&json!({"do": "press", "press": "hold"})), 204);
    stream.wait_for("a test", |message| message["state"]["alarm"]["test"] == true);
    assert_eq!(simulator.act(&json!({"do": "cancel"})), 204);
    stream.wait_for("called off", |message| message["state"]["alarm"] == Value::Null);
    assert_eq!(simulator.act(&json!({"do": "press", "press": "long"})), 204);
    stream.wait_for_step("raised");
    assert_eq!(simulator.act(&json!({"do": "command", "command": "acknowledge"})), 204);
    stream.wait_for_step("acknowledged");
    assert_eq!(simulator.act(&json!({"do": "command", "command": "resolve"})), 204);
    stream.wait_for("over", |message| message["state"]["alarm"] == Value::Null);
    // Who comes later is told the story. What arrives at the broker may be told before what it is about.
    let mut later = simulator.watch();
    let resolved = |line: &Value| {
        let text = line["text"].as_str().unwrap_or_default();
        line["kind"] == "at broker" && text.contains("alarm.call.resolved")
    };
    let told = later.wait_for("the story", |message| message["story"].is_array());
    let story = told["story"].as_array().expect("lines");
    assert!(story.iter().any(|line| line["kind"] == "alarm" && line["text"] == "raised"), "{told}");
    if !story.iter().any(resolved) {
        later.wait_for("the broker has it", |message| resolved(&message["line"]));
    }
    for wrong in [
        json!({"do": "press", "press": "hard"}),
        json!({"do": "burn"}),
        json!({"do": "cry"}),
        json!({"do": "fault", "fault": "world", "on": true}),
        json!({"do": "command", "command": "cancel"}),
    ] {
        assert_eq!(simulator.act(&wrong), 400, "{wrong}");
    }
}

#[test]
fn what_is_broken_is_told_and_mended_and_events_wait_for_the_network() {
    let simulator = Simulator::start(&[]);
    let mut stream = simulator.watch();
    stream.wait_for("connected", |message| message["state"]["connected"] == true);
    let switch = |fault: &str, on: bool| {
        assert_eq!(
            simulator.act(&json!({"do": "fault", "fault": fault, "on": on})),
            204,
            "{fault}"
        );
    };
    switch("network", true);
    stream.wait_for("cut off", |message| message["state"]["connected"] == false);
    assert_eq!(simulator.act(&json!({"do": "press", "press": "long"})), 204);
    stream.wait_for("it waits", |message| {
        message["state"]["waiting"]["alert"].as_u64() > Some(1)
            && message["state"]["connected"] == false
    });
    switch("network", false);
    stream.wait_for("it is sent", |message| {
        message["state"]["connected"] == true && message["state"]["waiting"]["alert"] == 0
    });
    for (fault, part) in [("mains", "mains"), ("disk", "disk"), ("sensor", "sensor.air")] {
        switch(fault, true);
        // That a disk is full is noticed by who writes to it.
        assert_eq!(simulator.act(&json!({"do": "press", "press": "short"})), 204);
        let broken = stream.wait_for(fault, |message| !message["state"]["faults"][part].is_null());
        assert_eq!(broken["state"]["switches"][fault], true);
        switch(fault, false);
        stream.wait_for(fault, |message| message["state"]["faults"][part].is_null());
    }
}

#[test]
fn a_cry_that_is_played_on_the_page_is_heard() {
    // The recording that is played from the start has a cry of its own: this one comes after it.
    let simulator = Simulator::start(&[]);
    let mut stream = simulator.watch();
    let heard = |message: &Value| message["line"]["kind"] == "heard";
    stream.wait_for("the first cry", heard);
    stream.wait_for_step("pending");
    assert_eq!(simulator.act(&json!({"do": "cry"})), 204);
    let listening = |message: &Value| message["line"]["kind"] == "listening";
    stream.wait_for("the recording again", listening);
    stream.wait_for("the second cry", heard);
}

#[test]
fn no_foreign_page_presses_a_button_or_reads_what_happens() {
    let (_directory, config) = silent();
    let simulator = Simulator::start(&["--config", &config]);
    let own = simulator.address.clone();
    let port = own.rsplit(':').next().expect("a port").to_owned();
    let press = r#"{"do":"press","press":"long"}"#;
    let json = "content-type: application/json\r\n";
    // The control: without any of that it is done, as curl would.
    assert_eq!(simulator.ask("POST /do", &format!("host: {own}\r\n{json}"), press).0, 204);
    let here = format!("host: {own}\r\n");
    for (why, headers, status) in [
        ("a name that points here", format!("host: evil.example:{port}\r\n{json}"), 403),
        ("no name at all", format!("host: \r\n{json}"), 403),
        ("another origin", format!("{here}origin: http://evil.example\r\n{json}"), 403),
        ("another port", format!("{here}origin: http://127.0.0.1:1\r\n{json}"), 403),
        ("a page without an origin", format!("{here}origin: null\r\n{json}"), 403),
        ("a browser says so", format!("{here}sec-fetch-site: cross-site\r\n{json}"), 403),
        ("a form", format!("{here}content-type: text/plain\r\n"), 415),
    ] {
        assert_eq!(simulator.ask("POST /do", &headers, press).0, status, "{why}");
    }
    assert_eq!(simulator.ask("POST /do", &format!("{here}{json}"), &"x".repeat(5_000)).0, 413);
    let cross = format!("{here}sec-fetch-site: cross-site\r\n");
    assert_eq!(simulator.ask("GET /events", &cross, "").0, 403);
    // A link may lead here.
    assert_eq!(simulator.ask("GET /", &cross, "").0, 200);
}

#[test]
fn a_port_that_is_taken_is_said_and_no_page_is_served_where_none_is_wanted() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("address").port().to_string();
    let output = hark().args(["simulate", "--listen", &port]).output().expect("run");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(69), "{error}");
    assert!(error.contains(&format!("127.0.0.1:{port}")) && error.contains("--listen"), "{error}");
    let output = hark().args(["simulate", "--listen", "", "--for", "1s"]).output().expect("run");
    assert!(output.status.success());
    assert!(!String::from_utf8_lossy(&output.stdout).contains("http://"));
    let output = hark().args(["simulate", "--listen", "elsewhere"]).output().expect("run");
    assert_eq!(output.status.code(), Some(64));
}
