//! The message page: two single-producer single-consumer queues in one granted page (SPEC
//! section 4).
//!
//! Both sides access the page as atomic words, so that a concurrent write by the peer changes a
//! value and is never undefined behaviour. Indices are free-running. Each side keeps its own index
//! in private memory and only publishes it in the page, and checks the peer's index at every use
//! [4.3]. The consumer copies a whole message out of the page before anything decodes it.

use crate::atomic::{AtomicU32, Ordering, fence};
use core::fmt;

use crate::message::{HEADER_SIZE, Header};

/// The page as both sides access it: 4096 bytes as little-endian 32-bit words.
pub type PageWords = [AtomicU32; 1024];

/// Number of slots in a queue; a power of two.
pub const SLOTS: u32 = 4;
/// Size of a slot in bytes: the longest message that the page can carry.
pub const SLOT_SIZE: usize = 480;

const SLOT_WORDS: usize = SLOT_SIZE / 4;

/// One of the two queues of a page, by its direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueDirection {
    /// The driver produces: requests, events, and responses to PING.
    DriverToDevice,
    /// The device produces: responses, events, and PING.
    DeviceToDriver,
}

impl QueueDirection {
    /// The word that holds the producer's index [4.1].
    const fn producer_word(self) -> usize {
        match self {
            Self::DriverToDevice => word_at(0x000),
            Self::DeviceToDriver => word_at(0x080),
        }
    }

    /// The word that holds the consumer's index [4.1].
    const fn consumer_word(self) -> usize {
        match self {
            Self::DriverToDevice => word_at(0x040),
            Self::DeviceToDriver => word_at(0x0c0),
        }
    }

    /// The words of slot `index` modulo [`SLOTS`] [4.1, 4.2].
    fn slot(self, page: &PageWords, index: u32) -> &[AtomicU32] {
        let base = match self {
            Self::DriverToDevice => word_at(0x100),
            Self::DeviceToDriver => word_at(0x880),
        };
        let start = base + (index % SLOTS) as usize * SLOT_WORDS;
        page.get(start..start + SLOT_WORDS).unwrap_or(&[])
    }
}

/// The peer published an index that is not within [`SLOTS`] of this side's own [4.4]. This side
/// must not read the page any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Corrupt {
    /// This side's own index, from private memory.
    pub ours: u32,
    /// The index that the peer published.
    pub theirs: u32,
}

impl fmt::Display for Corrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ours, theirs } = self;
        write!(f, "message queue index {theirs} is not within {SLOTS} of {ours}")
    }
}

impl core::error::Error for Corrupt {}

/// The reason why [`Producer::push`] did not add a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PushError {
    /// The queue is full. The peer signals the event channel after it has taken messages [4.5].
    Full,
    /// The message is longer than [`SLOT_SIZE`].
    TooLong,
    /// The peer published an impossible index.
    Corrupt(Corrupt),
}

/// The producer's end of one queue.
#[derive(Debug)]
pub struct Producer {
    direction: QueueDirection,
    next: u32,
}

impl Producer {
    /// Creates the producer's end of a queue in a zeroed page.
    pub const fn new(direction: QueueDirection) -> Self {
        Self { direction, next: 0 }
    }

    /// The producer's end of a queue whose earlier producer is gone: it goes on where the page says
    /// that the other one stopped. A peer that changes that word has only itself to blame.
    pub fn take_over(direction: QueueDirection, page: &PageWords) -> Self {
        Self { direction, next: load(page, direction.producer_word(), Ordering::Acquire) }
    }

    /// The index of the next message.
    pub const fn index(&self) -> u32 {
        self.next
    }

    /// Adds a message to the queue. The caller signals the event channel afterwards [4.5].
    ///
    /// # Errors
    /// [`PushError`], after which the queue is unchanged.
    pub fn push(&mut self, page: &PageWords, message: &[u8]) -> Result<(), PushError> {
        if message.len() > SLOT_SIZE {
            return Err(PushError::TooLong);
        }
        if self.used(page)? == SLOTS {
            // Pairs with the consumer's fence: either it sees that the queue is full, and signals,
            // or we see the slot that it has freed meanwhile.
            fence(Ordering::SeqCst);
            if self.used(page)? == SLOTS {
                return Err(PushError::Full);
            }
        }
        write_words(self.direction.slot(page, self.next), message);
        self.next = self.next.wrapping_add(1);
        // Release pairs with the consumer's Acquire: we write the slot before the index.
        store(page, self.direction.producer_word(), self.next, Ordering::Release);
        Ok(())
    }

    /// Slots with messages that the consumer has not taken.
    fn used(&self, page: &PageWords) -> Result<u32, PushError> {
        // Acquire pairs with the consumer's Release: it has read the slot that we overwrite.
        let consumer = load(page, self.direction.consumer_word(), Ordering::Acquire);
        let used = self.next.wrapping_sub(consumer);
        if used > SLOTS {
            return Err(PushError::Corrupt(Corrupt { ours: self.next, theirs: consumer }));
        }
        Ok(used)
    }
}

/// The result of [`Consumer::pop`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Popped {
    /// The queue is empty.
    Empty,
    /// The consumer copied a message into the caller's buffer.
    Message {
        /// Size of the message in bytes.
        size: usize,
    },
    /// The consumer dropped a message with an impossible size in its header [5.3].
    Malformed {
        /// Size in the header, in bytes.
        size: usize,
    },
}

/// The consumer's end of one queue.
#[derive(Debug)]
pub struct Consumer {
    direction: QueueDirection,
    next: u32,
    saw_full: bool,
}

impl Consumer {
    /// Creates the consumer's end of a queue in a zeroed page.
    pub const fn new(direction: QueueDirection) -> Self {
        Self { direction, next: 0, saw_full: false }
    }

    /// As [`Producer::take_over`], for the consumer's end.
    pub fn take_over(direction: QueueDirection, page: &PageWords) -> Self {
        let next = load(page, direction.consumer_word(), Ordering::Acquire);
        // The earlier consumer may have owed the producer a signal.
        Self { direction, next, saw_full: true }
    }

    /// The index of the next message.
    pub const fn index(&self) -> u32 {
        self.next
    }

    /// Whether [`Consumer::pop`] would return anything but [`Popped::Empty`], an error included.
    pub fn has_news(&self, page: &PageWords) -> bool {
        // Relaxed: the caller reads no slot because of it; `pop` loads the index again.
        load(page, self.direction.producer_word(), Ordering::Relaxed) != self.next
    }

    /// Copies the oldest message into `buffer` and frees its slot.
    ///
    /// `max_size` is the negotiated maximum message size in bytes.
    ///
    /// # Errors
    /// [`Corrupt`] if the producer's index is impossible; the caller must not use the queue again.
    pub fn pop(
        &mut self,
        page: &PageWords,
        max_size: usize,
        buffer: &mut [u8; SLOT_SIZE],
    ) -> Result<Popped, Corrupt> {
        let popped = self.peek(page, max_size, buffer)?;
        if popped != Popped::Empty {
            self.free(page);
        }
        Ok(popped)
    }

    /// As [`Consumer::pop`], but the message stays in its slot until [`Consumer::free`].
    ///
    /// # Errors
    /// As there.
    pub fn peek(
        &mut self,
        page: &PageWords,
        max_size: usize,
        buffer: &mut [u8; SLOT_SIZE],
    ) -> Result<Popped, Corrupt> {
        // Acquire pairs with the producer's Release: it has written the slots before the index.
        let producer = load(page, self.direction.producer_word(), Ordering::Acquire);
        let waiting = producer.wrapping_sub(self.next);
        if waiting > SLOTS {
            return Err(Corrupt { ours: self.next, theirs: producer });
        }
        if waiting == 0 {
            return Ok(Popped::Empty);
        }
        let slot = self.direction.slot(page, self.next);
        let mut header = [0; HEADER_SIZE];
        read_words(slot, &mut header);
        let size = usize::from(Header::size_of(header));
        let well_sized = (HEADER_SIZE..=max_size.min(SLOT_SIZE)).contains(&size);
        if let (true, Some((head, body))) = (well_sized, buffer.split_at_mut_checked(HEADER_SIZE)) {
            // The buffer gets the header that was checked: we read it from the page once.
            head.iter_mut().zip(header).for_each(|(to, from)| *to = from);
            let rest = body.get_mut(..size.saturating_sub(HEADER_SIZE)).unwrap_or(&mut []);
            read_words(slot.get(HEADER_SIZE / 4..).unwrap_or(&[]), rest);
        }
        Ok(if well_sized { Popped::Message { size } } else { Popped::Malformed { size } })
    }

    /// Frees the slot of the message that [`Consumer::peek`] returned.
    pub fn free(&mut self, page: &PageWords) {
        self.next = self.next.wrapping_add(1);
        // Release pairs with the producer's Acquire: we have read the slot.
        store(page, self.direction.consumer_word(), self.next, Ordering::Release);
        // Pairs with the producer's fence. The queue may have become full while we read the slot.
        fence(Ordering::SeqCst);
        let producer = load(page, self.direction.producer_word(), Ordering::Relaxed);
        self.saw_full |= producer.wrapping_sub(self.next) >= SLOTS - 1;
    }

    /// Whether the queue was full when the consumer freed a slot since the last call, so that it
    /// must signal the producer, which may wait for a free slot [4.5]. Callers drain the queue
    /// before this call.
    pub fn take_saw_full(&mut self) -> bool {
        core::mem::take(&mut self.saw_full)
    }
}

/// The number of the word at a byte offset.
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

/// Writes a slot. Relaxed: the producer's index orders the slot's words.
fn write_words(slot: &[AtomicU32], bytes: &[u8]) {
    for (word, chunk) in slot.iter().zip(bytes.chunks(4)) {
        let mut value = [0; 4];
        value.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
        word.store(u32::from_ne_bytes(value), Ordering::Relaxed);
    }
}

/// Reads a slot. Relaxed: the producer's index orders the slot's words.
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
    fn spec_4_1_slots_fill_the_page_without_overlap() {
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
        assert!(seen[..64].iter().all(|n| *n == 0), "the first 256 bytes hold the indices");
        assert!(seen[64..].iter().all(|n| *n == 1));
    }

    #[test]
    fn spec_4_2_messages_arrive_in_order_after_slots_wrap() {
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
    fn spec_4_2_index_may_wrap() {
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
    fn ends_take_over_where_the_page_says() {
        let (page, (mut producer, mut consumer)) = (page(), ends());
        let mut buffer = [0; SLOT_SIZE];
        for number in 0..5 {
            producer.push(&page, &ping(number)).unwrap();
            consumer.pop(&page, 264, &mut buffer).unwrap();
        }
        producer.push(&page, &ping(5)).unwrap();
        let peeked = consumer.peek(&page, 264, &mut buffer);
        assert_eq!(peeked, Ok(Popped::Message { size: 12 }));
        let direction = QueueDirection::DriverToDevice;
        let mut producer = Producer::take_over(direction, &page);
        let mut consumer = Consumer::take_over(direction, &page);
        assert_eq!((producer.index(), consumer.index()), (6, 5));
        producer.push(&page, &ping(6)).unwrap();
        for number in 5..7 {
            consumer.pop(&page, 264, &mut buffer).unwrap();
            assert_eq!(buffer[..12], ping(number), "a message that was not freed is there again");
        }
        assert_eq!(consumer.pop(&page, 264, &mut buffer), Ok(Popped::Empty));
    }

    #[test]
    fn spec_4_5_full_queue_refuses_messages_and_consumer_must_signal() {
        let (page, (mut producer, mut consumer)) = (page(), ends());
        for number in 0..SLOTS {
            producer.push(&page, &ping(number)).unwrap();
        }
        assert_eq!(producer.push(&page, &ping(9)), Err(PushError::Full));
        consumer.pop(&page, 264, &mut [0; SLOT_SIZE]).unwrap();
        assert!(consumer.take_saw_full());
        assert!(!consumer.take_saw_full(), "the first call clears it");
        producer.push(&page, &ping(9)).unwrap();
    }

    #[test]
    fn spec_4_3_own_index_is_not_read_back() {
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
    fn spec_5_3_impossible_size_drops_the_message_and_keeps_the_next() {
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
    fn message_longer_than_a_slot_is_refused() {
        let (page, (mut producer, _)) = (page(), ends());
        assert_eq!(producer.push(&page, &[0; SLOT_SIZE + 1]), Err(PushError::TooLong));
    }
}
