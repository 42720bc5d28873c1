//! Block requests (virtio 1.3 section 5.2.6): a header of 16 bytes, data, a status byte. The framing
//! is the driver's choice, so parts are cut out of byte streams, not taken by descriptor.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};

use crate::device::{Buffers, DeviceMemory, Fault, Request};

/// Bytes in a sector, the unit of addresses whatever the block size.
pub const SECTOR_SIZE: u64 = 512;

/// Ranges that one discard or write-zeroes request may name.
pub(super) const MAX_RANGES: u32 = 16;
/// Sectors that one of them may have: 1 GiB.
pub(super) const MAX_RANGE_SECTORS: u32 = 1 << 21;

/// Bytes in the answer to an identity request.
pub(super) const SERIAL_SIZE: usize = 20;

/// Most data that one request may carry; what is longer is an I/O error (SPEC section 7).
pub(super) const MAX_DATA: u64 = 16 << 20;
/// Most bytes of a request: header, data, status.
pub(super) const LONGEST: u64 = HEADER_SIZE as u64 + MAX_DATA + 1;

const HEADER_SIZE: usize = 16;
const RANGE_SIZE: usize = 16;
const RANGE_UNMAP: u32 = 1;

/// How a request went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = VIRTIO_BLK_S_OK as u8,
    IoError = VIRTIO_BLK_S_IOERR as u8,
    Unsupported = VIRTIO_BLK_S_UNSUPP as u8,
}

/// What a request asks for.
pub(super) enum Operation<'r> {
    Read { sector: u64, data: Buffers<'r> },
    Write { sector: u64, data: Buffers<'r> },
    Flush,
    GetId { data: Buffers<'r> },
    Discard(Vec<Range>),
    WriteZeroes(Vec<Range>),
    Unsupported,
}

/// `struct virtio_blk_discard_write_zeroes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) sector: u64,
    pub(super) sectors: u32,
    pub(super) flags: u32,
}

impl Range {
    /// Whether the storage may be given back.
    pub(super) fn unmap(self) -> bool {
        self.flags & RANGE_UNMAP != 0
    }

    fn parse(bytes: &[u8; RANGE_SIZE]) -> Self {
        let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, f0, f1, f2, f3] = *bytes;
        Self {
            sector: u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]),
            sectors: u32::from_le_bytes([n0, n1, n2, n3]),
            flags: u32::from_le_bytes([f0, f1, f2, f3]),
        }
    }
}

impl Operation<'_> {
    /// Data bytes written into the request's buffers when it succeeds.
    pub(super) fn bytes_in(&self) -> u32 {
        match self {
            Self::Read { data, .. } => u32::try_from(data.length()).unwrap_or(u32::MAX),
            Self::GetId { data } => data.length().min(SERIAL_SIZE as u64) as u32,
            _ => 0,
        }
    }
}

/// A request taken apart.
pub(super) struct BlockRequest<'r> {
    pub(super) operation: Operation<'r>,
    /// One byte, where the status goes.
    pub(super) status: Buffers<'r>,
}

impl<'r> BlockRequest<'r> {
    /// Reads the header, once, and cuts the parts out.
    ///
    /// # Errors
    /// [`Fault::Chain`] for a request without room for header or status; [`Fault::Memory`] if the
    /// header cannot be reached.
    pub(super) fn parse<M: DeviceMemory>(request: &'r Request, memory: &M) -> Result<Self, Fault> {
        let malformed =
            |reason: &str| Fault::Chain { head: request.head, reason: reason.to_owned() };
        let mut out = request.readable();
        let header = out.split_front(HEADER_SIZE as u64);
        let header = header.ok_or_else(|| malformed("no block request header of 16 bytes"))?;
        let mut status = request.writable();
        let data_length = status.length().checked_sub(1);
        let data_length = data_length.ok_or_else(|| malformed("no room for the status byte"))?;
        let input = status.split_front(data_length).unwrap_or_default();

        let mut bytes = [0; HEADER_SIZE];
        header.copy_to(memory, &mut bytes)?;
        let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = bytes;
        let sector = u64::from_le_bytes(sector);
        let operation = match u32::from_le_bytes([t0, t1, t2, t3]) {
            VIRTIO_BLK_T_IN => Operation::Read { sector, data: input },
            VIRTIO_BLK_T_OUT => Operation::Write { sector, data: out },
            VIRTIO_BLK_T_FLUSH => Operation::Flush,
            VIRTIO_BLK_T_GET_ID => Operation::GetId { data: input },
            VIRTIO_BLK_T_DISCARD => ranges(out, memory)?
                .filter(|ranges| ranges.iter().all(|range| range.flags == 0))
                .map_or(Operation::Unsupported, Operation::Discard),
            VIRTIO_BLK_T_WRITE_ZEROES => ranges(out, memory)?
                .filter(|ranges| ranges.iter().all(|range| range.flags & !RANGE_UNMAP == 0))
                .map_or(Operation::Unsupported, Operation::WriteZeroes),
            _ => Operation::Unsupported,
        };
        Ok(Self { operation, status })
    }
}

/// The ranges of a discard or write-zeroes request, read once; `None` if they are not whole, or too
/// many or too long.
fn ranges<M: DeviceMemory>(data: Buffers<'_>, memory: &M) -> Result<Option<Vec<Range>>, Fault> {
    let length = data.length();
    let most = u64::from(MAX_RANGES) * RANGE_SIZE as u64;
    if length == 0 || length > most || !length.is_multiple_of(RANGE_SIZE as u64) {
        return Ok(None);
    }
    let mut bytes = vec![0; length as usize];
    data.copy_to(memory, &mut bytes)?;
    let whole = bytes.chunks_exact(RANGE_SIZE).filter_map(|chunk| chunk.try_into().ok());
    let ranges: Vec<_> = whole.map(Range::parse).collect();
    let fit = ranges.iter().all(|range| range.sectors <= MAX_RANGE_SECTORS);
    Ok(fit.then_some(ranges))
}
