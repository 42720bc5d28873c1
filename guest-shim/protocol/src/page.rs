//! The message page: two single-producer single-consumer queues in one granted page (SPEC
//! section 4).
//!
//! Both sides see the page as atomic words, so that what the peer does to it at any moment is a
//! value and never undefined behaviour. Indices are free-running; each side keeps its own index in
//! private memory and only publishes it, and checks the peer's at every use. A message is copied
//! out whole before anything looks at it.

use crate::atomic::{AtomicU32, Ordering};
use core::fmt;

use crate::message::{HEADER_SIZE, Header};

/// The page as both sides see it: 4096 bytes of little-endian 32-bit words.
pub type PageWords = [AtomicU32; 1024];

/// Slots in a queue; a power of two.
pub const SLOTS: u32 = 4;
/// Bytes in a slot: the longest message the page can carry.
pub const SLOT_SIZE: usize = 480;

const SLOT_WORDS: usize = SLOT_SIZE / 4;

/// Which of the two queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueDirection {
    /// Requests and events from the driver.
    DriverToDevice,
    /// Responses and events from the device.
    DeviceToDriver,
}

impl QueueDirection {
    /// Word of the index that the producer publishes [4.1].
    const fn producer_word(self) -> usize {
        match self {
            Self::DriverToDevice => word_at(0x000),
            Self::DeviceToDriver => word_at(0x080),
        }
    }

    /// Word of the index that the consumer publishes [4.1].
    const fn consumer_word(self) -> usize {
        match self {
            Self::DriverToDevice => word_at(0x040),
            Self::DeviceToDriver => word_at(0x0c0),
        }
    }

    /// The words of the slot that index `index` falls in [4.1].
    fn slot(self, page: &PageWords, index: u32) -> &[AtomicU32] {
        let base = match self {
            Self::DriverToDevice => word_at(0x100),
            Self::DeviceToDriver => word_at(0x880),
        };
        let start = base + (index % SLOTS) as usize * SLOT_WORDS;
        page.get(start..start + SLOT_WORDS).unwrap_or(&[])
    }
}

/// The peer's index is not within a queue's length of ours [4.4]: nothing in the page can be
/// trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Corrupt {
    /// What this side knows its own index to be.
    pub ours: u32,
    /// What the peer published.
    pub theirs: u32,
}

impl fmt::Display for Corrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ours, theirs } = self;
        write!(f, "message queue index {theirs} is not within {SLOTS} of {ours}")
    }
}

impl core::error::Error for Corrupt {}

/// Why a message was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PushError {
    /// All slots hold messages that the peer has not taken; it signals when it takes one [4.5].
    Full,
    /// The message is longer than a slot.
    TooLong,
    /// The peer broke the queue.
    Corrupt(Corrupt),
}

/// The sending end of one queue.
#[derive(Debug)]
pub struct Producer {
    direction: QueueDirection,
    next: u32,
}

impl Producer {
    /// The sending end of a queue in a page that was zeroed.
    pub const fn new(direction: QueueDirection) -> Self {
        Self { direction, next: 0 }
    }

    /// Puts a message into the queue. The caller signals the event channel afterwards [4.5].
    ///
    /// # Errors
    /// [`PushError`]; the queue is unchanged.
    pub fn push(&mut self, page: &PageWords, message: &[u8]) -> Result<(), PushError> {
        if message.len() > SLOT_SIZE {
            return Err(PushError::TooLong);
        }
        // Acquire pairs with the consumer's Release: it has done reading the slot we write over.
        let consumer = load(page, self.direction.consumer_word(), Ordering::Acquire);
        let used = self.next.wrapping_sub(consumer);
        if used > SLOTS {
            return Err(PushError::Corrupt(Corrupt { ours: self.next, theirs: consumer }));
        }
        if used == SLOTS {
            return Err(PushError::Full);
        }
        write_words(self.direction.slot(page, self.next), message);
        self.next = self.next.wrapping_add(1);
        // Release pairs with the consumer's Acquire: the slot is written before the index says so.
        store(page, self.direction.producer_word(), self.next, Ordering::Release);
        Ok(())
    }
}

/// What a consumer found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Popped {
    /// Nothing to take.
    Empty,
    /// A message, now in the caller's buffer.
    Message {
        /// Its bytes.
        size: usize,
    },
    /// A slot whose header gives a size that no message can have; it was dropped [5.3].
    Malformed {
        /// The size it gave.
        size: usize,
    },
}

/// The receiving end of one queue.
#[derive(Debug)]
pub struct Consumer {
    direction: QueueDirection,
    next: u32,
    saw_full: bool,
}

impl Consumer {
    /// The receiving end of a queue in a page that was zeroed.
    pub const fn new(direction: QueueDirection) -> Self {
        Self { direction, next: 0, saw_full: false }
    }

    /// Whether [`Consumer::pop`] would find something, good or not.
    pub fn has_news(&self, page: &PageWords) -> bool {
        // Relaxed: nothing is read of the queue for it; `pop` looks again.
        load(page, self.direction.producer_word(), Ordering::Relaxed) != self.next
    }

    /// Copies the oldest message into `buffer` and frees its slot.
    ///
    /// `max_size` is the negotiated maximum message size.
    ///
    /// # Errors
    /// [`Corrupt`] if the producer's index is impossible; the queue is unusable from then on.
    pub fn pop(
        &mut self,
        page: &PageWords,
        max_size: usize,
        buffer: &mut [u8; SLOT_SIZE],
    ) -> Result<Popped, Corrupt> {
        // Acquire pairs with the producer's Release: the slot is written before we read it.
        let producer = load(page, self.direction.producer_word(), Ordering::Acquire);
        let waiting = producer.wrapping_sub(self.next);
        if waiting > SLOTS {
            return Err(Corrupt { ours: self.next, theirs: producer });
        }
        if waiting == 0 {
            return Ok(Popped::Empty);
        }
        self.saw_full |= waiting == SLOTS;
        let slot = self.direction.slot(page, self.next);
        let mut header = [0; HEADER_SIZE];
        read_words(slot, &mut header);
        let size = usize::from(Header::size_of(header));
        let well_sized = (HEADER_SIZE..=max_size.min(SLOT_SIZE)).contains(&size);
        if let (true, Some((head, body))) = (well_sized, buffer.split_at_mut_checked(HEADER_SIZE)) {
            // The header that was checked is the header that is used: read once, never again.
            head.iter_mut().zip(header).for_each(|(to, from)| *to = from);
            let rest = body.get_mut(..size.saturating_sub(HEADER_SIZE)).unwrap_or(&mut []);
            read_words(slot.get(HEADER_SIZE / 4..).unwrap_or(&[]), rest);
        }
        self.next = self.next.wrapping_add(1);
        // Release pairs with the producer's Acquire: we have done reading the slot.
        store(page, self.direction.consumer_word(), self.next, Ordering::Release);
        Ok(if well_sized { Popped::Message { size } } else { Popped::Malformed { size } })
    }

    /// Whether the producer may be waiting for a free slot, and so must be signalled [4.5]. Asked
    /// once after the queue is drained.
    pub fn take_saw_full(&mut self) -> bool {
        core::mem::take(&mut self.saw_full)
    }
}

/// The word at a byte offset.
const fn word_at(byte: usize) -> usize {
    byte / 4
}

fn load(page: &PageWords, word: usize, order: Ordering) -> u32 {
    page.get(word).map_or(0, |word| u32::from_le(word.load(order)))
}

fn store(page: &PageWords, word: usize, value: u32, order: Ordering) {
    if let Some(word) = page.get(word) {
        word.store(value.to_le(), order);
    }
}

/// Relaxed: the producer index orders the slot's words.
fn write_words(slot: &[AtomicU32], bytes: &[u8]) {
    for (word, chunk) in slot.iter().zip(bytes.chunks(4)) {
        let mut value = [0; 4];
        value.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
        word.store(u32::from_ne_bytes(value), Ordering::Relaxed);
    }
}

/// Relaxed: the producer index orders the slot's words.
fn read_words(slot: &[AtomicU32], bytes: &mut [u8]) {
    for (word, chunk) in slot.iter().zip(bytes.chunks_mut(4)) {
        let value = word.load(Ordering::Relaxed).to_ne_bytes();
        chunk.iter_mut().zip(value).for_each(|(to, from)| *to = from);
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::boxed::Box;
    use std::vec::Vec;

    use super::*;
    use crate::message::{Message, Request};

    fn page() -> Box<PageWords> {
        Box::new(core::array::from_fn(|_| AtomicU32::new(0)))
    }

    fn ping(number: u32) -> Vec<u8> {
        let mut buffer = [0; SLOT_SIZE];
        let size = Message::request(1, Request::Ping(number)).encode(&mut buffer).unwrap();
        buffer[..size].to_vec()
    }

    fn ends() -> (Producer, Consumer) {
        let direction = QueueDirection::DriverToDevice;
        (Producer::new(direction), Consumer::new(direction))
    }

    #[test]
    fn spec_4_1_the_slots_fill_the_page_and_do_not_overlap() {
        let page = page();
        let mut seen = [0u8; 1024];
        for direction in [QueueDirection::DriverToDevice, QueueDirection::DeviceToDriver] {
            for index in 0..SLOTS {
                let slot = direction.slot(&page, index);
                assert_eq!(slot.len(), SLOT_WORDS);
                let start = slot.as_ptr_range().start as usize - page.as_ptr() as usize;
                seen[start / 4..start / 4 + SLOT_WORDS].iter_mut().for_each(|n| *n += 1);
            }
        }
        assert!(seen[..64].iter().all(|n| *n == 0), "indices have the first 256 bytes");
        assert!(seen[64..].iter().all(|n| *n == 1));
    }

    #[test]
    fn spec_4_2_messages_arrive_in_order_past_the_wrap() {
        let (page, (mut producer, mut consumer)) = (page(), ends());
        let mut buffer = [0; SLOT_SIZE];
        for number in 0..10 {
            producer.push(&page, &ping(number)).unwrap();
            let popped = consumer.pop(&page, 264, &mut buffer);
            assert_eq!(popped, Ok(Popped::Message { size: 12 }));
            assert_eq!(buffer[..12], ping(number));
        }
        assert_eq!(consumer.pop(&page, 264, &mut buffer), Ok(Popped::Empty));
    }

    #[test]
    fn spec_4_2_the_index_itself_may_wrap() {
        let (page, (mut producer, mut consumer)) = (page(), ends());
        (producer.next, consumer.next) = (u32::MAX, u32::MAX);
        store(&page, QueueDirection::DriverToDevice.consumer_word(), u32::MAX, Ordering::Relaxed);
        let mut buffer = [0; SLOT_SIZE];
        for number in 0..3 {
            producer.push(&page, &ping(number)).unwrap();
        }
        for _ in 0..3 {
            assert!(matches!(
                consumer.pop(&page, 264, &mut buffer),
                Ok(Popped::Message { size: 12 })
            ));
        }
    }

    #[test]
    fn spec_4_5_a_full_queue_refuses_and_its_consumer_knows_to_signal() {
        let (page, (mut producer, mut consumer)) = (page(), ends());
        for number in 0..SLOTS {
            producer.push(&page, &ping(number)).unwrap();
        }
        assert_eq!(producer.push(&page, &ping(9)), Err(PushError::Full));
        consumer.pop(&page, 264, &mut [0; SLOT_SIZE]).unwrap();
        assert!(consumer.take_saw_full());
        assert!(!consumer.take_saw_full(), "asked once");
        producer.push(&page, &ping(9)).unwrap();
    }

    #[test]
    fn spec_4_3_what_the_peer_does_to_our_own_index_changes_nothing() {
        let (page, (mut producer, mut consumer)) = (page(), ends());
        let direction = QueueDirection::DriverToDevice;
        producer.push(&page, &ping(1)).unwrap();
        store(&page, direction.producer_word(), 77, Ordering::Relaxed);
        producer.push(&page, &ping(2)).unwrap();
        let mut buffer = [0; SLOT_SIZE];
        for number in [1, 2] {
            store(&page, direction.consumer_word(), 99, Ordering::Relaxed);
            assert_eq!(consumer.pop(&page, 264, &mut buffer), Ok(Popped::Message { size: 12 }));
            assert_eq!(buffer[..12], ping(number));
        }
    }

    #[test]
    fn spec_4_4_impossible_indices_are_corrupt() {
        let (page, (mut producer, mut consumer)) = (page(), ends());
        let direction = QueueDirection::DriverToDevice;
        store(&page, direction.producer_word(), SLOTS + 1, Ordering::Relaxed);
        assert_eq!(
            consumer.pop(&page, 264, &mut [0; SLOT_SIZE]),
            Err(Corrupt { ours: 0, theirs: 5 })
        );
        store(&page, direction.consumer_word(), 1, Ordering::Relaxed);
        assert_eq!(
            producer.push(&page, &ping(0)),
            Err(PushError::Corrupt(Corrupt { ours: 0, theirs: 1 }))
        );
    }

    #[test]
    fn spec_5_3_impossible_sizes_are_dropped_and_the_next_message_is_read() {
        let (page, (mut producer, mut consumer)) = (page(), ends());
        for size in [0u16, 7, 265, 481, u16::MAX] {
            let mut message = ping(1);
            message[6..8].copy_from_slice(&size.to_le_bytes());
            producer.push(&page, &message).unwrap();
            producer.push(&page, &ping(2)).unwrap();
            let mut buffer = [0; SLOT_SIZE];
            let popped = consumer.pop(&page, 264, &mut buffer);
            assert_eq!(popped, Ok(Popped::Malformed { size: size.into() }));
            assert_eq!(consumer.pop(&page, 264, &mut buffer), Ok(Popped::Message { size: 12 }));
        }
    }

    #[test]
    fn a_message_longer_than_a_slot_is_not_sent() {
        let (page, (mut producer, _)) = (page(), ends());
        assert_eq!(producer.push(&page, &[0; SLOT_SIZE + 1]), Err(PushError::TooLong));
    }
}
