//! Runs the script of an interface: `SCRIPT online type_if=vif`, and `offline` when the interface
//! is gone, in the environment that libxl gives it for a vif.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use rustix::process::{Pid as PidForFd, PidfdFlags, pidfd_open};
use uring::waiting::wait_by_poll;

use super::process_log;
use crate::Causes;
use crate::bus::DevicePath;
use crate::device::AwaitedFd;
use crate::tap::name::InterfaceName;
use crate::tap::network::Removed;
use crate::tap::script::{ScriptError, ScriptPath};
use xen::DomId;

/// Time that a script has, as libxl gives it.
const LIMIT: Duration = Duration::from_secs(40);

/// Where programs are, for scripts that do not set it.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a script does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
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

/// An interface and its script.
#[derive(Clone, Debug)]
pub(super) struct InterfaceScript {
    script: ScriptPath,
    pub(super) interface: InterfaceName,
    /// The device, as its record is named.
    pub(super) device: String,
    guest: DomId,
    /// The device's directory in XenStore, in which scripts look for `ip`, `bridge` and `mac`.
    directory: String,
    variables: Vec<(&'static str, String)>,
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
        Self {
            script,
            interface: interface.clone(),
            device: path.record_name(),
            guest: path.guest,
            directory: path.to_string(),
            variables,
        }
    }

    /// The script of an interface that was removed, if it has one.
    pub(super) fn of_removed(Removed { name, alias }: &Removed) -> Option<Self> {
        let path = DevicePath::of_record(&alias.device)?;
        Some(Self::new(alias.script.clone()?, name, &path, Vec::new()))
    }

    /// Runs the script for a new interface.
    ///
    /// # Errors
    /// [`ScriptError`]; then what it did is taken back.
    pub(super) fn attach(&self) -> Result<(), ScriptError> {
        self.run(Action::Online).inspect_err(|_| self.take_back())
    }

    /// Takes back what the script did; nobody is there any more to hear of an error.
    pub(super) fn take_back(&self) {
        if let Err(error) = self.run(Action::Offline) {
            tracing::warn!("nothing was taken back of {}: {}", self.interface, Causes(&error));
        }
    }

    fn run(&self, action: Action) -> Result<(), ScriptError> {
        self.run_within(action, LIMIT)
    }

    fn run_within(&self, action: Action, limit: Duration) -> Result<(), ScriptError> {
        let start = |source| ScriptError::Start { script: self.script.clone(), source };
        let mut child = self.command(action).spawn().map_err(start)?;
        if let Some(log) = child.stderr.take() {
            process_log::pass_on(log, self.guest).map_err(start)?;
        }
        let ended = wait(&child, limit);
        if !matches!(ended, Ok(true)) {
            // With what it has started.
            let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
        }
        let status = child.wait().map_err(start)?;
        if !ended.map_err(start)? {
            return Err(ScriptError::Late { script: self.script.clone(), limit });
        }
        if status.success() {
            return Ok(());
        }
        Err(ScriptError::Failed { script: self.script.clone(), status, said: None })
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
}

/// The latest service of each device whose interface has a script: it takes back what the script
/// did. Earlier ones, whose process died, may still look for the interface.
#[derive(Clone, Debug, Default)]
pub(super) struct LatestServices(Arc<Mutex<Latest>>);

#[derive(Debug, Default)]
struct Latest {
    /// The number of services so far.
    count: u64,
    /// Each device's latest one.
    of: BTreeMap<String, Turn>,
}

/// The latest service of a device.
#[derive(Clone, Debug)]
pub(super) struct Turn {
    device: String,
    number: u64,
    /// Locked while a script runs: that of the next service waits for it.
    running: Arc<Mutex<()>>,
}

impl LatestServices {
    fn lock(&self) -> MutexGuard<'_, Latest> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the caller the latest service of a device.
    pub(super) fn begin(&self, device: &str) -> Turn {
        let mut latest = self.lock();
        latest.count += 1;
        let running = latest.of.get(device).map(|turn| Arc::clone(&turn.running));
        let running = running.unwrap_or_default();
        let turn = Turn { device: device.to_owned(), number: latest.count, running };
        latest.of.insert(device.to_owned(), turn.clone());
        turn
    }

    /// Whether a service is still the latest of its device.
    pub(super) fn has(&self, turn: &Turn) -> bool {
        self.lock().of.get(&turn.device).is_some_and(|latest| latest.number == turn.number)
    }

    /// Runs `body` when no script of the device runs, if the service is the latest then.
    pub(super) fn run<T>(&self, turn: &Turn, body: impl FnOnce() -> T) -> Option<T> {
        let _running = turn.running.lock().unwrap_or_else(PoisonError::into_inner);
        self.has(turn).then(body)
    }

    /// Forgets a device, if this is its latest service.
    pub(super) fn end(&self, turn: &Turn) {
        let mut latest = self.lock();
        if latest.of.get(&turn.device).is_some_and(|latest| latest.number == turn.number) {
            latest.of.remove(&turn.device);
        }
    }
}

/// Whether a process ends in time.
fn wait(child: &Child, limit: Duration) -> io::Result<bool> {
    let end = Instant::now() + limit;
    let file = pidfd_open(PidForFd::from_child(child), PidfdFlags::empty())?;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let mut fds = [AwaitedFd::readable(file.as_fd())];
        wait_by_poll(&mut fds, left)?;
        if fds.iter().all(|fd| fd.is_ready) {
            return Ok(true);
        }
        if left.is_zero() {
            return Ok(false);
        }
    }
}

/// Has the scripts of removed interfaces take back what they did, in a thread of its own.
pub(super) fn take_back(removed: &[Removed]) {
    let scripts = removed.iter().filter_map(InterfaceScript::of_removed);
    let scripts: Vec<_> = scripts.collect();
    if scripts.is_empty() {
        return;
    }
    let body = move || scripts.iter().for_each(InterfaceScript::take_back);
    if let Err(error) = thread::Builder::new().name("scripts".to_owned()).spawn(body) {
        tracing::warn!(%error, "nothing was taken back of interfaces that were left");
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use tempfile::TempDir;

    use super::*;
    use crate::tap::alias::Alias;

    /// A script with this text, and where it writes what it does.
    fn script(text: &str) -> (TempDir, ScriptPath, PathBuf) {
        let directory = TempDir::new().unwrap();
        let (path, said) = (directory.path().join("script"), directory.path().join("said"));
        let text = text.replace("SAID", &said.display().to_string());
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        (directory, path.display().to_string().parse().unwrap(), said)
    }

    #[test]
    fn late_script_is_killed_with_its_programs() {
        let (_directory, script, said) =
            script("(sleep 600; echo late >SAID) & echo $! >SAID; wait");
        let path = DevicePath { class: "virtio".to_owned(), guest: DomId(1), number: 0 };
        let name = "virtio1.0".parse().unwrap();
        let script = InterfaceScript::new(script, &name, &path, Vec::new());
        // Once it runs: its program is there.
        let mut limit = Duration::from_millis(50);
        while !said.exists() {
            let late = script.run_within(Action::Online, limit);
            assert!(matches!(late, Err(ScriptError::Late { .. })), "{late:?}");
            limit *= 2;
        }
        let program = fs::read_to_string(&said).unwrap().trim().parse().unwrap();
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

    #[test]
    fn script_of_the_next_service_waits_for_the_last_ones() {
        let services = LatestServices::default();
        let first = services.begin("virtio-1-0");
        let mut second = None;
        let ran = services.run(&first, || {
            // It is the next one's turn from now on, but this script still runs.
            let turn = services.begin("virtio-1-0");
            assert!(turn.running.try_lock().is_err());
            second = Some(turn);
        });
        assert_eq!(ran, Some(()));
        assert_eq!(services.run(&first, || "stale"), None);
        let second = second.unwrap();
        services.end(&first);
        assert_eq!(services.run(&second, || "latest"), Some("latest"));
        services.end(&second);
        assert!(services.lock().of.is_empty());
    }

    #[test]
    fn script_of_a_removed_interface_takes_back_what_it_did() {
        let (_directory, path, said) =
            script("echo $* $vif $XENBUS_PATH >SAID.part; mv SAID.part SAID");
        let alias = Alias { device: "virtio-7-2".to_owned(), script: Some(path) };
        take_back(&[Removed { name: "inside".parse().unwrap(), alias }]);
        let end = Instant::now() + Duration::from_secs(10);
        while !said.exists() {
            assert!(Instant::now() < end, "waited 10 s for the script");
            thread::sleep(Duration::from_millis(1));
        }
        let said = fs::read_to_string(said).unwrap();
        assert_eq!(said, "offline type_if=vif inside backend/virtio/7/2\n");
    }
}
