use proptest::prelude::*;

use super::*;
use crate::clock::{Clock, Rng};
use crate::config::Urgency;

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;
/// Monday, 2026-01-05, 00:00 UTC.
const MONDAY_MS: u64 = 1_767_571_200_000;

fn settings() -> config::Activity {
    config::Activity {
        learning: Duration::from_secs(14 * DAY),
        max_silence: Duration::from_secs(12 * HOUR),
        least: Duration::from_secs(2 * HOUR),
        margin: 1.75,
        urgency: Urgency::Status,
    }
}

/// A home in UTC whose clocks go when they are told to.
struct Home {
    watch: Inactivity,
    began: Instant,
    /// Seconds since Monday.
    at: u64,
    state: ClockState,
    found: Vec<(u64, Finding)>,
}

impl Home {
    fn new() -> Self {
        Self::with(None, 0)
    }

    fn with(memory: Option<Memory>, at: u64) -> Self {
        let began = Clock::new(|| ClockState::Synced).now();
        let watch = Inactivity::new(settings(), Zone::utc(), memory, began);
        let began = began.checked_sub(Duration::from_secs(at)).expect("a machine that is up");
        Self { watch, began, at, state: ClockState::Synced, found: Vec::new() }
    }

    fn clocks(&self) -> (Instant, WallTime) {
        let wall = WallTime { unix_ms: MONDAY_MS + self.at * 1000, state: self.state };
        (self.began + Duration::from_secs(self.at), wall)
    }

    /// Looks every five minutes until then.
    fn wait_until(&mut self, at: u64) {
        while self.at < at {
            self.at = (self.at + 300).min(at);
            let (now, wall) = self.clocks();
            let found = self.watch.handle_tick(now, wall);
            self.found.extend(found.into_iter().map(|f| (self.at, f)));
        }
    }

    fn sign(&mut self) {
        self.sign_of("hall", false);
    }

    fn sign_of(&mut self, source: &str, door: bool) {
        let (now, wall) = self.clocks();
        let found = self.watch.handle_sign(now, wall, source, door);
        self.found.extend(found.into_iter().map(|f| (self.at, f)));
    }

    /// Signs every 20 minutes from 7 to 22 o'clock, on Sundays from 8, for so many days.
    fn live(&mut self, days: u64) {
        let first = self.at / DAY;
        for day in first..first + days {
            let wakes = if day % 7 == 6 { 8 } else { 7 };
            let mut at = day * DAY + wakes * HOUR;
            while at <= day * DAY + 22 * HOUR {
                self.wait_until(at);
                self.sign();
                at += HOUR / 3;
            }
            self.wait_until((day + 1) * DAY);
        }
    }

    /// Detections and clearings since the last call, with the hour.
    fn turns(&mut self) -> Vec<(f64, bool, String)> {
        let turn = |(at, finding): (u64, Finding)| {
            let hours = (at as f64 / 360.0).floor() / 10.0;
            match finding {
                Finding::Detected(silence) => Some((hours, true, silence.explanation)),
                Finding::Cleared(_, source) => Some((hours, false, source)),
                Finding::Learned(_) => None,
            }
        };
        std::mem::take(&mut self.found).into_iter().filter_map(turn).collect()
    }
}

#[test]
fn learning_is_reported_and_has_a_fixed_limit() {
    let mut home = Home::new();
    home.live(13);
    home.wait_until(13 * DAY + 12 * HOUR);
    let turns = home.found.clone();
    let learned: Vec<u32> = turns
        .iter()
        .filter_map(|(_, f)| if let Finding::Learned(p) = f { Some(*p) } else { None })
        .collect();
    assert_eq!((learned[0], learned[1]), (0, 7));
    assert!(learned.is_sorted() && learned.len() >= 13, "{learned:?}");
    // The last sign was at 22:00: twelve hours of silence are over at ten.
    let [(at, true, explanation)] = &home.turns()[..] else { panic!("one detection") };
    assert_eq!(*at, 13.0 * 24.0 + 10.0);
    assert_eq!(
        explanation,
        "since Saturday 22:00: no activity for 12.1 h; the limit is 12 h while the daily rhythm is \
         being learned (95 %)"
    );
}

#[test]
fn what_is_learned_is_explained_with_the_day_and_the_usual_hour() {
    let mut home = Home::new();
    home.live(7 * 6 + 6);
    assert_eq!(home.turns(), []);
    // Sunday: nobody gets up.
    let sunday = (7 * 6 + 6) * 24;
    home.wait_until((sunday + 14) * HOUR);
    let turns = home.turns();
    let [(at, true, explanation)] = &turns[..] else { panic!("{turns:?}") };
    assert!(*at > sunday as f64 + 8.0 && *at < sunday as f64 + 11.0, "{turns:?}");
    assert_eq!(explanation, "no activity since Saturday 22:00; usually by 08:00 on Sundays");
    home.sign_of("bathroom", false);
    assert_eq!(home.turns()[0], (sunday as f64 + 14.0, false, "bathroom".to_owned()));
    // An hour in which there are signs every twenty minutes.
    home.live(1);
    home.turns();
    home.wait_until(home.at + 15 * HOUR);
    home.sign();
    home.wait_until(home.at + 5 * HOUR);
    let [.., (_, true, explanation)] = &home.turns()[..] else { panic!("a detection") };
    assert_eq!(explanation, "no activity since 15:00; usually by 15:20 on Mondays");
}

#[test]
fn without_a_clock_the_limit_is_the_fixed_one_and_nothing_is_learned() {
    let mut home = Home::new();
    home.live(21);
    let learned = home.watch.rhythm.cells();
    home.state = ClockState::Unsynced;
    home.live(3);
    assert_eq!(home.watch.rhythm.cells(), learned);
    home.turns();
    home.wait_until(24 * DAY + 11 * HOUR);
    let [(at, true, explanation)] = &home.turns()[..] else { panic!("one detection") };
    assert_eq!(*at, 24.0 * 24.0 + 10.0);
    assert_eq!(
        explanation,
        "no activity for 12.1 h; the limit is 12 h while the clock is not synchronised"
    );
}

#[test]
fn who_left_by_the_front_door_is_expected_later_and_nothing_is_learned_of_it() {
    let mut home = Home::new();
    home.live(28);
    home.turns();
    home.wait_until(28 * DAY + 9 * HOUR);
    home.sign();
    let learned = home.watch.rhythm.cells();
    home.sign_of("front-door", true);
    home.wait_until(28 * DAY + 20 * HOUR);
    home.turns();
    assert_eq!(home.watch.rhythm.cells()[10..19], learned[10..19]);
    home.wait_until(28 * DAY + 22 * HOUR);
    let [(at, true, explanation)] = &home.turns()[..] else { panic!("one detection") };
    assert_eq!(*at, 28.0 * 24.0 + 21.0);
    assert!(explanation.contains("the front door was last"), "{explanation}");

    // The control: somebody who came home is not out.
    home.live(1);
    let mut home = Home::new();
    home.live(28);
    home.turns();
    home.wait_until(28 * DAY + 9 * HOUR);
    home.sign_of("front-door", true);
    home.sign();
    home.wait_until(28 * DAY + 20 * HOUR);
    assert!(home.turns()[0].0 < 28.0 * 24.0 + 13.0);
}

#[test]
fn a_holiday_is_neither_detected_nor_learned_and_ends_when_it_is_over() {
    let mut home = Home::new();
    home.live(21);
    let learned = home.watch.rhythm.cells();
    let until_ms = Some(MONDAY_MS + 28 * DAY * 1000);
    let (now, wall) = home.clocks();
    assert_eq!(home.watch.set_away(Some(Away { until_ms }), now, wall), None);
    home.wait_until(24 * DAY);
    home.sign_of("cleaner", false);
    home.wait_until(28 * DAY - 60);
    assert!(home.watch.away().is_some());
    assert_eq!((home.turns(), home.watch.rhythm.cells()), (vec![], learned));
    home.wait_until(28 * DAY + 60);
    assert_eq!(home.watch.away(), None);
    // Silence counts from the end of the holiday.
    home.wait_until(29 * DAY);
    let turns = home.turns();
    assert_eq!(turns.len(), 1);
    assert!(turns[0].0 > 28.0 * 24.0 + 2.0, "{turns:?}");

    // What was detected is over with the next holiday, and detected again behind it.
    let (now, wall) = home.clocks();
    let over = home.watch.set_away(Some(Away { until_ms: None }), now, wall);
    assert!(matches!(over, Some(Finding::Cleared(_, by)) if by == "away"));
    home.wait_until(60 * DAY);
    assert!(home.watch.away().is_some() && home.turns().is_empty());
    let (now, wall) = home.clocks();
    assert_eq!(home.watch.set_away(None, now, wall), None);
    home.wait_until(62 * DAY);
    assert_eq!(home.turns().len(), 1);
}

/// A restart after a pause of so many hours, in the morning of a learned rhythm, five hours
/// after the last sign; when it is detected, in minutes after the start.
fn restarted_after(pause_h: u64) -> Option<u64> {
    let mut home = Home::new();
    home.live(28);
    let day = 28 * DAY;
    home.wait_until(day + 12 * HOUR);
    home.sign();
    home.turns();
    let (now, wall) = home.clocks();
    let memory = Memory::decode(&home.watch.memory(now, wall).encode().unwrap()).unwrap();
    let start = day + (12 + pause_h) * HOUR;
    let mut home = Home::with(Some(memory), start);
    home.wait_until(start + 3 * HOUR);
    let turns = home.turns();
    turns.first().map(|(at, ..)| (*at * 60.0) as u64 - start / 60)
}

#[test]
fn a_fall_in_a_power_cut_is_noticed_but_not_before_somebody_could_show_himself() {
    assert_eq!(restarted_after(5), Some(30));
    assert!(restarted_after(1).is_some_and(|minutes| minutes > 30));
    // Unplugged for days: nobody knows what was.
    assert!(restarted_after(72).is_some_and(|minutes| minutes >= 120));
}

#[test]
fn what_was_detected_before_a_restart_is_not_detected_again_and_is_cleared() {
    let mut home = Home::new();
    home.live(28);
    home.wait_until(28 * DAY + 15 * HOUR);
    assert_eq!(home.turns().len(), 1);
    let (now, wall) = home.clocks();
    let memory = home.watch.memory(now, wall);
    let mut home = Home::with(Some(memory), 28 * DAY + 16 * HOUR);
    home.wait_until(28 * DAY + 20 * HOUR);
    assert_eq!(home.turns(), []);
    home.sign();
    assert_eq!(home.turns(), [(28.0 * 24.0 + 20.0, false, "hall".to_owned())]);
}

#[test]
fn an_accident_does_not_become_usual_at_once() {
    let mut home = Home::new();
    home.live(28);
    let usual = home.watch.rhythm.usual(15).unwrap();
    home.wait_until(28 * DAY + 7 * HOUR);
    home.sign();
    // Somebody lies until the evening, and does so on the next day again.
    for day in 28..30 {
        home.wait_until(day * DAY + 7 * HOUR);
        home.sign();
        home.wait_until(day * DAY + 21 * HOUR);
        home.sign();
    }
    assert!(home.watch.rhythm.usual(15).unwrap() <= 3 * 60 + usual, "at most its limit");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever happens: detected and cleared come in turn, and a silence of a day is always detected.
    #[test]
    fn no_long_silence_goes_unnoticed(seed in any::<u64>()) {
        let mut rng = Rng::from_seed(seed);
        let mut home = Home::new();
        let (mut detected, mut last) = (false, 0);
        for _ in 0..300 {
            let pause = (rng.unit().powi(4) * 50.0 * HOUR as f64) as u64;
            home.state = if rng.unit() < 0.1 { ClockState::Unsynced } else { ClockState::Synced };
            home.wait_until(home.at + pause);
            let silent = home.at - last >= 24 * HOUR + 300;
            home.sign_of("x", rng.unit() < 0.1);
            last = home.at;
            let mut seen = detected;
            for (_, is_detected, _) in home.turns() {
                prop_assert_ne!(is_detected, detected);
                detected = is_detected;
                seen |= is_detected;
            }
            prop_assert!(!detected && (seen || !silent));
        }
    }
}
