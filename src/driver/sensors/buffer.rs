//! The buffer of an IIO device: at each trigger it puts a scan of its channels there, and a reading is the mean
//! of those since the last one.
//!
//! The buffer is switched on as it is wanted unless it is that already, so that a process without the right to
//! write there can read what was prepared for it. It is switched off again by whoever switched it on. A buffer that has run full is no
//! reading: the newest of its scans may be old.
//!
//! Absent: several channels of one device. The kernel gives its buffer to one reader only, and many drivers read
//! no channel singly meanwhile.
//!
//! Source: Linux Documentation/driver-api/iio/buffers.rst.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::files::{Place, number, text};
use super::iio;
use crate::sensor::Raw;
use crate::sensor::scan::{Element, Layout};

/// Scans that the buffer is asked to hold.
const SCANS: usize = 1024;
/// How often, and how long between, the first reading looks for a first scan.
const FIRST: (u32, Duration) = (50, Duration::from_millis(20));

#[derive(Debug)]
pub(super) struct Buffered {
    place: Place,
    trigger: String,
    /// Where device nodes are.
    nodes: PathBuf,
    open: Option<Open>,
    last: Option<(f64, Instant)>,
}

#[derive(Debug)]
struct Open {
    file: File,
    layout: Layout,
    scans: usize,
    offset: f64,
    scale: f64,
    /// What switches the buffer off, where it was switched on here.
    switch: Option<PathBuf>,
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(switch) = &self.switch {
            let _ = fs::write(switch, "0");
        }
    }
}

impl Buffered {
    pub(super) fn new(path: &Path, trigger: &str) -> Self {
        Self::with_nodes(path, trigger, Path::new("/dev"))
    }

    pub(super) fn with_nodes(path: &Path, trigger: &str, nodes: &Path) -> Self {
        let (place, trigger, nodes) = (Place::new(path), trigger.to_owned(), nodes.to_owned());
        Self { place, trigger, nodes, open: None, last: None }
    }

    pub(super) fn read(&mut self, now: Instant) -> Result<Raw, String> {
        let is_first = self.open.is_none();
        let open = match self.open.take() {
            Some(open) => open,
            None => self.place.resolved(|path| open(path, &self.trigger, &self.nodes))?,
        };
        let mut mean = open.mean()?;
        for _ in 0..FIRST.0 {
            if !is_first || mean.is_some() {
                break;
            }
            std::thread::sleep(FIRST.1);
            mean = open.mean()?;
        }
        self.open = Some(open);
        if let Some(value) = mean {
            self.last = Some((value, now));
        }
        let (value, at) = self
            .last
            .ok_or_else(|| format!("the trigger {} has given nothing yet", self.trigger))?;
        Ok(Raw { value, age: now.saturating_duration_since(at) })
    }
}

impl Open {
    /// Of all scans that are there.
    fn mean(&self) -> Result<Option<f64>, String> {
        let mut bytes = Vec::new();
        let most = self.scans * self.layout.scan_bytes();
        let mut piece = [0; 4096];
        while bytes.len() < most {
            match (&self.file).read(&mut piece) {
                Ok(0) => break,
                Ok(count) => bytes.extend_from_slice(&piece[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(format!("read its buffer: {error}")),
            }
        }
        if bytes.len() >= most {
            return Err(format!("its buffer of {} scans was full: shorten interval", self.scans));
        }
        let (sum, count) =
            self.layout.values(&bytes).fold((0.0, 0.0), |(sum, n), value| (sum + value, n + 1.0));
        Ok((count > 0.0).then(|| (sum / count + self.offset) * self.scale))
    }
}

fn open(path: &Path, trigger: &str, nodes: &Path) -> Result<Open, String> {
    let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    let channel = name.strip_suffix("_raw").unwrap_or(&name);
    let (_, offset, scale) = iio::way(&path.with_file_name(format!("{channel}_raw")))?;
    let device = path.parent().unwrap_or(path);
    let elements = device.join("scan_elements");
    let switch = switch_on(device, &elements.join(format!("{channel}_en")), trigger)?;
    let of = |name: &str, what: &str| elements.join(format!("{name}_{what}"));
    let index = |name: &str| number(&of(name, "index")).map(|index| index as u32);
    let wanted = index(channel)?;
    let layout = Layout::new(switched_on(&elements, index)?, wanted)
        .ok_or_else(|| format!("{} is switched off", of(channel, "en").display()))?;
    let node = nodes.join(device.file_name().unwrap_or_default());
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&node);
    let file = file.map_err(|e| format!("open {}: {e}", node.display()))?;
    let scans = number(&device.join("buffer/length"))? as usize;
    Ok(Open { file, layout, scans, offset, scale, switch })
}

/// The channels that stand in a scan.
fn switched_on(
    elements: &Path,
    index: impl Fn(&str) -> Result<u32, String>,
) -> Result<Vec<(u32, Element)>, String> {
    let failed = |e: std::io::Error| format!("look into {}: {e}", elements.display());
    let mut channels = Vec::new();
    for entry in fs::read_dir(elements).map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        let name = file.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        let Some(name) = name.strip_suffix("_en") else { continue };
        if text(&file)? == "1" {
            let element = text(&elements.join(format!("{name}_type")))?.parse()?;
            channels.push((index(name)?, element));
        }
    }
    Ok(channels)
}

/// Makes the buffer hold the channel at each trigger. What switches it off again, unless it was on already.
fn switch_on(device: &Path, channel: &Path, trigger: &str) -> Result<Option<PathBuf>, String> {
    let switch = device.join("buffer/enable");
    let current = device.join("trigger/current_trigger");
    let wanted = [(current.as_path(), trigger), (channel, "1"), (switch.as_path(), "1")];
    let mut is_on = true;
    for (path, value) in wanted {
        is_on &= text(path)? == value;
    }
    if is_on {
        return Ok(None);
    }
    let scans = SCANS.to_string();
    let (length, off) = (device.join("buffer/length"), (switch.as_path(), "0"));
    for (path, value) in [off, wanted[0], wanted[1], (length.as_path(), scans.as_str()), wanted[2]]
    {
        fs::write(path, value).map_err(|e| {
            format!("write {value} to {}: {e}; let hark write there, or prepare the buffer before it starts", path.display())
        })?;
    }
    Ok(Some(switch))
}
