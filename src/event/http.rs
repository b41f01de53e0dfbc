//! The HTTP protocol binding: where an event's attributes and data stand in a request in binary mode.
//!
//! The body is the data, `content-type` is `datacontenttype`, every other attribute a header `ce-NAME`
//! whose value is percent-encoded, or quoted as older senders do it. What comes of them is the same as
//! over MQTT ([`super::mqtt`]): every attribute is a string.
//!
//! Absent: structured mode and batches, which are [`super::json`] as they stand; writing.
//!
//! Source: CloudEvents HTTP Protocol Binding 1.0.2 §3.1.

use percent_encoding::percent_decode_str;

use super::envelope::Event;
use super::mqtt;
use super::rules::EventError;

/// Begins the name of each header that is an attribute.
const PREFIX: &str = "ce-";
/// The header that makes a request one of binary mode.
pub const MARK: &str = "ce-specversion";

/// Reads an event in binary mode out of the headers of a request (names in lower case) and its body.
///
/// # Errors
/// An attribute that breaks a rule, which the error names; a value that is no text.
pub fn parse<'a>(
    content_type: Option<&str>,
    headers: impl Iterator<Item = (&'a str, &'a [u8])>,
    body: &[u8],
) -> Result<Event, EventError> {
    let mut attributes = Vec::new();
    for (name, value) in headers {
        let Some(name) = name.strip_prefix(PREFIX) else { continue };
        let no_text = |_| EventError::new(name, "is no text in UTF-8, percent-encoded");
        let value = unquoted(std::str::from_utf8(value).map_err(no_text)?);
        let value = percent_decode_str(&value).decode_utf8().map_err(no_text)?.into_owned();
        attributes.push((name.to_owned(), value));
    }
    mqtt::parse(content_type, &attributes, body)
}

/// A quoted string of RFC 9110 §5.6.4 without its quotes; anything else as it is.
fn unquoted(value: &str) -> String {
    let quoted = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let Some(inner) = quoted else { return value.to_owned() };
    let mut characters = inner.chars();
    let next = move || match characters.next()? {
        '\\' => characters.next(),
        other => Some(other),
    };
    std::iter::from_fn(next).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Data;

    fn event(headers: &[(&str, &str)], content_type: &str, body: &[u8]) -> Result<Event, String> {
        let required = [("ce-specversion", "1.0"), ("ce-source", "/s"), ("ce-type", "t")];
        let headers = required.iter().chain(headers).map(|(n, v)| (*n, v.as_bytes()));
        parse(Some(content_type), headers, body).map_err(|e| e.to_string())
    }

    #[test]
    fn headers_are_attributes_and_the_body_is_the_data() {
        let headers = [("ce-id", "1"), ("ce-lane", "alert"), ("accept", "*/*")];
        let json = event(&headers, "application/json", b"{ \"a\": 1.0 }").unwrap();
        assert_eq!((json.id(), json.source(), json.event_type()), ("1", "/s", "t"));
        assert_eq!(json.attribute("lane").unwrap().as_str(), Some("alert"));
        assert_eq!(json.attribute("datacontenttype").unwrap().as_str(), Some("application/json"));
        assert_eq!(json.data(), &Data::Json(b"{ \"a\": 1.0 }".to_vec()), "as they came");
        let bytes = event(&headers, "image/png", &[0, 255]).unwrap();
        assert_eq!(bytes.data(), &Data::Base64("AP8=".to_owned()));
        assert_eq!(event(&headers, "application/json", b"").unwrap().data(), &Data::Absent);
    }

    #[test]
    fn values_are_percent_encoded_or_quoted() {
        for (value, meant) in [
            ("caf%C3%A9%20%25", "café %"),
            ("café", "café"),
            (r#""a \"b\" c""#, r#"a "b" c"#),
            ("%zz", "%zz"),
        ] {
            let event = event(&[("ce-id", value)], "text/plain", b"x").unwrap();
            assert_eq!(event.id(), meant);
        }
    }

    #[test]
    fn what_is_no_event_is_refused_by_the_name_of_its_attribute() {
        let wrong = [
            (vec![], "id"),
            (vec![("ce-id", "1"), ("ce-id", "2")], "id"),
            (vec![("ce-id", "%ff")], "id"),
            (vec![("ce-id", "1"), ("ce-time", "noon")], "time"),
            (vec![("ce-id", "1"), ("ce-datacontenttype", "a/b")], "datacontenttype"),
        ];
        for (headers, attribute) in wrong {
            let error = event(&headers, "text/plain", b"x").unwrap_err();
            assert!(error.contains(attribute), "{attribute}: {error}");
        }
        let error = event(&[("ce-id", "1")], "application/json", b"{").unwrap_err();
        assert!(error.contains("JSON"), "{error}");
    }
}
