//! Packets to bytes and back, over rumqttc's codecs, the same for both versions.
//!
//! Frames are cut here, not by `Packet::read`, and a few packets are read here too, because of what
//! the codecs (rumqttc 0.25.1) do otherwise:
//!
//! - `Packet::read` takes the frame out of the buffer before it looks inside, and a property length
//!   cut short inside a whole frame is reported as `InsufficientBytes`, the same as half a frame:
//!   whoever believes it waits for ever. Here only a frame that is whole is ever handed to it.
//! - v5 cannot read a DISCONNECT without a reason code (legal, "normal disconnection") nor one
//!   without properties, and writes one without properties a byte too long.
//! - v5 cannot read the CONNACK of a broker that only speaks 3.1.1, the very answer that says
//!   "unsupported version"; v4 takes an unknown return code for a broken packet.
//! - A user name or password that is empty is left out with its flag, and a password must be UTF-8:
//!   the login is appended to CONNECT here.
//! - Strings over 65535 bytes are written with their length cut to 16 bits: lengths are checked first.
//! - After a subscription identifier, v5 miscounts the properties of a PUBLISH: `receive` reads it.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use rumqttc::mqttbytes::v4;
use rumqttc::v5::mqttbytes::v5;

use super::receive::{self, DELIVERIES_MAX, Publish};
use super::{Outgoing, Refusal, Settings, Version};

/// Fixed header: a type byte and one to four bytes of remaining length.
const HEADER_MAX: usize = 5;

/// Whether a PUBLISH may name this topic (MQTT 5 §4.7).
pub(super) fn valid_topic(topic: &str) -> bool {
    !topic.is_empty()
        && topic.len() <= usize::from(u16::MAX)
        && !topic.bytes().any(|byte| matches!(byte, b'+' | b'#' | 0))
}

/// What came from the broker, as far as the session needs it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Incoming {
    ConnAck(ConnAck),
    /// `code` is 0 in MQTT 3.1.1, which knows no other.
    PubAck {
        packet_id: u16,
        code: u8,
        text: Option<String>,
    },
    Publish(Publish),
    /// One code for each filter.
    SubAck {
        packet_id: u16,
        codes: Vec<u8>,
    },
    PingResp,
    Disconnect {
        code: u8,
        text: Option<String>,
    },
    /// Nothing that a broker may send to us.
    Unexpected(&'static str),
}

/// CONNACK of either version.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ConnAck {
    Accepted(Accepted),
    /// The broker does not speak this version.
    VersionRefused,
    /// Refused for another reason: one line that says what to do.
    Refused(String),
}

/// What an accepting CONNACK grants.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Accepted {
    pub(super) session_present: bool,
    pub(super) receive_maximum: u16,
    pub(super) max_packet_bytes: Option<u32>,
    pub(super) server_keepalive_s: Option<u16>,
}

/// Takes the next whole packet out of `rx`; `None` while it is not all there.
///
/// # Errors
/// A line about what is wrong; the connection cannot go on.
pub(super) fn decode(
    version: Version,
    rx: &mut BytesMut,
    max_bytes: usize,
) -> Result<Option<Incoming>, String> {
    let Some((header, remaining)) = frame(rx)? else { return Ok(None) };
    if header + remaining > max_bytes {
        return Err(format!(
            "packet of {} bytes is over our limit of {max_bytes}",
            header + remaining
        ));
    }
    if rx.len() < header + remaining {
        rx.reserve(header + remaining - rx.len());
        return Ok(None);
    }
    // The one packet that comes for every event; without a reason it means success in both versions.
    if let [0x40, 2, high, low, ..] = rx[..] {
        rx.advance(4);
        let packet_id = u16::from_be_bytes([high, low]);
        return Ok(Some(Incoming::PubAck { packet_id, code: 0, text: None }));
    }
    let frame = rx.split_to(header + remaining);
    let (first, body) = (frame[0], &frame[header..]);
    match (first >> 4, body.len()) {
        (2, 2) => connack_plain(version, body[0], body[1]).map(Some),
        (3, _) => receive::publish(version, first, body).map(|p| Some(Incoming::Publish(p))),
        (9, _) => receive::suback(version, body)
            .map(|(packet_id, codes)| Some(Incoming::SubAck { packet_id, codes })),
        (13, 0) => Ok(Some(Incoming::PingResp)),
        (14, 0) => Ok(Some(Incoming::Disconnect { code: 0, text: None })),
        (14, 1) => Ok(Some(Incoming::Disconnect { code: body[0], text: None })),
        (kind, _) => match version {
            Version::V311 => decode_v4(kind, frame),
            Version::V5 => decode_v5(kind, frame),
        }
        .map(Some),
    }
}

/// Header length and remaining length, once they are there.
fn frame(rx: &[u8]) -> Result<Option<(usize, usize)>, String> {
    let mut remaining = 0;
    for at in 1..HEADER_MAX {
        let Some(byte) = rx.get(at) else { return Ok(None) };
        remaining |= usize::from(byte & 0x7f) << (7 * (at - 1));
        if byte & 0x80 == 0 {
            return Ok(Some((at + 1, remaining)));
        }
    }
    Err("remaining length of more than four bytes".into())
}

/// A CONNACK of two bytes: 3.1.1, or the answer to MQTT 5 of a broker that only knows 3.1.1.
fn connack_plain(version: Version, flags: u8, code: u8) -> Result<Incoming, String> {
    let answer = match code {
        _ if version == Version::V5 => ConnAck::VersionRefused,
        0 => ConnAck::Accepted(Accepted {
            session_present: flags & 1 == 1,
            receive_maximum: u16::MAX,
            max_packet_bytes: None,
            server_keepalive_s: None,
        }),
        1 | 0x84 => ConnAck::VersionRefused,
        2 => ConnAck::Refused(refusal_text(0x85, None)),
        3 => ConnAck::Refused(refusal_text(0x88, None)),
        4 => ConnAck::Refused(refusal_text(0x86, None)),
        5 => ConnAck::Refused(refusal_text(0x87, None)),
        other => ConnAck::Refused(refusal_text(other, None)),
    };
    Ok(Incoming::ConnAck(answer))
}

fn decode_v4(kind: u8, mut frame: BytesMut) -> Result<Incoming, String> {
    let all = frame.len();
    let packet = v4::Packet::read(&mut frame, all).map_err(|e| broken(kind, &e))?;
    Ok(match packet {
        v4::Packet::PubAck(ack) => Incoming::PubAck { packet_id: ack.pkid, code: 0, text: None },
        _ => Incoming::Unexpected(kind_name(kind)),
    })
}

fn decode_v5(kind: u8, mut frame: BytesMut) -> Result<Incoming, String> {
    let packet = v5::Packet::read(&mut frame, None).map_err(|e| broken(kind, &e))?;
    Ok(match packet {
        v5::Packet::ConnAck(ack) => Incoming::ConnAck(connack_v5(ack)?),
        v5::Packet::PubAck(ack) => Incoming::PubAck {
            packet_id: ack.pkid,
            code: puback_code(ack.reason),
            text: ack.properties.and_then(|p| p.reason_string),
        },
        v5::Packet::Disconnect(bye) => Incoming::Disconnect {
            code: bye.reason_code as u8,
            text: bye.properties.and_then(|p| p.reason_string),
        },
        _ => Incoming::Unexpected(kind_name(kind)),
    })
}

fn broken(kind: u8, error: &dyn std::error::Error) -> String {
    format!("malformed {}: {error}", kind_name(kind))
}

fn kind_name(kind: u8) -> &'static str {
    const NAMES: [&str; 16] = [
        "packet type 0",
        "CONNECT",
        "CONNACK",
        "PUBLISH",
        "PUBACK",
        "PUBREC",
        "PUBREL",
        "PUBCOMP",
        "SUBSCRIBE",
        "SUBACK",
        "UNSUBSCRIBE",
        "UNSUBACK",
        "PINGREQ",
        "PINGRESP",
        "DISCONNECT",
        "AUTH",
    ];
    NAMES[usize::from(kind & 15)]
}

fn connack_v5(ack: v5::ConnAck) -> Result<ConnAck, String> {
    use v5::ConnectReturnCode as Code;
    let properties = ack.properties.as_ref();
    let text = properties.and_then(|p| p.reason_string.as_deref());
    let reason = match ack.code {
        Code::Success => {
            let receive_maximum = properties.and_then(|p| p.receive_max).unwrap_or(u16::MAX);
            let max_packet_bytes = properties.and_then(|p| p.max_packet_size);
            if receive_maximum == 0 || max_packet_bytes == Some(0) {
                return Err("CONNACK with Receive Maximum or Maximum Packet Size 0".into());
            }
            if properties.and_then(|p| p.max_qos) == Some(0) {
                return Ok(ConnAck::Refused(refusal_text(0x9b, text)));
            }
            return Ok(ConnAck::Accepted(Accepted {
                session_present: ack.session_present,
                receive_maximum,
                max_packet_bytes,
                server_keepalive_s: properties.and_then(|p| p.server_keep_alive),
            }));
        }
        Code::UnsupportedProtocolVersion | Code::RefusedProtocolVersion => {
            return Ok(ConnAck::VersionRefused);
        }
        Code::ClientIdentifierNotValid | Code::BadClientId => 0x85,
        Code::BadUserNamePassword => 0x86,
        Code::NotAuthorized => 0x87,
        Code::ServerUnavailable | Code::ServiceUnavailable => 0x88,
        Code::ServerBusy => 0x89,
        Code::Banned => 0x8a,
        Code::PacketTooLarge => 0x95,
        Code::QuotaExceeded => 0x97,
        Code::RetainNotSupported => 0x9a,
        Code::QoSNotSupported => 0x9b,
        Code::UseAnotherServer => 0x9c,
        Code::ServerMoved => 0x9d,
        Code::ConnectionRateExceeded => 0x9f,
        other => {
            return Ok(ConnAck::Refused(told(&format!("{other:?}: see the broker's log"), text)));
        }
    };
    Ok(ConnAck::Refused(refusal_text(reason, text)))
}

/// What a refused CONNECT means, by its MQTT 5 reason code, and what to do about it.
fn refusal_text(code: u8, text: Option<&str>) -> String {
    let what = match code {
        0x85 => "client id not accepted: check [device] id and the broker's rules for client ids",
        0x86 => "bad user name or password: check [uplink] username and password_file",
        0x87 => {
            "not authorized: check [uplink] username and password_file, and the broker's \
             access rules for this client id and its presence topic"
        }
        0x88 => "broker unavailable: it answers but serves nobody now",
        0x89 => "broker busy",
        0x8a => "client banned: the broker's administrator has to let this client in",
        0x95 => "CONNECT too large for the broker: shorten the presence payload",
        0x97 => "quota exceeded: the broker limits this client",
        0x9a => "broker keeps no retained messages: presence needs them",
        0x9b => "broker takes QoS 0 only: an event cannot be acknowledged there",
        0x9c | 0x9d => "broker sends us to another server: change [uplink] url",
        0x9f => "too many connections for the broker's taste",
        other => return told(&format!("reason 0x{other:02x}: see the broker's log"), text),
    };
    told(what, text)
}

fn told(what: &str, text: Option<&str>) -> String {
    match text {
        Some(text) => format!("{what} (broker says {text:?})"),
        None => what.to_owned(),
    }
}

fn puback_code(reason: v5::PubAckReason) -> u8 {
    use v5::PubAckReason as R;
    match reason {
        R::Success => 0x00,
        R::NoMatchingSubscribers => 0x10,
        R::UnspecifiedError => 0x80,
        R::ImplementationSpecificError => 0x83,
        R::NotAuthorized => 0x87,
        R::TopicNameInvalid => 0x90,
        R::PacketIdentifierInUse => 0x91,
        R::QuotaExceeded => 0x97,
        R::PayloadFormatInvalid => 0x99,
    }
}

/// What a negative PUBACK means and what to do about it.
pub(super) fn puback_refusal(code: u8, text: Option<&str>) -> Refusal {
    let what = match code {
        0x87 => "not authorized: the broker's access rules do not let this client publish there",
        0x90 => "topic name not accepted: check the topic template",
        0x91 => "packet id still in use",
        0x97 => "quota exceeded",
        0x99 => "payload format invalid",
        _ => "no reason given: see the broker's log",
    };
    Refusal::Broker { code, text: told(what, text) }
}

/// DISCONNECT: another client connected with our client id.
pub(super) const TAKEN_OVER: u8 = 0x8e;

/// Why the broker said DISCONNECT.
pub(super) fn disconnect_text(code: u8, text: Option<&str>) -> String {
    let what = match code {
        0x00 => "normal disconnection",
        0x87 => "not authorized any more",
        0x89 => "broker busy",
        0x8b => "broker shutting down",
        0x8d => "broker heard nothing from us for too long",
        0x8e => {
            "session taken over: another client connected with our client id; give each device its own"
        }
        0x93 => "receive maximum exceeded",
        0x95 => "packet too large",
        0x97 => "quota exceeded",
        0x98 => "administrator's action",
        0x9c | 0x9d => "broker sends us to another server: change [uplink] url",
        other => return told(&format!("reason 0x{other:02x}"), text),
    };
    told(what, text)
}

/// CONNECT: session kept, will on the presence topic.
///
/// # Errors
/// A line about what the codec refuses; valid settings give none.
pub(super) fn connect(
    version: Version,
    settings: &Settings,
    tx: &mut BytesMut,
) -> Result<(), String> {
    let presence = &settings.presence;
    let mut plain = BytesMut::new();
    let written = match version {
        Version::V311 => {
            let mut connect = v4::Connect::new(settings.client_id.clone());
            connect.keep_alive = settings.keepalive_s();
            connect.clean_session = false;
            connect.last_will = Some(v4::LastWill {
                topic: presence.topic.to_string(),
                message: presence.will.clone(),
                qos: rumqttc::mqttbytes::QoS::AtLeastOnce,
                retain: true,
            });
            connect.write(&mut plain).map_err(|e| e.to_string())
        }
        Version::V5 => {
            let mut properties = v5::ConnectProperties::new();
            properties.session_expiry_interval = Some(settings.session_expiry_s());
            properties.max_packet_size = Some(settings.max_packet_bytes);
            properties.receive_maximum = Some(DELIVERIES_MAX as u16);
            let connect = v5::Connect {
                keep_alive: settings.keepalive_s(),
                client_id: settings.client_id.clone(),
                clean_start: false,
                properties: Some(properties),
            };
            let will = v5::LastWill {
                topic: Bytes::copy_from_slice(presence.topic.as_bytes()),
                message: presence.will.clone(),
                qos: rumqttc::v5::mqttbytes::QoS::AtLeastOnce,
                retain: true,
                properties: None,
            };
            connect.write(&Some(will), &None, &mut plain).map_err(|e| e.to_string())
        }
    };
    written?;
    append_login(settings, plain, tx)
}

/// Writes CONNECT anew with user name and password behind its other fields, where they belong.
fn append_login(settings: &Settings, mut plain: BytesMut, tx: &mut BytesMut) -> Result<(), String> {
    /// "MQTT" with its length, then the version; the flags stand behind.
    const FLAGS_AT: usize = 7;
    let Some(login) = &settings.credentials else {
        tx.unsplit(plain);
        return Ok(());
    };
    let (header, _) = frame(&plain)?.ok_or("CONNECT without a header")?;
    let first = plain[0];
    plain.advance(header);
    plain[FLAGS_AT] |= 0b1100_0000;
    for field in [login.username.as_bytes(), &login.password] {
        plain.put_u16(u16::try_from(field.len()).map_err(|_| "login over 65535 bytes")?);
        plain.put_slice(field);
    }
    tx.put_u8(first);
    put_remaining(plain.len(), tx);
    tx.put_slice(&plain);
    Ok(())
}

/// Writes a remaining length.
pub(super) fn put_remaining(mut remaining: usize, tx: &mut BytesMut) {
    while remaining > 0x7f {
        tx.put_u8(0x80 | (remaining & 0x7f) as u8);
        remaining >>= 7;
    }
    tx.put_u8(remaining as u8);
}

/// How a PUBLISH goes out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    pub(super) packet_id: u16,
    pub(super) dup: bool,
    pub(super) retain: bool,
}

/// PUBLISH at QoS 1; nothing is written when it is refused.
pub(super) fn publish_packet(
    version: Version,
    header: Header,
    outgoing: &Outgoing,
    limit: usize,
    tx: &mut BytesMut,
) -> Result<(), Refusal> {
    debug_assert_ne!(header.packet_id, 0, "a packet id is never 0");
    if !valid_topic(&outgoing.topic) {
        return Err(Refusal::InvalidTopic);
    }
    let binary = outgoing.binary.as_deref().filter(|_| version == Version::V5);
    let content_type = match binary {
        Some(binary) => binary.content_type.as_deref(),
        None => outgoing.content_type.as_deref(),
    };
    let fits = |text: &str| text.len() <= usize::from(u16::MAX);
    if !content_type.is_none_or(fits) {
        return Err(Refusal::InvalidContentType);
    }
    let user_properties = binary.map_or(&[][..], |b| &b.user_properties);
    if !user_properties.iter().all(|(name, value)| fits(name) && fits(value)) {
        return Err(Refusal::InvalidProperty);
    }
    let too_large = |bytes| Refusal::TooLarge { bytes, limit };
    match version {
        Version::V311 => {
            let packet = v4::Publish {
                dup: header.dup,
                qos: rumqttc::mqttbytes::QoS::AtLeastOnce,
                retain: header.retain,
                topic: outgoing.topic.to_string(),
                pkid: header.packet_id,
                payload: outgoing.payload.clone(),
            };
            let bytes = packet.size();
            if bytes > limit || packet.write(tx).is_err() {
                return Err(too_large(bytes));
            }
        }
        Version::V5 => {
            let plain = content_type.is_none() && binary.is_none() && outgoing.expiry_s.is_none();
            let properties = (!plain).then(|| v5::PublishProperties {
                content_type: content_type.map(str::to_owned),
                message_expiry_interval: outgoing.expiry_s,
                user_properties: user_properties.to_vec(),
                ..Default::default()
            });
            let packet = v5::Publish {
                dup: header.dup,
                qos: rumqttc::v5::mqttbytes::QoS::AtLeastOnce,
                retain: header.retain,
                topic: Bytes::copy_from_slice(outgoing.topic.as_bytes()),
                pkid: header.packet_id,
                payload: binary.map_or(&outgoing.payload, |b| &b.payload).clone(),
                properties,
            };
            let bytes = packet.size();
            if bytes > limit || packet.write(tx).is_err() {
                return Err(too_large(bytes));
            }
        }
    }
    Ok(())
}

/// PUBACK, success; the same bytes in both versions.
pub(super) fn puback(packet_id: u16, tx: &mut BytesMut) {
    tx.put_slice(&[0x40, 2]);
    tx.put_u16(packet_id);
}

/// PINGREQ; the same bytes in both versions.
pub(super) fn pingreq(tx: &mut BytesMut) {
    tx.put_slice(&[0xc0, 0]);
}

/// DISCONNECT. MQTT 3.1.1 has no reason codes and no DISCONNECT that keeps the will: there, only
/// the normal one is written.
pub(super) fn disconnect(version: Version, code: u8, tx: &mut BytesMut) {
    match (version, code) {
        (_, 0) => tx.put_slice(&[0xe0, 0]),
        (Version::V5, code) => tx.put_slice(&[0xe0, 1, code]),
        (Version::V311, _) => {}
    }
}
