//! `[[sensor]]`: what is measured, in what unit, how often it is told, and what is too much.
//!
//! What a kernel interface delivers is known from the name of its file ([`NATIVE`]): where the
//! file leaves `quantity`, `unit` or `scale` open they follow from it.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::AudioInput;
use super::document::Entry;
use super::reader::{self, Findings, Origin, Problem, Section};
use super::ucum::Unit;

/// Sensors at most: each costs a reader and its state.
pub(super) const MAX_SENSORS: usize = 64;
/// Readings that an averaging window may hold at most.
pub const MAX_WINDOW: u32 = 1000;
const ANY: RangeInclusive<f64> = -1e12..=1e12;

/// One `[[sensor]]`, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Sensor {
    /// Stands in events and is the part at fault when it fails.
    pub name: String,
    /// Where readings come from.
    pub source: Source,
    /// What is measured: `temperature`.
    pub quantity: String,
    /// The unit of `raw · scale + offset`.
    pub raw_unit: Unit,
    /// The unit of events, thresholds and everything below.
    pub unit: Unit,
    /// Factor from what the driver reads.
    pub scale: f64,
    /// Added after it.
    pub offset: f64,
    /// How often it is read.
    pub interval: Duration,
    /// Over how long readings are averaged; zero: not at all.
    pub average: Duration,
    /// A reading is told when it differs by so much from the last one told.
    pub deadband: f64,
    /// A reading is told at least so often.
    pub max_silence: Duration,
    /// Without a new reading for so long it counts as failed.
    pub stale_after: Duration,
    /// Readings outside are a fault of the sensor.
    pub plausible: RangeInclusive<f64>,
    /// What is too much or too little.
    pub thresholds: Vec<Threshold>,
    /// Whether and when a reading is a sign that somebody is about.
    pub activity: Option<Sign>,
}

/// Where readings come from.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// A channel of the industrial I/O subsystem.
    Iio {
        /// Its file, or the name up to `_input` or `_raw`.
        path: PathBuf,
        /// By whose name the device fills its buffer, where it is read from there.
        trigger: Option<String>,
    },
    /// A file of a hardware monitor.
    Hwmon(PathBuf),
    /// A thermal zone, or its file `temp`.
    Thermal(PathBuf),
    /// A directory of `/sys/class/power_supply`.
    PowerSupply {
        /// The directory.
        path: PathBuf,
        /// What is asked of it.
        supply: Supply,
    },
    /// A file that holds a number, or JSON with a number at the pointer.
    File {
        /// The file.
        path: PathBuf,
        /// JSON pointer (RFC 6901); `None`: the file is the number.
        pointer: Option<String>,
    },
    /// A CSV file with times.
    Replay(PathBuf),
    /// The loudness of the microphone that `[audio]` names.
    Microphone,
}

/// What is asked of a power supply.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Supply {
    /// Whether there is mains power: 1 or 0.
    Mains,
    /// The charge of a battery, which is low at so many percent.
    Battery {
        /// At or below: a fault.
        low: f64,
    },
}

/// One `[[sensor.threshold]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Threshold {
    /// Stands in events.
    pub name: String,
    /// Which side is too much.
    pub side: Side,
    /// Beyond this it is exceeded.
    pub level: f64,
    /// Back at or past this it is over.
    pub clear: f64,
    /// For how long either must hold before it is told.
    pub hold: Duration,
    /// Where its events go.
    pub urgency: Urgency,
    /// `severitytext` of the event.
    pub severity: &'static str,
}

/// Which side of a level is too much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Higher values.
    Above,
    /// Lower values.
    Below,
}

/// Where an event of a threshold or of inactivity goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// The lane `status`.
    Status,
    /// The lane `alert`: never expired, never evicted, overtakes everything.
    Alert,
}

impl Urgency {
    pub(super) const CHOICES: [(&str, Self); 2] =
        [("status", Self::Status), ("alert", Self::Alert)];
}

/// When a reading is a sign of activity.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sign {
    /// Which changes count, and what they mean.
    pub kind: SignKind,
    /// By how much it must differ from what it was in the last minutes.
    pub step: f64,
}

/// Which changes of a reading are signs of activity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignKind {
    /// All.
    Change,
    /// Only a rise: CO2 rises with breath and falls by itself.
    Rise,
    /// All, and whoever caused it may have left: the front door.
    Door,
}

/// `[activity]`: the watch over the daily rhythm.
#[derive(Debug, Clone, PartialEq)]
pub struct Activity {
    /// For how long the rhythm is observed before it counts.
    pub learning: Duration,
    /// The limit until then, and whenever the hour is not known.
    pub max_silence: Duration,
    /// No limit is shorter.
    pub least: Duration,
    /// How many times what is usual a silence may be.
    pub margin: f64,
    /// Where its events go.
    pub urgency: Urgency,
}

pub(super) fn read_activity(mut section: Section<'_>) -> Activity {
    let hours = |hours: u64| Duration::from_secs(hours * 3600);
    let learning = section.duration("learning", hours(14 * 24), hours(24));
    let max_silence = section.duration("max_silence", hours(12), hours(1));
    let least = section.duration("least", hours(2), hours(1) / 2);
    let margin = section.number("margin", 1.75, 1.0..=10.0);
    let urgency = section.choice("lane", Urgency::Status, &Urgency::CHOICES);
    section.finish();
    Activity { learning, max_silence, least, margin, urgency }
}

/// A file name of a kernel interface: it begins with `prefix`, and what stands behind the digits
/// that follow does not matter. Its unit is `scale` times the value in it.
struct Native {
    driver: &'static str,
    prefix: &'static str,
    quantity: &'static str,
    unit: &'static str,
    scale: f64,
}

const fn native(
    driver: &'static str,
    prefix: &'static str,
    quantity: &'static str,
    unit: &'static str,
    scale: f64,
) -> Native {
    Native { driver, prefix, quantity, unit, scale }
}

/// Source: Documentation/ABI/testing/sysfs-bus-iio, Documentation/hwmon/sysfs-interface.rst and
/// Documentation/driver-api/thermal/sysfs-api.rst of Linux 6.1. A longer prefix stands before a shorter.
const NATIVE: &[Native] = &[
    native("iio", "in_temp", "temperature", "Cel", 1e-3),
    native("iio", "in_humidityrelative", "humidity", "%", 1e-3),
    native("iio", "in_pressure", "pressure", "kPa", 1.0),
    native("iio", "in_illuminance", "illuminance", "lx", 1.0),
    native("iio", "in_concentration_co2", "co2", "%", 1.0),
    native("iio", "in_concentration", "concentration", "%", 1.0),
    native("iio", "in_massconcentration", "dust", "ug/m3", 1.0),
    native("iio", "in_voltage", "voltage", "V", 1e-3),
    native("iio", "in_current", "current", "A", 1e-3),
    native("iio", "in_power", "power", "W", 1e-3),
    native("iio", "in_distance", "distance", "m", 1.0),
    native("iio", "in_accel", "acceleration", "m/s2", 1.0),
    native("hwmon", "temp", "temperature", "Cel", 1e-3),
    native("hwmon", "humidity", "humidity", "%", 1e-3),
    native("hwmon", "in", "voltage", "V", 1e-3),
    native("hwmon", "curr", "current", "A", 1e-3),
    native("hwmon", "power", "power", "W", 1e-6),
    native("hwmon", "energy", "energy", "J", 1e-6),
    native("hwmon", "fan", "speed", "/min", 1.0),
    native("thermal", "", "temperature", "Cel", 1e-3),
    native("microphone", "", "noise", "dB", 1.0),
];

/// What a chip says of itself beside its values (`temp1_fault`, `intrusion0_alarm`): 0 or 1, whatever it is about.
const FLAG: Native = native("hwmon", "", "alarm", "1", 1.0);

fn native_of(driver: &str, path: &Path) -> Option<&'static Native> {
    let file = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    // The names of IIO go on behind the kind; those of hwmon are the kind and a number.
    let kind = file.split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or_default();
    let is_flag = file.ends_with("_alarm") || file.ends_with("_fault");
    match driver {
        "hwmon" if is_flag => Some(&FLAG),
        "hwmon" => NATIVE.iter().find(|n| n.driver == driver && n.prefix == kind),
        _ => NATIVE.iter().find(|n| n.driver == driver && file.starts_with(n.prefix)),
    }
}

/// Reads every `[[sensor]]` of the document.
pub(super) fn read(root: &mut BTreeMap<String, Entry>, findings: &mut Findings) -> Vec<Sensor> {
    let mut sensors: Vec<Sensor> = Vec::new();
    reader::tables(root, "sensor", findings, |mut section| {
        let name = name(&mut section);
        if sensors.iter().any(|other| other.name == name) {
            let origin = section.origin("name");
            section.problem("name", origin, format!("is `{name}` for a second time"));
        }
        if sensors.len() == MAX_SENSORS {
            let origin = section.origin("name");
            section.problem("name", origin, format!("is one too many: at most {MAX_SENSORS}"));
        }
        sensors.push(sensor(name, section));
    });
    sensors
}

/// A sensor that listens where nothing listens would be dead from the start.
pub(super) fn check_microphone(sensors: &[Sensor], audio: &AudioInput, findings: &mut Findings) {
    if *audio != AudioInput::None {
        return;
    }
    for sensor in sensors.iter().filter(|sensor| sensor.source == Source::Microphone) {
        let key = format!("sensor.{}.driver", sensor.name);
        let noted = findings.settings.iter().find(|setting| setting.key == key);
        let origin = noted.map_or(Origin::Default, |setting| setting.origin.clone());
        let message = "is \"microphone\", but audio.input is \"none\"".to_owned();
        findings.problems.push(Problem { origin, key, message });
    }
}

fn name(section: &mut Section<'_>) -> String {
    let read = |text: &str| {
        if super::is_topic_level(text) {
            return Ok(text.to_owned());
        }
        Err(format!("is `{text}`; 1 to 64 of the characters A-Z a-z 0-9 - _ ."))
    };
    section.required("name", String::new(), "name the sensor", read, |name| reader::quoted(name))
}

const DRIVERS: [&str; 7] =
    ["iio", "hwmon", "thermal", "power-supply", "file", "replay", "microphone"];

fn sensor(name: String, mut section: Section<'_>) -> Sensor {
    let driver = section.required(
        "driver",
        "",
        "write driver = \"iio\", or one of the others",
        |text| match DRIVERS.iter().find(|driver| **driver == text) {
            Some(driver) => Ok(*driver),
            None => Err(format!("is `{text}`; one of: {}", DRIVERS.join(", "))),
        },
        |driver| reader::quoted(driver),
    );
    let (source, quantity, native) = source(driver, &mut section);
    let (raw_unit, unit, scale) = units(native, &mut section);
    let offset = section.number("offset", 0.0, ANY);
    let usual = if driver == "power-supply" { 5 } else { 60 };
    let least = Duration::from_millis(100);
    let interval = section.duration("interval", Duration::from_secs(usual), least);
    let average = section.duration("average", Duration::ZERO, Duration::ZERO);
    if average > interval.saturating_mul(MAX_WINDOW) {
        let origin = section.origin("average");
        let message = format!("is longer than {MAX_WINDOW} intervals; read less often");
        section.problem("average", origin, message);
    }
    let deadband = section.number("deadband", 0.0, 0.0..=1e12);
    let max_silence =
        section.duration("max_silence", interval.max(Duration::from_secs(600)), interval);
    let stale_after =
        section.duration("stale_after", (interval * 3).max(Duration::from_secs(5)), interval);
    let plausible = plausible(&mut section);
    let urgency = section.choice("lane", Urgency::Status, &Urgency::CHOICES);
    let thresholds = thresholds(&mut section, urgency, deadband, unit);
    let activity = activity(&mut section, unit);
    section.finish();
    Sensor {
        name,
        source,
        quantity,
        raw_unit,
        unit,
        scale,
        offset,
        interval,
        average,
        deadband,
        max_silence,
        stale_after,
        plausible,
        thresholds,
        activity,
    }
}

/// The source, the quantity, and what the interface says of itself.
fn source(
    driver: &str,
    section: &mut Section<'_>,
) -> (Source, String, Option<(&'static str, f64)>) {
    let path = if driver == "microphone" { PathBuf::new() } else { path(section) };
    let known = native_of(driver, &path);
    let default = known.map_or("", |native| native.quantity);
    let read = |text: &str| match text {
        _ if driver == "power-supply" && !matches!(text, "mains" | "charge") => {
            Err(format!("is `{text}`; of a power supply it is \"mains\" or \"charge\""))
        }
        _ if super::is_topic_level(text) => Ok(text.to_owned()),
        _ => Err(format!("is `{text}`; a word such as \"temperature\"")),
    };
    let show = |quantity: &String| reader::quoted(quantity);
    let quantity = if default.is_empty() {
        let what = if driver == "power-supply" {
            "write quantity = \"mains\" or \"charge\""
        } else {
            "write what is measured, such as quantity = \"temperature\""
        };
        section.required("quantity", String::new(), what, read, show)
    } else {
        section.checked("quantity", default.to_owned(), read, show)
    };
    let mut native = known.map(|native| (native.unit, native.scale));
    let source = match driver {
        "iio" => {
            let is_input = path.to_string_lossy().ends_with("_input");
            let read = |text: &str| match text {
                "" => Ok(None),
                _ if is_input => {
                    Err("is set, but a buffer holds no _input: leave that away in path".to_owned())
                }
                name => Ok(Some(name.to_owned())),
            };
            let trigger = section.checked("trigger", None, read, |name: &Option<String>| {
                reader::quoted(name.as_deref().unwrap_or_default())
            });
            Source::Iio { path, trigger }
        }
        "hwmon" => Source::Hwmon(path),
        "thermal" => Source::Thermal(path),
        "power-supply" if quantity == "charge" => {
            native = Some(("%", 1.0));
            let low = section.number("low", 15.0, 0.0..=100.0);
            Source::PowerSupply { path, supply: Supply::Battery { low } }
        }
        "power-supply" => {
            native = Some(("1", 1.0));
            Source::PowerSupply { path, supply: Supply::Mains }
        }
        "file" => {
            let read = |text: &str| match text {
                "" => Ok(None),
                pointer if pointer.starts_with('/') => Ok(Some(pointer.to_owned())),
                other => Err(format!("is `{other}`; a JSON pointer begins with `/`")),
            };
            let pointer = section.checked("pointer", None, read, |p: &Option<String>| {
                reader::quoted(p.as_deref().unwrap_or_default())
            });
            Source::File { path, pointer }
        }
        "replay" => Source::Replay(path),
        _ => Source::Microphone,
    };
    (source, quantity, native)
}

fn path(section: &mut Section<'_>) -> PathBuf {
    let read = |text: &str| match text {
        "" => Err("is empty; name a file".to_owned()),
        path if path.matches('*').count() > 1 => {
            Err(format!("is `{path}`; at most one `*`, for a number that changes with the boot"))
        }
        path => Ok(PathBuf::from(path)),
    };
    let show = |path: &PathBuf| reader::quoted(&path.display().to_string());
    section.required("path", PathBuf::new(), "name the file or directory to read", read, show)
}

fn read_unit(text: &str) -> Result<Unit, String> {
    Unit::from_code(text).ok_or_else(|| {
        let codes: Vec<_> = Unit::codes().collect();
        format!("is `{text}`, which is no UCUM code that is known here: {}", codes.join(" "))
    })
}

/// The unit of what `scale` and `offset` give, the unit of events, and the scale.
fn units(native: Option<(&'static str, f64)>, section: &mut Section<'_>) -> (Unit, Unit, f64) {
    let of_interface = native.and_then(|(code, _)| Unit::from_code(code));
    let show = |unit: &Unit| reader::quoted(unit.code());
    let unit = match of_interface {
        Some(unit) => section.checked("unit", unit, read_unit, show),
        None => {
            let advice = "write the UCUM code, such as \"Cel\"";
            section.required("unit", Unit::ONE, advice, read_unit, show)
        }
    };
    let set = section.has("scale");
    let scale = section.number("scale", native.map_or(1.0, |(_, scale)| scale), ANY);
    if scale == 0.0 {
        let origin = section.origin("scale");
        section.problem("scale", origin, "is 0: every reading would be the same");
    }
    // Whoever writes a scale of his own has the unit of the events in mind.
    let meant = if set { unit } else { of_interface.unwrap_or(unit) };
    let raw_unit = section.checked("raw_unit", meant, read_unit, show);
    if !raw_unit.converts_to(unit) {
        let key = if section.origin("raw_unit") == Origin::Default { "unit" } else { "raw_unit" };
        let origin = section.origin(key);
        let message = format!("does not fit: {raw_unit} cannot be converted to {unit}");
        section.problem(key, origin, message);
    }
    (raw_unit, unit, scale)
}

fn plausible(section: &mut Section<'_>) -> RangeInclusive<f64> {
    let least = section.optional_number("min", ANY).unwrap_or(f64::MIN);
    let most = section.optional_number("max", ANY).unwrap_or(f64::MAX);
    if least >= most {
        let origin = section.origin("min");
        section.problem("min", origin, format!("is {least}, which is not below max = {most}"));
    }
    least..=most
}

fn thresholds(
    section: &mut Section<'_>,
    urgency: Urgency,
    deadband: f64,
    unit: Unit,
) -> Vec<Threshold> {
    let mut found: Vec<Threshold> = Vec::new();
    section.tables("threshold", |table| {
        let threshold = threshold(table, urgency, deadband, unit);
        if found.iter().any(|other| other.name == threshold.name) {
            let origin = table.origin("name");
            let message = format!("is `{}` for a second time", threshold.name);
            table.problem("name", origin, message);
        }
        found.push(threshold);
    });
    found
}

fn threshold(table: &mut Section<'_>, urgency: Urgency, deadband: f64, unit: Unit) -> Threshold {
    let above = table.optional_number("above", ANY);
    let below = table.optional_number("below", ANY);
    let (side, level) = match (above, below) {
        (Some(level), None) => (Side::Above, level),
        (None, Some(level)) => (Side::Below, level),
        _ => {
            let origin = table.start();
            table.problem("above", origin, "or `below` must be set, and not both");
            (Side::Above, 0.0)
        }
    };
    let word = if side == Side::Above { "above" } else { "below" };
    let default = if side == Side::Above { level - deadband } else { level + deadband };
    let clear = table.number("clear", default, ANY);
    let beyond = if side == Side::Above { clear > level } else { clear < level };
    if beyond && above.is_some() != below.is_some() {
        let origin = table.origin("clear");
        let message = format!("is {clear}, which is {word} the level {level} itself");
        table.problem("clear", origin, message);
    }
    let hold = table.duration("hold", Duration::ZERO, Duration::ZERO);
    let read_name = |text: &str| match text.trim() {
        "" => Err("is empty".to_owned()),
        name if name.len() > 64 => Err("has more than 64 bytes".to_owned()),
        name => Ok(name.to_owned()),
    };
    let name =
        table.checked("name", format!("{word} {level} {unit}"), read_name, |n| reader::quoted(n));
    let urgency = table.choice("lane", urgency, &Urgency::CHOICES);
    let severities = ["TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL"].map(|text| (text, text));
    let severity = table.choice("severity", "WARN", &severities);
    Threshold { name, side, level, clear, hold, urgency, severity }
}

fn activity(section: &mut Section<'_>, unit: Unit) -> Option<Sign> {
    let kind = section.choice(
        "activity",
        None,
        &[
            ("no", None),
            ("change", Some(SignKind::Change)),
            ("rise", Some(SignKind::Rise)),
            ("door", Some(SignKind::Door)),
        ],
    );
    let step = section.optional_number("activity_step", 1e-9..=1e12);
    let origin = section.origin("activity");
    match (kind, step) {
        (Some(kind), Some(step)) => Some(Sign { kind, step }),
        // Of something that is 0 or 1 half of it is a change.
        (Some(kind), None) if unit.code() == "1" => Some(Sign { kind, step: 0.5 }),
        (Some(_), None) => {
            let message = format!("needs activity_step: how many {unit} are a sign of activity");
            section.problem("activity", origin, message);
            None
        }
        (None, Some(_)) => {
            let origin = section.origin("activity_step");
            section.problem("activity_step", origin, "has no effect without activity");
            None
        }
        (None, None) => None,
    }
}
