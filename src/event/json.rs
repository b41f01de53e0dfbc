//! The JSON event format, structured mode: reading and writing without touching the data.
//!
//! Reading keeps the bytes of `data` as they stand between their braces, and refuses what JSON
//! parsers silently mend: a member named twice, `data` beside `data_base64`, text after the event.
//! Writing is deterministic: `specversion`, `id`, `source` and `type` first, the other attributes by
//! name, the data last. The same event therefore always gives the same bytes, before and after a
//! crash.
//!
//! Source: CloudEvents JSON Event Format 1.0.2 §2, §3, §4.

use std::collections::BTreeMap;
use std::fmt;

use bytes::{BufMut, BytesMut};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::MAX_EVENT_BYTES;
use super::envelope::{Data, DataRef, Event, Name, Value, ValueRef};
use super::rules::EventError;

/// Media type of one event (RFC 6838 suffix `+json`).
pub const MEDIA_TYPE: &str = "application/cloudevents+json";
/// Media type of a batch: a JSON array of events.
pub const BATCH_MEDIA_TYPE: &str = "application/cloudevents-batch+json";

const LEADING: [&str; 4] = ["specversion", "id", "source", "type"];

/// Reads one event.
///
/// # Errors
/// Not JSON, not an object, or an attribute that breaks a rule, which the error names.
pub fn parse(text: &[u8]) -> Result<Event, EventError> {
    let members: Members = serde_json::from_slice(text).map_err(not_json)?;
    from_members(members)
}

/// Reads a batch: a JSON array of events, possibly empty.
///
/// # Errors
/// As [`parse`], with the place of the event in the batch, from 0.
pub fn parse_batch(text: &[u8]) -> Result<Vec<Event>, EventError> {
    let items: Vec<&RawValue> = serde_json::from_slice(text).map_err(not_json)?;
    items
        .iter()
        .enumerate()
        .map(|(place, item)| {
            parse(item.get().as_bytes()).map_err(|e| {
                EventError::new(e.attribute, format!("{} (event {place} of the batch)", e.problem))
            })
        })
        .collect()
}

/// Writes the event; the inverse of [`parse`].
pub fn to_vec(event: &Event) -> Vec<u8> {
    let attributes = event.attributes().iter();
    let attributes: Vec<_> =
        attributes.map(|(name, value)| (name.as_str(), value.into())).collect();
    let mut out = BytesMut::new();
    write(&mut out, &attributes, event.data().into());
    out.into()
}

/// Writes an event of which all parts lie somewhere, attributes sorted by name, and data, behind what `out` holds.
pub fn write(out: &mut BytesMut, attributes: &[(&str, ValueRef<'_>)], data: DataRef<'_>) {
    out.reserve(size_hint(attributes, data));
    let begin = out.len();
    let leading = LEADING.map(|leading| attributes.iter().position(|(name, _)| *name == leading));
    let others = (0..attributes.len()).filter(|at| !leading.contains(&Some(*at)));
    for at in leading.into_iter().flatten().chain(others) {
        let (name, value) = &attributes[at];
        out.put_u8(if out.len() == begin { b'{' } else { b',' });
        // A name has only letters and digits: nothing to escape.
        out.put_u8(b'"');
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b"\":");
        match value {
            ValueRef::String(text) => write_json(out, text),
            ValueRef::Integer(number) => out.extend_from_slice(number.to_string().as_bytes()),
            ValueRef::Boolean(true) => out.extend_from_slice(b"true"),
            ValueRef::Boolean(false) => out.extend_from_slice(b"false"),
        }
    }
    match data {
        DataRef::Absent => {}
        DataRef::Json(raw) => {
            out.extend_from_slice(b",\"data\":");
            out.extend_from_slice(raw);
        }
        DataRef::Base64(text) => {
            out.extend_from_slice(b",\"data_base64\":");
            write_json(out, text);
        }
    }
    out.put_u8(b'}');
}

/// Bytes that [`write`] needs where nothing is to be escaped.
fn size_hint(attributes: &[(&str, ValueRef<'_>)], data: DataRef<'_>) -> usize {
    let value = |value: &ValueRef<'_>| match value {
        ValueRef::String(text) => text.len() + 2,
        ValueRef::Integer(_) | ValueRef::Boolean(_) => "-2147483648".len(),
    };
    let attributes = attributes.iter().map(|(name, v)| name.len() + "\"\":,".len() + value(v));
    let data = match data {
        DataRef::Absent => 0,
        DataRef::Json(raw) => raw.len() + "\"data\":,".len(),
        DataRef::Base64(text) => text.len() + "\"data_base64\":\"\",".len(),
    };
    attributes.sum::<usize>() + data + "}".len()
}

/// Writes the event in one line, for JSON Lines; the inverse of [`parse`] in the bytes of the data.
///
/// JSON data with line breaks between its members goes as `data_base64`: the breaks are part of bytes
/// that are not ours to change. Where that makes the event too large to be taken again it keeps them.
pub fn to_line(event: &Event) -> Vec<u8> {
    match event.data() {
        Data::Json(raw) if raw.iter().any(|byte| matches!(byte, b'\n' | b'\r')) => {
            let coded = event.with_data(Data::Base64(super::mqtt::encode_base64(raw)));
            let line = to_vec(&coded);
            if line.len() <= MAX_EVENT_BYTES { line } else { to_vec(event) }
        }
        _ => to_vec(event),
    }
}

fn write_json(out: &mut BytesMut, text: &str) {
    // A string into memory cannot fail; were it to, an empty string stands in its place.
    let before = out.len();
    if serde_json::to_writer((&mut *out).writer(), text).is_err() {
        out.truncate(before);
        out.extend_from_slice(b"\"\"");
    }
}

fn not_json(error: serde_json::Error) -> EventError {
    // A duplicate member is reported through serde as a custom message that names it.
    let text = error.to_string();
    match text.strip_prefix("duplicate member `").and_then(|rest| rest.split_once('`')) {
        Some((name, _)) => EventError::new(name, "is given twice"),
        None => EventError::new(
            "",
            format!("cannot be read: the body is not the JSON expected: {text}"),
        ),
    }
}

fn from_members(members: Members) -> Result<Event, EventError> {
    let mut attributes = BTreeMap::new();
    let (mut json, mut base64) = (None, None);
    for (name, raw) in members.0 {
        match name.as_str() {
            "data" => json = Some(raw.get().as_bytes().to_vec()),
            "data_base64" if raw.get() == "null" => {}
            "data_base64" => {
                let text = serde_json::from_str::<String>(raw.get())
                    .map_err(|_| EventError::new("data_base64", "must be a string"))?;
                base64 = Some(text);
            }
            _ => {
                if let Some(value) = value(&name, &raw)? {
                    attributes.insert(Name::from(name.as_str()), value);
                }
            }
        }
    }
    let data = match (json, base64) {
        (Some(_), Some(_)) => {
            return Err(EventError::new("data_base64", "excludes `data`; send one of them"));
        }
        (Some(raw), None) => Data::Json(raw),
        (None, Some(text)) => Data::Base64(text),
        (None, None) => Data::Absent,
    };
    Event::new(attributes, data)
}

/// `null` means that the attribute is not set.
fn value(name: &str, raw: &RawValue) -> Result<Option<Value>, EventError> {
    match raw.get().as_bytes().first() {
        Some(b'n') => Ok(None),
        Some(b't') => Ok(Some(Value::Boolean(true))),
        Some(b'f') => Ok(Some(Value::Boolean(false))),
        Some(b'"') => serde_json::from_str(raw.get())
            .map(|text| Some(Value::String(text)))
            .map_err(|e| EventError::new(name, format!("is not a valid string: {e}"))),
        Some(b'{' | b'[') => {
            Err(EventError::new(name, "must be a string, an integer or a boolean"))
        }
        _ => raw.get().parse().map(|number| Some(Value::Integer(number))).map_err(|_| {
            EventError::new(name, "must be a whole number of 32 bits; send others as a string")
        }),
    }
}

/// The members of a JSON object in their order, each name once, each value as its text.
struct Members(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a CloudEvent: a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut seen = std::collections::HashSet::new();
                let mut members = Vec::new();
                while let Some((name, raw)) = map.next_entry::<String, Box<RawValue>>()? {
                    if !seen.insert(name.clone()) {
                        return Err(serde::de::Error::custom(format!("duplicate member `{name}`")));
                    }
                    members.push((name, raw));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(extra: &str) -> String {
        format!(r#"{{"specversion":"1.0","id":"1","source":"/s","type":"t"{extra}}}"#)
    }

    #[test]
    fn data_bytes_stay_as_they_came() {
        let data = r#"{"b": 1.0, "a":12345678901234567890, "a" : "\u00e9" }"#;
        let text = event(&format!(r#","data":{data}"#));
        let parsed = parse(text.as_bytes()).unwrap();
        assert_eq!(parsed.data(), &Data::Json(data.as_bytes().to_vec()));
        let written = to_vec(&parsed);
        assert_eq!(String::from_utf8(written.clone()).unwrap(), text);
        assert_eq!(parse(&written).unwrap(), parsed);
    }

    #[test]
    fn null_data_is_not_absent_data() {
        assert_eq!(
            parse(event(r#","data":null"#).as_bytes()).unwrap().data(),
            &Data::Json(b"null".to_vec())
        );
        assert_eq!(parse(event("").as_bytes()).unwrap().data(), &Data::Absent);
    }

    #[test]
    fn null_attribute_is_an_unset_one() {
        assert_eq!(
            parse(event(r#","subject":null"#).as_bytes()).unwrap().attribute("subject"),
            None
        );
    }

    #[test]
    fn every_broken_rule_names_its_attribute() {
        let cases = [
            (r#"{"specversion":"1.0","source":"/s","type":"t"}"#.to_owned(), "id"),
            (r#"{"specversion":"1.0","id":"","source":"/s","type":"t"}"#.to_owned(), "id"),
            (
                r#"{"specversion":"0.3","id":"1","source":"/s","type":"t"}"#.to_owned(),
                "specversion",
            ),
            (r#"{"specversion":"1.0","id":1,"source":"/s","type":"t"}"#.to_owned(), "id"),
            (r#"{"specversion":"1.0","id":"1","source":"/a b","type":"t"}"#.to_owned(), "source"),
            (event(r#","source":"/again""#), "source"),
            (event(r#","time":"2026-01-31 08:00:00Z""#), "time"),
            (event(r#","time":"yesterday""#), "time"),
            (event(r#","dataschema":"relative/path""#), "dataschema"),
            (event(r#","datacontenttype":"json""#), "datacontenttype"),
            (event(r#","subject":"""#), "subject"),
            (event(r#","Upper":"x""#), "Upper"),
            (event(r#","with_underscore":"x""#), "with_underscore"),
            (event(r#","big":2147483648"#), "big"),
            (event(r#","float":1.5"#), "float"),
            (event(r#","nested":{"a":1}"#), "nested"),
            (event(r#","bell":"\u0007""#), "bell"),
            (event(r#","non":"\uffff""#), "non"),
            (event(r#","lone":"\ud800""#), "lone"),
            (event(r#","data":1,"data_base64":"AA==""#), "data_base64"),
            (event(r#","data_base64":"A""#), "data_base64"),
            (event(r#","data_base64":7"#), "data_base64"),
            ("[]".to_owned(), ""),
            (event("") + "x", ""),
            ("{".to_owned(), ""),
        ];
        for (text, attribute) in cases {
            let error = parse(text.as_bytes()).expect_err(&text);
            assert_eq!(error.attribute, attribute, "{text}: {error}");
        }
    }

    #[test]
    fn a_batch_names_the_event_at_fault() {
        let text = format!("[{},{}]", event(""), r#"{"specversion":"1.0"}"#);
        let error = parse_batch(text.as_bytes()).expect_err("the second has no id");
        assert!(error.problem.contains("event 1 of the batch"), "{error}");
        assert_eq!(parse_batch(b"[]").unwrap(), []);
    }

    #[test]
    fn the_sdk_reads_what_we_write() {
        let text =
            event(r#","time":"2026-01-31T08:00:00.000Z","flag":true,"count":-7,"data":{"a":1}"#);
        let ours = to_vec(&parse(text.as_bytes()).unwrap());
        let theirs: cloudevents::Event = serde_json::from_slice(&ours).unwrap();
        use cloudevents::AttributesReader;
        assert_eq!((theirs.id(), theirs.ty()), ("1", "t"));
        assert_eq!(theirs.extension("count").map(ToString::to_string), Some("-7".to_owned()));
    }

    #[test]
    fn a_line_has_no_break_and_the_same_bytes_of_data() {
        let head = r#"{"specversion":"1.0","id":"1","source":"/s","type":"t","data":"#;
        let plain = parse(format!("{head}{{\"a\": 1}}}}").as_bytes()).unwrap();
        assert_eq!(to_line(&plain), to_vec(&plain));
        let text = "{\n  \"a\": 1.0\r\n}";
        let broken = parse(format!("{head}{text}}}").as_bytes()).unwrap();
        let line = to_line(&broken);
        assert!(!line.contains(&b'\n') && !line.contains(&b'\r'));
        let back = crate::event::mqtt::to_binary(&parse(&line).unwrap());
        assert_eq!(back.payload, text.as_bytes());
    }
}
