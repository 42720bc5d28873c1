//! Packets of the interface that have arrived for the guest and were not delivered yet.
//!
//! Where the kernel can (Linux 6.7), it receives packets before they are asked for; otherwise the
//! thread asks it for each pair's packets.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use uring::inbox::{Inbox, Message};

use super::QueuePairs;
use super::interface::{Interface, MAX_PACKET};
use crate::device::{AwaitedFd, IoEngine, Source, wait_by_poll};

/// Maximum number of packets that are asked for at a time.
const PACKETS: usize = 32;
/// Number of buffers into which the kernel receives by itself, for all pairs together: memory of 4
/// MiB at most, of which only what packets have filled exists. A pair has an equal part of them,
/// since one whose packets wait for the driver must not keep others waiting.
const BUFFERS: u16 = 64;

/// A packet, with its header, in a buffer.
#[derive(Debug)]
pub(super) enum Packet {
    /// The kernel received it by itself.
    Unasked(Message),
    /// It was asked for: its bytes in the memory of this pair.
    Asked {
        /// The pair.
        pair: usize,
        /// The bytes.
        range: Range<usize>,
    },
}

impl Packet {
    /// Number of bytes.
    pub(super) fn length(&self) -> usize {
        match self {
            Self::Unasked(message) => message.length(),
            Self::Asked { range, .. } => range.len(),
        }
    }
}

/// The packets of one queue pair.
#[derive(Default)]
struct PairArrivals {
    waiting: VecDeque<Packet>,
    /// Memory for packets that are asked for, each of the maximum length; empty before the first.
    bytes: Vec<u8>,
    /// Number of packets that were asked for and came, the latest time.
    latest: usize,
}

/// The packets of all queue pairs.
pub(super) struct Arrivals {
    pairs: Vec<PairArrivals>,
    inbox: Option<Inbox>,
}

impl Arrivals {
    /// No packets, of so many pairs.
    pub(super) fn new(pairs: QueuePairs) -> Self {
        let pairs = pairs.count();
        // At most 8 pairs.
        let inbox = Inbox::open(pairs, BUFFERS / pairs.next_power_of_two(), MAX_PACKET);
        Self { pairs: (0..pairs).map(|_| PairArrivals::default()).collect(), inbox }
    }

    /// Whether packets show in memory when they have arrived.
    pub(super) fn show_in_memory(&self) -> bool {
        self.inbox.is_some()
    }

    /// Whether packets have arrived that nobody took, without a system call.
    pub(super) fn has_new(&self) -> bool {
        self.inbox.as_ref().is_some_and(Inbox::has_arrived)
    }

    /// Takes what has arrived by itself, for all pairs. The caller looks after those that have
    /// packets now, and [listens](Self::listen) to all.
    pub(super) fn collect(&mut self) {
        let Self { pairs, inbox } = self;
        let Some(inbox) = inbox else { return };
        while let Some(message) = inbox.take() {
            match pairs.get_mut(message.device()) {
                Some(pair) => pair.waiting.push_back(Packet::Unasked(message)),
                None => inbox.give_back(message),
            }
        }
    }

    /// Receives packets of a pair, unless some still wait. Returns whether any wait then. Others
    /// may have packets then: see [`Arrivals::collect`].
    ///
    /// # Errors
    /// The interface's.
    pub(super) fn fill(
        &mut self,
        interface: &mut dyn Interface,
        pair: usize,
        engine: &mut IoEngine,
    ) -> io::Result<bool> {
        self.collect();
        let is_asked = !self.receives(interface, pair);
        let Some(arrivals) = self.pairs.get_mut(pair) else { return Ok(false) };
        if arrivals.waiting.is_empty() && is_asked {
            arrivals.ask(interface, pair, engine)?;
        }
        Ok(!arrivals.waiting.is_empty())
    }

    /// Has the kernel receive the packets of a pair by itself, if it can and does not.
    pub(super) fn listen(&mut self, interface: &dyn Interface, pair: usize) {
        if let (Some(inbox), Some(file)) = (&mut self.inbox, unasked(interface, pair)) {
            inbox.receive_from(pair, file);
        }
    }

    /// Whether the kernel receives the packets of this pair by itself, or will.
    fn receives(&self, interface: &dyn Interface, pair: usize) -> bool {
        let can_receive = self.inbox.as_ref().is_some_and(|inbox| inbox.can_receive(pair));
        can_receive && unasked(interface, pair).is_some()
    }

    /// What becomes ready when packets of this pair may have arrived.
    pub(super) fn source<'a>(
        &'a self,
        interface: &'a dyn Interface,
        pair: usize,
    ) -> Option<Source<'a>> {
        if self.receives(interface, pair) { None } else { interface.packets(pair) }
    }

    /// What becomes ready when packets have arrived by themselves.
    pub(super) fn common_source(&self) -> Option<Source<'_>> {
        self.inbox.as_ref().map(|inbox| Source::readable(inbox.arrivals()))
    }

    /// As [`VirtioDevice::wait`](crate::device::VirtioDevice::wait).
    pub(super) fn wait(&mut self, fds: &mut [AwaitedFd], limit: Duration) -> io::Result<()> {
        match &mut self.inbox {
            Some(inbox) => inbox.wait_for(fds, limit),
            None => wait_by_poll(fds, limit),
        }
    }

    /// Keeps no descriptor open that was waited for, but those of packets.
    pub(super) fn stop_polling(&mut self) {
        self.inbox.iter_mut().for_each(Inbox::stop_polling);
    }

    /// Whether packets of a pair wait.
    pub(super) fn is_empty(&self, pair: usize) -> bool {
        self.pairs.get(pair).is_none_or(|pair| pair.waiting.is_empty())
    }

    /// Takes the next packet of a pair.
    pub(super) fn pop(&mut self, pair: usize) -> Option<Packet> {
        self.pairs.get_mut(pair)?.waiting.pop_front()
    }

    /// Puts a packet back, in front of the others of its pair.
    pub(super) fn put_back(&mut self, pair: usize, packet: Packet) {
        match self.pairs.get_mut(pair) {
            Some(pair) => pair.waiting.push_front(packet),
            None => self.give_back(packet),
        }
    }

    /// The bytes of a packet.
    pub(super) fn bytes(&mut self, packet: &Packet) -> Option<&mut [u8]> {
        match packet {
            Packet::Unasked(message) => self.inbox.as_mut()?.bytes(message),
            Packet::Asked { pair, range } => {
                self.pairs.get_mut(*pair)?.bytes.get_mut(range.clone())
            }
        }
    }

    /// Forgets a packet: its buffer takes another one.
    pub(super) fn give_back(&mut self, packet: Packet) {
        if let (Packet::Unasked(message), Some(inbox)) = (packet, &mut self.inbox) {
            inbox.give_back(message);
        }
    }

    /// Drops the packets of a pair that wait.
    pub(super) fn drop_packets(&mut self, pair: usize) {
        self.collect();
        while let Some(packet) = self.pop(pair) {
            self.give_back(packet);
        }
    }
}

impl PairArrivals {
    /// Asks for packets. One that a batch could not receive is still in the interface; the next
    /// call takes it.
    fn ask(
        &mut self,
        interface: &mut dyn Interface,
        pair: usize,
        engine: &mut IoEngine,
    ) -> io::Result<()> {
        if self.bytes.is_empty() {
            // Untouched, it is no memory.
            self.bytes = vec![0; PACKETS * MAX_PACKET];
        }
        match interface.messages(pair).filter(|_| engine.can_batch_messages()) {
            Some(file) => self.ask_for_batch(file, pair, engine),
            None => self.ask_for_each(interface, pair),
        }
    }

    /// Receives packets with few system calls. It asks for one packet more than came the time
    /// before: the missing packet shows that no more are waiting, without another call.
    fn ask_for_batch(
        &mut self,
        file: BorrowedFd<'_>,
        pair: usize,
        engine: &mut IoEngine,
    ) -> io::Result<()> {
        let (mut tried, mut more) = (0, self.latest + 1);
        while tried < PACKETS {
            let slots = tried..PACKETS.min(tried + more.max(2));
            more = slots.len();
            tried = slots.end;
            if self.ask_for_some(slots, file, pair, engine)? < more {
                break;
            }
        }
        self.latest = self.waiting.len();
        Ok(())
    }

    /// Receives packets into these slots of the memory with one system call; returns their number.
    fn ask_for_some(
        &mut self,
        slots: Range<usize>,
        file: BorrowedFd<'_>,
        pair: usize,
        engine: &mut IoEngine,
    ) -> io::Result<usize> {
        let before = self.waiting.len();
        let buffers = self.bytes.chunks_exact_mut(MAX_PACKET).skip(slots.start).take(slots.len());
        let mut batch = engine.batch();
        buffers.enumerate().for_each(|(number, slot)| batch.take(number, slot));
        let results = batch.run_messages(file);
        for (number, slot) in slots.enumerate() {
            match results.of(number) {
                // No packet is empty.
                Some(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Some(Ok(length)) => self.waiting.push_back(asked(pair, slot, length)),
                // A packet may have arrived during the other receptions.
                Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
                Some(Err(error)) => return Err(error),
                None => {}
            }
        }
        Ok(self.waiting.len() - before)
    }

    /// Receives packets one by one.
    fn ask_for_each(&mut self, interface: &mut dyn Interface, pair: usize) -> io::Result<()> {
        for (slot, bytes) in self.bytes.chunks_exact_mut(MAX_PACKET).enumerate() {
            let Some(length) = interface.receive(pair, bytes)? else { break };
            self.waiting.push_back(asked(pair, slot, length));
        }
        Ok(())
    }
}

/// The file of a pair's packets, if the kernel may receive them by itself.
fn unasked(interface: &dyn Interface, pair: usize) -> Option<BorrowedFd<'_>> {
    interface.messages(pair).filter(|_| interface.arrives_unasked())
}

/// The packet in this slot of a pair's memory.
fn asked(pair: usize, slot: usize, length: usize) -> Packet {
    let start = slot * MAX_PACKET;
    Packet::Asked { pair, range: start..start + length }
}
