//! The unit files: systemd understands all of them, and the sandbox is as tight as promised.
//!
//! What they do on a running system is shown by `scripts/boot-test` in a virtual machine.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn unit(name: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd").join(name);
    fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

/// The text of the units, checked by `systemd-analyze verify` as if hark were installed.
fn verify(service: &str) -> Output {
    let directory = tempfile::tempdir().expect("directory");
    let installed = service.replace("/usr/bin/hark", env!("CARGO_BIN_EXE_hark"));
    let failure = unit("hark-failure.service").replace("/usr/bin/hark", env!("CARGO_BIN_EXE_hark"));
    fs::write(directory.path().join("hark.service"), installed).expect("write");
    fs::write(directory.path().join("hark-failure.service"), failure).expect("write");
    Command::new("systemd-analyze")
        .args(["verify", "--man=no", "--recursive-errors=yes"])
        .args(["hark.service", "hark-failure.service"].map(|name| directory.path().join(name)))
        .output()
        .expect("systemd-analyze")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Exposure as `systemd-analyze security` computes it.
fn exposure(service: &str) -> f64 {
    let directory = tempfile::tempdir().expect("directory");
    let file = directory.path().join("hark.service");
    fs::write(&file, service).expect("write");
    let output = Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--no-pager"])
        .arg(&file)
        .output()
        .expect("systemd-analyze");
    let text = text(&output);
    let level = text.rsplit_once("for hark.service: ").and_then(|(_, rest)| rest.split(' ').next());
    level.and_then(|level| level.parse().ok()).unwrap_or_else(|| panic!("{text}"))
}

#[test]
fn systemd_has_nothing_to_say_about_the_units() {
    // It exits 0 on a key that it does not know: any word is a failure.
    let output = verify(&unit("hark.service"));
    assert_eq!(text(&output), "");
    assert!(output.status.success());
}

#[test]
fn control_a_misspelt_key_is_noticed() {
    let output = verify(&unit("hark.service").replace("WatchdogSec=", "WatchDogSeconds="));
    assert!(text(&output).contains("WatchDogSeconds"), "{}", text(&output));
}

#[test]
fn the_sandbox_leaves_an_exposure_of_at_most_1_5() {
    let service = unit("hark.service");
    assert!(exposure(&service) <= 1.5, "{}", exposure(&service));
    let open = service.replace("SystemCallFilter=", "#").replace("CapabilityBoundingSet=", "#");
    assert!(exposure(&open) > 1.5, "the measure is blind");
}

#[test]
fn a_wrong_configuration_is_not_started_again_and_everything_else_is() {
    use hark::cli::exit;
    let service = unit("hark.service");
    let never = format!("RestartPreventExitStatus={} {}\n", exit::USAGE, exit::CONFIG);
    assert!(service.contains(&never));
    assert!(service.contains("\nRestart=always\n"));
    assert!(service.contains("\nStartLimitIntervalSec=0\n"));
}
