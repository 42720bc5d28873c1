//! What a device needs of a guest's memory.

use protocol::grant::{PAGE_SIZE, pages_spanned};
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryError};

/// Which way a buffer's data goes (virtio 1.3 section 2.6, device-readable and device-writable).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BufferDirection {
    /// From the driver; the device only reads.
    Readable,
    /// To the driver.
    Writable,
}

/// Where a descriptor says that a buffer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Its address.
    pub address: GuestAddress,
    /// Its length in bytes.
    pub length: u32,
    /// Which way its data goes.
    pub direction: BufferDirection,
}

impl Buffer {
    /// Pages that it touches.
    pub fn pages(self) -> u64 {
        pages_spanned(self.address.0 % PAGE_SIZE, self.length.into())
    }
}

/// A guest's memory, reached for the time of a batch of requests.
pub trait DeviceMemory: GuestMemory<Bitmap = ()> {
    /// Makes the buffers of a batch reachable together, as far as they can be. What cannot be
    /// reached shows when it is accessed.
    fn prepare(&self, buffers: &mut dyn Iterator<Item = Buffer>);

    /// Sees to it that what was written into buffers is the driver's. To be called before they are
    /// given back.
    ///
    /// # Errors
    /// A buffer is not the device's to write.
    fn write_back(&mut self) -> Result<(), GuestMemoryError>;

    /// Ends all access to buffers. They may be given back to the driver afterwards, not before.
    fn release(&mut self);

    /// Notes that bytes were copied from or into buffers.
    fn copied(&self, bytes: u64);

    /// Why the latest access failed, if one did since the last release.
    fn last_fault(&self) -> Option<String>;

    /// Whether an access failed for want of something on this side, so that it may work later.
    fn is_shortage(&self, error: &GuestMemoryError) -> bool;
}
