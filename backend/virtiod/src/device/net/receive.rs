//! Packets for the guest, from the host's interface into the guest's buffers (virtio 1.3 section
//! 5.1.6.3).
//!
//! An iteration receives some packets from the interface, finds buffers for them, and maps, fills
//! and returns all of these together. It examines buffers before it maps them, so that it maps no
//! more than it writes.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::arrivals::{Arrivals, Packet};
use super::interface::HEADER_SIZE;
use crate::device::{
    BATCH_PAGES, Buffers, DeviceMemory, Fault, QueueContext, Requests, VirtioRequest,
};
use crate::stats::DeviceStats;

/// Maximum number of packets that an iteration delivers.
const PACKETS: usize = 32;
/// Offset of `flags` in the header.
const FLAGS: usize = 0;
/// Offsets of `num_buffers` in the header.
const NUM_BUFFERS: Range<usize> = 10..12;

/// The layout of packets that the driver negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PacketFormat {
    pub(super) buffers: PacketBuffers,
    pub(super) flags: HeaderFlags,
}

/// The number of the driver's requests that a packet may fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PacketBuffers {
    /// One; a packet that does not fit is dropped.
    One,
    /// As many as it needs: VIRTIO_NET_F_MRG_RXBUF.
    Mergeable,
}

/// The values that the header's flags may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeaderFlags {
    /// Zero: the driver did not negotiate checksums.
    Zero,
    /// The host's flags for the checksum: VIRTIO_NET_F_GUEST_CSUM.
    Checksum,
}

/// The receive queue of a pair.
pub(super) struct Receiver {
    pair: usize,
    stock: Stock,
    starved: bool,
}

/// Requests that were taken from the ring and not filled yet; at most the number of the ring's
/// entries.
#[derive(Default)]
struct Stock {
    requests: Requests,
    /// Number of those at the begin that were filled. They stay until all are: none is moved.
    filled: usize,
}

impl Stock {
    /// Those that were not filled.
    fn left(&self) -> &[VirtioRequest] {
        self.requests.get(self.filled..).unwrap_or_default()
    }

    /// As [`Stock::left`], to shorten them.
    fn left_mut(&mut self) -> &mut [VirtioRequest] {
        self.requests.get_mut(self.filled..).unwrap_or_default()
    }

    /// Adds the next ones of the ring; returns a list that is not used any more.
    fn add(&mut self, mut next: Requests) -> Requests {
        if self.left().is_empty() {
            self.filled = 0;
            return std::mem::replace(&mut self.requests, next);
        }
        let mut left = Requests::default();
        let all = self.requests.drain().skip(self.filled).chain(next.drain());
        all.for_each(|request| left.push(request));
        (self.requests, self.filled) = (left, 0);
        next
    }

    /// The first `count` were filled.
    fn fill(&mut self, count: usize) {
        self.filled = self.requests.len().min(self.filled + count);
    }
}

/// A packet and the number of requests that it will fill.
struct Delivery {
    packet: Packet,
    requests: usize,
}

/// The totals of the plan so far, on which the next packet depends.
#[derive(Clone, Copy, Default)]
struct Planned {
    requests: usize,
    /// Number of pages that the buffers to be filled touch, but for requests in shared memory.
    pages: u64,
}

/// The result of the search for a packet's buffers.
enum Gathered {
    Enough(usize),
    /// The packet waits until the driver adds buffers.
    NotYet,
    /// The packet waits for the next iteration: together with the packets before it, its buffers
    /// would touch too many pages.
    Later,
    Never,
}

impl Receiver {
    /// A receiver for this pair's packets.
    pub(super) fn new(pair: usize) -> Self {
        Self { pair, stock: Stock::default(), starved: false }
    }

    /// The number of its queue.
    fn index(&self) -> usize {
        2 * self.pair
    }

    /// Whether packets wait for buffers, which a doorbell announces.
    pub(super) fn is_starved(&self) -> bool {
        self.starved
    }

    /// Notes that the driver added buffers.
    pub(super) fn refill(&mut self) {
        self.starved = false;
    }

    /// Drops the packets that wait.
    pub(super) fn drop_packets(&mut self, arrivals: &mut Arrivals) {
        arrivals.drop_packets(self.pair);
        self.starved = false;
    }

    /// Forgets the buffers, which the driver owns again. Packets wait until the driver sets the
    /// queue up again.
    pub(super) fn return_buffers(&mut self) {
        self.stock = Stock::default();
        self.starved = true;
    }

    /// Drops all packets and forgets all buffers.
    pub(super) fn reset(&mut self, arrivals: &mut Arrivals) {
        self.drop_packets(arrivals);
        self.stock = Stock::default();
    }

    /// Delivers to the guest the packets for which there are buffers. The caller looks after those
    /// that are left.
    pub(super) fn deliver<M: DeviceMemory>(
        &mut self,
        arrivals: &mut Arrivals,
        queues: &mut QueueContext<'_, M>,
        format: PacketFormat,
        stats: &DeviceStats,
    ) -> Result<(), Fault> {
        if arrivals.is_empty(self.pair) {
            return Ok(());
        }
        let (plan, mut fault) = self.plan(arrivals, queues, format.buffers, stats);
        let count = plan.iter().map(|delivery| delivery.requests).sum();
        let requests = self.stock.left_mut().get_mut(..count).unwrap_or_default();
        trim(requests, &plan);
        queues.prepare(requests);
        let mut done = Vec::with_capacity(count);
        let mut rest = &*requests;
        for delivery in plan {
            if fault.is_none() {
                let (now, later) = rest.split_at(delivery.requests.min(rest.len()));
                rest = later;
                let packet = arrivals.bytes(&delivery.packet).unwrap_or_default();
                finish_header(packet, now.len(), format.flags);
                fault = write(packet, now, queues.memory(), &mut done, stats).err();
            }
            arrivals.give_back(delivery.packet);
        }
        self.stock.fill(count);
        queues.give_back(self.index(), &done)?;
        if let Some(fault) = fault {
            return Err(fault);
        }
        if self.starved {
            queues.mark_idle(self.index());
        }
        Ok(())
    }

    /// Finds requests for as many packets as possible. Returns with them the fault that ended the
    /// search, if one did.
    fn plan<M: DeviceMemory>(
        &mut self,
        arrivals: &mut Arrivals,
        queues: &mut QueueContext<'_, M>,
        buffers: PacketBuffers,
        stats: &DeviceStats,
    ) -> (Vec<Delivery>, Option<Fault>) {
        let mut plan = Vec::with_capacity(PACKETS);
        let mut planned = Planned::default();
        while plan.len() < PACKETS
            && let Some(packet) = arrivals.pop(self.pair)
        {
            match self.gather(packet.length() as u64, &mut planned, queues, buffers) {
                Ok(Gathered::Enough(requests)) => plan.push(Delivery { packet, requests }),
                Ok(Gathered::Never) => {
                    DeviceStats::count(&stats.dropped_to_guest);
                    arrivals.give_back(packet);
                }
                Ok(later @ (Gathered::NotYet | Gathered::Later)) => {
                    self.starved = matches!(later, Gathered::NotYet);
                    arrivals.put_back(self.pair, packet);
                    break;
                }
                Err(fault) => {
                    arrivals.give_back(packet);
                    return (plan, Some(fault));
                }
            }
        }
        (plan, None)
    }

    /// Finds the requests that `length` bytes need, behind those planned already, and adds them to
    /// the plan.
    fn gather<M: DeviceMemory>(
        &mut self,
        length: u64,
        planned: &mut Planned,
        queues: &mut QueueContext<'_, M>,
        buffers: PacketBuffers,
    ) -> Result<Gathered, Fault> {
        let (alone, mut left) = (planned.requests == 0, length);
        let mut with = *planned;
        while left > 0 {
            let count = with.requests - planned.requests;
            if count == 1 && buffers == PacketBuffers::One {
                return Ok(Gathered::Never);
            }
            if with.requests == self.stock.left().len() && !self.refill_stock(queues)? {
                // A size of 0: the queue is not set up, or was reset.
                let size = queues.size(self.index());
                let whole_ring = alone && (1..=count).contains(&size);
                return Ok(if whole_ring { Gathered::Never } else { Gathered::NotYet });
            }
            let Some(next) = self.stock.left().get(with.requests) else {
                return Ok(Gathered::NotYet);
            };
            let mut writable = next.writable();
            let taken = writable.length().min(left);
            if next.pages() > 0 {
                with.pages += writable.split_front(taken).map_or(0, Buffers::pages);
            }
            with.requests += 1;
            left -= taken;
            if with.pages > BATCH_PAGES {
                return Ok(if alone { Gathered::Never } else { Gathered::Later });
            }
        }
        let requests = with.requests - planned.requests;
        *planned = with;
        Ok(Gathered::Enough(requests))
    }

    /// Takes requests from the ring; returns whether there were any.
    fn refill_stock<M: DeviceMemory>(
        &mut self,
        queues: &mut QueueContext<'_, M>,
    ) -> Result<bool, Fault> {
        let missing = queues.size(self.index()).saturating_sub(self.stock.left().len());
        let (requests, fault) = queues.fetch(self.index(), missing);
        let found = !requests.is_empty();
        let wrong = requests.iter().find(|request| request.readable().length() > 0);
        if let Some(VirtioRequest { head, .. }) = wrong {
            let reason = "a device-readable buffer in a receive queue".to_owned();
            return Err(Fault::Chain { head: *head, reason });
        }
        queues.recycle(self.stock.add(requests));
        fault.map_or(Ok(found), Err)
    }
}

/// Shortens requests to the bytes that will be written, so that the others need not be mapped.
/// Shared memory is mapped.
fn trim(requests: &mut [VirtioRequest], plan: &[Delivery]) {
    let mut rest = requests;
    for delivery in plan {
        let (now, later) = rest.split_at_mut(delivery.requests.min(rest.len()));
        let mut left = delivery.packet.length() as u64;
        for request in now {
            if request.pages() > 0 {
                request.truncate_writable(left);
            }
            left = left.saturating_sub(request.writable().length());
        }
        rest = later;
    }
}

/// Sets the header fields that the kernel leaves to the device.
fn finish_header(packet: &mut [u8], requests: usize, flags: HeaderFlags) {
    let count = (requests as u16).to_le_bytes();
    packet.iter_mut().skip(NUM_BUFFERS.start).zip(count).for_each(|(to, from)| *to = from);
    if flags == HeaderFlags::Zero {
        packet.get_mut(FLAGS).into_iter().for_each(|flags| *flags = 0);
    }
}

/// Writes a packet into its requests. If the requests cannot be reached at present, the packet is
/// dropped and they are returned empty, which the driver takes for truncated packets.
fn write<M: DeviceMemory>(
    packet: &[u8],
    requests: &[VirtioRequest],
    memory: &M,
    done: &mut Vec<(u16, u32)>,
    stats: &DeviceStats,
) -> Result<(), Fault> {
    let (mut rest, first) = (packet, done.len());
    for request in requests {
        match request.writable().copy_from(memory, rest) {
            Ok(count) => {
                done.push((request.head, count));
                let later = rest.get(count as usize..);
                rest = later.ok_or(Fault::Internal("more of a packet was written than it has"))?;
            }
            Err(Fault::Memory { source, .. }) if memory.is_shortage(&source) => {
                done.truncate(first);
                done.extend(requests.iter().map(|request| (request.head, 0)));
                DeviceStats::count(&stats.dropped_to_guest);
                return Ok(());
            }
            Err(fault) => {
                done.truncate(first);
                return Err(fault);
            }
        }
    }
    DeviceStats::count(&stats.reads);
    let frame = packet.len().saturating_sub(HEADER_SIZE) as u64;
    stats.bytes_read.fetch_add(frame, Ordering::Relaxed);
    Ok(())
}
