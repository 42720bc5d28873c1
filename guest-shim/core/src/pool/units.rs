//! Words with a bit for each of 64 units, set while the unit is taken.

use super::atomic::{AtomicU64, Ordering};

/// `count` bits in a row, from the lowest on; `count` is 1 to 64.
pub(super) const fn run(count: u32) -> u64 {
    u64::MAX >> (u64::BITS - count)
}

/// How many units of a word are taken.
pub(super) fn count(word: &AtomicU64) -> u32 {
    word.load(Ordering::Relaxed).count_ones()
}

/// Takes `count` units in a row, of one word; gives the word's number and the first unit's. Begins
/// with word `preferred`, taken modulo the words there are.
pub(super) fn claim(words: &[AtomicU64], preferred: u32, count: u32) -> Option<(u32, u32)> {
    let preferred = preferred.checked_rem(words.len() as u32)?;
    let (before, from) = words.split_at_checked(preferred as usize)?;
    let mut in_order = (preferred..).zip(from).chain((0..).zip(before));
    in_order.find_map(|(number, word)| Some((number, claim_of(word, count)?)))
}

fn claim_of(word: &AtomicU64, count: u32) -> Option<u32> {
    let mut taken = word.load(Ordering::Relaxed);
    loop {
        let first = first_run(!taken, count)?;
        let with = taken | run(count) << first;
        // Acquire: what was copied out of the units was copied before they were given back.
        match word.compare_exchange_weak(taken, with, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => return Some(first),
            Err(now) => taken = now,
        }
    }
}

/// Gives back `count` units from `first` on; not, and `false`, unless all are in the word and
/// taken.
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

/// The lowest place in `free` of `count` set bits in a row.
fn first_run(free: u64, count: u32) -> Option<u32> {
    // A bit that stays begins a run of `length`.
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
    fn the_lowest_run_is_found() {
        assert_eq!(first_run(u64::MAX, 64), Some(0));
        assert_eq!(first_run(u64::MAX << 1, 64), None);
        assert_eq!(first_run(u64::MAX << 1, 63), Some(1));
        assert_eq!(first_run(0b1_1110_1101, 3), Some(5));
        assert_eq!(first_run(1 << 63, 1), Some(63));
        assert_eq!(first_run(1 << 63, 2), None, "a run does not go round");
        assert_eq!(first_run(0, 1), None);
        for count in 1..=64 {
            assert_eq!(first_run(run(count) << (64 - count), count), Some(64 - count));
        }
    }

    #[test]
    fn what_was_not_taken_is_not_given_back() {
        let word = AtomicU64::new(0b11);
        for (first, count) in [(1, 2), (2, 1), (0, 0), (63, 2), (0, 65), (64, 1), (1, u32::MAX)] {
            assert!(!free(&word, first, count), "{count} from {first}");
        }
        assert_eq!(super::count(&word), 2);
        assert!(free(&word, 0, 2));
        assert!(!free(&word, 0, 2), "twice");
    }

    #[test]
    fn the_preferred_word_comes_first() {
        let words = [const { AtomicU64::new(0) }; 3];
        let claimed = [0, 1, 2, 3, u32::MAX].map(|preferred| claim(&words, preferred, 1));
        assert_eq!(claimed, [(0, 0), (1, 0), (2, 0), (0, 1), (0, 2)].map(Some));
        assert_eq!(claim(&words, 1, 64), None);
        assert!(free(&words[2], 0, 1));
        assert_eq!(claim(&words, 0, 64), Some((2, 0)));
        assert_eq!(claim(&[], 0, 1), None);
    }
}
