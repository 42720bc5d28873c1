//! Virtio devices.
//!
//! A device sees feature bits, its configuration space and requests: descriptor chains as lists of
//! buffers in a guest's memory. How that memory is reached is not its business ([`DeviceMemory`]);
//! nor is the transport.

pub mod blk;
mod buffer;
mod memory;
pub mod queue;

pub use buffer::{Buffers, Request};
pub use memory::{Buffer, DeviceMemory, Direction};

/// Virtio device ids (virtio 1.3 section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum DeviceId {
    /// Block device.
    Block = 2,
}

/// Why a device cannot go on until it is reset: the guest's doing, or a ring that cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// A buffer that is not where its descriptor says, or not for this use.
    #[error("descriptor {descriptor} of chain {head}: {source}")]
    Memory {
        /// Index of the chain's first descriptor.
        head: u16,
        /// Position in the chain, from 0.
        descriptor: usize,
        /// Why it cannot be reached.
        source: vm_memory::GuestMemoryError,
    },
    /// A chain that cannot be followed to its end, or has parts in the wrong order.
    #[error("chain {head}: {reason}")]
    Chain {
        /// Index of the chain's first descriptor.
        head: u16,
        /// What is wrong with it.
        reason: String,
    },
    /// The ring itself.
    #[error("ring: {0}")]
    Ring(#[from] virtio_queue::Error),
}

/// A virtio device over some guest memory.
pub trait VirtioDevice<M: DeviceMemory>: Send {
    /// What kind of device it is.
    fn id(&self) -> DeviceId;

    /// A word for logs and `stat`.
    fn kind(&self) -> &'static str;

    /// Feature bits of its own, without the transport's.
    fn features(&self) -> u64;

    /// Most entries of each of its queues.
    fn queue_sizes(&self) -> &[u16];

    /// Its configuration space.
    fn config(&self) -> &[u8];

    /// Serves one request of queue `queue`; gives the number of bytes written into its buffers.
    ///
    /// # Errors
    /// [`Fault`] if the request cannot even be answered.
    fn serve(&mut self, queue: usize, request: &Request, memory: &M) -> Result<u32, Fault>;
}
