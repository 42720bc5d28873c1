//! Virtio devices.
//!
//! A device sees feature bits, its configuration space and requests: descriptor chains as lists of
//! buffers in a guest's memory. [`DeviceMemory`] reaches that memory, and the bus implements the
//! transport; a device knows neither grants nor messages.

pub mod blk;
mod buffer;
mod chain;
pub mod console;
mod memory;
pub mod net;
#[allow(unsafe_code, reason = "instructions that no library places by itself")]
mod probes;
mod queue;
mod queue_set;
pub mod rate;
mod requests;
mod ring;
pub mod rng;
mod transfer;
pub mod vsock;

pub use buffer::{Buffers, Readable, VirtioRequest, Writable};
pub use memory::{Buffer, BufferDirection, DeviceMemory, HeldBuffers, SharedRegion};
pub use queue::{
    BATCH, BATCH_BYTES, BATCH_PAGES, BatchSummary, Completions, QueueContext, RequestPool, Rings,
};
pub use queue_set::QueueSet;
pub use requests::Requests;
pub use ring::{OneSlice, Ring, RingAreas, RingState, TakeOverError};
pub use transfer::{Gather, IoEngine, MessageBatch, MessageResults, Scatter, WriteMode};
pub use uring::waiting::AwaitedFd;

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::poll::PollFlags;
use uring::waiting::wait_by_poll;

use crate::record::{DeviceNote, LossMark};

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

/// A fault that stops a device until the driver resets it. The guest caused it, a ring cannot be
/// reached, or something of the host failed.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// A buffer that cannot be reached at its address, or not for this access.
    #[error("cannot access descriptor {descriptor} of chain {head}")]
    Memory {
        /// Index of the chain's first descriptor.
        head: u16,
        /// Position in the chain, from 0.
        descriptor: usize,
        /// The failure of the access.
        source: vm_memory::GuestMemoryError,
    },
    /// A chain that cannot be followed to its end, or has parts in the wrong order.
    #[error("chain {head}: {reason}")]
    Chain {
        /// Index of the chain's first descriptor.
        head: u16,
        /// The rule that the chain breaks.
        reason: String,
    },
    /// Data that the device wrote cannot be copied back into the guest's buffers.
    #[error("cannot write back a buffer for the device to write")]
    WriteBack(#[source] vm_memory::GuestMemoryError),
    /// A broken invariant of this program.
    #[error("internal error: {0}; please report it")]
    Internal(&'static str),
    /// The ring cannot be read or written, or holds impossible values.
    #[error("cannot access the ring")]
    Ring(#[from] virtio_queue::Error),
    /// As [`Fault::Ring`], for the part of the ring that the device accesses by itself.
    #[error("cannot access the ring")]
    RingBytes(#[from] vm_memory::VolatileMemoryError),
    /// A resource of the host failed, which this names and the device needs.
    #[error("{0} failed")]
    Host(&'static str, #[source] std::io::Error),
}

/// The sources of a device's urgent work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkSource {
    /// The driver, and storage of which [`VirtioDevice::has_completions`] tells: the device's
    /// thread may poll these without polling other sources, and notify the driver of several used
    /// buffers at once.
    Driver,
    /// The driver, and a peer of whose messages [`VirtioDevice::has_completions`] tells: the
    /// device's thread may poll these without polling other sources. The bus notifies the driver
    /// after each batch.
    DriverAndPeer,
    /// The driver and the device's own sources: the bus notifies the driver after each batch.
    Both,
}

/// An event source besides the driver: a file descriptor and the events to wait for.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The file descriptor to poll.
    pub fd: BorrowedFd<'a>,
    /// `POLLIN`, `POLLOUT`, both, or none for hang-ups and errors only.
    pub events: PollFlags,
}

impl<'a> Source<'a> {
    /// A source that is ready when `fd` can be read.
    pub fn readable(fd: BorrowedFd<'a>) -> Self {
        Self { fd, events: PollFlags::POLLIN }
    }

    /// The source as one of several descriptors to wait for.
    pub fn awaited(&self) -> AwaitedFd {
        AwaitedFd::new(self.fd, self.events)
    }
}

/// A virtio device over some guest memory.
///
/// The bus calls [`VirtioDevice::process`] after a queue's doorbell, and
/// [`VirtioDevice::handle_sources`] when one of the device's sources is ready. Each call does the
/// work of one iteration, about one batch; the device requests another iteration with
/// [`QueueContext::reschedule`].
pub trait VirtioDevice<M: DeviceMemory>: Send {
    /// The virtio device id (virtio 1.3 section 5).
    fn id(&self) -> DeviceId;

    /// A short name of the device type, for logs and `xen-virtiod stat`.
    fn kind(&self) -> &'static str;

    /// The feature bits of the device type that it offers, without the transport's.
    fn features(&self) -> u64;

    /// Length in bytes of the longest request that the device carries out, buffers of both
    /// directions together. The device accesses at most a part of a longer request, and each such
    /// access makes its buffer reachable.
    fn longest_request(&self) -> u64;

    /// Maximum number of entries of each queue; the length of the slice is the number of queues.
    fn queue_sizes(&self) -> &[u16];

    /// The configuration space, as the driver reads it.
    fn config(&self) -> &[u8];

    /// Writes `data` at `offset`, a range inside the configuration space. Returns `false`, and
    /// writes nothing, if the device does not allow that write. By default it allows none.
    fn write_config(&mut self, offset: usize, data: &[u8]) -> bool {
        let _ = (offset, data);
        false
    }

    /// Starts the device: the driver set DRIVER_OK and negotiated these features.
    ///
    /// # Errors
    /// As [`VirtioDevice::process`].
    fn start(&mut self, features: u64) -> Result<(), Fault> {
        let _ = features;
        Ok(())
    }

    /// Feature bits that the device works with, including those that it does not offer at present.
    /// A driver keeps the features that it negotiated for the life of its guest, which may outlive
    /// the device's storage or host.
    fn accepted_features(&self) -> u64 {
        self.features()
    }

    /// Whether another process can go on with the device: what it keeps of its driver is in the
    /// rings and in the negotiated features.
    fn can_be_taken_over(&self) -> bool {
        false
    }

    /// Whether a backend in another domain can go on with the device when this one's is gone: it
    /// gives buffers back in order or the driver notes which it has, and all that it answered
    /// outlives the domain [2.16].
    fn outlives_its_domain(&self) -> bool {
        false
    }

    /// Has the device mark there that data which it wrote may be lost, from now on. If an earlier
    /// process did, the device goes on as if it had itself.
    fn keep_losses(&mut self, mark: LossMark) {
        let _ = mark;
    }

    /// Has the device keep a number there from now on, for the next process, and what it has of the
    /// host outlive this one. If an earlier process noted a number, the device goes on with it.
    fn keep_note(&mut self, note: DeviceNote) {
        let _ = note;
    }

    /// Ends that: no process takes the device over.
    fn keep_no_more(&mut self) {}

    /// Writes no further note: another process goes on with what is noted.
    fn leave_note(&mut self) {}

    /// Notes that an earlier process served the driver: what the device kept of it is gone. The
    /// device was started before.
    fn note_taken_over(&mut self) {}

    /// Resets the device: the driver is gone, or starts again.
    fn reset(&mut self) {}

    /// Another part of the device, for queues that another thread processes. `None` if the device
    /// is one part: one thread processes all queues. A part is started after the device, reset
    /// before it, and dropped when the connection ends.
    fn part(&mut self) -> Option<Box<dyn VirtioDevice<M>>> {
        None
    }

    /// Tells each part how many of them share the limits of the device.
    fn set_shares(&mut self, parts: usize) {
        let _ = parts;
    }

    /// Whether storage or the host still uses buffers of a driver that reset the device [6.4]. The
    /// bus asks again whenever one of the device's sources is ready, and does not start the device
    /// meanwhile. It does not call [`VirtioDevice::handle_sources`] either: a source stays ready,
    /// and wakes the thread again and again, unless this takes what the source tells.
    fn is_draining(&mut self) -> bool {
        false
    }

    /// Forgets memory of the driver's that the device keeps over requests, if none uses it.
    fn forget_regions(&mut self) {}

    /// Resets queue `index`: the driver owns the queue and every request in it again [6.7]. A
    /// device that keeps requests over iterations forgets those of this queue, and no longer writes
    /// into their buffers. The driver may set the queue up again; the bus then processes it as
    /// after a doorbell.
    fn reset_queue(&mut self, index: usize) {
        let _ = index;
    }

    /// As [`VirtioDevice::is_draining`], for a queue that was reset [6.7].
    fn is_queue_draining(&mut self, index: usize) -> bool {
        let _ = index;
        false
    }

    /// The sources of its urgent work.
    fn work_source(&self) -> WorkSource {
        WorkSource::Both
    }

    /// Whether the bus may delay the notification of used buffers in queue `index` while they are
    /// few and short. A device allows it where nothing waits for these buffers.
    fn can_delay_notification(&self, index: usize) -> bool {
        let _ = index;
        false
    }

    /// Processes queue `index` after its doorbell, or because the queue was rescheduled.
    ///
    /// # Errors
    /// A [`Fault`], after which the bus stops the device until the driver resets it.
    fn process(&mut self, index: usize, queues: &mut QueueContext<'_, M>) -> Result<(), Fault>;

    /// The event sources to poll now, while the driver is ready.
    fn sources(&self) -> Vec<Source<'_>> {
        Vec::new()
    }

    /// Waits until one of `fds` is ready, its own sources among them, for at most `limit`
    /// ([`Duration::MAX`]: for ever). The device may do it with what it waits for storage with. A
    /// file may stay open until the device is reset or waits without it.
    ///
    /// # Errors
    /// The kernel's.
    fn wait(&mut self, fds: &mut [AwaitedFd], limit: Duration) -> io::Result<()> {
        wait_by_poll(fds, limit)
    }

    /// Forgets what it has learnt of descriptors to wait for: some may be other files now.
    fn forget_descriptors(&mut self) {}

    /// When the bus calls [`VirtioDevice::handle_sources`] even if no source is ready.
    fn deadline(&self) -> Option<Instant> {
        None
    }

    /// Handles its sources: one may be ready, or the deadline has passed.
    ///
    /// # Errors
    /// As [`VirtioDevice::process`].
    fn handle_sources(&mut self, queues: &mut QueueContext<'_, M>) -> Result<(), Fault> {
        let _ = queues;
        Ok(())
    }

    /// Number of requests that were taken from the rings and not returned, because the storage
    /// works on them. It reports their completion by one of the device's sources.
    fn in_flight(&self) -> u32 {
        0
    }

    /// Whether the storage completed requests, so that [`VirtioDevice::handle_sources`] would find
    /// something to do. The bus asks with each poll of the rings, so the answer must not cost more
    /// than a poll does: a look at memory and no system call.
    fn has_completions(&self) -> bool {
        false
    }

    /// Returns whether the configuration space changed since the previous call.
    fn take_config_change(&mut self) -> bool {
        false
    }
}
