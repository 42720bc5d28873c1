//! What is built from the project, into `target/lab`.

mod module;
mod payload;
mod programs;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::cpio::Cpio;
use crate::dirs::Dirs;
use crate::fetch::Guest;
use crate::progress::Progress;

pub(crate) use module::MOUNT_POINTS;
pub(crate) use payload::{Payload, write_payload};
pub(crate) use programs::{Dom0Programs, GuestPrograms, dom0 as dom0_programs};

/// What a boot needs of the project.
pub(crate) struct Built {
    /// The programs for Dom0.
    pub(crate) dom0_programs: Dom0Programs,
    /// The programs for guests.
    pub(crate) guest_programs: GuestPrograms,
    /// The guests' initrd, with the module.
    pub(crate) guest_initrd: PathBuf,
    /// What a driver domain's initrd has beside that: the daemon.
    pub(crate) driver_domain: PathBuf,
}

/// Builds the guests' initrd, with the module and the scenarios' programs.
pub(crate) fn guest(
    dirs: &Dirs,
    guest: &Guest,
    logs: &Path,
    progress: &Progress,
) -> Result<(PathBuf, GuestPrograms)> {
    let module = module::build(dirs, guest.build_root(), logs, progress)?;
    let programs = programs::guest(dirs, logs, progress)?;
    Ok((guest_initrd(dirs, guest, module.as_deref(), &programs)?, programs))
}

/// An archive that makes an initrd of the guests' one for a driver domain: it adds the daemon.
pub(crate) fn driver_domain(dirs: &Dirs, guest: &Guest, daemon: &Path) -> Result<PathBuf> {
    let mut cpio = Cpio::default();
    cpio.copy("bin/xen-virtiod", daemon)?;
    guest.build_root().add_libraries(&mut cpio, daemon)?;
    let path = dirs.lab.join("driver-domain.cpio");
    fs::write(&path, cpio.finish())?;
    Ok(path)
}

/// The distribution's part of the guest's initrd, the module, the scenarios' programs, and what runs
/// first in the guest.
fn guest_initrd(
    dirs: &Dirs,
    guest: &Guest,
    module: Option<&Path>,
    programs: &GuestPrograms,
) -> Result<PathBuf> {
    let mut ours = Cpio::default();
    ours.copy("init", &dirs.tests().join("guest/init"))?;
    ours.copy("bin/probe", &programs.probe)?;
    ours.copy("bin/foreign-map", &programs.foreign_map)?;
    if let Some(module) = module {
        ours.copy("lib/modules/virtio_msg_xen.ko", module)?;
    }
    let mut initrd = fs::read(guest.initrd())?;
    initrd.extend(ours.finish());
    let path = dirs.lab.join("guest-initrd");
    fs::write(&path, initrd)?;
    Ok(path)
}
