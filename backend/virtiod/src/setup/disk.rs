//! Opens a disk from xl's disk line.

use std::sync::Arc;

use super::{DeviceError, Host, config_and_name};
use crate::bus::{DevicePath, Keys};
use crate::config::{CacheMode, ConfigFile, DiskSettings, Serial};
use crate::device::blk::{
    AccessMode, Block, BlockOptions, Caching, Discard, Owner, Target, TargetOptions,
};
use crate::stats::DeviceStats;
use xen::XenStore;

/// Opens a disk and notes its target's format for `stat`.
pub(super) fn open<S: XenStore>(
    keys: &mut Keys<S>,
    path: &DevicePath,
    config: &ConfigFile,
    host: &Host,
    stats: &Arc<DeviceStats>,
) -> Result<Block, DeviceError> {
    let kind = keys.backend("device-type")?.unwrap_or_else(|| "disk".to_owned());
    if kind != "disk" {
        return Err(DeviceError::DeviceType(kind));
    }
    let vdev = keys.backend("dev")?.unwrap_or_default();
    let (options, settings) = options(keys, path, config, &vdev)?;
    let format = options.format();
    let target = Target::open_claimed(options.clone(), &host.images)?;
    let (config, name) = config_and_name(keys, config)?;
    let throttle = host.rates.of_disk(path, &config, (name.as_deref(), &vdev), stats)?;
    let block = BlockOptions {
        limits: settings.in_flight(),
        throttle,
        queues: settings.queues(),
        on_error: settings.on_error.unwrap_or_default(),
        detect_zeroes: settings.detect_zeroes.unwrap_or_default(),
        ..BlockOptions::named(settings.serial.as_ref().map_or(&vdev, |Serial(serial)| serial))
    };
    stats.note("format", &format.to_string());
    stats.note("target", &options.path.display().to_string());
    let TargetOptions { path, mode, caching, discard, sharing, .. } = options;
    let sectors = target.sectors();
    tracing::info!(?path, %format, ?mode, ?caching, ?discard, ?sharing, sectors, "disk opened");
    Ok(Block::new(target, block, Arc::clone(stats))?)
}

/// Reads the options of the disk's target from the disk line's keys and from the configuration
/// file.
///
/// # Errors
/// [`DeviceError`].
pub fn target_options<S: XenStore>(
    keys: &mut Keys<S>,
    path: &DevicePath,
    config: &ConfigFile,
) -> Result<TargetOptions, DeviceError> {
    let vdev = keys.backend("dev")?.unwrap_or_default();
    options(keys, path, config, &vdev).map(|(options, _)| options)
}

/// Reads the options, from the disk line's keys and from the configuration file, and the settings
/// of the latter.
fn options<S: XenStore>(
    keys: &mut Keys<S>,
    path: &DevicePath,
    config: &ConfigFile,
    vdev: &str,
) -> Result<(TargetOptions, DiskSettings), DeviceError> {
    let target = keys.backend("params")?.filter(|path| !path.is_empty());
    let target = target.ok_or(DeviceError::NoTarget)?;
    let mode = keys.backend("mode")?.unwrap_or_default();
    let mode = match mode.as_str() {
        "r" => AccessMode::ReadOnly,
        "w" => AccessMode::ReadWrite,
        _ => return Err(DeviceError::Mode(mode)),
    };
    let direct = keys.backend("direct-io-safe")?.is_some_and(|value| value == "1");
    let discard = match keys.backend("discard-enable")?.as_deref() {
        Some("1") => Discard::Allowed,
        _ => Discard::Refused,
    };
    let (config, name) = config_and_name(keys, config)?;
    let settings = config.disk(name.as_deref(), vdev);
    let mode = if settings.read_only { AccessMode::ReadOnly } else { mode };
    let by_line = if direct { Caching::Direct } else { Caching::PageCache };
    let vdev = if vdev.is_empty() { path.name() } else { vdev.to_owned() };
    let options = TargetOptions {
        path: target.into(),
        mode,
        caching: settings.cache.map_or(by_line, CacheMode::caching),
        discard,
        format: settings.format,
        logical_block: settings.logical_block_size,
        sharing: settings.force_share,
        owner: Owner { domain: path.guest.0, number: path.number, vdev, uuid: keys.guest_uuid()? },
    };
    Ok((options, settings))
}
