//! What the driver asks.

use super::header::{Header, Kind};
use super::{ConfigData, FeatureBlocks, MessageError, id};
use crate::grant::GrantRef;
use crate::pool::PoolPage;
use crate::wire::{Reader, Writer};

/// What SET_VQUEUE does to a queue's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateOperation {
    /// Keep a disabled queue disabled; an enabled one is not for this operation.
    KeepDisabled,
    /// Enable it.
    Enable,
    /// Keep it as it is.
    Keep,
}

/// What SET_VQUEUE does to a queue and which of its fields count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VqueueFlags(pub u32);

impl VqueueFlags {
    /// State: enable the queue.
    pub const ENABLE: u32 = 1;
    /// State: keep it as it is.
    pub const KEEP: u32 = 2;
    const STATE: u32 = 3;
    const IGNORE_SIZE: u32 = 1 << 2;
    const IGNORE_DESCRIPTOR: u32 = 1 << 3;
    const IGNORE_DRIVER: u32 = 1 << 4;
    const IGNORE_DEVICE: u32 = 1 << 5;
    const IGNORE_ALL: u32 = 0x3c;
    const KNOWN: u32 = 0x3f;

    /// The state operation; `None` if it is the reserved one, or a reserved bit is set.
    pub const fn operation(self) -> Option<StateOperation> {
        match self.0 & (Self::STATE | !Self::KNOWN) {
            0 => Some(StateOperation::KeepDisabled),
            Self::ENABLE => Some(StateOperation::Enable),
            Self::KEEP => Some(StateOperation::Keep),
            _ => None,
        }
    }

    /// Whether a field counts, the size or an address.
    pub const fn has_fields(self) -> bool {
        self.0 & Self::IGNORE_ALL != Self::IGNORE_ALL
    }

    /// Whether the size field counts.
    pub const fn has_size(self) -> bool {
        self.0 & Self::IGNORE_SIZE == 0
    }

    /// Whether the descriptor area's address counts.
    pub const fn has_descriptor(self) -> bool {
        self.0 & Self::IGNORE_DESCRIPTOR == 0
    }

    /// Whether the driver area's address counts.
    pub const fn has_driver(self) -> bool {
        self.0 & Self::IGNORE_DRIVER == 0
    }

    /// Whether the device area's address counts.
    pub const fn has_device(self) -> bool {
        self.0 & Self::IGNORE_DEVICE == 0
    }
}

/// SET_VQUEUE: where a queue lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VqueueUpdate {
    /// Queue number.
    pub index: u32,
    /// What to do and which fields count.
    pub flags: VqueueFlags,
    /// Entries.
    pub size: u32,
    /// 0 from a driver; an update with anything else changes nothing.
    pub reserved: u32,
    /// DMA address of the descriptor area.
    pub descriptor: u64,
    /// DMA address of the driver area (split ring: available ring).
    pub driver: u64,
    /// DMA address of the device area (split ring: used ring).
    pub device: u64,
}

/// What the driver asks of the device, or of the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// What kind of device is it, and how large?
    GetDeviceInfo,
    /// Blocks of 32 of the device's feature bits.
    GetDeviceFeatures {
        /// Number of the first block.
        first: u32,
        /// How many blocks.
        count: u32,
    },
    /// The feature bits that the driver accepts.
    SetDriverFeatures(FeatureBlocks<'a>),
    /// A piece of configuration space.
    GetConfig {
        /// Offset of the first byte.
        offset: u32,
        /// Bytes.
        size: u32,
    },
    /// Write a piece of configuration space. The generation is 0 [2.11].
    SetConfig(ConfigData<'a>),
    /// The status byte.
    GetDeviceStatus,
    /// Set the status byte; 0 resets the device.
    SetDeviceStatus(u32),
    /// How queue `index` is set up.
    GetVqueue {
        /// Queue number.
        index: u32,
    },
    /// Set a queue up.
    SetVqueue(VqueueUpdate),
    /// Disable one queue and forget its set-up, if VIRTIO_F_RING_RESET was negotiated.
    ResetVqueue {
        /// Queue number.
        index: u32,
    },
    /// A shared memory region.
    GetShm {
        /// Region number.
        shmid: u32,
    },
    /// Bus: answer with the same number.
    Ping(u32),
    /// Bus, Xen: these pages are the pool's, to be kept mapped [3.10].
    SharePages {
        /// Number in the pool of the first.
        first: PoolPage,
        /// How many.
        count: u32,
        /// The first one's grant; the others' follow.
        reference: GrantRef,
    },
    /// Bus, Xen: this event channel is queue `index`'s doorbell, both ways [5.6].
    BindQueue {
        /// Queue number.
        index: u32,
        /// The driver's end of the event channel.
        port: u32,
    },
}

impl<'a> Request<'a> {
    pub(super) const fn number(&self) -> (Kind, u8) {
        let (bus, id) = match self {
            Self::GetDeviceInfo => (false, id::GET_DEVICE_INFO),
            Self::GetDeviceFeatures { .. } => (false, id::GET_DEVICE_FEATURES),
            Self::SetDriverFeatures(_) => (false, id::SET_DRIVER_FEATURES),
            Self::GetConfig { .. } => (false, id::GET_CONFIG),
            Self::SetConfig(_) => (false, id::SET_CONFIG),
            Self::GetDeviceStatus => (false, id::GET_DEVICE_STATUS),
            Self::SetDeviceStatus(_) => (false, id::SET_DEVICE_STATUS),
            Self::GetVqueue { .. } => (false, id::GET_VQUEUE),
            Self::SetVqueue(_) => (false, id::SET_VQUEUE),
            Self::ResetVqueue { .. } => (false, id::RESET_VQUEUE),
            Self::GetShm { .. } => (false, id::GET_SHM),
            Self::Ping(_) => (true, id::BUS_PING),
            Self::BindQueue { .. } => (true, id::BUS_BIND_QUEUE),
            Self::SharePages { .. } => (true, id::BUS_SHARE_PAGES),
        };
        (Kind { bus, response: false }, id)
    }

    pub(super) fn write(&self, w: &mut Writer<'_>) -> Result<(), MessageError> {
        match *self {
            Self::GetDeviceInfo | Self::GetDeviceStatus => Ok(()),
            Self::SetDriverFeatures(blocks) => blocks.write(w),
            Self::SetConfig(config) => config.write(w),
            Self::SetVqueue(update) => {
                w.u32s([update.index, update.flags.0, update.size, update.reserved])?;
                w.u64(update.descriptor)?;
                w.u64(update.driver)?;
                w.u64(update.device)
            }
            Self::GetDeviceFeatures { first: a, count: b }
            | Self::GetConfig { offset: a, size: b }
            | Self::BindQueue { index: a, port: b } => w.u32s([a, b]),
            Self::SharePages { first, count, reference } => w.u32s([first.0, count, reference.0]),
            Self::SetDeviceStatus(value)
            | Self::GetVqueue { index: value }
            | Self::ResetVqueue { index: value }
            | Self::GetShm { shmid: value }
            | Self::Ping(value) => w.u32(value),
        }
    }

    pub(super) fn read(header: &Header, r: &mut Reader<'a>) -> Result<Self, MessageError> {
        Ok(match (header.kind.bus, header.id) {
            (false, id::GET_DEVICE_INFO) => Self::GetDeviceInfo,
            (false, id::GET_DEVICE_FEATURES) => {
                Self::GetDeviceFeatures { first: r.u32()?, count: r.u32()? }
            }
            (false, id::SET_DRIVER_FEATURES) => Self::SetDriverFeatures(FeatureBlocks::read(r)?),
            (false, id::GET_CONFIG) => Self::GetConfig { offset: r.u32()?, size: r.u32()? },
            (false, id::SET_CONFIG) => Self::SetConfig(ConfigData::read(r)?),
            (false, id::GET_DEVICE_STATUS) => Self::GetDeviceStatus,
            (false, id::SET_DEVICE_STATUS) => Self::SetDeviceStatus(r.u32()?),
            (false, id::GET_VQUEUE) => Self::GetVqueue { index: r.u32()? },
            (false, id::SET_VQUEUE) => Self::SetVqueue(read_update(r)?),
            (false, id::RESET_VQUEUE) => Self::ResetVqueue { index: r.u32()? },
            (false, id::GET_SHM) => Self::GetShm { shmid: r.u32()? },
            (true, id::BUS_PING) => Self::Ping(r.u32()?),
            (true, id::BUS_BIND_QUEUE) => Self::BindQueue { index: r.u32()?, port: r.u32()? },
            (true, id::BUS_SHARE_PAGES) => Self::SharePages {
                first: PoolPage(r.u32()?),
                count: r.u32()?,
                reference: GrantRef(r.u32()?),
            },
            _ => return Err(header.unknown()),
        })
    }
}

fn read_update(r: &mut Reader<'_>) -> Result<VqueueUpdate, MessageError> {
    Ok(VqueueUpdate {
        index: r.u32()?,
        flags: VqueueFlags(r.u32()?),
        size: r.u32()?,
        reserved: r.u32()?,
        descriptor: r.u64()?,
        driver: r.u64()?,
        device: r.u64()?,
    })
}
