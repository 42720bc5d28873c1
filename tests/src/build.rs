//! What is built from the project, into `target/lab`.

mod module;
mod payload;
mod programs;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::cpio::Cpio;
use crate::debian::Suite;
use crate::dirs::Dirs;
use crate::fetch::{Guest, Kernel};
use crate::progress::Progress;

pub(crate) use module::MOUNT_POINTS;
pub(crate) use payload::{Payload, write_payload};
pub(crate) use programs::{
    Dom0Programs, GuestPrograms, dom0 as dom0_programs, guest as guest_programs,
};

/// What a boot needs of the project.
pub(crate) struct Built {
    /// The programs for Dom0.
    pub(crate) dom0_programs: Dom0Programs,
    /// The programs for guests.
    pub(crate) guest_programs: GuestPrograms,
    /// What guests boot, a kernel each.
    pub(crate) guests: Vec<GuestFiles>,
    /// What a driver domain's initrd has beside a guest's: the daemon.
    pub(crate) driver_domain: PathBuf,
}

/// What a guest boots.
pub(crate) struct GuestFiles {
    /// The release that the kernel is of.
    pub(crate) suite: Suite,
    /// The kernel.
    pub(crate) kernel: PathBuf,
    /// The initrd, with the module for that kernel.
    pub(crate) initrd: PathBuf,
}

/// An archive that makes an initrd of the guests' one for a driver domain: it adds the daemon.
pub(crate) fn driver_domain(dirs: &Dirs, guest: &Guest, daemon: &Path) -> Result<PathBuf> {
    let mut cpio = Cpio::default();
    cpio.copy("bin/xen-virtiod", daemon)?;
    guest.kernel().build_root().add_libraries(&mut cpio, daemon)?;
    let path = dirs.lab.join("driver-domain.cpio");
    fs::write(&path, cpio.finish())?;
    Ok(path)
}

/// What guests of every kernel share.
pub(crate) struct GuestParts<'a> {
    dirs: &'a Dirs,
    guest: &'a Guest,
    programs: &'a GuestPrograms,
}

impl<'a> GuestParts<'a> {
    /// Builds the module's core.
    pub(crate) fn build(
        dirs: &'a Dirs,
        guest: &'a Guest,
        programs: &'a GuestPrograms,
        logs: &Path,
        progress: &Progress,
    ) -> Result<GuestParts<'a>> {
        module::build_core(dirs, guest.kernel().build_root(), logs, progress)?;
        Ok(GuestParts { dirs, guest, programs })
    }

    /// Builds the module for `kernel`, and the initrd that goes with it: the distribution's part,
    /// the module, the guests' programs, and what runs first in the guest.
    pub(crate) fn files_for(
        &self,
        kernel: &Kernel,
        logs: &Path,
        progress: &Progress,
    ) -> Result<GuestFiles> {
        let suite = kernel.suite();
        let core_root = self.guest.kernel().build_root();
        let module = module::build(self.dirs, core_root, kernel, logs, progress)?;
        let mut ours = Cpio::default();
        ours.copy("init", &self.dirs.tests().join("guest/init"))?;
        ours.copy("bin/probe", &self.programs.probe)?;
        ours.copy("bin/foreign-map", &self.programs.foreign_map)?;
        ours.copy("lib/modules/virtio_msg_xen.ko", &module)?;
        let mut initrd = fs::read(self.guest.initrd())?;
        initrd.extend(fs::read(kernel.modules())?);
        initrd.extend(ours.finish());
        let path = self.dirs.lab.join(format!("guest-initrd-{suite}"));
        fs::write(&path, initrd)?;
        Ok(GuestFiles { suite, kernel: kernel.image(), initrd: path })
    }
}
