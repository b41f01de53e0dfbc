//! What the host says of itself: machine id, boot id, its clock, secrets in files.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::sys;
use crate::clock::{ClockState, Zone};

/// Namespace of the version 5 UUIDs (RFC 9562 §5.5) that stand for devices. Never change it: the
/// device ids, and with them topics and sources, follow from it.
const DEVICE_NAMESPACE: uuid::Uuid = uuid::uuid!("8c0c5a0e-6a51-4d5f-9d0e-0f3b0a6f2b71");

/// A stable device id of 16 hexadecimal digits, from `/etc/machine-id`, which it does not reveal
/// (machine-id(5) asks for that).
///
/// # Errors
/// The file is missing or empty; the message says to set `device.id`.
pub fn device_id() -> Result<String, String> {
    device_id_from(Path::new("/etc/machine-id"))
}

fn device_id_from(file: &Path) -> Result<String, String> {
    let advice = "set `id` under [device] in the configuration";
    let text = std::fs::read_to_string(file)
        .map_err(|e| format!("derive a device id from {}: {e}; {advice}", file.display()))?;
    match text.trim() {
        "" | "uninitialized" => {
            Err(format!("derive a device id: {} holds none; {advice}", file.display()))
        }
        machine => {
            let id = uuid::Uuid::new_v5(&DEVICE_NAMESPACE, machine.as_bytes());
            Ok(id.simple().to_string()[..16].to_owned())
        }
    }
}

/// The time zone of the home: by its name in the system's time zone database (`Europe/Zurich`), by a
/// POSIX rule (`CET-1CEST,M3.5.0,M10.5.0/3`), or, if empty, that of the system.
///
/// # Errors
/// One line: there is no such zone.
pub fn zone(timezone: &str) -> Result<Zone, String> {
    zone_from(timezone, Path::new("/etc/localtime"), Path::new("/usr/share/zoneinfo"))
}

fn zone_from(timezone: &str, system: &Path, database: &Path) -> Result<Zone, String> {
    let read = |path: &Path| {
        let bytes = std::fs::read(path).map_err(|e| format!("read {}: {e}", path.display()))?;
        Zone::from_file(&bytes).map_err(|e| format!("{} is no time zone: {e}", path.display()))
    };
    if timezone.is_empty() {
        // localtime(5): without the file it is UTC.
        return if system.exists() { read(system) } else { Ok(Zone::utc()) };
    }
    let is_name = timezone.split('/').all(|part| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_+-".contains(&b))
    });
    let file = database.join(timezone);
    if is_name && file.is_file() {
        return read(&file);
    }
    Zone::from_rule(timezone).map_err(|_| {
        format!(
            "`{timezone}` is neither in {} nor a rule such as CET-1CEST,M3.5.0,M10.5.0/3",
            database.display()
        )
    })
}

/// The kernel's id of this boot; `unknown` where neither it nor `$HARK_BOOT_ID` says. The variable
/// is for a sandbox without `/proc/sys` (`%b` in a unit); both are written with and without hyphens.
pub fn boot_id() -> String {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok();
    let id = kernel.or_else(|| std::env::var("HARK_BOOT_ID").ok()).unwrap_or_default();
    uuid::Uuid::try_parse(id.trim()).map_or_else(|_| "unknown".to_owned(), |id| id.to_string())
}

/// systemd-timesyncd touches it at each successful synchronisation.
const TIMESYNC_FILE: &str = "/run/systemd/timesync/synchronized";
/// The kernel, too, calls a clock unsynchronised when nobody has set it for about so long: its
/// error grows by 500 ppm to 16 s.
const TIMESYNC_AGE: Duration = Duration::from_secs(9 * 3600);

/// Whether a time source disciplines the wall clock; for [`Clock::new`](crate::clock::Clock::new).
/// The kernel is asked, and where a sandbox forbids that, systemd-timesyncd's file.
pub fn clock_state() -> ClockState {
    sys::clock_state().unwrap_or_else(|| timesync_state(Path::new(TIMESYNC_FILE)))
}

fn timesync_state(file: &Path) -> ClockState {
    let synchronised = std::fs::metadata(file).and_then(|metadata| metadata.modified());
    // A time ahead of the clock is that of a clock that has been set back since.
    match synchronised.map(|at| at.elapsed()) {
        Ok(Ok(age)) if age <= TIMESYNC_AGE => ClockState::Synced,
        _ => ClockState::Unsynced,
    }
}

/// Reads a secret: from `$CREDENTIALS_DIRECTORY` (systemd's `LoadCredential`) if it holds a file
/// of that name, else from the path. One line break at the end is not part of it.
///
/// # Errors
/// Neither can be read; the message names the path, never the content.
pub fn read_secret(path: &Path) -> Result<Vec<u8>, String> {
    let credential = std::env::var_os("CREDENTIALS_DIRECTORY")
        .map(PathBuf::from)
        .zip(path.file_name())
        .map(|(directory, name)| directory.join(name))
        .filter(|file| file.is_file());
    let file = credential.as_deref().unwrap_or(path);
    let mut secret = std::fs::read(file).map_err(|e| format!("read {}: {e}", file.display()))?;
    if secret.ends_with(b"\n") {
        secret.pop();
        if secret.ends_with(b"\r") {
            secret.pop();
        }
    }
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_id_is_stable_and_not_the_machine_id() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("machine-id");
        std::fs::write(&file, "0123456789abcdef0123456789abcdef\n").unwrap();
        assert_eq!(device_id_from(&file).unwrap(), device_id_from(&file).unwrap());
        assert!(!"0123456789abcdef0123456789abcdef".contains(&device_id_from(&file).unwrap()));
        std::fs::write(&file, "uninitialized\n").unwrap();
        assert!(device_id_from(&file).unwrap_err().contains("set `id` under [device]"));
    }

    #[test]
    fn timesyncds_file_counts_for_hours_and_not_from_the_future() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("synchronized");
        assert_eq!(timesync_state(&path), ClockState::Unsynced);
        let file = std::fs::File::create(&path).unwrap();
        assert_eq!(timesync_state(&path), ClockState::Synced);
        let now = file.metadata().unwrap().modified().unwrap();
        let hours = |n: u64| Duration::from_secs(n * 3600);
        for (at, state) in [
            (now - hours(8), ClockState::Synced),
            (now - hours(10), ClockState::Unsynced),
            (now + hours(1), ClockState::Unsynced),
        ] {
            file.set_modified(at).unwrap();
            assert_eq!(timesync_state(&path), state);
        }
    }

    #[test]
    fn a_zone_is_that_of_the_system_or_a_name_or_a_rule() {
        let directory = tempfile::tempdir().unwrap();
        let (system, database) = (directory.path().join("localtime"), directory.path());
        let zone = |timezone: &str| zone_from(timezone, &system, database);
        assert_eq!(zone(""), Ok(Zone::utc()));
        // A file of version 1 with one kind of time, two hours east: RFC 8536 §3.
        let mut file = b"TZif".to_vec();
        file.extend([0; 16]);
        file.extend([0u32, 0, 0, 0, 1, 4].map(u32::to_be_bytes).concat());
        file.extend(7200i32.to_be_bytes());
        file.extend([0, 0]);
        file.extend(b"EET\0");
        std::fs::create_dir(database.join("Africa")).unwrap();
        std::fs::write(database.join("Africa/Cairo"), &file).unwrap();
        let hour = |zone: Zone| zone.local(0).hh_mm();
        assert_eq!(hour(zone("Africa/Cairo").unwrap()), "02:00");
        std::fs::write(&system, &file).unwrap();
        assert_eq!(hour(zone("").unwrap()), "02:00");
        assert_eq!(hour(zone("XYZ-3").unwrap()), "03:00");
        for wrong in ["Europe/Zurich", "../localtime", "/etc/passwd", "Africa"] {
            assert!(zone(wrong).unwrap_err().contains(wrong), "{wrong}");
        }
        std::fs::write(&system, b"no").unwrap();
        assert!(zone("").unwrap_err().contains("is no time zone"));
    }

    #[test]
    fn a_secret_loses_only_its_last_line_break() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("secret");
        for (written, read) in [("a b \n", "a b "), ("a\n\n", "a\n"), ("a\r\n", "a"), ("", "")] {
            std::fs::write(&file, written).unwrap();
            assert_eq!(read_secret(&file).unwrap(), read.as_bytes());
        }
        assert!(read_secret(&directory.path().join("none")).unwrap_err().contains("none"));
    }
}
