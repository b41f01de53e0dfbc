//! A recording: lines of `time,value`, played from the first read on.
//!
//! Times are seconds, or RFC 3339; they count from the first line. A header and empty lines are
//! passed over. The last value stays, and ages.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::sensor::Raw;

/// Longer recordings are refused: this is a month of one a minute many times over.
const MAX_BYTES: u64 = 32 * 1024 * 1024;

#[derive(Debug)]
pub(super) struct Recording {
    /// When, from the first line, and what. In order of time, never empty.
    rows: Vec<(Duration, f64)>,
    began: Option<Instant>,
}

impl Recording {
    pub(super) fn open(path: &Path) -> Result<Self, String> {
        let failed = |e: std::io::Error| format!("read {}: {e}", path.display());
        let size = std::fs::metadata(path).map_err(failed)?.len();
        if size > MAX_BYTES {
            return Err(format!("{} has {size} bytes; at most {MAX_BYTES}", path.display()));
        }
        let text = std::fs::read_to_string(path).map_err(failed)?;
        let rows = parse(&text).map_err(|e| format!("{}:{e}", path.display()))?;
        Ok(Self { rows, began: None })
    }

    pub(super) fn read(&mut self, now: Instant) -> Raw {
        let at = now.duration_since(*self.began.get_or_insert(now));
        let next = self.rows.partition_point(|(time, _)| *time <= at);
        let (time, value) = self.rows[next.saturating_sub(1)];
        Raw { value, age: at.saturating_sub(time) }
    }
}

fn parse(text: &str) -> Result<Vec<(Duration, f64)>, String> {
    let mut rows: Vec<(Duration, f64)> = Vec::new();
    let mut first = None;
    for (place, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        let wrong = |what: &str| format!("{}: {what}", place + 1);
        let (time, value) = line.split_once(',').ok_or_else(|| wrong("write `time,value`"))?;
        let Some(time) = seconds(time.trim()) else {
            if first.is_none() {
                continue;
            }
            return Err(wrong("the time is neither seconds nor RFC 3339"));
        };
        let value: f64 = value.trim().parse().map_err(|_| wrong("the value is no number"))?;
        let since = time - *first.get_or_insert(time);
        let since =
            Duration::try_from_secs_f64(since).map_err(|_| wrong("the time goes backwards"))?;
        if rows.last().is_some_and(|(last, _)| *last > since) {
            return Err(wrong("the time goes backwards"));
        }
        rows.push((since, value));
    }
    if rows.is_empty() { Err("1: there is no line `time,value`".to_owned()) } else { Ok(rows) }
}

fn seconds(text: &str) -> Option<f64> {
    if let Ok(seconds) = text.parse::<f64>() {
        return Some(seconds).filter(|seconds| seconds.is_finite());
    }
    let time = chrono::DateTime::parse_from_rfc3339(text).ok()?;
    #[allow(clippy::cast_precision_loss, reason = "milliseconds since 1970 need 41 bits of 52")]
    Some(time.timestamp_millis() as f64 / 1e3)
}
