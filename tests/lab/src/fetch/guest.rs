//! The guests' default kernel, their programs, and the compiler of the module's core. Programs and
//! core suit every kernel.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{Contents, Kernel, Platform, Recipe, kernel};
use crate::cpio::Cpio;
use crate::debian::Suite;
use crate::debian::root::Root;
use crate::progress::{Progress, Step};

const RECIPE: Recipe<'static> = Recipe {
    name: "guest",
    suite: Suite::LAB,
    platform: Platform::HOST,
    packages: &[kernel::CLOUD, kernel::TOOLS, &["e2fsprogs", "ethtool", "rust-src", "rustc"]],
    contents: Contents::Files,
    revision: "14",
    finish,
};

/// The compilers are among the tools; the library that Rust programs are linked with is here.
const AARCH64: Recipe<'static> = Recipe {
    packages: &[
        kernel::CLOUD_ARM64,
        &["busybox-static", "e2fsprogs", "ethtool", "libstd-rust-web-dev", "rust-src"],
    ],
    revision: "2",
    ..RECIPE
};

/// The only directory of `usr/src/rustc-VERSION` that the root keeps.
const RUST_SOURCES: &str = "library";

/// A tree of real files that guests copy: the sources of Rust's `core`.
const TREE: &str = "library/core/src";

/// The fetched guest system.
pub(crate) struct Guest {
    entry: PathBuf,
    kernel: Kernel,
}

impl Guest {
    /// Fetches the packages for this host's architecture, and makes the kernel, the initrd and the
    /// tree.
    pub(crate) fn fetch_native(cache: &Path, logs: &Path, progress: &Progress) -> Result<Guest> {
        Guest::fetch(Platform::HOST, cache, logs, progress)
    }

    /// As [`Guest::fetch_native`], for any architecture.
    pub(super) fn fetch(
        platform: Platform<'_>,
        cache: &Path,
        logs: &Path,
        progress: &Progress,
    ) -> Result<Guest> {
        let recipe = platform.recipe(RECIPE, AARCH64);
        let entry = recipe.entry(cache, logs, progress)?;
        let kernel = Kernel::of(&recipe, entry.clone());
        Ok(Guest { entry, kernel })
    }

    /// Returns the kernel that guests have unless a scenario names another.
    pub(crate) fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// Returns the part of a guest's initrd with the distribution's programs.
    pub(crate) fn initrd(&self) -> PathBuf {
        self.entry.join("initrd")
    }

    /// Returns an archive that adds the directory `tree` of real files to an initrd.
    pub(crate) fn tree(&self) -> PathBuf {
        self.entry.join("tree.cpio")
    }
}

fn finish(dir: &Path, root: Root, step: &Step, log: &Path) -> Result<()> {
    step.at("making the guest's initrd");
    fs::write(dir.join("initrd"), initrd(&root)?)?;
    let sources = rust_sources(&root)?;
    let mut tree = Cpio::default();
    tree.copy_tree("tree", &sources.join(TREE))?;
    fs::write(dir.join("tree.cpio"), tree.finish())?;
    for entry in fs::read_dir(&sources)? {
        let entry = entry?;
        if entry.file_name() != RUST_SOURCES && entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        }
    }
    kernel::finish(dir, root, step, log)
}

/// Finds `usr/src/rustc-VERSION` in the root.
fn rust_sources(root: &Root) -> Result<PathBuf> {
    for entry in fs::read_dir(root.file("usr/src"))? {
        let path = entry?.path();
        if path.join(TREE).is_dir() {
            return Ok(path);
        }
    }
    anyhow::bail!("no folder of usr/src has {TREE}, which the package rust-src should contain")
}

fn initrd(root: &Root) -> Result<Vec<u8>> {
    let mut cpio = Cpio::default();
    cpio.directories(&["bin", "dev", "lib", "lib64", "mnt", "proc", "sys", "tmp"]);
    cpio.copy("bin/busybox", &root.file("usr/bin/busybox"))?;
    cpio.link("bin/sh", "busybox");
    cpio.link("sbin", "bin");
    cpio.directories(&["usr", "usr/sbin"]);
    root.add_loader(&mut cpio)?;
    for program in ["usr/sbin/mke2fs", "usr/sbin/ethtool"] {
        let file = root.file(program);
        cpio.copy(program, &file)?;
        root.add_libraries(&mut cpio, &file)?;
    }
    Ok(cpio.finish())
}
