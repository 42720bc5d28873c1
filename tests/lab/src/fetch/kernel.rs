//! Kernels for guests: Debian's for virtual machines, with the headers and the compiler that build
//! modules for exactly that kernel. Both come from one root, so kernel and headers cannot differ.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{Contents, Platform, Recipe, bzimage, modules};
use crate::command;
use crate::cpio::Cpio;
use crate::debian::root::{self, Root};
use crate::debian::{Arch, Suite};
use crate::progress::{Progress, Step};

/// The kernel for virtual machines, with its headers.
pub(super) const CLOUD: &[&str] = &["linux-image-cloud-amd64", "linux-headers-cloud-amd64"];

/// The same for Arm.
pub(super) const CLOUD_ARM64: &[&str] = &["linux-image-cloud-arm64", "linux-headers-cloud-arm64"];

/// The kernel for all machines, with its headers: it has drivers for emulated cards.
const DRIVERS: &[&str] = &["linux-image-amd64", "linux-headers-amd64"];

/// The tools of the same release that the headers require.
pub(super) const TOOLS: &[&str] = &[
    "bash",
    "binutils",
    "busybox-static",
    "coreutils",
    "dash",
    "diffutils",
    "findutils",
    "gcc",
    "grep",
    "kmod",
    "lz4",
    "make",
    "mawk",
    "sed",
    "xz-utils",
    "zstd",
];

/// Stock modules that every guest loads beside `virtio_msg_xen`, and modules that its script can
/// load: drivers of other devices and of cards, and those that a driver domain needs.
const GUEST_MODULES: &[&str] = &["virtio_blk"];
const X86_MODULES: &[&str] = &["xen-pcifront"];
const ARM_MODULES: &[&str] = &["virtio_mmio"];
const OPTIONAL_MODULES: &[&str] = &[
    "virtio_console",
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

/// A fetched kernel.
pub(crate) struct Kernel {
    /// Its name among the kernels of the lab.
    name: String,
    suite: Suite,
    entry: PathBuf,
    root: Root,
}

impl Kernel {
    /// Fetches the kernel of `suite`.
    pub(super) fn fetch(
        suite: Suite,
        platform: Platform<'_>,
        cache: &Path,
        logs: &Path,
        progress: &Progress,
    ) -> Result<Kernel> {
        let recipe = Recipe {
            name: &format!("kernel-{suite}"),
            suite,
            platform,
            packages: match platform.arch {
                Arch::X86_64 => &[CLOUD, TOOLS],
                Arch::Aarch64 => &[CLOUD_ARM64],
            },
            contents: Contents::Files,
            revision: "4",
            finish,
        };
        Ok(Kernel::of(&recipe, recipe.entry(cache, logs, progress)?))
    }

    /// Fetches the kernel with drivers for emulated cards, of the lab's own release.
    pub(crate) fn with_drivers(cache: &Path, logs: &Path, progress: &Progress) -> Result<Kernel> {
        let recipe = Recipe {
            name: "kernel-drivers",
            suite: Suite::LAB,
            platform: Platform::HOST,
            packages: &[DRIVERS, TOOLS],
            contents: Contents::Files,
            revision: "2",
            finish,
        };
        let kernel = Kernel::of(&recipe, recipe.entry(cache, logs, progress)?);
        Ok(Kernel { name: "drivers".to_owned(), ..kernel })
    }

    /// Returns the kernel that [`finish`] stored in the entry `entry` of a recipe.
    pub(super) fn of(recipe: &Recipe<'_>, entry: PathBuf) -> Kernel {
        let (suite, root) = (recipe.suite, recipe.root_at(&entry));
        Kernel { name: suite.name().to_owned(), suite, entry, root }
    }

    /// Returns the kernel's name among the kernels of the lab: for most, that of their release.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Returns the kernel's Debian release.
    pub(crate) fn suite(&self) -> Suite {
        self.suite
    }

    /// Returns the root in which modules for this kernel are built.
    pub(crate) fn build_root(&self) -> &Root {
        &self.root
    }

    /// Returns the kernel's image.
    pub(crate) fn image(&self) -> PathBuf {
        self.entry.join("vmlinuz")
    }

    /// Returns the kernel without the image around it, an ELF file.
    pub(crate) fn unpacked(&self) -> PathBuf {
        self.entry.join("vmlinux")
    }

    /// Returns the part of a guest's initrd with the kernel's own modules.
    pub(crate) fn modules(&self) -> PathBuf {
        self.entry.join("modules.cpio")
    }

    /// Makes an archive that adds the kernel's modules `names`, with their dependencies, to a
    /// guest's initrd. The guest's script loads them.
    pub(crate) fn further_modules(&self, names: &[&str]) -> Result<Vec<u8>> {
        let mut cpio = Cpio::default();
        modules::add_optional(&mut cpio, &self.root, names)?;
        Ok(cpio.finish())
    }
}

/// Copies the kernel and an archive of its modules from `root` to the cache entry `dir`.
pub(super) fn finish(dir: &Path, root: Root, step: &Step, log: &Path) -> Result<()> {
    step.at("taking the kernel's modules");
    let image = dir.join("vmlinuz");
    fs::copy(root.kernel_image()?, &image)?;
    let unpacked = dir.join("vmlinux");
    let release = root.kernel_release()?;
    let (mut depmod, modules) = match root.arch() {
        Arch::X86_64 => {
            bzimage::unpack(&image, &root, &unpacked)?;
            let mut depmod = root::as_root("chroot"); // /usr/sbin/depmod may be an absolute link
            depmod.arg(root.path()).arg("/usr/sbin/depmod");
            (depmod, [X86_MODULES, OPTIONAL_MODULES].concat())
        }
        Arch::Aarch64 => {
            // It is not packed.
            fs::copy(&image, &unpacked)?;
            let mut depmod = root.program("usr/sbin/depmod");
            depmod.arg("-b").arg(root.path());
            (depmod, [ARM_MODULES, OPTIONAL_MODULES].concat())
        }
    };
    command::run(depmod.arg(&release), "listing the guest's kernel modules", log)?;
    let mut cpio = Cpio::default();
    modules::add(&mut cpio, &root, GUEST_MODULES, &modules)?;
    fs::write(dir.join("modules.cpio"), cpio.finish())?;
    for mount_point in crate::build::MOUNT_POINTS {
        fs::create_dir_all(root.file(mount_point))?;
    }
    Ok(())
}
