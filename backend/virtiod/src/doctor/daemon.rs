//! Whether a daemon runs, and which.

use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use xen::Causes;

use super::finding::Finding;
use super::host::Host;
use super::inventory::Inventory;
use crate::daemon::control::{self, ControlError};
use crate::daemon::registry::Report;

/// This program's version.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The kernel's addition to the name of a program that is not there any more.
const DELETED: &str = " (deleted)";
/// Directories of systemd's units.
const UNITS: [&str; 3] = ["/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];
const RESTART: &str = "systemctl restart xen-virtiod   # its guests see a pause";

/// The answer to a question to the daemon.
#[derive(Clone, Debug)]
pub(super) enum Daemon {
    /// It answers.
    Present {
        /// Its process, if the kernel names it.
        process: Option<i32>,
        /// The devices.
        report: Report,
    },
    /// Nobody listens.
    Absent,
    /// This user may not ask.
    NotPermitted,
    /// It does not answer, or not as this program understands it.
    Wrong(String),
}

impl Daemon {
    /// Asks the daemon that listens on a socket.
    pub(super) fn ask(socket: &Path) -> Self {
        match control::ask(socket) {
            Ok(report) => Self::Present { process: process_of(socket), report },
            Err(ControlError::Ask { source, .. }) => match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Self::Absent,
                io::ErrorKind::PermissionDenied => Self::NotPermitted,
                _ => Self::Wrong(source.to_string()),
            },
            Err(error) => Self::Wrong(Causes(&error).to_string()),
        }
    }

    /// The process of a daemon that answers.
    pub(super) fn process(&self) -> Option<i32> {
        match self {
            Self::Present { process, .. } => *process,
            _ => None,
        }
    }
}

/// The process that listens on a socket.
fn process_of(socket: &Path) -> Option<i32> {
    let stream = UnixStream::connect(socket).ok()?;
    let peer = rustix::net::sockopt::socket_peercred(&stream).ok()?;
    Some(peer.pid.as_raw_nonzero().get())
}

pub(super) fn examine(host: &Host) -> Vec<Finding> {
    let finding = match &host.daemon {
        Daemon::Present { process: Some(process), .. } => examine_program(host, *process),
        Daemon::Present { process: None, .. } => Finding::ok("it answers"),
        Daemon::NotPermitted => Finding::root_only("the daemon's control socket"),
        Daemon::Absent => absent(host),
        Daemon::Wrong(why) => {
            let text = format!("a daemon listens, but gives no answer that can be read: {why}");
            Finding::error(text).mend(RESTART)
        }
    };
    vec![finding]
}

fn absent(host: &Host) -> Finding {
    if host.inventory.as_ref().is_ok_and(Inventory::is_served_elsewhere) {
        return Finding::ok("no daemon runs here, and driver domains serve all devices");
    }
    let finding = Finding::error("no daemon runs: guests wait for their devices");
    if !host.has_systemd() {
        return finding.mend("modprobe -a xen-gntdev xen-evtchn; xen-virtiod &");
    }
    let mut units = UNITS.iter().map(|directory| Path::new(directory).join("xen-virtiod.service"));
    match units.any(|unit| host.has(unit)) {
        true => finding.mend("systemctl enable --now xen-virtiod; journalctl -u xen-virtiod -n 20"),
        false => finding
            .mend("install -m 644 backend/virtiod/xen-virtiod.service /etc/systemd/system/")
            .mend("systemctl daemon-reload; systemctl enable --now xen-virtiod"),
    }
}

/// Compares the daemon's program with this one.
fn examine_program(host: &Host, process: i32) -> Finding {
    let link = PathBuf::from(format!("/proc/{process}/exe"));
    let program = fs::read_link(host.path(&link)).unwrap_or_default();
    let program = program.to_string_lossy();
    // By this name the kernel finds the program also when another has taken its place.
    let said = (host.run)(&link.to_string_lossy(), &["--version"]).unwrap_or_default();
    let version = said.trim().strip_prefix("xen-virtiod ").unwrap_or_default();
    if let Some(program) = program.strip_suffix(DELETED) {
        let text = format!("the running daemon is older than {program}, which was replaced");
        return Finding::warning(text).mend(RESTART);
    }
    if version.is_empty() {
        return Finding::unknown(format!("process {process} answers, of an unknown version"));
    }
    if version != VERSION {
        let text =
            format!("the running daemon, {program}, has version {version}, this program {VERSION}");
        return Finding::warning(text)
            .mend(format!("install \"$(command -v xen-virtiod)\" {program}; {RESTART}"));
    }
    Finding::ok(format!("version {version} answers (process {process}, {program})"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::sync::Arc;

    use super::super::tests::{PROCESS, TestHost};
    use super::*;
    use crate::daemon::control::{Control, ControlSocket};

    const CHECK: &str = "daemon";

    #[test]
    fn absent_daemon_is_an_error_with_the_commands_of_the_system() {
        let mut host = TestHost::healthy();
        host.expect(CHECK, &["ok: version ", "answers (process 77, /usr/local/sbin/xen-virtiod)"]);
        host.host.daemon = Daemon::Absent;
        host.expect(CHECK, &["error: no daemon runs", "systemctl enable --now xen-virtiod; journ"]);
        host.remove("/etc/systemd/system/xen-virtiod.service");
        host.expect(CHECK, &["mend: install -m 644 backend", "mend: systemctl daemon-reload"]);
        host.remove("/run/systemd/system");
        host.expect(CHECK, &["modprobe -a xen-gntdev xen-evtchn; xen-virtiod &"]);
    }

    #[test]
    fn dom0_whose_driver_domains_serve_all_devices_needs_no_daemon() {
        let mut host = TestHost::healthy();
        host.host.daemon = Daemon::Absent;
        host.serve_elsewhere("{}");
        host.expect(CHECK, &["error: no daemon runs"]);
        host.hypervisor.store_remove("/local/domain/0/backend");
        host.expect(CHECK, &["ok: no daemon runs here, and driver domains serve all devices"]);
    }

    #[test]
    fn daemon_of_another_version_is_a_warning() {
        let mut host = TestHost::healthy();
        host.answer(&format!("/proc/{PROCESS}/exe --version"), "xen-virtiod 0.0.9\n");
        host.expect(CHECK, &["warning: the running daemon", "has version 0.0.9", "mend: install"]);
        host.answer(&format!("/proc/{PROCESS}/exe --version"), "");
        host.expect(CHECK, &["unknown: process 77 answers"]);
    }

    #[test]
    fn replaced_program_is_a_warning() {
        let host = TestHost::healthy();
        host.link(&format!("/proc/{PROCESS}/exe"), "/usr/local/sbin/xen-virtiod (deleted)");
        host.expect(
            CHECK,
            &[
                "warning: the running daemon is older than /usr/local/sbin/xen-virtiod, which",
                "mend: systemctl restart",
            ],
        );
    }

    #[test]
    fn answer_of_the_socket_decides() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("control");
        assert!(matches!(Daemon::ask(&socket), Daemon::Absent));
        drop(UnixListener::bind(&socket).unwrap());
        assert!(matches!(Daemon::ask(&socket), Daemon::Absent), "a socket that was left");
        std::fs::remove_file(&socket).unwrap();
        let _control = ControlSocket::listen(&socket, Control::for_test(Arc::default())).unwrap();
        let daemon = Daemon::ask(&socket);
        assert_eq!(daemon.process(), Some(std::process::id() as i32), "{daemon:?}");
        let mut host = TestHost::healthy();
        host.host.daemon = Daemon::Wrong("not a report".to_owned());
        host.expect(CHECK, &["error: a daemon listens", "not a report", "systemctl restart"]);
        host.host.daemon = Daemon::NotPermitted;
        host.expect(CHECK, &["unknown: the daemon's control socket: only root"]);
    }
}
