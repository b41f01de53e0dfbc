//! Reads a TOML document into typed values and collects every problem on the way.
//!
//! serde stops at the first error; an installer wants them all, each with its line and key. So the
//! document becomes a tree in which each value knows its [`Origin`], and a [`Section`] hands its
//! values out by type. What nobody asked for is an unknown key. Each value handed out is noted with
//! its origin: that list is `hark config show`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use serde_json::json;

use super::document::{Entry, Node};
use super::schema::{EACH, Shapes};
use super::units;

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// A line of the file, from 1.
    Line(usize),
    /// An environment variable.
    Environment(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Line(line) => write!(f, "line {line}"),
            Self::Environment(name) => f.write_str(name),
        }
    }
}

/// One thing that is wrong with the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where it stands.
    pub origin: Origin,
    /// The key, with its sections: `uplink.window`. Empty where the file as a whole is at fault.
    pub key: String,
    /// What is wrong and what would be right.
    pub message: String,
}

/// A setting in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The key, with its sections.
    pub key: String,
    /// The value as TOML.
    pub value: String,
    /// Where it comes from.
    pub origin: Origin,
}

/// What reading has found so far: problems and settings, in the order of the sections.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) problems: Vec<Problem>,
    pub(super) settings: Vec<Setting>,
    /// What was asked for, whether it was there or not.
    pub(super) shapes: Shapes,
}

/// Reads every table of `[[name]]` to its end. In messages a table goes by its `name`, or by its
/// place where it has none.
pub(super) fn tables(
    root: &mut BTreeMap<String, Entry>,
    name: &str,
    findings: &mut Findings,
    mut read: impl FnMut(Section<'_>),
) {
    for (path, entry) in array_of_tables(root.remove(name), name, findings) {
        read(Section::open(&path, vec![name.to_owned(), EACH.to_owned()], Some(entry), findings));
    }
}

fn array_of_tables(
    entry: Option<Entry>,
    path: &str,
    findings: &mut Findings,
) -> Vec<(String, Entry)> {
    let items = match entry {
        None => return Vec::new(),
        Some(Entry { node: Node::Array(items), .. }) => items,
        Some(Entry { node, origin }) => {
            let message = format!("is {}; write [[{path}]]", node.kind());
            findings.problems.push(Problem { origin, key: path.to_owned(), message });
            return Vec::new();
        }
    };
    let label = |(place, item): (usize, Entry)| {
        let name = match &item.node {
            Node::Table(table) => table.get("name"),
            _ => None,
        };
        let path = match name {
            Some(Entry { node: Node::String(name), .. }) => format!("{path}.{name}"),
            _ => format!("{path}[{place}]"),
        };
        (path, item)
    };
    items.into_iter().enumerate().map(label).collect()
}

/// One table of the document, read key by key.
pub(super) struct Section<'a> {
    path: String,
    /// The same for every table of an array.
    place: Vec<String>,
    start: Origin,
    table: BTreeMap<String, Entry>,
    asked: Vec<&'static str>,
    shaped: BTreeSet<&'static str>,
    findings: &'a mut Findings,
}

impl<'a> Section<'a> {
    /// The section `name` of the document.
    pub(super) fn take_from(
        root: &mut BTreeMap<String, Entry>,
        name: &str,
        findings: &'a mut Findings,
    ) -> Self {
        let entry = root.remove(name);
        Self::open(name, vec![name.to_owned()], entry, findings)
    }

    /// The table `path`, which may be missing or, if it is no table, a problem.
    fn open(
        path: &str,
        place: Vec<String>,
        entry: Option<Entry>,
        findings: &'a mut Findings,
    ) -> Self {
        findings.shapes.open(&place);
        let start = entry.as_ref().map_or(Origin::Default, |entry| entry.origin.clone());
        let table = match entry {
            None => BTreeMap::new(),
            Some(Entry { node: Node::Table(table), .. }) => table,
            Some(Entry { node, origin }) => {
                let message = format!("is {}; write a section [{path}]", node.kind());
                findings.problems.push(Problem { origin, key: path.to_owned(), message });
                BTreeMap::new()
            }
        };
        let (path, asked, shaped) = (path.to_owned(), Vec::new(), BTreeSet::new());
        Self { path, place, start, table, asked, shaped, findings }
    }

    /// Notes what a key may hold, as JSON Schema. The first note of a table counts.
    pub(super) fn shape(&mut self, key: &'static str, schema: serde_json::Value) {
        self.shape_of(key, schema, false);
    }

    fn shape_of(&mut self, key: &'static str, schema: serde_json::Value, required: bool) {
        if self.shaped.insert(key) {
            self.findings.shapes.note(&self.place, key, schema, required);
        }
    }

    fn inner_place(&self, steps: &[&str]) -> Vec<String> {
        self.place
            .iter()
            .map(String::as_str)
            .chain(steps.iter().copied())
            .map(str::to_owned)
            .collect()
    }

    /// Takes a value out without reading it.
    pub(super) fn take(&mut self, key: &'static str) -> Option<Entry> {
        self.asked.push(key);
        self.table.remove(key)
    }

    /// Whether a key that was not taken yet is set.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Where the table begins.
    pub(super) fn start(&self) -> Origin {
        self.start.clone()
    }

    /// Reads every table of an array within this one, to its end.
    pub(super) fn tables(&mut self, key: &'static str, mut read: impl FnMut(&mut Section<'_>)) {
        let entry = self.take(key);
        let place = self.inner_place(&[key, EACH]);
        for (path, entry) in array_of_tables(entry, &join(&self.path, key), self.findings) {
            let mut inner = Section::open(&path, place.clone(), Some(entry), self.findings);
            read(&mut inner);
            inner.finish();
        }
    }

    /// A text that must be there: `advice` says what to write. `stand_in` is used where it is
    /// missing or wrong, so that the rest can still be read.
    pub(super) fn required<T>(
        &mut self,
        key: &'static str,
        stand_in: T,
        advice: &str,
        read: impl Fn(&str) -> Result<T, String>,
        show: impl Fn(&T) -> String,
    ) -> T {
        self.shape_of(key, json!({ "type": "string" }), true);
        if !self.has(key) {
            self.asked.push(key);
            let origin = self.start();
            self.problem(key, origin, format!("is missing: {advice}"));
            return stand_in;
        }
        self.checked(key, stand_in, read, show)
    }

    /// A text.
    pub(super) fn text(&mut self, key: &'static str, default: &str) -> String {
        self.checked(key, default.to_owned(), |text| Ok(text.to_owned()), |text| quoted(text))
    }

    /// A duration of at least `least`.
    pub(super) fn duration(
        &mut self,
        key: &'static str,
        default: Duration,
        least: Duration,
    ) -> Duration {
        let read = |text: &str| match units::parse_duration(text)? {
            short if short < least => {
                Err(format!("is `{text}`; at least {}", quoted(&units::format_duration(least))))
            }
            duration => Ok(duration),
        };
        let least = units::format_duration(least);
        self.shape(
            key,
            json!({
                "type": "string",
                "pattern": units::DURATION_PATTERN,
                "description": format!("a duration of at least {least}"),
            }),
        );
        self.checked(key, default, read, |value| quoted(&units::format_duration(*value)))
    }

    /// A size in bytes of at least `least`.
    pub(super) fn size(&mut self, key: &'static str, default: u64, least: u64) -> u64 {
        let read = |text: &str| match units::parse_size(text)? {
            small if small < least => {
                Err(format!("is `{text}`; at least {}", quoted(&units::format_size(least))))
            }
            size => Ok(size),
        };
        let least = units::format_size(least);
        self.shape(
            key,
            json!({
                "type": "string",
                "pattern": units::SIZE_PATTERN,
                "description": format!("a size of at least {least}"),
            }),
        );
        self.checked(key, default, read, |value| quoted(&units::format_size(*value)))
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy + PartialEq>(
        &mut self,
        key: &'static str,
        default: T,
        choices: &[(&'static str, T)],
    ) -> T {
        let read = |text: &str| {
            let found = choices.iter().find(|(word, _)| *word == text);
            found.map(|(_, value)| *value).ok_or_else(|| {
                let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
                format!("is `{text}`; one of: {}", words.join(", "))
            })
        };
        let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
        self.shape(key, json!({ "enum": words }));
        let show = |value: &T| {
            quoted(choices.iter().find(|(_, v)| v == value).map_or("", |(word, _)| word))
        };
        self.checked(key, default, read, show)
    }

    /// A whole number within bounds.
    pub(super) fn integer(
        &mut self,
        key: &'static str,
        default: i64,
        bounds: std::ops::RangeInclusive<i64>,
    ) -> i64 {
        let (least, most) = (bounds.start(), bounds.end());
        self.shape(key, json!({ "type": "integer", "minimum": least, "maximum": most }));
        let entry = self.take(key);
        let (value, origin) = match entry {
            None => (default, Origin::Default),
            Some(Entry { node: Node::Integer(value), origin }) if bounds.contains(&value) => {
                (value, origin)
            }
            Some(Entry { node, origin }) => {
                let is = match node {
                    Node::Integer(value) => value.to_string(),
                    other => other.kind().to_owned(),
                };
                let (low, high) = (bounds.start(), bounds.end());
                self.problem(key, origin, format!("is {is}; a whole number from {low} to {high}"));
                return default;
            }
        };
        self.note(key, value.to_string(), origin);
        value
    }

    /// A number within bounds.
    pub(super) fn number(
        &mut self,
        key: &'static str,
        default: f64,
        bounds: std::ops::RangeInclusive<f64>,
    ) -> f64 {
        self.shape(key, number(&bounds));
        if self.has(key) {
            return self.optional_number(key, bounds).unwrap_or(default);
        }
        self.asked.push(key);
        self.note(key, default.to_string(), Origin::Default);
        default
    }

    /// A number within bounds, if it is set.
    pub(super) fn optional_number(
        &mut self,
        key: &'static str,
        bounds: std::ops::RangeInclusive<f64>,
    ) -> Option<f64> {
        self.shape(key, number(&bounds));
        let Entry { node, origin } = self.take(key)?;
        let value = match node {
            Node::Float(value) => Some(value),
            #[allow(clippy::cast_precision_loss, reason = "settings are small numbers")]
            Node::Integer(value) => Some(value as f64),
            _ => None,
        };
        match value.filter(|value| bounds.contains(value)) {
            Some(value) => {
                self.note(key, value.to_string(), origin);
                Some(value)
            }
            None => {
                let (low, high) = (bounds.start(), bounds.end());
                self.problem(key, origin, format!("must be a number from {low} to {high}"));
                None
            }
        }
    }

    /// A text that `read` understands. Where it does not, the problem is noted and the default
    /// stands in, so that the rest can still be read.
    pub(super) fn checked<T>(
        &mut self,
        key: &'static str,
        default: T,
        read: impl Fn(&str) -> Result<T, String>,
        show: impl Fn(&T) -> String,
    ) -> T {
        self.shape(key, json!({ "type": "string" }));
        let (value, origin) = match self.take(key) {
            None => (default, Origin::Default),
            Some(Entry { node: Node::String(text), origin }) => match read(&text) {
                Ok(value) => (value, origin),
                Err(message) => {
                    self.problem(key, origin, message);
                    return default;
                }
            },
            Some(Entry { node, origin }) => {
                self.problem(key, origin, format!("is {}; write a string", node.kind()));
                return default;
            }
        };
        self.note(key, show(&value), origin);
        value
    }

    /// Yes or no.
    pub(super) fn flag(&mut self, key: &'static str, default: bool) -> bool {
        self.shape(key, json!({ "type": "boolean" }));
        let (value, origin) = match self.take(key) {
            None => (default, Origin::Default),
            Some(Entry { node: Node::Boolean(value), origin }) => (value, origin),
            Some(Entry { node, origin }) => {
                self.problem(key, origin, format!("is {}; write true or false", node.kind()));
                return default;
            }
        };
        self.note(key, value.to_string(), origin);
        value
    }

    /// Texts that `read` understands; `example` shows how they are written.
    pub(super) fn list(
        &mut self,
        key: &'static str,
        default: &[&str],
        example: &str,
        read: impl Fn(&str) -> Result<String, String>,
    ) -> Vec<String> {
        self.shape(key, json!({ "type": "array", "items": { "type": "string" } }));
        let mut texts: Vec<String> = Vec::new();
        let origin = match self.take(key) {
            None => {
                texts.extend(default.iter().map(|text| (*text).to_owned()));
                Origin::Default
            }
            Some(Entry { node: Node::Array(items), origin }) => {
                for item in items {
                    let read = match item.node {
                        Node::String(text) => read(&text),
                        _ => Err("holds something that is not a string".to_owned()),
                    };
                    match read {
                        Ok(text) => texts.push(text),
                        Err(message) => self.problem(key, item.origin, message),
                    }
                }
                origin
            }
            Some(Entry { origin, .. }) => {
                self.problem(key, origin, format!("must be an array, such as {example}"));
                return texts;
            }
        };
        let shown: Vec<_> = texts.iter().map(|text| quoted(text)).collect();
        self.note(key, format!("[{}]", shown.join(", ")), origin);
        texts
    }

    /// Reads a table within this one, to its end.
    pub(super) fn nested(
        &mut self,
        key: &str,
        entry: Option<Entry>,
        read: impl FnOnce(&mut Section<'_>),
    ) {
        let place = self.inner_place(&[key]);
        let mut inner = Section::open(&join(&self.path, key), place, entry, self.findings);
        read(&mut inner);
        inner.finish();
    }

    /// Reports a problem with a key of this section.
    pub(super) fn problem(&mut self, key: &str, origin: Origin, message: impl Into<String>) {
        let key = join(&self.path, key);
        self.findings.problems.push(Problem { origin, key, message: message.into() });
    }

    /// Where a setting of this section comes from that was noted before.
    pub(super) fn origin(&self, key: &str) -> Origin {
        let key = join(&self.path, key);
        let noted = self.findings.settings.iter().rfind(|setting| setting.key == key);
        noted.map_or(Origin::Default, |setting| setting.origin.clone())
    }

    /// Records a setting in force.
    pub(super) fn note(&mut self, key: &str, value: String, origin: Origin) {
        let key = join(&self.path, key);
        self.findings.settings.push(Setting { key, value, origin });
    }

    /// Reports every key that nobody asked for.
    pub(super) fn finish(self) {
        for (key, entry) in self.table {
            let message = format!("is unknown; [{}] has: {}", self.path, self.asked.join(", "));
            let key = join(&self.path, &key);
            self.findings.problems.push(Problem { origin: entry.origin, key, message });
        }
    }
}

/// Bounds that no setting has in mind are left out.
fn number(bounds: &std::ops::RangeInclusive<f64>) -> serde_json::Value {
    let mut schema = json!({ "type": "number" });
    if *bounds.start() > f64::MIN {
        schema["minimum"] = json!(bounds.start());
    }
    if *bounds.end() < f64::MAX {
        schema["maximum"] = json!(bounds.end());
    }
    schema
}

fn join(path: &str, key: &str) -> String {
    match (path, key) {
        ("", key) => key.to_owned(),
        (path, "") => path.to_owned(),
        (path, key) => format!("{path}.{key}"),
    }
}

pub(super) fn quoted(text: &str) -> String {
    // TOML basic strings take the escapes that Rust's debug form writes for ordinary text.
    format!("{text:?}")
}
