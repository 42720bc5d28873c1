//! Opens a socket device; names and directories of Unix sockets.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use super::DeviceError;
use crate::bus::{DevicePath, Keys};
use crate::config::{Cid, SocketPath, SocketSettings};
use crate::device::vsock::{HostSocket, Socket};
use crate::stats::DeviceStats;
use xen::XenStore;

/// Default directory of guests' sockets.
const DIRECTORY: &str = "/run/xen-virtiod/vsock";

/// Opens a socket device and publishes the guest's context id (`cid`) and the path of the host's
/// socket (`socket`).
pub(super) fn open<S: XenStore>(
    keys: &mut Keys<S>,
    path: &DevicePath,
    settings: SocketSettings,
    stats: &Arc<DeviceStats>,
) -> Result<Socket, DeviceError> {
    let cid = settings.cid.unwrap_or_else(|| Cid::of_domain(path.guest.0)).number();
    let socket = match settings.path {
        Some(SocketPath(socket)) => socket,
        None => {
            let directory = Path::new(DIRECTORY);
            make_directory(directory)?;
            directory.join(format!("{}.sock", device_name(keys, path)?))
        }
    };
    let device = Socket::new(cid, HostSocket::listen(&socket)?, Arc::clone(stats));
    for (key, value) in [("cid", cid.to_string()), ("socket", socket.display().to_string())] {
        keys.publish(key, &value)?;
        stats.note(key, &value);
    }
    tracing::info!(cid, ?socket, "socket device opened");
    Ok(device)
}

/// Returns the base name of the sockets of the device at `path`: the guest's name and the device's
/// number.
pub(super) fn device_name<S: XenStore>(
    keys: &mut Keys<S>,
    path: &DevicePath,
) -> Result<String, DeviceError> {
    let guest = keys.guest_name()?.unwrap_or_else(|| format!("domain-{}", path.guest.0));
    if guest.is_empty() || guest.contains('/') {
        return Err(DeviceError::SocketName(guest));
    }
    Ok(format!("{guest}-{}", path.number))
}

/// Creates a directory for sockets with access for this daemon's user only, unless it exists.
pub(super) fn make_directory(path: &Path) -> Result<(), DeviceError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| DeviceError::Directory { path: path.to_owned(), source })
}
