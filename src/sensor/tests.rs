use proptest::prelude::*;

use super::*;
use crate::clock::Clock;
use crate::config::{Sensor as Settings, load};

fn start() -> Instant {
    Clock::new(|| crate::clock::ClockState::Synced).now()
}

/// A sensor with these lines beside the ones that every sensor needs.
fn settings(lines: &str) -> Settings {
    let text = format!(
        "[[sensor]]\nname = \"t\"\ndriver = \"file\"\npath = \"/t\"\nquantity = \"temperature\"\n\
         unit = \"Cel\"\n{lines}"
    );
    let loaded = load("test", &text, std::iter::empty()).unwrap_or_else(|e| panic!("{e}"));
    loaded.config.sensors[0].clone()
}

fn raw(value: f64) -> Result<Raw, String> {
    Ok(Raw { value, age: Duration::ZERO })
}

/// Reads the values one after the other when they are due; the news with the seconds.
fn run(settings: &Settings, outcomes: Vec<Result<Raw, String>>) -> Vec<(f64, News)> {
    let began = start();
    let mut sensor = Sensor::new(settings.clone(), began);
    let mut all = Vec::new();
    for outcome in outcomes {
        let now = sensor.due();
        let at = now.duration_since(began).as_secs_f64();
        all.extend(sensor.handle(now, outcome).into_iter().map(|news| (at, news)));
    }
    all
}

fn readings(news: &[(f64, News)]) -> Vec<(f64, f64)> {
    let reading = |(at, news): &(f64, News)| match news {
        News::Reading(value) => Some((*at, *value)),
        _ => None,
    };
    news.iter().filter_map(reading).collect()
}

#[test]
fn a_raw_value_becomes_one_in_the_unit_of_events() {
    let settings = settings("raw_unit = \"[degF]\"\nscale = 0.1\noffset = 2\n");
    assert_eq!(readings(&run(&settings, vec![raw(660.0)])), [(0.0, 20.0)]);
    assert_eq!(digits(21.400_000_000_000_002), 21.4);
    assert_eq!(digits(-0.000_123_456_789), -0.000_123_456_8);
}

#[test]
fn a_reading_within_the_deadband_is_told_when_the_silence_would_get_too_long() {
    let settings = settings("interval = \"60s\"\ndeadband = 0.5\nmax_silence = \"5m\"\n");
    let values = [20.0, 20.4, 20.5, 20.1, 20.9, 20.6, 20.6, 20.6, 20.6];
    let told = readings(&run(&settings, values.map(raw).into()));
    assert_eq!(told, [(0.0, 20.0), (120.0, 20.5), (420.0, 20.6)]);
}

#[test]
fn readings_are_averaged_over_the_window() {
    let settings = settings("interval = \"10s\"\naverage = \"30s\"\n");
    let told = readings(&run(&settings, [10.0, 20.0, 30.0, 40.0, 40.0].map(raw).into()));
    let values: Vec<f64> = told.into_iter().map(|(_, value)| value).collect();
    assert_eq!(values, [10.0, 15.0, 20.0, 30.0, 36.66667]);
}

#[test]
fn one_bad_read_is_no_fault_three_in_a_row_are_and_two_good_ones_end_it() {
    let settings = settings("interval = \"60s\"\nmin = -40\nmax = 85\ndeadband = 1\n");
    let bad = || Err("read /t: it is gone".to_owned());
    let news = run(
        &settings,
        vec![
            raw(20.0),
            bad(),
            bad(),
            raw(20.0),
            bad(),
            bad(),
            raw(99.0),
            raw(20.0),
            bad(),
            raw(20.0),
            raw(20.0),
        ],
    );
    let faults: Vec<_> =
        news.into_iter().filter(|(_, n)| matches!(n, News::Failed(_) | News::Works)).collect();
    let problem = "gives 99 Cel, which is above the plausible 85 Cel".to_owned();
    // Retries come after five seconds.
    assert_eq!(faults, [(0.0, News::Works), (140.0, News::Failed(problem)), (270.0, News::Works)],);
}

#[test]
fn a_value_that_its_source_does_not_renew_is_a_fault_at_once() {
    let settings = settings("interval = \"10s\"\nstale_after = \"1m\"\n");
    let aged = |age| Ok(Raw { value: 1.0, age: Duration::from_secs(age) });
    let news = run(&settings, vec![aged(0), aged(59), aged(60), aged(70), aged(0), aged(0)]);
    let faults: Vec<_> =
        news.into_iter().filter(|(_, n)| matches!(n, News::Failed(_) | News::Works)).collect();
    let problem = "has had no new value for 60 s".to_owned();
    assert_eq!(faults, [(0.0, News::Works), (20.0, News::Failed(problem)), (50.0, News::Works)]);
}

#[test]
fn what_is_no_number_is_never_told() {
    let settings = settings("");
    for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX * 10.0] {
        assert!(run(&settings, vec![raw(value)]).is_empty(), "{value}");
    }
}

#[test]
fn a_threshold_needs_its_hold_and_its_way_back() {
    let settings = settings(
        "interval = \"60s\"\ndeadband = 100\n[[sensor.threshold]]\nbelow = 16\nclear = 17\nhold = \"2m\"\n",
    );
    let values = [18.0, 15.0, 16.5, 15.0, 15.5, 15.0, 16.5, 17.0, 16.9, 17.0, 17.5, 18.0];
    let news = run(&settings, values.map(raw).into());
    let turns: Vec<_> = news
        .into_iter()
        .filter(|(_, n)| matches!(n, News::Exceeded(..) | News::Cleared(..)))
        .collect();
    assert_eq!(turns, [(300.0, News::Exceeded(0, 15.0)), (660.0, News::Cleared(0, 18.0))]);
}

#[test]
fn a_pause_in_the_readings_begins_the_hold_anew() {
    let settings =
        settings("interval = \"60s\"\n[[sensor.threshold]]\nabove = 30\nhold = \"3m\"\n");
    let bad = || Err("x".to_owned());
    let exceeded =
        |outcomes| run(&settings, outcomes).iter().any(|(_, n)| matches!(n, News::Exceeded(..)));
    let hot = || raw(31.0);
    assert!(exceeded(vec![hot(), hot(), hot(), hot()]));
    assert!(!exceeded(vec![hot(), hot(), bad(), bad(), bad(), hot(), hot()]));
}

#[test]
fn a_jump_is_a_sign_of_activity_and_a_drift_is_not() {
    let signs = |lines: &str, values: Vec<f64>| {
        let settings = settings(&format!("interval = \"1m\"\ndeadband = 1000\n{lines}"));
        let news = run(&settings, values.into_iter().map(raw).collect());
        news.into_iter().filter(|(_, n)| *n == News::Activity).map(|(at, _)| at).collect::<Vec<_>>()
    };
    let change = "activity = \"change\"\nactivity_step = 50\n";
    assert_eq!(signs(change, vec![0.0, 0.0, 60.0, 60.0, 0.0]), [120.0, 240.0]);
    // The sun: 5 a minute for an hour.
    assert!(signs(change, (0..60).map(|i| f64::from(i) * 5.0).collect()).is_empty());
    let rise = "activity = \"rise\"\nactivity_step = 50\n";
    assert_eq!(signs(rise, vec![500.0, 560.0, 300.0, 300.0]), [60.0]);
}

#[derive(Debug, Clone)]
enum Step {
    Value(f64),
    Stale,
    Bad,
    Late(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (-50.0f64..120.0).prop_map(Step::Value),
        1 => Just(Step::Stale),
        2 => Just(Step::Bad),
        1 => (1u64..4000).prop_map(Step::Late),
    ];
    prop::collection::vec(step, 1..200)
}

proptest! {
    /// Whatever is read: what is told is plausible; thresholds and faults come in turn; while it
    /// works and is read when due, no silence is longer than `max_silence`.
    #[test]
    fn news_keep_their_promises(
        steps in steps(),
        deadband in 0.0f64..30.0,
        interval_s in 1u64..100,
        silence in 1u64..20,
        hold_s in 0u64..200,
        average_s in 0u64..300,
    ) {
        let settings = settings(&format!(
            "interval = \"{interval_s}s\"\ndeadband = {deadband}\nmax_silence = \"{}s\"\n\
             average = \"{average_s}s\"\nstale_after = \"2m\"\nmin = -40\nmax = 85\n\
             [[sensor.threshold]]\nabove = 30\nclear = 25\nhold = \"{hold_s}s\"\n\
             [[sensor.threshold]]\nbelow = 10\nclear = 15\n",
            interval_s * silence,
        ));
        let began = start();
        let mut sensor = Sensor::new(settings.clone(), began);
        let (mut failed, mut exceeded, mut told) = (false, [false; 2], None::<Instant>);
        for step in steps {
            let mut now = sensor.due();
            let outcome = match step {
                Step::Value(value) => raw(value),
                Step::Stale => Ok(Raw { value: 20.0, age: Duration::from_secs(120) }),
                Step::Bad => Err("x".to_owned()),
                Step::Late(seconds) => {
                    now += Duration::from_secs(seconds);
                    told = None;
                    raw(20.0)
                }
            };
            let good = matches!(&outcome, Ok(raw) if raw.age.is_zero() && settings.plausible.contains(&raw.value));
            let before = sensor.due();
            for news in sensor.handle(now, outcome) {
                match news {
                    News::Reading(value) => {
                        prop_assert!(good && settings.plausible.contains(&value));
                        told = Some(now);
                    }
                    News::Exceeded(place, value) => {
                        prop_assert!(good && !exceeded[place]);
                        prop_assert!([value > 30.0, value < 10.0][place]);
                        exceeded[place] = true;
                    }
                    News::Cleared(place, value) => {
                        prop_assert!(good && exceeded[place]);
                        prop_assert!([value <= 25.0, value >= 15.0][place]);
                        exceeded[place] = false;
                    }
                    News::Failed(_) => {
                        prop_assert!(!failed && !good);
                        failed = true;
                        told = None;
                    }
                    News::Works => {
                        prop_assert!(good);
                        failed = false;
                    }
                    News::Activity => prop_assert!(false, "nobody asked for it"),
                }
            }
            prop_assert!(sensor.due() > now && sensor.due() >= before);
            prop_assert!(sensor.due() <= now + settings.interval);
            if let (Some(told), true) = (told, good && !failed) {
                let silence = now.duration_since(told);
                let next = silence + settings.interval;
                prop_assert!(silence.is_zero() || next <= settings.max_silence, "{:?}", silence);
            }
            if !good { told = None; }
            prop_assert!(sensor.window.len() <= config::MAX_WINDOW as usize);
        }
    }
}
