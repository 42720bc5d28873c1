//! The tables of an image except those of level 2, and the locations of these.

use std::fs::File;
use std::ops::Range;

use super::entry::L1Entry;
use super::{Damage, Layout};
use crate::device::blk::image::qcow2::header::{Qcow2Header, Table, read_up_to};

/// Maximum number of entries of the level 1 tables of all snapshots together.
const MAX_SNAPSHOT_ENTRIES: u64 = 4 << 20;
/// Maximum number of level 2 tables, at 16 bytes each. 128 TiB in clusters of 64 KiB need an eighth
/// of them, 4 TiB in clusters of 4 KiB all.
const MAX_L2_TABLES: usize = 2 << 20;
/// Bytes of the fixed part of a snapshot's entry.
const SNAPSHOT_SIZE: u64 = 40;
/// Maximum bytes of a table that are read at once.
const CHUNK: u64 = 1 << 20;

/// A level 2 table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct L2Table {
    /// The number of its cluster.
    pub(super) cluster: u64,
    /// Number of level 1 tables that name it.
    pub(super) uses: u16,
    /// Whether the active level 1 table names it.
    pub(super) is_active: bool,
    /// Whether it may be written in place.
    pub(super) in_place: bool,
}

/// The tables of an image.
pub(super) struct Tables {
    /// Clusters that must be used once: those of the header and of all tables except refcount
    /// blocks and level 2 tables.
    pub(super) single: Vec<Range<u64>>,
    /// Offsets of refcount blocks in the file; 0 where there is none.
    pub(super) refcount_blocks: Vec<u64>,
    /// Level 2 tables by their offsets in the file, each once.
    pub(super) l2: Vec<L2Table>,
}

impl Tables {
    pub(super) fn read(file: &File, layout: &Layout, header: &Qcow2Header) -> Result<Self, Damage> {
        let mut tables = Self { single: Vec::new(), refcount_blocks: Vec::new(), l2: Vec::new() };
        tables.single.push(0..1);
        tables.read_refcount_table(file, layout, header.refcount_table)?;
        tables.read_l1(file, layout, header.l1, Tables::add_active)?;
        tables.l2.sort_unstable();
        let twice = tables.l2.windows(2).find_map(|pair| match pair {
            [first, second] if first.cluster == second.cluster => Some(first.cluster),
            _ => None,
        });
        if let Some(cluster) = twice {
            return Err(Damage::TwoParts { offset: cluster << layout.cluster_bits });
        }
        tables.read_snapshots(file, layout, header)?;
        tables.merge_l2(layout)?;
        Ok(tables)
    }

    /// The offset of the refcount block with this number in the file, if the block exists.
    pub(super) fn refcount_block(&self, number: usize) -> Option<u64> {
        self.refcount_blocks.get(number).copied().filter(|offset| *offset != 0)
    }

    fn read_refcount_table(
        &mut self,
        file: &File,
        layout: &Layout,
        table: Table,
    ) -> Result<(), Damage> {
        self.add_table(layout, "the refcount table", table)?;
        for_each_entry(file, table, |offset| {
            if offset != 0 {
                layout.cluster("a refcount block", offset)?;
            }
            self.refcount_blocks.push(offset);
            Ok(())
        })
    }

    fn read_l1(
        &mut self,
        file: &File,
        layout: &Layout,
        table: Table,
        add: fn(&mut Self, u64, L1Entry),
    ) -> Result<(), Damage> {
        self.add_table(layout, "a level 1 table", table)?;
        for_each_entry(file, table, |entry| {
            let entry = L1Entry(entry);
            if let Some(cluster) = entry.table(layout)? {
                if self.l2.len() == MAX_L2_TABLES {
                    return Err(Damage::ManyTables { limit: MAX_L2_TABLES });
                }
                add(self, cluster, entry);
            }
            Ok(())
        })
    }

    fn add_active(&mut self, cluster: u64, entry: L1Entry) {
        let in_place = entry.in_place();
        self.l2.push(L2Table { cluster, uses: 1, is_active: true, in_place });
    }

    /// Adds a table of a snapshot, in which the mark has no meaning.
    fn add_inactive(&mut self, cluster: u64, _: L1Entry) {
        self.l2.push(L2Table { cluster, uses: 1, is_active: false, in_place: false });
    }

    /// Reads the level 1 tables of snapshots.
    fn read_snapshots(
        &mut self,
        file: &File,
        layout: &Layout,
        header: &Qcow2Header,
    ) -> Result<(), Damage> {
        const WHAT: &str = "the snapshot table";
        if header.snapshots.count == 0 {
            return Ok(());
        }
        let first = layout.cluster(WHAT, header.snapshots.offset)?;
        let (mut at, mut entries) = (header.snapshots.offset, 0);
        for _ in 0..header.snapshots.count {
            let mut bytes = [0; SNAPSHOT_SIZE as usize];
            read_up_to(file, &mut bytes, at)?;
            let snapshot = SnapshotEntry::parse(&bytes);
            entries += snapshot.l1.entries;
            if entries > MAX_SNAPSHOT_ENTRIES {
                return Err(Damage::TooMany { limit: MAX_SNAPSHOT_ENTRIES });
            }
            self.read_l1(file, layout, snapshot.l1, Tables::add_inactive)?;
            at += snapshot.length;
            if at.div_ceil(layout.cluster_size()) > layout.clusters {
                return Err(Damage::Outside { what: WHAT, offset: header.snapshots.offset });
            }
        }
        self.single.push(first..at.div_ceil(layout.cluster_size()));
        Ok(())
    }

    fn add_table(
        &mut self,
        layout: &Layout,
        what: &'static str,
        table: Table,
    ) -> Result<(), Damage> {
        if table.entries == 0 {
            return Ok(());
        }
        let first = layout.cluster(what, table.offset)?;
        let end = first + (table.entries * 8).div_ceil(layout.cluster_size());
        if end > layout.clusters {
            return Err(Damage::Outside { what, offset: table.offset });
        }
        self.single.push(first..end);
        Ok(())
    }

    /// Merges the entries of a table that several level 1 tables name.
    fn merge_l2(&mut self, layout: &Layout) -> Result<(), Damage> {
        self.l2.sort_unstable();
        let mut too_many = None;
        self.l2.dedup_by(|table, kept| {
            let same = table.cluster == kept.cluster;
            if same {
                kept.is_active |= table.is_active;
                kept.in_place |= table.in_place;
                match kept.uses.checked_add(1) {
                    Some(uses) => kept.uses = uses,
                    None => too_many = Some(kept.cluster << layout.cluster_bits),
                }
            }
            same
        });
        let count = u64::from(u16::MAX) + 1;
        too_many.map_or(Ok(()), |offset| Err(Damage::Count { offset, count }))
    }
}

/// The part of a snapshot's entry that the check needs.
struct SnapshotEntry {
    l1: Table,
    /// Length of the entry in bytes.
    length: u64,
}

impl SnapshotEntry {
    fn parse(bytes: &[u8; SNAPSHOT_SIZE as usize]) -> Self {
        let number = |range: Range<usize>| {
            bytes
                .get(range)
                .unwrap_or_default()
                .iter()
                .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
        };
        let (id, name, extra) = (number(12..14), number(14..16), number(36..40));
        Self {
            l1: Table { offset: number(0..8), entries: number(8..12) },
            length: (SNAPSHOT_SIZE + extra + id + name).next_multiple_of(8),
        }
    }
}

/// Reads a table chunk by chunk, since it may be large.
fn for_each_entry(
    file: &File,
    table: Table,
    mut each: impl FnMut(u64) -> Result<(), Damage>,
) -> Result<(), Damage> {
    let (mut at, end) = (table.offset, table.offset + table.entries * 8);
    let mut buffer = Vec::new();
    while at < end {
        buffer.resize((end - at).min(CHUNK) as usize, 0);
        read_up_to(file, &mut buffer, at)?;
        for bytes in buffer.as_chunks().0 {
            each(u64::from_be_bytes(*bytes))?;
        }
        at += buffer.len() as u64;
    }
    Ok(())
}
