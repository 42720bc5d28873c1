extern crate std;
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::thread;
use std::vec::Vec;

use super::*;

const PAGE: u64 = PAGE_SIZE;

fn pool(chunks: u32) -> Pool {
    let pool = Pool::new();
    pool.open(chunks);
    pool
}

/// Takes what is asked for, by one processor; gives the first pages.
fn taken(pool: &Pool, lengths: &[u64]) -> Vec<u32> {
    lengths.iter().map(|length| pool.take(*length, 0).unwrap().0).collect()
}

#[test]
fn spec_3_10_a_buffer_lies_in_consecutive_pages_of_one_chunk() {
    let pool = pool(2);
    assert_eq!(taken(&pool, &[1, PAGE, PAGE + 1, 61 * PAGE]), [0, 1, 2, 64]);
    assert_eq!(taken(&pool, &[60 * PAGE, 3 * PAGE]), [4, 125], "what is free is found");
    assert_eq!(pool.take(1, 0), Err(TakeError::Exhausted));
    assert_eq!(pool.in_use(), 128);
}

#[test]
fn spec_3_10_pages_are_taken_of_chunks_that_are_shared() {
    let pool = Pool::new();
    assert_eq!(pool.take(1, 0), Err(TakeError::Exhausted));
    pool.open(1);
    assert_eq!(taken(&pool, &[64 * PAGE]), [0]);
    assert_eq!(pool.take(1, 1), Err(TakeError::Exhausted));
    pool.open(2);
    assert_eq!(taken(&pool, &[PAGE]), [64]);
    // The device was reset: no more is taken, and what was taken is given back.
    pool.open(0);
    assert_eq!(pool.give_back(PoolPage(0), 64), Ok(()));
    assert_eq!((pool.take(1, 0), pool.in_use()), (Err(TakeError::Exhausted), 1));
}

#[test]
fn what_is_given_back_is_taken_again() {
    let pool = pool(1);
    taken(&pool, &[PAGE, 3 * PAGE, 60 * PAGE]);
    assert_eq!(pool.give_back(PoolPage(1), 3), Ok(()));
    assert_eq!(pool.take(4 * PAGE, 0), Err(TakeError::Exhausted));
    assert_eq!(taken(&pool, &[PAGE, 2 * PAGE]), [1, 2]);
}

#[test]
fn what_was_not_taken_is_not_given_back() {
    let pool = pool(1);
    taken(&pool, &[2 * PAGE]);
    for (first, pages) in [(1, 2), (2, 1), (0, 0), (63, 2), (0, 65), (0, u32::MAX), (64, 1)] {
        assert_eq!(pool.give_back(PoolPage(first), pages), Err(NotTaken), "{pages} from {first}");
    }
    assert_eq!(pool.give_back(PoolPage(u32::MAX), 1), Err(NotTaken));
    assert_eq!(pool.in_use(), 2);
    assert_eq!(pool.give_back(PoolPage(0), 2), Ok(()));
    assert_eq!(pool.give_back(PoolPage(0), 2), Err(NotTaken), "twice");
}

#[test]
fn each_processor_begins_at_another_chunk() {
    let pool = pool(3);
    let firsts = [0, 1, 2, 3, u32::MAX].map(|processor| pool.take(1, processor).unwrap().0);
    assert_eq!(firsts, [0, 64, 128, 1, 2]);
    assert_eq!(pool.take(64 * PAGE, 1), Err(TakeError::Exhausted));
    pool.give_back(PoolPage(128), 1).unwrap();
    assert_eq!(pool.take(64 * PAGE, 0).unwrap(), PoolPage(128));
}

#[test]
fn buffers_that_fit_no_chunk_are_granted() {
    let pool = pool(1);
    for length in [0, MAX_POOLED_BYTES + 1, u64::MAX] {
        assert_eq!(pool.take(length, 0), Err(TakeError::Unfit));
    }
    assert_eq!(pool.take(MAX_POOLED_BYTES, 0), Ok(PoolPage(0)));
}

#[test]
fn spec_7_the_pool_is_bounded() {
    assert_eq!(chunk_limit(1024, 32768), 16);
    assert_eq!(chunk_limit(u32::MAX, u32::MAX), MAX_CHUNKS);
    assert_eq!(chunk_limit(1024, 1024), 2, "few references");
    assert_eq!(chunk_limit(63, 32768), 0);
    assert_eq!(chunk_limit(0, 0), 0);
    let pool = pool(u32::MAX);
    assert_eq!(pool.take(1, 0), Err(TakeError::Exhausted), "more than there can be");
}

#[test]
fn spec_3_10_a_mapped_buffer_does_not_leave_its_chunk() {
    let pages = |first, offset, length| {
        find(PoolPage(first).address(offset), length).map(|range| range.pages)
    };
    assert_eq!(pages(0, 0, MAX_POOLED_BYTES), Some(64));
    assert_eq!(pages(0, 1, MAX_POOLED_BYTES), None);
    assert_eq!(pages(63, 0, PAGE), Some(1));
    assert_eq!(pages(63, 4095, 2), None);
    assert_eq!(pages(0, 0, u64::from(MAX_POOL_PAGES) * PAGE), None);
    assert_eq!(find(1 << 63, 1), None, "granted");
    assert_eq!(find(0x1000, 1), None, "raw");
}

#[test]
fn the_lowest_run_is_found() {
    assert_eq!(first_run(u64::MAX, 64), Some(0));
    assert_eq!(first_run(u64::MAX << 1, 64), None);
    assert_eq!(first_run(u64::MAX << 1, 63), Some(1));
    assert_eq!(first_run(0b1_1110_1101, 3), Some(5));
    assert_eq!(first_run(1 << 63, 1), Some(63));
    assert_eq!(first_run(1 << 63, 2), None, "a run does not go round");
    assert_eq!(first_run(0, 1), None);
    for pages in 1..=64 {
        assert_eq!(first_run(run_of(pages) << (64 - pages), pages), Some(64 - pages));
    }
}

#[test]
fn no_page_is_taken_twice_at_a_time() {
    let pool = pool(2);
    let held = Mutex::new(BTreeSet::new());
    thread::scope(|scope| {
        for thread in 0..4_u32 {
            let (pool, held) = (&pool, &held);
            scope.spawn(move || {
                for turn in 0..2000_u32 {
                    let count = 1 + (turn * 7 + thread) % 40;
                    let Ok(first) = pool.take(u64::from(count) * PAGE, thread) else { continue };
                    let pages = first.0..first.0 + count;
                    {
                        let mut held = held.lock().unwrap();
                        assert!(pages.clone().all(|page| held.insert(page)), "{pages:?}");
                    }
                    thread::yield_now();
                    {
                        let mut held = held.lock().unwrap();
                        assert!(pages.clone().all(|page| held.remove(&page)));
                    }
                    pool.give_back(first, count).unwrap();
                }
            });
        }
    });
    assert_eq!(pool.in_use(), 0);
}
