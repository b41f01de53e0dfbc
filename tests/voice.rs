#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]
//! The voice detector with its real model, on the recording that the simulator plays.
//!
//! Needs the weights: `scripts/test` fetches them with `scripts/fetch-models`. Without them these
//! tests fail rather than pass by doing nothing.

use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use hark::driver::audio_file::AudioFile;
use hark::driver::models;
use hark::voice::{
    Agreement, Detection, Detector, Keyphrase, Model, OperatingPoint, Opinion, Recogniser,
    Settings, VoiceError,
};
use proptest::prelude::*;

static MODEL: LazyLock<Arc<Model>> = LazyLock::new(|| {
    let mut places = models::search_path(None);
    places.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("models"));
    let model = models::load(&places);
    Arc::new(model.unwrap_or_else(|error| panic!("{error} (run scripts/fetch-models first)")))
});

fn demo() -> Vec<f32> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/sim/cry-for-help.flac");
    AudioFile::open(&path).unwrap().read_to_end().unwrap()
}

fn detector(settings: &Settings) -> Detector {
    Detector::new(Arc::clone(&MODEL), settings).unwrap()
}

fn detect(
    settings: &Settings,
    sound: &[f32],
    chunks: impl Iterator<Item = usize>,
) -> Vec<Detection> {
    let mut detector = detector(settings);
    let (mut detections, mut rest) = (Vec::new(), sound);
    for chunk in chunks {
        let (piece, after) = rest.split_at(chunk.min(rest.len()));
        detections.extend(detector.push(piece).unwrap());
        rest = after;
        if rest.is_empty() {
            break;
        }
    }
    assert!(rest.is_empty(), "the chunks must cover the sound");
    detections.extend(detector.finish().unwrap());
    detections
}

fn detect_whole(settings: &Settings, sound: &[f32]) -> Vec<Detection> {
    detect(settings, sound, std::iter::repeat(1_600))
}

/// Noise of a quiet room, the same each time.
fn noise(samples: usize, amplitude: f32) -> Vec<f32> {
    let mut state = 7u32;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        amplitude * ((state >> 8) as f32 / 8_388_608.0 - 1.0)
    })
    .take(samples)
    .collect()
}

#[test]
fn model_hears_what_another_runtime_hears_with_it() {
    // A line a frame, written by scripts/voice/compare-engine from ONNX Runtime: most probable token, log probability.
    let expected: Vec<(usize, f32)> = include_str!("voice-engine.txt")
        .lines()
        .map(|line| line.split_once(' ').unwrap())
        .map(|(token, log_prob)| (token.parse().unwrap(), log_prob.parse().unwrap()))
        .collect();
    let mut heard = Vec::new();
    for window in demo().chunks(48_000) {
        let mut window = window.to_vec();
        window.resize(48_000, 0.0);
        let log_probs = MODEL.log_probs(window).unwrap();
        for frame in log_probs.chunks(log_probs.len() / 151) {
            let best = frame.iter().copied().enumerate().max_by(|a, b| a.1.total_cmp(&b.1));
            heard.push(best.unwrap());
        }
    }
    assert_eq!(heard.len(), expected.len());
    for (number, (heard, expected)) in heard.iter().zip(&expected).enumerate() {
        assert_eq!(heard.0, expected.0, "frame {number}");
        assert!((heard.1 - expected.1).abs() < 0.02, "frame {number}: {heard:?} {expected:?}");
    }
}

#[test]
fn scores_over_time_reach_the_detection_and_do_not_change_it() {
    let mut detector = detector(&Settings::default());
    detector.keep_scores();
    let (mut points, mut detections) = (Vec::new(), Vec::new());
    for piece in demo().chunks(1_600) {
        detections.extend(detector.push(piece).unwrap());
        points.extend(detector.take_scores());
    }
    detections.extend(detector.finish().unwrap());
    points.extend(detector.take_scores());
    assert_eq!(detections, detect_whole(&Settings::default(), &demo()));
    let cry = &detections[0];
    let near = |at: Duration| at.abs_diff(cry.at) <= Duration::from_millis(200);
    let best = points.iter().filter(|p| p.phrase == cry.phrase && near(p.at));
    let best = best.map(|point| point.score).fold(0.0, f32::max);
    assert!((best - cry.score).abs() < 0.15, "{best} {cry:?}");
    let of_one: Vec<_> = points.iter().filter(|p| p.phrase == "help").map(|p| p.at).collect();
    assert!(of_one.windows(2).all(|pair| pair[0] < pair[1]), "in the order of time, none twice");
}

#[test]
fn cry_in_the_demo_is_detected_once_and_the_harmless_talk_is_not() {
    let detections = detect_whole(&Settings::default(), &demo());
    let [cry] = detections.as_slice() else { panic!("one detection: {detections:?}") };
    assert_eq!(cry.phrase, "help me");
    assert!((9.0..11.0).contains(&cry.at.as_secs_f32()), "{cry:?}");
    assert!(cry.score >= OperatingPoint::Balanced.threshold() && cry.score <= 1.0, "{cry:?}");
    assert!((-25.0..-3.0).contains(&cry.level_dbfs), "{cry:?}");
}

#[test]
fn cry_is_detected_wherever_the_windows_fall() {
    let sound = demo();
    for offset in (0..8_000).step_by(2_000) {
        let detections = detect_whole(&Settings::default(), &sound[offset..]);
        assert_eq!(detections.len(), 1, "offset {offset}: {detections:?}");
    }
}

/// How long after its end the cry of the demo is reported, others talking on at once, and how long after it by windows each half second
/// alone. The talk before it is cut by `offset` samples.
fn delays_amid_talk(offset: usize) -> (Duration, Duration) {
    let sound = demo();
    let cry = detect_whole(&Settings::default(), &sound)[0].at;
    let end = (cry.as_secs_f64() * 16_000.0) as usize + 1_600;
    let mut amid = sound[offset..end].to_vec();
    amid.extend(&sound[32_000..64_000]);
    let mut detector = detector(&Settings::default());
    for (number, piece) in amid.chunks(1_600).enumerate() {
        if let Some(detection) = detector.push(piece).unwrap().first() {
            let now = Duration::from_millis(100 * (number as u64 + 1));
            let earliest = (detection.at + Duration::from_millis(300)).as_millis() as u64;
            let by_hops = Duration::from_millis(earliest.next_multiple_of(500));
            return (now - detection.at, by_hops - detection.at);
        }
    }
    panic!("offset {offset}: nothing was detected");
}

#[test]
fn cry_in_the_midst_of_talk_is_reported_soon_wherever_the_windows_fall() {
    let soon = Duration::from_millis(400);
    let delays: Vec<_> = (0..8_000).step_by(1_600).map(delays_amid_talk).collect();
    assert!(delays.iter().all(|(delay, _)| *delay <= soon), "{delays:?}");
    assert!(delays.iter().any(|(_, by_hops)| *by_hops > soon), "nothing was gained: {delays:?}");
}

#[test]
fn cry_thirty_decibels_lower_is_still_detected() {
    let quiet: Vec<f32> = demo().iter().map(|sample| sample * 0.031_6).collect();
    let detections = detect_whole(&Settings::default(), &quiet);
    assert_eq!(detections.len(), 1, "{detections:?}");
}

#[test]
fn each_of_two_cries_is_detected_and_the_cooldown_keeps_the_second_back() {
    let mut sound = demo();
    sound.extend(demo());
    let with = |cooldown| {
        let settings = Settings { cooldown, ..Settings::default() };
        detect_whole(&settings, &sound).len()
    };
    assert_eq!(with(Duration::from_secs(5)), 2);
    assert_eq!(with(Duration::from_secs(60)), 1);
}

/// A recogniser that says the same of every window, or fails.
#[derive(Debug)]
struct Parrot {
    opinion: Option<Opinion>,
    asked: Vec<u64>,
}

impl Recogniser for Parrot {
    fn ask(&mut self, number: u64, word: &'static str, window: Vec<f32>, _: bool) -> bool {
        assert_eq!((word, window.len()), ("help", 35_200));
        self.asked.push(number);
        true
    }

    fn answers(&mut self, _: bool) -> Vec<(u64, Option<Opinion>)> {
        let opinion = self.opinion;
        self.asked.drain(..).map(|number| (number, opinion)).collect()
    }
}

const YES: Option<Opinion> = Some(Opinion { odds: 1000.0, sureness: -0.1 });
const NO: Option<Opinion> = Some(Opinion { odds: 0.001, sureness: -0.1 });

/// What is detected in the demo at `threshold` with a recogniser of this `opinion`, listening for this phrase alone.
fn confirmed(phrase: &str, threshold: f32, opinion: Option<Opinion>) -> Vec<Agreement> {
    confirmed_in(&demo(), phrase, threshold, opinion)
}

fn confirmed_in(
    sound: &[f32],
    phrase: &str,
    threshold: f32,
    opinion: Option<Opinion>,
) -> Vec<Agreement> {
    let keyphrases = vec![Keyphrase::builtin(phrase).unwrap()];
    let mut detector = detector(&Settings { threshold, keyphrases, ..Settings::default() });
    detector.confirm_with(Box::new(Parrot { opinion, asked: Vec::new() }), true);
    let mut detections = detector.push(sound).unwrap();
    detections.extend(detector.finish().unwrap());
    detections.into_iter().map(|detection| detection.agreement).collect()
}

#[test]
fn sure_cry_is_reported_whatever_the_recogniser_says() {
    for opinion in [NO, YES, None] {
        let agreed = confirmed("help", 0.5, opinion);
        assert_eq!(agreed.len(), 1, "{opinion:?}");
        assert!(opinion == YES || agreed[0] == Agreement::FirstStage, "{opinion:?}");
    }
}

#[test]
fn cry_that_the_first_stage_doubts_is_the_recognisers_to_decide() {
    // Out of reach of each of its windows, and not too faint to be asked about.
    assert_eq!(confirmed("help me", 0.9, YES), [Agreement::Confirmed]);
    assert_eq!(confirmed("help me", 0.9, NO), []);
    assert_eq!(
        confirmed("help me", 0.9, None),
        [Agreement::FirstStage],
        "two windows make it sure"
    );
}

#[test]
fn word_that_stands_alone_is_confirmed_by_odds_that_are_too_little_behind_a_knock() {
    // "help" out of "help me", its p cut off: the first stage is not sure enough of it.
    let word = &demo()[158_400..164_000];
    let behind = |knock: f32| {
        let (room, knock) = (noise(32_000, 0.001), noise(1_600, knock));
        [&room, &knock, &room[..4_800], word, &room].concat()
    };
    let (alone, knocked) = (behind(0.001), behind(0.1));
    let likely = Some(Opinion { odds: 4.0, sureness: -0.1 });
    let confirmed = |sound: &[f32], opinion| confirmed_in(sound, "help", 0.95, opinion);
    assert_eq!(confirmed(&alone, likely), [Agreement::Confirmed]);
    for (sound, opinion) in [(&alone, NO), (&alone, None), (&knocked, likely)] {
        assert_eq!(confirmed(sound, opinion), [], "{opinion:?}");
    }
    let certain = Some(Opinion { odds: 1e6, sureness: -0.1 });
    assert_eq!(confirmed(&knocked, certain), [Agreement::Confirmed], "there it takes more");
}

#[test]
fn recogniser_that_is_asked_for_and_absent_is_an_error_and_auto_does_without_but_tells_of_a_damaged_one()
 {
    let elsewhere = tempfile::tempdir().unwrap();
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(Model::NAME);
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/sim/cry-for-help.flac");
    let detect = |confirm: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_hark"));
        // `./models` is searched too, so not from here.
        command.current_dir(&elsewhere).env_remove("HARK_MODELS").args(["detect", "--models"]);
        command.arg(&models).args(["--confirm", confirm]).arg(&demo).output().unwrap()
    };
    let asked = detect("recogniser");
    let message = String::from_utf8_lossy(&asked.stderr);
    assert_eq!(asked.status.code(), Some(74), "{message}");
    assert!(message.contains("scripts/fetch-models --recogniser"), "{message}");
    let auto = detect("auto");
    assert!(auto.status.success() && auto.stdout.starts_with(b"/"), "{auto:?}");
    assert_eq!(String::from_utf8_lossy(&auto.stderr), "", "what is not installed is not missed");

    let damaged = elsewhere.path().join("models").join(hark::driver::recogniser::NAME);
    std::fs::create_dir_all(&damaged).unwrap();
    std::fs::write(damaged.join("encoder_model.ort"), "half a fil").unwrap();
    let auto = detect("auto");
    assert!(auto.status.success() && auto.stdout.starts_with(b"/"), "{auto:?}");
    let told = String::from_utf8_lossy(&auto.stderr);
    assert!(told.contains("nothing is confirmed: recogniser models/moonshine"), "{told}");
}

#[test]
fn the_configuration_offers_the_keyphrases_that_are_built_in() {
    let built_in = hark::voice::Keyphrase::all_builtin();
    let built_in: Vec<_> = built_in.iter().map(hark::voice::Keyphrase::text).collect();
    assert_eq!(built_in, hark::config::BUILT_IN_KEYPHRASES);
}

#[test]
fn silence_does_not_run_the_model_and_speech_does() {
    let mut detector = detector(&Settings::default());
    detector.push(&noise(60 * 16_000, 0.000_3)).unwrap();
    assert_eq!(detector.windows_run(), 0, "the room's noise is below the gate");
    detector.push(&vec![0.0; 60 * 16_000]).unwrap();
    assert_eq!(detector.windows_run(), 0);
    detector.push(&demo()).unwrap();
    assert!((12..=40).contains(&detector.windows_run()), "{}", detector.windows_run());
}

#[test]
fn fan_costs_some_windows_and_then_nothing() {
    let mut detector = detector(&Settings::default());
    let fan = noise(10 * 16_000, 0.006);
    for _ in 0..2 {
        detector.push(&fan).unwrap();
    }
    let settled = detector.windows_run();
    for _ in 0..3 {
        detector.push(&fan).unwrap();
    }
    assert!((1..=30).contains(&settled), "{settled}");
    assert_eq!(detector.windows_run(), settled);
}

#[test]
fn any_phrase_can_be_listened_for_by_its_phonemes() {
    let settings = Settings {
        keyphrases: vec![Keyphrase::new("good morning", "ɡ ʊ d | m ɔ ɹ n ɪ ŋ")],
        ..Settings::default()
    };
    let detections = detect_whole(&settings, &demo());
    let [greeting] = detections.as_slice() else { panic!("one detection: {detections:?}") };
    assert!((2.0..4.0).contains(&greeting.at.as_secs_f32()), "{greeting:?}");
}

#[test]
fn settings_that_cannot_be_meant_are_refused_with_the_remedy() {
    let refused = |settings: Settings| {
        Detector::new(Arc::clone(&MODEL), &settings).expect_err("must be refused")
    };
    let with = |text: &str, phonemes: &str| Settings {
        keyphrases: vec![Keyphrase::new(text, phonemes)],
        ..Settings::default()
    };
    let error = refused(with("zu Hilfe", "ts uː h ʘ l f ə"));
    assert!(matches!(&error, VoiceError::UnknownPhoneme { phoneme, .. } if phoneme == "ʘ"));
    assert!(matches!(refused(with("oh", "o")), VoiceError::Length { count: 1, .. }));
    let none = Settings { keyphrases: vec![], ..Settings::default() };
    assert!(matches!(refused(none), VoiceError::NoKeyphrase));
    let threshold = Settings { threshold: f32::NAN, ..Settings::default() };
    assert!(matches!(refused(threshold), VoiceError::Threshold(_)));
    let contract = with("zu Hilfe", "ts uː h ɪ l f ə");
    assert!(Detector::new(Arc::clone(&MODEL), &contract).is_ok());
}

proptest! {
    // Each case runs the model over 15 s of sound twice.
    #![proptest_config(ProptestConfig { cases: 6, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn detections_do_not_depend_on_how_the_sound_is_cut(
        chunks in prop::collection::vec(1usize..20_000, 1..40),
    ) {
        let sound = demo();
        let expected = detect(&Settings::default(), &sound, std::iter::once(sound.len()));
        let cut = detect(&Settings::default(), &sound, chunks.into_iter().cycle());
        prop_assert_eq!(cut, expected);
    }
}
