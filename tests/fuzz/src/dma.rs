//! Grants, bounced pieces and the pool's allocator of the driver side, against a model.

use std::collections::BTreeMap;

use arbitrary::{Arbitrary, Result, Unstructured};
use guest_shim::bounce::Piece;
use guest_shim::dma::{DmaDirection, MAX_MAPPING_PAGES, Plan, references};
use guest_shim::pool::{MAX_CHUNKS, MAX_POOLED_BYTES, Pool, PoolLocation, TakeError, find};
use protocol::grant::{GrantRange, GrantRef, PAGE_SIZE};
use protocol::pool::{DecodedAddress, PoolPage};

#[derive(Arbitrary, Debug)]
enum Step {
    Plan {
        physical: u64,
        length: u64,
        first: u32,
        shift: u8,
    },
    Decode {
        address: u64,
        length: u64,
    },
    Open {
        chunks: u8,
    },
    Take {
        length: u32,
        processor: u32,
    },
    GiveBack {
        which: u8,
    },
    /// Returns space that may not be taken.
    GiveBackAny {
        page: u16,
        offset: u16,
        length: u16,
    },
}

pub(crate) fn run(bytes: &[u8]) {
    // An input that ends within a step ends the run.
    let _ = play(&mut Unstructured::new(bytes));
}

fn play(input: &mut Unstructured<'_>) -> Result<()> {
    let mut pool = Model::default();
    while !input.is_empty() {
        match input.arbitrary()? {
            Step::Plan { physical, length, first, shift } => {
                plan(physical, length >> (shift % 64), GrantRef(first));
            }
            Step::Decode { address, length } => decode(address, length),
            Step::Open { chunks } => pool.pool.open(u32::from(chunks) % (MAX_CHUNKS + 1)),
            Step::Take { length, processor } => pool.take(length.into(), processor),
            Step::GiveBack { which } => pool.give_back(which),
            Step::GiveBackAny { page, offset, length } => {
                let address = PoolPage(page.into()).address(offset.into());
                pool.give_back_any(address, length.into());
            }
        }
    }
    Ok(())
}

/// Checks the plan of a buffer: its pieces cover it, and `references` returns the planned ones.
fn plan(physical: u64, length: u64, first: GrantRef) {
    for direction in [DmaDirection::ToDevice, DmaDirection::FromDevice, DmaDirection::Bidirectional]
    {
        let Ok(plan) = Plan::new(physical, length, direction) else { continue };
        assert!((1..=MAX_MAPPING_PAGES).contains(&plan.pages));
        let pieces: Vec<_> = (0..).map_while(|index| Piece::of(physical, length, index)).collect();
        assert_eq!(pieces.len(), plan.pages as usize);
        assert_eq!(pieces.iter().map(|piece| u64::from(piece.length)).sum::<u64>(), length);
        let within = |piece: &Piece| u64::from(piece.offset + piece.length) <= PAGE_SIZE;
        assert!(pieces.iter().all(within));
        let Some(address) = plan.address(first) else { continue };
        let Ok(range) = references(address.encode(), length) else {
            assert!(first.0 < protocol::grant::TOOLSTACK_REFERENCES, "{address:?}");
            continue;
        };
        assert_eq!((range.start, range.pages), (address, plan.pages));
        assert!(find(address.encode(), length).is_none(), "a grant is not in the pool");
    }
}

/// Checks that a decoded address encodes to the same address, and that its range has valid pages.
fn decode(address: u64, length: u64) {
    let _ = references(address, length);
    let _ = find(address, length);
    match DecodedAddress::decode(address, length) {
        Ok(DecodedAddress::Granted(range)) => {
            assert_eq!(GrantRange::decode(address, length), Ok(range));
            assert_eq!(range.start.encode(), address);
            let last = range.start.reference.checked_add(range.pages - 1);
            assert!(last.is_some(), "the range runs past the last reference");
        }
        Ok(DecodedAddress::Pool(range)) => {
            assert_eq!(range.first.address(range.offset), address);
            assert!(range.first.0 + range.pages <= protocol::pool::MAX_POOL_PAGES);
        }
        Err(_) => {}
    }
}

/// A pool, and the ranges of addresses in it that are taken.
#[derive(Default)]
struct Model {
    pool: Pool,
    /// End and location of each taken range, by its first address.
    taken: BTreeMap<u64, (u64, PoolLocation)>,
}

impl Model {
    fn take(&mut self, length: u64, processor: u32) {
        let chunks = self.pool.chunks();
        match self.pool.take(length, processor) {
            Ok(location) => {
                assert!(location.chunk < chunks, "the chunk is not open");
                let start = location.address();
                let end = start + u64::from(location.count * location.unit.bytes());
                assert!(end - start >= length);
                let before = self.taken.range(..end).next_back();
                assert!(before.is_none_or(|(_, (ended, _))| *ended <= start), "taken twice");
                self.taken.insert(start, (end, location));
                let found = find(start, length).expect("taken space is found");
                assert_eq!((found.chunk, found.first), (location.chunk, location.first));
            }
            Err(TakeError::Unfit) => assert!(length == 0 || length > MAX_POOLED_BYTES),
            Err(TakeError::Exhausted) => {}
        }
        self.check();
    }

    fn give_back(&mut self, which: u8) {
        let nth = usize::from(which) % self.taken.len().max(1);
        let Some((start, (_, location))) = self.taken.iter().nth(nth).map(|(s, e)| (*s, *e)) else {
            return;
        };
        self.pool.give_back(location).expect("it was taken");
        self.taken.remove(&start);
        self.check();
    }

    /// Returns space to the pool, which must refuse it unless all of it is taken, as one range or
    /// as several.
    fn give_back_any(&mut self, address: u64, length: u64) {
        let Some(location) = find(address, length) else { return };
        let start = PoolLocation { offset: 0, ..location }.address();
        let end = start + u64::from(location.count * location.unit.bytes());
        let whole = self.taken.get(&start).is_some_and(|(ended, _)| *ended == end);
        if whole {
            self.pool.give_back(location).expect("it was taken");
            self.taken.remove(&start);
        } else if !self.covers(start, end) {
            self.pool.give_back(location).expect_err("not all of it was taken");
        }
        self.check();
    }

    /// Whether all addresses from `start` to `end` are taken, as one range or as several.
    fn covers(&self, start: u64, end: u64) -> bool {
        let mut at = start;
        while at < end {
            let before = self.taken.range(..=at).next_back();
            match before {
                Some((_, (ended, _))) if *ended > at => at = *ended,
                _ => return false,
            }
        }
        true
    }

    fn check(&self) {
        let pages = |(start, (end, _)): (&u64, &(u64, PoolLocation))| {
            start / PAGE_SIZE..end.div_ceil(PAGE_SIZE)
        };
        let mut used: Vec<u64> = self.taken.iter().flat_map(pages).collect();
        used.dedup();
        assert_eq!(self.pool.in_use() as usize, used.len());
    }
}
