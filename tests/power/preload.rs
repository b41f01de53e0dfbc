//! Libraries that are preloaded into the process under test.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Compiles `tests/power/NAME.c`; returns the library to preload.
pub(crate) fn compile(name: &str, directory: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/power/{name}.c"));
    let library = directory.join(format!("{name}.so"));
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
        .args([&library, &source])
        .status()
        .expect("`cc` compiles it: install gcc");
    assert!(status.success());
    library
}
