//! Checks which folders use which: data flows one way through the daemon (backend/README.md).

use std::fs;
use std::path::{Path, PathBuf};

/// Folders, and the paths that they must not use.
const RULES: [(&str, &[&str]); 6] = [
    (
        "device",
        &[
            "crate::dma",
            "crate::bus",
            "crate::domain",
            "crate::tap",
            "crate::setup",
            "crate::daemon",
            " xen::",
        ],
    ),
    ("dma", &["crate::bus", "crate::tap", "crate::setup", "crate::daemon", "crate::config"]),
    ("tap", &["crate::dma", "crate::bus", "crate::domain", "crate::setup", "crate::daemon"]),
    (
        "config",
        &["crate::dma", "crate::bus", "crate::domain", "crate::setup", "crate::daemon", " xen::"],
    ),
    ("bus", &["crate::tap", "crate::setup", "crate::daemon"]),
    ("setup", &["crate::daemon"]),
];

/// The one file of `dma/` that knows devices: it implements their view of memory.
const DEVICE_MEMORY: &str = "dma/device_memory.rs";

fn sources(path: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.starts_with("tests") {
            continue;
        }
        if path.is_dir() { sources(&path, found) } else { found.push(path) }
    }
}

/// The files of a folder and its module file, without tests.
fn files(folder: &str) -> Vec<PathBuf> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = vec![src.join(format!("{folder}.rs"))];
    sources(&src.join(folder), &mut found);
    assert!(found.len() > 3, "{folder}: {found:?}");
    found
}

#[test]
fn folders_use_only_those_below_them() {
    for (folder, forbidden) in RULES {
        for file in files(folder) {
            let text = fs::read_to_string(&file).unwrap();
            let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
            for line in text.lines() {
                let named = forbidden.iter().find(|name| line.contains(**name));
                assert!(named.is_none(), "{}: {line}", file.display());
            }
        }
    }
}

#[test]
fn one_file_of_dma_knows_devices() {
    for file in files("dma") {
        let text = fs::read_to_string(&file).unwrap();
        let knows = text.contains("crate::device");
        assert_eq!(knows, file.ends_with(DEVICE_MEMORY), "{}", file.display());
    }
}
