//! The message page, against a hostile peer that writes to it.

use std::sync::atomic::{AtomicU32, Ordering};

use arbitrary::{Arbitrary, Result, Unstructured};
use protocol::page::{
    Consumer, PageWords, Popped, Producer, PushError, QueueDirection, SLOT_SIZE, SLOTS,
};

/// Size of a message's header in bytes, the smallest valid message.
const HEADER: usize = 8;

#[derive(Arbitrary, Debug)]
enum Step {
    Push {
        length: u16,
        fill: u8,
    },
    Pop {
        max_size: u16,
    },
    HasNews,
    TakeSawFull,
    /// The peer writes a message with this size in its header into the next slot, and advances its
    /// index.
    Send {
        size: u16,
        fill: u8,
    },
    /// The peer overwrites one of the four indices.
    Write {
        index: u8,
        value: u32,
    },
    /// The peer overwrites any word of the page.
    WriteAnywhere {
        word: u16,
        value: u32,
    },
    /// The peer moves an index by a little.
    Move {
        index: u8,
        by: i8,
    },
}

pub(crate) fn run(bytes: &[u8]) {
    // An input that ends within a step ends the run.
    let _ = play(&mut Unstructured::new(bytes));
}

fn play(input: &mut Unstructured<'_>) -> Result<()> {
    let page: Box<PageWords> = Box::new(std::array::from_fn(|_| AtomicU32::new(0)));
    let mut producer = Producer::new(QueueDirection::DeviceToDriver);
    let mut consumer = Consumer::new(QueueDirection::DriverToDevice);
    let (mut corrupt, mut sent) = (false, 0u32);
    while !input.is_empty() && !corrupt {
        match input.arbitrary()? {
            Step::Push { length, fill } => corrupt = push(&page, &mut producer, length, fill),
            Step::Pop { max_size } => corrupt = pop(&page, &mut consumer, max_size),
            Step::Send { size, fill } => {
                let slot = 0x100 / 4 + (sent % SLOTS) as usize * SLOT_SIZE / 4;
                let words = &page[slot..slot + SLOT_SIZE / 4];
                let fill = u32::from_ne_bytes([fill; 4]);
                words.iter().for_each(|word| word.store(fill, Ordering::Relaxed));
                // The size is the header's last field.
                words[1].store(u32::from(size).to_le() << 16, Ordering::Relaxed);
                sent = sent.wrapping_add(1);
                page[0].store(sent.to_le(), Ordering::Release);
            }
            Step::HasNews => drop(consumer.has_news(&page)),
            Step::TakeSawFull => drop(consumer.take_saw_full()),
            Step::Write { index, value } => index_of(&page, index).store(value, Ordering::Relaxed),
            Step::WriteAnywhere { word, value } => {
                page[usize::from(word) % page.len()].store(value, Ordering::Relaxed);
            }
            Step::Move { index, by } => {
                index_of(&page, index).fetch_add(by as u32, Ordering::Relaxed);
            }
        }
    }
    Ok(())
}

/// One of the four indices, which are 64 bytes apart.
fn index_of(page: &PageWords, index: u8) -> &AtomicU32 {
    &page[usize::from(index % 4) * 16]
}

/// Pushes a message; returns whether the producer found the page corrupt. Only its own slots and
/// index may change.
fn push(page: &PageWords, producer: &mut Producer, length: u16, fill: u8) -> bool {
    let before = snapshot(page);
    let message = vec![fill; usize::from(length)];
    let outcome = producer.push(page, &message);
    let changed = |word: usize| page[word].load(Ordering::Relaxed) != before[word];
    let own = |word: &usize| *word == 0x80 / 4 || *word >= 0x880 / 4;
    assert!((0..page.len()).filter(|word| changed(*word)).all(|word| own(&word)));
    assert_eq!(outcome == Err(PushError::TooLong), message.len() > SLOT_SIZE);
    if outcome.is_err() {
        assert!(!(0..page.len()).any(changed), "an error changes nothing");
    }
    matches!(outcome, Err(PushError::Corrupt(_)))
}

/// Pops a message; returns whether the consumer found the page corrupt.
fn pop(page: &PageWords, consumer: &mut Consumer, max_size: u16) -> bool {
    let mut buffer = [0xee; SLOT_SIZE];
    let max_size = usize::from(max_size);
    match consumer.pop(page, max_size, &mut buffer) {
        Ok(Popped::Message { size }) => {
            assert!((HEADER..=max_size.min(SLOT_SIZE)).contains(&size));
            assert_eq!(usize::from(u16::from_le_bytes([buffer[6], buffer[7]])), size);
            assert!(
                buffer[size..].iter().all(|byte| *byte == 0xee),
                "no byte after the message changes"
            );
        }
        Ok(Popped::Malformed { size }) => {
            assert!(!(HEADER..=max_size.min(SLOT_SIZE)).contains(&size));
            assert_eq!(buffer, [0xee; SLOT_SIZE]);
        }
        Ok(Popped::Empty) => {}
        Err(corrupt) => {
            assert!(corrupt.theirs.wrapping_sub(corrupt.ours) > SLOTS);
            return true;
        }
    }
    false
}

fn snapshot(page: &PageWords) -> Vec<u32> {
    page.iter().map(|word| word.load(Ordering::Relaxed)).collect()
}
