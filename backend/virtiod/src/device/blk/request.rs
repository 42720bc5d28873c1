//! Block requests (virtio 1.3 section 5.2.6): a header of 16 bytes, data, a status byte. The driver
//! chooses the framing, so parts are split off byte streams instead of being taken by descriptor.

use std::collections::VecDeque;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};

use super::STATUS_SIZE;
use super::image::Storage;
use crate::device::{Buffers, DeviceMemory, Fault, VirtioRequest, Writable};

/// Bytes of a sector, the unit of addresses whatever the block size is.
pub const SECTOR_SIZE: u64 = 512;

/// Maximum number of ranges of one discard or write-zeroes request.
pub(super) const MAX_RANGES: u32 = 16;
/// Maximum number of sectors of a range: 1 GiB.
pub(super) const MAX_RANGE_SECTORS: u32 = 1 << 21;

/// Bytes of the answer to an identity request.
pub const SERIAL_SIZE: usize = 20;

/// Maximum bytes of data of a request; a longer request gets an I/O error (SPEC section 7).
pub(super) const MAX_DATA: u64 = 16 << 20;
/// Maximum bytes of a request: header, data, status.
pub(super) const LONGEST: u64 = HEADER_SIZE as u64 + MAX_DATA + 1;

const HEADER_SIZE: usize = 16;
const RANGE_SIZE: usize = 16;
const RANGE_UNMAP: u32 = 1;

/// The status of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum BlockStatus {
    Ok = VIRTIO_BLK_S_OK as u8,
    IoError = VIRTIO_BLK_S_IOERR as u8,
    Unsupported = VIRTIO_BLK_S_UNSUPP as u8,
}

/// The command of a request, which the device reads once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum BlockCommand {
    Read {
        sector: u64,
    },
    Write {
        sector: u64,
    },
    Flush,
    GetId,
    Change {
        change: RangeChange,
        #[expect(clippy::box_collection, reason = "the other commands are shorter")]
        ranges: Box<VecDeque<Range>>,
    },
    Unsupported,
}

impl BlockCommand {
    /// The type of its requests (virtio 1.3 section 5.2.6); `None` for an unsupported one.
    pub(super) fn kind(&self) -> Option<u32> {
        match self {
            Self::Read { .. } => Some(VIRTIO_BLK_T_IN),
            Self::Write { .. } => Some(VIRTIO_BLK_T_OUT),
            Self::Flush => Some(VIRTIO_BLK_T_FLUSH),
            Self::GetId => Some(VIRTIO_BLK_T_GET_ID),
            Self::Change { change: RangeChange::Discard, .. } => Some(VIRTIO_BLK_T_DISCARD),
            Self::Change { change: RangeChange::WriteZeroes, .. } => {
                Some(VIRTIO_BLK_T_WRITE_ZEROES)
            }
            Self::Unsupported => None,
        }
    }
}

/// A kind of change of ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RangeChange {
    Discard,
    WriteZeroes,
}

impl RangeChange {
    /// The flags that a range may have.
    fn flags(self) -> u32 {
        match self {
            Self::Discard => 0,
            Self::WriteZeroes => RANGE_UNMAP,
        }
    }
}

/// A command and its progress.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Task {
    /// The command, without the ranges that are done.
    pub(super) command: BlockCommand,
    /// Number of bytes that are done, of the data or of the first range.
    pub(super) done: u64,
}

/// `struct virtio_blk_discard_write_zeroes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) sector: u64,
    pub(super) sectors: u32,
    pub(super) flags: u32,
}

impl Range {
    /// Whether the storage may be deallocated.
    pub(super) fn unmap(self) -> bool {
        self.flags & RANGE_UNMAP != 0
    }

    /// The range of a write whose data is zeros; `None` if that is longer than a range may be.
    pub(super) fn of_write(sector: u64, bytes: u64, storage: Storage) -> Option<Self> {
        let sectors = u32::try_from(bytes / SECTOR_SIZE).ok();
        let flags = match storage {
            Storage::Keep => 0,
            Storage::GiveBack => RANGE_UNMAP,
        };
        Some(Self { sector, sectors: sectors.filter(|count| *count <= MAX_RANGE_SECTORS)?, flags })
    }

    /// The command that zeroes the range.
    pub(super) fn zeroed(self) -> BlockCommand {
        let ranges = Box::new(VecDeque::from([self]));
        BlockCommand::Change { change: RangeChange::WriteZeroes, ranges }
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

/// A request's buffers.
struct RequestParts<'r> {
    header: Buffers<'r>,
    /// The device-readable bytes behind the header.
    out: Buffers<'r>,
    /// The device-writable bytes before the status byte.
    input: Buffers<'r>,
    status: Buffers<'r>,
}

impl<'r> RequestParts<'r> {
    #[inline]
    fn of(request: &'r VirtioRequest) -> Result<Self, Fault> {
        let malformed =
            |reason: &str| Fault::Chain { head: request.head, reason: reason.to_owned() };
        let mut out = request.readable();
        let header = out.split_front(HEADER_SIZE as u64);
        let header = header.ok_or_else(|| malformed("no block request header of 16 bytes"))?;
        let (input, status) =
            request.split_writable().ok_or_else(|| malformed("no buffer for the status byte"))?;
        Ok(Self { header, out, input, status })
    }

    /// The data buffers of a request with this command.
    fn data(&self, command: &BlockCommand) -> Buffers<'r> {
        if matches!(command, BlockCommand::Write { .. }) { self.out } else { self.input }
    }
}

/// A parsed request.
pub(super) struct BlockRequest<'r> {
    pub(super) command: BlockCommand,
    /// The data buffers.
    pub(super) data: Buffers<'r>,
    /// The buffer of the status byte.
    pub(super) status: Buffers<'r>,
}

impl<'r> BlockRequest<'r> {
    /// Reads the header, once, and splits the request into its parts.
    ///
    /// # Errors
    /// [`Fault::Chain`] for a request too short for header or status; [`Fault::Memory`] if the
    /// header cannot be reached.
    #[inline]
    pub(super) fn parse<M: DeviceMemory>(
        request: &'r VirtioRequest,
        memory: &M,
    ) -> Result<Self, Fault> {
        let parts = RequestParts::of(request)?;
        let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = parts.header.header(memory)?;
        let sector = u64::from_le_bytes(sector);
        let command = match u32::from_le_bytes([t0, t1, t2, t3]) {
            VIRTIO_BLK_T_IN => BlockCommand::Read { sector },
            VIRTIO_BLK_T_OUT => BlockCommand::Write { sector },
            VIRTIO_BLK_T_FLUSH => BlockCommand::Flush,
            VIRTIO_BLK_T_GET_ID => BlockCommand::GetId,
            VIRTIO_BLK_T_DISCARD => change(RangeChange::Discard, parts.out, memory)?,
            VIRTIO_BLK_T_WRITE_ZEROES => change(RangeChange::WriteZeroes, parts.out, memory)?,
            _ => BlockCommand::Unsupported,
        };
        Ok(Self::of(parts, command))
    }

    /// Splits a request that was parsed before, and had this command.
    ///
    /// # Errors
    /// As [`BlockRequest::parse`].
    pub(super) fn split_again(
        request: &'r VirtioRequest,
        command: BlockCommand,
    ) -> Result<Self, Fault> {
        Ok(Self::of(RequestParts::of(request)?, command))
    }

    fn of(parts: RequestParts<'r>, command: BlockCommand) -> Self {
        Self { data: parts.data(&command), status: parts.status, command }
    }

    /// The status byte.
    ///
    /// # Errors
    /// [`Fault::Memory`].
    #[inline]
    pub(super) fn status_byte<'m, M: DeviceMemory>(
        &self,
        memory: &'m M,
    ) -> Result<Writable<'m>, Fault> {
        let byte = self.status.first_writable(memory)?;
        byte.ok_or(Fault::Internal("a status has no byte"))
    }

    /// Number of bytes written into the request's buffers, with this status.
    pub(super) fn written(&self, status: BlockStatus) -> u32 {
        let data = match self.command {
            BlockCommand::Read { .. } => self.data.length(),
            BlockCommand::GetId => self.data.length().min(SERIAL_SIZE as u64),
            _ => 0,
        };
        let data = if status == BlockStatus::Ok { data } else { 0 };
        u32::try_from(data).unwrap_or(u32::MAX).saturating_add(STATUS_SIZE)
    }
}

/// The data buffers of a request that was parsed before, and had this command.
///
/// # Errors
/// As [`BlockRequest::parse`].
pub(super) fn data_of<'r>(
    request: &'r VirtioRequest,
    command: &BlockCommand,
) -> Result<Buffers<'r>, Fault> {
    Ok(RequestParts::of(request)?.data(command))
}

/// Reads the ranges of a discard or write-zeroes request, once. The request is unsupported if the
/// ranges are incomplete, too many or too long, or have unknown flags.
fn change<M: DeviceMemory>(
    change: RangeChange,
    data: Buffers<'_>,
    memory: &M,
) -> Result<BlockCommand, Fault> {
    let length = data.length();
    let most = u64::from(MAX_RANGES) * RANGE_SIZE as u64;
    if length == 0 || length > most || !length.is_multiple_of(RANGE_SIZE as u64) {
        return Ok(BlockCommand::Unsupported);
    }
    let mut bytes = vec![0; length as usize];
    data.copy_to(memory, &mut bytes)?;
    let whole = bytes.chunks_exact(RANGE_SIZE).filter_map(|chunk| chunk.try_into().ok());
    let ranges: VecDeque<_> = whole.map(Range::parse).collect();
    let good =
        |range: &Range| range.sectors <= MAX_RANGE_SECTORS && range.flags & !change.flags() == 0;
    Ok(if ranges.iter().all(good) {
        BlockCommand::Change { change, ranges: Box::new(ranges) }
    } else {
        BlockCommand::Unsupported
    })
}
