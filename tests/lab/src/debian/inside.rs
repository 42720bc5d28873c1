//! Runs a program inside a root, on which directories of the host are mounted.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::root::{self, Root};

/// A shell script that runs in a mount namespace of its own. Arguments: `kept` or `lost`, which is
/// the fate of changes to the root; the root; for each mount, `ro` or `rw`, the host's directory
/// and the directory in the root; `--`; the program with its arguments.
const ENTER: &str = r#"set -e
root=$2
if [ "$1" = lost ]; then
    lower=$root
    root=$(mktemp -d)
    mount -t tmpfs lab "$root"
    mkdir "$root/changes" "$root/work" "$root/root"
    mount -t overlay lab -o "lowerdir=$lower,upperdir=$root/changes,workdir=$root/work" "$root/root"
    root=$root/root
fi
shift 2
while [ "$1" != -- ]; do
    mount --bind "$2" "$root/$3"
    [ "$1" = rw ] || mount -o remount,bind,ro "$root/$3"
    shift 3
done
shift
mount --rbind /dev "$root/dev"
mount --rbind /proc "$root/proc"
exec chroot "$root" env -i PATH=/usr/sbin:/usr/bin HOME=/root "$@""#;

/// A program's access to a directory of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// The program can only read.
    Read,
    /// The program can read and write.
    Write,
}

/// The fate of a program's changes to the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Changes {
    Kept,
    /// They are in memory, and end with the program.
    Lost,
}

/// A root, and the mounts that a program inside it sees.
pub(crate) struct Inside<'a> {
    root: &'a Root,
    changes: Changes,
    mounts: Vec<(Access, PathBuf, &'static str)>,
}

impl<'a> Inside<'a> {
    /// Returns `root` without mounts of the host's directories.
    pub(crate) fn new(root: &'a Root) -> Self {
        Inside { root, changes: Changes::Kept, mounts: Vec::new() }
    }

    /// Returns a copy of `root` in memory, without mounts of the host's directories.
    pub(crate) fn copy_of(root: &'a Root) -> Self {
        Inside { root, changes: Changes::Lost, mounts: Vec::new() }
    }

    /// Mounts the host's directory `source` on the root's directory `target`, which must exist.
    pub(crate) fn mount(mut self, access: Access, source: &Path, target: &'static str) -> Self {
        self.mounts.push((access, source.to_owned(), target));
        self
    }

    /// Returns a command that runs `script` with the root's shell, in an environment that is the
    /// same on every host.
    pub(crate) fn shell(&self, script: &str) -> Command {
        let mut command = root::as_root("sh");
        let changes = match self.changes {
            Changes::Kept => "kept",
            Changes::Lost => "lost",
        };
        command.args(["-c", ENTER, "inside", changes]).arg(self.root.path());
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
