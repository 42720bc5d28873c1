//! The guest's packets, on their way out.

use std::sync::atomic::Ordering;

use super::interface::{HEADER_SIZE, Interface, MAX_PACKET};
use crate::device::{
    BATCH, DeviceMemory, Fault, Gather, IoEngine, MessageResults, QueueContext, VirtioRequest,
};
use crate::stats::DeviceStats;

/// Where packets go.
pub(super) struct PacketSink<'i> {
    pub(super) interface: &'i mut dyn Interface,
    pub(super) pair: usize,
    pub(super) transfers: &'i mut IoEngine,
}

/// Sends packets as they lie in the guest's buffers; only what is in too many pieces is copied,
/// through room for one.
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
        queues: &mut QueueContext<'_, M>,
        mut way: PacketSink<'_>,
        stats: &DeviceStats,
    ) -> Result<(), Fault> {
        queues.process_batch(index, BATCH, |requests, memory, answers| {
            let exchanged = send_batch(requests, memory, &mut way);
            for (number, request) in requests.iter().enumerate() {
                let length = request.readable().length();
                let sent = match exchanged.as_ref().and_then(|exchanged| exchanged.of(number)) {
                    Some(sent) => sent.is_ok_and(|sent| sent as u64 == length),
                    None => self.send(request, memory, &mut way)?,
                };
                count(sent, length, stats);
                answers.push(request, 0);
            }
            Ok(())
        })
    }

    /// Sends one packet; whether that could be done.
    fn send<M: DeviceMemory>(
        &mut self,
        request: &VirtioRequest,
        memory: &M,
        PacketSink { interface, pair, .. }: &mut PacketSink<'_>,
    ) -> Result<bool, Fault> {
        let packet = match packet(request, memory)? {
            OutgoingPacket::Lies(packet) => packet,
            OutgoingPacket::Scattered => {
                let room = self.0.get_mut(..request.readable().length() as usize);
                let Some(room) = room else { return Ok(false) };
                request.readable().copy_to(memory, room)?;
                Gather::of(room)
            }
            OutgoingPacket::Lost => return Ok(false),
        };
        Ok(interface.send(*pair, &packet).is_ok())
    }
}

/// Sends packets by one system call, if the interface can: up to the first that must be copied or
/// is wrong.
fn send_batch<M: DeviceMemory>(
    requests: &[VirtioRequest],
    memory: &M,
    way: &mut PacketSink<'_>,
) -> Option<MessageResults> {
    let several = requests.len() > 1 && way.transfers.can_batch_messages();
    let file = way.interface.messages(way.pair).filter(|_| several)?;
    let mut batch = way.transfers.batch();
    for (number, request) in requests.iter().enumerate() {
        match packet(request, memory) {
            Ok(OutgoingPacket::Lies(packet)) => batch.send(number, &packet),
            Ok(OutgoingPacket::Lost) => {}
            Ok(OutgoingPacket::Scattered) | Err(_) => break,
        }
    }
    Some(batch.run_messages(file))
}

fn count(sent: bool, length: u64, stats: &DeviceStats) {
    if sent {
        DeviceStats::count(&stats.writes);
        stats.bytes_written.fetch_add(length - HEADER_SIZE as u64, Ordering::Relaxed);
    } else {
        DeviceStats::count(&stats.dropped_from_guest);
    }
}

/// A packet of the guest's.
#[expect(clippy::large_enum_variant, reason = "none is kept")]
enum OutgoingPacket<'a> {
    /// In its buffers.
    Lies(Gather<'a>),
    /// In more pieces than are sent at once.
    Scattered,
    /// Without a frame, too long, or not to be reached just now.
    Lost,
}

fn packet<'a, M: DeviceMemory>(
    request: &VirtioRequest,
    memory: &'a M,
) -> Result<OutgoingPacket<'a>, Fault> {
    if request.writable().length() > 0 {
        let reason = "a device-writable buffer in a transmit queue".to_owned();
        return Err(Fault::Chain { head: request.head, reason });
    }
    if !(HEADER_SIZE as u64 + 1..=MAX_PACKET as u64).contains(&request.readable().length()) {
        return Ok(OutgoingPacket::Lost);
    }
    match gather(request, memory) {
        Err(Fault::Memory { source, .. }) if memory.is_shortage(&source) => {
            Ok(OutgoingPacket::Lost)
        }
        outcome => outcome,
    }
}

fn gather<'a, M: DeviceMemory>(
    request: &VirtioRequest,
    memory: &'a M,
) -> Result<OutgoingPacket<'a>, Fault> {
    let mut packet = Gather::default();
    for buffer in request.readable().readable(memory) {
        if packet.push(buffer?).is_err() {
            return Ok(OutgoingPacket::Scattered);
        }
    }
    Ok(OutgoingPacket::Lies(packet))
}
