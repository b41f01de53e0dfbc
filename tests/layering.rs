//! The direction of imports: reads the `use crate::` lines and compares them with the picture in
//! ARCHITECTURE.md.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Each module and the modules that it may import.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("clock", &[]),
    ("config", &[]),
    ("event", &["clock"]),
    ("audio", &[]),
    ("sensor", &["clock", "config"]),
    ("voice", &["audio"]),
    ("alarm", &["clock", "event"]),
    ("outbox", &["clock", "event"]),
    ("uplink", &["clock"]),
    ("forwarder", &["clock", "event", "outbox", "uplink"]),
    ("downlink", &["clock", "event", "uplink"]),
    ("status", &["event"]),
    ("driver", &["audio", "clock", "event", "outbox", "sensor", "status", "uplink", "voice"]),
    ("supervisor", &[]),
    (
        "agent",
        &[
            "alarm",
            "audio",
            "cli",
            "clock",
            "config",
            "downlink",
            "driver",
            "event",
            "forwarder",
            "outbox",
            "sensor",
            "status",
            "supervisor",
            "uplink",
            "voice",
        ],
    ),
    ("sim", &["agent", "cli", "config", "driver", "event", "clock", "sensor"]),
    ("cli", &["agent", "audio", "clock", "config", "driver", "event", "sensor", "sim", "voice"]),
];

/// What only the edge may name: domain modules are synchronous and do no IO.
const IO: &[&str] = &[
    "std::fs",
    "std::net",
    "std::os",
    "std::process",
    "std::thread",
    "tokio",
    "sled",
    "cpal",
    "axum",
    "hyper",
    "libc",
];
const DOMAIN: &[&str] = &[
    "clock",
    "config",
    "event",
    "audio",
    "sensor",
    "voice",
    "alarm",
    "outbox",
    "uplink",
    "forwarder",
    "downlink",
    "status",
];

fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).expect("read src") {
        let path = entry.expect("read src").path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found
}

/// The code of a file without its tests and comments.
fn code(path: &Path) -> String {
    let text = std::fs::read_to_string(path).expect("read source");
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn module(root: &Path, path: &Path) -> String {
    let first = path.strip_prefix(root).expect("below src").iter().next().expect("a file");
    first.to_string_lossy().trim_end_matches(".rs").to_owned()
}

fn is_test_file(path: &Path) -> bool {
    path.iter().any(|part| {
        let part = part.to_string_lossy();
        part == "tests" || part == "tests.rs" || part.ends_with("_tests.rs")
    })
}

/// The modules named as `crate::NAME`, alone or in a group of `use crate::{…}`.
fn imports(code: &str) -> BTreeSet<String> {
    let name = |text: &str| {
        text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>()
    };
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            None => {
                found.insert(name(rest));
            }
            Some(group) => {
                let group = group.split(';').next().unwrap_or_default();
                let mut depth = 0;
                for item in group.split_inclusive(['{', '}', ',']) {
                    if depth == 0 {
                        found.insert(name(item.trim()));
                    }
                    depth += item.matches('{').count();
                    depth = depth.saturating_sub(item.matches('}').count());
                }
            }
        }
    }
    found.retain(|name| !name.is_empty());
    found
}

fn violations(module: &str, code: &str) -> Vec<String> {
    let allowed = MAY_IMPORT.iter().find(|(name, _)| *name == module).map(|(_, allowed)| *allowed);
    let Some(allowed) = allowed else {
        return vec![format!("{module} has no place in the picture")];
    };
    let mut found: Vec<_> = imports(code)
        .into_iter()
        .filter(|import| import != module && !allowed.contains(&import.as_str()))
        .map(|import| format!("{module} imports {import}"))
        .collect();
    if DOMAIN.contains(&module) {
        let names = |io: &&&str| code.contains(&format!("{io}::"));
        found.extend(IO.iter().filter(names).map(|io| format!("{module} does IO: {io}")));
    }
    found
}

#[test]
fn imports_go_in_one_direction_and_domain_modules_do_no_io() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    for path in sources(&root) {
        let module = module(&root, &path);
        if module == "lib" || module == "main" || is_test_file(&path) {
            continue;
        }
        let wrong = violations(&module, &code(&path));
        found.extend(wrong.into_iter().map(|what| format!("{}: {what}", path.display())));
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn a_wrong_import_would_be_found() {
    assert_eq!(violations("event", "use crate::driver::sys;"), ["event imports driver"]);
    assert_eq!(violations("event", "use crate::{clock::Rng, agent::{self, X}, cli};").len(), 2);
    assert_eq!(violations("outbox", "fn f() { std::fs::read(p) }"), ["outbox does IO: std::fs"]);
    assert!(
        violations("forwarder", "use crate::{event::{Lane, json}, outbox::Record};").is_empty()
    );
}
