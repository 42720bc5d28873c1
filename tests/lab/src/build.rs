//! What is built from the project, into `target/lab`.

mod debian;
mod guests;
mod module;
mod payload;
mod programs;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::cpio::Cpio;
use crate::dirs::Dirs;
use crate::fetch::Guest;

pub(crate) use debian::DebianBuild;
pub(crate) use guests::{GuestFiles, Guests, build as guests};
pub(crate) use module::{MOUNT_POINTS, build_core as module_core};
pub(crate) use payload::{Installation, Payload, write_payload};
pub(crate) use programs::{
    Dom0Programs, GuestPrograms, dom0 as dom0_programs, guest as guest_programs,
};

/// What a boot needs of the project.
pub(crate) struct Built {
    /// The programs for Dom0.
    pub(crate) dom0_programs: Dom0Programs,
    /// The programs for guests.
    pub(crate) guest_programs: GuestPrograms,
    /// What guests boot.
    pub(crate) guests: Guests,
    /// What a driver domain's initrd has beside a guest's: the daemon.
    pub(crate) driver_domain: PathBuf,
    /// As that, with another backend in the daemon's place.
    pub(crate) vm_memory_xen: PathBuf,
}

/// An archive, `NAME.cpio`, that makes an initrd of the guests' one for a driver domain: it adds
/// what serves the devices.
pub(crate) fn backend_archive(
    dirs: &Dirs,
    guest: &Guest,
    name: &str,
    program: &Path,
) -> Result<PathBuf> {
    let mut cpio = Cpio::default();
    let file = program.file_name().unwrap_or_default().to_string_lossy();
    cpio.copy(&format!("bin/{file}"), program)?;
    guest.kernel().build_root().add_libraries(&mut cpio, program)?;
    let path = dirs.lab.join(format!("{name}.cpio"));
    fs::write(&path, cpio.finish())?;
    Ok(path)
}
