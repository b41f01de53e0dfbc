//! A light of the kernel's `leds` class: `/sys/class/leds/NAME`.
//!
//! A blink is left to the kernel where it offers the trigger `timer`, so that a light costs no wakeups;
//! elsewhere it is switched from here.
//!
//! Source: Linux Documentation/leds/leds-class.rst.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A light.
#[derive(Debug)]
pub struct Led {
    path: PathBuf,
}

/// Why it cannot be lit.
#[derive(Debug, thiserror::Error)]
#[error("light {path}: {cause}; hark must be allowed to write there")]
pub struct LedError {
    path: PathBuf,
    cause: io::Error,
}

impl Led {
    /// The light in this directory; whether it is there shows when it is lit.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// On at its full brightness, or off.
    ///
    /// # Errors
    /// A file of it cannot be written.
    pub fn set(&self, on: bool) -> Result<(), LedError> {
        let brightness = if on {
            let most = fs::read_to_string(self.path.join("max_brightness"));
            most.map_or_else(|_| "1".to_owned(), |text| text.trim().to_owned())
        } else {
            "0".to_owned()
        };
        self.write("brightness", &brightness)
    }

    /// Takes the light from whatever else had it.
    ///
    /// # Errors
    /// A file of it cannot be written.
    pub fn take(&self) -> Result<(), LedError> {
        match self.write("trigger", "none") {
            // A light without triggers is nobody else's.
            Err(error) if error.cause.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    /// Has the kernel blink; false where it does not offer that, or not to us.
    ///
    /// # Errors
    /// A file of it cannot be written.
    pub fn blink(&self, on_ms: u32, off_ms: u32) -> Result<bool, LedError> {
        let offered = fs::read_to_string(self.path.join("trigger")).unwrap_or_default();
        let is_timer = |word: &str| word.trim_matches(['[', ']']) == "timer";
        if !offered.split_whitespace().any(is_timer) {
            return Ok(false);
        }
        self.write("trigger", "timer")?;
        // The kernel makes these two as root's when the trigger is set.
        let delays = self.write("delay_on", &on_ms.to_string());
        if delays.and_then(|()| self.write("delay_off", &off_ms.to_string())).is_err() {
            self.take()?;
            return Ok(false);
        }
        Ok(true)
    }

    fn write(&self, name: &str, value: &str) -> Result<(), LedError> {
        let path = self.path.join(name);
        let written = fs::OpenOptions::new().write(true).truncate(true).open(&path);
        let written =
            written.and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()));
        written.map_err(|cause| LedError { path, cause })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::write(root.path().join(name), content).unwrap();
        }
        root
    }

    fn read(root: &tempfile::TempDir, name: &str) -> String {
        fs::read_to_string(root.path().join(name)).unwrap()
    }

    #[test]
    fn the_kernel_blinks_where_it_offers_to() {
        let files = [
            ("brightness", "0"),
            ("max_brightness", "255\n"),
            ("trigger", "[none] mmc0 timer heartbeat\n"),
            ("delay_on", "500"),
            ("delay_off", "500"),
        ];
        let root = tree(&files);
        let led = Led::new(root.path());
        assert!(led.blink(125, 250).unwrap());
        let written = ["trigger", "delay_on", "delay_off"].map(|name| read(&root, name));
        assert_eq!(written, ["timer", "125", "250"]);
        led.take().unwrap();
        led.set(true).unwrap();
        assert_eq!(
            (read(&root, "trigger"), read(&root, "brightness")),
            ("none".into(), "255".into())
        );
        led.set(false).unwrap();
        assert_eq!(read(&root, "brightness"), "0");
    }

    #[test]
    fn a_light_without_triggers_is_lit_and_one_that_is_not_there_is_an_error() {
        let root = tree(&[("brightness", "0")]);
        let led = Led::new(root.path());
        assert!(!led.blink(1, 1).unwrap());
        led.take().unwrap();
        led.set(true).unwrap();
        assert_eq!(read(&root, "brightness"), "1");
        let error = Led::new(Path::new("/nowhere/led")).set(true).unwrap_err().to_string();
        assert!(error.contains("/nowhere/led/brightness"), "{error}");
        assert!(!Path::new("/nowhere").exists());
    }
}
