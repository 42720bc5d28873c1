//! Words with one bit for each of 64 units. A bit is set while its unit is taken.

use super::atomic::{AtomicU64, Ordering};

/// The mask of the `count` lowest bits; `count` is 1 to 64.
pub(super) const fn run(count: u32) -> u64 {
    u64::MAX >> (u64::BITS - count)
}

/// The number of taken units in a word.
pub(super) fn count(word: &AtomicU64) -> u32 {
    word.load(Ordering::Relaxed).count_ones()
}

/// Takes `count` consecutive units of one word; returns the numbers of the word and of the first
/// unit. The search starts at word `preferred`, taken modulo the number of words.
pub(super) fn claim(words: &[AtomicU64], preferred: u32, count: u32) -> Option<(u32, u32)> {
    let preferred = preferred.checked_rem(words.len() as u32)?;
    let (before, from) = words.split_at_checked(preferred as usize)?;
    let mut in_order = (preferred..).zip(from).chain((0..).zip(before));
    in_order.find_map(|(number, word)| Some((number, claim_of(word, count)?)))
}

/// Takes all units of a word; returns whether all were free.
pub(super) fn claim_all(word: &AtomicU64) -> bool {
    word.compare_exchange(0, u64::MAX, Ordering::Acquire, Ordering::Relaxed).is_ok()
}

fn claim_of(word: &AtomicU64, count: u32) -> Option<u32> {
    let mut taken = word.load(Ordering::Relaxed);
    loop {
        let first = first_run(!taken, count)?;
        let with = taken | run(count) << first;
        // Acquire pairs with the Release in `free`: the earlier owner has copied its data out of
        // the units.
        match word.compare_exchange_weak(taken, with, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => return Some(first),
            Err(now) => taken = now,
        }
    }
}

/// Frees `count` units from `first` on. Returns `false`, and frees none, unless all of them are in
/// the word and taken.
pub(super) fn free(word: &AtomicU64, first: u32, count: u32) -> bool {
    let fits = first.checked_add(count).is_some_and(|end| end <= u64::BITS);
    if count == 0 || !fits {
        return false;
    }
    let units = run(count) << first;
    if word.load(Ordering::Relaxed) & units != units {
        return false;
    }
    word.fetch_and(!units, Ordering::Release);
    true
}

/// The lowest position of `count` consecutive set bits in `free`.
fn first_run(free: u64, count: u32) -> Option<u32> {
    // Each bit in `starts` begins a run of at least `length` set bits.
    let (mut starts, mut length) = (free, 1);
    while length < count {
        let step = length.min(count - length);
        starts &= starts >> step;
        length += step;
    }
    (starts != 0).then(|| starts.trailing_zeros())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_run_returns_the_lowest_run() {
        assert_eq!(first_run(u64::MAX, 64), Some(0));
        assert_eq!(first_run(u64::MAX << 1, 64), None);
        assert_eq!(first_run(u64::MAX << 1, 63), Some(1));
        assert_eq!(first_run(0b1_1110_1101, 3), Some(5));
        assert_eq!(first_run(1 << 63, 1), Some(63));
        assert_eq!(first_run(1 << 63, 2), None, "a run does not wrap around");
        assert_eq!(first_run(0, 1), None);
        for count in 1..=64 {
            assert_eq!(first_run(run(count) << (64 - count), count), Some(64 - count));
        }
    }

    #[test]
    fn units_that_are_not_taken_are_not_freed() {
        let word = AtomicU64::new(0b11);
        for (first, count) in [(1, 2), (2, 1), (0, 0), (63, 2), (0, 65), (64, 1), (1, u32::MAX)] {
            assert!(!free(&word, first, count), "{count} from {first}");
        }
        assert_eq!(super::count(&word), 2);
        assert!(free(&word, 0, 2));
        assert!(!free(&word, 0, 2), "twice");
    }

    #[test]
    fn claim_starts_at_the_preferred_word() {
        let words = [const { AtomicU64::new(0) }; 3];
        let claimed = [0, 1, 2, 3, u32::MAX].map(|preferred| claim(&words, preferred, 1));
        assert_eq!(claimed, [(0, 0), (1, 0), (2, 0), (0, 1), (0, 2)].map(Some));
        assert_eq!(claim(&words, 1, 64), None);
        assert!(free(&words[2], 0, 1));
        assert_eq!(claim(&words, 0, 64), Some((2, 0)));
        assert_eq!(claim(&[], 0, 1), None);
    }
}
