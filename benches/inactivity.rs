//! How well inactivity is detected in made-up households: false alarms a month, and how long
//! somebody lies before it is noticed. `scripts/bench inactivity [SEEDS]` prints the tables of
//! `docs/inactivity.md`.
//!
//! Each household lives for half a year, with a change of the clocks in it. The first four weeks are not
//! counted. On every day after them, where somebody is at home at the hour in question, a copy of the
//! detector is made for which from then on only false signs come: somebody has fallen, or does not get up.

#![allow(clippy::disallowed_methods, reason = "only a moment to count from is taken")]

use std::time::{Duration, Instant};

use hark::clock::{ClockState, Rng, WallTime, Zone};
use hark::config::{Activity, Urgency};
use hark::sensor::inactivity::{Finding, Inactivity};
use hark::sim::household::{self, Place, Style, Trace};

const MINUTE_MS: u64 = 60_000;
const DAY_MS: u64 = 1440 * MINUTE_MS;
/// How often the detector looks.
const STEP_MS: u64 = 5 * MINUTE_MS;
const DAYS: i64 = 182;
const NOT_COUNTED: u64 = 28;
/// When somebody falls, minutes after midnight.
const FALLS: [(&str, f64); 4] =
    [("in the night (3:00)", 180.0), ("9:20", 560.0), ("15:00", 900.0), ("20:00", 1200.0)];
/// A fall that is not noticed in so many days is missed.
const MISSED_MS: u64 = 2 * DAY_MS;

#[derive(Clone, Copy)]
struct Variant {
    name: &'static str,
    door: bool,
    learns: bool,
    /// Days of each 30 on which the clock is not synchronised.
    unsynced: u64,
}

const VARIANTS: [Variant; 4] = [
    Variant { name: "front door known", door: true, learns: true, unsynced: 0 },
    Variant { name: "no sensor at the front door", door: false, learns: true, unsynced: 0 },
    Variant {
        name: "front door known, clock lost on 2 of 30 days",
        door: true,
        learns: true,
        unsynced: 2,
    },
    Variant {
        name: "for comparison: 12 h for everybody at every hour",
        door: false,
        learns: false,
        unsynced: 0,
    },
];

#[derive(Default, Clone)]
struct Score {
    false_alarms: u32,
    while_out: u32,
    months: f64,
    /// Milliseconds, by the hour of the fall; `None`: missed.
    delays: [Vec<Option<u64>>; 4],
}

fn settings(learns: bool) -> Activity {
    let days = |days: u64| Duration::from_secs(days * 86_400);
    Activity {
        learning: if learns { days(14) } else { days(10_000) },
        max_silence: Duration::from_secs(12 * 3600),
        least: Duration::from_secs(2 * 3600),
        margin: std::env::var("HARK_MARGIN").ok().and_then(|m| m.parse().ok()).unwrap_or(1.75),
        urgency: Urgency::Status,
    }
}

/// The two clocks of a household.
#[derive(Clone, Copy)]
struct World {
    began: Instant,
    began_ms: u64,
    unsynced: u64,
}

impl World {
    fn now(&self, at_ms: u64) -> Instant {
        self.began + Duration::from_millis(at_ms - self.began_ms)
    }

    fn wall(&self, at_ms: u64) -> WallTime {
        let day = (at_ms - self.began_ms) / DAY_MS;
        let state =
            if day % 30 < self.unsynced { ClockState::Unsynced } else { ClockState::Synced };
        WallTime { unix_ms: at_ms, state }
    }
}

fn is_detected(found: &[Finding]) -> bool {
    found.iter().any(|finding| matches!(finding, Finding::Detected(_)))
}

fn run(style: &Style, variant: Variant, seed: u64) -> Score {
    let zone = Zone::from_rule("CET-1CEST,M3.5.0,M10.5.0/3").expect("a rule");
    let mut rng = Rng::from_seed(seed * 1_000_003 + 17);
    // 2026-01-12 and 2026-08-03, both Mondays.
    let first_day = if seed.is_multiple_of(2) { 20_465 } else { 20_668 };
    let life = household::live(style, &zone, first_day, DAYS, &mut rng);
    let began_ms = zone.unix_ms(first_day, 0.0);
    let world = World { began: Instant::now(), began_ms, unsynced: variant.unsynced };
    let falls = |day: i64| FALLS.map(|(_, minute)| zone.unix_ms(first_day + day, minute));
    let mut watch = Inactivity::new(settings(variant.learns), zone.clone(), None, world.began);
    let mut score = Score::default();
    let mut signs = life.signs.iter().peekable();
    for day in 0..DAYS - 1 {
        let counted = day as u64 >= NOT_COUNTED;
        let falls = falls(day);
        let (mut at, end) =
            (zone.unix_ms(first_day + day, 0.0), zone.unix_ms(first_day + day + 1, 0.0));
        while at < end {
            while let Some(sign) = signs.next_if(|sign| sign.at_ms <= at) {
                if sign.at_ms >= began_ms {
                    let door = variant.door && sign.trace == Trace::Door;
                    watch.handle_sign(world.now(sign.at_ms), world.wall(sign.at_ms), "", door);
                }
            }
            let found = watch.handle_tick(world.now(at), world.wall(at));
            if counted && is_detected(&found) {
                score.false_alarms += 1;
                score.while_out += u32::from(life.place(at) == Place::Out);
            }
            if let (Some(hour), true) =
                (falls.iter().position(|fall| (at..at + STEP_MS).contains(fall)), counted)
                && life.place(at) != Place::Out
                && !watch_is_on(&watch, &world, at)
            {
                score.delays[hour].push(fall(watch.clone(), world, at, &mut rng));
            }
            at += STEP_MS;
        }
    }
    score.months = (DAYS as u64 - 1 - NOT_COUNTED) as f64 / 30.44;
    score
}

/// Whether an alarm is on already.
fn watch_is_on(watch: &Inactivity, world: &World, at_ms: u64) -> bool {
    watch.memory(world.now(at_ms), world.wall(at_ms)).detected
}

/// How long after a fall it is noticed.
fn fall(mut watch: Inactivity, world: World, from_ms: u64, rng: &mut Rng) -> Option<u64> {
    let mut pause = || (household::pause_min(household::FALSE_PER_HOUR, rng) * 60_000.0) as u64;
    let mut next_false = from_ms + pause();
    let mut at = from_ms;
    while at < from_ms + MISSED_MS {
        at += STEP_MS;
        if next_false <= at {
            watch.handle_sign(world.now(at), world.wall(at), "", false);
            next_false += pause();
        }
        if is_detected(&watch.handle_tick(world.now(at), world.wall(at))) {
            return Some(at - from_ms);
        }
    }
    None
}

/// The value that this share does not exceed, in hours; missed ones are longest.
fn quantile(delays: &[Option<u64>], share: f64) -> String {
    let mut delays: Vec<u64> = delays.iter().map(|d| d.unwrap_or(u64::MAX)).collect();
    delays.sort_unstable();
    let place = ((delays.len() as f64 * share).ceil() as usize).saturating_sub(1);
    match delays.get(place) {
        None => "–".to_owned(),
        Some(&u64::MAX) => "missed".to_owned(),
        Some(&delay) => format!("{:.1}", delay as f64 / 3_600_000.0),
    }
}

fn main() {
    let seeds = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(10u64);
    println!(
        "{seeds} seeds of each household, half a year each, the first four weeks not counted\n"
    );
    for variant in VARIANTS {
        println!("**{}**\n", variant.name);
        let hours = FALLS.map(|(name, _)| name).join(" | ");
        println!(
            "| household | false alarms a month: mean (least to most of a seed) | of these while out | {hours} | noticed within 24 h |"
        );
        println!("|---|---|---|---|---|---|---|---|");
        for style in household::styles() {
            let scores: Vec<Score> = (0..seeds).map(|seed| run(&style, variant, seed)).collect();
            print_row(style.name, &scores);
        }
        println!();
    }
}

fn print_row(name: &str, scores: &[Score]) {
    let rates: Vec<f64> = scores.iter().map(|s| f64::from(s.false_alarms) / s.months).collect();
    let mean = rates.iter().sum::<f64>() / rates.len() as f64;
    let least = rates.iter().copied().fold(f64::MAX, f64::min);
    let most = rates.iter().copied().fold(0.0, f64::max);
    let alarms: u32 = scores.iter().map(|s| s.false_alarms).sum();
    let out: u32 = scores.iter().map(|s| s.while_out).sum();
    let share = |part: usize, all: usize| 100.0 * part as f64 / all.max(1) as f64;
    let mut cells = Vec::new();
    let (mut falls, mut in_a_day) = (0, 0);
    for hour in 0..FALLS.len() {
        let all: Vec<_> = scores.iter().flat_map(|s| s.delays[hour].clone()).collect();
        falls += all.len();
        in_a_day += all.iter().flatten().filter(|delay| **delay <= DAY_MS).count();
        cells.push(format!("{} ({})", quantile(&all, 0.5), quantile(&all, 0.9)));
    }
    println!(
        "| {name} | {mean:.2} ({least:.2} to {most:.2}) | {:.0} % | {} | {:.1} % of {falls} |",
        share(out as usize, alarms as usize),
        cells.join(" | "),
        share(in_a_day, falls),
    );
}
