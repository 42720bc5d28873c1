//! QEMU. The host's own may be too old: guests of Xen under emulation need version 10.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::{Contents, Recipe};
use crate::debian::Suite;
use crate::debian::root::Root;
use crate::progress::Progress;

const RECIPE: Recipe<'static> = Recipe {
    name: "tools",
    suite: Suite::LAB,
    packages: &[&["qemu-system-x86"]],
    contents: Contents::Files,
    revision: "1",
    finish: |_, _, _, _| Ok(()),
};

/// The fetched tools.
pub(crate) struct Tools {
    root: Root,
}

impl Tools {
    pub(super) fn fetch(cache: &Path, logs: &Path, progress: &Progress) -> Result<Tools> {
        let entry = RECIPE.entry(cache, logs, progress)?;
        let root = Root::at(entry.join("root"));
        Ok(Tools { root })
    }

    /// Returns a command that starts QEMU. The kernel kills QEMU when the thread that started it
    /// ends.
    pub(crate) fn qemu(&self) -> Command {
        let qemu = self.root.program("usr/bin/qemu-system-x86_64");
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(qemu.get_program()).args(qemu.get_args());
        for firmware in ["usr/share/qemu", "usr/share/seabios"] {
            command.arg("-L").arg(self.root.file(firmware));
        }
        command
    }
}
