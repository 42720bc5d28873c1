//! What is built from the project, into `target/lab`.

mod module;
mod payload;
mod probe;
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
pub(crate) use programs::build as programs;

/// What a boot needs of the project.
pub(crate) struct Built {
    /// The programs for Dom0.
    pub(crate) programs: Vec<PathBuf>,
    /// The guests' initrd, with the module.
    pub(crate) guest_initrd: PathBuf,
}

/// Builds the guests' initrd, with the module and `probe`.
pub(crate) fn guest(
    dirs: &Dirs,
    guest: &Guest,
    logs: &Path,
    progress: &Progress,
) -> Result<PathBuf> {
    let module = module::build(dirs, guest.build_root(), logs, progress)?;
    let probe = probe::build(dirs, logs, progress)?;
    guest_initrd(dirs, guest, module.as_deref(), &probe)
}

/// The distribution's part of the guest's initrd, the module, `probe`, and what runs first in the
/// guest.
fn guest_initrd(
    dirs: &Dirs,
    guest: &Guest,
    module: Option<&Path>,
    probe: &Path,
) -> Result<PathBuf> {
    let mut ours = Cpio::default();
    ours.copy("init", &dirs.tests().join("guest/init"))?;
    ours.copy("bin/probe", probe)?;
    if let Some(module) = module {
        ours.copy("lib/modules/virtio_msg_xen.ko", module)?;
    }
    let mut initrd = fs::read(guest.initrd())?;
    initrd.extend(ours.finish());
    let path = dirs.lab.join("guest-initrd");
    fs::write(&path, initrd)?;
    Ok(path)
}
