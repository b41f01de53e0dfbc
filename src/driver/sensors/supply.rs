//! What the kernel says of a power supply, file by file.
//!
//! Source: Documentation/ABI/testing/sysfs-class-power of Linux 6.1.

use std::path::Path;

use super::files;
use crate::sensor::Condition;

/// Reads all files that there are. A file that is there and cannot be read (a charger that does not know
/// answers with ENODATA) counts as missing, as long as one can be read.
///
/// # Errors
/// One line: there is no supply.
pub(super) fn condition(path: &Path) -> Result<Condition, String> {
    let text = |name: &str| files::text(&path.join(name)).ok();
    let number = |name: &str| files::number(&path.join(name)).ok();
    let condition = Condition {
        kind: text("type"),
        // 2 is a supply that can be programmed: it gives power as well.
        online: number("online").map(|online| online != 0.0),
        present: number("present").map(|present| present != 0.0),
        capacity: number("capacity"),
        level: text("capacity_level"),
        status: text("status"),
        health: text("health"),
    };
    if condition == Condition::default() {
        // Which says why, where the directory itself is missing.
        files::text(&path.join("type"))?;
    }
    Ok(condition)
}
