//! Packets from the guest, from its buffers to the host's interface.

use std::sync::atomic::Ordering;

use tracing::Level;

use super::AddressLock;
use super::interface::{HEADER_SIZE, Interface, MAX_PACKET};
use super::lock::LOOKED_AT;
use crate::device::{
    BATCH, DeviceMemory, Fault, Gather, IoEngine, MessageResults, QueueContext, VirtioRequest,
};
use crate::stats::DeviceStats;

/// The destination of packets.
pub(super) struct PacketSink<'i> {
    pub(super) interface: &'i mut dyn Interface,
    pub(super) pair: usize,
    pub(super) engine: &'i mut IoEngine,
    /// The addresses that packets may come from.
    pub(super) lock: Option<&'i AddressLock>,
}

/// The begin of a packet, which the guest cannot change any more.
type Begin = [u8; LOOKED_AT];

/// Sends packets from the guest's buffers without a copy, but for the begins of those that are
/// looked at.
pub(super) struct Transmitter {
    /// Holds one packet that is in too many pieces.
    whole: Vec<u8>,
    /// Hold the begins of a batch's packets.
    begins: Vec<Begin>,
    /// Whether the log says that packets were refused.
    has_logged: bool,
}

impl Default for Transmitter {
    fn default() -> Self {
        Self { whole: vec![0; MAX_PACKET], begins: vec![[0; LOOKED_AT]; BATCH], has_logged: false }
    }
}

impl Transmitter {
    /// Sends a batch of packets from queue `index`. A packet that cannot be sent, or may not be, is
    /// dropped and counted.
    pub(super) fn transmit<M: DeviceMemory>(
        &mut self,
        index: usize,
        queues: &mut QueueContext<'_, M>,
        mut sink: PacketSink<'_>,
        stats: &DeviceStats,
    ) -> Result<(), Fault> {
        let mut is_refused = false;
        queues.process_batch(index, BATCH, |requests, memory, answers| {
            let begins = &mut self.begins;
            let results = send_batch(requests, memory, &mut sink, begins, &mut is_refused);
            for (number, request) in requests.iter().enumerate() {
                let length = request.readable().length();
                let sent = match results.as_ref().and_then(|results| results.of(number)) {
                    Some(sent) => sent.is_ok_and(|sent| sent as u64 == length),
                    None => self.send(request, memory, &mut sink, &mut is_refused)?,
                };
                count(sent, length, stats);
                answers.push(request, 0);
            }
            Ok(())
        })?;
        if is_refused && !std::mem::replace(&mut self.has_logged, true) {
            let what =
                format_args!("drops packets that lock-mac or lock-addresses does not permit");
            stats.log.line(Level::WARN, what);
        }
        Ok(())
    }

    /// Sends one packet; returns whether the interface accepted it.
    fn send<M: DeviceMemory>(
        &mut self,
        request: &VirtioRequest,
        memory: &M,
        PacketSink { interface, pair, lock, .. }: &mut PacketSink<'_>,
        is_refused: &mut bool,
    ) -> Result<bool, Fault> {
        let Self { whole, begins, .. } = self;
        let looked_at = lock.zip(begins.first_mut());
        let packet = match packet(request, memory, looked_at)? {
            OutgoingPacket::InPlace(packet) => packet,
            OutgoingPacket::Scattered => {
                let copy = whole.get_mut(..request.readable().length() as usize);
                let Some(copy) = copy else { return Ok(false) };
                request.readable().copy_to(memory, copy)?;
                // The guest may have changed it meanwhile.
                if lock.is_some_and(|lock| !lock.permits(copy, true)) {
                    *is_refused = true;
                    return Ok(false);
                }
                Gather::of(copy)
            }
            OutgoingPacket::Dropped => return Ok(false),
            OutgoingPacket::Refused => {
                *is_refused = true;
                return Ok(false);
            }
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
    begins: &mut [Begin],
    is_refused: &mut bool,
) -> Option<MessageResults> {
    let several = requests.len() > 1 && sink.engine.can_batch_messages();
    let file = sink.interface.messages(sink.pair).filter(|_| several)?;
    let mut batch = sink.engine.batch();
    for ((number, request), begin) in requests.iter().enumerate().zip(begins) {
        match packet(request, memory, sink.lock.map(|lock| (lock, begin))) {
            Ok(OutgoingPacket::InPlace(packet)) => batch.send(number, &packet),
            Ok(OutgoingPacket::Dropped) => {}
            Ok(OutgoingPacket::Refused) => *is_refused = true,
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
    /// It is dropped: it comes from an address that is not the guest's.
    Refused,
}

/// The packet of a request. If there is a lock, it is checked over a copy of the packet's begin,
/// and the copy is sent.
fn packet<'a, M: DeviceMemory>(
    request: &VirtioRequest,
    memory: &'a M,
    looked_at: Option<(&AddressLock, &'a mut Begin)>,
) -> Result<OutgoingPacket<'a>, Fault> {
    if request.writable().length() > 0 {
        let reason = "a device-writable buffer in a transmit queue".to_owned();
        return Err(Fault::Chain { head: request.head, reason });
    }
    if !(HEADER_SIZE as u64 + 1..=MAX_PACKET as u64).contains(&request.readable().length()) {
        return Ok(OutgoingPacket::Dropped);
    }
    match gather(request, memory, looked_at) {
        Err(Fault::Memory { source, .. }) if memory.is_shortage(&source) => {
            Ok(OutgoingPacket::Dropped)
        }
        outcome => outcome,
    }
}

fn gather<'a, M: DeviceMemory>(
    request: &VirtioRequest,
    memory: &'a M,
    looked_at: Option<(&AddressLock, &'a mut Begin)>,
) -> Result<OutgoingPacket<'a>, Fault> {
    let (mut packet, mut rest) = (Gather::default(), request.readable());
    if let Some((lock, begin)) = looked_at {
        let count = rest.length().min(LOOKED_AT as u64);
        let begin = begin.get_mut(..count as usize).unwrap_or_default();
        rest.split_front(count).unwrap_or_default().copy_to(memory, begin)?;
        if !lock.permits(begin, rest.length() == 0) {
            return Ok(OutgoingPacket::Refused);
        }
        packet = Gather::of(begin);
    }
    for buffer in rest.readable(memory) {
        if packet.push(buffer?).is_err() {
            return Ok(OutgoingPacket::Scattered);
        }
    }
    Ok(OutgoingPacket::InPlace(packet))
}
