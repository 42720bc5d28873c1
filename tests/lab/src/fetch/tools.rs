//! QEMU. The host's own may be too old: guests of Xen under emulation need version 10. For another
//! architecture, also what compiles for it and makes its images.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::{Contents, Platform, Recipe};
use crate::build::MOUNT_POINTS;
use crate::debian::root::Root;
use crate::debian::{Arch, Suite};
use crate::progress::Progress;

const RECIPE: Recipe<'static> = Recipe {
    name: "tools",
    suite: Suite::LAB,
    platform: Platform::HOST,
    packages: &[&["qemu-system-x86"]],
    contents: Contents::Files,
    revision: "1",
    finish: |_, _, _, _| Ok(()),
};

const AARCH64: Recipe<'static> = Recipe {
    name: "tools-arm64",
    packages: &[
        &["qemu-system-arm"],
        // What makes images and unpacks modules,
        &["busybox-static", "e2fsprogs", "kmod"],
        // what compiles programs, and the libraries that they are linked with,
        &["cargo-web", "gcc", "gcc-aarch64-linux-gnu", "libc6-dev", "libc6-dev-arm64-cross"],
        &["rust-web-src", "rustc-web"],
        // and modules: of these headers, the programs, which are of the same version.
        &["linux-headers-cloud-amd64", "make"],
        &["bash", "coreutils", "dash", "diffutils", "findutils", "grep", "mawk", "sed"],
    ],
    revision: "1",
    finish: |_, root, _, _| {
        for directory in MOUNT_POINTS {
            fs::create_dir_all(root.file(directory))?;
        }
        Ok(())
    },
    ..RECIPE
};

/// The fetched tools.
pub(crate) struct Tools {
    arch: Arch,
    root: Root,
}

impl Tools {
    pub(super) fn fetch(
        arch: Arch,
        cache: &Path,
        logs: &Path,
        progress: &Progress,
    ) -> Result<Tools> {
        let recipe = match arch {
            Arch::X86_64 => RECIPE,
            Arch::Aarch64 => AARCH64,
        };
        let root = recipe.root_at(&recipe.entry(cache, logs, progress)?);
        Ok(Tools { arch, root })
    }

    /// Returns the architecture of the machines.
    pub(crate) fn arch(&self) -> Arch {
        self.arch
    }

    /// Returns the root of the tools.
    pub(crate) fn root(&self) -> &Root {
        &self.root
    }

    /// Returns a command that starts QEMU. The kernel kills QEMU when the thread that started it
    /// ends.
    pub(crate) fn qemu(&self) -> Command {
        let qemu = self.root.program(&format!("usr/bin/qemu-system-{}", self.arch));
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(qemu.get_program()).args(qemu.get_args());
        for firmware in ["usr/share/qemu", "usr/share/seabios"] {
            command.arg("-L").arg(self.root.file(firmware));
        }
        command
    }
}
