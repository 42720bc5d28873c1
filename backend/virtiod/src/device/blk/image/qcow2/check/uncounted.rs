//! Uncounted clusters: a kill came before the library wrote their counts.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::Damage;

/// Maximum number of clusters that are repaired. A kill leaves those of one batch, a power failure
/// those since the last flush; more than that is damage.
const MOST: usize = 1 << 16;

/// The clusters that are used once and not counted.
#[derive(Default)]
pub(super) struct Uncounted(Vec<CountLocation>);

/// The location of a cluster's count.
struct CountLocation {
    /// The offset of the refcount block.
    block: u64,
    /// The index of the count in the block.
    index: u64,
}

impl Uncounted {
    /// Adds the cluster whose count has this index in the refcount block at `block`.
    pub(super) fn add(&mut self, block: u64, index: u64) -> Result<(), Damage> {
        if self.0.len() == MOST {
            return Err(Damage::ManyUncounted { limit: MOST });
        }
        self.0.push(CountLocation { block, index });
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Sets the counts, of 2^`order` bits each, to 1, and syncs the file.
    pub(super) fn count(&self, file: &File, order: u32) -> io::Result<()> {
        for CountLocation { block, index } in &self.0 {
            let (at, one) = lowest_bit(*index, order);
            let mut byte = [0];
            file.read_exact_at(&mut byte, block + at)?;
            file.write_all_at(&byte.map(|bits| bits | one), block + at)?;
        }
        file.sync_data()
    }
}

/// The offset in the refcount block of the byte with a count's lowest bit, and that bit. Counts
/// smaller than a byte begin with its lowest bits; larger ones are big-endian.
fn lowest_bit(index: u64, order: u32) -> (u64, u8) {
    let bits = 1u64 << order;
    match bits {
        1..8 => (index * bits / 8, 1 << (index * bits % 8)),
        _ => ((index + 1) * (bits / 8) - 1, 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_every_width_are_set_without_changing_others() {
        let cases: [(u32, [u8; 8]); 7] = [
            (0, [0b0000_1000, 0, 0, 0, 0, 0, 0, 0]),
            (1, [0b0100_0000, 0, 0, 0, 0, 0, 0, 0]),
            (2, [0, 0b0001_0000, 0, 0, 0, 0, 0, 0]),
            (3, [0, 0, 0, 1, 0, 0, 0, 0]),
            (4, [0, 0, 0, 0, 0, 0, 0, 1]),
            (5, [0; 8]),
            (6, [0; 8]),
        ];
        for (order, expected) in cases {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&[0x80; 64], 512).unwrap();
            let mut uncounted = Uncounted::default();
            uncounted.add(512, 3).unwrap();
            uncounted.count(&file, order).unwrap();
            let mut bytes = [0; 64];
            file.read_exact_at(&mut bytes, 512).unwrap();
            let mut wanted = [0x80; 64];
            wanted.iter_mut().zip(expected).for_each(|(byte, bits)| *byte |= bits);
            match order {
                5 => wanted[15] |= 1,
                6 => wanted[31] |= 1,
                _ => {}
            }
            assert_eq!(bytes, wanted, "2^{order} bits");
        }
    }

    #[test]
    fn too_many_uncounted_clusters_are_damage() {
        let mut uncounted = Uncounted::default();
        (0..MOST as u64).for_each(|index| uncounted.add(512, index).unwrap());
        assert!(matches!(uncounted.add(512, 0), Err(Damage::ManyUncounted { limit: MOST })));
    }
}
