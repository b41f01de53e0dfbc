//! The part of the examination that is about getting help: contacts, buttons, light and tone.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::{Findings, Verdict};
use crate::cli::exit;
use crate::config::{ButtonContact, Config};
use crate::driver::tone::Tone;

pub(super) fn examine(config: &Config, findings: &mut Findings) {
    if config.alarm.contacts.is_empty() {
        let detail =
            "nobody is called when no alarm is acknowledged: name one in [[alarm.contact]]";
        findings.add("contacts", Verdict::Poor, detail);
    }
    for contact in &config.alarm.contacts {
        let what = format!("contact {}", contact.name);
        let program = contact.exec.first().map_or("", String::as_str);
        findings.result(&what, exit::CONFIG, executable(Path::new(program)));
    }
    for button in &config.buttons {
        let (device, group) = match &button.contact {
            ButtonContact::Gpio { chip, .. } => (chip, "gpio"),
            ButtonContact::Evdev { device, .. } => (device, "input"),
        };
        // Only opened: the line itself may be in use, by the agent.
        let opened = File::open(device).map(|_| format!("{} can be read", device.display()));
        let opened = opened.map_err(|e| {
            format!(
                "open {}: {e}; name its device, or put hark's user into the group {group}",
                device.display()
            )
        });
        findings.result(&format!("button {}", button.name), exit::IO, opened);
    }
    if let Some(led) = &config.signal.led {
        let brightness = led.join("brightness");
        match OpenOptions::new().write(true).open(&brightness) {
            Ok(_) => findings.add("light", Verdict::Well, format!("{} can be lit", led.display())),
            Err(error) => {
                let detail =
                    format!("open {}: {error}; let hark's user write there", brightness.display());
                findings.add("light", Verdict::Poor, detail);
            }
        }
    }
    if let Some(output) = &config.signal.tone {
        match Tone::open(output) {
            Ok(_) => findings.add("tone", Verdict::Well, format!("{output} can be opened")),
            Err(error) => {
                let detail = format!("{error}; name an output, or set signal.tone to \"none\"");
                findings.add("tone", Verdict::Poor, detail);
            }
        }
    }
}

fn executable(program: &Path) -> Result<String, String> {
    let shown = program.display();
    let meta = program.metadata().map_err(|e| format!("{shown}: {e}; install the dialler"))?;
    if meta.is_file() && meta.permissions().mode() & 0o111 != 0 {
        Ok(format!("{shown} can be run"))
    } else {
        Err(format!("{shown} is no program that can be run: chmod +x"))
    }
}
