//! Packets that wait for a buffer of the guest.
//!
//! The device cannot answer packets in the ring without capacity in this queue, so it leaves them
//! in the ring while the queue is full: a guest that provides no buffers delays only itself (virtio
//! 1.3 section 5.10.6.2).

use std::collections::VecDeque;

use super::header::{HEADER_SIZE, VsockHeader};

/// Number of packets at which the device stops taking packets from the guest and handling the
/// host's programs (SPEC section 7).
const FULL: usize = 256;
/// Maximum number of packets in reply to one of the guest: a credit request gets an update, and a
/// reset too if the connection ends with it.
const ANSWERS: usize = 2;
/// Number of packets at which the device stops reading data from the host's programs.
const ENOUGH: usize = 32;

/// A packet to the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VsockPacket {
    /// The header; its length is that of the data.
    pub header: VsockHeader,
    /// The data behind the header.
    pub data: Vec<u8>,
}

/// The queue of packets to the guest, in order.
#[derive(Debug, Default)]
pub struct RxQueue(VecDeque<VsockPacket>);

impl RxQueue {
    /// Adds a packet at the end.
    pub fn push(&mut self, packet: VsockPacket) {
        self.0.push_back(packet);
    }

    /// Number of packets that wait.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Number of packets that the device may take from the guest now; at least one, unless the
    /// queue is full.
    pub fn capacity(&self) -> usize {
        let left = FULL.saturating_sub(self.count());
        left.div_ceil(ANSWERS)
    }

    /// Whether the device must take no more packets from the guest.
    pub fn is_full(&self) -> bool {
        self.count() >= FULL
    }

    /// Whether the device may read data from the host's programs.
    pub fn takes_data(&self) -> bool {
        self.count() < ENOUGH
    }

    /// Drops all packets.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Takes the bytes of the next packet for a buffer of `size` bytes: if its data does not fit,
    /// the first part of it. Returns `None` if there is no packet, or the buffer holds no byte of
    /// its data.
    pub fn next(&mut self, size: u64, cid: u64) -> Option<Vec<u8>> {
        let capacity = usize::try_from(size).unwrap_or(usize::MAX).checked_sub(HEADER_SIZE)?;
        let first = self.0.front_mut()?;
        if capacity == 0 && !first.data.is_empty() {
            return None;
        }
        let behind = first.data.split_off(first.data.len().min(capacity));
        let data = std::mem::replace(&mut first.data, behind);
        let header = VsockHeader { length: data.len() as u32, ..first.header };
        if first.data.is_empty() {
            self.0.pop_front();
        }
        let mut bytes = header.encode(cid).to_vec();
        bytes.extend_from_slice(&data);
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::vsock::header::{Credit, Operation, PortPair};

    fn packet(data: &[u8]) -> VsockPacket {
        let header = VsockHeader {
            ports: PortPair { host: 1, guest: 2 },
            operation: Some(Operation::Data),
            length: data.len() as u32,
            flags: 0,
            credit: Credit { buf_alloc: 1, fwd_cnt: 0 },
        };
        VsockPacket { header, data: data.to_vec() }
    }

    #[test]
    fn long_packet_is_split_and_each_part_has_its_length() {
        let mut rx_queue = RxQueue::default();
        rx_queue.push(packet(b"abcde"));
        rx_queue.push(packet(b"f"));
        let next = |rx_queue: &mut RxQueue| {
            let bytes = rx_queue.next(HEADER_SIZE as u64 + 2, 3)?;
            assert_eq!(usize::from(bytes[24]), bytes.len() - HEADER_SIZE);
            Some(bytes[HEADER_SIZE..].to_vec())
        };
        let parts: Vec<_> = std::iter::from_fn(|| next(&mut rx_queue)).collect();
        assert_eq!(parts, [&b"ab"[..], b"cd", b"e", b"f"]);
    }

    #[test]
    fn buffer_without_space_for_data_takes_no_packet() {
        let mut rx_queue = RxQueue::default();
        rx_queue.push(packet(b"a"));
        assert_eq!(rx_queue.next(HEADER_SIZE as u64 - 1, 3), None);
        assert_eq!(rx_queue.next(HEADER_SIZE as u64, 3), None);
        assert_eq!(rx_queue.count(), 1);
    }
}
