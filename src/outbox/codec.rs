//! Bytes of records and counters: a version, a checksum, CBOR.
//!
//! ```text
//! frame = version (1 byte) | CRC-32 of version and body (4 bytes, big-endian) | body (CBOR)
//! ```
//! The first five bytes keep this meaning in every version, so that a later hark can tell an old
//! frame from a damaged one and an older hark can tell a newer one. The body of a record is a map
//! with text keys; the event's data is a byte string of the bytes as they came.
//!
//! This is the only module that names the CBOR library, which is unmaintained: another one that
//! reads the same bytes drops in here (`docs/adr/0002`). It decodes nothing but our own records,
//! and only after their checksum holds.
//!
//! Source: RFC 8949 (CBOR); CRC-32 is the one of IEEE 802.3.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use bytes::BytesMut;
use serde::de::{DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_bytes::Bytes;

use super::record::{Position, Record, Structured};
use crate::event::{Data, DataRef, Event, Lane, Noted, Value, ValueRef, json};

/// The version that is written.
pub const VERSION: u8 = 1;

const PREFIX_BYTES: usize = 5;

/// A frame cannot be read, or a record cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Fewer bytes than every frame has.
    #[error("{0} bytes are too few for a frame")]
    TooShort(usize),
    /// The bytes are not the ones that were written.
    #[error("the checksum does not hold")]
    Checksum,
    /// A hark newer than this one wrote it, or one too old.
    #[error("it has version {0}, and this hark reads version {VERSION}")]
    UnknownVersion(u8),
    /// The checksum holds and the content still is not what it should be.
    #[error("its content is not a record: {0}")]
    Content(String),
}

#[derive(Serialize)]
struct RecordOut<'a> {
    lane: &'a str,
    position: u64,
    sequence: u64,
    accepted_ms: u64,
    attributes: &'a BTreeMap<&'a str, &'a Value>,
    kind: u8,
    data: &'a Bytes,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordIn<'a> {
    lane: &'a str,
    position: u64,
    sequence: u64,
    accepted_ms: u64,
    #[serde(borrow)]
    attributes: Attributes<'a>,
    kind: u8,
    #[serde(borrow)]
    data: &'a Bytes,
}

impl<'a> RecordIn<'a> {
    fn lane(&self) -> Result<Lane, CodecError> {
        Lane::from_str(self.lane).map_err(|e| CodecError::Content(e.to_string()))
    }

    fn data(&self) -> Result<DataRef<'a>, CodecError> {
        let text = || std::str::from_utf8(self.data);
        Ok(match self.kind {
            KIND_ABSENT => DataRef::Absent,
            KIND_JSON => DataRef::Json(self.data),
            KIND_BASE64 => DataRef::Base64(text().map_err(|e| CodecError::Content(e.to_string()))?),
            other => return Err(CodecError::Content(format!("kind of data {other}"))),
        })
    }

    fn into_record(self) -> Result<Record, CodecError> {
        let (lane, data) = (self.lane()?, self.data()?);
        let data = match data {
            DataRef::Absent => Data::Absent,
            DataRef::Json(raw) => Data::Json(raw.to_vec()),
            DataRef::Base64(text) => Data::Base64(text.to_owned()),
        };
        let noted = self.attributes.get(NOTED).and_then(Noted::from_text);
        let attributes = self.attributes.0.into_iter().filter(|(name, _)| *name != NOTED);
        let attributes = attributes.map(|(name, value)| (name.into(), value.into())).collect();
        let event = Event::new(attributes, data);
        let mut event = event.map_err(|e| CodecError::Content(e.to_string()))?;
        if let Some(noted) = noted {
            event.note(noted);
        }
        Ok(Record {
            lane,
            position: Position(self.position),
            sequence: self.sequence,
            accepted_ms: self.accepted_ms,
            event,
        })
    }
}

/// Names and values as they lie in the frame, sorted by name.
struct Attributes<'a>(Vec<(&'a str, ValueRef<'a>)>);

impl<'a> Attributes<'a> {
    fn get(&self, name: &str) -> Option<&'a str> {
        match self.0.iter().find(|(known, _)| *known == name)?.1 {
            ValueRef::String(text) => Some(text),
            _ => None,
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Attributes<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Attributes<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("attributes")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut attributes = Vec::with_capacity(16);
                while let Some(attribute) = map.next_entry()? {
                    attributes.push(attribute);
                }
                Ok(Attributes(attributes))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

/// Among the attributes, and none of them: no attribute's name has a dot. What the outbox notes of an event whose
/// clock could not be believed ([`Noted`]).
const NOTED: &str = ".noted";

const KIND_ABSENT: u8 = 0;
const KIND_JSON: u8 = 1;
const KIND_BASE64: u8 = 2;

/// What a record is made of, before it is one.
#[derive(Debug, Clone, Copy)]
pub struct RecordFields<'a> {
    /// Lane in which it stands.
    pub lane: Lane,
    /// Its place there.
    pub position: Position,
    /// Its number among those of its source.
    pub sequence: u64,
    /// Wall time of acceptance, milliseconds since 1970.
    pub accepted_ms: u64,
    /// All attributes, the outbox's own among them.
    pub attributes: &'a BTreeMap<&'a str, &'a Value>,
    /// What is noted beside them.
    pub noted: Option<&'a Noted>,
    /// The payload.
    pub data: &'a Data,
}

/// The frame of a record.
///
/// # Errors
/// The library refuses to encode it: not seen for any event.
pub fn encode_record(fields: RecordFields<'_>) -> Result<Vec<u8>, CodecError> {
    let (kind, data): (u8, &[u8]) = match fields.data {
        Data::Absent => (KIND_ABSENT, &[]),
        Data::Json(raw) => (KIND_JSON, raw),
        Data::Base64(text) => (KIND_BASE64, text.as_bytes()),
    };
    let noted = fields.noted.map(|noted| Value::from(noted.to_text()));
    let mut attributes = Cow::Borrowed(fields.attributes);
    if let Some(noted) = &noted {
        attributes.to_mut().insert(NOTED, noted);
    }
    encode(&RecordOut {
        lane: fields.lane.as_str(),
        position: fields.position.0,
        sequence: fields.sequence,
        accepted_ms: fields.accepted_ms,
        attributes: &attributes,
        kind,
        data: Bytes::new(data),
    })
}

/// Reads the frame of a record.
///
/// # Errors
/// See [`CodecError`]; the record is lost unless the frame can be read again.
pub fn decode_record(frame: &[u8]) -> Result<Record, CodecError> {
    let record: RecordIn<'_> = decode(frame)?;
    record.into_record()
}

/// Reads the frame of a record as the JSON in which it is published, which is taken from `buffer`'s room, without making an event of it in between, except
/// where something is noted beside it: then `present` may have to correct its times first.
///
/// # Errors
/// As those of [`decode_record`].
pub fn decode_structured(
    frame: &[u8],
    buffer: &mut BytesMut,
    present: impl FnOnce(Record) -> Record,
) -> Result<Structured, CodecError> {
    let record: RecordIn<'_> = decode(frame)?;
    if record.attributes.get(NOTED).is_some() {
        return Ok(Structured::from(&present(record.into_record()?)));
    }
    let (lane, data) = (record.lane()?, record.data()?);
    buffer.clear();
    json::write(buffer, &record.attributes.0, data);
    let text = |name| record.attributes.get(name);
    Ok(Structured {
        lane,
        position: Position(record.position),
        id: text("id").unwrap_or_default().into(),
        source: text("source").unwrap_or_default().into(),
        expirytime: text("expirytime").map(str::to_owned),
        json: buffer.split().freeze(),
    })
}

/// How the body of every record begins: a map of seven, its first key.
pub(super) const RECORD_BEGINS: &[u8] = b"\xa7\x64lane";

/// How the body of every state begins, whatever was added to it later.
pub(super) const STATE_BEGINS: &[u8] = b"\x6dnext_position";

/// Lane and position from the beginning of a record's frame, before its checksum is known to hold.
pub(super) fn peek_place(frame: &[u8]) -> Option<(Lane, Position)> {
    let rest = frame.get(PREFIX_BYTES..)?.strip_prefix(RECORD_BEGINS)?;
    let length = usize::from(rest.first()?.checked_sub(0x60).filter(|length| *length < 24)?);
    let lane = Lane::from_str(std::str::from_utf8(rest.get(1..=length)?).ok()?).ok()?;
    let rest = rest.get(1 + length..)?.strip_prefix(b"\x68position")?;
    let (&head, rest) = rest.split_first()?;
    let bytes = match head {
        0..=23 => return Some((lane, Position(u64::from(head)))),
        24 => 1,
        25 => 2,
        26 => 4,
        27 => 8,
        _ => return None,
    };
    let number = rest.get(..bytes)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
    Some((lane, Position(number)))
}

/// The frame of any small value.
///
/// # Errors
/// The library refuses to encode it.
pub(super) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    let mut frame = vec![0; PREFIX_BYTES];
    serde_cbor::to_writer(&mut frame, value).map_err(|e| CodecError::Content(e.to_string()))?;
    frame[0] = VERSION;
    let sum = checksum(&frame);
    frame[1..PREFIX_BYTES].copy_from_slice(&sum.to_be_bytes());
    Ok(frame)
}

/// Reads the frame of any value: the checksum first, since a flipped version is damage too.
pub(super) fn decode<'a, T: Deserialize<'a>>(frame: &'a [u8]) -> Result<T, CodecError> {
    let Some((prefix, body)) = frame.split_first_chunk::<PREFIX_BYTES>() else {
        return Err(CodecError::TooShort(frame.len()));
    };
    let [version, sum @ ..] = *prefix;
    if checksum(frame) != u32::from_be_bytes(sum) {
        return Err(CodecError::Checksum);
    }
    if version != VERSION {
        return Err(CodecError::UnknownVersion(version));
    }
    // `from_slice` takes no bytes behind the value.
    serde_cbor::from_slice(body).map_err(|e| CodecError::Content(e.to_string()))
}

/// Reads a frame at the beginning of bytes that go on behind it; for values whose length is lost.
pub(super) fn decode_beginning<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let body = bytes.get(PREFIX_BYTES..)?;
    let mut reader = serde_cbor::Deserializer::from_slice(body);
    serde::de::IgnoredAny::deserialize(&mut reader).ok()?;
    decode(&bytes[..PREFIX_BYTES + reader.byte_offset()]).ok()
}

/// Over version and body. `frame` has at least a prefix.
fn checksum(frame: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&frame[..1]);
    hasher.update(&frame[PREFIX_BYTES..]);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::json;

    fn encoded(text: &str) -> Vec<u8> {
        let event = json::parse(text.as_bytes()).unwrap();
        let attributes = event.attributes().iter().map(|(k, v)| (k.as_str(), v)).collect();
        encode_record(RecordFields {
            lane: Lane::Alert,
            position: Position(7),
            sequence: 3,
            accepted_ms: 1_795_000_000_123,
            attributes: &attributes,
            noted: None,
            data: event.data(),
        })
        .unwrap()
    }

    const EVENT: &str = r#"{"specversion":"1.0","id":"1","source":"/s","type":"t","count":-7,"flag":true,"data":{"b": 1.0, "a":12345678901234567890}}"#;

    fn resealed(mut frame: Vec<u8>, version: u8) -> Vec<u8> {
        frame[0] = version;
        let sum = checksum(&frame);
        frame[1..5].copy_from_slice(&sum.to_be_bytes());
        frame
    }

    #[test]
    fn a_record_comes_back_with_its_bytes() {
        for text in [
            EVENT,
            r#"{"specversion":"1.0","id":"1","source":"/s","type":"t"}"#,
            r#"{"specversion":"1.0","id":"1","source":"/s","type":"t","data":null}"#,
            r#"{"specversion":"1.0","id":"1","source":"/s","type":"t","data_base64":"AP8="}"#,
        ] {
            let record = decode_record(&encoded(text)).unwrap();
            assert_eq!(record.event, json::parse(text.as_bytes()).unwrap());
            assert_eq!((record.lane, record.position), (Lane::Alert, Position(7)));
            assert_eq!((record.sequence, record.accepted_ms), (3, 1_795_000_000_123));
            let mut buffer = BytesMut::new();
            let structured = decode_structured(&encoded(text), &mut buffer, |r| r).unwrap();
            assert_eq!(structured, Structured::from(&record));
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let frame = encoded(EVENT);
        for bit in 0..frame.len() * 8 {
            let mut damaged = frame.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode_record(&damaged).unwrap_err(), CodecError::Checksum, "bit {bit}");
        }
    }

    #[test]
    fn every_truncation_is_noticed() {
        let frame = encoded(EVENT);
        for length in 0..frame.len() {
            assert!(decode_record(&frame[..length]).is_err(), "length {length}");
        }
    }

    #[test]
    fn another_version_is_told_from_damage() {
        let frame = resealed(encoded(EVENT), 2);
        assert_eq!(decode_record(&frame).unwrap_err(), CodecError::UnknownVersion(2));
    }

    #[test]
    fn trailing_bytes_are_refused() {
        let mut frame = encoded(EVENT);
        frame.push(0);
        let error = decode_record(&resealed(frame, VERSION)).unwrap_err();
        assert!(matches!(error, CodecError::Content(_)), "{error}");
    }
}
