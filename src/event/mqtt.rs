//! The MQTT protocol binding: where an event's attributes and data stand in a PUBLISH.
//!
//! - *Structured mode*: the whole event is JSON in the payload ([`super::json`]); MQTT 5 says so in its
//!   Content Type, 3.1.1 has no place to say it.
//! - *Binary mode*, MQTT 5 only: the payload is the data, Content Type is `datacontenttype`, every
//!   other attribute is a User Property.
//!
//! Bytes of data that came as `data` go out as they came; `data_base64` is decoded. Only where
//! `datacontenttype` is no JSON and `data` is a JSON string is it unescaped, which the JSON format asks
//! for. Where `datacontenttype` is not given, the format implies `application/json`, and binary mode
//! says it.
//!
//! Absent: batches, which MQTT has not.
//!
//! Source: CloudEvents MQTT Protocol Binding 1.0.2 §3; JSON Event Format 1.0.2 §3.1;
//! CloudEvents 1.0.2 `datacontenttype`.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

use super::envelope::{Data, Event, Name, Value};
use super::json;
use super::rules::EventError;

/// An event in binary mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binary {
    /// Content Type; none where there is neither data nor `datacontenttype`.
    pub content_type: Option<String>,
    /// Name and value of each attribute but `datacontenttype`, by name.
    pub user_properties: Vec<(String, String)>,
    /// The data.
    pub payload: Vec<u8>,
}

const CONTENT_TYPE: &str = "datacontenttype";
const JSON: &str = "application/json";

/// The event in binary mode.
pub fn to_binary(event: &Event) -> Binary {
    let given = event.attribute(CONTENT_TYPE).and_then(Value::as_str).map(str::to_owned);
    let implied = matches!(event.data(), Data::Json(_)).then(|| JSON.to_owned());
    let content_type = given.or(implied);
    let payload = match event.data() {
        Data::Absent => Vec::new(),
        Data::Json(raw) if content_type.as_deref().is_none_or(is_json) => raw.clone(),
        Data::Json(raw) => match serde_json::from_slice::<String>(raw) {
            Ok(text) => text.into_bytes(),
            Err(_) => raw.clone(),
        },
        Data::Base64(text) => decode_base64(text),
    };
    let others = event.attributes().iter().filter(|(name, _)| name.as_str() != CONTENT_TYPE);
    let user_properties =
        others.map(|(name, value)| (name.to_string(), value.to_string())).collect();
    Binary { content_type, user_properties, payload }
}

/// Reads an event out of a PUBLISH: structured if its Content Type says so or if it says nothing,
/// else binary. In binary mode every attribute is a string.
///
/// # Errors
/// Another format than JSON, a batch, or an attribute that breaks a rule, which the error names.
pub fn parse(
    content_type: Option<&str>,
    user_properties: &[(String, String)],
    payload: &[u8],
) -> Result<Event, EventError> {
    let essence = content_type.map(essence).unwrap_or_default();
    if essence.eq_ignore_ascii_case(json::MEDIA_TYPE) {
        return json::parse(payload);
    }
    if essence.to_ascii_lowercase().starts_with("application/cloudevents") {
        return Err(EventError::new("", format!("is `{essence}`; send {}", json::MEDIA_TYPE)));
    }
    if !user_properties.iter().any(|(name, _)| name == "specversion") {
        return json::parse(payload);
    }
    let mut attributes = BTreeMap::new();
    let content_type = content_type.map(|value| (CONTENT_TYPE, value));
    let properties = user_properties.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    for (name, value) in properties.chain(content_type) {
        if attributes.insert(Name::from(name), Value::from(value)).is_some() {
            return Err(EventError::new(name, "is given twice"));
        }
    }
    let data = match payload {
        [] => Data::Absent,
        json if content_type.is_none_or(|(_, value)| is_json(value)) => {
            serde_json::from_slice::<&RawValue>(json)
                .map_err(|e| EventError::new("data", format!("is no JSON: {e}")))?;
            Data::Json(json.to_vec())
        }
        other => Data::Base64(encode_base64(other)),
    };
    Event::new(attributes, data)
}

fn essence(media_type: &str) -> &str {
    media_type.split(';').next().unwrap_or_default().trim()
}

/// RFC 6838: `…/json` or the suffix `+json`, whatever its parameters.
fn is_json(media_type: &str) -> bool {
    let essence = essence(media_type).to_ascii_lowercase();
    essence.ends_with("/json") || essence.ends_with("+json")
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Decodes base64 that an [`Event`] holds, which was checked when the event was made.
fn decode_base64(text: &str) -> Vec<u8> {
    let digits = text.bytes().filter_map(|b| ALPHABET.iter().position(|a| *a == b));
    let (mut out, mut bits, mut held) = (Vec::with_capacity(text.len() / 4 * 3), 0u32, 0u32);
    for digit in digits {
        bits = bits << 6 | digit as u32;
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push((bits >> held) as u8);
        }
    }
    out
}

pub(super) fn encode_base64(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let part = |at: usize| u32::from(chunk.get(at).copied().unwrap_or(0));
        let bits = part(0) << 16 | part(1) << 8 | part(2);
        for digit in 0..4 {
            let index = bits >> (18 - 6 * digit) & 63;
            out.push(if digit <= chunk.len() { char::from(ALPHABET[index as usize]) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(rest: &str) -> Event {
        let text = format!(r#"{{"specversion":"1.0","id":"A1","source":"/s","type":"t"{rest}}}"#);
        json::parse(text.as_bytes()).expect(&text)
    }

    /// Content Type and payload of the event in binary mode.
    fn binary(rest: &str) -> (Option<String>, Vec<u8>) {
        let Binary { content_type, payload, .. } = to_binary(&event(rest));
        (content_type, payload)
    }

    /// The examples of the JSON format's section 3.1 and of the MQTT binding's section 3, and the ends
    /// that they leave open.
    #[test]
    fn data_stands_in_the_payload_as_the_specification_says() {
        let table: [(&str, Option<&str>, &[u8]); 12] = [
            ("", None, b""),
            (r#","datacontenttype":"text/plain""#, Some("text/plain"), b""),
            (r#","data":{"b": 1.0,"a":2 }"#, Some(JSON), br#"{"b": 1.0,"a":2 }"#),
            (r#","data":null"#, Some(JSON), b"null"),
            (r#","data":"text""#, Some(JSON), br#""text""#),
            (
                r#","datacontenttype":"text/xml","data":"<much wow=\"xml\"/>""#,
                Some("text/xml"),
                br#"<much wow="xml"/>"#,
            ),
            (
                r#","datacontenttype":"text/plain","data":"\u00e9\n""#,
                Some("text/plain"),
                "é\n".as_bytes(),
            ),
            (
                r#","datacontenttype":"application/json; charset=utf-8","data":{"x":"\u00e9"}"#,
                Some("application/json; charset=utf-8"),
                br#"{"x":"\u00e9"}"#,
            ),
            (
                r#","datacontenttype":"application/x+JSON","data":"a""#,
                Some("application/x+JSON"),
                br#""a""#,
            ),
            (r#","datacontenttype":"text/csv","data":[1,2]"#, Some("text/csv"), b"[1,2]"),
            (
                r#","datacontenttype":"application/vnd.apache.thrift.binary","data_base64":"AAH/""#,
                Some("application/vnd.apache.thrift.binary"),
                &[0, 1, 255],
            ),
            (r#","data_base64":"aGVscA==""#, None, b"help"),
        ];
        for (rest, content_type, payload) in table {
            let expected = (content_type.map(str::to_owned), payload.to_vec());
            assert_eq!(binary(rest), expected, "{rest}");
        }
    }

    #[test]
    fn every_other_attribute_is_a_user_property_in_its_canonical_string() {
        let got = to_binary(&event(
            r#","time":"2018-04-05T03:56:24Z","subject":"ü","flag":true,"count":-7,"dataschema":"urn:x""#,
        ));
        let expected = [
            ("count", "-7"),
            ("dataschema", "urn:x"),
            ("flag", "true"),
            ("id", "A1"),
            ("source", "/s"),
            ("specversion", "1.0"),
            ("subject", "ü"),
            ("time", "2018-04-05T03:56:24Z"),
            ("type", "t"),
        ];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(got.user_properties, expected);
    }

    #[test]
    fn what_goes_out_in_binary_mode_comes_back_as_the_same_event() {
        for rest in [
            "",
            r#","data":{"b": 1.0,"a" :[2]},"datacontenttype":"application/json""#,
            r#","data_base64":"AAH/","datacontenttype":"image/png""#,
            r#","data_base64":"aGVscA==","datacontenttype":"text/plain","subject":"s""#,
        ] {
            let sent = event(rest);
            let Binary { content_type, user_properties, payload } = to_binary(&sent);
            let read = parse(content_type.as_deref(), &user_properties, &payload);
            assert_eq!(read, Ok(sent), "{rest}");
        }
    }

    #[test]
    fn structured_mode_is_known_by_its_content_type_or_by_the_absence_of_properties() {
        let text = json::to_vec(&event(r#","data":1"#));
        for content_type in [None, Some("application/cloudevents+json; charset=utf-8"), Some("x/y")]
        {
            assert_eq!(parse(content_type, &[], &text), Ok(event(r#","data":1"#)));
        }
        for content_type in ["application/cloudevents-batch+json", "application/cloudevents+avro"] {
            assert!(parse(Some(content_type), &[], &text).is_err());
        }
    }

    #[test]
    fn binary_mode_breaks_no_rule_unnoticed() {
        let property = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let good = [("specversion", "1.0"), ("id", "1"), ("source", "/s"), ("type", "t")]
            .map(|(n, v)| property(n, v));
        assert!(parse(None, &good, b"{}").is_ok());
        assert_eq!(parse(None, &good[..3], b"").expect_err("no type").attribute, "type");
        let twice = [&good[..], &[property("id", "2")]].concat();
        assert_eq!(parse(None, &twice, b"").expect_err("twice").attribute, "id");
        assert_eq!(parse(Some(JSON), &good, b"{").expect_err("no JSON").attribute, "data");
        let odd = [&good[..], &[property("Odd-Name", "2")]].concat();
        assert_eq!(parse(None, &odd, b"").expect_err("odd").attribute, "Odd-Name");
    }
}
