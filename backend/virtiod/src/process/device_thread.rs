//! The thread of one device: opens the device, runs its session, and reports its end.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use protocol::binding::XenbusState;
use serde::{Deserialize, Serialize};
use tracing::Level;

use crate::Causes;
use crate::backoff::Backoff;
use crate::bus::keys::KeyError;
use crate::bus::session::{BoxedDevice, Context, Origin, Session, SessionEnd};
use crate::bus::{DevicePath, Keys, StopSignal, Toolstack};
use crate::config::ConfigFile;
use crate::device::AwaitedFd;
use crate::domain::Domain;
use crate::guest::Guest;
use crate::record::{Record, RecordError, Records};
use crate::setup::{self, DeviceError, Host};
use crate::stats::DeviceStats;
use uring::waiting::wait_by_poll;
use xen::{StoreError, XenStore};

/// Maximum time for which a device's thread waits for files that the device had in an earlier
/// process, and the delays between its looks; after that, the server tries again.
const FILES_LIMIT: Duration = Duration::from_secs(5);
const FILES_RETRY: Backoff = Backoff::new(Duration::from_millis(5), Duration::from_millis(200));

/// The state in which the server found a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Found {
    /// The device is new, or a backend offered it and no frontend connected.
    New,
    /// Its connection has ended: the frontend may start again [2.9].
    Closed,
    /// It is connected to an earlier process, which may have left a record.
    Left,
}

/// A device to start.
#[derive(Debug)]
pub struct NewDevice {
    /// The device's path in XenStore.
    pub path: DevicePath,
    /// The state in which it was found.
    pub found: Found,
    /// State that all devices of the guest share.
    pub guest: Guest,
    /// Why it must not go on without a reset, if it was left.
    pub fault: Option<String>,
}

/// The outcome of a device's thread.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The device has ended, or the thread refused it.
    Over,
    /// The device cannot be served now, but may be later.
    Failed,
    /// The device was not served, and the thread could not report that to the toolstack.
    Unreported(String),
    /// The thread panicked. The unwinding has unmapped the guest's pages.
    Panicked,
    /// The process died.
    Died,
}

/// The end of a device's thread.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// The device.
    pub path: DevicePath,
    /// The outcome.
    pub outcome: Outcome,
    /// Whether the thread ends by itself, once storage lets it: nobody may wait for it.
    pub is_detached: bool,
}

/// Hears of a device that was opened, before its guest can use it.
pub type OpenedHook = Arc<dyn Fn(&DevicePath, &DeviceStats) + Send + Sync>;

/// What the thread of a device needs besides the device.
#[derive(Clone)]
pub struct Surroundings {
    /// The configuration.
    pub config: ConfigFile,
    /// Where the records of devices are; `None` if all end with this process.
    pub records: Option<Arc<dyn Records>>,
    /// What devices use of the host.
    pub host: Host,
    /// Called for each device that was opened.
    pub opened: OpenedHook,
}

impl fmt::Debug for Surroundings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Surroundings").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Starts the thread of a device. However it ends, it calls `report`, last.
///
/// # Errors
/// The kernel starts no thread.
pub fn spawn<X: Domain>(
    xen: X,
    device: NewDevice,
    stop: Arc<StopSignal>,
    surroundings: Surroundings,
    stats: Arc<DeviceStats>,
    report: impl FnOnce(Ended) + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let path = device.path.clone();
    let name = format!("{}-{}", path.guest.0, path.number);
    let body = move || {
        // Dropped last, also in a panic.
        let ended = Ended { path: path.clone(), outcome: Outcome::Over, is_detached: false };
        let mut exit_guard = ExitGuard { ended: Some((ended, report)) };
        let span = tracing::info_span!("device", guest = path.guest.0, name = path.name());
        let ran = span.in_scope(|| run_device(xen, device, stop, &surroundings, &stats));
        let (outcome, draining) = ran
            .unwrap_or_else(|error| (Outcome::Unreported(Causes(&error).to_string()), Vec::new()));
        exit_guard.set(outcome, !draining.is_empty());
        drop(exit_guard);
        // Waits for storage, and so does the kernel at the end of the thread.
        drop(draining);
    };
    thread::Builder::new().name(name).spawn(body)
}

/// Reports that a thread ends, however it ends.
struct ExitGuard<F: FnOnce(Ended)> {
    ended: Option<(Ended, F)>,
}

impl<F: FnOnce(Ended)> ExitGuard<F> {
    fn set(&mut self, outcome: Outcome, is_detached: bool) {
        if let Some((ended, _)) = &mut self.ended {
            (ended.outcome, ended.is_detached) = (outcome, is_detached);
        }
    }
}

impl<F: FnOnce(Ended)> Drop for ExitGuard<F> {
    fn drop(&mut self) {
        let Some((mut ended, report)) = self.ended.take() else { return };
        if thread::panicking() {
            ended.outcome = Outcome::Panicked;
        }
        report(ended);
    }
}

/// The body of a device's thread. Its errors affect this device only.
///
/// # Errors
/// XenStore cannot be reached: the device was not served, and the toolstack has no report.
fn run_device<X: Domain>(
    xen: X,
    NewDevice { path, found, guest, fault }: NewDevice,
    stop: Arc<StopSignal>,
    Surroundings { config, records, host, opened }: &Surroundings,
    stats: &Arc<DeviceStats>,
) -> Result<(Outcome, Vec<BoxedDevice<X>>), StoreError> {
    let mut keys = Keys::open(xen.store()?, path.clone())?;
    // An earlier daemon may have written a 5 itself.
    let written = match found {
        Found::New | Found::Left => XenbusState::Initialising,
        Found::Closed => XenbusState::Closing,
    };
    let origin = match found {
        Found::New => Origin::New,
        Found::Closed => Origin::Closed,
        Found::Left => left(&mut keys, &path, records.as_deref(), stats)?,
    };
    // A device that the toolstack removes is not opened.
    let device = match keys.toolstack(written)? {
        Toolstack::Online => match open::<X>(&mut keys, &path, config, host, stats, &origin, &stop)
        {
            Ok(device) => Some(device),
            Err(error) => return Ok((refuse(&mut keys, &origin, &error, stats)?, Vec::new())),
        },
        Toolstack::Remove | Toolstack::Gone => None,
    };
    stats.update(|state| {
        state.kind = device.as_ref().map_or("", |device| device.kind()).to_owned();
        state.state = "starting".to_owned();
    });
    opened(&path, stats);
    // A file error is reported where a device's own settings are read.
    let service = config.load().ok().flatten().unwrap_or_default().service();
    let records = records.clone();
    let context = Context { path, guest, service, records, fault, stats: Arc::clone(stats) };
    let session = Session::new(xen, keys, device, context, stop);
    let SessionEnd { outcome, draining } = session.run(origin);
    if let Err(error) = outcome {
        tracing::error!("device lost: {}", Causes(&error));
    }
    Ok((Outcome::Over, draining))
}

/// Opens a device, and waits shortly for files that it had in an earlier process.
fn open<X: Domain>(
    keys: &mut Keys<X::Store>,
    path: &DevicePath,
    config: &ConfigFile,
    host: &Host,
    stats: &Arc<DeviceStats>,
    origin: &Origin,
    stop: &StopSignal,
) -> Result<BoxedDevice<X>, DeviceError> {
    let (end, mut waits) = (Instant::now() + FILES_LIMIT, FILES_RETRY);
    loop {
        let error = match setup::open(keys, path, config, host, stats) {
            Err(DeviceError::Target(error)) => error,
            other => return other,
        };
        let is_left = matches!(origin, Origin::Left(..));
        let may_pass = error.is_unfinished() || is_left && error.may_be_own();
        if !may_pass {
            return Err(error.into());
        }
        let mut fds = [AwaitedFd::readable(stop.as_fd())];
        let waited = wait_by_poll(&mut fds, waits.take());
        let is_stopped = waited.is_err() || fds.iter().any(|fd| fd.is_ready);
        if is_stopped || Instant::now() >= end {
            return Err(error.into());
        }
    }
}

/// How to go on with a device that an earlier process left.
fn left<S: XenStore>(
    keys: &mut Keys<S>,
    path: &DevicePath,
    records: Option<&dyn Records>,
    stats: &DeviceStats,
) -> Result<Origin, StoreError> {
    let record = records.map_or(Ok(None), |records| records.open(&path.record_name()));
    let setup = |record: Record| Ok::<_, RecordError>((record.setup()?.connection, record));
    let why = match record.and_then(|record| record.map(setup).transpose()) {
        Ok(Some((before, record))) => match keys.connection_id() {
            Ok(now) if now == before => return Ok(Origin::Left(Box::new(record), now)),
            Ok(_) => "its record is of another connection".to_owned(),
            Err(KeyError::Store(error)) => return Err(error),
            Err(error) => Causes(&error).to_string(),
        },
        Ok(None) => "there is no record of it".to_owned(),
        Err(error) => Causes(&error).to_string(),
    };
    let line = format!("device of an earlier process closed, its guest may rebind it: {why}");
    stats.log.line(Level::WARN, format_args!("{line}"));
    keys.set_error(&line)?;
    Ok(Origin::Closed)
}

/// Refuses a device that cannot be opened. A device that a guest had before is closed instead, or
/// waits if it can be taken over, and is retried: its resources may return, and no toolstack waits
/// for it.
fn refuse<S: XenStore>(
    keys: &mut Keys<S>,
    origin: &Origin,
    error: &DeviceError,
    stats: &DeviceStats,
) -> Result<Outcome, StoreError> {
    stats.log.line(Level::ERROR, format_args!("device refused: {}", Causes(error)));
    stats.fail(error);
    match origin {
        Origin::New => {
            keys.refuse(&Causes(error).to_string())?;
            Ok(Outcome::Over)
        }
        Origin::Closed => {
            let said = keys.set_error(&Causes(error).to_string());
            keys.set_state(XenbusState::Closed)?;
            said?;
            Ok(Outcome::Failed)
        }
        // Its guest waits, as it does for a disk that hangs.
        Origin::Left(..) => {
            keys.set_error(&Causes(error).to_string())?;
            Ok(Outcome::Failed)
        }
    }
}
