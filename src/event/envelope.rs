//! The event as it is held in memory and in the outbox.

use std::borrow::{Borrow, Cow};
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, Visitor};

use super::moment::Noted;
use super::rules::{self, EventError};

/// A name that nearly every event has, or that hark itself gives.
fn known(text: &str) -> Option<&'static str> {
    Some(match text {
        "id" => "id",
        "lane" => "lane",
        "time" => "time",
        "type" => "type",
        "clock" => "clock",
        "source" => "source",
        "subject" => "subject",
        "sequence" => "sequence",
        "dataschema" => "dataschema",
        "expirytime" => "expirytime",
        "specversion" => "specversion",
        "recordedtime" => "recordedtime",
        "datacontenttype" => "datacontenttype",
        _ => return None,
    })
}

/// An attribute's name; not yet one that the specification allows. One that is known takes no memory of its own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Cow<'static, str>);

impl Name {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is one of the names that keep every rule.
    pub(super) fn is_known(&self) -> bool {
        matches!(self.0, Cow::Borrowed(_))
    }
}

impl From<&str> for Name {
    fn from(text: &str) -> Self {
        Self(known(text).map_or_else(|| Cow::Owned(text.to_owned()), Cow::Borrowed))
    }
}

/// So that a name is found by its text; both have the same order.
impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A context attribute's value: the CloudEvents types that JSON can carry as themselves.
///
/// Timestamps, URIs and binary values are strings in the JSON format and stay as they came.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
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

/// A [`Value`] where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueRef<'a> {
    /// Boolean.
    Boolean(bool),
    /// Integer: 32 bits, signed.
    Integer(i32),
    /// String, and every type that is written as one.
    String(&'a str),
}

impl<'a> From<&'a Value> for ValueRef<'a> {
    fn from(value: &'a Value) -> Self {
        match value {
            Value::Boolean(value) => Self::Boolean(*value),
            Value::Integer(value) => Self::Integer(*value),
            Value::String(text) => Self::String(text),
        }
    }
}

impl From<ValueRef<'_>> for Value {
    fn from(value: ValueRef<'_>) -> Self {
        match value {
            ValueRef::Boolean(value) => Self::Boolean(value),
            ValueRef::Integer(value) => Self::Integer(value),
            ValueRef::String(text) => Self::String(text.to_owned()),
        }
    }
}

/// By hand: what serde derives for an untagged enum writes two error messages for each string before it
/// arrives there.
impl<'de: 'a, 'a> Deserialize<'de> for ValueRef<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOf;
        impl<'de> Visitor<'de> for OneOf {
            type Value = ValueRef<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a boolean, an integer of 32 bits or a string")
            }

            fn visit_bool<E: de::Error>(self, value: bool) -> Result<ValueRef<'de>, E> {
                Ok(ValueRef::Boolean(value))
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<ValueRef<'de>, E> {
                let number = i32::try_from(value);
                number
                    .map(ValueRef::Integer)
                    .map_err(|_| E::invalid_value(de::Unexpected::Signed(value), &self))
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<ValueRef<'de>, E> {
                let number = i32::try_from(value);
                number
                    .map(ValueRef::Integer)
                    .map_err(|_| E::invalid_value(de::Unexpected::Unsigned(value), &self))
            }

            fn visit_borrowed_str<E: de::Error>(self, value: &'de str) -> Result<ValueRef<'de>, E> {
                Ok(ValueRef::String(value))
            }
        }
        deserializer.deserialize_any(OneOf)
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

/// A [`Data`] where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataRef<'a> {
    /// There is none.
    Absent,
    /// JSON text.
    Json(&'a [u8]),
    /// Base64 text.
    Base64(&'a str),
}

impl<'a> From<&'a Data> for DataRef<'a> {
    fn from(data: &'a Data) -> Self {
        match data {
            Data::Absent => Self::Absent,
            Data::Json(raw) => Self::Json(raw),
            Data::Base64(text) => Self::Base64(text),
        }
    }
}

/// A valid CloudEvent. It cannot be made otherwise: see [`Event::new`] and [`super::json::parse`].
#[derive(Debug, Clone)]
pub struct Event {
    pub(super) attributes: BTreeMap<Name, Value>,
    data: Data,
    /// `time` was taken by us from a clock that cannot be believed.
    pub(super) doubtful: bool,
    pub(super) noted: Option<Box<Noted>>,
}

/// Attributes and data are what an event is.
impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.attributes == other.attributes && self.data == other.data
    }
}

impl Eq for Event {}

impl Event {
    /// Checks all attributes against the specification.
    ///
    /// # Errors
    /// The first attribute at fault, in alphabetical order; a required one that is missing first.
    ///
    /// Source: CloudEvents 1.0.2 § Context Attributes.
    pub fn new(attributes: BTreeMap<Name, Value>, data: Data) -> Result<Self, EventError> {
        rules::check(&attributes, &data)?;
        Ok(Self { attributes, data, doubtful: false, noted: None })
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
    pub fn attributes(&self) -> &BTreeMap<Name, Value> {
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
        self.attributes.insert(Name::from(name), value);
        Ok(())
    }

    /// The same event with its data in another form.
    pub(super) fn with_data(&self, data: Data) -> Self {
        Self { attributes: self.attributes.clone(), data, doubtful: false, noted: None }
    }

    fn text(&self, name: &str) -> &str {
        self.attributes.get(name).and_then(Value::as_str).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_its_text_known_or_not() {
        let texts = ["zone", "id", "lane", "comexample", "source", "a"];
        let names: BTreeMap<Name, usize> = texts.into_iter().map(Name::from).zip(0..).collect();
        let mut sorted = texts;
        sorted.sort_unstable();
        assert!(names.keys().map(Name::as_str).eq(sorted));
        for (at, text) in texts.into_iter().enumerate() {
            assert_eq!(names.get(text), Some(&at));
        }
        assert!(Name::from("id").is_known() && !Name::from("zone").is_known());
    }

    #[test]
    fn a_value_is_read_as_the_type_that_it_has() {
        fn read(text: &str) -> Result<Value, String> {
            let value = serde_json::from_str::<ValueRef<'_>>(text);
            value.map(Value::from).map_err(|e| e.to_string())
        }
        for value in [
            Value::from(true),
            Value::Integer(i32::MIN),
            Value::Integer(i32::MAX),
            Value::from("7"),
        ] {
            let text = serde_json::to_string(&value).unwrap();
            assert_eq!(read(&text), Ok(value), "{text}");
        }
        for text in ["2147483648", "-2147483649", "1.5", "null", "[]", "{}"] {
            let problem = read(text).unwrap_err();
            assert!(problem.contains("a boolean, an integer of 32 bits or a string"), "{problem}");
        }
    }
}
