//! Runs the script of an interface: `SCRIPT online type_if=vif`, and `offline` when the interface
//! is gone, in the environment that libxl gives it for a vif.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use rustix::process::{Pid as PidForFd, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use uring::waiting::wait_by_poll;

use super::process_log;
use crate::bus::DevicePath;
use crate::device::AwaitedFd;
use crate::tap::name::InterfaceName;
use crate::tap::script::{ScriptError, ScriptPath};
use xen::DomId;

/// Time that a script has, as libxl gives it.
pub(super) const LIMIT: Duration = Duration::from_secs(40);
/// Time between two looks whether it is to be stopped.
const LOOK: Duration = Duration::from_millis(200);

/// Where programs are, for scripts that do not set it.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a script does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Attaches an interface and sets it up.
    Online,
    /// Takes back what remains of it.
    Offline,
}

impl Action {
    fn word(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Offline => "offline",
        }
    }
}

/// An interface and its script, with all that a later daemon needs to take back what it did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct InterfaceScript {
    script: ScriptPath,
    pub(super) interface: InterfaceName,
    /// The device, as its record is named.
    pub(super) device: String,
    guest: u16,
    /// The device's directory in XenStore, in which scripts look for `ip`, `bridge` and `mac`.
    directory: String,
    variables: Vec<(String, String)>,
}

impl InterfaceScript {
    /// The script of the interface of the device at `path`, with these variables besides those that
    /// it always has.
    pub(super) fn new(
        script: ScriptPath,
        interface: &InterfaceName,
        path: &DevicePath,
        variables: Vec<(&'static str, String)>,
    ) -> Self {
        let owned = |(name, value): (&str, String)| (name.to_owned(), value);
        Self {
            script,
            interface: interface.clone(),
            device: path.record_name(),
            guest: path.guest.0,
            directory: path.to_string(),
            variables: variables.into_iter().map(owned).collect(),
        }
    }

    /// Runs the script to its end, at most for `limit`, and unless it is to be stopped.
    ///
    /// # Errors
    /// [`ScriptError`]; the script has ended.
    pub(super) fn run(
        &self,
        action: Action,
        limit: Duration,
        is_stopped: impl Fn() -> bool,
    ) -> Result<(), ScriptError> {
        if is_stopped() {
            return Err(ScriptError::Stopped { script: self.script.clone() });
        }
        let start = |source| ScriptError::Start { script: self.script.clone(), source };
        let mut child = self.command(action).spawn().map_err(start)?;
        let end = self.wait(&mut child, limit, is_stopped);
        if !matches!(end, Ok(End::Exited)) {
            // With what it has started.
            let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
        }
        let status = child.wait().map_err(start)?;
        let script = self.script.clone();
        match end.map_err(start)? {
            End::Stopped => Err(ScriptError::Stopped { script }),
            End::Late => Err(ScriptError::Late { script, limit }),
            End::Exited if status.success() => Ok(()),
            End::Exited => Err(ScriptError::Failed { script, status, said: None }),
        }
    }

    fn command(&self, action: Action) -> Command {
        let mut command = Command::new(self.script.as_path());
        command.args([action.word(), "type_if=vif"]).process_group(0).current_dir("/").env_clear();
        command.env("PATH", PATH).env("script", self.script.as_path());
        command.env("XENBUS_TYPE", "vif").env("XENBUS_BASE_PATH", "backend");
        command.env("XENBUS_PATH", &self.directory).env("vif", self.interface.as_str());
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }

    fn wait(
        &self,
        child: &mut Child,
        limit: Duration,
        is_stopped: impl Fn() -> bool,
    ) -> io::Result<End> {
        if let Some(log) = child.stderr.take() {
            self.pass_on(log)?;
        }
        let end = Instant::now() + limit;
        let file = pidfd_open(PidForFd::from_child(child), PidfdFlags::empty())?;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let mut fds = [AwaitedFd::readable(file.as_fd())];
            wait_by_poll(&mut fds, left.min(LOOK))?;
            if fds.iter().all(|fd| fd.is_ready) {
                return Ok(End::Exited);
            }
            if is_stopped() {
                return Ok(End::Stopped);
            }
            if left.is_zero() {
                return Ok(End::Late);
            }
        }
    }

    /// What it writes to standard error goes to the daemon's log.
    fn pass_on(&self, log: ChildStderr) -> io::Result<()> {
        process_log::pass_on(log, DomId(self.guest))
    }
}

/// How the wait for a script ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Exited,
    Late,
    Stopped,
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;
    use std::thread;

    use tempfile::TempDir;

    use super::*;

    /// A script with this text, and where it writes what it does.
    fn script(text: &str) -> (TempDir, InterfaceScript, PathBuf) {
        let directory = TempDir::new().unwrap();
        let (path, said) = (directory.path().join("script"), directory.path().join("said"));
        let text = text.replace("SAID", &said.display().to_string());
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        let path = path.display().to_string().parse().unwrap();
        let device = DevicePath { class: "virtio".to_owned(), guest: DomId(1), number: 0 };
        let name = "virtio1.0".parse().unwrap();
        (directory, InterfaceScript::new(path, &name, &device, Vec::new()), said)
    }

    /// Waits until a program is gone, or a zombie that nobody here waits for.
    fn wait_for_end(program: i32) {
        let end = Instant::now() + Duration::from_secs(10);
        while nix::sys::signal::kill(Pid::from_raw(program), None).is_ok() {
            let state = fs::read_to_string(format!("/proc/{program}/stat")).unwrap_or_default();
            if state.contains(") Z ") {
                break;
            }
            assert!(Instant::now() < end, "waited 10 s for the script's program to end: {state}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    const LONG: &str = "(sleep 600; echo late >SAID) & echo $! >SAID; wait";

    #[test]
    fn late_script_is_killed_with_its_programs() {
        let (_directory, script, said) = script(LONG);
        // Once it runs: its program is there.
        let mut limit = Duration::from_millis(50);
        while fs::read_to_string(&said).unwrap_or_default().is_empty() {
            let late = script.run(Action::Online, limit, || false);
            assert!(matches!(late, Err(ScriptError::Late { .. })), "{late:?}");
            limit *= 2;
        }
        wait_for_end(fs::read_to_string(&said).unwrap().trim().parse().unwrap());
    }

    #[test]
    fn script_ends_when_the_daemon_stops() {
        let (_directory, script, said) = script(LONG);
        let is_running = || !fs::read_to_string(&said).unwrap_or_default().is_empty();
        let stopped = script.run(Action::Online, LIMIT, is_running);
        assert!(matches!(stopped, Err(ScriptError::Stopped { .. })), "{stopped:?}");
        wait_for_end(fs::read_to_string(&said).unwrap().trim().parse().unwrap());
    }
}
