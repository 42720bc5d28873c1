//! A split virtqueue (virtio 1.3 section 2.7) with one request in it, in pages that are granted to
//! the device.

use anyhow::{Context, Result};
use protocol::grant::{GrantAddress, PAGE_SIZE};
use xen::{Access, DomId, Gntalloc, SharedPages};

/// Number of entries in the queue.
pub(crate) const SIZE: u16 = 4;

const PAGE: usize = PAGE_SIZE as usize;

/// Positions of the pages: descriptors and available ring, used ring, header and status, data.
const DRIVER_PAGE: usize = 0;
const DEVICE_PAGE: usize = 1;
const REQUEST_PAGE: usize = 2;
const DATA_PAGE: usize = 3;
const PAGES: u16 = 4;

/// Offset of the available ring in the driver's page, after the descriptors.
const AVAILABLE: usize = PAGE / 2;
/// Offset of the status byte in the request's page, after the header.
const STATUS: usize = 16;
/// Offset of the index in both rings, after the flags.
const INDEX: usize = 2;

/// Descriptor flags.
const NEXT: u16 = 1;
const DEVICE_WRITES: u16 = 2;

/// Request types of a block device.
const IN: u32 = 0;
const OUT: u32 = 1;

/// A transfer of one page at the start of the disk.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Data {
    /// The disk's data goes into memory of this process.
    Read,
    /// The memory at any address goes to the disk.
    Written {
        /// The address in the descriptor.
        address: u64,
    },
}

/// A descriptor of the only chain. Its descriptors are consecutive.
struct Descriptor {
    address: u64,
    length: u32,
    flags: u16,
}

/// The queue and its memory.
pub(crate) struct Ring {
    pages: SharedPages,
    /// Number of requests made available.
    offered: u16,
}

impl Ring {
    /// Creates a queue and grants it to `backend`.
    pub(crate) fn new(backend: DomId) -> Result<Self> {
        let pages = Gntalloc::new(backend).share(PAGES, Access::ReadWrite);
        Ok(Self { pages: pages.context("cannot grant pages")?, offered: 0 })
    }

    pub(crate) fn descriptor_area(&self) -> u64 {
        self.address(DRIVER_PAGE, 0)
    }

    pub(crate) fn driver_area(&self) -> u64 {
        self.address(DRIVER_PAGE, AVAILABLE)
    }

    pub(crate) fn device_area(&self) -> u64 {
        self.address(DEVICE_PAGE, 0)
    }

    /// Makes a request available in the ring.
    pub(crate) fn offer(&mut self, data: Data) -> Result<()> {
        let (kind, address, flags) = match data {
            Data::Read => (IN, self.address(DATA_PAGE, 0), DEVICE_WRITES),
            Data::Written { address } => (OUT, address, 0),
        };
        // The type, a reserved word, and sector 0.
        let mut header = [0; STATUS];
        header.iter_mut().zip(kind.to_le_bytes()).for_each(|(to, from)| *to = from);
        self.put(REQUEST_PAGE, 0, &header)?;
        self.put(REQUEST_PAGE, STATUS, &[0xff])?;
        let header = Descriptor { address: self.address(REQUEST_PAGE, 0), length: 16, flags: NEXT };
        let data = Descriptor { address, length: PAGE as u32, flags: NEXT | flags };
        let address = self.address(REQUEST_PAGE, STATUS);
        let status = Descriptor { address, length: 1, flags: DEVICE_WRITES };
        for (position, descriptor) in (0..).zip([header, data, status]) {
            self.put_descriptor(position, &descriptor)?;
        }
        // The chain starts at descriptor 0. The notification that follows orders these writes.
        let entry = AVAILABLE + 4 + 2 * usize::from(self.offered % SIZE);
        self.put(DRIVER_PAGE, entry, &0u16.to_le_bytes())?;
        self.offered = self.offered.wrapping_add(1);
        self.put(DRIVER_PAGE, AVAILABLE + INDEX, &self.offered.to_le_bytes())
    }

    /// The status of the request; `None` until the device has used it.
    pub(crate) fn take_used(&self) -> Result<Option<u8>> {
        let (mut index, mut status) = ([0; 2], [0; 1]);
        self.get(DEVICE_PAGE, INDEX, &mut index)?;
        self.get(REQUEST_PAGE, STATUS, &mut status)?;
        let [status] = status;
        Ok((u16::from_le_bytes(index) == self.offered).then_some(status))
    }

    /// The data that the disk read.
    pub(crate) fn data(&self) -> Result<Vec<u8>> {
        let mut data = vec![0; PAGE];
        self.get(DATA_PAGE, 0, &mut data)?;
        Ok(data)
    }

    fn put_descriptor(&self, position: u16, descriptor: &Descriptor) -> Result<()> {
        let at = usize::from(position) * 16;
        self.put(DRIVER_PAGE, at, &descriptor.address.to_le_bytes())?;
        self.put(DRIVER_PAGE, at + 8, &descriptor.length.to_le_bytes())?;
        self.put(DRIVER_PAGE, at + 12, &descriptor.flags.to_le_bytes())?;
        self.put(DRIVER_PAGE, at + 14, &(position + 1).to_le_bytes())
    }

    /// The DMA address of a byte in a page of the ring.
    fn address(&self, page: usize, offset: usize) -> u64 {
        let reference = self.pages.references().get(page);
        reference.map_or(0, |of| GrantAddress::new(*of, offset as u64).encode())
    }

    fn put(&self, page: usize, offset: usize, bytes: &[u8]) -> Result<()> {
        let slice = self.pages.as_ref().slice(page * PAGE + offset, bytes.len());
        slice.context("the range is outside of the ring's pages")?.copy_from(bytes);
        Ok(())
    }

    fn get(&self, page: usize, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let slice = self.pages.as_ref().slice(page * PAGE + offset, bytes.len());
        slice.context("the range is outside of the ring's pages")?.copy_to(bytes);
        Ok(())
    }
}
