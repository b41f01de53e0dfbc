//! The document as a tree in which each value knows where it comes from.

use std::collections::BTreeMap;

use toml::de::{DeTable, DeValue};

use super::reader::{Findings, Origin, Problem};

#[derive(Debug, Clone)]
pub(super) enum Node {
    Table(BTreeMap<String, Entry>),
    Array(Vec<Entry>),
    String(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    Datetime,
}

#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) node: Node,
    pub(super) origin: Origin,
}

impl Node {
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Table(_) => "a table",
            Self::Array(_) => "an array",
            Self::String(_) => "a string",
            Self::Integer(_) => "a whole number",
            Self::Float(_) => "a number",
            Self::Boolean(_) => "a boolean",
            Self::Datetime => "a date",
        }
    }
}

/// Parses the file and lays the overrides over it.
///
/// `overrides` are pairs such as `("HARK__UPLINK__WINDOW", "8")`; others are passed over.
pub(super) fn parse(
    text: &str,
    overrides: impl Iterator<Item = (String, String)>,
    findings: &mut Findings,
) -> BTreeMap<String, Entry> {
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let line = error.span().map_or(1, |span| line_of(text, span.start));
        let problem = Problem {
            origin: Origin::Line(line),
            key: String::new(),
            message: format!("is no TOML: {}", error.message()),
        };
        findings.problems.push(problem);
    }
    let mut root = convert_table(text, table.get_ref());
    for (name, value) in overrides {
        let Some(path) = name.strip_prefix("HARK__") else { continue };
        let path: Vec<String> = path.split("__").map(str::to_lowercase).collect();
        let node = match DeValue::parse(&value) {
            Ok(parsed) => convert(&value, parsed.get_ref()),
            Err(_) => Node::String(value.clone()),
        };
        lay_over(&mut root, &path, Entry { node, origin: Origin::Environment(name.clone()) });
    }
    root
}

fn lay_over(table: &mut BTreeMap<String, Entry>, path: &[String], entry: Entry) {
    let Some((first, rest)) = path.split_first() else { return };
    if rest.is_empty() {
        table.insert(first.clone(), entry);
        return;
    }
    let inner = table.entry(first.clone()).or_insert_with(|| Entry {
        node: Node::Table(BTreeMap::new()),
        origin: entry.origin.clone(),
    });
    if let Node::Table(inner) = &mut inner.node {
        lay_over(inner, rest, entry);
    } else {
        // A scalar stands where a section is asked for: the override wins and is then reported.
        *inner = Entry { node: Node::Table(BTreeMap::new()), origin: entry.origin.clone() };
        if let Node::Table(inner) = &mut inner.node {
            lay_over(inner, rest, entry);
        }
    }
}

fn line_of(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|&b| b == b'\n').count() + 1
}

fn convert_table(text: &str, table: &DeTable<'_>) -> BTreeMap<String, Entry> {
    let entry = |key_start: usize, value: &DeValue<'_>| Entry {
        node: convert(text, value),
        origin: Origin::Line(line_of(text, key_start)),
    };
    table
        .iter()
        .map(|(key, value)| (key.get_ref().to_string(), entry(key.span().start, value.get_ref())))
        .collect()
}

fn convert(text: &str, value: &DeValue<'_>) -> Node {
    match value {
        DeValue::Table(table) => Node::Table(convert_table(text, table)),
        DeValue::Array(items) => Node::Array(
            items
                .iter()
                .map(|item| Entry {
                    node: convert(text, item.get_ref()),
                    origin: Origin::Line(line_of(text, item.span().start)),
                })
                .collect(),
        ),
        DeValue::String(text) => Node::String(text.to_string()),
        DeValue::Boolean(value) => Node::Boolean(*value),
        DeValue::Integer(value) => match i64::from_str_radix(value.as_str(), value.radix()) {
            Ok(number) => Node::Integer(number),
            Err(_) => Node::String(value.as_str().to_owned()),
        },
        DeValue::Float(value) => match value.as_str().parse() {
            Ok(number) => Node::Float(number),
            Err(_) => Node::String(value.as_str().to_owned()),
        },
        DeValue::Datetime(_) => Node::Datetime,
    }
}
