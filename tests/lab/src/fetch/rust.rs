//! The root in which xen-virtiod is built on Debian: the packages that README names, and those that
//! every Debian system has.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result};

use super::Recipe;
use crate::debian::Suite;
use crate::debian::root::Root;
use crate::progress::Progress;

/// Packages that every Debian system has and a shell needs.
const ESSENTIAL: &[&str] = &["base-files", "coreutils", "dash"];

/// Directories in the root on which a build mounts others, or which it needs.
const DIRECTORIES: [&str; 4] = ["project", "crates", "root/.cargo", "tmp"];

/// Fetches `packages` into a root.
pub(crate) fn root(
    packages: &[String],
    cache: &Path,
    logs: &Path,
    progress: &Progress,
) -> Result<Root> {
    let packages: Vec<&str> = packages.iter().map(String::as_str).collect();
    let recipe = Recipe {
        name: "rust",
        suite: Suite::LAB,
        packages: &[ESSENTIAL, &packages],
        revision: "1",
        finish: |_, root, _, _| finish(&root),
    };
    Ok(Root::at(recipe.entry(cache, logs, progress)?.join("root")))
}

fn finish(root: &Root) -> Result<()> {
    for directory in DIRECTORIES.map(|name| root.file(name)) {
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
    }
    // The package gcc makes this link in its script, which the lab does not run.
    symlink("gcc", root.file("usr/bin/cc")).context("cannot link the C compiler")
}
