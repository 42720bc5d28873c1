//! The features that a driver accepts, in blocks of 32 bits [6.2].

use std::collections::BTreeSet;

use protocol::message::FeatureBlocks;

/// Number of feature blocks of a device.
pub(super) const BLOCKS: u32 = 2;
/// Maximum number of further blocks in which a driver may set bits and clear them again (SPEC
/// section 7).
const FURTHER_BLOCKS: usize = 64;

/// The feature bits that the driver has accepted so far.
#[derive(Debug, Default)]
pub(super) struct AcceptedFeatures {
    bits: u64,
    /// Numbers of non-existent blocks in which the driver has set a bit.
    further: BTreeSet<u64>,
    /// The driver set bits in more of these than `further` holds.
    too_many: bool,
}

impl AcceptedFeatures {
    /// Replaces the blocks that a message contains.
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

    /// The features that a driver accepted earlier.
    pub(super) fn of(bits: u64) -> Self {
        Self { bits, ..Self::default() }
    }

    /// The bits of the device's blocks.
    pub(super) fn bits(&self) -> u64 {
        self.bits
    }

    /// Whether the driver accepted bit `number`, below 64.
    pub(super) fn has(&self, number: u32) -> bool {
        self.bits & 1 << number != 0
    }

    /// Whether the driver accepted a bit in a non-existent block.
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
    fn spec_6_2_message_changes_only_its_own_blocks() {
        let mut features = AcceptedFeatures::default();
        updated(&mut features, 0, &[1, 2]);
        updated(&mut features, 1, &[4]);
        assert_eq!(features.bits(), 4 << 32 | 1);
        updated(&mut features, 0, &[8]);
        assert_eq!(features.bits(), 4 << 32 | 8);
        assert!(features.has(34) && !features.has(33) && !features.has_further());
    }

    #[test]
    fn spec_6_2_bits_in_further_blocks_count_until_cleared() {
        let mut features = AcceptedFeatures::default();
        // The second block's number exceeds 32 bits.
        updated(&mut features, u32::MAX, &[0, 1]);
        updated(&mut features, 2, &[1]);
        assert!(features.has_further() && features.bits() == 0);
        updated(&mut features, 2, &[0]);
        assert!(features.has_further());
        updated(&mut features, u32::MAX, &[0, 0]);
        assert!(!features.has_further());
    }

    #[test]
    fn spec_6_2_too_many_further_blocks_are_refused() {
        let mut features = AcceptedFeatures::default();
        (2..1000).for_each(|number| updated(&mut features, number, &[1]));
        assert_eq!(features.further.len(), FURTHER_BLOCKS);
        (2..1000).for_each(|number| updated(&mut features, number, &[0]));
        assert!(features.has_further(), "the set does not hold all of them");
    }
}
