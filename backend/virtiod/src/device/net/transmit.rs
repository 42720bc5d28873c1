//! Packets from the guest, from its buffers to the host's interface.

use std::sync::atomic::Ordering;

use super::interface::{HEADER_SIZE, Interface, MAX_PACKET};
use crate::device::{
    BATCH, DeviceMemory, Fault, Gather, IoEngine, MessageResults, QueueContext, VirtioRequest,
};
use crate::stats::DeviceStats;

/// The destination of packets.
pub(super) struct PacketSink<'i> {
    pub(super) interface: &'i mut dyn Interface,
    pub(super) pair: usize,
    pub(super) engine: &'i mut IoEngine,
}

/// Sends packets from the guest's buffers without a copy. Only a packet in too many pieces is
/// copied, through the buffer in here, which holds one packet.
pub(super) struct Transmitter(Vec<u8>);

impl Default for Transmitter {
    fn default() -> Self {
        Self(vec![0; MAX_PACKET])
    }
}

impl Transmitter {
    /// Sends a batch of packets from queue `index`. A packet that cannot be sent is dropped and
    /// counted.
    pub(super) fn transmit<M: DeviceMemory>(
        &mut self,
        index: usize,
        queues: &mut QueueContext<'_, M>,
        mut sink: PacketSink<'_>,
        stats: &DeviceStats,
    ) -> Result<(), Fault> {
        queues.process_batch(index, BATCH, |requests, memory, answers| {
            let results = send_batch(requests, memory, &mut sink);
            for (number, request) in requests.iter().enumerate() {
                let length = request.readable().length();
                let sent = match results.as_ref().and_then(|results| results.of(number)) {
                    Some(sent) => sent.is_ok_and(|sent| sent as u64 == length),
                    None => self.send(request, memory, &mut sink)?,
                };
                count(sent, length, stats);
                answers.push(request, 0);
            }
            Ok(())
        })
    }

    /// Sends one packet; returns whether the interface accepted it.
    fn send<M: DeviceMemory>(
        &mut self,
        request: &VirtioRequest,
        memory: &M,
        PacketSink { interface, pair, .. }: &mut PacketSink<'_>,
    ) -> Result<bool, Fault> {
        let packet = match packet(request, memory)? {
            OutgoingPacket::InPlace(packet) => packet,
            OutgoingPacket::Scattered => {
                let copy = self.0.get_mut(..request.readable().length() as usize);
                let Some(copy) = copy else { return Ok(false) };
                request.readable().copy_to(memory, copy)?;
                Gather::of(copy)
            }
            OutgoingPacket::Dropped => return Ok(false),
        };
        Ok(interface.send(*pair, &packet).is_ok())
    }
}

/// Sends packets with one system call, if the interface supports that: those before the first that
/// must be copied or is malformed.
fn send_batch<M: DeviceMemory>(
    requests: &[VirtioRequest],
    memory: &M,
    sink: &mut PacketSink<'_>,
) -> Option<MessageResults> {
    let several = requests.len() > 1 && sink.engine.can_batch_messages();
    let file = sink.interface.messages(sink.pair).filter(|_| several)?;
    let mut batch = sink.engine.batch();
    for (number, request) in requests.iter().enumerate() {
        match packet(request, memory) {
            Ok(OutgoingPacket::InPlace(packet)) => batch.send(number, &packet),
            Ok(OutgoingPacket::Dropped) => {}
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

/// A packet from the guest.
#[expect(clippy::large_enum_variant, reason = "none is kept")]
enum OutgoingPacket<'a> {
    /// It can be sent from its buffers.
    InPlace(Gather<'a>),
    /// It has more pieces than one system call takes.
    Scattered,
    /// It is dropped: it has no frame, is too long, or cannot be reached at present.
    Dropped,
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
        return Ok(OutgoingPacket::Dropped);
    }
    match gather(request, memory) {
        Err(Fault::Memory { source, .. }) if memory.is_shortage(&source) => {
            Ok(OutgoingPacket::Dropped)
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
    Ok(OutgoingPacket::InPlace(packet))
}
