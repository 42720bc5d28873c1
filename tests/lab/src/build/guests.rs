//! The files that guests boot: kernels, each with an initrd that has the module built for it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::GuestPrograms;
use super::module::{self, Modules};
use crate::cpio::Cpio;
use crate::debian::Suite;
use crate::dirs::Dirs;
use crate::fetch::{Fetched, Guest, Kernel};
use crate::progress::Progress;

/// Kernels and initrds for guests.
pub(crate) struct Guests {
    /// The files for each available kernel, the default one first.
    pub(crate) files: Vec<GuestFiles>,
    /// The releases whose kernels are not available, with the reasons.
    lacks: Vec<(Suite, String)>,
}

impl Guests {
    /// Returns why the kernel of `suite` is not available, or `None` if it is.
    pub(crate) fn lacks(&self, suite: Suite) -> Option<&str> {
        self.lacks.iter().find(|(lacking, _)| *lacking == suite).map(|(_, why)| why.as_str())
    }
}

/// The files that a guest boots.
pub(crate) struct GuestFiles {
    /// The Debian release of the kernel.
    pub(crate) suite: Suite,
    /// The kernel.
    pub(crate) kernel: PathBuf,
    /// The same, without the image around it.
    pub(crate) unpacked: PathBuf,
    /// The initrd, with the module for that kernel.
    pub(crate) initrd: PathBuf,
}

/// Builds the module for every fetched kernel, and the initrds.
///
/// # Errors
/// A step fails for the default kernel. For another kernel, [`Guests::lacks`] reports the failure.
pub(crate) fn build(
    dirs: &Dirs,
    fetched: &Fetched,
    programs: &GuestPrograms,
    logs: &Path,
    progress: &Progress,
) -> Result<Guests> {
    let guest = &fetched.guest;
    let core_root = guest.kernel().build_root();
    module::build_core(dirs, core_root, logs, progress)?;
    let files_for = |kernel: &Kernel| for_kernel(dirs, guest, kernel, programs, logs, progress);
    let mut guests = Guests { files: vec![files_for(guest.kernel())?], lacks: Vec::new() };
    for (suite, kernel) in &fetched.others {
        let files = match kernel {
            Ok(kernel) => files_for(kernel).map_err(|error| format!("{error:#}")),
            Err(error) => Err(format!("{error:#}")),
        };
        match files {
            Ok(files) => guests.files.push(files),
            Err(why) => guests.lacks.push((*suite, why)),
        }
    }
    Ok(guests)
}

/// Builds the module for `kernel`, with the core that [`build`] has built, and the initrd.
pub(crate) fn for_kernel(
    dirs: &Dirs,
    guest: &Guest,
    kernel: &Kernel,
    programs: &GuestPrograms,
    logs: &Path,
    progress: &Progress,
) -> Result<GuestFiles> {
    let modules = module::build(dirs, guest.kernel().build_root(), kernel, logs, progress)?;
    guest_files(dirs, guest, kernel, &modules, programs)
}

/// Writes the initrd for `kernel`: the distribution's part, the kernel's modules, `module`, the
/// guests' programs and the guest's init.
fn guest_files(
    dirs: &Dirs,
    guest: &Guest,
    kernel: &Kernel,
    modules: &Modules,
    programs: &GuestPrograms,
) -> Result<GuestFiles> {
    let mut ours = Cpio::default();
    ours.copy("init", &dirs.tests().join("lab/guest/init"))?;
    ours.copy("bin/probe", &programs.probe)?;
    ours.copy("bin/foreign-map", &programs.foreign_map)?;
    ours.copy("bin/user-driver", &programs.user_driver)?;
    ours.copy("bin/hostile-driver", &programs.hostile_driver)?;
    ours.copy("lib/modules/virtio_msg_xen.ko", &modules.production)?;
    ours.directories(&["lib/modules/test"]);
    ours.copy("lib/modules/test/virtio_msg_xen.ko", &modules.test)?;
    let mut bytes = fs::read(guest.initrd())?;
    bytes.extend(fs::read(kernel.modules())?);
    bytes.extend(ours.finish());
    let suite = kernel.suite();
    let initrd = dirs.lab.join(format!("guest-initrd-{}", kernel.name()));
    fs::write(&initrd, bytes)?;
    Ok(GuestFiles { suite, kernel: kernel.image(), unpacked: kernel.unpacked(), initrd })
}
