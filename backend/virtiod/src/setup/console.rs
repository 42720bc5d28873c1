//! Opens a console device and publishes its terminal and sockets.

use std::path::Path;
use std::sync::Arc;

use super::DeviceError;
use super::socket::{device_name, make_directory};
use crate::bus::{DevicePath, Keys};
use crate::config::{ConsoleSettings, SocketPath};
use crate::device::console::{Console, Terminals};
use crate::stats::DeviceStats;
use xen::XenStore;

/// Default directory of the ports' sockets.
const DIRECTORY: &str = "/run/xen-virtiod/console";

/// Opens a console. Publishes the path of its terminal in the backend's key `tty`, as Xen's own
/// console does, and name and socket of each further port in `port/N`, N from 1.
pub(super) fn open<S: XenStore>(
    keys: &mut Keys<S>,
    path: &DevicePath,
    settings: ConsoleSettings,
    terminals: &dyn Terminals,
    stats: &Arc<DeviceStats>,
) -> Result<Console, DeviceError> {
    let mut ports = Vec::new();
    if !settings.ports.0.is_empty() {
        let directory = settings.directory.map(|SocketPath(directory)| directory);
        let directory = directory.unwrap_or_else(|| Path::new(DIRECTORY).to_owned());
        make_directory(&directory)?;
        let device = device_name(keys, path)?;
        let socket = |name: &str| directory.join(format!("{device}-{name}.sock"));
        let names = settings.ports.0.iter().map(ToString::to_string);
        ports.extend(names.map(|name| (name.clone(), socket(&name))));
    }
    let console = Console::open(terminals, &ports, stats)?;
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
