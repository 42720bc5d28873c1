//! What is typed, on its way to the guest.

use std::io;
use std::sync::atomic::Ordering;

use crate::device::{DeviceMemory, Fault, QueueContext, VirtioRequest};
use crate::stats::DeviceStats;

/// Most bytes that wait here for a buffer; the others wait where they come from.
const INPUT_SIZE: usize = 4096;

/// Bytes that wait for a buffer of the guest's.
#[derive(Debug, Default)]
pub struct Input {
    bytes: Vec<u8>,
    /// The driver gave no buffer; its doorbell tells of the next.
    starved: bool,
}

impl Input {
    /// Whether all that was taken is with the guest.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Whether more is to be taken.
    pub fn is_wanted(&self) -> bool {
        !self.starved
    }

    /// There may be a buffer: the doorbell rang, or the driver starts anew.
    pub fn refill(&mut self) {
        self.starved = false;
    }

    /// Takes more, unless something taken before still waits; gives what `read` gave.
    ///
    /// # Errors
    /// Those of `read`.
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

    /// Gives the guest a buffer's worth.
    ///
    /// # Errors
    /// [`Fault`].
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
            queues.mark_idle(queue);
            return fault.map_or(Ok(()), Err);
        };
        let count = fill(request, queues.memory(), &self.bytes)?;
        self.bytes.drain(..self.bytes.len().min(count as usize));
        DeviceStats::count(&stats.reads);
        stats.bytes_read.fetch_add(count.into(), Ordering::Relaxed);
        queues.give_back(queue, &[(request.head, count)])?;
        queues.reschedule(queue);
        Ok(())
    }
}

/// Copies bytes into a request of a receive queue, as many as fit; gives their number.
///
/// # Errors
/// [`Fault`]: not a buffer for this use.
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

/// A fault of a chain's.
pub fn wrong(request: &VirtioRequest, reason: &str) -> Fault {
    Fault::Chain { head: request.head, reason: reason.to_owned() }
}
