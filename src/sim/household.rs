//! Made-up households: who wakes, sits, naps, goes out and sleeps when, and what sensors see of it.
//!
//! Sans-IO and from a seed: the simulator lives through a day of it, the evaluation of inactivity through
//! months. The numbers are our idea of five ways to live; none was fitted to recorded homes, and no figure
//! that comes of them is one about people.
//!
//! A day: sleep with visits to the bathroom; awake at home, in turns *busy* (signs every few minutes) and
//! *sitting* (perhaps one an hour); a nap; outings, regular ones and odd ones; some days ill in bed.
//! A sign is motion, a light, a device or the front door. Beside them a few false ones.

use crate::clock::{Rng, Zone};

const DAY_MIN: f64 = 1440.0;

/// Mean and standard deviation, minutes.
type Spread = (f64, f64);

/// Something that is done outside, on some days.
#[derive(Debug, Clone)]
pub struct Outing {
    /// Bit 0 is Monday.
    pub days: u8,
    /// On such a day.
    pub probability: f64,
    /// After midnight.
    pub start: Spread,
    /// How long.
    pub lasts: Spread,
}

/// A way to live.
#[derive(Debug, Clone)]
pub struct Style {
    /// For reports.
    pub name: &'static str,
    /// When the day begins, after midnight.
    pub wakes: Spread,
    /// When it ends.
    pub sleeps: Spread,
    /// Later on weekends by so many minutes.
    pub weekend_later: f64,
    /// Signs an hour while busy, and while sitting.
    pub signs_per_hour: (f64, f64),
    /// Share of the time at home that is spent sitting.
    pub sits: f64,
    /// Probability, start and mean length of a nap.
    pub nap: (f64, f64, f64),
    /// Visits to the bathroom a night.
    pub night_visits: f64,
    /// Regular ones.
    pub outings: Vec<Outing>,
    /// Probability of an odd outing of three to ten hours, a day.
    pub odd_outing: f64,
    /// Probability of a day ill in bed.
    pub ill: f64,
}

/// Where somebody is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In bed.
    Asleep,
    /// At home and awake.
    Home,
    /// Not at home.
    Out,
}

/// What a sensor sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trace {
    /// Motion in a room.
    Motion,
    /// A light that is switched.
    Light,
    /// The front door.
    Door,
    /// A pet, a sunbeam, a fault: nobody.
    False,
}

/// A sign of activity.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sign {
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// What was seen.
    pub trace: Trace,
}

/// Some days of a household, in order of time.
#[derive(Debug, Clone)]
pub struct Life {
    /// What sensors saw.
    pub signs: Vec<Sign>,
    /// From, until, where.
    pub whereabouts: Vec<(u64, u64, Place)>,
}

impl Life {
    /// Where somebody is at this moment; out before the beginning and after the end.
    pub fn place(&self, at_ms: u64) -> Place {
        let next = self.whereabouts.partition_point(|(from, ..)| *from <= at_ms);
        match next.checked_sub(1).and_then(|place| self.whereabouts.get(place)) {
            Some((_, until, place)) if at_ms < *until => *place,
            _ => Place::Out,
        }
    }
}

/// Five ways to live.
pub fn styles() -> Vec<Style> {
    let outing = |days, probability, start, lasts| Outing { days, probability, start, lasts };
    vec![
        Style {
            name: "early riser",
            wakes: (390.0, 15.0),
            sleeps: (1320.0, 20.0),
            weekend_later: 0.0,
            signs_per_hour: (10.0, 1.5),
            sits: 0.5,
            nap: (0.8, 800.0, 70.0),
            night_visits: 1.5,
            outings: vec![
                outing(0b001_0010, 0.9, (600.0, 20.0), (90.0, 20.0)),
                outing(0b100_0000, 0.9, (570.0, 10.0), (150.0, 30.0)),
            ],
            odd_outing: 0.03,
            ill: 0.01,
        },
        Style {
            name: "late riser",
            wakes: (560.0, 45.0),
            sleeps: (1470.0, 45.0),
            weekend_later: 30.0,
            signs_per_hour: (8.0, 1.2),
            sits: 0.6,
            nap: (0.2, 900.0, 60.0),
            night_visits: 1.0,
            outings: vec![outing(0b111_1111, 0.5, (900.0, 90.0), (150.0, 60.0))],
            odd_outing: 0.05,
            ill: 0.01,
        },
        Style {
            name: "often out",
            wakes: (420.0, 25.0),
            sleeps: (1380.0, 40.0),
            weekend_later: 40.0,
            signs_per_hour: (10.0, 1.5),
            sits: 0.45,
            nap: (0.1, 840.0, 40.0),
            night_visits: 0.7,
            outings: vec![
                outing(0b001_1111, 0.8, (560.0, 60.0), (200.0, 80.0)),
                outing(0b111_1111, 0.35, (1080.0, 40.0), (180.0, 50.0)),
                outing(0b100_0000, 0.6, (640.0, 40.0), (480.0, 90.0)),
            ],
            odd_outing: 0.06,
            ill: 0.01,
        },
        Style {
            name: "frail",
            wakes: (460.0, 30.0),
            sleeps: (1240.0, 30.0),
            weekend_later: 0.0,
            signs_per_hour: (5.0, 0.7),
            sits: 0.75,
            nap: (0.95, 790.0, 120.0),
            night_visits: 2.5,
            outings: Vec::new(),
            odd_outing: 0.01,
            ill: 0.04,
        },
        Style {
            name: "irregular",
            wakes: (500.0, 100.0),
            sleeps: (1440.0, 90.0),
            weekend_later: 0.0,
            signs_per_hour: (7.0, 1.0),
            sits: 0.6,
            nap: (0.5, 900.0, 100.0),
            night_visits: 1.2,
            outings: vec![outing(0b111_1111, 0.6, (840.0, 180.0), (180.0, 100.0))],
            odd_outing: 0.08,
            ill: 0.02,
        },
    ]
}

/// False signs an hour.
pub const FALSE_PER_HOUR: f64 = 0.02;

/// Waits for the next of events that come so often an hour, minutes.
pub fn pause_min(per_hour: f64, rng: &mut Rng) -> f64 {
    exponential(60.0 / per_hour, rng)
}

fn exponential(mean: f64, rng: &mut Rng) -> f64 {
    -mean * (1.0 - rng.unit()).ln()
}

fn normal((mean, deviation): Spread, rng: &mut Rng) -> f64 {
    // Box and Muller, 1958.
    let (radius, angle) = (rng.unit().max(1e-12), rng.unit());
    mean + deviation * (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
}

/// The life of a household from the local midnight that begins `first_day` (days since 1970) on.
pub fn live(style: &Style, zone: &Zone, first_day: i64, days: i64, rng: &mut Rng) -> Life {
    let mut story = Story { style, rng, signs: Vec::new(), whereabouts: Vec::new() };
    let mut asleep_since = style.sleeps.0 - DAY_MIN;
    for day in 0..days {
        asleep_since = story.day(day, (first_day + day + 3).rem_euclid(7), asleep_since);
    }
    let mut at = 0.0;
    while at < days as f64 * DAY_MIN {
        at += pause_min(FALSE_PER_HOUR, story.rng);
        story.signs.push((at, Trace::False));
    }
    let Story { mut signs, whereabouts, .. } = story;
    signs.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    let unix_ms = |minute: f64| zone.unix_ms(first_day, minute);
    let sign = |&(minute, trace): &(f64, Trace)| Sign { at_ms: unix_ms(minute), trace };
    let stay = |&(from, until, place): &(f64, f64, Place)| (unix_ms(from), unix_ms(until), place);
    Life {
        signs: signs.iter().map(sign).collect(),
        whereabouts: whereabouts.iter().map(stay).collect(),
    }
}

/// Minutes count from the midnight of the first day.
struct Story<'a> {
    style: &'a Style,
    rng: &'a mut Rng,
    signs: Vec<(f64, Trace)>,
    whereabouts: Vec<(f64, f64, Place)>,
}

impl Story<'_> {
    /// One day from falling asleep on; when it ends.
    fn day(&mut self, day: i64, weekday: i64, asleep_since: f64) -> f64 {
        let Style { wakes, sleeps, weekend_later, ill, .. } = *self.style;
        let midnight = day as f64 * DAY_MIN;
        let later = if weekday >= 5 { weekend_later } else { 0.0 };
        let is_ill = self.rng.unit() < ill;
        let in_bed = if is_ill { exponential(120.0, self.rng) } else { 0.0 };
        let wakes = (midnight + normal(wakes, self.rng) + later + in_bed).max(asleep_since + 120.0);
        let sleeps = (midnight + normal(sleeps, self.rng)).max(wakes + 300.0);
        self.night(asleep_since, wakes);
        let mut at = wakes;
        for (from, until, place) in self.pauses(midnight, weekday, is_ill) {
            if from >= sleeps || until <= at {
                continue;
            }
            let from = from.max(at + 15.0);
            self.at_home(at, from, is_ill);
            if place == Place::Out {
                self.signs.push((from, Trace::Door));
                self.signs.push((until.max(from) + 0.5, Trace::Door));
            }
            self.whereabouts.push((from, until.max(from), place));
            at = until.max(from);
        }
        self.at_home(at, sleeps.max(at), is_ill);
        sleeps.max(at)
    }

    fn night(&mut self, from: f64, until: f64) {
        self.whereabouts.push((from, until, Place::Asleep));
        let between = (until - from) / self.style.night_visits;
        let mut at = from + exponential(between, self.rng);
        while at < until - 10.0 {
            for _ in 0..2 {
                self.signs.push((at + exponential(3.0, self.rng), Trace::Motion));
            }
            at += exponential(between, self.rng);
        }
    }

    /// Outings and the nap, in order of time.
    fn pauses(&mut self, midnight: f64, weekday: i64, is_ill: bool) -> Vec<(f64, f64, Place)> {
        let (probability, start, lasts) = self.style.nap;
        let mut pauses = Vec::new();
        if !is_ill {
            for outing in &self.style.outings {
                if outing.days >> weekday & 1 == 1 && self.rng.unit() < outing.probability {
                    let from = midnight + normal(outing.start, self.rng);
                    let lasts = normal(outing.lasts, self.rng).max(20.0);
                    pauses.push((from, from + lasts, Place::Out));
                }
            }
            if self.rng.unit() < self.style.odd_outing {
                let from = midnight + 480.0 + 480.0 * self.rng.unit();
                pauses.push((from, from + 180.0 + 420.0 * self.rng.unit(), Place::Out));
            }
        }
        if self.rng.unit() < probability {
            let from = midnight + normal((start, 20.0), self.rng);
            let lasts = normal((lasts, 0.3 * lasts), self.rng).max(10.0);
            pauses.push((from, from + lasts, Place::Asleep));
        }
        pauses.sort_by(|(a, ..), (b, ..)| a.total_cmp(b));
        pauses
    }

    /// Awake at home: busy and sitting in turns.
    fn at_home(&mut self, from: f64, until: f64, is_ill: bool) {
        let Style { signs_per_hour: (busy, sitting), sits, .. } = *self.style;
        self.whereabouts.push((from, until, Place::Home));
        self.signs.push((from + 1.0, Trace::Light));
        let mut at = from;
        while at < until {
            let is_sitting = self.rng.unit() < sits;
            let mean = if is_sitting { 50.0 } else { 30.0 };
            let end = (at + exponential(mean, self.rng)).min(until);
            let per_hour = if is_sitting { sitting } else { busy };
            let per_hour = if is_ill { 0.3 * per_hour } else { per_hour };
            let mut sign = at + pause_min(per_hour, self.rng);
            while sign < end {
                self.signs.push((sign, Trace::Motion));
                sign += pause_min(per_hour, self.rng);
            }
            at = end;
        }
        self.signs.push((until - 0.5, Trace::Light));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_life_in_order_of_time_and_nobody_moves_while_out() {
        let zone = Zone::utc();
        for style in styles() {
            let life = |seed| live(&style, &zone, 20_000, 60, &mut Rng::from_seed(seed));
            let one = life(1);
            assert_eq!(one.signs, life(1).signs);
            assert_ne!(one.signs, life(2).signs);
            assert!(one.signs.is_sorted_by_key(|sign| sign.at_ms));
            assert!(one.whereabouts.is_sorted_by_key(|(from, ..)| *from), "{}", style.name);
            let motion = one.signs.iter().filter(|sign| sign.trace == Trace::Motion);
            let out = motion.filter(|sign| one.place(sign.at_ms) == Place::Out).count();
            assert!(out <= 2, "{}: {out}", style.name);
        }
    }

    #[test]
    fn a_household_keeps_the_hours_of_its_clock_when_that_is_changed() {
        let zone = Zone::from_rule("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        let style = Style { wakes: (420.0, 0.0), ill: 0.0, ..styles()[0].clone() };
        // 2026-03-20 and the nine days around the change of the clocks.
        let life = live(&style, &zone, 20_532, 18, &mut Rng::from_seed(3));
        let wakes: std::collections::BTreeSet<String> = life
            .whereabouts
            .iter()
            .filter(|(from, until, place)| *place == Place::Asleep && until - from > 4 * 3_600_000)
            .map(|(_, until, _)| zone.local(*until).hh_mm())
            .collect();
        assert_eq!(wakes.into_iter().collect::<Vec<_>>(), ["07:00"]);
    }
}
