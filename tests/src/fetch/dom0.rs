//! The hypervisor and the system of Dom0: a disk image that every boot starts from afresh.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{Recipe, modules};
use crate::command;
use crate::cpio::Cpio;
use crate::debian::Suite;
use crate::debian::root::Root;
use crate::progress::{Progress, Step};

const RECIPE: Recipe<'static> = Recipe {
    name: "dom0",
    suite: Suite::LAB,
    packages: &[&[
        "xen-hypervisor-4.20-amd64",
        "xen-utils-4.20",
        "xen-utils-common",
        "xenstore-utils",
        "linux-image-amd64",
        "base-files",
        "base-passwd",
        "busybox-static",
        "coreutils",
        "dash",
        "e2fsprogs",
        "findutils",
        "grep",
        "iproute2",
        "kmod",
        "mawk",
        "mount",
        "procps",
        "qemu-system-xen",
        "qemu-utils",
        "sed",
        "socat",
        "strace",
        "tar",
        "util-linux",
    ]],
    revision: "4",
    finish,
};

/// Modules that Dom0 needs to reach its root file system.
const DISK_MODULES: &[&str] = &["virtio_blk", "crc32c_generic", "ext4"];

/// The size of Dom0's root file system: what it holds, and room for the disks of guests.
const DISK_SIZE: u64 = 4 << 30;

/// Firmware for machines that have more devices than QEMU's, and what is copied out of the root.
const PRUNED: &[&str] = &["boot", "usr/lib/udev/hwdb.d", "usr/lib/systemd"];

/// The fetched hypervisor and Dom0.
pub(crate) struct Dom0 {
    entry: PathBuf,
}

impl Dom0 {
    pub(super) fn fetch(cache: &Path, logs: &Path, progress: &Progress) -> Result<Dom0> {
        let entry = RECIPE.entry(cache, logs, progress)?;
        Ok(Dom0 { entry })
    }

    /// The hypervisor, in the form that QEMU boots.
    pub(crate) fn xen(&self) -> PathBuf {
        self.entry.join("xen")
    }

    /// Dom0's kernel.
    pub(crate) fn kernel(&self) -> PathBuf {
        self.entry.join("vmlinuz")
    }

    /// The image of Dom0's root file system.
    pub(crate) fn disk(&self) -> PathBuf {
        self.entry.join("disk.img")
    }

    /// The part of Dom0's initrd that comes from the distribution.
    pub(crate) fn initrd(&self) -> PathBuf {
        self.entry.join("initrd")
    }
}

fn finish(dir: &Path, root: Root, step: &Step, log: &Path) -> Result<()> {
    let release = root.kernel_release()?;
    step.at("setting up the system");
    fs::write(dir.join("xen"), root.unpacked("gunzip", &root.file("boot/xen-4.20-amd64.gz"))?)?;
    fs::copy(root.file(&format!("boot/vmlinuz-{release}")), dir.join("vmlinuz"))?;
    for name in ["passwd", "group"] {
        let master = root.file(&format!("usr/share/base-passwd/{name}.master"));
        fs::copy(&master, root.file(&format!("etc/{name}")))
            .with_context(|| format!("cannot copy {}", master.display()))?;
    }
    for (link, target) in [("var/run", "/run"), ("var/lock", "/run/lock")] {
        root.prune(&[link])?;
        symlink(target, root.file(link)).with_context(|| format!("cannot link /{link}"))?;
    }
    let mut depmod = root.program("usr/sbin/depmod");
    depmod.arg("-b").arg(root.path()).arg(&release);
    command::run(&mut depmod, "listing Dom0's kernel modules", log)?;
    fs::write(dir.join("initrd"), initrd(&root)?)?;
    root.prune(PRUNED)?;
    step.at("making the disk image");
    root.make_ext4(root.path(), &dir.join("disk.img"), DISK_SIZE, log)?;
    Ok(fs::remove_dir_all(root.path())?)
}

fn initrd(root: &Root) -> Result<Vec<u8>> {
    let mut cpio = Cpio::default();
    cpio.directories(&["bin", "dev", "proc", "sys", "root"]);
    cpio.copy("bin/busybox", &root.file("usr/bin/busybox"))?;
    cpio.link("bin/sh", "busybox");
    modules::add(&mut cpio, root, DISK_MODULES, &[])?;
    Ok(cpio.finish())
}
