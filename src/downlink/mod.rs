//! Cloud → device: what comes on the topics that the device subscribes to.
//!
//! Terms: a *receipt* is the consumer's word that it has certain events; the forwarder removes what a
//! lane keeps until then (`confirm = "receipt"`). A *command* asks the device for something
//! ([`decode_command`]).
//!
//! How it works: a message is a CloudEvent, in structured or (MQTT 5) in binary mode. [`decode`] reads,
//! checks and bounds it; what is wrong with it is one line for the log. A message that cannot be read is
//! acknowledged all the same: it would be as wrong the next time.
//!
//! Source: `docs/uplink.md` describes the topics for the people on the other side.

mod command;

use std::sync::Arc;

use crate::event::{Data, EventError, Lane, UnknownLane, Value, mqtt};
use crate::uplink::Received;

pub use command::{
    COMMANDS, Command, DONE_MAX, DONE_MEMO, Done, Rejection, commands_topic, decode_command,
};

/// The type of a receipt, without or behind any prefix.
pub const RECEIPT_TYPE: &str = "receipt.events.received";
/// Ids in one receipt at most.
pub const RECEIPT_IDS_MAX: usize = 1000;
/// Bytes of one message at most: a receipt of that many UUIDs fits.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// The topic on which receipts come.
pub fn receipts_topic(device: &str) -> Arc<str> {
    format!("hark/{device}/receipts").into()
}

/// A consumer says that it has these events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// Their lane.
    pub lane: Lane,
    /// Their source. `None`: whichever source has such an id in the lane.
    pub source: Option<String>,
    /// Their ids.
    pub ids: Vec<String>,
    /// Who says so: the receipt's own `source`.
    pub by: String,
    /// The receipt's own `id`.
    pub id: String,
    /// When, by the consumer's clock.
    pub time: Option<String>,
}

/// Why a message from the cloud cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DownlinkError {
    /// More than [`MESSAGE_BYTES_MAX`].
    #[error("message on {topic} has {bytes} bytes, over the limit of {MESSAGE_BYTES_MAX}")]
    TooLarge {
        /// Where it came.
        topic: String,
        /// Its payload.
        bytes: usize,
    },
    /// No CloudEvent.
    #[error("message on {topic} is no CloudEvent: {problem}")]
    NoEvent {
        /// Where it came.
        topic: String,
        /// What is wrong.
        problem: EventError,
    },
    /// A CloudEvent of another type.
    #[error(
        "message on {topic} has type {found}, which is not understood there; send {RECEIPT_TYPE}"
    )]
    Type {
        /// Where it came.
        topic: String,
        /// Its type.
        found: String,
    },
    /// Data of a receipt that is none.
    #[error("receipt {id}: {problem}")]
    Receipt {
        /// The event's id.
        id: String,
        /// What is wrong and what would be right.
        problem: String,
    },
}

#[derive(serde::Deserialize)]
struct ReceiptData {
    lane: String,
    #[serde(default)]
    source: Option<String>,
    ids: Vec<String>,
}

/// Reads a receipt.
///
/// # Errors
/// It is too large, no CloudEvent, of another type, or its data are not `{"lane": …, "ids": […]}`.
pub fn decode(message: &Received) -> Result<Receipt, DownlinkError> {
    let topic = || message.topic.clone();
    let bytes = message.payload.len();
    if bytes > MESSAGE_BYTES_MAX {
        return Err(DownlinkError::TooLarge { topic: topic(), bytes });
    }
    let content_type = message.content_type.as_deref();
    let event = mqtt::parse(content_type, &message.user_properties, &message.payload)
        .map_err(|problem| DownlinkError::NoEvent { topic: topic(), problem })?;
    let prefix = event.event_type().strip_suffix(RECEIPT_TYPE);
    if !prefix.is_some_and(|prefix| prefix.is_empty() || prefix.ends_with('.')) {
        let found = event.event_type().to_owned();
        return Err(DownlinkError::Type { topic: topic(), found });
    }
    let wrong = |problem: String| DownlinkError::Receipt { id: event.id().to_owned(), problem };
    let Data::Json(raw) = event.data() else {
        return Err(wrong("has no JSON data; send {\"lane\": \"alert\", \"ids\": [\"…\"]}".into()));
    };
    let data: ReceiptData = serde_json::from_slice(raw).map_err(|e| wrong(e.to_string()))?;
    let lane = data.lane.parse().map_err(|e: UnknownLane| wrong(e.to_string()))?;
    match data.ids.len() {
        1..=RECEIPT_IDS_MAX => Ok(Receipt {
            lane,
            source: data.source,
            ids: data.ids,
            by: event.source().to_owned(),
            id: event.id().to_owned(),
            time: event.attribute("time").and_then(Value::as_str).map(str::to_owned),
        }),
        other => Err(wrong(format!("names {other} ids; 1 to {RECEIPT_IDS_MAX}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(event_type: &str, data: &str) -> Received {
        let payload = format!(
            r#"{{"specversion":"1.0","id":"r1","source":"/consumer","type":"{event_type}","data":{data}}}"#
        );
        Received {
            topic: "hark/d/receipts".into(),
            payload: payload.into(),
            content_type: Some("application/cloudevents+json".into()),
            user_properties: Vec::new(),
            retained: false,
        }
    }

    #[test]
    fn a_receipt_is_read_with_and_without_a_prefix_and_a_source() {
        let data = r#"{"lane":"alert","ids":["a","b"]}"#;
        for event_type in ["receipt.events.received", "com.example.receipt.events.received"] {
            let receipt = decode(&message(event_type, data)).expect("a receipt");
            let ids = vec!["a".to_owned(), "b".to_owned()];
            let (by, id) = ("/consumer".to_owned(), "r1".to_owned());
            let expected = Receipt { lane: Lane::Alert, source: None, ids, by, id, time: None };
            assert_eq!(receipt, expected);
        }
        let data = r#"{"lane":"status","ids":["a"],"source":"/s","later":1}"#;
        let receipt = decode(&message(RECEIPT_TYPE, data)).expect("a receipt");
        assert_eq!((receipt.lane, receipt.source.as_deref()), (Lane::Status, Some("/s")));
    }

    #[test]
    fn a_receipt_in_binary_mode_is_the_same() {
        let property = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let mut binary = message("x", "1");
        binary.payload = r#"{"lane":"alert","ids":["a"]}"#.into();
        binary.content_type = Some("application/json".into());
        binary.user_properties = vec![
            property("specversion", "1.0"),
            property("id", "r1"),
            property("source", "/c"),
            property("type", RECEIPT_TYPE),
        ];
        assert_eq!(decode(&binary).expect("a receipt").ids, ["a"]);
    }

    #[test]
    fn what_is_no_receipt_is_refused_with_one_line_that_says_why() {
        let many =
            format!(r#"{{"lane":"alert","ids":[{}"x"]}}"#, r#""x","#.repeat(RECEIPT_IDS_MAX));
        let mut huge = message(RECEIPT_TYPE, "1");
        huge.payload = vec![b' '; MESSAGE_BYTES_MAX + 1].into();
        let mut garbage = message(RECEIPT_TYPE, "1");
        garbage.payload = b"\xff{"[..].into();
        let table = [
            (huge, "over the limit"),
            (garbage, "is no CloudEvent"),
            (message("notreceipt.events.received", "1"), "which is not understood there"),
            (message(RECEIPT_TYPE, r#"{"lane":"urgent","ids":["a"]}"#), "no lane"),
            (message(RECEIPT_TYPE, r#"{"lane":"alert","ids":[]}"#), "names 0 ids"),
            (message(RECEIPT_TYPE, r#"{"lane":"alert"}"#), "missing field `ids`"),
            (message(RECEIPT_TYPE, r#"{"lane":"alert","ids":"a"}"#), "expected a sequence"),
            (message(RECEIPT_TYPE, &many), "names 1001 ids"),
        ];
        for (message, expected) in table {
            let error = decode(&message).expect_err(expected).to_string();
            assert!(error.contains(expected) && !error.contains('\n'), "{expected}: {error}");
        }
    }
}
