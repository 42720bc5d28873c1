//! The interface through which a device reaches a guest's memory.

use std::sync::Arc;

use protocol::grant::{PAGE_SIZE, pages_spanned};
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryError, VolatileSlice};

/// The direction of a buffer's data (virtio 1.3 section 2.6, device-readable and device-writable).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BufferDirection {
    /// From the driver to the device, which only reads it.
    Readable,
    /// From the device to the driver.
    Writable,
}

/// A buffer as its descriptor describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Its address, which the access platform translates.
    pub address: GuestAddress,
    /// Its length in bytes.
    pub length: u32,
    /// The direction of its data.
    pub direction: BufferDirection,
}

impl Buffer {
    /// The number of pages that it touches.
    pub fn pages(self) -> u64 {
        pages_spanned(self.address.0 % PAGE_SIZE, self.length.into())
    }
}

/// A guest's memory, whose buffers are reachable for the duration of a batch of requests.
pub trait DeviceMemory: GuestMemory<Bitmap = ()> {
    /// Whether a buffer is in memory that the driver shared for good, which needs no preparation.
    fn is_shared(&self, buffer: Buffer) -> bool;

    /// Makes the buffers of a batch reachable together, as far as possible. An access to a buffer
    /// that cannot be reached fails.
    fn prepare(&self, buffers: impl Iterator<Item = Buffer>);

    /// The bytes of a buffer. They are made reachable if they are not yet.
    ///
    /// # Errors
    /// The buffer cannot be reached, or not for this direction.
    fn slice(&self, buffer: Buffer) -> Result<VolatileSlice<'_>, GuestMemoryError>;

    /// Copies the data that the device wrote back into the guest's memory, where it wrote into
    /// copies. A device calls this before it returns the buffers to the driver.
    ///
    /// # Errors
    /// A buffer may not be written by the device.
    fn write_back(&mut self) -> Result<(), GuestMemoryError>;

    /// Ends all access to buffers. The device may return them to the driver only after this call.
    fn release(&mut self);

    /// Takes over the buffers that were made reachable and are not released yet, for operations
    /// that use them after the batch. The memory itself no longer has them, and writes none of them
    /// back.
    fn hold(&mut self) -> Box<dyn HeldBuffers>;

    /// Whether buffers are mapped that were made reachable and are not released yet.
    fn has_mappings(&self) -> bool;

    /// Counts bytes that were copied from or into buffers.
    fn copied(&self, bytes: u64);

    /// Counts buffers of requests in memory that the driver shared for good.
    fn count_shared(&self, buffers: u64);

    /// The reason for which the latest access failed, if one failed since the last release.
    fn last_fault(&self) -> Option<String>;

    /// Whether an access failed because a resource of the host is short, so that it may succeed
    /// later.
    fn is_shortage(&self, error: &GuestMemoryError) -> bool;
}

/// Buffers of requests that stay reachable until this is dropped, in any thread and whatever
/// becomes of the device: operations of the storage use them.
pub trait HeldBuffers: Send + Sync {
    /// The bytes of a buffer that was made reachable.
    ///
    /// # Errors
    /// The buffer was not made reachable.
    fn slice(&self, buffer: Buffer) -> Result<VolatileSlice<'_>, GuestMemoryError>;

    /// The memory around a buffer that stays mapped over requests, if it is in such memory.
    fn region(&self, buffer: Buffer) -> Option<Arc<dyn SharedRegion>>;

    /// Whether some of the buffers are copies.
    fn has_copies(&self) -> bool;

    /// Whether the kernel may hold the buffers' pages for longer than this process lives, as direct
    /// I/O does.
    fn may_be_pinned(&self) -> bool;

    /// Copies what was written into buffers back into the guest's memory, where they are copies.
    /// The device calls this before it returns the buffers to the driver.
    ///
    /// # Errors
    /// A buffer may not be written by the device.
    fn write_back(&self, buffers: &mut dyn Iterator<Item = Buffer>)
    -> Result<(), GuestMemoryError>;
}

/// Memory of the guest's that stays mapped as long as a share of this exists.
pub trait SharedRegion: Send + Sync {
    /// All of its bytes.
    fn bytes(&self) -> Option<VolatileSlice<'_>>;
}
