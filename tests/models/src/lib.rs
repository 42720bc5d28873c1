//! Models of shared memory. Each function runs one model through every interleaving; it panics
//! where an assertion fails in one of them.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a model panics to fail"
)]

use loom::sync::atomic;

#[path = "../../../guest-shim/protocol/src/page.rs"]
#[allow(dead_code)]
mod page;

mod message {
    pub(crate) use protocol::message::{HEADER_SIZE, Header};
}

#[path = "../../../guest-shim/core/src/pool/units.rs"]
#[allow(dead_code)]
mod units;

use loom::cell::UnsafeCell;
use loom::sync::{Arc, Notify};
use loom::thread;

use self::atomic::{AtomicU32, AtomicU64};
use self::message::HEADER_SIZE;
use self::page::{
    Consumer, PageWords, Popped, Producer, PushError, QueueDirection, SLOT_SIZE, SLOTS,
};

/// Runs `run` through every interleaving with at most `preemptions` switches between threads that
/// the scheduler forces, as loom's authors advise; voluntary switches have no bound.
fn model(preemptions: usize, run: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 100_000;
    builder.check(run);
}

/// A message of a header alone, which its token tells from others.
fn message(token: u16) -> [u8; HEADER_SIZE] {
    let ([low, high], size) = (token.to_le_bytes(), HEADER_SIZE as u8);
    [0, 2, 0, 0, low, high, size, 0]
}

/// On the heap: the stacks of loom's threads are small.
fn page() -> Arc<Box<PageWords>> {
    let words: Vec<_> = (0..1024).map(|_| AtomicU32::new(0)).collect();
    let Ok(words) = words.into_boxed_slice().try_into() else { unreachable!("as many as a page") };
    Arc::new(words)
}

/// Pops until a message comes, which must be whole.
fn pop(consumer: &mut Consumer, page: &PageWords, expected: u16) {
    let mut buffer = [0; SLOT_SIZE];
    loop {
        match consumer.pop(page, SLOT_SIZE, &mut buffer) {
            Ok(Popped::Message { size }) => {
                assert_eq!(buffer.get(..size), Some(message(expected).as_slice()));
                return;
            }
            Ok(Popped::Empty) => thread::yield_now(),
            other => panic!("{other:?}"),
        }
    }
}

/// A message that the consumer sees is whole, and messages come in the order in which they were
/// sent.
pub fn page_messages_arrive_whole_and_in_order() {
    model(3, || {
        let page = page();
        let driver = Arc::clone(&page);
        let sender = thread::spawn(move || {
            let mut producer = Producer::new(QueueDirection::DriverToDevice);
            (1..=2).for_each(|token| producer.push(&driver, &message(token)).unwrap());
        });
        let mut consumer = Consumer::new(QueueDirection::DriverToDevice);
        (1..=2).for_each(|token| pop(&mut consumer, &page, token));
        sender.join().unwrap();
    });
}

/// A slot is written again only after the consumer has read the message in it. loom does not let a
/// load see a later store, so a cell stands for the slot: the consumer reads it before it pops, the
/// producer writes it after it has pushed into the same slot, and loom fails unless one happens
/// before the other.
pub fn page_slots_are_reused_after_they_were_read() {
    model(3, || {
        let page = page();
        let slot = Arc::new(UnsafeCell::new(()));
        let mut producer = Producer::new(QueueDirection::DriverToDevice);
        let full = SLOTS as u16;
        (1..=full).for_each(|token| producer.push(&page, &message(token)).unwrap());
        let (driver, reused) = (Arc::clone(&page), Arc::clone(&slot));
        let sender = thread::spawn(move || {
            loop {
                match producer.push(&driver, &message(full + 1)) {
                    Ok(()) => return reused.with_mut(|_| ()),
                    Err(PushError::Full) => thread::yield_now(),
                    Err(error) => panic!("{error:?}"),
                }
            }
        });
        let mut consumer = Consumer::new(QueueDirection::DriverToDevice);
        slot.with(|_| ());
        (1..=full + 1).for_each(|token| pop(&mut consumer, &page, token));
        sender.join().unwrap();
    });
}

/// A producer that waits because the queue is full is signalled once a slot is free, also if the
/// queue became full while the consumer read a slot.
pub fn page_full_queue_is_signalled() {
    model(2, || {
        let page = page();
        let signal = Arc::new(Notify::new());
        let mut producer = Producer::new(QueueDirection::DriverToDevice);
        let last = SLOTS as u16 + 1;
        (1..=last - 2).for_each(|token| producer.push(&page, &message(token)).unwrap());
        let (driver, wait) = (Arc::clone(&page), Arc::clone(&signal));
        let sender = thread::spawn(move || {
            for token in last - 1..=last {
                while let Err(error) = producer.push(&driver, &message(token)) {
                    assert_eq!(error, PushError::Full);
                    wait.wait();
                }
            }
        });
        let mut consumer = Consumer::new(QueueDirection::DriverToDevice);
        let (mut buffer, mut received) = ([0; SLOT_SIZE], 0);
        while received < last {
            match consumer.pop(&page, SLOT_SIZE, &mut buffer) {
                Ok(Popped::Message { .. }) => received += 1,
                Ok(Popped::Empty) => {
                    // The end of a drain: a consumer sleeps now until the producer signals.
                    if consumer.take_saw_full() {
                        signal.notify();
                    }
                    thread::yield_now();
                }
                other => panic!("{other:?}"),
            }
        }
        sender.join().unwrap();
    });
}

/// Two processors never have the same unit, and one sees what the other did before it returned it.
pub fn pool_units_have_one_owner() {
    model(3, || {
        // All units but one are taken.
        let words = Arc::new([AtomicU64::new(u64::MAX << 1)]);
        let bytes = Arc::new(UnsafeCell::new(0_u32));
        let own = move || {
            let mut owned = 0;
            for _ in 0..2 {
                if let Some((0, first)) = units::claim(&*words, 0, 1) {
                    assert_eq!(first, 0);
                    // loom fails if another thread has the cell, or may not see what it held.
                    bytes.with_mut(|_| owned += 1);
                    assert!(units::free(&words[0], first, 1));
                }
            }
            owned
        };
        let other = thread::spawn(own.clone());
        let owned = own();
        let together = owned + other.join().unwrap();
        assert!((2..=4).contains(&together), "{together}");
    });
}
