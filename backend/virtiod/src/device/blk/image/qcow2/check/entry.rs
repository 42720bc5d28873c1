//! Entries of level 1 and level 2 tables.

use std::ops::Range;

use super::{Damage, Layout};

/// Bits of a cluster's offset.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// The cluster is used once, and may be written in place.
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// The cluster reads as zeros; a bit of version 3.
const ZERO: u64 = 1;
/// Unit in bytes of the length of a compressed cluster.
const SECTOR: u64 = 512;

/// An entry of a level 1 table.
#[derive(Clone, Copy, Debug)]
pub(super) struct L1Entry(pub(super) u64);

impl L1Entry {
    /// The number of the level 2 table's cluster, if there is one.
    pub(super) fn table(self, layout: &Layout) -> Result<Option<u64>, Damage> {
        if self.0 & !(OFFSET | COPIED) != 0 {
            return Err(Damage::Entry { table: "level 1 table", entry: self.0 });
        }
        match self.0 & OFFSET {
            0 => Ok(None),
            offset => layout.cluster("a level 2 table", offset).map(Some),
        }
    }

    /// Whether the table may be written in place.
    pub(super) fn in_place(self) -> bool {
        self.0 & COPIED != 0
    }
}

/// An entry of a level 2 table.
#[derive(Clone, Copy, Debug)]
pub(super) struct L2Entry(pub(super) u64);

/// The clusters that an entry uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Allocation {
    /// Their numbers.
    pub(super) clusters: Range<u64>,
    /// Whether they may be written in place.
    pub(super) in_place: bool,
}

impl L2Entry {
    /// The clusters of the file that the entry uses.
    pub(super) fn allocation(self, layout: &Layout) -> Result<Option<Allocation>, Damage> {
        if self.0 & COMPRESSED != 0 {
            return self.compressed(layout).map(Some);
        }
        let zero = if layout.version == 2 { 0 } else { ZERO };
        if self.0 & !(OFFSET | COPIED | zero) != 0 {
            return Err(self.unknown());
        }
        match self.0 & OFFSET {
            0 => Ok(None),
            offset => {
                let cluster = layout.cluster("data", offset)?;
                let in_place = self.0 & COPIED != 0;
                Ok(Some(Allocation { clusters: cluster..cluster + 1, in_place }))
            }
        }
    }

    fn compressed(self, layout: &Layout) -> Result<Allocation, Damage> {
        let offset_bits = 62 - (layout.cluster_bits - 8);
        let descriptor = self.0 & (COMPRESSED - 1);
        let offset = descriptor & ((1 << offset_bits) - 1);
        let sectors = (descriptor >> offset_bits) + 1;
        if self.0 & COPIED != 0 || offset >> 56 != 0 {
            return Err(self.unknown());
        }
        let end = offset - offset % SECTOR + sectors * SECTOR;
        let clusters = offset >> layout.cluster_bits..end.div_ceil(layout.cluster_size());
        if clusters.end > layout.clusters {
            return Err(Damage::Outside { what: "compressed data", offset });
        }
        Ok(Allocation { clusters, in_place: false })
    }

    fn unknown(self) -> Damage {
        Damage::Entry { table: "level 2 table", entry: self.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout =
        Layout { version: 3, cluster_bits: 16, refcount_order: 4, clusters: 100 };

    fn allocation(entry: u64) -> Result<Option<Allocation>, String> {
        L2Entry(entry).allocation(&LAYOUT).map_err(|damage| damage.to_string())
    }

    #[test]
    fn entries_use_the_clusters_that_they_name() {
        let used = |clusters: Range<u64>, in_place| Ok(Some(Allocation { clusters, in_place }));
        assert_eq!(allocation(0), Ok(None));
        assert_eq!(allocation(ZERO), Ok(None));
        assert_eq!(allocation(0x30000), used(3..4, false));
        assert_eq!(allocation(COPIED | 0x30000), used(3..4, true));
        assert_eq!(allocation(COPIED | 0x30000 | ZERO), used(3..4, true));
        assert_eq!(allocation(COMPRESSED | 0x30200), used(3..4, false));
        // From sector 127 of cluster 3 on, and two sectors more.
        assert_eq!(allocation(COMPRESSED | 2 << 54 | 0x3fe10), used(3..5, false));
    }

    #[test]
    fn malformed_entries_are_damage() {
        for entry in [2, 1 << 60, 0x30000 | 1 << 8, COMPRESSED | COPIED | 0x30000] {
            assert!(allocation(entry).unwrap_err().contains("unknown bits"), "{entry:#x}");
        }
        assert!(allocation(0x30200).unwrap_err().contains("begin where"));
        for entry in [100 << 16, COPIED | 1 << 40, COMPRESSED | 2 << 54 | 0x63_fe10] {
            assert!(allocation(entry).unwrap_err().contains("not in the file"), "{entry:#x}");
        }
        let old = Layout { version: 2, ..LAYOUT };
        assert!(L2Entry(ZERO).allocation(&old).is_err());
    }
}
