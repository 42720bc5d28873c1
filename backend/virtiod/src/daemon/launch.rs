//! Starts the processes of guests, and waits for their end.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::process_log;
use xen::DomId;

/// Time for which a process is awaited to exit by itself, and after it was killed; and the interval
/// between two looks.
const EXIT_LIMIT: Duration = Duration::from_secs(1);
const EXIT_LOOK: Duration = Duration::from_millis(2);

/// Starts a process that serves a guest's devices over a socket.
pub trait Launch: Send {
    /// Starts it, with this end of its socket.
    ///
    /// # Errors
    /// The kernel's.
    fn launch(&self, guest: DomId, control: OwnedFd) -> io::Result<Box<dyn Launched>>;
}

/// A process that was started.
pub trait Launched: Send {
    /// Waits until it is gone, or kills it if it does not go, and says how it ended.
    fn wait(&mut self) -> String;
}

/// Starts this program once more: `xen-virtiod serve-guest`.
#[derive(Debug)]
pub struct SameProgram {
    /// The arguments that both have.
    pub arguments: Vec<OsString>,
}

impl Launch for SameProgram {
    fn launch(&self, guest: DomId, control: OwnedFd) -> io::Result<Box<dyn Launched>> {
        // The running program, even if another one was installed in its place.
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("xen-virtiod")
            .arg("serve-guest")
            .arg(guest.0.to_string())
            .args(&self.arguments);
        // It has none of what systemd passed to the daemon.
        ["NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"].iter().for_each(|name| {
            command.env_remove(name);
        });
        command.stdin(Stdio::from(control)).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let log = child.stderr.take().ok_or(io::ErrorKind::BrokenPipe)?;
        process_log::pass_on(log, guest)?;
        Ok(Box::new(child))
    }
}

impl Launched for Child {
    fn wait(&mut self) -> String {
        if let Some(how) = exit_of(self) {
            return how;
        }
        // It ignores the end of the conversation.
        let killed = self.kill();
        match exit_of(self) {
            Some(how) => format!("{how}, {killed:?}"),
            None => "killed; it waits for storage".to_owned(),
        }
    }
}

/// How a process exits within [`EXIT_LIMIT`]; `None` if it does not.
fn exit_of(child: &mut Child) -> Option<String> {
    let end = Instant::now() + EXIT_LIMIT;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status.to_string()),
            Err(error) => return Some(error.to_string()),
            Ok(None) if Instant::now() >= end => return None,
            Ok(None) => thread::sleep(EXIT_LOOK),
        }
    }
}
