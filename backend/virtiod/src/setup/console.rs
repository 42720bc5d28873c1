//! Opens a console device and publishes its terminal and sockets.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::socket::device_name;
use super::{DeviceError, Host};
use crate::bus::{DevicePath, Keys};
use crate::config::{ConsoleSettings, SocketPath};
use crate::device::console::Console;
use crate::stats::DeviceStats;
use xen::XenStore;

/// Default directory of the ports' sockets.
const DIRECTORY: &str = "/run/xen-virtiod/console";

/// Name and socket path of each further port. The sockets' directory is the daemon's own.
pub(super) fn ports<S: XenStore>(
    keys: &mut Keys<S>,
    path: &DevicePath,
    settings: &ConsoleSettings,
) -> Result<Vec<(String, PathBuf)>, DeviceError> {
    if settings.ports.0.is_empty() {
        return Ok(Vec::new());
    }
    let directory = settings.directory.as_ref().map(|SocketPath(directory)| directory.as_path());
    let directory = directory.unwrap_or(Path::new(DIRECTORY));
    let device = device_name(keys, path)?;
    let socket = |name: &str| directory.join(format!("{device}-{name}.sock"));
    let names = settings.ports.0.iter().map(ToString::to_string);
    Ok(names.map(|name| (name.clone(), socket(&name))).collect())
}

/// Opens a console. Publishes the path of its terminal in the backend's key `tty`, as Xen's own
/// console does, and name and socket of each further port in `port/N`, N from 1.
pub(super) fn open<S: XenStore>(
    keys: &mut Keys<S>,
    path: &DevicePath,
    settings: &ConsoleSettings,
    host: &Host,
    stats: &Arc<DeviceStats>,
) -> Result<Console, DeviceError> {
    let ports = ports(keys, path, settings)?;
    let console = Console::open(&*host.terminals, &*host.sockets, &ports, stats)?;
    let tty = console.path().display().to_string();
    keys.publish("tty", &tty)?;
    stats.note("tty", &tty);
    for ((name, socket), number) in console.ports().zip(1..) {
        let socket = socket.display().to_string();
        keys.publish(&format!("port/{number}/name"), name)?;
        keys.publish(&format!("port/{number}/socket"), &socket)?;
        stats.note(&format!("port {number}"), &format!("{name} {socket}"));
    }
    tracing::info!(tty, ports = ports.len(), "console opened");
    Ok(console)
}
