//! A channel of the industrial I/O subsystem, read once a time through sysfs.
//!
//! `in_temp_input` holds the finished value. `in_temp_raw` holds what the converter gave: the value is
//! `(raw + offset) · scale`, with both factors in files of the channel (`in_voltage0_scale`) or of its
//! kind (`in_voltage_scale`); where there is none, 0 and 1.
//!
//! Source: Documentation/ABI/testing/sysfs-bus-iio of Linux 6.1.

use std::path::{Path, PathBuf};

use super::files::{Place, number};

#[derive(Debug)]
pub(super) struct Channel {
    place: Place,
    /// Which file is read and how its number is made a value; found at the first read.
    way: Option<(PathBuf, f64, f64)>,
}

impl Channel {
    pub(super) fn new(path: &Path) -> Self {
        Self { place: Place::new(path), way: None }
    }

    pub(super) fn read(&mut self) -> Result<f64, String> {
        let known = self.way.take();
        let (value, way) = self.place.resolved(|path| {
            let (file, offset, scale) = match known {
                Some(way) => way,
                None => way(path)?,
            };
            let value = (number(&file)? + offset) * scale;
            Ok((value, (file, offset, scale)))
        })?;
        self.way = Some(way);
        Ok(value)
    }
}

/// Which file is read, its offset and its scale.
pub(super) fn way(path: &Path) -> Result<(PathBuf, f64, f64), String> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let beside = |name: &str| path.with_file_name(name);
    let channel = if let Some(channel) = name.strip_suffix("_raw") {
        channel
    } else if name.ends_with("_input") {
        return Ok((path.to_owned(), 0.0, 1.0));
    } else {
        let input = beside(&format!("{name}_input"));
        if input.exists() {
            return Ok((input, 0.0, 1.0));
        }
        name.as_str()
    };
    let factor = |suffix: &str, default: f64| {
        let file = kinds(channel).map(|kind| beside(&format!("{kind}_{suffix}")));
        file.into_iter().find(|file| file.exists()).map_or(Ok(default), |file| number(&file))
    };
    Ok((beside(&format!("{channel}_raw")), factor("offset", 0.0)?, factor("scale", 1.0)?))
}

/// The channel itself, then without its number, without its modifier, and without both.
fn kinds(channel: &str) -> [&str; 3] {
    let digits = |name: &'_ str| name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    let numberless = &channel[..digits(channel)];
    // `in_accel_x`: what stands behind the second underscore is a modifier.
    let modified = channel.match_indices('_').nth(1).map_or(numberless, |(at, _)| &channel[..at]);
    [channel, numberless, &modified[..digits(modified)]]
}
