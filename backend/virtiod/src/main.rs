//! xen-virtiod: the program around the library of the same crate.
#![forbid(unsafe_code)]

mod device_commands;
mod logging;
mod metrics;
#[cfg(test)]
mod sample_report;
mod stat;

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use clap::Parser;
use command_line::{CommandLine, Operation};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use protocol::grant::PAGE_SIZE;
use xen::{Causes, DevXen, DomId, GuestXen};
use xen_virtiod::config::{ConfigError, ConfigFile, Contradiction};
use xen_virtiod::daemon::control::{self, Control, ControlError, ControlSocket};
use xen_virtiod::daemon::daemon_lock::{DaemonLock, LOCK, SoleError};
use xen_virtiod::daemon::descriptor_store::{NoStore, StoredDescriptors};
use xen_virtiod::daemon::guest_processes::GuestProcesses;
use xen_virtiod::daemon::launch::SameProgram;
use xen_virtiod::daemon::registry::{RegisteredDevice, Registry, Report};
use xen_virtiod::daemon::runner::SharedHost;
use xen_virtiod::daemon::server::{Server, ServerError};
use xen_virtiod::daemon::signals::{ignore_stop_signals, stop_on_signals};
use xen_virtiod::doctor::{self, Severity};
use xen_virtiod::domain::ByGrants;
use xen_virtiod::process;
use xen_virtiod::process::confinement::confine;
use xen_virtiod::process::main_loop::{Common, ProcessError};
use xen_virtiod::process::message::Event;
use xen_virtiod::process::message_socket::MessageSocket;
use xen_virtiod::record::{RECORDS, RecordDirectory, RecordVersion};
use xen_virtiod::tap::network::HostNetwork;

use crate::device_commands::DeviceCommandError;
use crate::metrics::MetricsError;
use crate::stat::watch::{self, Sample};

/// An error that ends the program.
#[derive(Debug, thiserror::Error)]
enum MainError {
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("{path}: {section}: {why}")]
    Contradiction { path: String, section: String, why: Contradiction },
    #[error(transparent)]
    DaemonLock(#[from] SoleError),
    #[error(transparent)]
    ControlSocket(#[from] ControlError),
    #[error("cannot wait for signals")]
    Signals(#[source] std::io::Error),
    #[error("cannot open a file descriptor")]
    Descriptor(#[source] std::io::Error),
    #[error(
        "this kernel has pages of {0} bytes, and maps grants one by one: boot one with pages of \
         {PAGE_SIZE} bytes (on Debian linux-image-arm64, not linux-image-arm64-16k)"
    )]
    PageSize(usize),
    #[error("cannot reach the guest's grants")]
    Xen(#[source] std::io::Error),
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error(transparent)]
    Device(#[from] DeviceCommandError),
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    #[error("there is no such disk: `xen-virtiod stat` shows all")]
    NoDisk,
    #[error("cannot read standard input or write to standard output")]
    Print(#[from] std::io::Error),
}

/// The exit status for an unusable configuration, as in sysexits(3): with it, the unit does not
/// restart the daemon with the same file.
const CONFIGURATION: u8 = 78;

impl MainError {
    fn exit_code(&self) -> ExitCode {
        match self {
            MainError::Config(_) | MainError::Contradiction { .. } => ExitCode::from(CONFIGURATION),
            _ => ExitCode::FAILURE,
        }
    }
}

fn main() -> ExitCode {
    let command_line = CommandLine::parse();
    let outcome = match &command_line.action {
        None => serve(&command_line),
        Some(Operation::Stat { domain, json, watch }) => {
            let report = || report(&command_line, domain.as_deref());
            match watch {
                Some(seconds) => watch_devices(report, *seconds),
                None => show(report, *json),
            }
        }
        Some(Operation::Metrics { output }) => write_metrics(&command_line, output.as_deref()),
        Some(Operation::End) => end(&command_line),
        Some(Operation::Resume { domain, device }) => {
            resume(&command_line, domain.as_deref(), device.as_deref())
        }
        Some(Operation::Reload { json }) => reload(&command_line, *json),
        Some(Operation::Device(command)) => {
            logging::start(command_line.log, false);
            device_commands::carry_out(command).map_err(MainError::from)
        }
        Some(Operation::ServeGuest { guest }) => serve_guest(&command_line, DomId(*guest)),
        Some(Operation::Doctor { json }) => match doctor(&command_line, *json) {
            Ok(code) => return code,
            Err(error) => Err(error),
        },
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
    // First: later descriptors could have their numbers.
    let stored = StoredDescriptors::of_systemd();
    logging::start(command_line.log, false);
    let stored = stored.unwrap_or_else(|error| {
        tracing::warn!("cannot take what systemd kept: {}", Causes(&error));
        StoredDescriptors::new(Arc::new(NoStore), Vec::new())
    });
    let shared =
        SharedHost::new(records(), Arc::new(HostNetwork)).map_err(MainError::Descriptor)?;
    let reloads = Arc::clone(&shared.reloads);
    let stop = stop_on_signals(Some(Arc::clone(&reloads))).map_err(MainError::Signals)?;
    raise_descriptor_limit();
    let config = ConfigFile::new(command_line.config.clone());
    // The daemon reads the file again for each device; an error now ends it at once.
    config.load()?;
    let page_size = rustix::param::page_size();
    if page_size as u64 != PAGE_SIZE {
        return Err(MainError::PageSize(page_size));
    }
    let _sole = DaemonLock::take(Path::new(LOCK))?;
    let registry = Arc::new(Registry::default());
    let xen = ByGrants(DevXen);
    let launch = Box::new(SameProgram { arguments: common_arguments(command_line) });
    let all = Arc::clone(&registry);
    let processes = GuestProcesses::new(xen, launch, config, all, shared.clone(), stored)?;
    let server = Server::with_runner(xen, Arc::clone(&registry), shared, Box::new(processes))?;
    let control = Control { registry, stop: Arc::clone(&stop), reloads };
    let _control = ControlSocket::listen(&command_line.socket, control)?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "ready");
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::warn!(%error, "cannot notify systemd");
    }
    server.run(&stop)?;
    tracing::info!("stopped");
    Ok(())
}

/// The arguments that the processes of guests have in common with the daemon.
fn common_arguments(CommandLine { log, config, .. }: &CommandLine) -> Vec<OsString> {
    let log = ["--log".into(), log.to_string().to_lowercase().into()];
    let config = config.iter().flat_map(|path| ["--config".into(), path.into()]);
    let journal = logging::is_for_journal().then(|| "--journal".into());
    log.into_iter().chain(config).chain(journal).collect()
}

/// Serves a guest's devices until the supervisor is gone.
fn serve_guest(command_line: &CommandLine, guest: DomId) -> Result<(), MainError> {
    logging::start(command_line.log, command_line.journal);
    abort_on_panic();
    // The kernel took the name of the link by which it was started.
    if let Err(error) = nix::sys::prctl::set_name(c"xen-virtiod") {
        tracing::warn!(%error, "cannot name the process");
    }
    // The supervisor ends the process, also when it is stopped by a signal to both.
    ignore_stop_signals().map_err(MainError::Signals)?;
    let control = MessageSocket::of(std::io::stdin().as_fd().try_clone_to_owned()?);
    let xen = GuestXen::open(guest).map_err(MainError::Xen).inspect_err(|error| {
        // Without the supervisor, nobody needs the reason.
        let _ = control.send(&Event::CannotStart { reason: Causes(error).to_string() }, &[]);
    })?;
    let config = ConfigFile::new(command_line.config.clone());
    let common = Common { config, confine, network: None, records: RecordVersion::Newest };
    tracing::debug!("the process of {guest} is ready");
    process::main_loop::run(ByGrants(xen), control, common)?;
    Ok(())
}

/// Ends the process at a panic of any of its threads, after the log: the next one goes on with its
/// devices, which a thread that is gone could not serve.
fn abort_on_panic() {
    let log = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        log(panic);
        std::process::abort();
    }));
}

/// The directory of devices' records. Without it the daemon serves, but devices end with it.
fn records() -> Option<RecordDirectory> {
    let directory = RecordDirectory::new(Path::new(RECORDS));
    let failed = |error: &std::io::Error| {
        tracing::warn!("devices end with this process: cannot make {RECORDS}: {}", Causes(error));
    };
    directory.inspect_err(failed).ok()
}

/// Raises the limit of file descriptors to its maximum: each device takes six to twenty, and most
/// systems start a daemon with a limit of 1024. The daemon refuses a device beyond the limit, so a
/// failure here does not end it.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of file descriptors");
    }
}

/// The daemon's report of all devices, or of those of one guest.
fn report(command_line: &CommandLine, guest: Option<&str>) -> Result<Report, MainError> {
    let mut report = control::ask(&command_line.socket)?;
    guest.iter().for_each(|named| report.retain_guest(named));
    Ok(report)
}

fn show(report: impl Fn() -> Result<Report, MainError>, json: bool) -> Result<(), MainError> {
    stat::print(&mut std::io::stdout().lock(), &report()?, json)?;
    Ok(())
}

/// Prints what devices do in each interval, until a signal or an error ends the program.
fn watch_devices(
    report: impl Fn() -> Result<Report, MainError>,
    seconds: u32,
) -> Result<(), MainError> {
    let mut out = std::io::stdout().lock();
    let clears = out.is_terminal();
    let mut before = Sample::of(report()?);
    loop {
        thread::sleep(Duration::from_secs(seconds.into()));
        let now = Sample::of(report()?);
        watch::print(&mut out, &before, &now, clears)?;
        out.flush()?;
        before = now;
    }
}

/// Lets paused disks go on, and prints which. A process that does not report is told all the same.
fn resume(
    command_line: &CommandLine,
    domain: Option<&str>,
    device: Option<&str>,
) -> Result<(), MainError> {
    let mut report = report(command_line, domain)?;
    report.devices.retain(|found| {
        let is_named = |named| named == found.device || stat::vdev(found).as_deref() == Some(named);
        !found.removed && found.stats.state.kind == "blk" && device.is_none_or(is_named)
    });
    if report.devices.is_empty() && device.or(domain).is_some() {
        return Err(MainError::NoDisk);
    }
    let mut out = std::io::stdout().lock();
    let mut paused = 0;
    for found in &report.devices {
        let is_told = control::resume(&command_line.socket, found.domid, &found.device)?;
        let RegisteredDevice { domid, device, stats, .. } = found;
        match (is_told, &stats.state.paused) {
            (true, None) => continue,
            (true, Some(_)) => writeln!(out, "domain {domid} {device} goes on")?,
            (false, _) => writeln!(out, "domain {domid} {device} cannot be told")?,
        }
        paused += 1;
    }
    if paused == 0 {
        writeln!(out, "no such disk is paused")?;
    }
    Ok(())
}

/// Prints metrics, or replaces a file with them.
fn write_metrics(command_line: &CommandLine, output: Option<&Path>) -> Result<(), MainError> {
    let report = report(command_line, None)?;
    match output {
        Some(path) => metrics::replace_file(path, report)?,
        None => write!(std::io::stdout().lock(), "{}", metrics::open_metrics(report)?)?,
    }
    Ok(())
}

/// Has the daemon reload its configuration, and prints what changed.
fn reload(command_line: &CommandLine, json: bool) -> Result<(), MainError> {
    let changes = control::reload(&command_line.socket)?;
    let mut out = std::io::stdout().lock();
    if json {
        let text = serde_json::to_string(&changes).map_err(std::io::Error::from)?;
        return Ok(writeln!(out, "{text}")?);
    }
    if changes.is_empty() {
        writeln!(out, "no running device changes")?;
    }
    Ok(changes.iter().try_for_each(|change| writeln!(out, "{change}"))?)
}

/// Ends all devices and the daemon, and prints what has ended.
fn end(command_line: &CommandLine) -> Result<(), MainError> {
    let ended = control::end(&command_line.socket)?;
    stat::print_ended(&mut std::io::stdout().lock(), &ended)?;
    Ok(())
}

/// Checks a configuration file and prints the result.
fn check(named: Option<&PathBuf>) -> Result<(), MainError> {
    let config = ConfigFile::new(named.cloned());
    let path = config.path().display();
    let mut out = std::io::stdout().lock();
    match config.load()? {
        Some(config) => match config.contradictions().next() {
            Some((section, why)) => {
                return Err(MainError::Contradiction { path: path.to_string(), section, why });
            }
            None => writeln!(out, "{path}: ok")?,
        },
        None => writeln!(out, "{path} does not exist: every device has its defaults")?,
    }
    Ok(())
}

/// Says what this host lacks, and what mends it. The exit status is a failure if devices are not
/// served.
fn doctor(command_line: &CommandLine, json: bool) -> Result<ExitCode, MainError> {
    let config = ConfigFile::new(command_line.config.clone());
    let report = doctor::examine(&doctor::Host::of_this_machine(config, &command_line.socket));
    doctor::print(&mut std::io::stdout().lock(), &report, json)?;
    Ok(match report.count(Severity::Error) {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}
