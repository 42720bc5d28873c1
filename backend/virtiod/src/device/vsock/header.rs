//! The header of packets (virtio 1.3 section 5.10.6); data follows it.

/// Bytes of a header.
pub const HEADER_SIZE: usize = 44;
/// The context id of the host (section 5.10.4).
pub const HOST_CID: u64 = 2;
/// The type of a stream's packets, the only one that the device offers.
const STREAM: u16 = 1;

/// The operation of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Operation {
    /// Requests a connection.
    Request = 1,
    /// Accepts a requested connection.
    Response = 2,
    /// Refuses or ends a connection.
    Reset = 3,
    /// Announces the directions in which no more data follows: [`Shutdown`].
    Shutdown = 4,
    /// Carries data.
    Data = 5,
    /// Advertises the sender's credit.
    CreditUpdate = 6,
    /// Requests a credit update.
    CreditRequest = 7,
}

impl Operation {
    fn from_number(number: u16) -> Option<Self> {
        [
            Self::Request,
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

/// Flags of [`Operation::Shutdown`]: the operations that its sender ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shutdown(pub u32);

impl Shutdown {
    /// The sender receives no more data.
    pub const RECEIVE: u32 = 1;
    /// The sender sends no more data.
    pub const SEND: u32 = 2;
}

/// The ports of a connection, which identify it among those of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortPair {
    /// The host's port.
    pub host: u32,
    /// The guest's port.
    pub guest: u32,
}

/// The credit that the sender of a packet grants to its receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credit {
    /// Size of the sender's receive buffer in bytes.
    pub buf_alloc: u32,
    /// Number of bytes that the sender has forwarded from its buffer so far, modulo 2³².
    pub fwd_cnt: u32,
}

/// The contents of a header, for packets in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VsockHeader {
    /// The ports of the connection.
    pub ports: PortPair,
    /// The operation; `None` if it is unknown.
    pub operation: Option<Operation>,
    /// Number of bytes of data behind the header.
    pub length: u32,
    /// Flags that depend on the operation: [`Shutdown`].
    pub flags: u32,
    /// The credit that the sender grants.
    pub credit: Credit,
}

/// A decoded packet header from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceivedPacket {
    /// A packet of a stream for the host.
    Stream(VsockHeader),
    /// A packet of another type, to which the device replies with a reset.
    OtherType(VsockHeader),
    /// A packet with a wrong source or destination CID, which the device drops (section 5.10.6.4).
    Astray,
}

impl VsockHeader {
    /// Decodes a header from the guest with context id `cid`.
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
        let credit = Credit { buf_alloc, fwd_cnt };
        let header = Self { ports: PortPair { host, guest }, operation, length, flags, credit };
        match (from == cid && to == HOST_CID, kind) {
            (false, _) => ReceivedPacket::Astray,
            (true, STREAM) => ReceivedPacket::Stream(header),
            (true, _) => ReceivedPacket::OtherType(header),
        }
    }

    /// Encodes a header for the guest with context id `cid`.
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
            &self.credit.buf_alloc.to_le_bytes(),
            &self.credit.fwd_cnt.to_le_bytes(),
        ];
        let mut bytes = [0; HEADER_SIZE];
        bytes.iter_mut().zip(fields.into_iter().flatten()).for_each(|(to, from)| *to = *from);
        bytes
    }
}

/// Takes the next field. The sizes of the fields add up to the header's, so a field always exists.
fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let (field, behind) = rest.split_first_chunk().unwrap_or((&[0; N], &[]));
    *rest = behind;
    *field
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The header as the guest would write it, with source and destination exchanged.
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
            credit: Credit { buf_alloc: 0x1234, fwd_cnt: u32::MAX },
        }
    }

    #[test]
    fn header_fields_have_the_specified_offsets() {
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
    fn packet_with_wrong_cid_is_astray() {
        let bytes = from_guest(header().encode(7));
        assert_eq!(VsockHeader::decode(&bytes, 8), ReceivedPacket::Astray);
        let mut elsewhere = bytes;
        elsewhere[8] = 3;
        assert_eq!(VsockHeader::decode(&elsewhere, 7), ReceivedPacket::Astray);
    }

    #[test]
    fn unknown_type_and_unknown_operation_are_distinguished() {
        let mut bytes = from_guest(header().encode(7));
        bytes[28] = 2;
        assert!(matches!(VsockHeader::decode(&bytes, 7), ReceivedPacket::OtherType(_)));
        bytes[28..32].copy_from_slice(&[1, 0, 8, 0]);
        let unknown = VsockHeader { operation: None, ..header() };
        assert_eq!(VsockHeader::decode(&bytes, 7), ReceivedPacket::Stream(unknown));
    }
}
