//! `[alarm]`, `[signal]`, `[commands]` and `[[button]]`: from a trigger to help.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::document::Entry;
use super::reader::{self, Findings, Section};
use super::units::format_duration;

/// Contacts at most.
const CONTACTS_MAX: usize = 5;
/// Buttons at most.
const BUTTONS_MAX: usize = 8;

/// `[alarm]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alarm {
    /// A keyphrase makes an alarm.
    pub on_keyphrase: bool,
    /// A press of a button makes an alarm.
    pub on_button: bool,
    /// How long a pending alarm can be called off.
    pub cancel_window: Duration,
    /// How long a raised alarm waits for its acknowledgement.
    pub receipt_timeout: Duration,
    /// How long an alarm that nobody is called for any more takes further triggers in silence.
    pub again_after: Duration,
    /// How often the contacts are walked through.
    pub rounds: u32,
    /// When a test alarm is made.
    pub test_schedule: Option<TestSchedule>,
    /// `[[alarm.contact]]`, in the order of the file.
    pub contacts: Vec<Contact>,
}

/// A day of the week, 0 is Monday, or every day; and minutes since midnight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TestSchedule {
    /// `None`: every day.
    pub weekday: Option<u32>,
    /// By the device's local time.
    pub minute: u32,
}

/// `[[alarm.contact]]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contact {
    /// As it stands in events.
    pub name: String,
    /// How long to wait before the next is called.
    pub timeout: Duration,
    /// Program and arguments.
    pub exec: Vec<String>,
}

/// `[signal]`: how the device speaks to the person beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signal {
    /// A directory of `/sys/class/leds`. `None`: there is no light.
    pub led: Option<PathBuf>,
    /// A cpal output. `None`: there is no tone.
    pub tone: Option<String>,
}

/// `[commands]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commands {
    /// Whether the topic is subscribed to.
    pub enabled: bool,
    /// The sources that are listened to; empty: all whom the broker lets in.
    pub sources: Vec<String>,
}

/// `[[button]]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Button {
    /// As it stands in events.
    pub name: String,
    /// Where its contact is.
    pub contact: ButtonContact,
    /// Held so long it makes a test alarm. `None`: however long it is held, it is an alarm.
    pub test_hold: Option<Duration>,
    /// Held so long it is stuck.
    pub stuck_after: Duration,
}

/// Where the contact of a button is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ButtonContact {
    /// A line of a GPIO chip.
    Gpio {
        /// The character device.
        chip: PathBuf,
        /// The line's offset.
        line: u32,
        /// Pressed is 0.
        active_low: bool,
    },
    /// A key of an input device.
    Evdev {
        /// The character device.
        device: PathBuf,
        /// The key's code.
        key: u16,
    },
}

/// Names of keys that buttons have, from the kernel's input-event-codes.h; others go by number.
const KEYS: [(&str, u16); 12] = [
    ("KEY_ENTER", 28),
    ("KEY_SPACE", 57),
    ("KEY_F1", 59),
    ("KEY_VOLUMEDOWN", 114),
    ("KEY_VOLUMEUP", 115),
    ("KEY_POWER", 116),
    ("KEY_HELP", 138),
    ("KEY_PHONE", 169),
    ("KEY_MICMUTE", 248),
    ("BTN_0", 256),
    ("BTN_1", 257),
    ("BTN_LEFT", 272),
];

pub(super) fn alarm(mut section: Section<'_>) -> Alarm {
    let triggers = section.list(
        "triggers",
        &["keyphrase", "button"],
        "[\"keyphrase\", \"button\"]",
        |text| match text {
            "keyphrase" | "button" => Ok(text.to_owned()),
            other => Err(format!(
                "has `{other}`; keyphrase and button, while routes and sensors say so themselves"
            )),
        },
    );
    let cancel_window = section.duration("cancel_window", Duration::from_secs(10), Duration::ZERO);
    let second = Duration::from_secs(1);
    let receipt_timeout = section.duration("receipt_timeout", Duration::from_secs(60), second);
    let again_after = section.duration("again_after", Duration::from_secs(600), second);
    let rounds = section.integer("rounds", 3, 1..=100);
    let test_schedule = section.checked(
        "test_schedule",
        None,
        |text| if text.is_empty() { Ok(None) } else { test_schedule(text).map(Some) },
        |schedule| reader::quoted(&schedule.map_or(String::new(), |s| s.to_string())),
    );
    let start = section.start();
    let mut contacts = Vec::new();
    section.tables("contact", |table| {
        let name = name(table, "who is called, as events say it");
        let timeout = table.duration("timeout", Duration::from_secs(60), second);
        let exec = table.list("exec", &[], "[\"/usr/bin/dial\", \"+41…\"]", |text| match text {
            text if text.contains('\0') => Err("has a NUL character".to_owned()),
            text => Ok(text.to_owned()),
        });
        if !exec.first().is_some_and(|program| program.starts_with('/')) {
            let message = "must begin with the path of a program, such as [\"/usr/bin/dial\", …]";
            table.problem("exec", table.start(), message);
        }
        contacts.push(Contact { name, timeout, exec });
    });
    if contacts.len() > CONTACTS_MAX {
        let message = format!("stands {} times; at most {CONTACTS_MAX}", contacts.len());
        section.problem("contact", start, message);
    }
    section.finish();
    let on = |name: &str| triggers.iter().any(|trigger| trigger == name);
    Alarm {
        on_keyphrase: on("keyphrase"),
        on_button: on("button"),
        cancel_window,
        receipt_timeout,
        again_after,
        rounds: u32::try_from(rounds).unwrap_or(3),
        test_schedule,
        contacts,
    }
}

fn name(table: &mut Section<'_>, advice: &str) -> String {
    let read = |text: &str| match text.len() {
        1..=64 if !text.chars().any(char::is_control) => Ok(text.to_owned()),
        _ => Err(format!("is `{text}`; 1 to 64 bytes, no control characters")),
    };
    table.required("name", String::new(), advice, read, |name| reader::quoted(name))
}

const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

fn test_schedule(text: &str) -> Result<TestSchedule, String> {
    let read = || {
        let (day, time) = text.split_once(' ')?;
        let (hour, minute) = time.split_once(':')?;
        let number = |digits: &str, most: u32| {
            let number = digits.parse::<u32>().ok().filter(|_| digits.len() == 2)?;
            (number <= most).then_some(number)
        };
        let minute = number(hour, 23)? * 60 + number(minute, 59)?;
        let weekday = DAYS.iter().position(|name| *name == day);
        let weekday = weekday.and_then(|place| u32::try_from(place).ok());
        (weekday.is_some() || day == "daily").then_some(TestSchedule { weekday, minute })
    };
    read().ok_or_else(|| format!("is `{text}`; write \"mon 10:00\" (tue … sun, daily), or \"\""))
}

impl std::fmt::Display for TestSchedule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let day = self.weekday.and_then(|day| DAYS.get(day as usize)).unwrap_or(&"daily");
        write!(f, "{day} {:02}:{:02}", self.minute / 60, self.minute % 60)
    }
}

pub(super) fn signal(mut section: Section<'_>) -> Signal {
    let led = section.checked(
        "led",
        None,
        |text| Ok((!text.is_empty()).then(|| PathBuf::from(text))),
        |path| reader::quoted(&path.as_ref().map_or(String::new(), |p| p.display().to_string())),
    );
    let tone = section.checked(
        "tone",
        Some("default".to_owned()),
        |text| match text {
            "" => Err("is empty; \"default\", a device name or \"none\"".to_owned()),
            "none" => Ok(None),
            name => Ok(Some(name.to_owned())),
        },
        |name| reader::quoted(name.as_deref().unwrap_or("none")),
    );
    section.finish();
    Signal { led, tone }
}

pub(super) fn commands(mut section: Section<'_>) -> Commands {
    let enabled = section.choice("channel", true, &[("on", true), ("off", false)]);
    let sources = section.list("sources", &[], "[\"urn:example:care\"]", |text| {
        if text.is_empty() { Err("has an empty source".to_owned()) } else { Ok(text.to_owned()) }
    });
    section.finish();
    Commands { enabled, sources }
}

pub(super) fn buttons(root: &mut BTreeMap<String, Entry>, findings: &mut Findings) -> Vec<Button> {
    let mut buttons: Vec<Button> = Vec::new();
    reader::tables(root, "button", findings, |mut table| {
        let start = table.start();
        let name = name(&mut table, "what events call it");
        if buttons.iter().any(|other| other.name == name) {
            table.problem("name", start.clone(), format!("is `{name}` a second time"));
        }
        if buttons.len() == BUTTONS_MAX {
            table.problem("", start, format!("there are more than {BUTTONS_MAX} buttons"));
        }
        let contact = button_contact(&mut table);
        let (off, least) = (Duration::ZERO, Duration::from_secs(5));
        let test_hold = table.duration("test_hold", off, off);
        if test_hold > off && test_hold < least {
            let message = format!("is under {}; a long press has 3 s", format_duration(least));
            table.problem("test_hold", table.origin("test_hold"), message);
        }
        let stuck_after = table.duration("stuck_after", Duration::from_secs(60), least);
        if test_hold >= stuck_after {
            let message = "is not shorter than stuck_after: the test would never begin";
            table.problem("test_hold", table.origin("test_hold"), message);
        }
        table.finish();
        let test_hold = (test_hold > off).then_some(test_hold);
        buttons.push(Button { name, contact, test_hold, stuck_after });
    });
    buttons
}

fn button_contact(table: &mut Section<'_>) -> ButtonContact {
    let mut found = ButtonContact::Evdev { device: PathBuf::new(), key: 0 };
    let (gpio, evdev) = (table.take("gpio"), table.take("evdev"));
    if gpio.is_some() == evdev.is_some() {
        let message = "has one of gpio = { chip = \"/dev/gpiochip0\", line = 17, active = \"low\" } \
                       and evdev = { device = \"/dev/input/event0\", key = \"KEY_PHONE\" }";
        table.problem("", table.start(), message);
    }
    let device = |text: &str| {
        if text.starts_with('/') {
            Ok(PathBuf::from(text))
        } else {
            Err(format!("is `{text}`; write the path of a device"))
        }
    };
    let show = |path: &PathBuf| reader::quoted(&path.display().to_string());
    if gpio.is_some() {
        table.nested("gpio", gpio, |inner| {
            let chip = inner.required("chip", PathBuf::new(), "\"/dev/gpiochip0\"", device, show);
            let line = inner.integer("line", 0, 0..=65_535);
            let active_low = inner.choice("active", true, &[("low", true), ("high", false)]);
            let line = u32::try_from(line).unwrap_or(0);
            found = ButtonContact::Gpio { chip, line, active_low };
        });
    } else if evdev.is_some() {
        table.nested("evdev", evdev, |inner| {
            let path = "\"/dev/input/event0\"";
            let device = inner.required("device", PathBuf::new(), path, device, show);
            let key = inner
                .required("key", 0, "\"KEY_PHONE\"", key, |key| reader::quoted(&key.to_string()));
            found = ButtonContact::Evdev { device, key };
        });
    }
    found
}

fn key(text: &str) -> Result<u16, String> {
    let named = KEYS.iter().find(|(name, _)| *name == text).map(|(_, code)| *code);
    named.or_else(|| text.parse().ok().filter(|code| *code < 0x300)).ok_or_else(|| {
        let names: Vec<_> = KEYS.iter().map(|(name, _)| *name).collect();
        format!(
            "is `{text}`; a number of the kernel's input-event-codes.h, or {}",
            names.join(", ")
        )
    })
}

/// `[[ingest.route]]`: what becomes of events of a type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// A type, or the beginning of one where it ended in `*`.
    pub pattern: String,
    /// It ended in `*`.
    pub is_prefix: bool,
    /// The lane; `None`: the one that the event asks for.
    pub lane: Option<String>,
    /// Such an event makes an alarm.
    pub alarm: bool,
}

/// Routes at most.
const ROUTES_MAX: usize = 64;

pub(super) fn routes(section: &mut Section<'_>) -> Vec<Route> {
    let mut routes = Vec::new();
    section.tables("route", |table| {
        let read = |text: &str| match text.split_once('*') {
            _ if text.is_empty() => Err("is empty; write a type, or \"com.example.*\"".to_owned()),
            None => Ok((text.to_owned(), false)),
            Some((begin, "")) => Ok((begin.to_owned(), true)),
            Some(_) => Err(format!("is `{text}`; a * stands at the end only")),
        };
        let show = |(text, prefix): &(String, bool)| {
            reader::quoted(&format!("{text}{}", if *prefix { "*" } else { "" }))
        };
        let none = (String::new(), false);
        let (pattern, is_prefix) =
            table.required("type", none, "which events, such as \"com.example.*\"", read, show);
        let lanes =
            [("", ""), ("alert", "alert"), ("status", "status"), ("telemetry", "telemetry")];
        let lane = table.choice("lane", "", &lanes);
        let alarm = table.flag("alarm", false);
        let lane = (!lane.is_empty()).then(|| lane.to_owned());
        routes.push(Route { pattern, is_prefix, lane, alarm });
    });
    if routes.len() > ROUTES_MAX {
        let message = format!("stands {} times; at most {ROUTES_MAX}", routes.len());
        section.problem("route", section.start(), message);
    }
    routes
}
