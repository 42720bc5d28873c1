//! The hypervisor, and Dom0's disk image. Every boot starts from the unchanged image.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{Contents, Platform, Recipe, modules};
use crate::command;
use crate::cpio::Cpio;
use crate::debian::root::Root;
use crate::debian::{Arch, Suite};
use crate::progress::{Progress, Step};

const RECIPE: Recipe<'static> = Recipe {
    name: "dom0",
    suite: Suite::LAB,
    platform: Platform::HOST,
    packages: &[
        &[
            "xen-hypervisor-4.20-amd64",
            "xen-utils-4.20",
            "xen-utils-common",
            "xenstore-utils",
            "linux-image-amd64",
        ],
        PROGRAMS,
        &["qemu-system-xen"],
        MORE_PROGRAMS,
    ],
    contents: Contents::Files,
    revision: "7",
    finish,
};

/// On Arm, no guest has a device model.
const AARCH64: Recipe<'static> = Recipe {
    packages: &[
        &[
            "xen-hypervisor-4.20-arm64",
            "xen-utils-4.20",
            "xen-utils-common",
            "xenstore-utils",
            "linux-image-arm64",
        ],
        PROGRAMS,
        MORE_PROGRAMS,
    ],
    revision: "1",
    ..RECIPE
};

const PROGRAMS: &[&str] = &[
    "base-files",
    "base-passwd",
    "bash",
    "bsdutils",
    "busybox-static",
    "coreutils",
    "dash",
    "diffutils",
    "dpkg",
    "e2fsprogs",
    "findutils",
    "grep",
    "init-system-helpers",
    "iproute2",
    "kmod",
    "libc-bin",
    "mawk",
    "mount",
    "perl-base",
    "procps",
];

const MORE_PROGRAMS: &[&str] =
    &["qemu-utils", "sed", "socat", "strace", "systemd", "sysvinit-utils", "tar", "util-linux"];

/// Modules that Dom0 needs to reach its root file system.
const DISK_MODULES: &[&str] = &["virtio_blk", "crc32c_generic", "ext4"];

/// Modules for the bus of the machine's devices on Arm.
const BUS_MODULES: &[&str] = &["virtio_mmio"];

/// Modules with which a driver domain mounts the same file system, and keeps its changes in memory.
const DRIVER_DOMAIN_MODULES: &[&str] = &["xen-blkfront", "overlay"];

/// The size of Dom0's root file system in bytes, with space for the disks of guests.
const DISK_SIZE: u64 = 4 << 30;

/// Directories that the image does not need: kernel and hypervisor, which the cache entry has as
/// files, and udev's database of hardware that QEMU does not emulate.
const PRUNED: &[&str] = &["boot", "usr/lib/udev/hwdb.d"];

/// Units of Debian that take time and have no use here: logins, the work of a first boot (every
/// boot of the image is one), unused file systems, and drivers of the chipset.
const MASKED: &[&str] = &[
    "getty.target",
    "ldconfig.service",
    "modprobe@configfs.service",
    "modprobe@drm.service",
    "modprobe@fuse.service",
    "proc-sys-fs-binfmt_misc.automount",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-binfmt.service",
    "systemd-hwdb-update.service",
    "systemd-journal-catalog-update.service",
    "systemd-random-seed.service",
    "systemd-udev-load-credentials.service",
    "systemd-udev-trigger.service",
    "systemd-update-done.service",
    "systemd-user-sessions.service",
];

/// Generators that take time and generate no unit here.
const MASKED_GENERATORS: &[&str] = &[
    "systemd-fstab-generator",
    "systemd-getty-generator",
    "systemd-gpt-auto-generator",
    "systemd-hibernate-resume-generator",
    "systemd-rc-local-generator",
    "systemd-run-generator",
    "systemd-ssh-generator",
    "systemd-system-update-generator",
    "systemd-sysv-generator",
    "systemd-tpm2-generator",
];

/// Keeps udev from driving the network interface that Debian's QEMU for Dom0 gives Dom0.
const MODPROBE: &str = "blacklist xen_netfront\n";

/// The machine ID. Without it systemd would treat the boot as a first boot, and ask questions.
const MACHINE_ID: &str = "b9e38a4e1fd94b2f8c1f0a6c5d7e2b31\n";

/// The fetched hypervisor and Dom0.
pub(crate) struct Dom0 {
    entry: PathBuf,
}

impl Dom0 {
    pub(super) fn fetch(
        platform: Platform<'_>,
        cache: &Path,
        logs: &Path,
        progress: &Progress,
    ) -> Result<Dom0> {
        let entry = platform.recipe(RECIPE, AARCH64).entry(cache, logs, progress)?;
        Ok(Dom0 { entry })
    }

    /// Returns the hypervisor, uncompressed, as QEMU boots it.
    pub(crate) fn xen(&self) -> PathBuf {
        self.entry.join("xen")
    }

    /// Returns Dom0's kernel.
    pub(crate) fn kernel(&self) -> PathBuf {
        self.entry.join("vmlinuz")
    }

    /// Returns the image of Dom0's root file system.
    pub(crate) fn disk(&self) -> PathBuf {
        self.entry.join("disk.img")
    }

    /// Returns the distribution's part of Dom0's initrd.
    pub(crate) fn initrd(&self) -> PathBuf {
        self.entry.join("initrd")
    }
}

fn finish(dir: &Path, root: Root, step: &Step, log: &Path) -> Result<()> {
    let release = root.kernel_release()?;
    step.at("setting up the system");
    let xen = match root.arch() {
        Arch::X86_64 => root.unpacked("gunzip", &root.file("boot/xen-4.20-amd64.gz"))?,
        Arch::Aarch64 => fs::read(root.file("boot/xen-4.20-arm64"))?,
    };
    fs::write(dir.join("xen"), xen)?;
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
    set_up_systemd(&root)?;
    let mut depmod = root.program("usr/sbin/depmod");
    depmod.arg("-b").arg(root.path()).arg(&release);
    command::run(&mut depmod, "listing Dom0's kernel modules", log)?;
    fs::write(dir.join("initrd"), initrd(&root)?)?;
    root.prune(PRUNED)?;
    step.at("making the disk image");
    root.make_ext4(root.path(), &dir.join("disk.img"), DISK_SIZE, log)?;
    Ok(fs::remove_dir_all(root.path())?)
}

/// Sets up a Dom0 that boots systemd, as the scripts of Debian's packages do, and the logging of
/// guests' consoles, as an administrator does.
fn set_up_systemd(root: &Root) -> Result<()> {
    let wants = root.file("etc/systemd/system/multi-user.target.wants");
    let generators = root.file("etc/systemd/system-generators");
    let programs = root.file("usr/local/sbin");
    // oxenstored, Debian's default, exits if it cannot write its log in /var/log/xen.
    let logs = root.file("var/log/xen/console");
    for directory in [&wants, &generators, &programs, &logs] {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
    }
    for unit in ["xen.service", "xendomains.service"] {
        symlink(Path::new("/usr/lib/systemd/system").join(unit), wants.join(unit))?;
    }
    for unit in MASKED {
        symlink("/dev/null", root.file("etc/systemd/system").join(unit))?;
    }
    for generator in MASKED_GENERATORS {
        symlink("/dev/null", generators.join(generator))?;
    }
    fs::write(root.file("etc/modprobe.d/lab.conf"), MODPROBE)?;
    fs::write(root.file("etc/machine-id"), MACHINE_ID)?;
    let settings = "XENCONSOLED_ARGS=\"--log=guest --log-dir=/var/log/xen/console\"\n";
    Ok(fs::write(root.file("etc/default/xen"), settings)?)
}

fn initrd(root: &Root) -> Result<Vec<u8>> {
    let mut cpio = Cpio::default();
    cpio.directories(&["bin", "dev", "proc", "sys", "root"]);
    cpio.copy("bin/busybox", &root.file("usr/bin/busybox"))?;
    cpio.link("bin/sh", "busybox");
    let bus = if root.arch() == Arch::Aarch64 { BUS_MODULES } else { &[] };
    modules::add(&mut cpio, root, &[bus, DISK_MODULES].concat(), DRIVER_DOMAIN_MODULES)?;
    Ok(cpio.finish())
}
