//! What either side tells the other without waiting for an answer.

use super::header::{Header, Kind};
use super::{ConfigData, MessageError, id};
use crate::wire::{Reader, Writer};

/// News; no answer is ever sent, not even to a malformed one [5.3].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// From the device: its status or configuration changed.
    Config {
        /// The status byte as it now is.
        status: u32,
        /// The configuration that changed; may carry no bytes.
        config: ConfigData<'a>,
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
                Self::Config { status: r.u32()?, config: ConfigData::read(r)? }
            }
            (false, id::EVENT_AVAIL) => Self::Avail { index: r.u32()?, next_offset_wrap: r.u32()? },
            (false, id::EVENT_USED) => Self::Used { index: r.u32()? },
            _ => return Err(header.unknown()),
        })
    }
}
