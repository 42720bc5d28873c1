//! Runs a program inside a root, with directories of the host mounted there.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::root::{self, Root};

/// Run in mounts of its own. Arguments: the root; for each directory to mount `ro` or `rw`, where
/// it is and where it goes; `--`, and the program with its arguments.
const ENTER: &str = r#"set -e
root=$1
shift
while [ "$1" != -- ]; do
    mount --bind "$2" "$root/$3"
    [ "$1" = rw ] || mount -o remount,bind,ro "$root/$3"
    shift 3
done
shift
mount --rbind /dev "$root/dev"
mount --rbind /proc "$root/proc"
exec chroot "$root" env -i PATH=/usr/sbin:/usr/bin HOME=/root "$@""#;

/// What a program inside a root may do with a directory of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Read it.
    Read,
    /// Write to it too.
    Write,
}

/// A root to be entered.
pub(crate) struct Inside<'a> {
    root: &'a Root,
    mounts: Vec<(Access, PathBuf, &'static str)>,
}

impl<'a> Inside<'a> {
    /// The root as it is.
    pub(crate) fn new(root: &'a Root) -> Self {
        Inside { root, mounts: Vec::new() }
    }

    /// Mounts the host's directory `source` over the directory `target` of the root, which is
    /// there.
    pub(crate) fn mount(mut self, access: Access, source: &Path, target: &'static str) -> Self {
        self.mounts.push((access, source.to_owned(), target));
        self
    }

    /// Runs `script` by the root's shell, in an environment that is the same on every host.
    pub(crate) fn shell(&self, script: &str) -> Command {
        let mut command = root::as_root("sh");
        command.args(["-c", ENTER, "inside"]).arg(self.root.path());
        for (access, source, target) in &self.mounts {
            let access = match access {
                Access::Read => "ro",
                Access::Write => "rw",
            };
            command.arg(access).arg(source).arg(target);
        }
        command.args(["--", "sh", "-ec", script]);
        command
    }
}
