//! The requests of a queue that the device has not given back, for a device that goes on in another
//! domain [2.16].
//!
//! The next device starts where the used ring ends, and finds in the available ring whatever comes
//! after that. A request that took long is not there any more: later ones have taken its place. So
//! the driver's side notes which requests are unfinished, and writes them there again.
//!
//! Only the driver knows when they make a request available and when they take it back. But it
//! unmaps the first buffer of a request, or its table of descriptors, while it takes it back. At
//! this moment the request is still in the used ring: its place there is written again only after
//! the driver has freed its descriptor. For the same reason all requests that were made available
//! since the last such moment are still in the available ring.

use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

/// Maximum number of entries of a queue whose requests are noted.
pub const MOST_ENTRIES: usize = 1024;
/// Requests in one word of the set.
const BITS: usize = u64::BITS as usize;

/// A split ring in the driver's memory (virtio 1.2, section 2.7), little-endian.
#[derive(Clone, Copy, Debug)]
pub struct Ring<'a> {
    /// The descriptors, of two words each; the first word is the address.
    pub descriptors: &'a [AtomicU64],
    /// The available ring: flags, index, and the heads of the requests.
    pub available: &'a [AtomicU16],
    /// The used ring: flags and index in one word, then a head and a length for each request.
    pub used: &'a [AtomicU32],
}

impl Ring<'_> {
    /// Number of words of the available ring before the requests.
    const BEFORE_AVAILABLE: usize = 2;
    /// The same of the used ring.
    const BEFORE_USED: usize = 1;

    fn address(self, head: u16) -> Option<u64> {
        let word = self.descriptors.get(usize::from(head) * 2)?;
        Some(u64::from_le(word.load(Ordering::Relaxed)))
    }

    /// Relaxed: the driver writes requests and index under the lock of its queue, which the caller
    /// holds, or which nobody holds any more.
    fn available_index(self) -> u16 {
        self.available.get(1).map_or(0, |word| u16::from_le(word.load(Ordering::Relaxed)))
    }

    /// Acquire: pairs with the device's release of the index, after it wrote the requests.
    fn used_index(self) -> u16 {
        let word = self.used.first().map_or(0, |word| u32::from_le(word.load(Ordering::Acquire)));
        (word >> u16::BITS) as u16
    }

    fn available(&self, place: usize) -> Option<&AtomicU16> {
        self.available.get(Self::BEFORE_AVAILABLE + place)
    }

    /// The head of a request that was given back, as the device wrote it.
    fn used(self, place: usize) -> Option<u16> {
        let word = self.used.get(Self::BEFORE_USED + 2 * place)?;
        u16::try_from(u32::from_le(word.load(Ordering::Relaxed))).ok()
    }
}

/// The unfinished requests of one queue.
#[derive(Clone, Debug)]
pub struct Unfinished {
    /// Number of entries of the queue: a power of two.
    entries: u16,
    /// The index of the available ring up to which requests are noted.
    made: u16,
    /// The index of the used ring up to which the driver has taken requests back.
    taken: u16,
    /// A bit for each head.
    heads: [u64; MOST_ENTRIES / BITS],
}

/// What was noted does not agree with the ring, which the device has written wrongly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disagrees;

impl Unfinished {
    /// None, of a queue that was just made. `None` if it has too many entries, or their number is
    /// no power of two.
    pub fn new(entries: u32) -> Option<Self> {
        let entries = u16::try_from(entries).ok()?;
        let is_usable = entries.is_power_of_two() && usize::from(entries) <= MOST_ENTRIES;
        is_usable.then_some(Self { entries, made: 0, taken: 0, heads: [0; MOST_ENTRIES / BITS] })
    }

    fn place(&self, index: u16) -> usize {
        usize::from(index & self.entries.wrapping_sub(1))
    }

    fn is_unfinished(&self, head: u16) -> bool {
        let word = self.heads.get(usize::from(head) / BITS);
        word.is_some_and(|word| word >> (usize::from(head) % BITS) & 1 != 0)
    }

    fn set(&mut self, head: u16, unfinished: bool) {
        let bit = 1 << (usize::from(head) % BITS);
        if let Some(word) = self.heads.get_mut(usize::from(head) / BITS) {
            *word = if unfinished { *word | bit } else { *word & !bit };
        }
    }

    /// Notes the requests that were made available since the last time. There are at most as many
    /// as the queue has entries.
    fn note_made(&mut self, ring: Ring<'_>) {
        let available = ring.available_index();
        while self.made != available {
            if let Some(head) = ring.available(self.place(self.made)) {
                self.set(u16::from_le(head.load(Ordering::Relaxed)), true);
            }
            self.made = self.made.wrapping_add(1);
        }
    }

    /// The driver unmaps a buffer at this address. Notes the request that it takes back, if the
    /// buffer is the first of one; returns whether it is.
    pub fn unmapped(&mut self, ring: Ring<'_>, address: u64) -> bool {
        if self.taken == ring.used_index() {
            return false;
        }
        let Some(head) = ring.used(self.place(self.taken)) else { return false };
        if head >= self.entries || ring.address(head) != Some(address) {
            return false;
        }
        self.note_made(ring);
        self.set(head, false);
        self.taken = self.taken.wrapping_add(1);
        true
    }

    /// Writes the unfinished requests into the available ring from where the used ring ends; the
    /// next device finds them there. The driver has taken back all that the used ring has, and does
    /// nothing meanwhile. Returns their number.
    ///
    /// # Errors
    /// [`Disagrees`]; then nothing was written.
    pub fn list_again(&mut self, ring: Ring<'_>) -> Result<u16, Disagrees> {
        self.note_made(ring);
        let count = self.heads.iter().map(|word| word.count_ones()).sum::<u32>();
        let between = self.made.wrapping_sub(self.taken);
        if self.taken != ring.used_index() || count != u32::from(between) || between > self.entries
        {
            return Err(Disagrees);
        }
        let mut index = self.taken;
        for head in (0..self.entries).filter(|head| self.is_unfinished(*head)) {
            if let Some(word) = ring.available(self.place(index)) {
                word.store(head.to_le(), Ordering::Relaxed);
            }
            index = index.wrapping_add(1);
        }
        Ok(between)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::collections::VecDeque;
    use std::vec::Vec;

    use super::*;

    const ENTRIES: u16 = 8;

    /// A ring, a driver and a device that gives requests back in any order.
    struct World {
        descriptors: Vec<AtomicU64>,
        available: Vec<AtomicU16>,
        used: Vec<AtomicU32>,
        noted: Unfinished,
        /// The heads of no request, and the number of requests ever.
        free: Vec<u16>,
        made: u64,
        /// What the device has, and how many it gave back that the driver has not taken.
        held: Vec<u16>,
        given: VecDeque<u16>,
    }

    impl World {
        fn new() -> Self {
            let entries = usize::from(ENTRIES);
            Self {
                descriptors: (0..2 * entries).map(|_| AtomicU64::new(0)).collect(),
                available: (0..entries + 3).map(|_| AtomicU16::new(0)).collect(),
                used: (0..2 * entries + 2).map(|_| AtomicU32::new(0)).collect(),
                noted: Unfinished::new(ENTRIES.into()).unwrap(),
                free: (0..ENTRIES).collect(),
                made: 0,
                held: Vec::new(),
                given: VecDeque::new(),
            }
        }

        fn ring(&self) -> Ring<'_> {
            let Self { descriptors, available, used, .. } = self;
            Ring { descriptors, available, used }
        }

        /// The driver makes a request available. Addresses are used again, as those of a pool are.
        fn make(&mut self) {
            let Some(head) = self.free.pop() else { return };
            let address = 0x1000 * (1 + self.made % 11);
            self.descriptors[usize::from(head) * 2].store(address, Ordering::Relaxed);
            let index = self.ring().available_index();
            let place = 2 + usize::from(index % ENTRIES);
            self.available[place].store(head, Ordering::Relaxed);
            self.available[1].store(index.wrapping_add(1), Ordering::Relaxed);
            self.held.push(head);
            self.made += 1;
        }

        /// The device gives one of its requests back.
        fn give(&mut self, choice: usize) {
            if self.held.is_empty() {
                return;
            }
            let head = self.held.swap_remove(choice % self.held.len());
            let index = self.ring().used_index();
            let place = 1 + 2 * usize::from(index % ENTRIES);
            self.used[place].store(head.into(), Ordering::Relaxed);
            let word = u32::from(index.wrapping_add(1)) << 16;
            self.used[0].store(word, Ordering::Relaxed);
            self.given.push_back(head);
        }

        /// The driver takes one back, and unmaps three buffers of it.
        fn take(&mut self) {
            let Some(head) = self.given.pop_front() else { return };
            let mut noted = self.noted.clone();
            let first = self.ring().address(head).unwrap();
            assert!(!noted.unmapped(self.ring(), 0x123_0000), "an address of no request");
            assert!(noted.unmapped(self.ring(), first));
            assert!(!noted.unmapped(self.ring(), first + 0x800));
            self.noted = noted;
            self.free.insert(0, head);
        }

        /// Has the next device take what it finds, and compares it with what is unfinished.
        fn compare(&mut self) {
            while !self.given.is_empty() {
                self.take();
            }
            let mut noted = self.noted.clone();
            let count = noted.list_again(self.ring()).unwrap();
            let used = self.ring().used_index();
            assert_eq!(used.wrapping_add(count), self.ring().available_index());
            let place = |back: u16| 2 + usize::from(used.wrapping_add(back) % ENTRIES);
            let head = |back| self.available[place(back)].load(Ordering::Relaxed);
            let mut found: Vec<u16> = (0..count).map(head).collect();
            let mut held = self.held.clone();
            found.sort_unstable();
            held.sort_unstable();
            assert_eq!(found, held);
        }
    }

    #[test]
    fn spec_2_16_unfinished_requests_are_listed_again() {
        let mut world = World::new();
        let mut random = 1u32;
        for step in 0..300_000 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            match random >> 29 {
                0..=2 => world.make(),
                // One request stays for a long time, and others pass it.
                3 | 4 => world.give(1 + (random >> 8) as usize % 3),
                5 | 6 => world.take(),
                _ if step % 64 == 0 => world.compare(),
                _ => world.give((random >> 8) as usize),
            }
        }
        assert!(world.made > 70_000, "{} requests: the indices wrapped around", world.made);
        world.compare();
    }

    #[test]
    fn request_that_others_have_passed_is_listed_again() {
        let mut world = World::new();
        world.make();
        let slow = world.held[0];
        for _ in 0..20 {
            world.make();
            world.give(1);
            world.take();
        }
        assert_eq!(world.held, [slow]);
        world.compare();
    }

    #[test]
    fn ring_that_the_device_wrote_wrongly_is_refused() {
        let mut world = World::new();
        world.make();
        world.make();
        world.used[0].store(5 << 16, Ordering::Relaxed);
        assert_eq!(world.noted.clone().list_again(world.ring()), Err(Disagrees));
        // A head that no queue has, or that is not the one taken back.
        for head in [u32::from(ENTRIES), u32::MAX, 3] {
            world.used[1].store(head, Ordering::Relaxed);
            assert!(!world.noted.clone().unmapped(world.ring(), 0x1000));
        }
    }

    #[test]
    fn queue_with_too_many_entries_is_not_noted() {
        for entries in [0, 3, 2048, 65536] {
            assert!(Unfinished::new(entries).is_none(), "{entries}");
        }
        assert!(Unfinished::new(1024).is_some());
    }
}
