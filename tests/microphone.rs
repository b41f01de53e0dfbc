#![allow(
    clippy::disallowed_methods,
    reason = "a microphone runs in real time, and so does the thread that plays one"
)]
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]
//! Capture through cpal and ALSA, from a microphone that a FIFO stands in for.
//!
//! An ALSA configuration of our own makes the default device read raw samples from a FIFO, which a
//! thread of the test fills at the pace of real time. ALSA reads its configuration once a process,
//! so each capture runs in a child: this test binary itself, told by an environment variable to
//! run [`child`] alone.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hark::clock::{Clock, ClockState};
use hark::driver::audio_file::AudioFile;
use hark::driver::audio_stream::AudioStream;
use hark::driver::models;
use hark::voice::{Detector, Settings};

/// What the child is to do: `detect`, `overrun`, `unknown` or `stale`.
const TASK: &str = "HARK_TEST_MICROPHONE_TASK";
/// Where the child writes what came of it.
const REPORT: &str = "HARK_TEST_MICROPHONE_REPORT";
const DEADLINE: Duration = Duration::from_secs(60);

const ALSA: &str = r#"
pcm.null { type null }
pcm.!default { type file slave.pcm "null" file "/dev/null" infile "@FIFO@" format "raw" }
ctl.!default { type null }
"#;

fn clock() -> Clock {
    Clock::new(|| ClockState::Unsynced)
}

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/sim/cry-for-help.flac")
}

fn detector() -> Detector {
    let mut places = models::search_path(None);
    places.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("models"));
    let model = models::load(&places);
    let model = model.unwrap_or_else(|error| panic!("{error} (run scripts/fetch-models first)"));
    Detector::new(Arc::new(model), &Settings::default()).unwrap()
}

/// Not a test of its own: the process that captures, when a test has started it for that.
#[test]
fn child() {
    let Ok(task) = std::env::var(TASK) else { return };
    let report = match task.as_str() {
        "detect" => capture_and_detect(),
        "overrun" => capture_too_late(),
        "stale" => capture_until_stale(),
        _ => AudioStream::open("no such card", clock()).unwrap_err().to_string(),
    };
    std::fs::write(std::env::var(REPORT).unwrap(), report).unwrap();
}

/// Detections as "phrase milliseconds", until the recording must be over.
fn capture_and_detect() -> String {
    let mut stream = AudioStream::open("default", clock()).unwrap().unwrap();
    let (mut detector, mut sound, mut heard) = (detector(), Vec::new(), Vec::new());
    let mut taken = 0;
    while taken < 18 * 16_000 {
        sound.clear();
        taken += stream.read_within(Duration::from_secs(5), &mut sound).unwrap();
        assert!(!sound.is_empty(), "no sound for 5 s; {:?}", stream.health().failure());
        for detection in detector.push(&sound).unwrap() {
            heard.push(format!("{} {}", detection.phrase, detection.at.as_millis()));
        }
    }
    assert_eq!(stream.overruns(), 0);
    heard.join("\n")
}

/// The overruns of a stream that nobody reads for longer than its ring lasts.
fn capture_too_late() -> String {
    let mut stream = AudioStream::open("default", clock()).unwrap().unwrap();
    let started = Instant::now();
    while stream.overruns() == 0 && started.elapsed() < DEADLINE {
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut sound = Vec::new();
    let waiting = stream.read(&mut sound).unwrap();
    let after = stream.read_within(Duration::from_secs(5), &mut sound).unwrap();
    format!("{} {waiting} {after}", stream.overruns())
}

/// Whether the stream is stale while the microphone runs, and after it has stopped.
fn capture_until_stale() -> String {
    let mut stream = AudioStream::open("default", clock()).unwrap().unwrap();
    let mut sound = Vec::new();
    stream.read_within(Duration::from_secs(5), &mut sound).unwrap();
    let at_first = stream.is_stale(Instant::now());
    let started = Instant::now();
    while !stream.is_stale(Instant::now()) && started.elapsed() < DEADLINE {
        stream.read_within(Duration::from_millis(100), &mut sound).unwrap();
    }
    format!("{at_first} {}", stream.is_stale(Instant::now()))
}

/// A FIFO, the configuration that reads from it, and the thread that fills it.
struct Microphone {
    directory: tempfile::TempDir,
    stop: Arc<AtomicBool>,
    feeder: Option<std::thread::JoinHandle<()>>,
}

impl Microphone {
    /// Plays `samples`, then silence, or nothing at all if `ends`.
    fn playing(samples: Vec<f32>, ends: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("microphone");
        assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let configuration = ALSA.replace("@FIFO@", &fifo.display().to_string());
        std::fs::write(directory.path().join("asound.conf"), configuration).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let feeder = std::thread::Builder::new().name("microphone".to_owned());
        let feeder = feeder.spawn(move || feed(&fifo, &samples, ends, &stopped)).unwrap();
        Self { directory, stop, feeder: Some(feeder) }
    }

    /// What the child says after `task`.
    fn child(&self, task: &str) -> String {
        let report = self.directory.path().join("report");
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env("ALSA_CONFIG_PATH", self.directory.path().join("asound.conf"))
            .env(TASK, task)
            .env(REPORT, &report)
            .stdout(Stdio::null())
            .spawn();
        wait(child.unwrap());
        std::fs::read_to_string(report).expect("the child says on stderr why it has no report")
    }
}

impl Drop for Microphone {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A feeder that waits for a reader is let go by one.
        let fifo = self.directory.path().join("microphone");
        let reader = std::fs::OpenOptions::new().read(true).write(true).open(fifo);
        if let Some(feeder) = self.feeder.take() {
            let _ = feeder.join();
        }
        drop(reader);
    }
}

fn wait(mut child: Child) {
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if started.elapsed() > DEADLINE {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("the capturing process did not end within {DEADLINE:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Writes 20 ms at a time. A reader that goes away (cpal opens a device first to ask what it can)
/// is followed by one for whom everything begins anew.
fn feed(fifo: &Path, samples: &[f32], ends: bool, stop: &AtomicBool) {
    let bytes: Vec<u8> =
        samples.iter().flat_map(|sample| ((sample * 32_767.0) as i16).to_le_bytes()).collect();
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut pipe) = std::fs::OpenOptions::new().write(true).open(fifo) else { return };
        let (mut due, mut rest) = (Instant::now(), bytes.as_slice());
        while !stop.load(Ordering::Relaxed) {
            let (now, after) = rest.split_at(rest.len().min(640));
            rest = after;
            let mut step = now.to_vec();
            step.resize(if ends && now.is_empty() { 0 } else { 640 }, 0);
            if pipe.write_all(&step).is_err() {
                break;
            }
            due += Duration::from_millis(20);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    }
}

#[test]
fn cry_through_the_sound_card_is_detected_as_from_the_file() {
    let sound = AudioFile::open(&demo()).unwrap().read_to_end().unwrap();
    let mut from_file = detector();
    let mut expected = from_file.push(&sound).unwrap();
    expected.extend(from_file.finish().unwrap());
    let report = Microphone::playing(sound, false).child("detect");
    let heard: Vec<(&str, u64)> = report
        .lines()
        .map(|line| line.rsplit_once(' ').map(|(phrase, ms)| (phrase, ms.parse().unwrap())))
        .collect::<Option<_>>()
        .unwrap();
    assert_eq!(heard.len(), expected.len(), "{heard:?} instead of {expected:?}");
    for ((phrase, at_ms), expected) in heard.iter().zip(&expected) {
        assert_eq!(*phrase, expected.phrase);
        let off_ms = i64::try_from(*at_ms).unwrap() - expected.at.as_millis() as i64;
        assert!(off_ms.abs() <= 80, "{off_ms} ms off");
    }
}

#[test]
fn sound_that_nobody_takes_is_counted_and_the_stream_goes_on() {
    let report = Microphone::playing(vec![0.1; 16_000], false).child("overrun");
    let counts: Vec<u64> = report.split(' ').map(|count| count.parse().unwrap()).collect();
    assert!(counts[0] > 0, "overruns: {report}");
    assert!(counts[1] >= 3 * 16_000, "what the ring held: {report}");
    assert!(counts[2] > 0, "what came afterwards: {report}");
}

#[test]
fn microphone_that_stops_is_noticed_although_nothing_says_so() {
    let report = Microphone::playing(vec![0.1; 24_000], true).child("stale");
    assert_eq!(report, "false true");
}

#[test]
fn unknown_card_is_refused_with_the_names_there_are() {
    let report = Microphone::playing(vec![], false).child("unknown");
    assert!(report.contains("`no such card`") && report.contains("\"default\""), "{report}");
}
