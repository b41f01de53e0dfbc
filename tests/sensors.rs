//! Sensors end to end: files of a sysfs tree that is not the kernel's, the real agent, a real broker.
#![allow(clippy::disallowed_methods, reason = "the agent is driven in real time")]

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use hark::agent::{self, Happening, Parts};
use hark::clock::{Clock, ClockState};
use hark::config;
use serde_json::Value;
use support::PATIENCE;
use support::agent::Device;
use support::mosquitto::{Message, Mosquitto, Subscriber};
use tokio::sync::{broadcast, oneshot};

fn write(path: &Path, content: &str) {
    fs::create_dir_all(path.parent().expect("a parent")).expect("directory");
    let new = path.with_extension("new");
    fs::write(&new, content).and_then(|()| fs::rename(&new, path)).expect("write");
}

/// The data of the first event of this type whose data fit.
fn find(messages: &[Message], event_type: &str, fits: impl Fn(&Value) -> bool) -> Option<Value> {
    let parse = |message: &Message| serde_json::from_slice::<Value>(&message.payload).ok();
    messages
        .iter()
        .filter_map(parse)
        .find(|event| event["type"] == format!("io.hark.{event_type}") && fits(&event["data"]))
}

fn wait(subscriber: &Subscriber, event_type: &str, fits: impl Fn(&Value) -> bool) -> Value {
    let messages = subscriber.wait_for(event_type, |all| find(all, event_type, &fits).is_some());
    find(&messages, event_type, fits).expect("just found")
}

#[test]
fn readings_thresholds_and_faults_of_sensors_reach_the_broker() {
    let broker = Mosquitto::start();
    let subscriber = Subscriber::start(broker.port(), "hark/test/events/#");
    let device = Device::new(&broker.url(), "none");
    let sys = device.path().join("sys");
    let (temperature, mains) = (sys.join("hwmon2/temp1_input"), sys.join("AC/online"));
    write(&temperature, "21500\n");
    write(&mains, "1\n");
    write(&sys.join("BAT/capacity"), "80\n");
    write(&sys.join("BAT/status"), "Discharging\n");
    write(&sys.join("co2.json"), r#"{"ppm": 9999}"#);
    let hanging = sys.join("hangs");
    assert!(Command::new("mkfifo").arg(&hanging).status().expect("mkfifo").success());
    let of = |path: &str| sys.join(path).display().to_string();
    device.configure(&format!(
        "[[sensor]]\nname = \"room\"\ndriver = \"hwmon\"\npath = {:?}\ninterval = \"100ms\"\ndeadband = 0.2\n\
         [[sensor.threshold]]\nname = \"too hot\"\nabove = 30\nclear = 28\nlane = \"alert\"\nseverity = \"ERROR\"\n\
         [[sensor]]\nname = \"stuck\"\ndriver = \"file\"\npath = {:?}\nquantity = \"x\"\nunit = \"1\"\n\
         [[sensor]]\nname = \"power\"\ndriver = \"power-supply\"\npath = {:?}\nquantity = \"mains\"\ninterval = \"100ms\"\n\
         [[sensor]]\nname = \"battery\"\ndriver = \"power-supply\"\npath = {:?}\nquantity = \"charge\"\ninterval = \"100ms\"\n\
         [[sensor]]\nname = \"air\"\ndriver = \"file\"\npath = {:?}\npointer = \"/ppm\"\nquantity = \"co2\"\nunit = \"[ppm]\"\n\
         interval = \"100ms\"\nmax = 5000\n",
        of("hwmon*/temp1_input"), of("hangs"), of("AC"), of("BAT"), of("co2.json"),
    ));
    let agent = device.start();

    let reading = wait(&subscriber, "sensor.reading.recorded", |data| data["name"] == "room");
    assert_eq!(reading["data"]["value"], 21.5);
    assert_eq!(reading["data"]["unit"], "Cel");
    assert_eq!((&reading["subject"], &reading["lane"]), (&"room".into(), &"telemetry".into()));
    let charging = wait(&subscriber, "sensor.reading.recorded", |d| d["quantity"] == "charging");
    assert_eq!(charging["data"]["value"], 0.0);

    // What is not plausible is a fault, and is never told as a reading.
    let fault = wait(&subscriber, "device.fault.raised", |data| data["part"] == "sensor.air");
    let problem = fault["data"]["problem"].as_str().expect("text");
    assert!(problem.contains("9999 [ppm], which is above the plausible 5000"), "{problem}");
    assert!(
        find(&subscriber.messages(), "sensor.reading.recorded", |d| d["name"] == "air").is_none()
    );
    write(&sys.join("co2.json"), r#"{"ppm": 650}"#);
    wait(&subscriber, "device.fault.cleared", |data| data["part"] == "sensor.air");
    wait(&subscriber, "sensor.reading.recorded", |d| d["name"] == "air" && d["value"] == 650.0);

    // A threshold, there and back, in the lane that it asks for.
    write(&temperature, "30400\n");
    let hot = wait(&subscriber, "sensor.threshold.exceeded", |data| data["name"] == "room");
    assert_eq!((&hot["lane"], &hot["severitytext"]), (&"alert".into(), &"ERROR".into()));
    assert_eq!(
        (&hot["data"]["threshold"], &hot["data"]["value"]),
        (&"too hot".into(), &30.4.into())
    );
    // In that lane it is an alarm as well.
    let alarm = wait(&subscriber, "alarm.call.pending", |_| true);
    assert_eq!(alarm["causationid"], hot["id"], "{alarm}");
    assert!(alarm["data"].to_string().contains("threshold"), "{alarm}");
    write(&temperature, "27900\n");
    wait(&subscriber, "sensor.threshold.cleared", |data| data["name"] == "room");

    // Mains lost and back, an empty battery.
    write(&mains, "0\n");
    write(&sys.join("BAT/capacity"), "12\n");
    wait(&subscriber, "device.fault.raised", |data| data["part"] == "mains");
    let low = wait(&subscriber, "device.fault.raised", |data| data["part"] == "battery");
    assert_eq!(low["data"]["problem"], "the battery is low: 12 %");
    write(&mains, "1\n");
    wait(&subscriber, "device.fault.cleared", |data| data["part"] == "mains");

    // All of that beside a sensor whose read never returned; it is told as well.
    let stuck = wait(&subscriber, "device.fault.raised", |data| data["part"] == "sensor.stuck");
    assert!(stuck["data"]["problem"].as_str().expect("text").contains("does not answer"));

    // A sensor that goes away and comes back.
    fs::remove_file(&temperature).expect("remove");
    let gone = wait(&subscriber, "device.fault.raised", |data| data["part"] == "sensor.room");
    assert!(gone["data"]["problem"].as_str().expect("text").contains("temp1_input"));
    write(&temperature, "20000\n");
    wait(&subscriber, "device.fault.cleared", |data| data["part"] == "sensor.room");
    assert!(agent.stop().success(), "it ends well with a reader that hangs");
}

#[test]
fn the_loudness_of_the_microphone_is_a_sensor() {
    let broker = Mosquitto::start();
    let subscriber = Subscriber::start(broker.port(), "hark/test/events/telemetry");
    let cry = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/sim/cry-for-help.flac");
    let device = Device::new(&broker.url(), &format!("wav:{}", cry.display()));
    device.configure(
        "[[sensor]]\nname = \"noise\"\ndriver = \"microphone\"\ninterval = \"500ms\"\noffset = 94\n",
    );
    let agent = device.start();
    let loud = wait(&subscriber, "sensor.reading.recorded", |data| {
        data["value"].as_f64().is_some_and(|value| (50.0..94.0).contains(&value))
    });
    assert_eq!((&loud["data"]["quantity"], &loud["data"]["unit"]), (&"noise".into(), &"dB".into()));
    assert_eq!(loud["data"].as_object().expect("object").len(), 4, "a level, and never audio");
    assert!(agent.stop().success());
}

#[test]
fn a_recording_that_cannot_be_used_ends_the_start_with_its_line() {
    let device = Device::new("mqtt://127.0.0.1:9", "none");
    let recording = device.path().join("r.csv");
    fs::write(&recording, "0,1\n5,x\n").expect("write");
    device.configure(&format!(
        "[[sensor]]\nname = \"r\"\ndriver = \"replay\"\npath = {recording:?}\nquantity = \"x\"\nunit = \"1\"\n"
    ));
    let output = device.command().output().expect("run");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(
        said.contains("sensor.r.path: ") && said.contains("r.csv:2: the value is no number"),
        "{said}"
    );
}

/// An agent in this process with one motion sensor, in whose world an hour passes in a second.
async fn watched_home(directory: &Path, story: impl AsyncFnOnce(broadcast::Receiver<Happening>)) {
    let of = |name: &str| directory.join(name).display().to_string();
    let text = format!(
        "[device]\nid = \"test\"\ntimezone = \"CET-1CEST,M3.5.0,M10.5.0/3\"\n[audio]\ninput = \"none\"\n\
         [outbox]\npath = {:?}\n[uplink]\nurl = \"mqtt://127.0.0.1:9\"\n[ingest]\nsocket = \"\"\n\
         [lanes.status]\ncoalesce = \"1ms\"\n[activity]\nmax_silence = \"2h\"\n\
         [[sensor]]\nname = \"hall\"\ndriver = \"file\"\npath = {:?}\nquantity = \"motion\"\nunit = \"1\"\n\
         interval = \"5m\"\nmax_silence = \"1d\"\ndeadband = 2\nstale_after = \"10d\"\nactivity = \"change\"\n",
        of("outbox"),
        of("motion"),
    );
    let config = config::load("test", &text, std::iter::empty()).expect("configuration").config;
    let mut parts = Parts::device();
    parts.clock = Clock::new(|| ClockState::Synced);
    parts.world = parts.clock.at_speed(parts.clock.wall().unix_ms, 3600.0);
    let happenings = parts.happenings.subscribe();
    let (stop, stopped) = oneshot::channel::<()>();
    let agent = agent::run(config, parts, async {
        let _ = stopped.await;
        "the test is over"
    });
    let story = async {
        tokio::time::timeout(PATIENCE, story(happenings)).await.expect("it happens");
        stop.send(()).expect("the agent runs");
    };
    let (ended, ()) = tokio::join!(agent, story);
    ended.expect("ends well");
}

async fn next<T>(
    happenings: &mut broadcast::Receiver<Happening>,
    wanted: impl Fn(Happening) -> Option<T>,
) -> T {
    loop {
        match happenings.recv().await {
            Ok(happening) => {
                if let Some(found) = wanted(happening) {
                    return found;
                }
            }
            Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(error) => panic!("the agent ended: {error}"),
        }
    }
}

fn inactivity(happening: Happening) -> Option<(bool, String)> {
    match happening {
        Happening::Inactivity { detected, explanation } => Some((detected, explanation)),
        _ => None,
    }
}

#[tokio::test]
async fn a_home_without_a_sign_is_told_once_across_restarts_until_somebody_is_about() {
    let directory = tempfile::tempdir().expect("directory");
    let motion = directory.path().join("motion");
    write(&motion, "0");
    watched_home(directory.path(), async |mut happenings| {
        let (detected, explanation) = next(&mut happenings, inactivity).await;
        assert!(detected && explanation.contains("the limit is 2 h"), "{explanation}");
    })
    .await;
    let memory = fs::read_to_string(directory.path().join("outbox.activity")).expect("memory");
    assert!(memory.contains("\"detected\":true"), "{memory}");
    watched_home(directory.path(), async |mut happenings| {
        // The first turn of this run is the end of what the run before told.
        next(&mut happenings, |h| matches!(h, Happening::Reading { .. }).then_some(())).await;
        write(&motion, "1");
        assert!(!next(&mut happenings, inactivity).await.0);
    })
    .await;
}

#[tokio::test]
async fn a_damaged_memory_is_told_and_learning_begins_anew() {
    let directory = tempfile::tempdir().expect("directory");
    write(&directory.path().join("motion"), "0");
    let memory = directory.path().join("outbox.activity");
    fs::write(&memory, b"hark-activity 1 00000000 3\n{}\n").expect("write");
    watched_home(directory.path(), async |mut happenings| {
        let problem = next(&mut happenings, |happening| match happening {
            Happening::Fault { part, problem } if part == "activity" => Some(problem),
            _ => None,
        })
        .await;
        assert!(problem.contains("learning begins anew"), "{problem}");
        let mended = |h| matches!(h, Happening::Mended(part) if part == "activity").then_some(());
        next(&mut happenings, mended).await;
    })
    .await;
    let text = fs::read_to_string(&memory).expect("memory");
    assert!(text.starts_with("hark-activity 1 ") && !text.contains(" 00000000 "), "{text}");
    assert!(directory.path().join("outbox.activity.damaged").exists());
}
