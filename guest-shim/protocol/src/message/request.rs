//! Requests, and their payloads.

use super::header::{Header, Kind};
use super::{ConfigData, FeatureBlocks, MessageError, id};
use crate::grant::GrantRef;
use crate::pool::PoolPage;
use crate::wire::{Reader, Writer};

/// The state operation of SET_VQUEUE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateOperation {
    /// Keep a disabled queue disabled; invalid for an enabled queue [6.3].
    KeepDisabled,
    /// Enable the queue.
    Enable,
    /// Keep the queue enabled or disabled as it is.
    Keep,
}

/// The flags of SET_VQUEUE: the state operation, and which fields the device must ignore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VqueueFlags(pub u32);

impl VqueueFlags {
    /// State operation 1: enable the queue.
    pub const ENABLE: u32 = 1;
    /// State operation 2: keep the queue enabled or disabled as it is.
    pub const KEEP: u32 = 2;
    const STATE: u32 = 3;
    const IGNORE_SIZE: u32 = 1 << 2;
    const IGNORE_DESCRIPTOR: u32 = 1 << 3;
    const IGNORE_DRIVER: u32 = 1 << 4;
    const IGNORE_DEVICE: u32 = 1 << 5;
    const IGNORE_ALL: u32 = 0x3c;
    const KNOWN: u32 = 0x3f;

    /// The state operation; `None` for the reserved operation or if a reserved bit is set [6.3].
    pub const fn operation(self) -> Option<StateOperation> {
        match self.0 & (Self::STATE | !Self::KNOWN) {
            0 => Some(StateOperation::KeepDisabled),
            Self::ENABLE => Some(StateOperation::Enable),
            Self::KEEP => Some(StateOperation::Keep),
            _ => None,
        }
    }

    /// Whether the device must use at least one field: the size or an address.
    pub const fn has_fields(self) -> bool {
        self.0 & Self::IGNORE_ALL != Self::IGNORE_ALL
    }

    /// Whether the device must use the size.
    pub const fn has_size(self) -> bool {
        self.0 & Self::IGNORE_SIZE == 0
    }

    /// Whether the device must use the descriptor area's address.
    pub const fn has_descriptor(self) -> bool {
        self.0 & Self::IGNORE_DESCRIPTOR == 0
    }

    /// Whether the device must use the driver area's address.
    pub const fn has_driver(self) -> bool {
        self.0 & Self::IGNORE_DRIVER == 0
    }

    /// Whether the device must use the device area's address.
    pub const fn has_device(self) -> bool {
        self.0 & Self::IGNORE_DEVICE == 0
    }
}

/// The payload of SET_VQUEUE: size and addresses of a queue [6.3].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VqueueUpdate {
    /// Queue number.
    pub index: u32,
    /// The state operation, and which of the fields below the device must ignore.
    pub flags: VqueueFlags,
    /// Number of entries.
    pub size: u32,
    /// Must be 0; otherwise the update is invalid and changes nothing [6.3].
    pub reserved: u32,
    /// DMA address of the descriptor area.
    pub descriptor: u64,
    /// DMA address of the driver area (split ring: available ring).
    pub driver: u64,
    /// DMA address of the device area (split ring: used ring).
    pub device: u64,
}

/// A request. The driver sends all of them; the device sends only PING.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// Get device type, identity, and the sizes in [`DeviceInfo`](super::DeviceInfo).
    GetDeviceInfo,
    /// Get the device's feature bits, in blocks of 32.
    GetDeviceFeatures {
        /// Number of the first block.
        first: u32,
        /// Number of blocks.
        count: u32,
    },
    /// Set the feature bits that the driver accepts, in blocks of 32.
    SetDriverFeatures(FeatureBlocks<'a>),
    /// Read a range of the configuration space.
    GetConfig {
        /// Offset of the first byte.
        offset: u32,
        /// Number of bytes.
        size: u32,
    },
    /// Write a range of the configuration space. The generation is 0 in the baseline profile
    /// [2.11, 6.6].
    SetConfig(ConfigData<'a>),
    /// Get the status byte.
    GetDeviceStatus,
    /// Add bits to the status byte; 0 resets the device [6.4, 6.8].
    SetDeviceStatus(u32),
    /// Get the set-up of a queue.
    GetVqueue {
        /// Queue number.
        index: u32,
    },
    /// Set a queue up, and enable it or not [6.3].
    SetVqueue(VqueueUpdate),
    /// Disable one queue and forget its set-up, if VIRTIO_F_RING_RESET was negotiated [6.7].
    ResetVqueue {
        /// Queue number.
        index: u32,
    },
    /// Get address and length of a shared memory region.
    GetShm {
        /// Region number.
        shmid: u32,
    },
    /// Bus message: request a response with the same number [5.9].
    Ping(u32),
    /// Bus message of this binding: add pages to the pool, which the device keeps mapped
    /// [3.10, 5.8].
    SharePages {
        /// Pool number of the first page.
        first: PoolPage,
        /// Number of pages.
        count: u32,
        /// Grant reference of the first page; those of the others follow consecutively.
        reference: GrantRef,
    },
    /// Bus message of this binding: take pages back that one message added to the pool [5.11].
    UnsharePages {
        /// Pool number of the first page.
        first: PoolPage,
        /// Number of pages.
        count: u32,
    },
    /// Bus message of this binding: use an event channel as a queue's doorbell, in both directions
    /// [5.6].
    BindQueue {
        /// Queue number.
        index: u32,
        /// Port of the driver's unbound event channel.
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
            Self::UnsharePages { .. } => (true, id::BUS_UNSHARE_PAGES),
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
            | Self::BindQueue { index: a, port: b }
            | Self::UnsharePages { first: PoolPage(a), count: b } => w.u32s([a, b]),
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
            (true, id::BUS_UNSHARE_PAGES) => {
                Self::UnsharePages { first: PoolPage(r.u32()?), count: r.u32()? }
            }
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
