//! The features that a driver accepts, block by block [6.2].

use std::collections::BTreeSet;

use protocol::message::FeatureBlocks;

/// Blocks of 32 feature bits that a device has.
pub(super) const BLOCKS: u32 = 2;
/// Further blocks in which a driver may set bits, so that it can take them back (SPEC section 7).
const FURTHER_BLOCKS: usize = 64;

/// Feature bits that the driver has accepted so far.
#[derive(Debug, Default)]
pub(super) struct AcceptedFeatures {
    bits: u64,
    /// Blocks in which it has set a bit and of which no device has any.
    further: BTreeSet<u64>,
    /// There were more of these than are kept.
    too_many: bool,
}

impl AcceptedFeatures {
    /// Takes a message's blocks in the place of those with the same numbers.
    pub(super) fn update(&mut self, blocks: FeatureBlocks<'_>) {
        for (number, bits) in blocks.iter() {
            match number {
                0 => self.bits = self.bits & !u64::from(u32::MAX) | u64::from(bits),
                1 => self.bits = self.bits & u64::from(u32::MAX) | u64::from(bits) << 32,
                _ => self.update_further(number, bits),
            }
        }
    }

    fn update_further(&mut self, number: u64, bits: u32) {
        if bits == 0 {
            self.further.remove(&number);
        } else if self.further.len() < FURTHER_BLOCKS || self.further.contains(&number) {
            self.further.insert(number);
        } else {
            self.too_many = true;
        }
    }

    /// The bits of the blocks that a device has.
    pub(super) fn bits(&self) -> u64 {
        self.bits
    }

    /// Whether bit `number`, below 64, is accepted.
    pub(super) fn has(&self, number: u32) -> bool {
        self.bits & 1 << number != 0
    }

    /// Whether a bit is accepted in a block that no device has.
    pub(super) fn has_further(&self) -> bool {
        self.too_many || !self.further.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn updated(features: &mut AcceptedFeatures, first: u32, blocks: &[u32]) {
        let bytes: Vec<_> = blocks.iter().flat_map(|bits| bits.to_le_bytes()).collect();
        features.update(FeatureBlocks::new(first, &bytes));
    }

    #[test]
    fn spec_6_2_a_message_changes_its_own_blocks_alone() {
        let mut features = AcceptedFeatures::default();
        updated(&mut features, 0, &[1, 2]);
        updated(&mut features, 1, &[4]);
        assert_eq!(features.bits(), 4 << 32 | 1);
        updated(&mut features, 0, &[8]);
        assert_eq!(features.bits(), 4 << 32 | 8);
        assert!(features.has(34) && !features.has(33) && !features.has_further());
    }

    #[test]
    fn spec_6_2_bits_beyond_those_of_a_device_count_until_they_are_taken_back() {
        let mut features = AcceptedFeatures::default();
        // The last one's number is beyond what a field can hold.
        updated(&mut features, u32::MAX, &[0, 1]);
        updated(&mut features, 2, &[1]);
        assert!(features.has_further() && features.bits() == 0);
        updated(&mut features, 2, &[0]);
        assert!(features.has_further());
        updated(&mut features, u32::MAX, &[0, 0]);
        assert!(!features.has_further());
    }

    #[test]
    fn spec_6_2_blocks_without_end_take_no_memory_and_are_refused() {
        let mut features = AcceptedFeatures::default();
        (2..1000).for_each(|number| updated(&mut features, number, &[1]));
        assert_eq!(features.further.len(), FURTHER_BLOCKS);
        (2..1000).for_each(|number| updated(&mut features, number, &[0]));
        assert!(features.has_further(), "of some it is not known any more");
    }
}
