//! Virtio devices.
//!
//! A device sees feature bits, its configuration space and requests: descriptor chains as lists of
//! buffers in a guest's memory. How that memory is reached is not its business ([`DeviceMemory`]);
//! nor is the transport.

pub mod blk;
mod buffer;
pub mod console;
mod memory;
pub mod net;
mod queue;
mod queue_set;
pub mod rate;
pub mod rng;
mod transfer;
pub mod vsock;

pub use buffer::{Buffers, Readable, VirtioRequest, Writable};
pub use memory::{Buffer, BufferDirection, DeviceMemory};
pub use queue::{
    BATCH, BATCH_BYTES, BATCH_PAGES, BatchSummary, Completions, QueueContext, RequestPool, Rings,
};
pub use queue_set::QueueSet;
pub use transfer::{
    Completed, Gather, IoEngine, MessageResults, Scatter, TransferBatch, WriteMode,
};

use std::os::fd::BorrowedFd;
use std::time::Instant;

use nix::poll::PollFlags;

/// Virtio device ids (virtio 1.3 section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum DeviceId {
    /// Network device.
    Network = 1,
    /// Block device.
    Block = 2,
    /// Console device.
    Console = 3,
    /// Entropy device.
    Entropy = 4,
    /// Socket device.
    Socket = 19,
}

/// Why a device cannot go on until it is reset: the guest's doing, a ring that cannot be reached,
/// or something that fails on this side.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// A buffer that is not where its descriptor says, or not for this use.
    #[error("descriptor {descriptor} of chain {head}")]
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
    /// What was written into buffers cannot be brought there.
    #[error("a buffer for the device to write")]
    WriteBack(#[source] vm_memory::GuestMemoryError),
    /// What this program takes for impossible.
    #[error("internal error: {0}; please report it")]
    Internal(&'static str),
    /// The ring itself.
    #[error("ring")]
    Ring(#[from] virtio_queue::Error),
    /// Something of this side's that the device cannot do without.
    #[error("{0}")]
    Host(&'static str, #[source] std::io::Error),
}

/// Who gives a device urgent work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkSource {
    /// The driver alone: the device's thread may poll the rings without looking at other sources,
    /// and notify the driver of several used buffers at once.
    Driver,
    /// The driver and the device's own sources: the driver is notified after each batch.
    Both,
}

/// Something to wait for besides the driver: a file descriptor and what it should be ready for.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The descriptor.
    pub fd: BorrowedFd<'a>,
    /// Readable, writable or both.
    pub events: PollFlags,
}

impl<'a> Source<'a> {
    /// Waits for something to read.
    pub fn readable(fd: BorrowedFd<'a>) -> Self {
        Self { fd, events: PollFlags::POLLIN }
    }
}

/// A virtio device over some guest memory.
///
/// It is told when a queue's doorbell rang and when one of its sources is ready, and does a turn's
/// worth of work then: about one batch. What it leaves it asks for by [`QueueContext::reschedule`].
pub trait VirtioDevice<M: DeviceMemory>: Send {
    /// What kind of device it is.
    fn id(&self) -> DeviceId;

    /// A word for logs and `stat`.
    fn kind(&self) -> &'static str;

    /// Feature bits of its own, without the transport's.
    fn features(&self) -> u64;

    /// Bytes of the longest request that it does, buffers of both directions together. Of a longer
    /// one it looks at a part at most, which is made reachable when it is looked at.
    fn longest_request(&self) -> u64;

    /// Most entries of each of its queues.
    fn queue_sizes(&self) -> &[u16];

    /// Its configuration space.
    fn config(&self) -> &[u8];

    /// Writes into the configuration space, in which all of `data` lies: all of it, or `false` and
    /// nothing, where that is not allowed. None is, by default.
    fn write_config(&mut self, offset: usize, data: &[u8]) -> bool {
        let _ = (offset, data);
        false
    }

    /// The driver is ready, with these features.
    ///
    /// # Errors
    /// As [`VirtioDevice::process`].
    fn start(&mut self, features: u64) -> Result<(), Fault> {
        let _ = features;
        Ok(())
    }

    /// Feature bits that it can work with although it may not offer them: what a driver negotiated
    /// once, it keeps for the life of its guest, which may be longer than that of what the device
    /// is made of.
    fn accepted_features(&self) -> u64 {
        self.features()
    }

    /// The driver is gone, or starts again.
    fn reset(&mut self) {}

    /// The driver has queue `index` back, and every request in it [6.7]. A device that keeps
    /// requests over turns forgets those of this queue, and writes nothing into their buffers any
    /// more. The queue may be set up anew, and is then served as if its doorbell rang.
    fn reset_queue(&mut self, index: usize) {
        let _ = index;
    }

    /// Who gives it urgent work.
    fn work_source(&self) -> WorkSource {
        WorkSource::Both
    }

    /// Whether nothing waits for the used buffers of queue `index` while they are few and short:
    /// the driver may be notified of them a moment later.
    fn can_delay_notification(&self, index: usize) -> bool {
        let _ = index;
        false
    }

    /// Serves queue `index`, whose doorbell rang or which has work left.
    ///
    /// # Errors
    /// [`Fault`] if the device cannot go on until it is reset.
    fn process(&mut self, index: usize, queues: &mut QueueContext<'_, M>) -> Result<(), Fault>;

    /// What to wait for now, while the driver is ready.
    fn sources(&self) -> Vec<Source<'_>> {
        Vec::new()
    }

    /// When it wants to be woken though no source is ready.
    fn deadline(&self) -> Option<Instant> {
        None
    }

    /// Does what can be done now that a source may be ready, or the deadline has come.
    ///
    /// # Errors
    /// As [`VirtioDevice::process`].
    fn handle_sources(&mut self, queues: &mut QueueContext<'_, M>) -> Result<(), Fault> {
        let _ = queues;
        Ok(())
    }

    /// Whether the configuration space changed since this was asked last.
    fn take_config_change(&mut self) -> bool {
        false
    }
}
