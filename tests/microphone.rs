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

mod support;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hark::agent::{self, Happening, Parts};
use hark::clock::{Clock, ClockState};
use hark::config;
use hark::driver::audio_file::AudioFile;
use hark::driver::audio_stream::AudioStream;
use hark::driver::models;
use hark::voice::{Detection, Detector, Settings};
use support::mosquitto::{Mosquitto, Subscriber};

/// What the child is to do: `detect`, `overrun`, `unknown`, `stale`, `run INPUT` or `health BLOCKS`.
const TASK: &str = "HARK_TEST_MICROPHONE_TASK";
/// Where the child writes what came of it.
const REPORT: &str = "HARK_TEST_MICROPHONE_REPORT";
/// The URL of the broker that the child's agent publishes to.
const BROKER: &str = "HARK_TEST_MICROPHONE_BROKER";
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
        health if health.starts_with("health ") => {
            run_agent("default", health[7..].parse().unwrap(), |_| {})
        }
        run if run.starts_with("run ") => {
            let mut privacy = Privacy::default();
            let heard = run_agent(&run[4..], 180, |_| privacy.look());
            format!("{heard}{}", privacy.findings())
        }
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

/// The agent with this input, until it has heard `blocks` of 100 ms: a line for each detection, as
/// "detected phrase milliseconds", and each fault, as "fault blocks problem" and "mended blocks".
fn run_agent(input: &str, blocks: u32, mut each_second: impl FnMut(&Path)) -> String {
    let report = PathBuf::from(std::env::var(REPORT).unwrap());
    let directory = report.parent().unwrap().join("state");
    std::fs::create_dir_all(&directory).unwrap();
    let text = format!(
        "[device]\nid = \"test\"\n[audio]\ninput = {input:?}\n[outbox]\npath = {:?}\n\
         [uplink]\nurl = {:?}\n[ingest]\nsocket = \"\"\n[ops]\nlisten = \"\"\n",
        directory.join("outbox"),
        std::env::var(BROKER).unwrap(),
    );
    let config = config::load("test", &text, std::iter::empty()).unwrap().config;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let parts = Parts::device();
        let mut happenings = parts.happenings.subscribe();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let agent = agent::run(config, parts, async {
            let _ = stopped.await;
            "the test is over"
        });
        let story = async {
            let (mut lines, mut heard) = (String::new(), 0);
            while heard < blocks {
                match happenings.recv().await.unwrap() {
                    Happening::Level(_) => {
                        heard += 1;
                        if heard % 10 == 0 {
                            each_second(&directory);
                        }
                    }
                    Happening::Detected { phrase, at, .. } => {
                        lines += &format!("detected {phrase} {}\n", at.as_millis());
                    }
                    Happening::Fault { part, problem } if part == "microphone" => {
                        lines += &format!("fault {heard} {problem}\n");
                    }
                    Happening::Mended(part) if part == "microphone" => {
                        lines += &format!("mended {heard}\n");
                    }
                    _ => {}
                }
            }
            stop.send(()).unwrap();
            lines
        };
        let (ended, lines) = tokio::join!(agent, story);
        ended.unwrap();
        lines
    })
}

/// Looks at the files that this process has open, as long as it runs.
#[derive(Default)]
struct Privacy {
    looks: u32,
    open: std::collections::BTreeSet<String>,
}

impl Privacy {
    fn look(&mut self) {
        self.looks += 1;
        for entry in std::fs::read_dir("/proc/self/fd").unwrap().flatten() {
            // Where the test's own output goes is not the agent's.
            if ["0", "1", "2"].iter().any(|standard| entry.file_name() == *standard) {
                continue;
            }
            // One that was closed in the meantime, as that of the listing itself, has no target.
            if let Ok(target) = std::fs::read_link(entry.path()) {
                self.open.insert(target.display().to_string());
            }
        }
    }

    /// A line for each file that was open: "open path".
    fn findings(&self) -> String {
        assert!(self.looks >= 10);
        self.open.iter().map(|path| format!("open {path}\n")).collect()
    }
}

/// What a card does wrong, in its steps of 20 ms.
#[derive(Default)]
struct Faults {
    /// Twice the pace.
    fast: std::ops::Range<u32>,
    /// Nothing comes.
    gone: std::ops::Range<u32>,
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
        Self::with_faults(samples, ends, Faults::default())
    }

    fn with_faults(samples: Vec<f32>, ends: bool, faults: Faults) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("microphone");
        assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let configuration = ALSA.replace("@FIFO@", &fifo.display().to_string());
        std::fs::write(directory.path().join("asound.conf"), configuration).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let feeder = std::thread::Builder::new().name("microphone".to_owned());
        let feeder = feeder.spawn(move || feed(&fifo, &samples, ends, &faults, &stopped)).unwrap();
        Self { directory, stop, feeder: Some(feeder) }
    }

    /// What the child says after `task`.
    fn child(&self, task: &str) -> String {
        // Nobody listens there.
        self.child_with(task, "mqtt://127.0.0.1:1")
    }

    fn child_with(&self, task: &str, broker: &str) -> String {
        let report = self.directory.path().join("report");
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env("ALSA_CONFIG_PATH", self.directory.path().join("asound.conf"))
            .env(TASK, task)
            .env(REPORT, &report)
            .env(BROKER, broker)
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
fn feed(fifo: &Path, samples: &[f32], ends: bool, faults: &Faults, stop: &AtomicBool) {
    let bytes: Vec<u8> =
        samples.iter().flat_map(|sample| ((sample * 32_767.0) as i16).to_le_bytes()).collect();
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut pipe) = std::fs::OpenOptions::new().write(true).open(fifo) else { return };
        let (mut due, mut rest) = (Instant::now(), bytes.as_slice());
        for number in 0u32.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            due += Duration::from_millis(if faults.fast.contains(&number) { 10 } else { 20 });
            if faults.gone.contains(&number) {
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                continue;
            }
            let (now, after) = rest.split_at(rest.len().min(640));
            rest = after;
            let mut step = now.to_vec();
            step.resize(if ends && now.is_empty() { 0 } else { 640 }, 0);
            if pipe.write_all(&step).is_err() {
                break;
            }
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    }
}

#[test]
fn cry_through_the_sound_card_is_detected_as_from_the_file() {
    let sound = AudioFile::open(&demo()).unwrap().read_to_end().unwrap();
    let report = Microphone::playing(sound.clone(), false).child("detect");
    assert_same(report.lines(), &detections(&sound));
}

fn detections(sound: &[f32]) -> Vec<Detection> {
    let mut detector = detector();
    let mut detections = detector.push(sound).unwrap();
    detections.extend(detector.finish().unwrap());
    detections
}

/// Lines of "phrase milliseconds".
fn assert_same<'a>(lines: impl Iterator<Item = &'a str>, expected: &[Detection]) {
    let heard: Vec<(&str, u64)> = lines
        .map(|line| line.rsplit_once(' ').map(|(phrase, ms)| (phrase, ms.parse().unwrap())))
        .collect::<Option<_>>()
        .unwrap();
    assert_eq!(heard.len(), expected.len(), "{heard:?} instead of {expected:?}");
    for ((phrase, at_ms), expected) in heard.iter().zip(expected) {
        assert_eq!(*phrase, expected.phrase);
        let off_ms = i64::try_from(*at_ms).unwrap() - expected.at.as_millis() as i64;
        assert!(off_ms.abs() <= 80, "{off_ms} ms off");
    }
}

fn with_prefix<'a>(report: &'a str, prefix: &'a str) -> impl Iterator<Item = &'a str> {
    report.lines().filter_map(move |line| line.strip_prefix(prefix))
}

#[test]
fn agent_detects_the_same_from_a_file_and_through_the_sound_card_as_the_detector_alone() {
    let sound = AudioFile::open(&demo()).unwrap().read_to_end().unwrap();
    let expected = detections(&sound);
    assert!(!expected.is_empty());
    let microphone = Microphone::playing(sound, false);
    for input in [format!("wav:{}", demo().display()), "default".to_owned()] {
        let report = microphone.child(&format!("run {input}"));
        assert_same(with_prefix(&report, "detected "), &expected);
    }
}

/// A quiet room.
fn room(seconds: usize) -> Vec<f32> {
    let mut state = 7u32;
    let noise = std::iter::repeat_with(move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        0.01 * ((state >> 8) as f32 / 8_388_608.0 - 1.0)
    });
    noise.take(seconds * 16_000).collect()
}

/// The only fault in a report, when it was raised and when it was cleared, in blocks of 100 ms.
fn the_fault(report: &str) -> (u32, String, u32) {
    let faults: Vec<&str> = with_prefix(report, "fault ").collect();
    let [fault] = faults.as_slice() else { panic!("one fault: {report}") };
    let (raised, problem) = fault.split_once(' ').unwrap();
    let mended: Vec<u32> = with_prefix(report, "mended ").map(|n| n.parse().unwrap()).collect();
    let [mended] = mended.as_slice() else { panic!("once: {report}") };
    (raised.parse().unwrap(), problem.to_owned(), *mended)
}

#[test]
fn flat_line_raises_a_fault_within_ten_seconds_and_sound_clears_it() {
    let sound = [room(2), vec![0.0; 10 * 16_000], room(14)].concat();
    let report = Microphone::playing(sound, false).child("health 250");
    let (raised, problem, mended) = the_fault(&report);
    assert!(problem.starts_with("flat line"), "{report}");
    assert!((20..=120).contains(&raised), "{report}");
    assert!((120..=220).contains(&mended), "{report}");
}

#[test]
fn a_microphone_that_goes_away_is_a_fault_and_is_listened_to_when_it_is_back() {
    // Three seconds of sound, eight of nothing, and sound again.
    let faults = Faults { gone: 150..550, ..Faults::default() };
    let card = Microphone::with_faults(room(30), false, faults);
    let (raised, problem, mended) = the_fault(&card.child("health 60"));
    assert_eq!(problem, "default gives no sound any more; trying again every 5 s");
    assert!((20..=30).contains(&raised), "{raised}");
    assert!((raised..60).contains(&mended), "{mended}");
}

/// A card that runs twice as fast as it says gives 20 blocks a second.
#[test]
fn a_wrong_rate_raises_a_fault_within_ten_seconds_and_the_right_one_clears_it() {
    // 100 steps are two seconds of sound: 2 s as they should be, 10 s with twice as much, and 10 s.
    let faults = Faults { fast: 100..1100, ..Faults::default() };
    let card = Microphone::with_faults(room(40), false, faults);
    let (raised, problem, mended) = the_fault(&card.child("health 320"));
    assert!(problem.starts_with("wrong rate: it gives 2"), "{problem}");
    assert!((20..=220).contains(&raised), "{raised}");
    assert!((220..=320).contains(&mended), "{mended}");
}

#[test]
fn audio_is_in_no_open_file_in_nothing_written_and_in_nothing_published() {
    let sound = AudioFile::open(&demo()).unwrap().read_to_end().unwrap();
    let broker = Mosquitto::start();
    let subscriber = Subscriber::start(broker.port(), "hark/#");
    let microphone = Microphone::playing(sound.clone(), false);
    let report = microphone.child_with("run default", &broker.url());
    assert!(with_prefix(&report, "detected ").next().is_some(), "it listened: {report}");
    let own = microphone.directory.path().display().to_string();
    for path in with_prefix(&report, "open ") {
        let harmless = path.starts_with(&format!("{own}/state/outbox"))
            || path == format!("{own}/microphone")
            || ["/dev/null", "/dev/full", "/proc/", "socket:", "pipe:", "anon_inode:"]
                .iter()
                .any(|kind| path.starts_with(kind));
        assert!(harmless, "{path} was open: {report}");
    }
    let needles = needles(&sound);
    let mut files = 0;
    let mut places = vec![microphone.directory.path().join("state")];
    while let Some(place) = places.pop() {
        for entry in std::fs::read_dir(place).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                places.push(path);
                continue;
            }
            files += 1;
            assert!(!holds(&std::fs::read(&path).unwrap(), &needles), "audio in {path:?}");
        }
    }
    assert!(files > 0, "the outbox has files");
    let published = subscriber.wait_for("detection", |all| {
        all.iter().any(|m| String::from_utf8_lossy(&m.payload).contains("keyphrase.detected"))
    });
    let bytes: usize = published.iter().map(|message| message.payload.len()).sum();
    assert!(bytes < 32_000, "{bytes} bytes: a second of audio is no less");
    assert!(published.iter().all(|message| !holds(&message.payload, &needles)));
    // The control: what would be found, were it there.
    let leaked: Vec<u8> =
        sound.iter().flat_map(|s| ((s * 32_767.0) as i16).to_le_bytes()).collect();
    assert!(holds(&leaked, &needles));
}

/// Pieces of 8 samples of the cry as they would be written, in 16 bits and as floats.
fn needles(sound: &[f32]) -> Vec<Vec<u8>> {
    let cry = &sound[9 * 16_000 + 8_000..10 * 16_000 + 8_000];
    let pieces =
        cry.chunks_exact(8).filter(|piece| piece.iter().any(|s| s.abs() > 0.05)).step_by(50);
    pieces
        .flat_map(|piece| {
            let integers =
                piece.iter().flat_map(|s| ((s * 32_767.0) as i16).to_le_bytes()).collect();
            let heard = piece.iter().map(|s| f32::from((s * 32_767.0) as i16) / 32_768.0);
            [integers, heard.flat_map(f32::to_le_bytes).collect()]
        })
        .collect()
}

fn holds(hay: &[u8], needles: &[Vec<u8>]) -> bool {
    needles.iter().any(|needle| hay.windows(needle.len()).any(|window| window == needle))
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
