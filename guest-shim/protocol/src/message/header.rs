//! The eight bytes in front of every message (virtio-msg "Message header").

use super::MessageError;
use crate::wire::{Reader, Writer};

/// Bytes in a header.
pub const HEADER_SIZE: usize = 8;

const RESPONSE: u8 = 1;
const BUS: u8 = 2;
const EVENT: u8 = 0x40;
const SIZE_OFFSET: usize = 6;

/// The two defined bits of a header's type byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// `true` for a bus message, `false` for a transport message.
    pub bus: bool,
    /// `true` for a response, `false` for a request or an event.
    pub response: bool,
}

/// The fields of a message's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The defined bits of the type byte; the receiver ignores the others [5.2].
    pub kind: Kind,
    /// Message number.
    pub id: u8,
    /// Device number, always 0 in this binding [5.2].
    pub device: u16,
    /// Token of a request, which its response repeats [5.4].
    pub token: u16,
    /// Size of header and payload, in bytes.
    pub size: u16,
}

impl Header {
    /// Reads the header from the front of a received message.
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, MessageError> {
        let kind = reader.u8()?;
        Ok(Self {
            kind: Kind { bus: kind & BUS != 0, response: kind & RESPONSE != 0 },
            id: reader.u8()?,
            device: reader.u16()?,
            token: reader.u16()?,
            size: reader.u16()?,
        })
    }

    /// Decodes the size field alone, before the message is copied out of its slot.
    pub const fn size_of(header: [u8; HEADER_SIZE]) -> u16 {
        let [.., low, high] = header;
        u16::from_le_bytes([low, high])
    }

    pub(super) fn write(&self, writer: &mut Writer<'_>) -> Result<(), MessageError> {
        let kind = if self.kind.bus { BUS } else { 0 } | u8::from(self.kind.response);
        writer.u8(kind)?;
        writer.u8(self.id)?;
        writer.u16(self.device)?;
        writer.u16(self.token)?;
        writer.u16(self.size)
    }

    pub(super) fn patch_size(writer: &mut Writer<'_>, size: u16) {
        writer.patch(SIZE_OFFSET, &size.to_le_bytes());
    }

    pub(super) const fn is_event(&self) -> bool {
        self.id & EVENT != 0
    }

    pub(super) const fn unknown(&self) -> MessageError {
        MessageError::Unknown { bus: self.kind.bus, id: self.id }
    }
}
