//! Kernels for guests: the distribution's for virtual machines, and what builds modules for exactly
//! that kernel. It is one root, so that kernel and headers cannot differ.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{Recipe, modules};
use crate::command;
use crate::cpio::Cpio;
use crate::debian::Suite;
use crate::debian::root::{self, Root};
use crate::progress::{Progress, Step};

/// Kernel, headers and a compiler of the same release, as the headers ask for it.
pub(super) const PACKAGES: &[&str] = &[
    "linux-image-cloud-amd64",
    "linux-headers-cloud-amd64",
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
    "make",
    "mawk",
    "sed",
    "xz-utils",
];

/// The stock modules that a guest loads beside `virtio_msg_xen`, and those that its script may
/// load: drivers of other devices and of cards, and what a driver domain needs.
const GUEST_MODULES: &[&str] = &["virtio_blk"];
const OPTIONAL_MODULES: &[&str] = &[
    "virtio_console",
    "virtio_net",
    "virtio-rng",
    "vmw_vsock_virtio_transport",
    "xen-evtchn",
    "xen-gntalloc",
    "xen-gntdev",
    "xen-pcifront",
    "xen-privcmd",
    "xenfs",
    "bridge",
    "tun",
];

/// A fetched kernel.
pub(crate) struct Kernel {
    suite: Suite,
    entry: PathBuf,
    root: Root,
}

impl Kernel {
    /// Fetches the kernel of `suite` alone.
    pub(super) fn fetch(
        suite: Suite,
        cache: &Path,
        logs: &Path,
        progress: &Progress,
    ) -> Result<Kernel> {
        let recipe = Recipe {
            name: &format!("kernel-{suite}"),
            suite,
            packages: &[PACKAGES],
            revision: "3",
            finish,
        };
        Ok(Kernel::at(suite, recipe.entry(cache, logs, progress)?))
    }

    /// The kernel that [`finish`] left in the directory `entry` of the cache.
    pub(super) fn at(suite: Suite, entry: PathBuf) -> Kernel {
        let root = Root::at(entry.join("root"));
        Kernel { suite, entry, root }
    }

    /// The release of Debian that the kernel is of.
    pub(crate) fn suite(&self) -> Suite {
        self.suite
    }

    /// The root that modules are built in.
    pub(crate) fn build_root(&self) -> &Root {
        &self.root
    }

    /// What boots.
    pub(crate) fn image(&self) -> PathBuf {
        self.entry.join("vmlinuz")
    }

    /// The part of a guest's initrd that holds the kernel's own modules.
    pub(crate) fn modules(&self) -> PathBuf {
        self.entry.join("modules.cpio")
    }

    /// An archive that adds further modules of the kernel's to a guest's initrd, for a script to
    /// load.
    pub(crate) fn further_modules(&self, names: &[&str]) -> Result<Vec<u8>> {
        let mut cpio = Cpio::default();
        modules::add_optional(&mut cpio, &self.root, names)?;
        Ok(cpio.finish())
    }
}

/// Takes the kernel out of `root`.
pub(super) fn finish(dir: &Path, root: Root, step: &Step, log: &Path) -> Result<()> {
    step.at("taking the kernel's modules");
    fs::copy(root.kernel_image()?, dir.join("vmlinuz"))?;
    let mut depmod = root::as_root("chroot"); // it may be an absolute link
    depmod.arg(root.path()).args(["/usr/sbin/depmod", &root.kernel_release()?]);
    command::run(&mut depmod, "listing the guest's kernel modules", log)?;
    let mut cpio = Cpio::default();
    modules::add(&mut cpio, &root, GUEST_MODULES, OPTIONAL_MODULES)?;
    fs::write(dir.join("modules.cpio"), cpio.finish())?;
    for mount_point in crate::build::MOUNT_POINTS {
        fs::create_dir_all(root.file(mount_point))?;
    }
    Ok(())
}
