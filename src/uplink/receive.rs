//! The way down: SUBSCRIBE, what it is answered with, and the publishes that then come.
//!
//! # Invariants
//! - A publish of QoS 1 is answered with PUBACK only after its consumer said so
//!   ([`super::Session::acknowledge`]): until then the broker keeps it and sends it again on the next
//!   connection.
//! - PUBACKs go out in the order in which the publishes came (MQTT 5 §4.6), whatever the order in which
//!   the consumer was done with them.
//! - At most [`DELIVERIES_MAX`] publishes wait for their consumer; MQTT 5 is told so (Receive Maximum),
//!   a broker of 3.1.1 is no longer read.
//!
//! Terms: a *delivery* is one publish as it came on one connection, by a number of its own.
//!
//! The properties of a PUBLISH are read here and not by the codec, which miscounts them after a
//! subscription identifier.
//!
//! Absent: wildcards in filters (a topic is ours if it is one of the filters, letter by letter), QoS 2,
//! topic aliases (we grant none).

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::Version;

/// Publishes that wait for their consumer at most, all of one connection.
pub(super) const DELIVERIES_MAX: usize = 16;

/// One publish from the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// Where it was published.
    pub topic: String,
    /// As it came.
    pub payload: Bytes,
    /// MQTT 5 Content Type.
    pub content_type: Option<String>,
    /// MQTT 5 User Properties, in their order.
    pub user_properties: Vec<(String, String)>,
    /// The broker kept it from before the subscription.
    pub retained: bool,
}

/// A PUBLISH as it stands on the wire.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Publish {
    pub(super) qos: u8,
    /// 0 at QoS 0.
    pub(super) packet_id: u16,
    pub(super) message: Received,
}

/// Reads a PUBLISH without its fixed header, whose first byte is `first`.
///
/// # Errors
/// A line about what MQTT does not allow.
pub(super) fn publish(version: Version, first: u8, body: &[u8]) -> Result<Publish, String> {
    let qos = first >> 1 & 3;
    if qos == 3 {
        return Err("PUBLISH with QoS 3".into());
    }
    let short = "PUBLISH shorter than its topic";
    let mut rest = body;
    let topic = string(&mut rest).map_err(|e| e.unwrap_or_else(|| short.into()))?;
    let packet_id = if qos == 0 { 0 } else { rest.try_get_u16().map_err(|_| short)? };
    if qos > 0 && packet_id == 0 {
        return Err("PUBLISH with packet id 0".into());
    }
    let mut message = Received {
        topic,
        payload: Bytes::new(),
        content_type: None,
        user_properties: Vec::new(),
        retained: first & 1 == 1,
    };
    if version == Version::V5 {
        let malformed = || "malformed properties of PUBLISH".to_owned();
        let length = varint(&mut rest).ok_or_else(malformed)?;
        let (properties, payload) = rest.split_at_checked(length).ok_or_else(malformed)?;
        read_properties(properties, &mut message).ok_or_else(malformed)?;
        rest = payload;
    }
    message.payload = Bytes::copy_from_slice(rest);
    Ok(Publish { qos, packet_id, message })
}

/// Source: MQTT 5 §3.3.2.3. `None`: an identifier that PUBLISH has not, or a value cut short.
fn read_properties(mut rest: &[u8], message: &mut Received) -> Option<()> {
    while !rest.is_empty() {
        match varint(&mut rest)? {
            0x01 => skip(&mut rest, 1)?,
            0x02 => skip(&mut rest, 4)?,
            0x03 => message.content_type = Some(string(&mut rest).ok()?),
            0x08 => drop(string(&mut rest).ok()?),
            0x09 => {
                let length = rest.try_get_u16().ok()?;
                skip(&mut rest, length.into())?;
            }
            0x0b => drop(varint(&mut rest)?),
            0x23 => skip(&mut rest, 2)?,
            0x26 => {
                let pair = (string(&mut rest).ok()?, string(&mut rest).ok()?);
                message.user_properties.push(pair);
            }
            _ => return None,
        }
    }
    Some(())
}

fn skip(rest: &mut &[u8], bytes: usize) -> Option<()> {
    *rest = rest.get(bytes..)?;
    Some(())
}

fn varint(rest: &mut &[u8]) -> Option<usize> {
    let mut value = 0;
    for shift in [0, 7, 14, 21] {
        let byte = rest.try_get_u8().ok()?;
        value |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// A string with its length before it. `Err(None)`: it is cut short.
fn string(rest: &mut &[u8]) -> Result<String, Option<String>> {
    let length = usize::from(rest.try_get_u16().map_err(|_| None)?);
    let (text, behind) = rest.split_at_checked(length).ok_or(None)?;
    let text = std::str::from_utf8(text).map_err(|_| Some("a string is not UTF-8".to_owned()))?;
    *rest = behind;
    Ok(text.to_owned())
}

/// Reads a SUBACK: the packet id and a code for each filter.
///
/// # Errors
/// It is cut short.
pub(super) fn suback(version: Version, body: &[u8]) -> Result<(u16, Vec<u8>), String> {
    let short = || "malformed SUBACK".to_owned();
    let mut rest = body;
    let packet_id = rest.try_get_u16().map_err(|_| short())?;
    if version == Version::V5 {
        let properties = varint(&mut rest).ok_or_else(short)?;
        skip(&mut rest, properties).ok_or_else(short)?;
    }
    if rest.is_empty() {
        return Err(short());
    }
    Ok((packet_id, rest.to_vec()))
}

/// Writes SUBSCRIBE, each filter at QoS 1.
pub(super) fn subscribe(version: Version, packet_id: u16, filters: &[Arc<str>], tx: &mut BytesMut) {
    let mut body = BytesMut::new();
    body.put_u16(packet_id);
    if version == Version::V5 {
        body.put_u8(0);
    }
    for filter in filters {
        body.put_u16(u16::try_from(filter.len()).unwrap_or(0));
        body.put_slice(filter.as_bytes());
        body.put_u8(1);
    }
    tx.put_u8(0x82);
    super::codec::put_remaining(body.len(), tx);
    tx.put_slice(&body);
}

/// What a negative SUBACK code means.
pub(super) fn suback_refusal(code: u8) -> String {
    let what = match code {
        0x87 | 0x80 => "the broker's access rules do not let this client subscribe there",
        0x8f => "topic filter not accepted",
        0x97 => "quota exceeded",
        _ => "see the broker's log",
    };
    format!("{what} (0x{code:02x})")
}

/// Publishes on this connection that their consumer has not settled, in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Deliveries {
    open: VecDeque<Delivery>,
    last: u64,
}

#[derive(Debug)]
struct Delivery {
    number: u64,
    packet_id: u16,
    settled: bool,
}

impl Deliveries {
    /// How many have no PUBACK yet.
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    /// A publish of QoS 1 came; returns its number.
    pub(super) fn came(&mut self, packet_id: u16) -> u64 {
        self.last += 1;
        self.open.push_back(Delivery { number: self.last, packet_id, settled: false });
        self.last
    }

    /// Its consumer is done with it. Returns the packet ids whose turn to be acknowledged it now is;
    /// none for a number of an earlier connection.
    pub(super) fn settle(&mut self, number: u64) -> Vec<u16> {
        if let Some(delivery) = self.open.iter_mut().find(|d| d.number == number) {
            delivery.settled = true;
        }
        let mut due = Vec::new();
        while self.open.front().is_some_and(|d| d.settled) {
            due.extend(self.open.pop_front().map(|d| d.packet_id));
        }
        due
    }

    /// A new connection: the broker sends again what has no PUBACK.
    pub(super) fn reconnected(&mut self) {
        self.open.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Version::{V5, V311};

    #[test]
    fn pubacks_keep_the_order_in_which_the_publishes_came() {
        let mut deliveries = Deliveries::default();
        let numbers = [7, 9, 8].map(|id| deliveries.came(id));
        assert_eq!(deliveries.settle(numbers[1]), [0u16; 0]);
        assert_eq!(deliveries.settle(numbers[0]), [7, 9]);
        deliveries.reconnected();
        assert_eq!(deliveries.settle(numbers[2]), [0u16; 0], "of an earlier connection");
        assert_eq!(deliveries.len(), 0);
    }

    #[test]
    fn every_property_of_a_publish_is_read_or_passed_over() {
        let mut properties = BytesMut::new();
        properties.put_slice(&[0x01, 1, 0x02, 0, 0, 0, 9, 0x0b, 0x80, 0x01]);
        properties.put_slice(b"\x03\x00\x10application/json\x08\x00\x01r\x09\x00\x02ab");
        properties.put_slice(b"\x26\x00\x02id\x00\x017\x26\x00\x02id\x00\x018\x23\x00\x00");
        let mut body = BytesMut::new();
        body.put_slice(b"\x00\x03a/b\x00\x07");
        body.put_u8(properties.len() as u8);
        body.put_slice(&properties);
        body.put_slice(b"{}");
        let read = publish(V5, 0x33, &body).expect("well formed");
        assert_eq!((read.qos, read.packet_id, read.message.retained), (1, 7, true));
        assert_eq!(read.message.topic, "a/b");
        assert_eq!(&read.message.payload[..], b"{}");
        assert_eq!(read.message.content_type.as_deref(), Some("application/json"));
        let pair = |value: &str| ("id".to_owned(), value.to_owned());
        assert_eq!(read.message.user_properties, [pair("7"), pair("8")]);
        for cut in 0..body.len() - 2 {
            assert!(publish(V5, 0x32, &body[..cut]).is_err(), "cut at {cut}");
        }
        let unknown = b"\x00\x01a\x00\x01\x02\x7f\x00";
        assert!(publish(V5, 0x32, unknown).is_err());
    }

    #[test]
    fn a_publish_of_3_1_1_has_no_properties() {
        let read = publish(V311, 0x30, b"\x00\x01ahello").expect("well formed");
        assert_eq!((read.qos, read.packet_id), (0, 0));
        assert_eq!(&read.message.payload[..], b"hello");
        for (first, body) in [(0x36, &b"\x00\x01a\x00\x01"[..]), (0x32, b"\x00\x01a\x00\x00")] {
            assert!(publish(V311, first, body).is_err());
        }
    }

    #[test]
    fn a_suback_has_a_code_for_each_filter() {
        assert_eq!(suback(V311, &[0, 9, 1, 0x80]), Ok((9, vec![1, 0x80])));
        assert_eq!(suback(V5, &[0, 9, 0, 0x87]), Ok((9, vec![0x87])));
        for body in [&[0, 9, 0][..], &[0], &[0, 9, 5, 1]] {
            assert!(suback(V5, body).is_err());
        }
    }
}
