//! What the toolstack wrote for a device, turned into the device.

use std::path::Path;
use std::sync::Arc;

use crate::bus::DevicePath;
use crate::bus::Keys;
use crate::device::blk::{AccessMode, Block, Discard, Target, TargetError};
use crate::device::{DeviceMemory, VirtioDevice};
use crate::stats::DeviceStats;
use crate::xen::{StoreError, XenStore};

/// Device classes that xl writes for virtio devices, and that this daemon serves.
pub const CLASSES: [&str; 2] = ["virtio_disk", "virtio"];

/// Why a device cannot be served. The text stands in the backend's `error` key and in the log.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// XenStore's fault.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The disk's target.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// No target in the disk line.
    #[error("the disk has no target: give target=/path, last, in the domain's disk line")]
    NoTarget,
    /// `mode` is neither `r` nor `w`.
    #[error("the disk's mode is {0:?}, neither r nor w")]
    Mode(String),
    /// Not a disk.
    #[error("a {0} cannot be served: only devtype=disk can")]
    DeviceType(String),
    /// A device type that nothing here serves.
    #[error(
        "virtio device type {0:?} is not supported; supported is a disk (specification=virtio)"
    )]
    Unsupported(String),
}

/// Opens the device at `path`.
///
/// # Errors
/// [`DeviceError`].
pub fn open<S: XenStore, M: DeviceMemory>(
    keys: &mut Keys<S>,
    path: &DevicePath,
    stats: &Arc<DeviceStats>,
) -> Result<Box<dyn VirtioDevice<M>>, DeviceError> {
    if path.class == "virtio_disk" {
        return Ok(Box::new(open_disk(keys, stats)?));
    }
    Err(DeviceError::Unsupported(keys.backend("type")?.unwrap_or_default()))
}

fn open_disk<S: XenStore>(
    keys: &mut Keys<S>,
    stats: &Arc<DeviceStats>,
) -> Result<Block, DeviceError> {
    let kind = keys.backend("device-type")?.unwrap_or_else(|| "disk".to_owned());
    if kind != "disk" {
        return Err(DeviceError::DeviceType(kind));
    }
    let path = keys.backend("params")?.filter(|path| !path.is_empty());
    let path = path.ok_or(DeviceError::NoTarget)?;
    let mode = keys.backend("mode")?.unwrap_or_default();
    let mode = match mode.as_str() {
        "r" => AccessMode::ReadOnly,
        "w" => AccessMode::ReadWrite,
        _ => return Err(DeviceError::Mode(mode)),
    };
    let target = Target::open(Path::new(&path), mode)?;
    let serial = keys.backend("dev")?.unwrap_or_default();
    let discard = match keys.backend("discard-enable")?.as_deref() {
        Some("1") => Discard::Allowed,
        _ => Discard::Refused,
    };
    tracing::info!(path, ?mode, ?discard, sectors = target.sectors(), "disk opened");
    Ok(Block::new(target, discard, &serial, Arc::clone(stats)))
}
