//! Packets that wait for a buffer of the guest's.
//!
//! Those in the ring cannot be answered without room here, so when there is none they stay there:
//! a guest that gives no buffers holds up itself (virtio 1.3 section 5.10.6.2).

use std::collections::VecDeque;

use super::header::{HEADER_SIZE, VsockHeader};

/// Packets with which no more is taken from the guest, and nothing more is asked of the host's
/// programs (SPEC section 7).
const FULL: usize = 256;
/// Packets that one of the guest's is answered with, at most: a request for credit gets an update,
/// and a reset too where the connection ends with it.
const ANSWERS: usize = 2;
/// Packets with which no more is read from the host's programs.
const ENOUGH: usize = 32;

/// A packet to the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VsockPacket {
    /// What stands in front of the data; its length is that of the data.
    pub header: VsockHeader,
    /// The data.
    pub data: Vec<u8>,
}

/// Packets to the guest, in order.
#[derive(Debug, Default)]
pub struct RxQueue(VecDeque<VsockPacket>);

impl RxQueue {
    /// Adds a packet.
    pub fn push(&mut self, packet: VsockPacket) {
        self.0.push_back(packet);
    }

    /// Packets waiting.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Packets that may be taken from the guest at once: at least one, unless it is full.
    pub fn room(&self) -> usize {
        let left = FULL.saturating_sub(self.count());
        left.div_ceil(ANSWERS)
    }

    /// Whether nothing more is to be taken from the guest.
    pub fn is_full(&self) -> bool {
        self.count() >= FULL
    }

    /// Whether data is to be read from the host's programs.
    pub fn takes_data(&self) -> bool {
        self.count() < ENOUGH
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// The bytes of the next packet for a buffer of `size` bytes: of a packet with more data than
    /// fits, the front part. `None` if there is no packet, or no room for even a byte of it.
    pub fn next(&mut self, size: u64, cid: u64) -> Option<Vec<u8>> {
        let room = usize::try_from(size).unwrap_or(usize::MAX).checked_sub(HEADER_SIZE)?;
        let first = self.0.front_mut()?;
        if room == 0 && !first.data.is_empty() {
            return None;
        }
        let behind = first.data.split_off(first.data.len().min(room));
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
            room: Credit { buf_alloc: 1, fwd_cnt: 0 },
        };
        VsockPacket { header, data: data.to_vec() }
    }

    #[test]
    fn a_packet_longer_than_a_buffer_goes_in_parts_that_say_their_own_length() {
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
    fn a_buffer_that_holds_no_data_takes_none() {
        let mut rx_queue = RxQueue::default();
        rx_queue.push(packet(b"a"));
        assert_eq!(rx_queue.next(HEADER_SIZE as u64 - 1, 3), None);
        assert_eq!(rx_queue.next(HEADER_SIZE as u64, 3), None);
        assert_eq!(rx_queue.count(), 1);
    }
}
