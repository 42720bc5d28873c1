//! The counts and uses of a window of the file's clusters. A large file has several windows, which
//! the check processes one after the other.

use std::ops::Range;

use super::tables::L2Table;
use super::{Damage, Layout};

/// Maximum number of clusters of a window, at four bytes each: 512 GiB of an image with clusters of
/// 64 KiB.
const CLUSTERS: u64 = 8 << 20;
/// Value of `uses` for a cluster that must have no other use.
const ALONE: u16 = u16::MAX;

/// A window of consecutive clusters.
pub(super) struct RefcountWindow {
    /// The number of the first cluster.
    first: u64,
    clusters: Vec<Cluster>,
    /// The first used cluster behind the window.
    beyond: Option<u64>,
}

/// A cluster of the file.
#[derive(Clone, Copy, Debug, Default)]
struct Cluster {
    /// Its reference count.
    count: u16,
    /// Number of its uses.
    uses: u16,
}

impl RefcountWindow {
    /// The window at the beginning of the file.
    pub(super) fn first(layout: &Layout) -> Self {
        Self::at(0, layout)
    }

    /// Moves the window to the next used cluster behind it, if there is one; returns whether it
    /// did.
    pub(super) fn next(&mut self, layout: &Layout) -> bool {
        let Some(first) = self.beyond.take() else { return false };
        // Free the old window first: there is no memory for two.
        self.clusters = Vec::new();
        *self = Self::at(first, layout);
        true
    }

    fn at(first: u64, layout: &Layout) -> Self {
        let count = (layout.clusters - first).min(CLUSTERS);
        Self { first, clusters: vec![Cluster::default(); count as usize], beyond: None }
    }

    /// The number of the refcount block with the first cluster's count.
    pub(super) fn first_block(&self, layout: &Layout) -> usize {
        (self.first / layout.counts_per_block()) as usize
    }

    /// Whether the refcount block with this number has counts of clusters in the window.
    pub(super) fn has_block(&self, layout: &Layout, block: usize) -> bool {
        block as u64 * layout.counts_per_block() < self.first + self.clusters.len() as u64
    }

    /// Reads the counts of a refcount block.
    pub(super) fn set_counts(
        &mut self,
        layout: &Layout,
        block: usize,
        bytes: &[u8],
    ) -> Result<(), Damage> {
        let start = block as u64 * layout.counts_per_block();
        let skipped = self.first.saturating_sub(start);
        let begin = (start + skipped - self.first) as usize;
        let here = self.clusters.iter_mut().skip(begin);
        for (cluster, index) in here.zip(skipped..layout.counts_per_block()) {
            let count = count_of(bytes, index, layout.refcount_order);
            cluster.count = match u16::try_from(count) {
                Ok(count) if count < ALONE => count,
                _ => {
                    let offset = (start + index) << layout.cluster_bits;
                    return Err(Damage::Count { offset, count });
                }
            };
        }
        Ok(())
    }

    /// Sets the count of a cluster to 1 if it is in the window and neither counted nor used;
    /// returns whether it did.
    pub(super) fn count_unused(&mut self, cluster: u64) -> bool {
        let here = cluster.checked_sub(self.first);
        match here.and_then(|index| self.clusters.get_mut(index as usize)) {
            Some(Cluster { count: count @ 0, uses: 0 }) => {
                *count = 1;
                true
            }
            _ => false,
        }
    }

    /// Notes a use of clusters that must be their only one.
    pub(super) fn use_alone(&mut self, range: Range<u64>, layout: &Layout) -> Result<(), Damage> {
        self.for_each(range, layout, |cluster, offset| match *cluster {
            Cluster { uses: 0, count: 0 } => Err(Damage::Undercounted { offset, count: 0 }),
            Cluster { uses: 0, .. } => {
                cluster.uses = ALONE;
                Ok(())
            }
            _ => Err(Damage::Overlap { offset }),
        })
    }

    /// Notes the use of a level 2 table's own cluster.
    pub(super) fn use_table(
        &mut self,
        range: Range<u64>,
        table: &L2Table,
        layout: &Layout,
    ) -> Result<(), Damage> {
        self.for_each(range.clone(), layout, |cluster, offset| {
            let count = cluster.count;
            if cluster.uses == 0 && count < table.uses {
                return Err(Damage::Undercounted { offset, count });
            }
            if table.in_place && count != 1 {
                return Err(Damage::Shared { offset, count });
            }
            Ok(())
        })?;
        self.use_alone(range, layout)
    }

    /// Notes `uses` uses of clusters with data.
    pub(super) fn use_often(
        &mut self,
        range: Range<u64>,
        uses: u16,
        layout: &Layout,
    ) -> Result<(), Damage> {
        self.for_each(range, layout, |cluster, offset| {
            if cluster.uses == ALONE {
                return Err(Damage::Overlap { offset });
            }
            let count = cluster.count;
            let sum = cluster.uses.checked_add(uses).filter(|sum| *sum <= count);
            cluster.uses = sum.ok_or(Damage::Undercounted { offset, count })?;
            Ok(())
        })
    }

    /// Checks that clusters may be written in place.
    pub(super) fn check_single(
        &mut self,
        range: Range<u64>,
        layout: &Layout,
    ) -> Result<(), Damage> {
        self.for_each(range, layout, |cluster, offset| match cluster.count {
            1 => Ok(()),
            count => Err(Damage::Shared { offset, count }),
        })
    }

    /// Calls `each` for the clusters of a range that are in the window.
    fn for_each(
        &mut self,
        range: Range<u64>,
        layout: &Layout,
        mut each: impl FnMut(&mut Cluster, u64) -> Result<(), Damage>,
    ) -> Result<(), Damage> {
        let end = self.first + self.clusters.len() as u64;
        if range.end > end {
            let next = range.start.max(end);
            self.beyond = Some(self.beyond.map_or(next, |before| before.min(next)));
        }
        let (first, last) = (range.start.max(self.first), range.end.min(end));
        for number in first..last {
            let here = self.clusters.get_mut((number - self.first) as usize);
            here.map_or(Ok(()), |cluster| each(cluster, number << layout.cluster_bits))?;
        }
        Ok(())
    }
}

/// The count with this index in a refcount block, of 2^`order` bits. Counts smaller than a byte
/// begin with its lowest bits.
fn count_of(block: &[u8], index: u64, order: u32) -> u64 {
    let bits = 1u64 << order;
    let at = (index * bits / 8) as usize;
    if bits < 8 {
        let byte = u64::from(block.get(at).copied().unwrap_or_default());
        return byte >> (index * bits % 8) & ((1 << bits) - 1);
    }
    let bytes = block.get(at..at + (bits / 8) as usize).unwrap_or_default();
    bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(order: u32, clusters: u64) -> Layout {
        Layout { version: 3, cluster_bits: 9, refcount_order: order, clusters }
    }

    #[test]
    fn counts_of_every_width_are_read() {
        let block = [0b1110_0100, 0x21, 0x43, 0x65, 0x87, 0xa9, 0xcb, 0xed];
        let first =
            |order, count| (0..count).map(|n| count_of(&block, n, order)).collect::<Vec<_>>();
        assert_eq!(first(0, 8), [0, 0, 1, 0, 0, 1, 1, 1]);
        assert_eq!(first(1, 4), [0, 1, 2, 3]);
        assert_eq!(first(2, 4), [4, 14, 1, 2]);
        assert_eq!(first(3, 2), [0xe4, 0x21]);
        assert_eq!(first(4, 2), [0xe421, 0x4365]);
        assert_eq!(first(5, 2), [0xe421_4365, 0x87a9_cbed]);
        assert_eq!(first(6, 1), [0xe421_4365_87a9_cbed]);
    }

    #[test]
    fn windows_cover_used_clusters_across_refcount_blocks() {
        // A block of 512 bytes has 512 counts of 8 bits.
        let layout = layout(3, 5 * CLUSTERS);
        let mut window = RefcountWindow::first(&layout);
        assert_eq!((window.first_block(&layout), window.clusters.len() as u64), (0, CLUSTERS));
        assert!(window.has_block(&layout, (CLUSTERS / 512 - 1) as usize));
        assert!(!window.has_block(&layout, (CLUSTERS / 512) as usize));
        window.set_counts(&layout, 0, &[1; 512]).unwrap();
        assert!(!window.next(&layout));
        let far = 3 * CLUSTERS + 100;
        for range in [0..1, far + 5..far + 6, far..far + 1, 4 * CLUSTERS..4 * CLUSTERS + 1] {
            window.use_often(range, 1, &layout).unwrap();
        }
        assert!(window.next(&layout));
        assert_eq!((window.first, window.clusters.len() as u64), (far, CLUSTERS));
        let block = window.first_block(&layout);
        assert_eq!(block as u64, 3 * CLUSTERS / 512);
        window.set_counts(&layout, block, &[1; 512]).unwrap();
        window.set_counts(&layout, block + 1, &[2; 512]).unwrap();
        let counts: Vec<_> = window.clusters.iter().map(|cluster| cluster.count).collect();
        assert_eq!(
            (counts[0], counts[411], counts[412], counts[923], counts[924]),
            (1, 1, 2, 2, 0)
        );
        // A range across the border continues in the next window.
        window = RefcountWindow::first(&layout);
        window.set_counts(&layout, (CLUSTERS / 512 - 1) as usize, &[1; 512]).unwrap();
        window.use_alone(CLUSTERS - 1..CLUSTERS + 1, &layout).unwrap();
        assert!(window.next(&layout));
        assert_eq!(window.first, CLUSTERS);
    }

    #[test]
    fn window_may_begin_inside_a_refcount_block() {
        // A block of 512 bytes has 4096 counts of 1 bit.
        let layout = layout(0, 10_000);
        let mut window = RefcountWindow::at(5000, &layout);
        assert_eq!(window.first_block(&layout), 1);
        let mut bytes = [0; 512];
        bytes[(5000 - 4096) / 8] = 1;
        window.set_counts(&layout, 1, &bytes).unwrap();
        window.set_counts(&layout, 2, &[0xff; 512]).unwrap();
        let counts: Vec<_> = window.clusters.iter().map(|cluster| cluster.count).collect();
        assert_eq!((counts[0], counts[1], counts[3191], counts[3192]), (1, 0, 0, 1));
    }
}
