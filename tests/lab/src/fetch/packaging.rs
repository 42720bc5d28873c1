//! Roots for Debian packages: one that builds them, and a clean system that installs them.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::{Contents, Recipe};
use crate::debian::Suite;
use crate::debian::root::Root;
use crate::progress::Progress;

/// Builds any package, and checks it.
const PACKAGING: &[&str] = &["build-essential", "lintian"];

/// A guest of Debian's, with the headers for modules: the packages are installed into it.
const SYSTEM: &[&str] = &[
    "dkms",
    "e2fsprogs",
    "initramfs-tools",
    "linux-headers-cloud-amd64",
    "linux-image-cloud-amd64",
    "systemd-sysv",
    "udev",
];

/// Directories in the roots on which the lab mounts others, or which a build needs.
const DIRECTORIES: [&str; 5] = ["project", "crates", "packages", "out", "root/.cargo"];

/// Fetches a root that builds the packages: `build_depends` and what checks them.
pub(crate) fn build_root(
    suite: Suite,
    build_depends: &[String],
    cache: &Path,
    logs: &Path,
    progress: &Progress,
) -> Result<Root> {
    let build_depends: Vec<&str> = build_depends.iter().map(String::as_str).collect();
    let recipe = Recipe {
        name: &format!("build-{suite}"),
        suite,
        packages: &[&build_depends, PACKAGING],
        contents: Contents::System,
        revision: "1",
        finish: |_, root, _, _| directories(&root),
    };
    Ok(Root::at(recipe.entry(cache, logs, progress)?.join("root")))
}

/// Fetches a clean system that installs the packages.
pub(crate) fn system_root(
    suite: Suite,
    cache: &Path,
    logs: &Path,
    progress: &Progress,
) -> Result<Root> {
    let recipe = Recipe {
        name: &format!("system-{suite}"),
        suite,
        packages: &[SYSTEM],
        contents: Contents::System,
        revision: "1",
        finish: |_, root, _, _| directories(&root),
    };
    Ok(Root::at(recipe.entry(cache, logs, progress)?.join("root")))
}

fn directories(root: &Root) -> Result<()> {
    DIRECTORIES.map(|name| root.file(name)).iter().try_for_each(|directory| {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot create {}", directory.display()))
    })
}
