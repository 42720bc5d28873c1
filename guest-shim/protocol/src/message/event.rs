//! Events: notifications that have no response.

use super::header::{Header, Kind};
use super::{MessageError, id};
use crate::wire::{Reader, Writer};

/// The bytes of a configuration change [6.6].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangedBytes<'a> {
    /// The event carries the new bytes; at least one.
    Sent(&'a [u8]),
    /// The event carries only the number of bytes, and the driver reads them with GET_CONFIG. 0
    /// names no range: any byte may have changed.
    Omitted(u32),
}

/// The fields of EVENT_CONFIG that describe the configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigChange<'a> {
    /// Configuration generation after the change.
    pub generation: u32,
    /// Offset of the first byte that changed.
    pub offset: u32,
    /// The bytes that changed, or their number.
    pub bytes: ChangedBytes<'a>,
}

impl<'a> ConfigChange<'a> {
    /// A change that names no range, or a change of the status alone.
    pub const fn anywhere(generation: u32) -> Self {
        Self { generation, offset: 0, bytes: ChangedBytes::Omitted(0) }
    }

    fn write(&self, w: &mut Writer<'_>) -> Result<(), MessageError> {
        let (length, data) = match self.bytes {
            ChangedBytes::Sent(data) => (data.len() as u32, data),
            ChangedBytes::Omitted(length) => (length, [].as_slice()),
        };
        w.u32s([self.generation, self.offset, length])?;
        w.bytes(data)
    }

    fn read(r: &mut Reader<'a>) -> Result<Self, MessageError> {
        let (generation, offset, length) = (r.u32()?, r.u32()?, r.u32()?);
        let bytes = if length == 0 || r.is_empty() {
            ChangedBytes::Omitted(length)
        } else {
            ChangedBytes::Sent(r.counted(length)?)
        };
        Ok(Self { generation, offset, bytes })
    }
}

/// A notification. The receiver answers no event, not even a malformed one [5.3].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// From the device: its status or configuration changed.
    Config {
        /// The current status byte.
        status: u32,
        /// The configuration change.
        config: ConfigChange<'a>,
    },
    /// From the driver: buffers are available in a queue without a doorbell.
    Avail {
        /// Queue number.
        index: u32,
        /// 0 unless `VIRTIO_F_NOTIFICATION_DATA` was negotiated, which this binding does not offer.
        next_offset_wrap: u32,
    },
    /// From the device: buffers were used in a queue without a doorbell.
    Used {
        /// Queue number.
        index: u32,
    },
}

impl<'a> Event<'a> {
    pub(super) const fn number(&self) -> (Kind, u8) {
        let id = match self {
            Self::Config { .. } => id::EVENT_CONFIG,
            Self::Avail { .. } => id::EVENT_AVAIL,
            Self::Used { .. } => id::EVENT_USED,
        };
        (Kind { bus: false, response: false }, id)
    }

    pub(super) fn write(&self, w: &mut Writer<'_>) -> Result<(), MessageError> {
        match *self {
            Self::Config { status, config } => {
                w.u32(status)?;
                config.write(w)
            }
            Self::Avail { index, next_offset_wrap } => w.u32s([index, next_offset_wrap]),
            Self::Used { index } => w.u32(index),
        }
    }

    pub(super) fn read(header: &Header, r: &mut Reader<'a>) -> Result<Self, MessageError> {
        Ok(match (header.kind.bus, header.id) {
            (false, id::EVENT_CONFIG) => {
                Self::Config { status: r.u32()?, config: ConfigChange::read(r)? }
            }
            (false, id::EVENT_AVAIL) => Self::Avail { index: r.u32()?, next_offset_wrap: r.u32()? },
            (false, id::EVENT_USED) => Self::Used { index: r.u32()? },
            _ => return Err(header.unknown()),
        })
    }
}
