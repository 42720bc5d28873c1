//! Opens a socket device; names and directories of Unix sockets.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::DeviceError;
use crate::bus::{DevicePath, Keys};
use crate::config::{Cid, SocketPath, SocketSettings};
use crate::device::vsock::{HostSocket, Socket};
use crate::listener::{SocketDirectory, Sockets};
use crate::stats::DeviceStats;
use xen::XenStore;

/// Default directory of guests' sockets.
const DIRECTORY: &str = "/run/xen-virtiod/vsock";

/// The path of the host's socket.
pub(super) fn path<S: XenStore>(
    keys: &mut Keys<S>,
    path: &DevicePath,
    settings: &SocketSettings,
) -> Result<(PathBuf, SocketDirectory), DeviceError> {
    if let Some(SocketPath(socket)) = &settings.path {
        return Ok((socket.clone(), SocketDirectory::Others));
    }
    let name = format!("{}.sock", device_name(keys, path)?);
    Ok((Path::new(DIRECTORY).join(name), SocketDirectory::Own))
}

/// Opens a socket device and publishes the guest's context id (`cid`) and the path of the host's
/// socket (`socket`).
pub(super) fn open<S: XenStore>(
    keys: &mut Keys<S>,
    path: &DevicePath,
    settings: SocketSettings,
    sockets: &Arc<dyn Sockets>,
    stats: &Arc<DeviceStats>,
) -> Result<Socket, DeviceError> {
    let (socket, directory) = self::path(keys, path, &settings)?;
    let cid = settings.cid.unwrap_or_else(|| Cid::of_domain(path.guest.0)).number();
    let host = HostSocket::listen(Arc::clone(sockets), &socket, directory)?;
    let device = Socket::new(cid, host, Arc::clone(stats));
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
