//! What `hark outbox` prints: tables for a person at night, JSON for programs.

use std::fmt::Write;

use serde_json::json;
use serde_json::value::RawValue;

use crate::driver::outbox_admin::{Entry, LaneStats, State, Stats};
use crate::event::{Data, Event, Lane, json as format};

/// `1 event`, `2 events`.
pub(super) fn count(number: u64, name: &str) -> String {
    format!("{number} {name}{}", if number == 1 { "" } else { "s" })
}

pub(super) fn stats_json(stats: &Stats, from: &str) -> String {
    let lanes = Lane::ALL.map(|lane| (lane.to_string(), json!(stats.lanes[lane.index()])));
    let total = total(stats);
    let object = json!({
        "from": from,
        "lanes": serde_json::Map::from_iter(lanes),
        "waiting": total.waiting,
        "dead_letters": total.dead_letters,
        "bytes": total.bytes,
        "size_on_disk": stats.size_on_disk,
        "max_size": stats.max_size,
        "disk_short": stats.disk_short,
        "refused": stats.refused,
    });
    format!("{object}\n")
}

fn total(stats: &Stats) -> LaneStats {
    let sum = |get: fn(&LaneStats) -> u64| stats.lanes.iter().map(get).sum();
    LaneStats {
        waiting: sum(|lane| lane.waiting),
        in_flight: sum(|lane| lane.in_flight),
        unconfirmed: sum(|lane| lane.unconfirmed),
        bytes: sum(|lane| lane.bytes),
        oldest: stats.lanes.iter().filter_map(|lane| lane.oldest.clone()).min(),
        dead_letters: sum(|lane| lane.dead_letters),
    }
}

pub(super) fn stats(stats: &Stats, from: &str) -> String {
    let row = |name: &str, lane: &LaneStats| {
        [
            name.to_owned(),
            lane.waiting.to_string(),
            lane.in_flight.to_string(),
            lane.unconfirmed.to_string(),
            lane.dead_letters.to_string(),
            size(lane.bytes),
            lane.oldest.clone().unwrap_or_else(|| "-".to_owned()),
        ]
    };
    let heads = ["LANE", "WAITING", "IN FLIGHT", "NO RECEIPT", "DEAD LETTERS", "SIZE", "OLDEST"];
    let mut rows = vec![heads.map(str::to_owned)];
    rows.extend(Lane::ALL.map(|lane| row(lane.as_str(), &stats.lanes[lane.index()])));
    rows.push(row("all", &total(stats)));
    let mut widths = [0; 7];
    widen(&mut widths, &rows);
    let right = [false, true, true, true, true, true, false];
    let mut text: String = rows.iter().map(|row| line(row, &widths, &right)).collect();
    let (on_disk, most) = (size(stats.size_on_disk), size(stats.max_size));
    let _ = writeln!(text, "\n{on_disk} on the disk, at most {most} (from {from})");
    if stats.disk_short {
        text.push_str("the disk is full: telemetry is refused, alerts go on\n");
    }
    if stats.refused > 0 {
        let refused = count(stats.refused, "event");
        let _ = writeln!(text, "{refused} refused for want of room since the agent started");
    }
    text
}

/// A table that comes in pages: columns grow where they must and never shrink.
#[derive(Default)]
pub(super) struct Table {
    widths: [usize; 7],
    begun: bool,
}

impl Table {
    pub(super) fn rows(&mut self, entries: &[Entry]) -> String {
        let heads = ["ID", "LANE", "SEQUENCE", "TYPE", "TIME", "SIZE", "STATE"];
        let mut rows = Vec::new();
        if !std::mem::replace(&mut self.begun, true) {
            rows.push(heads.map(str::to_owned));
        }
        rows.extend(entries.iter().map(|entry| {
            let sequence = entry.sequence.trim_start_matches('0');
            [
                entry.id.clone(),
                entry.lane.to_string(),
                sequence.to_owned(),
                entry.event_type.clone(),
                entry.time.clone().unwrap_or_else(|| entry.accepted.clone()),
                size(entry.bytes as u64),
                state(entry),
            ]
        }));
        widen(&mut self.widths, &rows);
        let right = [false, false, true, false, false, true, false];
        rows.iter().map(|row| line(row, &self.widths, &right)).collect()
    }
}

fn state(entry: &Entry) -> String {
    match &entry.reason {
        Some(reason) if entry.state == State::DeadLetter => {
            format!("dead letter: {}", harmless(reason))
        }
        _ => entry.state.to_string(),
    }
}

/// Text from outside must not move the cursor.
fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn widen(widths: &mut [usize; 7], rows: &[[String; 7]]) {
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
}

fn line(row: &[String; 7], widths: &[usize; 7], right: &[bool; 7]) -> String {
    let cells = row.iter().zip(widths).zip(right).map(|((cell, width), right)| match right {
        true => format!("{cell:>width$}"),
        false => format!("{cell:<width$}"),
    });
    format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
}

/// Bytes for people.
fn size(bytes: u64) -> String {
    #[allow(clippy::cast_precision_loss, reason = "one decimal is shown")]
    let scaled = |unit: u64| bytes as f64 / unit as f64;
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", scaled(1024)),
        _ => format!("{:.1} MiB", scaled(1_048_576)),
    }
}

/// One line of JSON.
pub(super) fn json(entry: &Entry) -> String {
    serde_json::to_string(entry).unwrap_or_default() + "\n"
}

/// The same with the event, which stays in the line.
pub(super) fn with_event(entry: &Entry) -> String {
    let event = parsed(entry).and_then(|event| {
        let line = String::from_utf8(format::to_line(&event)).ok()?;
        RawValue::from_string(line).ok()
    });
    json(&Entry { event, ..entry.clone() })
}

/// The event alone, in one line.
pub(super) fn event(entry: &Entry) -> Option<String> {
    let line = format::to_line(&parsed(entry)?);
    Some(String::from_utf8(line).ok()? + "\n")
}

fn parsed(entry: &Entry) -> Option<Event> {
    format::parse(entry.event.as_ref()?.get().as_bytes()).ok()
}

/// All of an event, a line an attribute, then its data as they came.
pub(super) fn entry(entry: &Entry) -> String {
    let mut lines = vec![
        ("state", state(entry)),
        ("accepted", entry.accepted.clone()),
        ("position", entry.position.to_string()),
        ("size", format!("{} bytes", entry.bytes)),
    ];
    lines.extend(entry.dead_since.clone().map(|since| ("dead since", since)));
    let mut text = String::new();
    for (name, value) in lines {
        let _ = writeln!(text, "{name:<16}  {value}");
    }
    let Some(event) = parsed(entry) else { return text };
    for (name, value) in event.attributes() {
        let _ = writeln!(text, "{name:<16}  {value}");
    }
    let data = match event.data() {
        Data::Absent => return text,
        Data::Json(raw) => String::from_utf8_lossy(raw).into_owned(),
        Data::Base64(coded) => format!("base64: {coded}"),
    };
    let _ = writeln!(text, "\n{data}");
    text
}
