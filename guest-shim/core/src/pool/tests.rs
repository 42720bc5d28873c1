//! Tests of the pool's allocator, with one thread and with several.

extern crate std;
use core::sync::atomic::AtomicBool;
use std::thread;
use std::vec::Vec;

use protocol::grant::PAGE_SIZE;
use protocol::pool::PoolPage;

use super::*;

const PAGE: u64 = PAGE_SIZE;

fn pool(chunks: u32) -> Pool {
    let pool = Pool::new();
    pool.open(chunks);
    pool
}

/// Takes buffers of these lengths, on one processor; returns the numbers of their first pages.
fn taken(pool: &Pool, lengths: &[u64]) -> Vec<u32> {
    let pages = |location: PoolLocation| {
        location.chunk * CHUNK_PAGES + location.start() / Unit::Page.bytes()
    };
    lengths.iter().map(|length| pages(pool.take(*length, 0).unwrap())).collect()
}

/// Returns `pages` pages from `first` on to the pool.
fn give_back(pool: &Pool, first: u32, pages: u64) -> Result<(), NotTaken> {
    pool.give_back(find(PoolPage(first).address(0), pages * PAGE).unwrap())
}

#[test]
fn spec_3_10_buffer_lies_in_consecutive_pages_of_one_chunk() {
    let pool = pool(2);
    assert_eq!(taken(&pool, &[513, PAGE, PAGE + 1, 53 * PAGE]), [8, 9, 10, 64]);
    assert_eq!(taken(&pool, &[52 * PAGE, 11 * PAGE]), [12, 117], "free pages are found");
    assert_eq!(pool.take(PAGE, 0), Err(TakeError::Exhausted));
    assert_eq!(pool.in_use(), 120);
}

#[test]
fn spec_3_10_only_open_chunks_are_taken_from() {
    let pool = Pool::new();
    assert_eq!(pool.take(1, 0), Err(TakeError::Exhausted));
    assert_eq!(pool.take(PAGE, 0), Err(TakeError::Exhausted));
    pool.open(1);
    assert_eq!(taken(&pool, &[1, 56 * PAGE]), [0, 8]);
    assert_eq!(pool.take(PAGE, 1), Err(TakeError::Exhausted));
    pool.open(2);
    assert_eq!(taken(&pool, &[64 * PAGE]), [64]);
    // After a reset of the device nothing can be taken, but taken pages can be returned.
    pool.open(0);
    assert_eq!(give_back(&pool, 8, 56), Ok(()));
    assert_eq!((pool.take(1, 0), pool.in_use()), (Err(TakeError::Exhausted), 65));
}

#[test]
fn spec_3_10_small_buffers_share_a_page_without_overlap() {
    let pool = pool(1);
    let address = |length| pool.take(length, 0).map(PoolLocation::address);
    let lengths = [1, 16, 64, 65, 512, 48];
    let starts = [0, 64, 128, 192, 320, 832].map(|offset| Ok(PoolPage(0).address(offset)));
    assert_eq!(lengths.map(address), starts);
    assert_eq!(pool.in_use(), 1, "page");
    let location = find(PoolPage(0).address(200), 57).unwrap();
    assert_eq!(
        (location.unit, location.first, location.count, location.offset),
        (Unit::Slot, 3, 2, 8)
    );
    for (length, start) in lengths.into_iter().zip(starts) {
        assert_eq!(pool.give_back(find(start.unwrap(), length).unwrap()), Ok(()));
    }
    assert_eq!(pool.in_use(), 0);
}

#[test]
fn small_buffer_gets_a_page_if_slots_are_exhausted() {
    let pool = pool(1);
    for _ in 0..u64::from(SLOT_PAGES) * 8 {
        assert!(pool.take(512, 0).is_ok_and(|location| location.unit == Unit::Slot));
    }
    assert_eq!(taken(&pool, &[1, 512]), [8, 9]);
    assert_eq!(pool.in_use(), SLOT_PAGES + 2);
}

#[test]
fn returned_pages_are_taken_again() {
    let pool = pool(1);
    taken(&pool, &[PAGE, 3 * PAGE, 52 * PAGE]);
    assert_eq!(give_back(&pool, 9, 3), Ok(()));
    assert_eq!(give_back(&pool, 9, 3), Err(NotTaken), "twice");
    assert_eq!(pool.take(4 * PAGE, 0), Err(TakeError::Exhausted));
    assert_eq!(taken(&pool, &[PAGE, 2 * PAGE]), [9, 10]);
}

#[test]
fn processors_start_at_different_words() {
    let pool = pool(3);
    let chunks = [0, 1, 2, 3].map(|processor| pool.take(PAGE, processor).unwrap().chunk);
    assert_eq!(chunks, [0, 1, 2, 0]);
    let pages = [0, 1, 8].map(|processor| pool.take(1, processor).unwrap().first / 64);
    assert_eq!(pages, [0, 1, 0]);
}

#[test]
fn buffers_that_fit_no_chunk_are_refused() {
    let pool = pool(2);
    for length in [0, MAX_POOLED_BYTES + 1, u64::MAX] {
        assert_eq!(pool.take(length, 0), Err(TakeError::Unfit));
    }
    assert_eq!(taken(&pool, &[MAX_POOLED_BYTES]), [64]);
}

#[test]
fn spec_7_pool_of_too_many_chunks_takes_nothing() {
    let pool = pool(u32::MAX);
    assert_eq!(pool.take(1, 0), Err(TakeError::Exhausted), "more chunks than MAX_CHUNKS");
}

#[test]
fn spec_5_11_chunk_with_a_buffer_is_not_retired() {
    let pool = pool(2);
    assert_eq!(taken(&pool, &[56 * PAGE, PAGE]), [8, 64]);
    assert!(!pool.retire_last());
    assert_eq!(give_back(&pool, 64, 1), Ok(()));
    assert!(pool.retire_last());
    assert_eq!((pool.chunks(), pool.in_use()), (1, 56));
    assert!(!pool.retire_last(), "the first chunk has slots");
}

#[test]
fn spec_5_11_nothing_is_taken_from_a_retired_chunk() {
    let pool = pool(3);
    assert!(pool.retire_last() && pool.retire_last());
    // As one who has read the number of chunks before does.
    pool.open(3);
    assert_eq!(taken(&pool, &[56 * PAGE]), [8]);
    assert_eq!(pool.take(PAGE, 2), Err(TakeError::Exhausted));
    assert_eq!(pool.in_use(), 56);
    pool.restore(1);
    pool.restore(1);
    assert_eq!(taken(&pool, &[64 * PAGE]), [64]);
    pool.restore(1);
    pool.restore(2);
    assert_eq!((taken(&pool, &[64 * PAGE]), pool.in_use()), ([128].to_vec(), 56 + 128));
    pool.restore(MAX_CHUNKS);
}

#[test]
fn chunks_are_touched_by_pages_not_by_slots() {
    let pool = pool(3);
    assert_eq!(taken(&pool, &[1, 56 * PAGE]), [0, 8]);
    assert_eq!((pool.take_touched(), pool.take_touched()), (0b1, 0));
    assert_eq!(taken(&pool, &[1]), [0]);
    assert_eq!(pool.take_touched(), 0);
    assert_eq!(taken(&pool, &[64 * PAGE, PAGE]), [64, 128]);
    assert_eq!(pool.take_touched(), 0b110);
}

#[test]
fn empty_pool_is_not_retired() {
    assert!(!Pool::new().retire_last());
}

#[test]
fn spec_3_10_range_outside_its_chunk_is_not_found() {
    let pages = |first, offset, length| {
        find(PoolPage(first).address(offset), length).map(|location| location.count)
    };
    assert_eq!(pages(64, 0, MAX_POOLED_BYTES), Some(64));
    assert_eq!(pages(64, 1, MAX_POOLED_BYTES), None);
    assert_eq!(pages(63, 0, PAGE), Some(1));
    assert_eq!(pages(63, 4095, 2), None);
    assert_eq!(pages(0, 0, u64::from(MAX_POOL_PAGES) * PAGE), None);
    assert_eq!(find(1 << 63, 1), None, "granted");
    assert_eq!(find(0x1000, 1), None, "raw");
}

#[test]
fn find_returns_the_taken_location() {
    let pool = pool(3);
    for length in [1, 64, 65, 512, 513, PAGE, PAGE + 1, 9 * PAGE] {
        let location = pool.take(length, 1).unwrap();
        assert_eq!(find(location.address(), length), Some(location), "{length} bytes");
    }
}

/// Marks the slots of `location` as taken or free; fails if one of them is so marked already.
fn mark(held: &[AtomicBool], location: PoolLocation, taken: bool) {
    let first = (location.chunk * CHUNK_PAGES * Unit::Page.bytes() + location.start()) / 64;
    let slots = location.count * location.unit.bytes() / 64;
    for slot in held.iter().skip(first as usize).take(slots as usize) {
        assert_ne!(slot.swap(taken, Ordering::Relaxed), taken, "{location:?}");
    }
}

#[test]
fn concurrent_threads_never_take_the_same_units() {
    let pool = pool(2);
    let held: Vec<_> = (0..2 * 64 * 64).map(|_| AtomicBool::new(false)).collect();
    thread::scope(|scope| {
        for thread in 0..4_u64 {
            let (pool, held) = (&pool, &held);
            scope.spawn(move || {
                for round in 0..30_000_u64 {
                    // Mostly short buffers, so that threads contend for the words of the pool
                    // and not for the marks.
                    let length = if round % 50 == thread { 20 * PAGE } else { 1 + round % 300 };
                    let Ok(location) = pool.take(length, 0) else { continue };
                    mark(held, location, true);
                    mark(held, location, false);
                    pool.give_back(location).unwrap();
                }
            });
        }
    });
    assert_eq!(pool.in_use(), 0);
}

#[test]
fn chunk_is_retired_and_restored_beside_threads_that_take() {
    let pool = pool(2);
    let held: Vec<_> = (0..2 * 64 * 64).map(|_| AtomicBool::new(false)).collect();
    let (ended, mut retired) = (AtomicBool::new(false), 0);
    thread::scope(|scope| {
        let threads = [0, 1].map(|processor| {
            let (pool, held) = (&pool, &held);
            scope.spawn(move || {
                for _ in 0..30_000 {
                    let Ok(location) = pool.take(PAGE, processor) else { continue };
                    mark(held, location, true);
                    mark(held, location, false);
                    pool.give_back(location).unwrap();
                }
            })
        });
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                if pool.retire_last() {
                    let (start, end) = (64 * 64, 2 * 64 * 64);
                    let is_free = |slot: &AtomicBool| !slot.load(Ordering::Relaxed);
                    assert!(held[start..end].iter().all(is_free));
                    pool.restore(1);
                    pool.open(2);
                    retired += 1;
                }
            }
        });
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        ended.store(true, Ordering::Relaxed);
    });
    assert_eq!(pool.in_use(), 0);
    std::println!("retired {retired} times");
}
