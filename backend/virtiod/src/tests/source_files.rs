//! The source files of this project, for tests that read them.

use std::fs;
use std::path::{Path, PathBuf};

/// All Rust files below `path`.
pub(super) fn rust_files(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.flat_map(|path| if path.is_dir() { rust_files(&path) } else { vec![path] });
    files.filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect()
}
