//! The targets of guests' disks. Each is looked at in a thread of its own: a server that is gone
//! may keep it for ever.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sys::statfs::{FsType, fstatfs};

use super::finding::Finding;
use super::host::Host;
use super::inventory::{Kind, ServedDevice};

/// Maximum time for one target, and the number of targets that may take so long.
pub(super) const LIMIT: Duration = Duration::from_secs(3);
const MOST_HANGING: usize = 3;

/// Names of file systems that may have no locks (`linux/magic.h`).
const FILE_SYSTEMS: [(u32, &str); 8] = [
    (0x6969, "NFS"),
    (0x517b, "SMB"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB"),
    (0x6573_5546, "FUSE"),
    (0x0102_1997, "9p"),
    (0x00c3_6400, "Ceph"),
    (0x794c_7630, "overlayfs"),
];

/// The result of a look at a target.
#[derive(Debug)]
enum Target {
    Fine,
    Missing,
    NotPermitted,
    Neither,
    /// The file system has no locks.
    NoLocks {
        file_system: String,
        error: io::Error,
    },
    Failed(io::Error),
}

pub(super) fn examine(host: &Host) -> Vec<Finding> {
    let inventory = match host.inventory() {
        Ok(inventory) => inventory,
        Err(unknown) => return vec![unknown],
    };
    let disks: Vec<_> = inventory.served.iter().filter(|it| it.kind == Kind::Disk).collect();
    let (mut findings, mut hanging, mut unseen) = (Vec::new(), 0, 0);
    for disk in &disks {
        let Some(target) = &disk.target else { continue };
        if hanging >= MOST_HANGING {
            unseen += 1;
            continue;
        }
        let found = examine_in_time(host, host.path(target));
        hanging += usize::from(found.is_none());
        findings.extend(examine_one(host, disk, target, found));
    }
    if unseen > 0 {
        findings
            .push(Finding::unknown(format!("{unseen} more target(s): storage does not answer")));
    }
    match findings.is_empty() {
        true => vec![Finding::ok(format!("the targets of {} disk(s) are there", disks.len()))],
        false => findings,
    }
}

fn examine_one(
    host: &Host,
    disk: &ServedDevice,
    target: &Path,
    found: Option<Target>,
) -> Option<Finding> {
    let guest = host.guest(disk.guest);
    let (text, path) = (format!("{target:?} of {guest}"), quoted(target));
    Some(match found {
        Some(Target::Fine) => return None,
        None => {
            let seconds = host.storage_limit.as_secs();
            Finding::error(format!("{text}: its storage has not answered for {seconds} s"))
                .mend("xen-virtiod stat   # shows requests that wait; then repair the storage")
        }
        Some(Target::Missing) => Finding::error(format!("{text} does not exist"))
            .mend(format!("findmnt -T {path}   # is its file system mounted?")),
        Some(Target::NotPermitted) if !host.is_root => Finding::root_only(&text),
        Some(Target::Neither) => {
            Finding::error(format!("{text} is neither a file nor a block device"))
                .mend("editor FILE   # in Dom0, target= in the guest's disk line")
        }
        Some(Target::NoLocks { file_system, error }) => {
            let text = format!(
                "{text} is on {file_system}, which has no locks ({error}): nothing keeps another \
                 program from the image, and the disk ends when the daemon does"
            );
            Finding::warning(text).mend(format!("xl shutdown -w {}   # in Dom0", disk.guest)).mend(
                format!(
                    "mv {path} /var/lib/xen/images/   # then name that in the guest's disk line"
                ),
            )
        }
        Some(Target::NotPermitted) => Finding::error(format!("{text} cannot be opened"))
            .mend(format!("ls -l {path}; dmesg | grep DENIED")),
        Some(Target::Failed(error)) => Finding::error(format!("{text} cannot be opened: {error}"))
            .mend(format!("ls -l {path}")),
    })
}

/// A path as a shell takes it, whatever its letters.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

/// Looks at a target; `None` if that takes too long.
fn examine_in_time(host: &Host, target: PathBuf) -> Option<Target> {
    let (open, try_lock) = (host.open, host.try_lock);
    let (send, receive) = mpsc::channel();
    let examine = move || {
        let found =
            examine_target(&target, open, try_lock).unwrap_or_else(|error| match error.kind() {
                io::ErrorKind::NotFound => Target::Missing,
                io::ErrorKind::PermissionDenied => Target::NotPermitted,
                _ => Target::Failed(error),
            });
        // Nobody waits for it any more if it comes late.
        let _ = send.send(found);
    };
    thread::Builder::new().name("target".to_owned()).spawn(examine).ok()?;
    receive.recv_timeout(host.storage_limit).ok()
}

fn examine_target(
    target: &Path,
    open: fn(&Path) -> io::Result<File>,
    try_lock: fn(&File) -> io::Result<()>,
) -> io::Result<Target> {
    let kind = fs::metadata(target)?.file_type();
    // Locks on block devices are the kernel's own.
    if kind.is_block_device() {
        return Ok(Target::Fine);
    }
    if !kind.is_file() {
        return Ok(Target::Neither);
    }
    let file = open(target)?;
    Ok(match try_lock(&file) {
        Ok(()) => Target::Fine,
        Err(error) => Target::NoLocks { file_system: file_system(&file), error },
    })
}

fn file_system(file: &File) -> String {
    let Ok(found) = fstatfs(file).map(|facts| facts.filesystem_type()) else {
        return "a file system".to_owned();
    };
    let named = FILE_SYSTEMS.iter().find(|(number, _)| found == FsType((*number).into()));
    named.map_or("a file system".to_owned(), |(_, name)| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::host;
    use super::super::inventory::StoreFailure;
    use super::super::tests::TestHost;
    use super::*;

    const CHECK: &str = "images";

    #[test]
    fn missing_target_is_an_error() {
        let host = TestHost::healthy();
        host.expect(CHECK, &["ok: the targets of 1 disk(s)"]);
        host.remove("/images/web.img");
        host.expect(CHECK, &["error: \"/images/web.img\" of web does not exist", "findmnt -T"]);
        host.write("/images/web.img/file", "");
        host.expect(CHECK, &["error: \"/images/web.img\" of web is neither a file nor"]);
    }

    #[test]
    fn path_in_a_command_is_no_command_itself() {
        let host = TestHost::healthy();
        host.disk(3, 51728, "/images/a'b $(id)");
        host.expect(CHECK, &["error: ", r"mend: findmnt -T '/images/a'\''b $(id)'   #"]);
    }

    #[test]
    fn file_system_without_locks_is_a_warning() {
        let mut host = TestHost::healthy();
        host.host.try_lock = |_| Err(io::ErrorKind::Unsupported.into());
        host.expect(
            CHECK,
            &[
                "warning: \"/images/web.img\" of web is on",
                "has no locks",
                "mv '/images/web.img' /var",
            ],
        );
        assert_eq!(FsType(0x6969), nix::sys::statfs::NFS_SUPER_MAGIC);
    }

    #[test]
    fn target_of_another_user_is_roots() {
        let mut host = TestHost::healthy();
        host.host.open = |path| match path.ends_with("images/web.img") {
            true => Err(io::ErrorKind::PermissionDenied.into()),
            false => host::open(path),
        };
        host.expect(CHECK, &["error: \"/images/web.img\" of web cannot be opened"]);
        host.host.is_root = false;
        host.expect(CHECK, &["unknown: \"/images/web.img\" of web: only root"]);
    }

    #[test]
    fn storage_that_does_not_answer_keeps_the_check_for_a_limited_time() {
        let mut host = TestHost::healthy();
        for guest in 10..14 {
            host.disk(guest, 51712, "/images/web.img");
        }
        host.host.storage_limit = Duration::from_millis(20);
        // As a server that is gone: until the test's process ends.
        host.host.try_lock = |_| {
            loop {
                thread::park();
            }
        };
        host.expect(CHECK, &["its storage has not answered", "unknown: 2 more target(s)"]);
        host.fail_store(StoreFailure::NotPermitted);
        host.expect(CHECK, &["unknown: XenStore does not show"]);
    }
}
