//! Durations and sizes as people write them: `"250ms"`, `"7d"`, `"64MiB"`.

use std::time::Duration;

/// Units of a duration, with their length in milliseconds.
const DURATION_UNITS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Units of a size, with their length in bytes.
const SIZE_UNITS: [(&str, u64); 4] =
    [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

/// The same as regular expressions of JSON Schema.
pub(super) const DURATION_PATTERN: &str = "^[0-9]+(ms|s|m|h|d)$";
pub(super) const SIZE_PATTERN: &str = "^[0-9]+(B|KiB|MiB|GiB)$";

/// Reads a whole number with one unit: `ms`, `s`, `m`, `h` or `d`.
///
/// # Errors
/// What is wrong and how it is written, for a message that begins with the key.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    scaled(text, &DURATION_UNITS).map(Duration::from_millis).ok_or_else(|| {
        format!("is `{text}`; write a whole number and ms, s, m, h or d, such as \"5s\"")
    })
}

/// Reads a whole number of bytes with one unit: `B`, `KiB`, `MiB` or `GiB`.
///
/// # Errors
/// As [`parse_duration`].
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    scaled(text, &SIZE_UNITS).ok_or_else(|| {
        format!("is `{text}`; write a whole number and B, KiB, MiB or GiB, such as \"64MiB\"")
    })
}

/// The shortest form that [`parse_duration`] reads back.
pub fn format_duration(duration: Duration) -> String {
    let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let (unit, length) = DURATION_UNITS
        .into_iter()
        .rev()
        .find(|(_, length)| ms > 0 && ms.is_multiple_of(*length))
        .unwrap_or(("s", 1_000));
    format!("{}{unit}", ms / length)
}

/// The shortest form that [`parse_size`] reads back.
pub(super) fn format_size(bytes: u64) -> String {
    let (unit, length) = SIZE_UNITS
        .into_iter()
        .rev()
        .find(|(_, length)| bytes > 0 && bytes.is_multiple_of(*length))
        .unwrap_or(("B", 1));
    format!("{}{unit}", bytes / length)
}

fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let length = units.iter().find(|(name, _)| *name == unit)?.1;
    number.parse::<u64>().ok()?.checked_mul(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_are_read_back_as_written() {
        for text in ["250ms", "5s", "10m", "24h", "0s", "7d"] {
            let read = parse_duration(text).unwrap();
            assert_eq!(parse_duration(&format_duration(read)).unwrap(), read);
        }
        assert_eq!(parse_duration("7d").unwrap(), Duration::from_secs(7 * 86_400));
        assert_eq!(format_duration(Duration::from_secs(86_400)), "1d");
        assert_eq!(parse_size("64MiB").unwrap(), 64 << 20);
        assert_eq!(format_size(64 << 20), "64MiB");
    }

    #[test]
    fn what_is_no_duration_or_size_is_refused() {
        for text in [
            "",
            "5",
            "s",
            "5 s",
            "-5s",
            "1.5s",
            "5S",
            "99999999999999999999s",
            "999999999999999999d",
        ] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        for text in ["64", "64MB", "MiB"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
