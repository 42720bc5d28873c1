//! The guest's packets, on their way out.

use std::io;
use std::sync::atomic::Ordering;

use super::interface::{HEADER_SIZE, MAX_PACKET};
use crate::device::{DeviceMemory, Fault, Gather, Queues, Request};
use crate::stats::DeviceStats;

/// Sends packets as they lie in the guest's buffers; only what is in too many pieces is copied, through room for
/// one.
pub(super) struct Transmitter(Vec<u8>);

impl Default for Transmitter {
    fn default() -> Self {
        Self(vec![0; MAX_PACKET])
    }
}

impl Transmitter {
    /// Sends a batch of what is in queue `index`. What cannot be sent is lost and counted.
    pub(super) fn transmit<M: DeviceMemory>(
        &mut self,
        index: usize,
        queues: &mut Queues<'_, M>,
        stats: &DeviceStats,
        mut send: impl FnMut(&Gather<'_>) -> io::Result<()>,
    ) -> Result<(), Fault> {
        queues.serve_each(index, |request, memory| {
            let packet = self.packet(request, memory)?;
            match packet.filter(|packet| send(packet).is_ok()) {
                Some(packet) => {
                    DeviceStats::count(&stats.writes);
                    let frame = packet.length() - HEADER_SIZE;
                    stats.bytes_written.fetch_add(frame as u64, Ordering::Relaxed);
                }
                None => DeviceStats::count(&stats.dropped_from_guest),
            }
            Ok(0)
        })
    }

    /// A packet; `None` if it has no frame, is too long, or cannot be reached just now.
    fn packet<'a, M: DeviceMemory>(
        &'a mut self,
        request: &Request,
        memory: &'a M,
    ) -> Result<Option<Gather<'a>>, Fault> {
        if request.writable().length() > 0 {
            let reason = "a device-writable buffer in a transmit queue".to_owned();
            return Err(Fault::Chain { head: request.head, reason });
        }
        let length = usize::try_from(request.readable().length()).unwrap_or(usize::MAX);
        let room = self.0.get_mut(..length).filter(|_| length > HEADER_SIZE);
        let Some(room) = room else { return Ok(None) };
        match gather(request, memory, room) {
            Ok(packet) => Ok(Some(packet)),
            Err(Fault::Memory { source, .. }) if memory.is_shortage(&source) => Ok(None),
            Err(fault) => Err(fault),
        }
    }
}

/// A packet where it lies, or a copy of it in `room`, which has its length.
fn gather<'a, M: DeviceMemory>(
    request: &Request,
    memory: &'a M,
    room: &'a mut [u8],
) -> Result<Gather<'a>, Fault> {
    let mut packet = Gather::default();
    for buffer in request.readable().readable(memory) {
        if packet.push(buffer?).is_err() {
            request.readable().copy_to(memory, room)?;
            return Ok(Gather::of(room));
        }
    }
    Ok(packet)
}
