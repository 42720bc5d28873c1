//! Responses, and their payloads.

use super::header::{Header, Kind};
use super::{ConfigData, FeatureBlocks, MessageError, id};
use crate::pool::PoolPage;
use crate::wire::{Reader, Writer};

/// The payload of GET_DEVICE_INFO's response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Virtio device ID (virtio 1.3 section 5).
    pub device_id: u32,
    /// ID of the device's vendor.
    pub vendor_id: u32,
    /// UUID of this device.
    pub uuid: [u8; 16],
    /// Number of feature blocks, of 32 bits each.
    pub feature_blocks: u32,
    /// Size of the configuration space, in bytes.
    pub config_size: u32,
    /// Number of queues.
    pub max_virtqueues: u32,
    /// Number of the first administration queue.
    pub admin_queue_start: u32,
    /// Number of administration queues.
    pub admin_queue_count: u32,
}

/// The payload of GET_VQUEUE's response. For a queue that does not exist every field but the index
/// is 0 [6.3].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VqueueState {
    /// Queue number.
    pub index: u32,
    /// Maximum number of entries.
    pub max_size: u32,
    /// Number of entries; 0 until the driver sets the queue up.
    pub size: u32,
    /// Whether the queue is enabled.
    pub enabled: bool,
    /// DMA address of the descriptor area.
    pub descriptor: u64,
    /// DMA address of the driver area.
    pub driver: u64,
    /// DMA address of the device area.
    pub device: u64,
}

/// The device's decision on BIND_QUEUE [5.6].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BindOutcome {
    /// The device bound the doorbell; neither side sends the queue's events in band any more.
    Bound,
    /// The device did not bind the doorbell; both sides continue to send the queue's events in
    /// band.
    Refused,
}

/// The device's decision on SHARE_PAGES [5.8].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShareOutcome {
    /// The device mapped all the pages; the driver may put buffers into them.
    Shared,
    /// The device mapped none of the pages; the driver ends their grants.
    Refused,
}

/// The device's decision on UNSHARE_PAGES [5.11].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnshareOutcome {
    /// The device has unmapped the pages; the driver ends their grants.
    Unshared,
    /// The pages stay in the pool.
    Refused,
}

/// The response to the request of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Response<'a> {
    /// Device type, identity and sizes.
    GetDeviceInfo(DeviceInfo),
    /// Feature bits that the device offers; no blocks if they do not fit the message [5.5].
    GetDeviceFeatures(FeatureBlocks<'a>),
    /// The device received the feature bits.
    SetDriverFeatures,
    /// Bytes of the configuration space; none if they do not fit the message [5.5].
    GetConfig(ConfigData<'a>),
    /// Bytes that the device wrote: all of the request's, or none [6.6].
    SetConfig(ConfigData<'a>),
    /// The status byte.
    GetDeviceStatus(u32),
    /// The status byte after the change. A reset may complete later [6.4].
    SetDeviceStatus(u32),
    /// The set-up of the queue.
    GetVqueue(VqueueState),
    /// The device processed the update, valid or not; GET_VQUEUE reports the result [6.3].
    SetVqueue,
    /// The device disabled the queue, or ignored the request [6.7].
    ResetVqueue,
    /// Address and length of the region.
    GetShm {
        /// Region number.
        shmid: u32,
        /// Length in bytes; 0 if the region does not exist.
        length: u64,
        /// Address of the first byte.
        address: u64,
    },
    /// Bus message: the request's number.
    Ping(u32),
    /// Bus message of this binding: whether the device bound the doorbell [5.6].
    BindQueue {
        /// Queue number.
        index: u32,
        /// The device's decision.
        outcome: BindOutcome,
    },
    /// Bus message of this binding: whether the device added the pages to the pool [3.10, 5.8].
    SharePages {
        /// Pool number of the first page.
        first: PoolPage,
        /// The device's decision.
        outcome: ShareOutcome,
    },
    /// Bus message of this binding: whether the device has unmapped pages of the pool [5.11].
    UnsharePages {
        /// Pool number of the first page.
        first: PoolPage,
        /// The device's decision.
        outcome: UnshareOutcome,
    },
}

impl<'a> Response<'a> {
    pub(super) const fn number(&self) -> (Kind, u8) {
        let (bus, id) = match self {
            Self::GetDeviceInfo(_) => (false, id::GET_DEVICE_INFO),
            Self::GetDeviceFeatures(_) => (false, id::GET_DEVICE_FEATURES),
            Self::SetDriverFeatures => (false, id::SET_DRIVER_FEATURES),
            Self::GetConfig(_) => (false, id::GET_CONFIG),
            Self::SetConfig(_) => (false, id::SET_CONFIG),
            Self::GetDeviceStatus(_) => (false, id::GET_DEVICE_STATUS),
            Self::SetDeviceStatus(_) => (false, id::SET_DEVICE_STATUS),
            Self::GetVqueue(_) => (false, id::GET_VQUEUE),
            Self::SetVqueue => (false, id::SET_VQUEUE),
            Self::ResetVqueue => (false, id::RESET_VQUEUE),
            Self::GetShm { .. } => (false, id::GET_SHM),
            Self::Ping(_) => (true, id::BUS_PING),
            Self::BindQueue { .. } => (true, id::BUS_BIND_QUEUE),
            Self::SharePages { .. } => (true, id::BUS_SHARE_PAGES),
            Self::UnsharePages { .. } => (true, id::BUS_UNSHARE_PAGES),
        };
        (Kind { bus, response: true }, id)
    }

    pub(super) fn write(&self, w: &mut Writer<'_>) -> Result<(), MessageError> {
        match *self {
            Self::SetDriverFeatures | Self::SetVqueue | Self::ResetVqueue => Ok(()),
            Self::GetDeviceInfo(info) => write_info(w, &info),
            Self::GetDeviceFeatures(blocks) => blocks.write(w),
            Self::GetConfig(config) | Self::SetConfig(config) => config.write(w),
            Self::GetDeviceStatus(value) | Self::SetDeviceStatus(value) | Self::Ping(value) => {
                w.u32(value)
            }
            Self::GetVqueue(queue) => {
                w.u32s([queue.index, queue.max_size, queue.size, u32::from(queue.enabled)])?;
                w.u64(queue.descriptor)?;
                w.u64(queue.driver)?;
                w.u64(queue.device)
            }
            Self::GetShm { shmid, length, address } => {
                w.u32s([shmid, 0])?;
                w.u64(length)?;
                w.u64(address)
            }
            Self::BindQueue { index, outcome } => {
                w.u32s([index, u32::from(outcome == BindOutcome::Refused)])
            }
            Self::SharePages { first, outcome } => {
                w.u32s([first.0, u32::from(outcome == ShareOutcome::Refused)])
            }
            Self::UnsharePages { first, outcome } => {
                w.u32s([first.0, u32::from(outcome == UnshareOutcome::Refused)])
            }
        }
    }

    pub(super) fn read(header: &Header, r: &mut Reader<'a>) -> Result<Self, MessageError> {
        Ok(match (header.kind.bus, header.id) {
            (false, id::GET_DEVICE_INFO) => Self::GetDeviceInfo(read_info(r)?),
            (false, id::GET_DEVICE_FEATURES) => Self::GetDeviceFeatures(FeatureBlocks::read(r)?),
            (false, id::SET_DRIVER_FEATURES) => Self::SetDriverFeatures,
            (false, id::GET_CONFIG) => Self::GetConfig(ConfigData::read(r)?),
            (false, id::SET_CONFIG) => Self::SetConfig(ConfigData::read(r)?),
            (false, id::GET_DEVICE_STATUS) => Self::GetDeviceStatus(r.u32()?),
            (false, id::SET_DEVICE_STATUS) => Self::SetDeviceStatus(r.u32()?),
            (false, id::GET_VQUEUE) => Self::GetVqueue(read_queue(r)?),
            (false, id::SET_VQUEUE) => Self::SetVqueue,
            (false, id::RESET_VQUEUE) => Self::ResetVqueue,
            (false, id::GET_SHM) => {
                let (shmid, _reserved) = (r.u32()?, r.u32()?);
                Self::GetShm { shmid, length: r.u64()?, address: r.u64()? }
            }
            (true, id::BUS_PING) => Self::Ping(r.u32()?),
            (true, id::BUS_BIND_QUEUE) => {
                let (index, done) = (r.u32()?, read_status(r)?);
                let outcome = if done { BindOutcome::Bound } else { BindOutcome::Refused };
                Self::BindQueue { index, outcome }
            }
            (true, id::BUS_SHARE_PAGES) => {
                let (first, done) = (PoolPage(r.u32()?), read_status(r)?);
                let outcome = if done { ShareOutcome::Shared } else { ShareOutcome::Refused };
                Self::SharePages { first, outcome }
            }
            (true, id::BUS_UNSHARE_PAGES) => {
                let (first, done) = (PoolPage(r.u32()?), read_status(r)?);
                let outcome = if done { UnshareOutcome::Unshared } else { UnshareOutcome::Refused };
                Self::UnsharePages { first, outcome }
            }
            _ => return Err(header.unknown()),
        })
    }
}

fn write_info(w: &mut Writer<'_>, info: &DeviceInfo) -> Result<(), MessageError> {
    w.u32s([info.device_id, info.vendor_id])?;
    w.bytes(&info.uuid)?;
    w.u32s([info.feature_blocks, info.config_size, info.max_virtqueues])?;
    w.u32s([info.admin_queue_start, info.admin_queue_count])
}

fn read_info(r: &mut Reader<'_>) -> Result<DeviceInfo, MessageError> {
    Ok(DeviceInfo {
        device_id: r.u32()?,
        vendor_id: r.u32()?,
        uuid: r.array()?,
        feature_blocks: r.u32()?,
        config_size: r.u32()?,
        max_virtqueues: r.u32()?,
        admin_queue_start: r.u32()?,
        admin_queue_count: r.u32()?,
    })
}

fn read_queue(r: &mut Reader<'_>) -> Result<VqueueState, MessageError> {
    Ok(VqueueState {
        index: r.u32()?,
        max_size: r.u32()?,
        size: r.u32()?,
        enabled: r.u32()? & 1 != 0,
        descriptor: r.u64()?,
        driver: r.u64()?,
        device: r.u64()?,
    })
}

/// Reads a status field: 0 is success (`true`), 1 is refusal (`false`).
fn read_status(r: &mut Reader<'_>) -> Result<bool, MessageError> {
    match r.u32()? {
        0 => Ok(true),
        1 => Ok(false),
        _ => Err(MessageError::Field("status")),
    }
}
