//! From the CloudEvents SDK's event to ours: the agent's own events are built with the SDK.

use cloudevents::AttributesReader;
use cloudevents::event::AttributeValue;

use super::{Data, Event, EventError, Value};

impl TryFrom<cloudevents::Event> for Event {
    type Error = EventError;

    /// Times are written with milliseconds in UTC, JSON data compactly.
    fn try_from(theirs: cloudevents::Event) -> Result<Self, EventError> {
        let specversion = theirs.specversion().to_string();
        let mut attributes = std::collections::BTreeMap::new();
        for (name, value) in theirs.iter() {
            let value = match value {
                AttributeValue::Time(time) => {
                    Value::String(time.to_rfc3339_opts(chrono::SecondsFormat::Millis, true))
                }
                AttributeValue::Boolean(value) => Value::Boolean(*value),
                AttributeValue::Integer(value) => Value::Integer(
                    i32::try_from(*value)
                        .map_err(|_| EventError::new(name, "must be a whole number of 32 bits"))?,
                ),
                other => Value::String(other.to_string()),
            };
            attributes.insert(name.into(), value);
        }
        attributes.insert("specversion".into(), Value::String(specversion));
        let data = match theirs.data() {
            None => Data::Absent,
            Some(cloudevents::Data::Json(json)) => Data::Json(json.to_string().into_bytes()),
            Some(other) => {
                let problem = format!("is {other:?}, not JSON: the agent's own events carry JSON");
                return Err(EventError::new("data", problem));
            }
        };
        Self::new(attributes, data)
    }
}
