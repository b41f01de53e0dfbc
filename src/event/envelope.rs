//! The event as it is held in memory and in the outbox.

use std::collections::BTreeMap;
use std::fmt;

use super::rules::{self, EventError};

/// A context attribute's value: the CloudEvents types that JSON can carry as themselves.
///
/// Timestamps, URIs and binary values are strings in the JSON format and stay as they came.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(untagged)]
pub enum Value {
    /// Boolean.
    Boolean(bool),
    /// Integer: 32 bits, signed.
    Integer(i32),
    /// String, and every type that is written as one.
    String(String),
}

impl Value {
    /// The text, if it is a string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::String(text)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Boolean(value)
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Boolean(value) => value.fmt(f),
            Self::Integer(value) => value.fmt(f),
            Self::String(value) => value.fmt(f),
        }
    }
}

/// The payload, in the bytes in which it came.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Data {
    /// There is none. (`"data": null` is [`Data::Json`] of `null`.)
    #[default]
    Absent,
    /// The member `data`: the JSON text, not reformatted.
    Json(Vec<u8>),
    /// The member `data_base64`: the base64 text (RFC 4648 §4), not decoded.
    Base64(String),
}

/// A valid CloudEvent. It cannot be made otherwise: see [`Event::new`] and [`super::json::parse`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    attributes: BTreeMap<String, Value>,
    data: Data,
}

impl Event {
    /// Checks all attributes against the specification.
    ///
    /// # Errors
    /// The first attribute at fault, in alphabetical order; a required one that is missing first.
    ///
    /// Source: CloudEvents 1.0.2 § Context Attributes.
    pub fn new(attributes: BTreeMap<String, Value>, data: Data) -> Result<Self, EventError> {
        rules::check(&attributes, &data)?;
        Ok(Self { attributes, data })
    }

    /// Attribute `id`: unique within its source.
    pub fn id(&self) -> &str {
        self.text("id")
    }

    /// Attribute `source`: who says so.
    pub fn source(&self) -> &str {
        self.text("source")
    }

    /// Attribute `type`.
    pub fn event_type(&self) -> &str {
        self.text("type")
    }

    /// Any attribute by name.
    pub fn attribute(&self, name: &str) -> Option<&Value> {
        self.attributes.get(name)
    }

    /// All attributes, sorted by name.
    pub fn attributes(&self) -> &BTreeMap<String, Value> {
        &self.attributes
    }

    /// The payload.
    pub fn data(&self) -> &Data {
        &self.data
    }

    /// Adds or replaces an extension attribute.
    ///
    /// # Errors
    /// The name or value breaks the rules, or the name is one of the specification's own.
    pub fn set_extension(&mut self, name: &str, value: Value) -> Result<(), EventError> {
        rules::check_extension(name, &value)?;
        self.attributes.insert(name.to_owned(), value);
        Ok(())
    }

    /// The same event with its data in another form.
    pub(super) fn with_data(&self, data: Data) -> Self {
        Self { attributes: self.attributes.clone(), data }
    }

    fn text(&self, name: &str) -> &str {
        self.attributes.get(name).and_then(Value::as_str).unwrap_or_default()
    }
}
