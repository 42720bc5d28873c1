//! Checks which folders use which: data flows one way through the daemon (backend/README.md).

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use super::source_files::rust_files;

/// Folders from the top to the bottom, as in backend/README.md: each uses only those below it.
const ORDER: [&str; 10] =
    ["doctor", "hot_plug", "daemon", "process", "setup", "bus", "config", "dma", "tap", "device"];

/// Paths that a folder must not use besides.
const MORE: [(&str, &[&str]); 5] = [
    ("hot_plug", &["crate::daemon", "crate::process", "crate::bus", "crate::device", "crate::dma"]),
    ("device", &["crate::domain", " xen::"]),
    ("tap", &["crate::domain"]),
    ("dma", &["crate::tap"]),
    ("config", &["crate::domain", "crate::dma", " xen::"]),
];

/// The one file of `dma/` that knows devices: it implements their view of memory.
const DEVICE_MEMORY: &str = "dma/device_memory.rs";

/// The files of a folder and its module file, without tests.
fn files(folder: &str) -> Vec<PathBuf> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = rust_files(&src.join(folder));
    let is_test = |name: &OsStr| name.to_string_lossy().starts_with("tests");
    found.retain(|file| !file.strip_prefix(&src).unwrap().iter().any(is_test));
    found.push(src.join(format!("{folder}.rs")));
    assert!(found.len() > 3, "{folder}: {found:?}");
    found
}

/// The paths that `folder` must not use.
fn forbidden(folder: &str) -> Vec<String> {
    let above = ORDER.iter().take_while(|name| **name != folder);
    let above = above.map(|name| format!("crate::{name}"));
    let more = MORE.iter().filter(|(name, _)| *name == folder).flat_map(|(_, paths)| *paths);
    above.chain(more.map(ToString::to_string)).collect()
}

#[test]
fn folders_use_only_those_below_them() {
    for folder in ORDER {
        let forbidden = forbidden(folder);
        for file in files(folder) {
            let text = fs::read_to_string(&file).unwrap();
            let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
            for line in text.lines() {
                let named = forbidden.iter().find(|name| line.contains(name.as_str()));
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
