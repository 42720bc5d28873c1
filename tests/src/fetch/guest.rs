//! The guests: the distribution's kernel for virtual machines, a few programs, and what builds
//! modules for exactly that kernel. It is one root, so that kernel and headers cannot differ.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{Recipe, modules};
use crate::command;
use crate::cpio::Cpio;
use crate::debian::root::{LOADER, Root};
use crate::progress::{Progress, Step};

const RECIPE: Recipe = Recipe {
    name: "guest",
    packages: &[
        // the guest
        "linux-image-cloud-amd64",
        "busybox-static",
        "e2fsprogs",
        // the module build
        "linux-headers-cloud-amd64",
        "bash",
        "binutils",
        "coreutils",
        "dash",
        "diffutils",
        "findutils",
        "gcc",
        "grep",
        "kmod",
        "make",
        "mawk",
        "rust-src",
        "rustc",
        "sed",
        "xz-utils",
    ],
    revision: "4",
    finish,
};

/// The stock modules that a guest loads beside `virtio_msg_xen`, and those that its script may
/// load: drivers of other devices, and what a driver domain needs.
const GUEST_MODULES: &[&str] = &["virtio_blk"];
const OPTIONAL_MODULES: &[&str] = &[
    "virtio_net",
    "virtio-rng",
    "vmw_vsock_virtio_transport",
    "xen-evtchn",
    "xen-gntalloc",
    "xen-gntdev",
    "xen-privcmd",
    "xenfs",
    "bridge",
    "tun",
];

/// What stays of `usr/src/rustc-VERSION`.
const RUST_SOURCES: &str = "library";

/// A tree of real files for the guests to copy: the sources of Rust's `core`.
const TREE: &str = "library/core/src";

/// The fetched guest system.
pub(crate) struct Guest {
    entry: PathBuf,
    root: Root,
}

impl Guest {
    pub(super) fn fetch(cache: &Path, logs: &Path, progress: &Progress) -> Result<Guest> {
        let entry = RECIPE.entry(cache, logs, progress)?;
        let root = Root::at(entry.join("root"));
        Ok(Guest { entry, root })
    }

    /// The root that modules are built in.
    pub(crate) fn build_root(&self) -> &Root {
        &self.root
    }

    /// The guest's kernel.
    pub(crate) fn kernel(&self) -> PathBuf {
        self.entry.join("vmlinuz")
    }

    /// The part of the guest's initrd that comes from the distribution.
    pub(crate) fn initrd(&self) -> PathBuf {
        self.entry.join("initrd")
    }

    /// An archive that puts a directory `tree` of real files into an initrd.
    pub(crate) fn tree(&self) -> PathBuf {
        self.entry.join("tree.cpio")
    }
}

fn finish(dir: &Path, root: Root, step: &Step, log: &Path) -> Result<()> {
    let release = root.kernel_release()?;
    step.at("making the guest's initrd");
    fs::copy(root.file(&format!("boot/vmlinuz-{release}")), dir.join("vmlinuz"))?;
    let mut depmod = root.program("usr/sbin/depmod");
    depmod.arg("-b").arg(root.path()).arg(&release);
    command::run(&mut depmod, "listing the guest's kernel modules", log)?;
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
    for mount_point in crate::build::MOUNT_POINTS {
        fs::create_dir_all(root.file(mount_point))?;
    }
    Ok(())
}

/// `usr/src/rustc-VERSION` of the root.
fn rust_sources(root: &Root) -> Result<PathBuf> {
    for entry in fs::read_dir(root.file("usr/src"))? {
        let path = entry?.path();
        if path.join(TREE).is_dir() {
            return Ok(path);
        }
    }
    anyhow::bail!("rust-src put no {TREE} below usr/src")
}

fn initrd(root: &Root) -> Result<Vec<u8>> {
    let mut cpio = Cpio::default();
    cpio.directories(&["bin", "dev", "lib", "lib64", "mnt", "proc", "sys", "tmp"]);
    cpio.copy("bin/busybox", &root.file("usr/bin/busybox"))?;
    cpio.link("bin/sh", "busybox");
    cpio.link("sbin", "bin");
    cpio.directories(&["usr", "usr/sbin"]);
    let mke2fs = root.file("usr/sbin/mke2fs");
    cpio.copy("usr/sbin/mke2fs", &mke2fs)?;
    cpio.copy(LOADER, &root.file(LOADER))?;
    root.add_libraries(&mut cpio, &mke2fs)?;
    modules::add(&mut cpio, root, GUEST_MODULES, OPTIONAL_MODULES)?;
    Ok(cpio.finish())
}
