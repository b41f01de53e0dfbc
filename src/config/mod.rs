//! The configuration: typed settings out of TOML, with every error reported at once.
//!
//! Rules: an unknown key is an error; a setting that this version cannot honour is an error, never
//! silently without effect; secrets stand in files, never here. `HARK__SECTION__KEY` in the
//! environment overrides the file. The reference with the reason of each default is
//! `docs/configuration.md`, which a test holds against this module.
//!
//! Terms: a [`Setting`] is a value in force with its [`Origin`]; a [`Problem`] is what is wrong.
//!
//! Absent: reading files other than the text handed in.

mod alarm;
mod document;
mod reader;
mod schema;
mod sensors;
mod ucum;
mod units;
mod uplink;

use core::net::SocketAddr;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

pub use alarm::{Alarm, Button, ButtonContact, Commands, Contact, Route, Signal, TestSchedule};
use document::{Entry, Node};
use reader::{Findings, Section};
pub use reader::{Origin, Problem, Setting};
pub use schema::schema;
pub use sensors::{
    Activity, MAX_WINDOW, Sensor, Side, Sign, SignKind, Source, Supply, Threshold, Urgency,
};
pub use ucum::Unit;
pub use units::{format_duration, parse_duration};
pub use uplink::{Protocol, Uplink};

/// Everything that can be set, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `[device]`
    pub device: Device,
    /// `[audio]`
    pub audio: AudioInput,
    /// `[voice]`
    pub voice: Voice,
    /// `[alarm]`
    pub alarm: Alarm,
    /// `[signal]`
    pub signal: Signal,
    /// `[[button]]`, in the order of the file.
    pub buttons: Vec<Button>,
    /// `[commands]`
    pub commands: Commands,
    /// `[outbox]`
    pub outbox: Outbox,
    /// `[uplink]`
    pub uplink: Uplink,
    /// `[lanes]`: what ends the care for a lane's events. Order: alert, status, telemetry.
    pub receipts: [Receipts; 3],
    /// `[ingest]`
    pub ingest: Ingest,
    /// `[ops]`
    pub ops: Ops,
    /// `[[sensor]]`, in the order of the file.
    pub sensors: Vec<Sensor>,
    /// `[activity]`
    pub activity: Activity,
}

/// `confirm` and `receipt_timeout` of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipts {
    /// The consumer's receipt is waited for, not only the broker's PUBACK.
    pub wanted: bool,
    /// How long, before the event is published again.
    pub timeout: Duration,
}

/// `[device]`: who this is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Stands in topics, in `source` and as the MQTT client id. `None`: derived from
    /// `/etc/machine-id`.
    pub id: Option<String>,
    /// Begins the type of every event that the agent makes.
    pub type_prefix: String,
    /// Of the home: a name such as `Europe/Zurich`, or a POSIX rule. Empty: the system's.
    pub timezone: String,
}

/// `[audio] input`: where the sound comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AudioInput {
    /// A sound card, by its cpal name; `default` is the system's own.
    Device(String),
    /// A WAV file, played at real-time pace.
    Wav(PathBuf),
    /// No audio: the device does not listen.
    None,
}

/// `[voice]`: what is listened for.
#[derive(Debug, Clone, PartialEq)]
pub struct Voice {
    /// In the order of the file, none twice.
    pub keyphrases: Vec<Keyphrase>,
    /// How readily it reacts.
    pub sensitivity: Sensitivity,
    /// Where the weights are searched first.
    pub models: PathBuf,
    /// For how long a phrase that was heard is not reported again.
    pub cooldown: Duration,
    /// Whether a recogniser is asked about what the detector is not sure of.
    pub confirm: Confirm,
}

/// `voice.confirm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confirm {
    /// Where the recogniser is installed.
    Auto,
    /// Never.
    Off,
    /// The agent does not start without it.
    Recogniser,
}

/// What is listened for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keyphrase {
    /// As it stands in the event.
    pub text: String,
    /// IPA, separated by spaces; `None` for a built-in phrase.
    pub phonemes: Option<String>,
}

/// `point` or `threshold` of `[voice]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sensitivity {
    /// A measured operating point.
    Point(Point),
    /// A score from 0 to 1, for somebody who measures for himself.
    Threshold(f32),
}

/// A measured operating point of the detector; `docs/voice.md` has the figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// Hears more, and more that was not said.
    Sensitive,
    /// The default.
    Balanced,
    /// Rarely wrong, and misses more.
    Quiet,
}

/// `[outbox]` and what of `[lanes]` concerns it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outbox {
    /// The directory of the store.
    pub path: PathBuf,
    /// How long an event of the telemetry lane may wait to share a commit.
    pub coalesce_telemetry: Duration,
    /// The same for the status lane.
    pub coalesce_status: Duration,
    /// Bytes of the disk that the outbox takes at most.
    pub max_size: u64,
    /// How long telemetry is of use.
    pub expiry_telemetry: Duration,
}

/// `[ingest]`: where other programs hand events in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ingest {
    /// Unix socket. `None`: switched off.
    pub socket: Option<PathBuf>,
    /// `[[ingest.route]]`, in the order of the file: the first that fits counts.
    pub routes: Vec<Route>,
}

/// `[ops]`: for whoever watches over the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ops {
    /// Where `/metrics`, `/healthz` and `/readyz` are served. `None`: nowhere.
    pub listen: Option<SocketAddr>,
    /// Between two `device.heartbeat.sent`.
    pub heartbeat_interval: Duration,
}

/// The phrases that need no phonemes.
pub const BUILT_IN_KEYPHRASES: [&str; 4] = ["help", "help me", "hilfe", "zu hilfe"];

/// All that is wrong with a configuration, a line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The file's name, as the user gave it.
    pub file: String,
    /// In the order of the file.
    pub problems: Vec<Problem>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, problem) in self.problems.iter().enumerate() {
            if place > 0 {
                f.write_str("\n")?;
            }
            match &problem.origin {
                Origin::Line(line) => write!(f, "{}:{line}: ", self.file)?,
                Origin::Environment(name) => write!(f, "environment variable {name}: ")?,
                Origin::Default => write!(f, "{}: ", self.file)?,
            }
            if !problem.key.is_empty() {
                write!(f, "{} ", problem.key)?;
            }
            f.write_str(&problem.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// A checked configuration and where each of its values comes from.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// Every key with its value and origin, in the order of the sections.
    pub settings: Vec<Setting>,
}

/// Reads a configuration. `file` is its name in messages; `environment` holds the variables.
///
/// # Errors
/// Everything that is wrong, together; nothing is half applied.
pub fn load(
    file: &str,
    text: &str,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<Loaded, ConfigError> {
    let mut findings = Findings::default();
    let mut root = document::parse(text, environment, &mut findings);
    let config = read(&mut root, &mut findings);
    refuse_the_rest(root, &mut findings);
    let Findings { mut problems, settings, .. } = findings;
    if problems.is_empty() {
        return Ok(Loaded { config, settings });
    }
    problems.sort_by_key(|problem| match problem.origin {
        Origin::Line(line) => line,
        _ => usize::MAX,
    });
    Err(ConfigError { file: file.to_owned(), problems })
}

/// What is asked for in reading `text`, whatever is wrong with it.
fn shapes(text: &str) -> schema::Shapes {
    let mut findings = Findings::default();
    let mut root = document::parse(text, std::iter::empty(), &mut findings);
    read(&mut root, &mut findings);
    findings.shapes
}

fn read(root: &mut BTreeMap<String, Entry>, findings: &mut Findings) -> Config {
    let device = device(Section::take_from(root, "device", findings));
    let audio = audio(Section::take_from(root, "audio", findings));
    let voice = voice(Section::take_from(root, "voice", findings));
    let alarm = alarm::alarm(Section::take_from(root, "alarm", findings));
    let signal = alarm::signal(Section::take_from(root, "signal", findings));
    let buttons = alarm::buttons(root, findings);
    let mut outbox = outbox(Section::take_from(root, "outbox", findings));
    let receipts = lanes(Section::take_from(root, "lanes", findings), &mut outbox);
    let uplink = uplink::read(Section::take_from(root, "uplink", findings));
    let commands = alarm::commands(Section::take_from(root, "commands", findings));
    let ingest = ingest(Section::take_from(root, "ingest", findings));
    let activity = sensors::read_activity(Section::take_from(root, "activity", findings));
    let ops = ops(Section::take_from(root, "ops", findings));
    let sensors = sensors::read(root, findings);
    sensors::check_microphone(&sensors, &audio, findings);
    Config {
        device,
        audio,
        voice,
        alarm,
        signal,
        buttons,
        commands,
        outbox,
        uplink,
        receipts,
        ingest,
        ops,
        sensors,
        activity,
    }
}

fn refuse_the_rest(root: BTreeMap<String, Entry>, findings: &mut Findings) {
    for (key, entry) in root {
        let message =
            "is unknown; the sections are device, audio, voice, alarm, signal, [[button]], \
                       [[sensor]], activity, outbox, lanes, uplink, commands, ingest and ops"
                .to_owned();
        findings.problems.push(Problem { origin: entry.origin, key, message });
    }
}

fn device(mut section: Section<'_>) -> Device {
    let read_id = |text: &str| match text {
        "" => Ok(None),
        id if is_topic_level(id) => Ok(Some(id.to_owned())),
        id => Err(format!(
            "is `{id}`; 1 to 64 of the characters A-Z a-z 0-9 - _ . since it stands in topics"
        )),
    };
    let id = section
        .checked("id", None, read_id, |id| reader::quoted(id.as_deref().unwrap_or_default()));
    let read_prefix = |text: &str| {
        let well_formed = !text.is_empty()
            && text.split('.').all(|part| {
                !part.is_empty()
                    && part
                        .bytes()
                        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            });
        if well_formed {
            Ok(text.to_owned())
        } else {
            Err(format!("is `{text}`; write a reversed domain name such as \"io.hark\""))
        }
    };
    let type_prefix =
        section.checked("type_prefix", "io.hark".to_owned(), read_prefix, |t| reader::quoted(t));
    let timezone = section.text("timezone", "");
    section.finish();
    Device { id, type_prefix, timezone }
}

fn is_topic_level(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

fn audio(mut section: Section<'_>) -> AudioInput {
    let read = |text: &str| match text.strip_prefix("wav:") {
        Some("") => Err("names no file after `wav:`".to_owned()),
        Some(path) => Ok(AudioInput::Wav(path.into())),
        None if text == "none" => Ok(AudioInput::None),
        None if text.is_empty() => {
            Err("is empty; \"default\", a device name, \"wav:PATH\" or \"none\"".to_owned())
        }
        None => Ok(AudioInput::Device(text.to_owned())),
    };
    let show = |input: &AudioInput| match input {
        AudioInput::Device(name) => reader::quoted(name),
        AudioInput::Wav(path) => reader::quoted(&format!("wav:{}", path.display())),
        AudioInput::None => reader::quoted("none"),
    };
    let input = section.checked("input", AudioInput::Device("default".to_owned()), read, show);
    section.finish();
    input
}

fn voice(mut section: Section<'_>) -> Voice {
    let keyphrases = keyphrases(&mut section);
    let point = section.choice(
        "point",
        Point::Balanced,
        &[("sensitive", Point::Sensitive), ("balanced", Point::Balanced), ("quiet", Point::Quiet)],
    );
    let threshold = section.optional_number("threshold", 0.0..=1.0);
    #[allow(clippy::cast_possible_truncation, reason = "a score needs no more digits")]
    let sensitivity = match threshold {
        Some(threshold) => Sensitivity::Threshold(threshold as f32),
        None => Sensitivity::Point(point),
    };
    let confirm = section.choice(
        "confirm",
        Confirm::Auto,
        &[("auto", Confirm::Auto), ("off", Confirm::Off), ("recogniser", Confirm::Recogniser)],
    );
    let models = section.text("models", "/usr/share/hark/models").into();
    let cooldown = section.duration("cooldown", Duration::from_secs(5), Duration::ZERO);
    section.finish();
    Voice { keyphrases, sensitivity, models, cooldown, confirm }
}

fn keyphrases(section: &mut Section<'_>) -> Vec<Keyphrase> {
    let built_in = || {
        BUILT_IN_KEYPHRASES.map(|text| Keyphrase { text: text.to_owned(), phonemes: None }).to_vec()
    };
    let key = "keyphrases";
    let text = json!({ "type": "string" });
    let own = json!({
        "type": "object",
        "additionalProperties": false,
        "properties": { "text": &text, "phonemes": &text },
        "required": ["text", "phonemes"],
    });
    let phrase = json!({ "anyOf": [{ "enum": BUILT_IN_KEYPHRASES }, own] });
    section.shape(key, json!({ "type": "array", "items": phrase }));
    let (phrases, origin) = match section.take(key) {
        None => (built_in(), Origin::Default),
        Some(Entry { node: Node::Array(items), origin }) => {
            let read: Vec<_> =
                items.into_iter().filter_map(|item| keyphrase(section, item)).collect();
            (read, origin)
        }
        Some(Entry { origin, .. }) => {
            section.problem(key, origin, "must be an array, such as [\"help\", \"hilfe\"]");
            return built_in();
        }
    };
    for (place, phrase) in phrases.iter().enumerate() {
        if phrases[..place].iter().any(|other| other.text == phrase.text) {
            section.problem(key, origin.clone(), format!("has `{}` twice", phrase.text));
        }
    }
    let shown: Vec<_> = phrases
        .iter()
        .map(|phrase| match &phrase.phonemes {
            None => reader::quoted(&phrase.text),
            Some(phonemes) => format!("{{ text = {:?}, phonemes = {phonemes:?} }}", phrase.text),
        })
        .collect();
    section.note(key, format!("[{}]", shown.join(", ")), origin);
    phrases
}

fn keyphrase(section: &mut Section<'_>, item: Entry) -> Option<Keyphrase> {
    let key = "keyphrases";
    let built_in = BUILT_IN_KEYPHRASES.join(", ");
    match item.node {
        Node::String(text) if BUILT_IN_KEYPHRASES.contains(&text.as_str()) => {
            Some(Keyphrase { text, phonemes: None })
        }
        Node::String(text) => {
            let message = format!(
                "has `{text}`, which is not built in ({built_in}); write \
                 {{ text = {text:?}, phonemes = \"…\" }} with its IPA symbols"
            );
            section.problem(key, item.origin, message);
            None
        }
        Node::Table(mut table) => {
            let mut text = |name: &str| match table.remove(name)?.node {
                Node::String(text) if !text.trim().is_empty() => Some(text),
                _ => None,
            };
            match (text("text"), text("phonemes"), table.is_empty()) {
                (Some(text), phonemes @ Some(_), true) => Some(Keyphrase { text, phonemes }),
                _ => {
                    let message = "has a table that is not { text = \"…\", phonemes = \"…\" }, both not empty";
                    section.problem(key, item.origin, message);
                    None
                }
            }
        }
        _ => {
            section.problem(
                key,
                item.origin,
                "holds something that is neither a string nor a table",
            );
            None
        }
    }
}

fn outbox(mut section: Section<'_>) -> Outbox {
    let path = section.checked(
        "path",
        PathBuf::from("/var/lib/hark/outbox"),
        |text| {
            if text.is_empty() { Err("is empty; name a directory".into()) } else { Ok(text.into()) }
        },
        |path| reader::quoted(&path.display().to_string()),
    );
    let max_size = section.size("max_size", 256 << 20, 16 << 20);
    section.finish();
    Outbox {
        path,
        max_size,
        expiry_telemetry: Duration::from_secs(7 * 86_400),
        coalesce_telemetry: Duration::from_millis(250),
        coalesce_status: Duration::from_millis(250),
    }
}

fn lanes(mut section: Section<'_>, outbox: &mut Outbox) -> [Receipts; 3] {
    let mut receipts = [Receipts { wanted: false, timeout: Duration::from_secs(60) }; 3];
    for (name, receipts) in ["alert", "status", "telemetry"].into_iter().zip(&mut receipts) {
        let entry = section.take(name);
        section.nested(name, entry, |lane| {
            receipts.wanted =
                lane.choice("confirm", false, &[("broker", false), ("receipt", true)]);
            receipts.timeout =
                lane.duration("receipt_timeout", receipts.timeout, Duration::from_secs(1));
            match name {
                "telemetry" => {
                    let least = Duration::from_secs(1);
                    outbox.expiry_telemetry =
                        lane.duration("expiry", outbox.expiry_telemetry, least);
                    outbox.coalesce_telemetry =
                        lane.duration("coalesce", outbox.coalesce_telemetry, Duration::ZERO);
                }
                "status" => {
                    outbox.coalesce_status =
                        lane.duration("coalesce", outbox.coalesce_status, Duration::ZERO);
                }
                _ => {}
            }
        });
    }
    section.finish();
    receipts
}

fn ingest(mut section: Section<'_>) -> Ingest {
    let socket = section.checked(
        "socket",
        Some(PathBuf::from("/run/hark/ingest.sock")),
        // sun_path holds 108 bytes with its closing zero (unix(7)).
        |text| match text.len() {
            0 => Ok(None),
            1..=107 => Ok(Some(PathBuf::from(text))),
            long => Err(format!("has {long} bytes; a socket's path has at most 107")),
        },
        |path| reader::quoted(&path.as_ref().map_or(String::new(), |p| p.display().to_string())),
    );
    let routes = alarm::routes(&mut section);
    section.finish();
    Ingest { socket, routes }
}

fn ops(mut section: Section<'_>) -> Ops {
    let listen = section.checked(
        "listen",
        Some(SocketAddr::from(([127, 0, 0, 1], 9464))),
        |text| match text {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| {
                format!("is `{text}`; an address and a port such as \"127.0.0.1:9464\", or \"\"")
            }),
        },
        |address| reader::quoted(&address.map_or(String::new(), |a| a.to_string())),
    );
    let (default, least) = (Duration::from_secs(300), Duration::from_secs(1));
    let heartbeat_interval = section.duration("heartbeat_interval", default, least);
    section.finish();
    Ops { listen, heartbeat_interval }
}

#[cfg(test)]
mod tests;
