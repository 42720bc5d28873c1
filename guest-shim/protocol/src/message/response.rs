//! What the device answers.

use super::header::{Header, Kind};
use super::{ConfigData, FeatureBlocks, MessageError, id};
use crate::pool::PoolPage;
use crate::wire::{Reader, Writer};

/// GET_DEVICE_INFO's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Virtio device id (virtio 1.3 section 5).
    pub device_id: u32,
    /// Who made the device.
    pub vendor_id: u32,
    /// Identifies this device.
    pub uuid: [u8; 16],
    /// Blocks of 32 feature bits.
    pub feature_blocks: u32,
    /// Bytes of configuration space.
    pub config_size: u32,
    /// Queues.
    pub max_virtqueues: u32,
    /// First administration queue.
    pub admin_queue_start: u32,
    /// Administration queues.
    pub admin_queue_count: u32,
}

/// GET_VQUEUE's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VqueueState {
    /// Queue number.
    pub index: u32,
    /// The most entries it can have; 0 where there is no such queue.
    pub max_size: u32,
    /// Entries it has; 0 while not set up.
    pub size: u32,
    /// Whether it is enabled.
    pub enabled: bool,
    /// DMA address of the descriptor area.
    pub descriptor: u64,
    /// DMA address of the driver area.
    pub driver: u64,
    /// DMA address of the device area.
    pub device: u64,
}

/// What became of BIND_QUEUE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BindOutcome {
    /// The doorbell is bound; in-band queue events end.
    Bound,
    /// The device could not bind it; in-band queue events go on.
    Refused,
}

/// What became of SHARE_PAGES.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShareOutcome {
    /// The pages are mapped: buffers may lie in them.
    Shared,
    /// They are not; the driver takes them back.
    Refused,
}

/// What the device, or the bus, answers to the request of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Response<'a> {
    /// What kind of device it is.
    GetDeviceInfo(DeviceInfo),
    /// Its feature bits.
    GetDeviceFeatures(FeatureBlocks<'a>),
    /// Feature bits taken note of.
    SetDriverFeatures,
    /// A piece of configuration space.
    GetConfig(ConfigData<'a>),
    /// The bytes that were written; none if none was.
    SetConfig(ConfigData<'a>),
    /// The status byte.
    GetDeviceStatus(u32),
    /// The status byte as it then is.
    SetDeviceStatus(u32),
    /// How the queue is set up.
    GetVqueue(VqueueState),
    /// The update was looked at; GET_VQUEUE tells what holds.
    SetVqueue,
    /// The queue is disabled, or stays as it is.
    ResetVqueue,
    /// The region.
    GetShm {
        /// Region number.
        shmid: u32,
        /// Bytes; 0 where there is no such region.
        length: u64,
        /// Its address.
        address: u64,
    },
    /// Bus: the number that was sent.
    Ping(u32),
    /// Bus, Xen: whether the doorbell is bound [5.6].
    BindQueue {
        /// Queue number.
        index: u32,
        /// Whether it is bound.
        outcome: BindOutcome,
    },
    /// Bus, Xen: whether the pages are the pool's [3.10].
    SharePages {
        /// Number in the pool of the first.
        first: PoolPage,
        /// Whether they are.
        outcome: ShareOutcome,
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

/// Whether it was done.
fn read_status(r: &mut Reader<'_>) -> Result<bool, MessageError> {
    match r.u32()? {
        0 => Ok(true),
        1 => Ok(false),
        _ => Err(MessageError::Field("status")),
    }
}
