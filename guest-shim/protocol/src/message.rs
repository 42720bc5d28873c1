//! The virtio-msg revision 1 messages, and their codec (SPEC section 5).
//!
//! Decoding takes a byte slice and returns a value that borrows from it, or an error. It never
//! reads past the slice and never panics. Callers decode a peer's message from a private copy,
//! never from the shared page itself ([`crate::page`]).

mod event;
mod header;
mod request;
mod response;
#[cfg(test)]
mod tests;

use core::fmt;

pub use event::{ChangedBytes, ConfigChange, Event};
pub use header::{HEADER_SIZE, Header};
pub use request::{Request, StateOperation, VqueueFlags, VqueueUpdate};
pub use response::{BindOutcome, DeviceInfo, Response, ShareOutcome, UnshareOutcome, VqueueState};

use crate::wire::{Reader, Writer};

/// Message numbers. Transport messages and bus messages are numbered separately.
pub(crate) mod id {
    pub(crate) const GET_DEVICE_INFO: u8 = 0x02;
    pub(crate) const GET_DEVICE_FEATURES: u8 = 0x03;
    pub(crate) const SET_DRIVER_FEATURES: u8 = 0x04;
    pub(crate) const GET_CONFIG: u8 = 0x05;
    pub(crate) const SET_CONFIG: u8 = 0x06;
    pub(crate) const GET_DEVICE_STATUS: u8 = 0x07;
    pub(crate) const SET_DEVICE_STATUS: u8 = 0x08;
    pub(crate) const GET_VQUEUE: u8 = 0x09;
    pub(crate) const SET_VQUEUE: u8 = 0x0a;
    pub(crate) const RESET_VQUEUE: u8 = 0x0b;
    pub(crate) const GET_SHM: u8 = 0x0c;
    pub(crate) const EVENT_CONFIG: u8 = 0x40;
    pub(crate) const EVENT_AVAIL: u8 = 0x41;
    pub(crate) const EVENT_USED: u8 = 0x42;

    pub(crate) const BUS_PING: u8 = 0x03;
    pub(crate) const BUS_BIND_QUEUE: u8 = 0x80;
    pub(crate) const BUS_SHARE_PAGES: u8 = 0x81;
    pub(crate) const BUS_UNSHARE_PAGES: u8 = 0x82;
}

/// The reason why bytes do not decode to a message, or a message does not encode into a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageError {
    /// The message ends before a mandatory field.
    Truncated,
    /// The size in the header differs from the number of bytes received.
    Size {
        /// Size in the header, in bytes.
        header: u16,
        /// Bytes received.
        received: usize,
    },
    /// No message of this binding has this kind and number.
    Unknown {
        /// `true` for a bus message, `false` for a transport message.
        bus: bool,
        /// Message number.
        id: u8,
    },
    /// The named field holds a value that the message does not allow.
    Field(&'static str),
    /// The message is longer than the buffer, or than the header's size field can give.
    TooLong,
}

impl fmt::Display for MessageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => f.write_str("message ends before its last field"),
            Self::Size { header, received } => {
                write!(f, "message header gives {header} bytes, but {received} were received")
            }
            Self::Unknown { bus: true, id } => write!(f, "unknown bus message {id:#04x}"),
            Self::Unknown { bus: false, id } => write!(f, "unknown transport message {id:#04x}"),
            Self::Field(name) => write!(f, "message field {name} holds an invalid value"),
            Self::TooLong => f.write_str("message is longer than the maximum size"),
        }
    }
}

impl core::error::Error for MessageError {}

/// Feature bits in blocks of 32, as GET_DEVICE_FEATURES and SET_DRIVER_FEATURES carry them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeatureBlocks<'a> {
    /// Number of the first block; block 0 holds bits 0 to 31.
    pub first: u32,
    bytes: &'a [u8],
}

impl<'a> FeatureBlocks<'a> {
    /// Creates blocks from little-endian bytes; bytes after the last whole block are ignored.
    pub fn new(first: u32, bytes: &'a [u8]) -> Self {
        let whole = bytes.len() & !3;
        Self { first, bytes: bytes.get(..whole).unwrap_or(&[]) }
    }

    /// The number of blocks.
    pub fn count(&self) -> u32 {
        (self.bytes.len() / 4) as u32
    }

    /// Number and bits of each block. A number may exceed the 32 bits of the messages' fields.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u32)> + 'a {
        let blocks = self.bytes.chunks_exact(4).zip(u64::from(self.first)..);
        blocks
            .filter_map(|(bits, number)| Some((number, u32::from_le_bytes(bits.try_into().ok()?))))
    }

    /// Feature bits 0 to 63, with 0 for blocks that are not present; higher bits are dropped.
    pub fn low_bits(&self) -> u64 {
        self.iter().fold(0, |low, (number, bits)| match number {
            0 => low | u64::from(bits),
            1 => low | u64::from(bits) << 32,
            _ => low,
        })
    }

    fn read(reader: &mut Reader<'a>) -> Result<Self, MessageError> {
        let first = reader.u32()?;
        let count = reader.u32()?;
        let bytes = count.checked_mul(4).ok_or(MessageError::Truncated)?;
        Ok(Self { first, bytes: reader.counted(bytes)? })
    }

    fn write(&self, writer: &mut Writer<'_>) -> Result<(), MessageError> {
        writer.u32s([self.first, self.count()])?;
        writer.bytes(self.bytes)
    }
}

/// A range of the device's configuration space, with its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigData<'a> {
    /// Configuration generation that the bytes belong to.
    pub generation: u32,
    /// Offset of the first byte in the configuration space.
    pub offset: u32,
    /// The bytes; empty if the device read or wrote none [5.5, 6.6].
    pub data: &'a [u8],
}

impl<'a> ConfigData<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, MessageError> {
        let generation = reader.u32()?;
        let offset = reader.u32()?;
        let size = reader.u32()?;
        Ok(Self { generation, offset, data: reader.counted(size)? })
    }

    fn write(&self, writer: &mut Writer<'_>) -> Result<(), MessageError> {
        writer.u32s([self.generation, self.offset, self.data.len() as u32])?;
        writer.bytes(self.data)
    }
}

/// The content of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body<'a> {
    /// A request, which the receiver answers once. Only PING also goes from device to driver [5.9].
    Request(Request<'a>),
    /// The response to a request.
    Response(Response<'a>),
    /// A notification, which the receiver does not answer [5.3].
    Event(Event<'a>),
}

/// A message: token and content. The codec adds the other fields of the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Matches a response to its request [5.4]; 0 in events.
    pub token: u16,
    /// The request, response or event.
    pub body: Body<'a>,
}

impl<'a> Message<'a> {
    /// A request that carries `token`.
    pub const fn request(token: u16, request: Request<'a>) -> Self {
        Self { token, body: Body::Request(request) }
    }

    /// The response to the request that carried `token`.
    pub const fn response(token: u16, response: Response<'a>) -> Self {
        Self { token, body: Body::Response(response) }
    }

    /// An event, with token 0.
    pub const fn event(event: Event<'a>) -> Self {
        Self { token: 0, body: Body::Event(event) }
    }

    /// Writes the message into `buffer` and returns its size in bytes.
    ///
    /// # Errors
    /// [`MessageError::TooLong`] if the message does not fit; part of `buffer` may be written then.
    pub fn encode(&self, buffer: &mut [u8]) -> Result<usize, MessageError> {
        let mut writer = Writer::new(buffer);
        let (kind, id) = match &self.body {
            Body::Request(request) => request.number(),
            Body::Response(response) => response.number(),
            Body::Event(event) => event.number(),
        };
        Header { kind, id, device: crate::binding::DEVICE_NUMBER, token: self.token, size: 0 }
            .write(&mut writer)?;
        match &self.body {
            Body::Request(request) => request.write(&mut writer)?,
            Body::Response(response) => response.write(&mut writer)?,
            Body::Event(event) => event.write(&mut writer)?,
        }
        let size = u16::try_from(writer.used()).map_err(|_| MessageError::TooLong)?;
        Header::patch_size(&mut writer, size);
        Ok(usize::from(size))
    }

    /// Decodes one message that fills `bytes`.
    ///
    /// # Errors
    /// [`MessageError`] if the message is malformed or unknown; the receiver must drop and count
    /// it [5.3].
    pub fn decode(bytes: &'a [u8]) -> Result<Self, MessageError> {
        let mut reader = Reader(bytes);
        let header = Header::read(&mut reader)?;
        if usize::from(header.size) != bytes.len() {
            return Err(MessageError::Size { header: header.size, received: bytes.len() });
        }
        if header.device != crate::binding::DEVICE_NUMBER {
            return Err(MessageError::Field("dev_num"));
        }
        let body = match (header.is_event(), header.kind.response) {
            (true, true) => return Err(header.unknown()),
            (true, false) => Body::Event(Event::read(&header, &mut reader)?),
            (false, true) => Body::Response(Response::read(&header, &mut reader)?),
            (false, false) => Body::Request(Request::read(&header, &mut reader)?),
        };
        Ok(Self { token: header.token, body })
    }
}
