//! The button's driver against a GPIO chip that the kernel simulates (module gpio-sim, configured through
//! configfs). Where the kernel has none, or the test may not use it, it says so and does nothing.
#![allow(clippy::disallowed_methods, reason = "the kernel's own time")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hark::driver::button::{Contact, open};

const ROOT: &str = "/sys/kernel/config/gpio-sim";

/// A chip of four lines. Dropping it removes it.
struct Chip {
    directory: PathBuf,
    device: PathBuf,
    lines: PathBuf,
}

impl Chip {
    fn make() -> Result<Self, String> {
        let directory = Path::new(ROOT).join(format!("hark-{}", std::process::id()));
        let bank = directory.join("bank0");
        let failed = |e: std::io::Error| format!("{}: {e}", directory.display());
        fs::create_dir(&directory).map_err(failed)?;
        fs::create_dir(&bank).map_err(failed)?;
        fs::write(bank.join("num_lines"), "4").map_err(failed)?;
        fs::write(directory.join("live"), "1").map_err(failed)?;
        let read = |path: PathBuf| fs::read_to_string(path).map(|text| text.trim().to_owned());
        let name = read(bank.join("chip_name")).map_err(failed)?;
        let owner = read(directory.join("dev_name")).map_err(failed)?;
        let lines = Path::new("/sys/devices/platform").join(owner).join(&name);
        Ok(Self { device: Path::new("/dev").join(name), lines, directory })
    }

    fn pull(&self, line: u32, up: bool) {
        let pull = self.lines.join(format!("sim_gpio{line}/pull"));
        fs::write(pull, if up { "pull-up" } else { "pull-down" }).expect("pull");
    }
}

impl Drop for Chip {
    fn drop(&mut self) {
        let _ = fs::write(self.directory.join("live"), "0");
        let _ = fs::remove_dir(self.directory.join("bank0"));
        let _ = fs::remove_dir(&self.directory);
    }
}

#[tokio::test]
async fn a_simulated_line_is_pressed_and_let_go() {
    let chip = match Chip::make() {
        Ok(chip) => chip,
        Err(reason) => {
            eprintln!("skipped: this kernel offers no gpio-sim ({reason})");
            return;
        }
    };
    chip.pull(1, true);
    let contact = Contact::Gpio { chip: chip.device.clone(), line: 1, active_low: true };
    let (mut levels, pressed) = open(&contact).expect("open");
    assert!(!pressed);
    for down in [true, false, true] {
        chip.pull(1, !down);
        let next = tokio::time::timeout(Duration::from_secs(10), levels.next());
        assert_eq!(next.await.expect("in time").expect("a level"), [down]);
    }
    drop(levels);
    let (_, pressed) = open(&contact).expect("open again");
    assert!(pressed, "the level at the beginning");
    assert!(open(&Contact::Gpio { chip: chip.device.clone(), line: 9, active_low: true }).is_err());
}
