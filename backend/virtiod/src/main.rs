//! xen-virtiod: the command line of the daemon in the `backend` library.
#![forbid(unsafe_code)]

mod command_line;
mod logging;
mod stat;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use xen::Causes;
use xen::DevXen;
use xen_virtiod::config::{ConfigError, ConfigFile};
use xen_virtiod::daemon::control::{self, ControlError, ControlSocket};
use xen_virtiod::daemon::registry::Registry;
use xen_virtiod::daemon::server::{Server, ServerError};
use xen_virtiod::daemon::sole::{LOCK, Sole, SoleError};
use xen_virtiod::domain::ByGrants;
use xen_virtiod::tap::network::HostNetwork;

use crate::command_line::{CommandLine, Operation};

/// Why the program ends without having done its work.
#[derive(Debug, thiserror::Error)]
enum MainError {
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Sole(#[from] SoleError),
    #[error(transparent)]
    ControlSocket(#[from] ControlError),
    #[error("cannot wait for signals")]
    Signals(#[from] nix::Error),
    #[error("cannot print")]
    Print(#[from] std::io::Error),
}

/// The status of a configuration that cannot be used, as sysexits(3) has it: the unit does not
/// start the daemon again with the same file.
const CONFIGURATION: u8 = 78;

impl MainError {
    fn exit_code(&self) -> ExitCode {
        match self {
            MainError::Config(_) => ExitCode::from(CONFIGURATION),
            _ => ExitCode::FAILURE,
        }
    }
}

fn main() -> ExitCode {
    let command_line = CommandLine::parse();
    let outcome = match &command_line.action {
        None => serve(&command_line),
        Some(Operation::Stat { json }) => show(&command_line, *json),
        Some(Operation::Check { path }) => check(path.as_ref().or(command_line.config.as_ref())),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            logging::last_words(&Causes(&error).to_string());
            error.exit_code()
        }
    }
}

fn serve(command_line: &CommandLine) -> Result<(), MainError> {
    logging::start(command_line.log);
    // Blocked before any thread starts, so that they reach the descriptor and nothing else.
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block()?;
    let stop = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)?;

    raise_descriptor_limit();
    let config = ConfigFile::new(command_line.config.clone());
    // Read again for each device; what is wrong now is better said now.
    config.load()?;
    let _sole = Sole::take(Path::new(LOCK))?;
    let registry = Arc::new(Registry::default());
    let server =
        Server::new(ByGrants(DevXen), Arc::clone(&registry), config, Arc::new(HostNetwork))?;
    let _control = ControlSocket::listen(&command_line.socket, registry)?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "ready");
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::warn!(%error, "systemd was not told");
    }
    server.run(&stop)?;
    tracing::info!("stopped");
    Ok(())
}

/// Each device takes about six file descriptors, and most systems start a daemon with room for
/// 1024. One that finds no room is refused, so a failure here is not one of the daemon's.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of file descriptors stays as it is");
    }
}

fn show(command_line: &CommandLine, json: bool) -> Result<(), MainError> {
    let report = control::ask(&command_line.socket)?;
    stat::print(&mut std::io::stdout().lock(), &report, json)?;
    Ok(())
}

/// Says whether a configuration file can be used.
fn check(named: Option<&PathBuf>) -> Result<(), MainError> {
    let config = ConfigFile::new(named.cloned());
    let path = config.path().display();
    let mut out = std::io::stdout().lock();
    match config.load()? {
        Some(_) => writeln!(out, "{path}: ok")?,
        None => writeln!(out, "{path} is not there: every device has its defaults")?,
    }
    Ok(())
}
