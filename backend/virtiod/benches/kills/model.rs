//! A model of a disk: what each of its sectors may hold, after requests that were in flight
//! together took effect in any order, each at some time before its answer, and perhaps several
//! times.

use std::ops::Range;

/// The content of a sector, which is this number again and again. Each write has other ones.
pub(super) type Stamp = u64;

/// A write of a sector.
#[derive(Clone, Debug)]
struct Write {
    number: u64,
    stamp: Stamp,
    submitted: u64,
    answered: Option<u64>,
}

/// The disk.
pub(super) struct Model {
    /// For each sector, the writes of which any may be the last that took effect.
    sectors: Vec<Vec<Write>>,
    /// Counts the driver's steps.
    now: u64,
}

impl Model {
    /// A disk with these sectors.
    pub(super) fn new(stamps: impl Iterator<Item = Stamp>) -> Self {
        let settled = |stamp| vec![Write { number: 0, stamp, submitted: 0, answered: Some(0) }];
        Self { sectors: stamps.map(settled).collect(), now: 0 }
    }

    /// Number of sectors.
    pub(super) fn size(&self) -> usize {
        self.sectors.len()
    }

    /// The driver submits a write of these sectors, with a stamp for each.
    pub(super) fn submit(
        &mut self,
        number: u64,
        sectors: Range<usize>,
        stamp: impl Fn(usize) -> Stamp,
    ) {
        self.now += 1;
        let submitted = self.now;
        for (index, sector) in self.sectors[sectors].iter_mut().enumerate() {
            sector.push(Write { number, stamp: stamp(index), submitted, answered: None });
        }
    }

    /// The driver takes the answer of a write. Writes that were answered before it was submitted
    /// are overwritten.
    pub(super) fn answer(&mut self, number: u64, sectors: Range<usize>) {
        self.now += 1;
        for sector in &mut self.sectors[sectors] {
            let Some(write) = sector.iter_mut().find(|write| write.number == number) else {
                // Another write that overwrote it was answered before.
                continue;
            };
            write.answered = Some(self.now);
            let submitted = write.submitted;
            sector.retain(|write| write.answered.is_none_or(|answered| answered > submitted));
        }
    }

    /// The possible contents of a sector.
    pub(super) fn stamps(&self, sector: usize) -> impl Iterator<Item = Stamp> {
        self.sectors[sector].iter().map(|write| write.stamp)
    }

    /// Notes which of its possible contents a sector has, while nothing is in flight.
    pub(super) fn conclude(&mut self, sector: usize, stamp: Stamp) {
        self.sectors[sector].retain(|write| write.stamp == stamp);
    }
}
