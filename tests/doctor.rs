//! `hark doctor` on an installation that is in order, and on ones that are not.
#![allow(clippy::disallowed_methods, reason = "real processes and sockets need real time")]

mod support;

use support::agent::{Device, hark};
use support::free_port;
use support::mosquitto::{Mosquitto, Options, Subscriber};

/// Exit code, standard output and standard error.
fn examine(device: &Device) -> (Option<i32>, String, String) {
    let output = hark().arg("doctor").arg("--config").arg(device.config()).output();
    let output = output.expect("run hark doctor");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn an_installation_in_order_is_well_beside_a_running_agent_whose_session_stays() {
    let broker = Mosquitto::start();
    let subscriber = Subscriber::start(broker.port(), "hark/test/presence");
    let device = Device::new(&broker.url(), "none");
    let mut agent = device.start();
    agent.wait_for_log(&["connected over MQTT"]);
    let (code, out, error) = examine(&device);
    assert_eq!(code, Some(0), "{out}{error}");
    assert!(out.contains(&format!("well  broker        {}: MQTT 5", broker.url())), "{out}");
    assert!(out.contains("an agent is listening"), "{out}");
    let online = subscriber.messages();
    assert!(online.iter().all(|m| String::from_utf8_lossy(&m.payload).contains("online")));
    assert!(!agent.log().iter().any(|line| line.contains("connection lost")), "{:?}", agent.log());
}

#[test]
fn each_thing_that_is_wrong_has_a_line_that_says_how_to_mend_it() {
    let device = Device::new(&format!("mqtt://127.0.0.1:{}", free_port()), "none");
    device.configure("[voice]\nmodels = \"/nowhere\"\n");
    std::fs::write(device.path().join("file"), "").expect("a file");
    let text = std::fs::read_to_string(device.config()).expect("config");
    let outbox = format!("path = {:?}", device.outbox());
    let wrong = format!("path = {:?}", device.path().join("not/there/outbox"));
    std::fs::write(device.config(), text.replace(&outbox, &wrong)).expect("config");
    let (code, out, error) = examine(&device);
    assert_eq!(code, Some(74), "{out}{error}");
    assert!(out.contains("WRONG outbox        write in "), "{out}");
    assert!(out.contains("WRONG broker        mqtt://127.0.0.1:"), "{out}");
    assert!(out.contains("refused the connection: is it running?\n"), "{out}");
    assert!(
        error.contains("not in order: outbox, broker;")
            && error.lines().filter(|line| line.starts_with("hark: ")).count() == 1,
        "{error}"
    );
}

#[test]
fn each_sensor_is_read_once_and_one_that_shows_nothing_is_told() {
    let broker = Mosquitto::start();
    let device = Device::new(&broker.url(), "none");
    std::fs::write(device.path().join("temp1_input"), "21500").expect("a file");
    let sensor = |name: &str, file: &str| {
        let path = device.path().join(file);
        format!("[[sensor]]\nname = {name:?}\ndriver = \"hwmon\"\npath = {path:?}\n")
    };
    device.configure(&(sensor("room", "temp1_input") + &sensor("hall", "temp2_input")));
    let (code, out, _) = examine(&device);
    assert_eq!(code, Some(69), "{out}");
    assert!(out.contains("well  sensor        room: temperature 21.5 Cel"), "{out}");
    assert!(
        out.contains("WRONG sensor        hall: read ") && out.contains("is its driver loaded"),
        "{out}"
    );
}

#[test]
fn a_broker_that_refuses_the_login_is_told_by_its_own_words() {
    let options = Options { users: vec![("flat", "secret")], ..Options::default() };
    let broker = Mosquitto::with(options);
    let device = Device::new(&broker.url(), "none");
    let (code, out, _) = examine(&device);
    assert_eq!(code, Some(69), "{out}");
    let line = out.lines().find(|line| line.contains("broker")).expect("a line");
    assert!(line.starts_with("WRONG") && line.to_lowercase().contains("authori"), "{line}");
}
