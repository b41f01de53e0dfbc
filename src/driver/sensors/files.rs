//! Small files: one number each, and paths whose numbers change with the boot.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::sensor::Raw;

/// A file of the kernel holds a page at most; other programs have no reason for more.
const MAX_BYTES: u64 = 64 * 1024;

/// The content, without the line break at its end.
///
/// # Errors
/// One line with the path.
pub(super) fn text(path: &Path) -> Result<String, String> {
    let failed = |e: std::io::Error| format!("read {}: {e}", path.display());
    let mut text = String::new();
    let file = File::open(path).map_err(failed)?;
    file.take(MAX_BYTES).read_to_string(&mut text).map_err(failed)?;
    Ok(text.trim().to_owned())
}

/// The number that a file holds.
///
/// # Errors
/// One line with the path.
pub(super) fn number(path: &Path) -> Result<f64, String> {
    let text = text(path)?;
    text.parse()
        .map_err(|_| format!("{} holds `{}`, which is no number", path.display(), cut(&text)))
}

/// As much of a text as a message needs.
fn cut(text: &str) -> String {
    text.chars().take(40).collect()
}

/// A path that may hold one `*`.
#[derive(Debug)]
pub(super) struct Place {
    pattern: PathBuf,
    found: Option<PathBuf>,
}

impl Place {
    pub(super) fn new(pattern: &Path) -> Self {
        Self { pattern: pattern.to_owned(), found: None }
    }

    /// Reads at the place that the path stands for; after a failure it is looked up again.
    pub(super) fn resolved<T>(
        &mut self,
        read: impl FnOnce(&Path) -> Result<T, String>,
    ) -> Result<T, String> {
        let path = match self.found.take() {
            Some(path) => path,
            None => resolve(&self.pattern)?,
        };
        let result = read(&path);
        self.found = result.is_ok().then_some(path);
        result
    }
}

/// The one file that a path with one `*` stands for.
fn resolve(pattern: &Path) -> Result<PathBuf, String> {
    let parts: Vec<_> = pattern.iter().collect();
    let starred = parts.iter().position(|part| part.to_string_lossy().contains('*'));
    let Some(place) = starred else { return Ok(pattern.to_owned()) };
    let parent: PathBuf = parts[..place].iter().collect();
    let rest: PathBuf = parts[place + 1..].iter().collect();
    let name = parts[place].to_string_lossy();
    let (before, after) = name.split_once('*').unwrap_or((&name, ""));
    let failed = |e: std::io::Error| format!("look into {}: {e}", parent.display());
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&parent).map_err(failed)? {
        let entry = entry.map_err(failed)?.file_name();
        let name = entry.to_string_lossy();
        let fits = name.len() >= before.len() + after.len()
            && name.starts_with(before)
            && name.ends_with(after);
        let mut path = parent.join(&entry);
        if !rest.as_os_str().is_empty() {
            path.push(&rest);
        }
        if fits && path.exists() {
            found.push(path);
        }
    }
    match (found.pop(), found.len()) {
        (Some(path), 0) => Ok(path),
        (None, _) => Err(format!("nothing is at {}", pattern.display())),
        (Some(_), others) => {
            Err(format!("{} stands for {} files; one is meant", pattern.display(), others + 1))
        }
    }
}

/// A file that another program writes, now and then.
///
/// Its age counts from the moment in which it was first seen as it is now, by the monotonic clock:
/// a wall clock that is set would make every file old at once.
#[derive(Debug)]
pub(super) struct Watched {
    path: PathBuf,
    pointer: Option<String>,
    seen: Option<(Stamp, Instant)>,
}

/// What of a file changes when it is written or replaced.
type Stamp = (u64, u64, i64, i64);

impl Watched {
    pub(super) fn new(path: &Path, pointer: Option<&str>) -> Self {
        Self { path: path.to_owned(), pointer: pointer.map(str::to_owned), seen: None }
    }

    pub(super) fn read(&mut self, now: Instant) -> Result<Raw, String> {
        let stamp = std::fs::metadata(&self.path)
            .map(|m| (m.ino(), m.size(), m.mtime(), m.mtime_nsec()))
            .map_err(|e| format!("read {}: {e}", self.path.display()))?;
        let value = match &self.pointer {
            None => number(&self.path)?,
            Some(pointer) => json_number(&self.path, pointer)?,
        };
        let since = match self.seen {
            Some((seen, since)) if seen == stamp => since,
            _ => now,
        };
        self.seen = Some((stamp, since));
        Ok(Raw { value, age: now.duration_since(since) })
    }
}

fn json_number(path: &Path, pointer: &str) -> Result<f64, String> {
    let text = text(path)?;
    let json: serde_json::Value =
        serde_json::from_str(&text).map_err(|e| format!("{} is no JSON: {e}", path.display()))?;
    let value = match json.pointer(pointer) {
        Some(serde_json::Value::Number(number)) => number.as_f64(),
        Some(serde_json::Value::Bool(flag)) => Some(f64::from(u8::from(*flag))),
        Some(serde_json::Value::String(text)) => text.trim().parse().ok(),
        _ => None,
    };
    value.ok_or_else(|| format!("{} has no number at {pointer}", path.display()))
}
