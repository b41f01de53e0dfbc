//! The home of the simulator: files that the real drivers read, and the day that is lived behind them.
//!
//! A directory is laid out like the kernel's: an IIO device with temperature, humidity, light and
//! CO2, two power supplies, and files of a motion sensor and of the front door. A thread writes them as the
//! day goes on, by a clock as fast as wanted. The day: an early riser gets up, goes about, naps; mains power is lost from
//! 10:30 to 12:15, and the battery runs low; at 15:10 somebody falls, and nobody is about until a neighbour comes at
//! 21:30. After it, ordinary days follow. Where the day is the real one, it is ordinary too: what is broken then was broken by
//! somebody who watches.
//!
//! What the daily rhythm of this home is, was learned before: eight weeks of it are lived through in a
//! moment, and their memory put where the agent looks for it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::household::{self, Life, Place, Sign, Trace};
use super::switches::{Fault, Switches};
use crate::clock::{Clock, ClockState, Rng, WallTime, Zone};
use crate::config;
use crate::driver::memory_file;
use crate::sensor::inactivity::Inactivity;

const MINUTE_MS: u64 = 60_000;
const DAY_MS: u64 = 1440 * MINUTE_MS;
/// The day begins before somebody gets up.
const BEGINS_MIN: f64 = 330.0;
const MAINS_LOST: (f64, f64) = (630.0, 735.0);
const FALL_MIN: f64 = 910.0;
const FOUND_MIN: f64 = 1290.0;
/// Days before the one that is shown, in which the rhythm is learned.
const LEARNED_DAYS: i64 = 56;
/// Days that are prepared; after them the home is empty.
const DAYS: i64 = 30;
/// How often the files are written, by the real clock.
const EVERY: Duration = Duration::from_millis(20);
/// How long a motion sensor reports motion, and a door stays open.
const MOTION_MS: u64 = 2 * MINUTE_MS;
/// The file of the CO2 sensor.
const CO2: &str = "iio/in_concentration_co2_raw";
/// Lines that wait to be shown at most.
const LINES: usize = 256;

/// A home that is about to be lived in.
#[derive(Debug)]
pub struct Home {
    directory: PathBuf,
    zone: Zone,
    first_day: i64,
    life: Life,
    /// The day that is shown has its story.
    has_story: bool,
}

impl Home {
    /// Lays out the files in `directory` for the day on which `wall` is; `has_story`: mains power is lost and somebody falls.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn new(
        directory: &Path,
        zone: Zone,
        wall: WallTime,
        rng: &mut Rng,
        has_story: bool,
    ) -> std::io::Result<Self> {
        let first_day = zone.local(wall.unix_ms).day() - LEARNED_DAYS;
        let style = &household::styles()[0];
        let mut life = household::live(style, &zone, first_day, LEARNED_DAYS + DAYS, rng);
        if has_story {
            let today = |minute: f64| zone.unix_ms(first_day + LEARNED_DAYS, minute);
            let fallen = today(FALL_MIN)..today(FOUND_MIN);
            life.signs.retain(|sign| !fallen.contains(&sign.at_ms));
            let found = Sign { at_ms: fallen.end, trace: Trace::Door };
            let place = life.signs.partition_point(|sign| sign.at_ms <= found.at_ms);
            life.signs.insert(place, found);
        }
        let home = Self { directory: directory.to_owned(), zone, first_day, life, has_story };
        home.write(&State::at(&home, home.begins_ms()))?;
        Ok(home)
    }

    /// When the day that is shown begins.
    pub fn begins_ms(&self) -> u64 {
        self.zone.unix_ms(self.first_day + LEARNED_DAYS, BEGINS_MIN)
    }

    /// The sensors of this home, as lines of a configuration.
    pub fn configuration(&self) -> String {
        let path = |name: &str| format!("{:?}", self.directory.join(name).display().to_string());
        let sensor = |name: &str, driver: &str, file: &str, rest: &str| {
            let path = path(file);
            // What can be broken by hand is seen soon.
            let interval = if matches!(name, "mains" | "battery" | "air") { "10s" } else { "30s" };
            format!(
                "[[sensor]]\nname = \"{name}\"\ndriver = \"{driver}\"\npath = {path}\ninterval = \"{interval}\"\n\
                 max_silence = \"6h\"\n{rest}\n"
            )
        };
        [
            sensor(
                "motion",
                "file",
                "motion",
                "quantity = \"motion\"\nunit = \"1\"\nactivity = \"change\"\ndeadband = 2\nstale_after = \"1d\"",
            ),
            sensor(
                "front-door",
                "file",
                "door",
                "quantity = \"open\"\nunit = \"1\"\nactivity = \"door\"\ndeadband = 1\nstale_after = \"1d\"",
            ),
            sensor(
                "bedroom",
                "iio",
                "iio/in_temp_raw",
                "deadband = 1\nmin = -40\nmax = 85\n[[sensor.threshold]]\nname = \"too cold\"\nbelow = 16.5\nclear = 17",
            ),
            sensor("humidity", "iio", "iio/in_humidityrelative_input", "deadband = 10"),
            sensor("light", "iio", "iio/in_illuminance_raw", "deadband = 300"),
            sensor(
                "air",
                "iio",
                "iio/in_concentration_co2_raw",
                "unit = \"[ppm]\"\naverage = \"5m\"\ndeadband = 300\n[[sensor.threshold]]\nname = \"stale air\"\n\
                 above = 1400\nclear = 1100\nhold = \"10m\"",
            ),
            sensor("mains", "power-supply", "AC", "quantity = \"mains\"\ndeadband = 1"),
            sensor("battery", "power-supply", "BAT0", "quantity = \"charge\"\ndeadband = 20\nlow = 20"),
        ]
        .concat()
    }

    /// Lives through the weeks before and remembers their rhythm where the agent looks.
    ///
    /// # Errors
    /// The memory cannot be written.
    pub fn learn(
        &self,
        settings: &config::Activity,
        file: &Path,
        now: Instant,
    ) -> std::io::Result<()> {
        let from = self.zone.unix_ms(self.first_day, 0.0);
        let wall = |at_ms| WallTime { unix_ms: at_ms, state: ClockState::Synced };
        let then = |at_ms: u64| now + Duration::from_millis(at_ms - from);
        let mut watch = Inactivity::new(settings.clone(), self.zone.clone(), None, now);
        let mut signs = self.life.signs.iter().peekable();
        let mut at = from;
        while at < self.begins_ms() {
            while let Some(sign) = signs.next_if(|sign| sign.at_ms <= at) {
                let at_ms = sign.at_ms.max(from);
                let door = sign.trace == Trace::Door;
                watch.handle_sign(then(at_ms), wall(at_ms), "", door);
            }
            watch.handle_tick(then(at), wall(at));
            at += 5 * MINUTE_MS;
        }
        let memory = watch.memory(then(at), wall(at)).encode().map_err(std::io::Error::other)?;
        memory_file::write(file, &memory)
    }

    /// Lets the life go on by `world` on a thread of its own, which ends with the receiver; what
    /// happens comes out in lines.
    ///
    /// # Errors
    /// The thread does not start.
    pub fn live(self, world: Clock, switches: Switches) -> std::io::Result<mpsc::Receiver<String>> {
        let (lines, shown) = mpsc::channel(LINES);
        let body = move || {
            let mut before = State::at(&self, world.wall().unix_ms);
            loop {
                std::thread::sleep(EVERY);
                // With the simulator its files go.
                if lines.is_closed() {
                    return;
                }
                let state = State::at(&self, world.wall().unix_ms).with(&switches);
                if let Err(error) = self.write(&state) {
                    tracing::error!("the simulated home cannot be written: {error}");
                    return;
                }
                for line in state.differs_from(&before) {
                    // Nobody waits for a line that is not shown.
                    let local = self.zone.local(world.wall().unix_ms);
                    let _ =
                        lines.try_send(format!("{} {}  {line}", local.weekday(), local.hh_mm()));
                }
                before = state;
            }
        };
        std::thread::Builder::new().name("home".to_owned()).spawn(body)?;
        Ok(shown)
    }

    fn write(&self, state: &State) -> std::io::Result<()> {
        let number = |flag: bool| if flag { "1" } else { "0" }.to_owned();
        let files = [
            ("motion", number(state.motion)),
            ("door", number(state.door)),
            ("iio/in_temp_raw", format!("{:.0}", state.celsius * 100.0)),
            ("iio/in_temp_scale", "10".to_owned()),
            ("iio/in_humidityrelative_input", format!("{:.0}", state.humidity * 1000.0)),
            ("iio/in_illuminance_raw", format!("{:.0}", state.lux)),
            (CO2, format!("{:.0}", state.co2_ppm)),
            ("iio/in_concentration_co2_scale", "0.0001".to_owned()),
            ("AC/type", "Mains".to_owned()),
            ("AC/online", number(state.mains)),
            ("BAT0/type", "Battery".to_owned()),
            ("BAT0/present", "1".to_owned()),
            ("BAT0/capacity", format!("{:.0}", state.charge)),
            ("BAT0/status", state.charging().to_owned()),
        ];
        for (name, content) in files {
            let path = self.directory.join(name);
            if state.deaf_to_co2 && name == CO2 {
                match std::fs::remove_file(path) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(error);
                    }
                    _ => continue,
                }
            }
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent)?;
            }
            // Renamed into place, so that no reader finds half of it.
            let new = self.directory.join("new");
            std::fs::write(&new, content)?;
            std::fs::rename(&new, path)?;
        }
        Ok(())
    }
}

/// What the sensors see at one moment: a function of the time alone, so that it can be entered anywhere.
#[derive(Debug, Clone, PartialEq)]
struct State {
    place: Place,
    fallen: bool,
    motion: bool,
    door: bool,
    celsius: f64,
    humidity: f64,
    lux: f64,
    co2_ppm: f64,
    mains: bool,
    charge: f64,
    /// The sensor of CO2 is broken.
    deaf_to_co2: bool,
}

impl State {
    fn at(home: &Home, at_ms: u64) -> Self {
        let today = home.zone.unix_ms(home.first_day + LEARNED_DAYS, 0.0);
        let minute = at_ms.saturating_sub(today) as f64 / MINUTE_MS as f64;
        let has_story = home.has_story && at_ms < today + DAY_MS;
        let fallen = has_story && (FALL_MIN..FOUND_MIN).contains(&minute);
        let place = if fallen { Place::Home } else { home.life.place(at_ms) };
        let seen = |trace: &dyn Fn(Trace) -> bool| {
            let signs = &home.life.signs;
            let next = signs.partition_point(|sign| sign.at_ms <= at_ms);
            let recent = signs[..next].iter().rev();
            let mut recent = recent.take_while(|sign| sign.at_ms + MOTION_MS > at_ms);
            recent.any(|sign| trace(sign.trace))
        };
        let of_day = minute.rem_euclid(1440.0);
        let sun = (std::f64::consts::PI * (of_day - 420.0) / 600.0).sin().max(0.0);
        let lamp = place == Place::Home && !fallen && sun < 0.2;
        let mains = !has_story || !(MAINS_LOST.0..MAINS_LOST.1).contains(&minute);
        let on_battery = (minute.min(MAINS_LOST.1) - MAINS_LOST.0).max(0.0);
        let since_mains = if mains { (minute - MAINS_LOST.1).max(0.0) } else { 0.0 };
        let charge = if has_story { 100.0 - 0.9 * on_battery + 0.5 * since_mains } else { 100.0 };
        let hours_at_home = (0..3).filter(|ago| {
            home.life.place(at_ms.saturating_sub(ago * 60 * MINUTE_MS)) != Place::Out
        });
        Self {
            place,
            fallen,
            motion: seen(&|trace| trace != Trace::Door),
            door: seen(&|trace| trace == Trace::Door),
            // Coldest at six in the morning, two degrees around twenty.
            celsius: 20.0
                - 2.0 * (std::f64::consts::TAU * of_day / 1440.0).cos()
                - if mains { 0.0 } else { on_battery / 60.0 },
            humidity: 45.0 + if lamp { 8.0 } else { 0.0 },
            lux: 2.0 + 700.0 * sun + if lamp { 150.0 } else { 0.0 },
            co2_ppm: 450.0 + 350.0 * hours_at_home.count() as f64,
            mains,
            charge: charge.clamp(3.0, 100.0),
            deaf_to_co2: false,
        }
    }

    /// With what somebody has broken.
    fn with(self, switches: &Switches) -> Self {
        let mains = self.mains && !switches.is_on(Fault::Mains);
        Self { mains, deaf_to_co2: switches.is_on(Fault::Sensor), ..self }
    }

    fn charging(&self) -> &'static str {
        match (self.mains, self.charge >= 100.0) {
            (false, _) => "Discharging",
            (true, true) => "Full",
            (true, false) => "Charging",
        }
    }

    /// What a visitor would have noticed since `before`.
    fn differs_from(&self, before: &Self) -> Vec<&'static str> {
        let mut lines = Vec::new();
        if self.place != before.place && !self.fallen {
            lines.push(match self.place {
                Place::Asleep => "lies down",
                Place::Home => "is up and about",
                Place::Out => "goes out",
            });
        }
        match (before.fallen, self.fallen) {
            (false, true) => lines.push("has fallen, and lies"),
            (true, false) => lines.push("a neighbour comes and helps"),
            _ => {}
        }
        match (before.deaf_to_co2, self.deaf_to_co2) {
            (false, true) => lines.push("the CO2 sensor is broken"),
            (true, false) => lines.push("the CO2 sensor is mended"),
            _ => {}
        }
        match (before.mains, self.mains) {
            (true, false) => lines.push("mains power is lost"),
            (false, true) => lines.push("mains power is back"),
            _ => {}
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A midnight.
    const TODAY_MS: u64 = 1_767_571_200_000;

    fn home(directory: &Path, has_story: bool) -> Home {
        let wall = WallTime { unix_ms: TODAY_MS, state: ClockState::Synced };
        Home::new(directory, Zone::utc(), wall, &mut Rng::from_seed(1), has_story).unwrap()
    }

    #[test]
    fn the_day_has_its_story_and_the_files_say_it() {
        let directory = tempfile::tempdir().unwrap();
        let home = home(directory.path(), true);
        let today = home.zone.unix_ms(home.first_day + LEARNED_DAYS, 0.0);
        assert_eq!(today, TODAY_MS);
        let at = |minute: u64| State::at(&home, today + minute * MINUTE_MS);
        let mut before = at(330);
        let mut story = Vec::new();
        for minute in 331..1440 {
            let state = at(minute);
            story.extend(state.differs_from(&before));
            before = state;
        }
        for line in [
            "is up and about",
            "mains power is lost",
            "mains power is back",
            "has fallen, and lies",
            "a neighbour comes and helps",
            "lies down",
        ] {
            assert!(story.contains(&line), "{line}: {story:?}");
        }
        assert!((913..1290).all(|minute| !at(minute).motion && !at(minute).door));
        assert!(at(734).charge < 20.0 && at(629).charge == 100.0);
        home.write(&at(700)).unwrap();
        let read = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap();
        assert_eq!((read("AC/online"), read("BAT0/status")), ("0".into(), "Discharging".into()));
    }

    #[test]
    fn the_real_day_is_an_ordinary_one() {
        let directory = tempfile::tempdir().unwrap();
        let home = home(directory.path(), false);
        for minute in 0..1440 {
            let state = State::at(&home, TODAY_MS + minute * MINUTE_MS);
            assert!(state.mains && !state.fallen && state.charge >= 100.0, "{minute}: {state:?}");
        }
    }
}
