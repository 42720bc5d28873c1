//! The host that is examined.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::geteuid;
use xen::XenStoreConnection;

use super::daemon::Daemon;
use super::finding::Finding;
use super::inventory::{Inventory, StoreFailure};
use super::{images, kernel, program};
use crate::config::ConfigFile;

/// Maximum number of bytes of a file.
pub(super) const MOST_BYTES: u64 = 4 << 20;
/// Maximum number of entries of a directory.
const MOST_ENTRIES: usize = 65_536;

/// A program's output, or `None`.
type RunProgram = Box<dyn Fn(&str, &[&str]) -> Option<String>>;

/// The host that is examined. Tests make one up below another root.
pub struct Host {
    /// Where its file system begins.
    pub(super) root: PathBuf,
    /// Whether this process is root's.
    pub(super) is_root: bool,
    /// The configuration file.
    pub(super) config: ConfigFile,
    /// Its devices, as far as XenStore has them.
    pub(super) inventory: Result<Inventory, StoreFailure>,
    /// A daemon that runs.
    pub(super) daemon: Daemon,
    /// Runs a program.
    pub(super) run: RunProgram,
    /// Opens a file for reading, without waiting.
    pub(super) open: fn(&Path) -> io::Result<File>,
    /// Tries to open a device for reading and writing.
    pub(super) try_open: fn(&Path) -> io::Result<()>,
    /// Whether the file system of a file has locks.
    pub(super) try_lock: fn(&File) -> io::Result<()>,
    /// Whether the kernel makes a rule of Landlock's.
    pub(super) has_landlock: fn() -> bool,
    /// Maximum time for the storage of an image.
    pub(super) storage_limit: Duration,
    /// The maximum number of descriptors of a process that is started here.
    pub(super) most_descriptors: u64,
}

impl Host {
    /// The machine that this process runs on.
    pub fn of_this_machine(config: ConfigFile, socket: &Path) -> Self {
        let store = XenStoreConnection::open();
        Self {
            root: "/".into(),
            is_root: geteuid().is_root(),
            config,
            inventory: store
                .map_err(StoreFailure::from)
                .and_then(|mut store| Ok(Inventory::read(&mut store)?)),
            daemon: Daemon::ask(socket),
            run: Box::new(program::output),
            open,
            try_open,
            try_lock,
            has_landlock: kernel::has_landlock,
            storage_limit: images::LIMIT,
            most_descriptors: getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(_, most)| most),
        }
    }

    /// The place of an absolute path.
    pub(super) fn path(&self, absolute: impl AsRef<Path>) -> PathBuf {
        let absolute = absolute.as_ref();
        self.root.join(absolute.strip_prefix("/").unwrap_or(absolute))
    }

    /// Whether there is a file.
    pub(super) fn has(&self, path: impl AsRef<Path>) -> bool {
        self.path(path).exists()
    }

    /// The text of a file, at most [`MOST_BYTES`] of it.
    pub(super) fn text(&self, path: impl AsRef<Path>) -> io::Result<String> {
        let mut bytes = Vec::new();
        (self.open)(&self.path(path))?.take(MOST_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The first line of a file, without spaces around it; empty if there is none.
    pub(super) fn line(&self, path: impl AsRef<Path>) -> String {
        let text = self.text(path).unwrap_or_default();
        text.lines().next().unwrap_or_default().trim().to_owned()
    }

    /// The number in the first line of a file.
    pub(super) fn number(&self, path: impl AsRef<Path>) -> Option<u64> {
        self.line(path).parse().ok()
    }

    /// The names in a directory; none if it cannot be read.
    pub(super) fn names(&self, directory: impl AsRef<Path>) -> Vec<OsString> {
        let entries = fs::read_dir(self.path(directory)).into_iter().flatten();
        entries.take(MOST_ENTRIES).flatten().map(|entry| entry.file_name()).collect()
    }

    /// Whether this is a PV domain, for which Xen's map tracking needs two entries for a page.
    pub(super) fn is_pv(&self) -> bool {
        self.line("/sys/hypervisor/guest_type") == "PV"
    }

    /// Whether this domain runs xl.
    pub(super) fn is_dom0(&self) -> bool {
        let capabilities = self.line("/proc/xen/capabilities");
        let has_control = capabilities.split(',').any(|it| it == "control_d");
        has_control || self.inventory.as_ref().is_ok_and(|it| it.own == Some(0))
    }

    /// The devices of guests, or the finding that they cannot be seen.
    pub(super) fn inventory(&self) -> Result<&Inventory, Finding> {
        let unseen = "XenStore does not show the devices of guests";
        self.inventory.as_ref().map_err(|_| Finding::unknown(unseen))
    }

    /// A guest's name, or its domain id where XenStore does not show it.
    pub(super) fn guest(&self, id: u16) -> String {
        let guests = self.inventory.iter().flat_map(|inventory| &inventory.guests);
        let mut named = guests.filter(|guest| guest.id == id && !guest.name.is_empty());
        named.next().map_or_else(|| format!("domain {id}"), |guest| guest.name.clone())
    }

    /// Whether systemd runs this system.
    pub(super) fn has_systemd(&self) -> bool {
        self.has("/run/systemd/system")
    }

    /// The value of a line `name : value` of `xl info`, if this is Dom0.
    pub(super) fn xl_info(&self, name: &str) -> Option<String> {
        let info = self.is_dom0().then(|| (self.run)("xl", &["info"]))??;
        let mut lines = info.lines().filter_map(|line| line.split_once(':'));
        let (_, value) = lines.find(|(found, _)| found.trim() == name)?;
        Some(value.trim().to_owned())
    }

    /// The number that Xen's command line gives an option.
    pub(super) fn xen_option(&self, name: &str) -> Option<u64> {
        let options = self.xl_info("xen_commandline")?;
        let mut options = options.split_whitespace().filter_map(|word| word.split_once('='));
        // The last one counts.
        options.rfind(|(found, _)| *found == name)?.1.parse().ok()
    }
}

/// A pipe would keep this process.
pub(super) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)
}

pub(super) fn try_open(path: &Path) -> io::Result<()> {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path).map(drop)
}

/// Asks who has a lock. That takes none.
pub(super) fn try_lock(file: &File) -> io::Result<()> {
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 1,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock))?;
    Ok(())
}
