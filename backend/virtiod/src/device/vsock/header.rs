//! Packets as they lie in a buffer (virtio 1.3 section 5.10.6): a header and data.

/// Bytes of a header.
pub const HEADER_SIZE: usize = 44;
/// The context id of the host (section 5.10.4).
pub const HOST_CID: u64 = 2;
/// The type of a stream's packets; no other is offered.
const STREAM: u16 = 1;

/// What a packet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Operation {
    /// Asks for a connection.
    VirtioRequest = 1,
    /// Grants it.
    Response = 2,
    /// Refuses or ends it.
    Reset = 3,
    /// Says in which directions nothing follows: [`Shutdown`].
    Shutdown = 4,
    /// Carries data.
    Data = 5,
    /// Says how much room there is.
    CreditUpdate = 6,
    /// Asks how much room there is.
    CreditRequest = 7,
}

impl Operation {
    fn from_number(number: u16) -> Option<Self> {
        [
            Self::VirtioRequest,
            Self::Response,
            Self::Reset,
            Self::Shutdown,
            Self::Data,
            Self::CreditUpdate,
            Self::CreditRequest,
        ]
        .into_iter()
        .find(|operation| *operation as u16 == number)
    }
}

/// The sender of a [`Operation::Shutdown`] will do no more of this; bits of a packet's flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shutdown(pub u32);

impl Shutdown {
    /// It will receive nothing more.
    pub const RECEIVE: u32 = 1;
    /// It will send nothing more.
    pub const SEND: u32 = 2;
}

/// One connection among those of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortPair {
    /// The host's end.
    pub host: u32,
    /// The guest's end.
    pub guest: u32,
}

/// How much room a sender has for what it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credit {
    /// Bytes that it can keep.
    pub buf_alloc: u32,
    /// Bytes that it has passed on so far, modulo 2³².
    pub fwd_cnt: u32,
}

/// What a header says, whichever way the packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VsockHeader {
    /// The connection.
    pub ports: PortPair,
    /// What the packet is for; `None` for what is not known.
    pub operation: Option<Operation>,
    /// Bytes of data behind it.
    pub length: u32,
    /// By operation: [`Shutdown`].
    pub flags: u32,
    /// The sender's room.
    pub room: Credit,
}

/// What a header that the guest wrote is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceivedPacket {
    /// A packet of a stream for the host.
    Stream(VsockHeader),
    /// A packet of another type, to be answered by a reset.
    OtherType(VsockHeader),
    /// From or for somebody else: to be dropped (section 5.10.6.4).
    Astray,
}

impl VsockHeader {
    /// Reads a header that the guest with `cid` wrote.
    pub fn decode(bytes: &[u8; HEADER_SIZE], cid: u64) -> ReceivedPacket {
        let mut rest = bytes.as_slice();
        let (from, to) = (u64::from_le_bytes(take(&mut rest)), u64::from_le_bytes(take(&mut rest)));
        let guest = u32::from_le_bytes(take(&mut rest));
        let host = u32::from_le_bytes(take(&mut rest));
        let length = u32::from_le_bytes(take(&mut rest));
        let kind = u16::from_le_bytes(take(&mut rest));
        let operation = Operation::from_number(u16::from_le_bytes(take(&mut rest)));
        let flags = u32::from_le_bytes(take(&mut rest));
        let buf_alloc = u32::from_le_bytes(take(&mut rest));
        let fwd_cnt = u32::from_le_bytes(take(&mut rest));
        let room = Credit { buf_alloc, fwd_cnt };
        let header = Self { ports: PortPair { host, guest }, operation, length, flags, room };
        match (from == cid && to == HOST_CID, kind) {
            (false, _) => ReceivedPacket::Astray,
            (true, STREAM) => ReceivedPacket::Stream(header),
            (true, _) => ReceivedPacket::OtherType(header),
        }
    }

    /// Writes a header for the guest with `cid`.
    pub fn encode(&self, cid: u64) -> [u8; HEADER_SIZE] {
        let operation = self.operation.map_or(0, |operation| operation as u16);
        let fields: [&[u8]; 10] = [
            &HOST_CID.to_le_bytes(),
            &cid.to_le_bytes(),
            &self.ports.host.to_le_bytes(),
            &self.ports.guest.to_le_bytes(),
            &self.length.to_le_bytes(),
            &STREAM.to_le_bytes(),
            &operation.to_le_bytes(),
            &self.flags.to_le_bytes(),
            &self.room.buf_alloc.to_le_bytes(),
            &self.room.fwd_cnt.to_le_bytes(),
        ];
        let mut bytes = [0; HEADER_SIZE];
        bytes.iter_mut().zip(fields.into_iter().flatten()).for_each(|(to, from)| *to = *from);
        bytes
    }
}

/// The next field. The fields' sizes add up to the header's, so there always is one.
fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let (field, behind) = rest.split_first_chunk().unwrap_or((&[0; N], &[]));
    *rest = behind;
    *field
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the guest would write it: the ends exchanged.
    fn from_guest(mut bytes: [u8; HEADER_SIZE]) -> [u8; HEADER_SIZE] {
        bytes[..16].rotate_left(8);
        bytes[16..24].rotate_left(4);
        bytes
    }

    fn header() -> VsockHeader {
        VsockHeader {
            ports: PortPair { host: 52, guest: 0x4000_0001 },
            operation: Some(Operation::Data),
            length: 3,
            flags: 0,
            room: Credit { buf_alloc: 0x1234, fwd_cnt: u32::MAX },
        }
    }

    #[test]
    fn fields_lie_where_the_specification_has_them() {
        let bytes = header().encode(7);
        assert_eq!(bytes[..8], 2u64.to_le_bytes());
        assert_eq!(bytes[8..16], 7u64.to_le_bytes());
        assert_eq!(bytes[16..20], 52u32.to_le_bytes());
        assert_eq!(bytes[24..28], 3u32.to_le_bytes());
        assert_eq!(bytes[28..32], [1, 0, 5, 0]);
        assert_eq!(bytes[36..40], 0x1234u32.to_le_bytes());
        assert_eq!(VsockHeader::decode(&from_guest(bytes), 7), ReceivedPacket::Stream(header()));
    }

    #[test]
    fn what_is_not_from_this_guest_for_this_host_is_astray() {
        let bytes = from_guest(header().encode(7));
        assert_eq!(VsockHeader::decode(&bytes, 8), ReceivedPacket::Astray);
        let mut elsewhere = bytes;
        elsewhere[8] = 3;
        assert_eq!(VsockHeader::decode(&elsewhere, 7), ReceivedPacket::Astray);
    }

    #[test]
    fn unknown_types_and_operations_are_told_apart() {
        let mut bytes = from_guest(header().encode(7));
        bytes[28] = 2;
        assert!(matches!(VsockHeader::decode(&bytes, 7), ReceivedPacket::OtherType(_)));
        bytes[28..32].copy_from_slice(&[1, 0, 8, 0]);
        let unknown = VsockHeader { operation: None, ..header() };
        assert_eq!(VsockHeader::decode(&bytes, 7), ReceivedPacket::Stream(unknown));
    }
}
