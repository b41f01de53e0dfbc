//! The JSON Schema of the configuration, for editors and for whoever generates files.
//!
//! It is made by reading: each [`Section`](super::reader::Section) notes what it is asked for, with the
//! type, the words or the bounds that it is about to check. [`SAMPLE`] has one of each table that an empty
//! file does not have, so that all of them are asked for. There is no second list to keep in step.
//!
//! Absent: what a schema cannot say, such as that a setting needs another one; `hark config check` does.
//!
//! Source: JSON Schema 2020-12.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::reader::Setting;

/// Stands in a place for any table of an array.
pub(super) const EACH: &str = "*";

/// One of each table that an array may have, and of each form of it.
const SAMPLE: &str = r#"
[[alarm.contact]]
[[ingest.route]]
[[button]]
name = "gpio"
gpio = {}
[[button]]
name = "evdev"
evdev = {}
[[sensor]]
name = "known"
driver = "iio"
path = "in_temp_input"
interval = "100ms"
[[sensor.threshold]]
above = 1
[[sensor]]
name = "unknown"
driver = "file"
interval = "100ms"
[[sensor]]
name = "battery"
driver = "power-supply"
quantity = "charge"
interval = "100ms"
[[sensor]]
name = "microphone"
driver = "microphone"
interval = "100ms"
"#;

/// What sections were asked for, by their place: names, and [`EACH`] for a table of an array.
#[derive(Debug, Default)]
pub(super) struct Shapes {
    tables: BTreeMap<Vec<String>, Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// How many tables were read at this place.
    seen: usize,
    keys: BTreeMap<&'static str, Key>,
}

#[derive(Debug)]
struct Key {
    schema: Value,
    /// In how many of them it had to be there.
    required: usize,
}

impl Shapes {
    /// Another table is read.
    pub(super) fn open(&mut self, place: &[String]) {
        self.tables.entry(place.to_vec()).or_default().seen += 1;
    }

    /// A key of it. Of several tables at one place the first says what it may hold.
    pub(super) fn note(
        &mut self,
        place: &[String],
        key: &'static str,
        schema: Value,
        required: bool,
    ) {
        let table = self.tables.entry(place.to_vec()).or_default();
        let known = table.keys.entry(key).or_insert(Key { schema, required: 0 });
        known.required += usize::from(required);
    }

    fn assemble(self, defaults: &[Setting]) -> Value {
        let mut root = object();
        root["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
        root["title"] = json!("hark.toml");
        for (place, Table { seen, keys }) in self.tables {
            let is_each = place.iter().any(|step| step == EACH);
            let table = place.iter().fold(&mut root, |at, step| inner(at, step));
            let required = keys.iter().filter(|(_, key)| key.required == seen);
            let required: Vec<_> = required.map(|(name, _)| *name).collect();
            if !required.is_empty() {
                table["required"] = json!(required);
            }
            for (name, Key { mut schema, .. }) in keys {
                let path = format!("{}.{name}", place.join("."));
                let default = defaults.iter().find(|setting| setting.key == path && !is_each);
                if let Some(default) = default.and_then(|setting| from_toml(&setting.value)) {
                    schema["default"] = default;
                }
                table["properties"][name] = schema;
            }
        }
        root
    }
}

fn object() -> Value {
    json!({ "type": "object", "additionalProperties": false, "properties": {} })
}

/// The schema of a table within `outer`, made if it is not there.
fn inner<'a>(outer: &'a mut Value, step: &str) -> &'a mut Value {
    if step == EACH {
        // What is inside an array stands under `items`, and the array itself was taken for a table.
        if outer["type"] == "object" {
            *outer = json!({ "type": "array", "items": object() });
        }
        return &mut outer["items"];
    }
    let table = &mut outer["properties"][step];
    if table.is_null() {
        *table = object();
    }
    table
}

fn from_toml(value: &str) -> Option<Value> {
    let mut table: Map<String, Value> = toml::from_str(&format!("value = {value}")).ok()?;
    table.remove("value")
}

/// The JSON Schema (2020-12) of the configuration.
pub fn schema() -> Value {
    let defaults = super::load("defaults", "", std::iter::empty());
    let defaults = defaults.map(|loaded| loaded.settings).unwrap_or_default();
    super::shapes(SAMPLE).assemble(&defaults)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether `value` is what `schema` allows; the words that are used above and no other.
    fn fits(schema: &Value, value: &Value) -> Result<(), String> {
        let wrong = || Err(format!("{value} is not {schema}"));
        if let Some(words) = schema["enum"].as_array() {
            return if words.contains(value) { Ok(()) } else { wrong() };
        }
        if let Some(any) = schema["anyOf"].as_array() {
            return if any.iter().any(|s| fits(s, value).is_ok()) { Ok(()) } else { wrong() };
        }
        let within = |number: f64| {
            schema["minimum"].as_f64().is_none_or(|least| number >= least)
                && schema["maximum"].as_f64().is_none_or(|most| number <= most)
        };
        match (schema["type"].as_str(), value) {
            (Some("object"), Value::Object(members)) => {
                for (name, member) in members {
                    let schema = schema["properties"].get(name);
                    fits(schema.ok_or_else(|| format!("{name} is unknown"))?, member)?;
                }
                let required = schema["required"].as_array().into_iter().flatten();
                let missing =
                    required.filter_map(Value::as_str).find(|r| !members.contains_key(*r));
                missing.map_or(Ok(()), |name| Err(format!("{name} is missing")))
            }
            (Some("array"), Value::Array(items)) => {
                items.iter().try_for_each(|item| fits(&schema["items"], item))
            }
            (Some("string"), Value::String(_)) | (Some("boolean"), Value::Bool(_)) => Ok(()),
            (Some("integer"), Value::Number(n)) if n.is_i64() && within(n.as_f64().unwrap()) => {
                Ok(())
            }
            (Some("number"), Value::Number(n)) if within(n.as_f64().unwrap()) => Ok(()),
            _ => wrong(),
        }
    }

    fn check(text: &str) -> Result<(), String> {
        fits(&schema(), &toml::from_str(text).unwrap())
    }

    #[test]
    fn what_is_well_fits_and_its_defaults_do() {
        let all = r#"
            [device]
            id = "bedroom-7"
            [voice]
            keyphrases = ["help", { text = "aiuto", phonemes = "a j u t o" }]
            threshold = 0.5
            [alarm]
            triggers = ["button"]
            rounds = 2
            [[alarm.contact]]
            name = "Anna"
            exec = ["/usr/bin/dial", "1"]
            [[button]]
            name = "red"
            gpio = { chip = "/dev/gpiochip0", line = 17, active = "low" }
            [lanes.alert]
            confirm = "receipt"
            [[ingest.route]]
            type = "com.example.*"
            alarm = true
            [[sensor]]
            name = "cold"
            driver = "iio"
            path = "/sys/x/in_temp_input"
            [[sensor.threshold]]
            below = 16
            hold = "10m"
        "#;
        super::super::load("all", all, std::iter::empty()).unwrap();
        check(all).unwrap();
        check("").unwrap();
        for (name, section) in schema()["properties"].as_object().unwrap() {
            for (key, of_key) in section["properties"].as_object().into_iter().flatten() {
                if let Some(default) = of_key.get("default") {
                    fits(of_key, default).unwrap_or_else(|e| panic!("{name}.{key}: {e}"));
                }
            }
        }
    }

    #[test]
    fn what_is_wrong_does_not_fit() {
        for (text, says) in [
            ("[uplink]\nurll = \"x\"", "urll is unknown"),
            ("[uplink]\nwindow = 0", "0 is not"),
            ("[uplink]\nprotocol = \"4\"", "\"4\" is not"),
            ("[alarm]\nrounds = \"3\"", "\"3\" is not"),
            ("[[sensor]]\nname = \"a\"", "driver is missing"),
            ("[[button]]\nname = \"a\"\ngpio = { chip = 3 }", "3 is not"),
            ("[sensor]\nname = \"a\"", "is not"),
        ] {
            let error = check(text).expect_err(text);
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn every_setting_of_the_reference_is_in_it() {
        let schema = schema();
        let reference = include_str!("../../docs/configuration.md");
        let rows = reference.lines().filter_map(|line| line.strip_prefix("| `"));
        let keys = rows.filter_map(|row| row.split_once('`')).map(|(key, _)| key);
        let mut count = 0;
        for key in keys.filter(|key| !key.contains("]`") && !key.ends_with(']')) {
            let (path, each) = match key.strip_prefix("[[") {
                None => (key.to_owned(), false),
                Some(rest) => (rest.replace("]] ", "."), true),
            };
            let found = path.split('.').try_fold(&schema, |at, step| {
                let at = at.get("items").unwrap_or(at);
                at["properties"].get(step)
            });
            assert!(found.is_some(), "{key}");
            assert_eq!(found.unwrap().get("default").is_none() && !each, path == "voice.threshold");
            count += 1;
        }
        assert!(count > 60, "{count}");
    }
}
