//! What the agent says of itself: to `hark status`, to `/metrics`, `/healthz` and `/readyz`, and in
//! each heartbeat.
//!
//! Invariants: everything here is a copy; reading it waits for nobody. Nothing of it is audio, and
//! nothing is a secret.
//!
//! Terms: the device is *healthy* while no part of itself is at fault; the network and the broker are
//! not its parts. It is *ready* while a cry would be heard and told: the microphone gives sound (where
//! one is wanted) and a broker is connected.
//!
//! Absent: histories. A metrics server keeps those.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};

use serde::Serialize;

use crate::event::Lane;

/// The agent at one moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Status {
    /// The device's id.
    pub device: String,
    /// The agent's version.
    pub version: String,
    /// The kernel's id of this boot.
    pub boot_id: String,
    /// Seconds since the agent began.
    pub uptime_s: u64,
    /// `synced`, `corrected` or `unsynced`.
    pub clock: &'static str,
    /// No part of the device itself is at fault.
    pub healthy: bool,
    /// A cry would be heard and told.
    pub ready: bool,
    /// `None` where the device does not listen (`audio.input = "none"`).
    pub audio: Option<Audio>,
    /// The way to the broker.
    pub uplink: Uplink,
    /// What is stored.
    pub outbox: Outbox,
    /// The alarm that is open: the real one before a test. Absent while there is none, and in heartbeats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alarm: Option<Alarm>,
    /// Parts at fault, by name.
    pub faults: Vec<Fault>,
}

/// The ear.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Audio {
    /// The sound card or file; empty while none is open.
    pub input: String,
    /// Loudness of the last 100 ms, −120.0..=0.0; `None` before the first sound.
    pub level_dbfs: Option<f32>,
    /// The quietest 100 ms of the last half minute, likewise.
    pub noise_floor_dbfs: Option<f32>,
    /// Keyphrases heard since the start.
    pub detections: u64,
    /// The second stage: its weights, `off`, or `absent` where it is wanted and not installed.
    pub confirmer: String,
}

/// The way to the broker. Counts are since the start.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Uplink {
    /// There is a session.
    pub connected: bool,
    /// The last news, in one line.
    pub news: String,
    /// Sessions so far.
    pub connections: u64,
    /// Events handed to the network, again or for the first time.
    pub published: u64,
    /// Events that the broker has.
    pub acknowledged: u64,
    /// Events that their consumer has said it has.
    pub received: u64,
    /// Refusals by the broker.
    pub refused: u64,
}

/// What is stored. Keys are lanes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Outbox {
    /// Events that wait.
    pub waiting: BTreeMap<&'static str, u64>,
    /// Events accepted in the life of this outbox.
    pub accepted: BTreeMap<&'static str, u64>,
    /// Telemetry refused for want of room since the start.
    pub telemetry_refused: u64,
    /// There is so little room that telemetry is refused.
    pub disk_full: bool,
}

impl Outbox {
    /// Counts by lane, in the order of [`Lane::ALL`].
    pub fn by_lane(counts: [u64; 3]) -> BTreeMap<&'static str, u64> {
        Lane::ALL.into_iter().map(|lane| (lane.as_str(), counts[lane.index()])).collect()
    }
}

/// An alarm that is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Alarm {
    /// Its id, the `subject` of its events.
    pub id: String,
    /// `pending`, `raised` or `acknowledged`.
    pub state: &'static str,
    /// When it was opened, RFC 3339.
    pub since: String,
    /// Who is being called; `None` while nobody is.
    pub contact: Option<String>,
    /// It is only a test.
    pub testalarm: bool,
}

/// A part that no longer does its work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// Which.
    pub part: String,
    /// What is wrong, in one line.
    pub problem: String,
    /// Since when, in seconds.
    pub for_s: u64,
}

impl Fault {
    /// Whether a part of the device itself is at fault, not the network or the broker.
    pub fn is_of_the_device(&self) -> bool {
        let first = self.part.split('.').next().unwrap_or_default();
        !OUTSIDE.contains(&first)
    }
}

/// Parts that a restart of the device cannot mend.
const OUTSIDE: [&str; 6] = ["uplink", "path", "receipt", "subscriber", "client-id", "dead-letter"];

impl Status {
    /// For tests.
    #[cfg(test)]
    pub(crate) fn example() -> Self {
        Self {
            device: "flat-12".to_owned(),
            version: "1.2.3".to_owned(),
            boot_id: "b".to_owned(),
            uptime_s: 7,
            clock: "synced",
            healthy: false,
            ready: false,
            audio: Some(Audio { level_dbfs: Some(-41.5), ..Audio::default() }),
            uplink: Uplink::default(),
            outbox: Outbox { waiting: Outbox::by_lane([1, 2, 3]), ..Outbox::default() },
            alarm: None,
            faults: vec![Fault {
                part: "a \"b\"\n\\".to_owned(),
                problem: "x".to_owned(),
                for_s: 3,
            }],
        }
    }

    /// As JSON.
    pub fn to_value(&self) -> serde_json::Value {
        // Maps with text as keys and finite numbers always become JSON.
        serde_json::to_value(self).unwrap_or_default()
    }

    /// In the text format of Prometheus, version 0.0.4.
    ///
    /// Source: prometheus.io/docs/instrumenting/exposition_formats.
    pub fn to_metrics(&self) -> String {
        let mut text = Metrics::default();
        text.gauge("hark_build_info", "What runs; always 1.");
        text.value(&[("version", &self.version), ("device", &self.device)], 1);
        text.gauge("hark_uptime_seconds", "Since the agent began.");
        text.value(&[], self.uptime_s);
        text.gauge("hark_clock_synchronised", "1 if the wall clock can be believed.");
        text.value(&[], u8::from(self.clock != "unsynced"));
        text.gauge("hark_ready", "1 if a cry would be heard and told.");
        text.value(&[], u8::from(self.ready));
        text.gauge("hark_fault", "1 for each part that is at fault.");
        for fault in &self.faults {
            text.value(&[("part", &fault.part)], 1);
        }
        if let Some(audio) = &self.audio {
            text.counter("hark_detections_total", "Keyphrases heard.");
            text.value(&[], audio.detections);
            text.gauge("hark_audio_level_dbfs", "Loudness of the last 100 ms.");
            audio.level_dbfs.into_iter().for_each(|level| text.value(&[], level));
            text.gauge("hark_audio_noise_floor_dbfs", "Quietest 100 ms of the last half minute.");
            audio.noise_floor_dbfs.into_iter().for_each(|level| text.value(&[], level));
        }
        let Uplink { connected, connections, published, acknowledged, received, refused, .. } =
            &self.uplink;
        text.gauge("hark_uplink_connected", "1 while there is a session with a broker.");
        text.value(&[], u8::from(*connected));
        for (name, help, count) in [
            ("connections", "Sessions with a broker.", connections),
            ("published", "Events handed to the network, repetitions included.", published),
            ("acknowledged", "Events that the broker has acknowledged.", acknowledged),
            ("received", "Events that their consumer has confirmed.", received),
            ("refused", "Refusals by the broker.", refused),
        ] {
            text.counter(&format!("hark_uplink_{name}_total"), help);
            text.value(&[], count);
        }
        let Outbox { waiting, accepted, telemetry_refused, disk_full } = &self.outbox;
        text.gauge("hark_outbox_waiting", "Events that wait.");
        waiting.iter().for_each(|(lane, count)| text.value(&[("lane", lane)], count));
        text.counter("hark_outbox_accepted_total", "Events accepted in the life of this outbox.");
        accepted.iter().for_each(|(lane, count)| text.value(&[("lane", lane)], count));
        text.counter("hark_outbox_telemetry_refused_total", "Telemetry refused for want of room.");
        text.value(&[], telemetry_refused);
        text.gauge("hark_outbox_disk_full", "1 while telemetry is refused for want of room.");
        text.value(&[], u8::from(*disk_full));
        text.0
    }
}

#[derive(Default)]
struct Metrics(String, String);

impl Metrics {
    fn gauge(&mut self, name: &str, help: &str) {
        self.begin(name, help, "gauge");
    }

    fn counter(&mut self, name: &str, help: &str) {
        self.begin(name, help, "counter");
    }

    fn begin(&mut self, name: &str, help: &str, kind: &str) {
        // Writing into a string cannot fail.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        name.clone_into(&mut self.1);
    }

    /// A sample of the metric that was begun last.
    fn value(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(&self.1);
        for (place, (name, label)) in labels.iter().enumerate() {
            let label = label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let open = if place == 0 { '{' } else { ',' };
            let _ = write!(self.0, "{open}{name}=\"{label}\"");
        }
        let close = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{close} {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_a_type_and_labels_are_escaped() {
        let text = Status::example().to_metrics();
        assert!(text.contains("hark_outbox_waiting{lane=\"telemetry\"} 3\n"), "{text}");
        assert!(text.contains("hark_fault{part=\"a \\\"b\\\"\\n\\\\\"} 1\n"), "{text}");
        assert!(text.contains("hark_audio_level_dbfs -41.5\n"), "{text}");
        let names = text.lines().filter(|line| !line.starts_with('#'));
        for name in names.map(|line| line.split(['{', ' ']).next().unwrap()) {
            assert!(text.contains(&format!("# TYPE {name} ")), "{name}");
        }
    }

    #[test]
    fn the_json_names_lanes_and_faults() {
        let json = Status::example().to_value();
        assert_eq!(json["outbox"]["waiting"]["alert"], 1);
        assert_eq!(json["faults"][0]["for_s"], 3);
        assert_eq!(json["audio"]["noise_floor_dbfs"], serde_json::Value::Null);
    }
}
