//! Builds the project's programs, modules and archives into `target/lab`.

mod compiler;
#[cfg(test)]
mod guest_doctor;
mod guest_system;
mod guests;
mod module;
mod packages;
mod payload;
mod programs;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::cpio::Cpio;
use crate::dirs::Dirs;
use crate::fetch::Guest;

pub(crate) use compiler::Compiler;
pub(crate) use guest_system::{StorageTools, guest_system};
pub(crate) use guests::{GuestFiles, Guests, build as guests, for_kernel as guest};
pub(crate) use module::{MOUNT_POINTS, build_core as module_core};
pub(crate) use packages::PackagesBuild;
pub(crate) use payload::{Installation, Payload, write_payload};
pub(crate) use programs::{
    Dom0Programs, GuestPrograms, dom0 as dom0_programs, guest as guest_programs,
};

/// Modules that a driver domain needs beside those of every guest.
const BACKEND_MODULES: &[&str] = &["xen-blkfront"];

/// The project's build products that a boot needs.
pub(crate) struct Built {
    /// The programs for Dom0.
    pub(crate) dom0_programs: Dom0Programs,
    /// The programs for guests.
    pub(crate) guest_programs: GuestPrograms,
    /// Kernels and initrds for guests.
    pub(crate) guests: Guests,
    /// The archive that adds xen-virtiod to a guest's initrd, for a driver domain.
    pub(crate) driver_domain: PathBuf,
    /// The same archive with the backend vm-memory-xen instead of xen-virtiod.
    pub(crate) vm_memory_xen: PathBuf,
}

/// Writes the archive `NAME.cpio` and returns its path.
///
/// Appended to a guest's initrd, it makes a driver domain's: it adds the backend `program`, its
/// libraries and further modules.
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
    let mut archive = cpio.finish();
    archive.extend(guest.kernel().further_modules(BACKEND_MODULES)?);
    let path = dirs.lab.join(format!("{name}.cpio"));
    fs::write(&path, archive)?;
    Ok(path)
}
