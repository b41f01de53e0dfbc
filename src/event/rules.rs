//! What the specification asks of an event, each rule once.
//!
//! Source: CloudEvents 1.0.2 § Naming Conventions, § Type System, § Context Attributes.

use std::collections::BTreeMap;

use super::envelope::{Data, Name, Value};

/// An attribute breaks a rule of the specification, or the JSON around it does.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("attribute `{attribute}` {problem}")]
pub struct EventError {
    /// The attribute at fault; empty where the event as a whole is.
    pub attribute: String,
    /// What is wrong and what would be right.
    pub problem: String,
}

impl EventError {
    pub(crate) fn new(attribute: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { attribute: attribute.into(), problem: problem.into() }
    }
}

/// Attributes that the specification itself defines (besides `data`).
const CONTEXT: [&str; 8] =
    ["id", "source", "specversion", "type", "datacontenttype", "dataschema", "subject", "time"];

pub(super) fn check(attributes: &BTreeMap<Name, Value>, data: &Data) -> Result<(), EventError> {
    for name in ["specversion", "id", "source", "type"] {
        if !attributes.contains_key(name) {
            return Err(EventError::new(name, "is required and missing"));
        }
    }
    for (name, value) in attributes {
        let is_known = name.is_known();
        let name = name.as_str();
        if !is_known {
            check_name(name)?;
        }
        check_characters(name, value)?;
        if CONTEXT.contains(&name) {
            let Some(text) = value.as_str() else {
                return Err(EventError::new(name, "must be a string"));
            };
            check_context(name, text)?;
        }
    }
    if let Data::Base64(text) = data {
        check_base64(text)?;
    }
    Ok(())
}

pub(super) fn check_extension(name: &str, value: &Value) -> Result<(), EventError> {
    if CONTEXT.contains(&name) {
        return Err(EventError::new(name, "is no extension and is not rewritten"));
    }
    check_name(name)?;
    check_characters(name, value)
}

fn check_name(name: &str) -> Result<(), EventError> {
    if name == "data" || name == "data_base64" {
        return Err(EventError::new(name, "is the payload, not an attribute"));
    }
    let well_formed =
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if well_formed {
        return Ok(());
    }
    Err(EventError::new(name, "has a name with other characters than a-z and 0-9"))
}

/// Strings carry no control characters and no noncharacters (lone surrogates cannot be in a `str`).
fn check_characters(name: &str, value: &Value) -> Result<(), EventError> {
    let Some(text) = value.as_str() else { return Ok(()) };
    // Nearly all there are, and much faster to go through.
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return Ok(());
    }
    let banned = |c: char| {
        let code = u32::from(c);
        c.is_control() || (0xFDD0..=0xFDEF).contains(&code) || code & 0xFFFE == 0xFFFE
    };
    match text.chars().find(|&c| banned(c)) {
        None => Ok(()),
        Some(c) => Err(EventError::new(
            name,
            format!("holds the character U+{:04X}, which the specification bans", u32::from(c)),
        )),
    }
}

fn check_context(name: &str, text: &str) -> Result<(), EventError> {
    if text.is_empty() {
        return Err(EventError::new(name, "must not be empty"));
    }
    match name {
        "specversion" if text != "1.0" => {
            Err(EventError::new(name, format!("is `{text}`; only `1.0` is understood")))
        }
        "time" if !is_rfc3339(text) => Err(EventError::new(
            name,
            format!("is `{text}`, no RFC 3339 timestamp such as `2026-01-31T08:00:00.000Z`"),
        )),
        "source" if !is_uri_reference(text) => {
            Err(EventError::new(name, format!("is `{text}`, no URI reference (RFC 3986 §4.1)")))
        }
        "dataschema" if !(is_uri_reference(text) && has_scheme(text)) => {
            Err(EventError::new(name, format!("is `{text}`, no absolute URI (RFC 3986 §4.3)")))
        }
        "datacontenttype" if !is_media_type(text) => {
            Err(EventError::new(name, format!("is `{text}`, no media type (RFC 2046)")))
        }
        _ => Ok(()),
    }
}

fn is_rfc3339(text: &str) -> bool {
    // chrono also takes a space for the `T`, which RFC 3339 §5.6 leaves to other profiles.
    matches!(text.as_bytes().get(10), Some(b'T' | b't'))
        && chrono::DateTime::parse_from_rfc3339(text).is_ok()
}

fn has_scheme(text: &str) -> bool {
    let Some((scheme, _)) = text.split_once(':') else { return false };
    scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
}

/// The characters and escapes of RFC 3986; not the grammar of each scheme.
fn is_uri_reference(text: &str) -> bool {
    let bytes = text.as_bytes();
    let is_hex = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_hexdigit);
    bytes.iter().enumerate().all(|(at, b)| match b {
        b'%' => is_hex(at + 1) && is_hex(at + 2),
        b => b.is_ascii_alphanumeric() || b"-._~:/?#[]@!$&'()*+,;=".contains(b),
    })
}

fn is_media_type(text: &str) -> bool {
    let token = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
    };
    let essence = text.split(';').next().unwrap_or_default().trim();
    essence.split_once('/').is_some_and(|(main, sub)| token(main) && token(sub))
}

/// RFC 4648 §4, padded, no line breaks.
fn check_base64(text: &str) -> Result<(), EventError> {
    let body = text.trim_end_matches('=');
    let padding = text.len() - body.len();
    let alphabet = |b: u8| b.is_ascii_alphanumeric() || b == b'+' || b == b'/';
    if text.len().is_multiple_of(4) && padding <= 2 && body.bytes().all(alphabet) {
        return Ok(());
    }
    Err(EventError::new("data_base64", "is not base64 with padding (RFC 4648 §4)"))
}
