//! Input to the guest, from the terminal or from a port's program.

use std::io;
use std::sync::atomic::Ordering;

use crate::device::{DeviceMemory, Fault, QueueContext, VirtioRequest};
use crate::stats::DeviceStats;

/// Maximum number of bytes that wait here for a buffer; others wait at their source.
const INPUT_SIZE: usize = 4096;

/// Bytes that wait for a buffer of the guest.
#[derive(Debug, Default)]
pub struct Input {
    bytes: Vec<u8>,
    /// The receive queue is empty; the driver's doorbell announces the next buffer.
    starved: bool,
}

impl Input {
    /// Whether the guest has all bytes that were read.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Whether the device can use more input.
    pub fn is_wanted(&self) -> bool {
        !self.starved
    }

    /// Notes that the queue may have buffers: the doorbell rang, or the driver starts again.
    pub fn refill(&mut self) {
        self.starved = false;
    }

    /// Calls `read` for more bytes, unless earlier ones still wait; returns the result of `read`,
    /// or `None` if it was not called.
    ///
    /// # Errors
    /// The error of `read`.
    pub fn take(
        &mut self,
        read: impl FnOnce(&mut [u8]) -> io::Result<Option<usize>>,
    ) -> io::Result<Option<usize>> {
        if !self.bytes.is_empty() {
            return Ok(None);
        }
        let mut bytes = [0; INPUT_SIZE];
        let count = read(&mut bytes)?;
        self.bytes.extend_from_slice(bytes.get(..count.unwrap_or(0)).unwrap_or(&[]));
        Ok(count)
    }

    /// Fills one of the guest's buffers with the bytes that wait.
    ///
    /// # Errors
    /// A [`Fault`] of the queue or of a buffer.
    pub fn give<M: DeviceMemory>(
        &mut self,
        queue: usize,
        queues: &mut QueueContext<'_, M>,
        stats: &DeviceStats,
    ) -> Result<(), Fault> {
        if self.bytes.is_empty() || self.starved {
            return Ok(());
        }
        let (requests, fault) = queues.take(queue, 1);
        let Some(request) = requests.first() else {
            self.starved = true;
            queues.recycle(requests);
            queues.mark_idle(queue);
            return fault.map_or(Ok(()), Err);
        };
        let count = fill(request, queues.memory(), &self.bytes)?;
        self.bytes.drain(..self.bytes.len().min(count as usize));
        DeviceStats::count(&stats.reads);
        stats.bytes_read.fetch_add(count.into(), Ordering::Relaxed);
        queues.give_back(queue, &[(request.head, count)])?;
        queues.recycle(requests);
        queues.reschedule(queue);
        Ok(())
    }
}

/// Copies `bytes` into a request of a receive queue: all of them, or as many as fit. Returns their
/// number.
///
/// # Errors
/// A [`Fault`], if the request has a device-readable buffer or cannot be reached.
pub fn fill<M: DeviceMemory>(
    request: &VirtioRequest,
    memory: &M,
    bytes: &[u8],
) -> Result<u32, Fault> {
    if request.readable().length() > 0 {
        return Err(wrong(request, "a device-readable buffer in the receive queue"));
    }
    request.writable().copy_from(memory, bytes)
}

/// The fault of a malformed request.
pub fn wrong(request: &VirtioRequest, reason: &str) -> Fault {
    Fault::Chain { head: request.head, reason: reason.to_owned() }
}
