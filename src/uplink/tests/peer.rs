//! The broker's side of the wire: reads what the session writes, writes what a broker would.

use bytes::{BufMut, Bytes, BytesMut};
use rumqttc::mqttbytes::v4;
use rumqttc::v5::mqttbytes::v5;

use crate::uplink::Version;

/// A packet that the session wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seen {
    Connect(Connect),
    Publish(Publish),
    PubAck(u16),
    PingReq,
    /// Packet id and filters, each asked for at QoS 1.
    Subscribe(u16, Vec<String>),
    Disconnect(u8),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Connect {
    pub(super) version: Version,
    pub(super) client_id: String,
    pub(super) keepalive_s: u16,
    pub(super) clean: bool,
    pub(super) will: (String, Bytes, bool),
    pub(super) login: Option<(String, String)>,
    pub(super) session_expiry_s: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Publish {
    pub(super) packet_id: u16,
    pub(super) dup: bool,
    pub(super) retain: bool,
    pub(super) topic: String,
    pub(super) payload: Bytes,
    pub(super) content_type: Option<String>,
}

impl Publish {
    /// The token in the payload; none in a presence message.
    pub(super) fn token(&self) -> Option<u64> {
        let head = self.payload.get(..8)?.try_into().ok()?;
        (!self.retain).then(|| u64::from_be_bytes(head))
    }
}

/// Reads one connection's worth of the session's bytes, cut anywhere.
#[derive(Debug, Default)]
pub(super) struct Reader {
    version: Option<Version>,
    rx: BytesMut,
}

impl Reader {
    pub(super) fn read(&mut self, bytes: &[u8]) -> Vec<Seen> {
        self.rx.extend_from_slice(bytes);
        let mut seen = Vec::new();
        while let Some(frame_len) = whole_frame(&self.rx) {
            if self.version.is_none() {
                assert_eq!(self.rx[0] >> 4, 1, "the first packet is CONNECT");
                let header = frame_len - remaining(&self.rx).expect("whole").1;
                self.version = Some(match self.rx[header + 6] {
                    4 => Version::V311,
                    5 => Version::V5,
                    other => panic!("protocol level {other}"),
                });
            }
            let mut frame = self.rx.split_to(frame_len);
            seen.push(match self.version {
                Some(Version::V5) => read_v5(&mut frame),
                _ => read_v4(&mut frame),
            });
        }
        seen
    }

    pub(super) fn version(&self) -> Version {
        self.version.expect("CONNECT was read")
    }
}

fn remaining(rx: &[u8]) -> Option<(usize, usize)> {
    let mut len = 0;
    for at in 1..5 {
        let byte = *rx.get(at)?;
        len |= usize::from(byte & 0x7f) << (7 * (at - 1));
        if byte & 0x80 == 0 {
            return Some((at + 1, len));
        }
    }
    panic!("remaining length of five bytes");
}

fn whole_frame(rx: &[u8]) -> Option<usize> {
    let (header, len) = remaining(rx)?;
    (rx.len() >= header + len).then_some(header + len)
}

fn read_v4(frame: &mut BytesMut) -> Seen {
    let len = frame.len();
    match v4::Packet::read(frame, len).expect("the session writes whole 3.1.1 packets") {
        v4::Packet::Connect(c) => {
            let will = c.last_will.expect("a will");
            Seen::Connect(Connect {
                version: Version::V311,
                client_id: c.client_id,
                keepalive_s: c.keep_alive,
                clean: c.clean_session,
                will: (will.topic, will.message, will.retain),
                login: c.login.map(|l| (l.username, l.password)),
                session_expiry_s: None,
            })
        }
        v4::Packet::Publish(p) => {
            assert_eq!(p.qos, rumqttc::mqttbytes::QoS::AtLeastOnce);
            Seen::Publish(Publish {
                packet_id: p.pkid,
                dup: p.dup,
                retain: p.retain,
                topic: p.topic,
                payload: p.payload,
                content_type: None,
            })
        }
        v4::Packet::PubAck(a) => Seen::PubAck(a.pkid),
        v4::Packet::Subscribe(s) => {
            assert!(s.filters.iter().all(|f| f.qos == rumqttc::mqttbytes::QoS::AtLeastOnce));
            Seen::Subscribe(s.pkid, s.filters.into_iter().map(|f| f.path).collect())
        }
        v4::Packet::PingReq => Seen::PingReq,
        v4::Packet::Disconnect => Seen::Disconnect(0),
        other => panic!("a client must not send {other:?}"),
    }
}

fn read_v5(frame: &mut BytesMut) -> Seen {
    if frame[0] == 0xe0 {
        return Seen::Disconnect(frame.get(2).copied().unwrap_or(0));
    }
    match v5::Packet::read(frame, None).expect("the session writes whole MQTT 5 packets") {
        v5::Packet::Connect(c, will, login) => {
            let will = will.expect("a will");
            let topic = String::from_utf8(will.topic.to_vec()).expect("UTF-8");
            Seen::Connect(Connect {
                version: Version::V5,
                client_id: c.client_id,
                keepalive_s: c.keep_alive,
                clean: c.clean_start,
                will: (topic, will.message, will.retain),
                login: login.map(|l| (l.username, l.password)),
                session_expiry_s: c.properties.and_then(|p| p.session_expiry_interval),
            })
        }
        v5::Packet::Publish(p) => {
            assert_eq!(p.qos, rumqttc::v5::mqttbytes::QoS::AtLeastOnce);
            Seen::Publish(Publish {
                packet_id: p.pkid,
                dup: p.dup,
                retain: p.retain,
                topic: String::from_utf8(p.topic.to_vec()).expect("UTF-8"),
                payload: p.payload,
                content_type: p.properties.and_then(|p| p.content_type),
            })
        }
        v5::Packet::PubAck(a) => Seen::PubAck(a.pkid),
        v5::Packet::Subscribe(s) => {
            assert!(s.filters.iter().all(|f| f.qos == rumqttc::v5::mqttbytes::QoS::AtLeastOnce));
            Seen::Subscribe(s.pkid, s.filters.into_iter().map(|f| f.path).collect())
        }
        v5::Packet::PingReq(_) => Seen::PingReq,
        other => panic!("a client must not send {other:?}"),
    }
}

/// What a CONNACK grants, MQTT 5 only.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Grants {
    pub(super) receive_max: Option<u16>,
    pub(super) max_packet: Option<u32>,
    pub(super) server_keepalive_s: Option<u16>,
    pub(super) max_qos: Option<u8>,
}

/// CONNACK that accepts.
pub(super) fn connack(version: Version, session_present: bool, grants: Grants) -> BytesMut {
    let mut out = BytesMut::new();
    match version {
        Version::V311 => {
            out.put_slice(&[0x20, 2, u8::from(session_present), 0]);
        }
        Version::V5 => {
            let packet = v5::ConnAck {
                session_present,
                code: v5::ConnectReturnCode::Success,
                properties: Some(v5::ConnAckProperties {
                    session_expiry_interval: None,
                    receive_max: grants.receive_max,
                    max_qos: grants.max_qos,
                    retain_available: None,
                    max_packet_size: grants.max_packet,
                    assigned_client_identifier: None,
                    topic_alias_max: None,
                    reason_string: None,
                    user_properties: Vec::new(),
                    wildcard_subscription_available: None,
                    subscription_identifiers_available: None,
                    shared_subscription_available: None,
                    server_keep_alive: grants.server_keepalive_s,
                    response_information: None,
                    server_reference: None,
                    authentication_method: None,
                    authentication_data: None,
                }),
            };
            packet.write(&mut out).expect("CONNACK");
        }
    }
    out
}

/// PUBACK; the code is left out where the version has none.
pub(super) fn puback(version: Version, packet_id: u16, code: u8) -> BytesMut {
    let mut out = BytesMut::new();
    match (version, code) {
        (Version::V311, _) | (_, 0) => out.put_slice(&[0x40, 2]),
        _ => out.put_slice(&[0x40, 3]),
    }
    out.put_u16(packet_id);
    if version == Version::V5 && code != 0 {
        out.put_u8(code);
    }
    out
}

/// SUBACK with these codes.
pub(super) fn suback(version: Version, packet_id: u16, codes: &[u8]) -> BytesMut {
    let mut out = BytesMut::new();
    let properties = usize::from(version == Version::V5);
    out.put_slice(&[0x90, (2 + properties + codes.len()) as u8]);
    out.put_u16(packet_id);
    out.put_bytes(0, properties);
    out.put_slice(codes);
    out
}

/// PUBLISH to the client, as from a subscription of an earlier life.
pub(super) fn publish(version: Version, qos: u8, packet_id: u16) -> BytesMut {
    let mut body = BytesMut::new();
    body.put_slice(b"\x00\x03a/b");
    if qos > 0 {
        body.put_u16(packet_id);
    }
    if version == Version::V5 {
        body.put_u8(0);
    }
    body.put_slice(b"hello");
    let mut out = BytesMut::new();
    out.put_u8(0x30 | qos << 1);
    out.put_u8(body.len() as u8);
    out.put_slice(&body);
    out
}
