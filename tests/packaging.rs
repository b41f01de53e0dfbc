//! What brings the agent onto a device says the same as the code: packages, layer, build images.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use toml::{Table, Value};

fn read(name: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

fn table(name: &str) -> Table {
    read(name).parse().unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// The SHA-less check sum that Yocto asks for, of a file of this repository.
fn md5(name: &str) -> String {
    let output = Command::new("md5sum")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join(name))
        .output()
        .expect("md5sum");
    String::from_utf8_lossy(&output.stdout)[..32].to_owned()
}

#[test]
fn the_recipes_crates_are_those_of_cargo_lock() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/yocto-crates");
    let output = Command::new(script).arg("--check").output().expect("python3");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_recipes_version_and_licences_are_ours() {
    let version = env!("CARGO_PKG_VERSION");
    let recipe = read(&format!("yocto-layer/meta-hark/recipes-hark/hark/hark_{version}.bb"));
    for licence in ["LICENSE-APACHE", "LICENSE-MIT"] {
        let line = format!("file://{licence};md5={}", md5(licence));
        assert!(recipe.contains(&line), "{line}");
    }
}

#[test]
fn every_package_that_names_the_model_names_the_same() {
    let name = hark::voice::Model::NAME;
    let (package, version) = name.rsplit_once('-').expect("a name and a version");
    let fetched = read("scripts/fetch-models");
    assert!(fetched.contains(&format!("\npackage={package}\nversion={version}\n")));
    let recipe =
        read(&format!("yocto-layer/meta-hark/recipes-hark/hark-models/hark-models_{version}.bb"));
    assert!(recipe.contains(&format!("{package}-${{PV}}")));
    let depends = table("Cargo.toml")["package"]["metadata"]["deb"]["depends"].to_string();
    assert!(depends.contains(&format!("hark-models (>= {version})")), "{depends}");
}

#[test]
fn the_shipped_configuration_is_well_and_asks_for_credentials_that_the_unit_loads() {
    for (file, credential) in [
        ("systemd/hark.toml", ""),
        ("yocto-layer/meta-example/recipes-hark/hark/files/hark.toml", "hark-password"),
    ] {
        let loaded = hark::config::load(file, &read(file), std::iter::empty());
        let config = loaded.unwrap_or_else(|e| panic!("{e}")).config;
        let password = config.uplink.password_file.map(|path| path.display().to_string());
        assert_eq!(password.unwrap_or_default(), credential);
    }
    assert!(read("systemd/hark.service").contains("\nLoadCredential=hark-password\n"));
}

#[test]
fn cross_has_no_key_that_is_not_used_and_an_image_no_newer_than_the_device() {
    let cross = table("cross/Cross.toml");
    let mut keys = BTreeSet::new();
    let targets = cross["target"].as_table().expect("targets");
    for target in targets.values() {
        let target = target.as_table().expect("a table");
        keys.extend(target.keys().cloned());
        let dockerfile = &target["dockerfile"];
        let file = dockerfile["file"].as_str().expect("a file");
        let text = read(file);
        // Debian 12 is what the device runs.
        assert!(text.contains("\nFROM debian:12-slim\n"), "{file}");
        for argument in dockerfile.get("build-args").and_then(Value::as_table).into_iter().flatten()
        {
            assert!(text.contains(&format!("ARG {}\n", argument.0)), "{file}: {}", argument.0);
        }
    }
    assert_eq!(keys, ["dockerfile", "env"].map(str::to_owned).into());
    let names: Vec<_> = targets.keys().map(String::as_str).collect();
    let wanted = [
        "aarch64-unknown-linux-gnu",
        "arm-unknown-linux-gnueabihf",
        "armv7-unknown-linux-gnueabihf",
    ];
    assert_eq!(names, wanted);
}
