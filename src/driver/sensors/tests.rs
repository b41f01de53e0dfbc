#![allow(clippy::disallowed_methods, reason = "reads that hang do so in real time")]

use std::fs;
use std::process::Command;

use tempfile::TempDir;

use super::*;
use crate::clock::{Clock, ClockState};

/// Files of a sysfs tree that is not the kernel's.
struct Tree(TempDir);

impl Tree {
    fn new(files: &[(&str, &str)]) -> Self {
        let tree = Self(tempfile::tempdir().unwrap());
        files.iter().for_each(|(path, content)| tree.write(path, content));
        tree
    }

    fn write(&self, path: &str, content: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    /// A file whose reader waits for somebody who never writes.
    fn hang(&self, path: &str) -> PathBuf {
        let path = self.path(path);
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        path
    }
}

fn clock() -> Clock {
    Clock::new(|| ClockState::Synced)
}

fn value(probe: &mut Probe) -> Result<f64, String> {
    probe.read(clock().now()).raw.map(|raw| raw.value)
}

#[test]
fn an_iio_channel_is_read_finished_or_with_its_offset_and_scale() {
    let tree = Tree::new(&[
        ("in_temp_input", "21500\n"),
        ("in_humidityrelative_raw", "26214\n"),
        ("in_humidityrelative_offset", "-1200\n"),
        ("in_humidityrelative_scale", "1.907348632\n"),
        ("in_voltage3_raw", "512\n"),
        ("in_voltage_scale", "3.222656250\n"),
        ("in_accel_x_raw", "-10\n"),
        ("in_accel_scale", "0.5\n"),
        ("in_illuminance0_raw", "300\n"),
    ]);
    for (name, expected) in [
        ("in_temp_input", 21_500.0),
        ("in_temp", 21_500.0),
        ("in_humidityrelative_raw", 25_014.0 * 1.907_348_632),
        ("in_humidityrelative", 25_014.0 * 1.907_348_632),
        ("in_voltage3_raw", 1_650.0),
        ("in_accel_x", -5.0),
        ("in_illuminance0", 300.0),
    ] {
        let got = value(&mut Probe::iio(&tree.path(name))).unwrap();
        assert!((got - expected).abs() < 1e-9, "{name}: {got}");
    }
    assert!(value(&mut Probe::iio(&tree.path("in_pressure"))).unwrap_err().contains("in_pressure"));
}

#[test]
fn hardware_monitors_and_thermal_zones_are_one_number_each() {
    let tree = Tree::new(&[("hwmon3/temp1_input", "-1250\n"), ("thermal_zone0/temp", "48312\n")]);
    assert_eq!(value(&mut Probe::number(&tree.path("hwmon3/temp1_input"))), Ok(-1250.0));
    assert_eq!(value(&mut Probe::thermal(&tree.path("thermal_zone0"))), Ok(48_312.0));
    assert_eq!(value(&mut Probe::thermal(&tree.path("thermal_zone0/temp"))), Ok(48_312.0));
    tree.write("thermal_zone0/temp", "N/A\n");
    let problem = value(&mut Probe::thermal(&tree.path("thermal_zone0"))).unwrap_err();
    assert!(problem.ends_with("holds `N/A`, which is no number"), "{problem}");
}

#[test]
fn a_star_stands_for_a_number_that_changes_with_the_boot() {
    let tree = Tree::new(&[("a/hwmon7/temp1_input", "1\n"), ("a/power/control", "auto\n")]);
    let mut probe = Probe::number(&tree.path("a/hwmon*/temp1_input"));
    assert_eq!(value(&mut probe), Ok(1.0));
    // The driver was loaded again and has another number.
    fs::rename(tree.path("a/hwmon7"), tree.path("a/hwmon9")).unwrap();
    assert!(value(&mut probe).unwrap_err().contains("hwmon7"));
    assert_eq!(value(&mut probe), Ok(1.0));
    tree.write("a/hwmon4/temp1_input", "2\n");
    let ambiguous = value(&mut Probe::number(&tree.path("a/hwmon*/temp1_input"))).unwrap_err();
    assert!(ambiguous.ends_with("stands for 2 files; one is meant"), "{ambiguous}");
    let none = value(&mut Probe::number(&tree.path("a/mon*/temp1_input"))).unwrap_err();
    assert!(none.contains("nothing is at"), "{none}");
}

#[test]
fn a_supply_says_what_its_files_say() {
    let tree = Tree::new(&[
        ("BAT0/type", "Battery\n"),
        ("BAT0/present", "1\n"),
        ("BAT0/capacity", "83\n"),
        ("BAT0/status", "Charging\n"),
        ("AC/type", "Mains\n"),
        ("AC/online", "0\n"),
    ]);
    let condition = |name: &str| Probe::supply(&tree.path(name)).read(clock().now()).condition;
    let battery = condition("BAT0").unwrap();
    assert_eq!((battery.present, battery.capacity), (Some(true), Some(83.0)));
    assert_eq!(battery.status.as_deref(), Some("Charging"));
    assert_eq!(condition("AC").unwrap().online, Some(false));
    assert_eq!(condition("USB"), None);
    let missing = Probe::supply(&tree.path("USB")).read(clock().now()).raw.unwrap_err();
    assert!(missing.contains("No such file"), "{missing}");
}

#[test]
fn a_file_is_a_number_or_json_and_ages_while_nobody_writes_it() {
    let tree = Tree::new(&[
        ("t", " 21.5\n"),
        ("j", r#"{"co2": [{"ppm": 812}], "open": true, "t": "19.5", "x": null}"#),
    ]);
    let json = |pointer| value(&mut Probe::file(&tree.path("j"), Some(pointer)));
    assert_eq!(json("/co2/0/ppm"), Ok(812.0));
    assert_eq!(json("/open"), Ok(1.0));
    assert_eq!(json("/t"), Ok(19.5));
    assert!(json("/x").unwrap_err().ends_with("has no number at /x"));
    assert!(value(&mut Probe::file(&tree.path("t"), Some("/a"))).unwrap_err().contains("/a"));

    let mut probe = Probe::file(&tree.path("t"), None);
    let now = clock().now();
    let read = |probe: &mut Probe, after_s| {
        probe.read(now + Duration::from_secs(after_s)).raw.map(|raw| (raw.value, raw.age.as_secs()))
    };
    assert_eq!(read(&mut probe, 0), Ok((21.5, 0)));
    assert_eq!(read(&mut probe, 60), Ok((21.5, 60)));
    // The same number again, by another file of the same name: somebody has written.
    tree.write("new", " 21.5\n");
    fs::rename(tree.path("new"), tree.path("t")).unwrap();
    assert_eq!(read(&mut probe, 90), Ok((21.5, 0)));
    assert_eq!(read(&mut probe, 100), Ok((21.5, 10)));
}

#[test]
fn a_recording_is_played_from_the_first_read_and_ages_at_its_end() {
    let tree = Tree::new(&[("r.csv", "time,value\n100,1\n\n110.5,2\n120,3\n")]);
    let mut probe = Probe::replay(&tree.path("r.csv")).unwrap();
    let now = clock().now();
    for (after_ms, expected) in
        [(0, (1.0, 0)), (10_499, (1.0, 10_499)), (10_500, (2.0, 0)), (60_000, (3.0, 40_000))]
    {
        let raw = probe.read(now + Duration::from_millis(after_ms)).raw.unwrap();
        assert_eq!((raw.value, raw.age.as_millis()), expected);
    }
    for (text, problem) in [
        ("", ":1: there is no line"),
        ("1;2\n", ":1: write `time,value`"),
        ("1,2\n3,x\n", ":2: the value is no number"),
        ("1,2\nx,3\n", ":2: the time is neither"),
        ("5,2\n3,3\n", ":2: the time goes backwards"),
        ("0,1\n9,2\n8,3\n", ":3: the time goes backwards"),
    ] {
        tree.write("wrong.csv", text);
        let error = Probe::replay(&tree.path("wrong.csv")).unwrap_err();
        assert!(error.contains(problem), "{text:?}: {error}");
    }
    tree.write("r.csv", "2026-01-01T00:00:00Z,1\n2026-01-01T00:01:00+00:00,2\n");
    let mut probe = Probe::replay(&tree.path("r.csv")).unwrap();
    probe.read(now).raw.unwrap();
    assert_eq!(probe.read(now + Duration::from_secs(60)).raw.unwrap().value, 2.0);
}

#[test]
fn the_microphone_is_read_through_its_loudness() {
    let loudness = Arc::new(Loudness::default());
    let mut probe = Probe::microphone(Arc::clone(&loudness));
    assert!(value(&mut probe).unwrap_err().contains("gives no sound"));
    loudness.add(crate::audio::Level { rms_dbfs: -40.0, peak: 0.1, clipped: 0 });
    assert!((value(&mut probe).unwrap() + 40.0).abs() < 1e-3);
    assert!(value(&mut probe).is_err());
}

/// Reads the probes, in this order, until `wanted` of them have answered; which, and whether the rest
/// answers as soon as it can.
fn read_all(probes: Vec<Probe>, wanted: usize) -> (Vec<usize>, Readers) {
    let mut readers = Readers::new(clock());
    for (place, probe) in probes.into_iter().enumerate() {
        readers.submit(clock().now(), place, probe).unwrap();
    }
    let mut answered = Vec::new();
    let began = clock().now();
    while answered.len() < wanted && began.elapsed() < Duration::from_secs(20) {
        let done = readers.next(clock().now(), SLOW);
        answered.extend(done.map(|done| done.place));
    }
    (answered, readers)
}

#[test]
fn a_read_that_hangs_holds_up_no_other_and_is_answered_when_it_no_longer_does() {
    let tree = Tree::new(&[("a", "1"), ("b", "2"), ("c", "3")]);
    let hanging = [tree.hang("x"), tree.hang("y")];
    let probe = |name: &str| Probe::number(&tree.path(name));
    let probes = vec![probe("a"), probe("x"), probe("b"), probe("y"), probe("c")];
    let (answered, mut readers) = read_all(probes, 3);
    assert_eq!(answered, [0, 2, 4]);
    assert!(readers.next(clock().now(), SLOW).is_none(), "the others hang");
    for path in &hanging {
        fs::write(path, "7").unwrap();
    }
    let mut late: Vec<_> = (0..2)
        .map(|_| readers.next(clock().now(), Duration::from_secs(20)).expect("an answer"))
        .map(|done| (done.place, done.measured.raw.unwrap().value))
        .collect();
    late.sort_by_key(|(place, _)| *place);
    assert_eq!(late, [(1, 7.0), (3, 7.0)]);
}

/// The control of the test above: one thread that reads them in turn gets no further than the first
/// that hangs.
#[test]
fn a_single_thread_would_be_held_up() {
    let tree = Tree::new(&[("b", "2")]);
    let hanging = tree.hang("x");
    let (answered, answers) = std::sync::mpsc::channel();
    let mut probes = [Probe::number(&hanging), Probe::number(&tree.path("b"))];
    let reader = std::thread::spawn(move || {
        for probe in &mut probes {
            answered.send(probe.read(clock().now()).raw.is_ok()).unwrap();
        }
    });
    assert!(answers.recv_timeout(Duration::from_millis(300)).is_err());
    fs::write(&hanging, "7").unwrap();
    reader.join().unwrap();
    assert_eq!(answers.iter().count(), 2);
}

/// A device whose buffer holds a byte, our channel in 12 bits, and the time.
fn buffering(enabled: &str) -> Tree {
    let device = |name: &str| format!("iio:device0/{name}");
    let tree = Tree::new(&[]);
    for (name, content) in [
        ("in_voltage1_offset", "10\n"),
        ("in_voltage_scale", "0.5\n"),
        ("buffer/enable", enabled),
        ("buffer/length", "4\n"),
        ("trigger/current_trigger", "\n"),
        ("scan_elements/in_voltage0_en", "1\n"),
        ("scan_elements/in_voltage0_index", "0\n"),
        ("scan_elements/in_voltage0_type", "le:u8/8>>0\n"),
        ("scan_elements/in_voltage1_en", "0\n"),
        ("scan_elements/in_voltage1_index", "1\n"),
        ("scan_elements/in_voltage1_type", "be:s12/16>>4\n"),
        ("scan_elements/in_accel_x_en", "0\n"),
        ("scan_elements/in_accel_x_index", "2\n"),
        ("scan_elements/in_accel_x_type", "nonsense\n"),
        ("scan_elements/in_timestamp_en", "1\n"),
        ("scan_elements/in_timestamp_index", "3\n"),
        ("scan_elements/in_timestamp_type", "le:s64/64>>0\n"),
    ] {
        tree.write(&device(name), content);
    }
    tree.write("dev/iio:device0", "");
    tree
}

fn put(tree: &Tree, values: &[i16]) {
    let mut node = fs::File::options().append(true).open(tree.path("dev/iio:device0")).unwrap();
    for value in values {
        let mut scan = vec![9, 0];
        scan.extend((value << 4).to_be_bytes());
        scan.resize(16, 0xee);
        std::io::Write::write_all(&mut node, &scan).unwrap();
    }
}

#[test]
fn a_reading_of_a_buffer_is_the_mean_of_what_came_since_the_last_and_grows_old_where_nothing_does()
{
    let tree = buffering("0\n");
    let path = tree.path("iio:device0/in_voltage1");
    let mut sensor = buffer::Buffered::with_nodes(&path, "timer", &tree.path("dev"));
    put(&tree, &[-4, 7]);
    let now = clock().now();
    assert_eq!(sensor.read(now), Ok(Raw { value: (1.5 + 10.0) * 0.5, age: Duration::ZERO }));
    let written =
        |name: &str| fs::read_to_string(tree.path(&format!("iio:device0/{name}"))).unwrap();
    let state = ["trigger/current_trigger", "scan_elements/in_voltage1_en", "buffer/enable"];
    assert_eq!(state.map(written), ["timer", "1", "1"]);
    assert_eq!(written("scan_elements/in_accel_x_en"), "0\n", "another's channel is left alone");
    let later = now + Duration::from_secs(3);
    assert_eq!(sensor.read(later), Ok(Raw { value: 5.75, age: Duration::from_secs(3) }));
    put(&tree, &[0]);
    assert_eq!(sensor.read(later), Ok(Raw { value: 5.0, age: Duration::ZERO }));
    drop(sensor);
    assert_eq!(written("buffer/enable"), "0");
}

#[test]
fn a_buffer_that_is_prepared_is_left_as_it_is_and_one_that_is_full_gives_no_reading() {
    let tree = buffering("1\n");
    tree.write("iio:device0/trigger/current_trigger", "timer\n");
    tree.write("iio:device0/scan_elements/in_voltage1_en", "1\n");
    let path = tree.path("iio:device0/in_voltage1_raw");
    let mut sensor = buffer::Buffered::with_nodes(&path, "timer", &tree.path("dev"));
    put(&tree, &[2, 2, 2]);
    assert_eq!(sensor.read(clock().now()).unwrap().value, 6.0);
    put(&tree, &[2, 2, 2, 2]);
    let problem = sensor.read(clock().now()).unwrap_err();
    assert!(problem.contains("buffer of 4 scans was full"), "{problem}");
    drop(sensor);
    let enabled = fs::read_to_string(tree.path("iio:device0/buffer/enable")).unwrap();
    assert_eq!(enabled, "1\n", "whoever prepared it keeps it");
    tree.write("iio:device0/scan_elements/in_voltage1_type", "le:s12/24>>0\n");
    let mut sensor = buffer::Buffered::with_nodes(&path, "timer", &tree.path("dev"));
    let problem = sensor.read(clock().now()).unwrap_err();
    assert!(problem.contains("`le:s12/24>>0` is no type"), "{problem}");
}
