//! A check of whether a qcow2 image can be written without harm. It covers the part of `qemu-img
//! check` on which the safety of the host and of the image depends.
//!
//! The library allocates clusters by reference counts and writes to the offsets in tables. If
//! counts are too low, or tables overlap, a guest's write would change metadata, and through that
//! anything. The daemon refuses such an image before the first write. A count that is too high
//! wastes storage, and is ignored.
//!
//! Every cluster of the file must be used no more often than its count says. A cluster with
//! metadata must be used once (a level 2 table: as often as level 1 tables name it). Clusters that
//! are written in place, for which their entries have a mark, must be used once too.
//!
//! The traces of a kill of this program are no damage. The library writes an entry of the level 1
//! table, or of the refcount table, before the count of the cluster that it names; after a power
//! failure, data has reached the storage in any order. So the daemon repairs one fault before the
//! first write: a cluster that was new at that time is not counted. Such a cluster
//!
//! * has a count of zero, in a refcount block that exists;
//! * is used once: as a level 2 table or as data, by an active entry that marks it as used once, or
//!   as a refcount block that is not the one with its own count.
//!
//! Clusters that the library counts before use must be counted: the header, level 1 tables, the
//! refcount table, snapshots, and a refcount block that holds its own count. If one of these is
//! uncounted, counts were overwritten, and those of other clusters are not reliable either.
//!
//! A check needs at most 32 MiB for counts and uses, which it processes window by window, 32 MiB
//! for the locations of level 2 tables (48 MiB while the list grows), and 8 MiB for those of
//! refcount blocks: each is bounded where it is collected.

mod entry;
mod tables;
mod uncounted;
mod window;

use std::fs::File;
use std::io::{self, Seek, SeekFrom};

use self::entry::{Allocation, L2Entry};
use self::tables::{L2Table, Tables};
use self::uncounted::Uncounted;
use self::window::RefcountWindow;
use super::header::{Qcow2Header, read_up_to};
use crate::device::blk::progress::{Deadline, Progress};

/// Damage of an image.
#[derive(Debug, thiserror::Error)]
pub(super) enum Damage {
    /// A table or cluster is outside the file.
    #[error("{what} at {offset:#x} is not in the file")]
    Outside { what: &'static str, offset: u64 },
    /// A table or cluster is not aligned to a cluster.
    #[error("{what} at {offset:#x} does not begin where a cluster does")]
    Unaligned { what: &'static str, offset: u64 },
    /// A cluster is used more often than its count says.
    #[error(
        "the cluster at {offset:#x} is used more often than its reference count of {count} says"
    )]
    Undercounted { offset: u64, count: u16 },
    /// A cluster with metadata has another use.
    #[error("the cluster at {offset:#x} is used for two purposes")]
    Overlap { offset: u64 },
    /// A cluster would be written in place although it has other users.
    #[error(
        "the cluster at {offset:#x} is marked as used once, but its reference count is {count}"
    )]
    Shared { offset: u64, count: u16 },
    /// A cluster has an impossible count.
    #[error("the cluster at {offset:#x} has a reference count of {count}")]
    Count { offset: u64, count: u64 },
    /// An entry has unknown bits.
    #[error("an entry of the {table} has unknown bits: {entry:#x}")]
    Entry { table: &'static str, entry: u64 },
    /// A level 2 table maps two parts of the disk.
    #[error("the level 2 table at {offset:#x} is used for two parts of the disk")]
    TwoParts { offset: u64 },
    /// The snapshots have more level 1 entries than the check processes.
    #[error("its snapshots have level 1 tables of more than {limit} entries together")]
    TooMany { limit: u64 },
    /// The image has more level 2 tables than the check has memory for.
    #[error("its level 1 tables name more than {limit} level 2 tables")]
    ManyTables { limit: usize },
    /// More clusters are uncounted than a kill leaves.
    #[error("more than {limit} clusters are used but not counted")]
    ManyUncounted { limit: usize },
    /// The file cannot be read.
    #[error(transparent)]
    Read(#[from] io::Error),
}

/// A check that is new, unfinished or done.
pub(super) struct Check {
    file: File,
    header: Qcow2Header,
    state: CheckState,
    uncounted: Uncounted,
}

/// The progress of a check.
enum CheckState {
    New,
    Begun(Box<Walk>),
    Done,
}

/// A walk through the image's tables.
struct Walk {
    layout: Layout,
    tables: Tables,
    window: RefcountWindow,
    stage: WindowStep,
    /// Holds one cluster.
    buffer: Vec<u8>,
}

/// The layout of the image in its file.
#[derive(Clone, Copy, Debug)]
struct Layout {
    version: u32,
    cluster_bits: u32,
    refcount_order: u32,
    /// Number of clusters of the file; the last one may be incomplete.
    clusters: u64,
}

/// The next step, for the clusters in the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WindowStep {
    /// Read the counts in the refcount block with this number.
    Counts(usize),
    /// Count the uses in the level 2 table with this number.
    Uses(usize),
    /// The walk is done.
    Done,
}

impl Layout {
    fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// The number of the cluster that begins at `offset`.
    fn cluster(&self, what: &'static str, offset: u64) -> Result<u64, Damage> {
        if !offset.is_multiple_of(self.cluster_size()) {
            return Err(Damage::Unaligned { what, offset });
        }
        let cluster = offset >> self.cluster_bits;
        if cluster >= self.clusters {
            return Err(Damage::Outside { what, offset });
        }
        Ok(cluster)
    }

    /// Number of clusters whose counts are in one refcount block.
    fn counts_per_block(&self) -> u64 {
        (self.cluster_size() * 8) >> self.refcount_order
    }

    /// The number of the refcount block with a cluster's count.
    fn block_of(&self, cluster: u64) -> usize {
        (cluster / self.counts_per_block()) as usize
    }
}

impl Check {
    /// A check that has read nothing yet.
    pub(super) fn new(file: File, header: Qcow2Header) -> Self {
        Self { file, header, state: CheckState::New, uncounted: Uncounted::default() }
    }

    /// Continues until the check is done or the time is over. It writes nothing.
    ///
    /// # Errors
    /// [`Damage`].
    pub(super) fn run(&mut self, deadline: &Deadline) -> Result<Progress, Damage> {
        loop {
            let (file, uncounted) = (&self.file, &mut self.uncounted);
            self.state = match &mut self.state {
                CheckState::New => CheckState::Begun(Box::new(Walk::begin(file, &self.header)?)),
                CheckState::Begun(walk) if walk.stage == WindowStep::Done => CheckState::Done,
                CheckState::Begun(walk) => {
                    walk.step(file, uncounted)?;
                    if deadline.is_over() && walk.stage != WindowStep::Done {
                        return Ok(Progress::Unfinished);
                    }
                    continue;
                }
                CheckState::Done => return Ok(Progress::Done),
            };
        }
    }

    /// Number of uncounted clusters that must be counted before the image is written.
    pub(super) fn uncounted(&self) -> usize {
        self.uncounted.len()
    }

    /// Corrects the counts of uncounted clusters. Nobody may use the image meanwhile.
    ///
    /// # Errors
    /// The error of the storage; the caller may try again.
    pub(super) fn repair(&self) -> io::Result<()> {
        self.uncounted.count(&self.file, self.header.refcount_order)
    }
}

impl Walk {
    /// Reads all tables except those of level 2.
    fn begin(mut file: &File, header: &Qcow2Header) -> Result<Self, Damage> {
        let length = file.seek(SeekFrom::End(0))?;
        let layout = Layout {
            version: header.version,
            cluster_bits: header.cluster_bits,
            refcount_order: header.refcount_order,
            clusters: length.div_ceil(header.cluster_size()),
        };
        let tables = Tables::read(file, &layout, header)?;
        let window = RefcountWindow::first(&layout);
        let stage = WindowStep::Counts(window.first_block(&layout));
        let buffer = vec![0; layout.cluster_size() as usize];
        Ok(Self { layout, tables, window, stage, buffer })
    }

    fn step(&mut self, file: &File, uncounted: &mut Uncounted) -> Result<(), Damage> {
        match self.stage {
            WindowStep::Counts(block) if self.window.has_block(&self.layout, block) => {
                self.read_counts(file, block)?;
                self.stage = WindowStep::Counts(block + 1);
            }
            WindowStep::Counts(_) => {
                self.use_tables(uncounted)?;
                self.stage = WindowStep::Uses(0);
            }
            WindowStep::Uses(number) => match self.tables.l2.get(number).copied() {
                Some(table) => {
                    self.count_uses(file, table, uncounted)?;
                    self.stage = WindowStep::Uses(number + 1);
                }
                None if self.window.next(&self.layout) => {
                    self.stage = WindowStep::Counts(self.window.first_block(&self.layout));
                }
                None => self.stage = WindowStep::Done,
            },
            WindowStep::Done => {}
        }
        Ok(())
    }

    fn read_counts(&mut self, file: &File, block: usize) -> Result<(), Damage> {
        // Without a block all counts are zero, as they are in a new window.
        let Some(offset) = self.tables.refcount_block(block) else { return Ok(()) };
        read_up_to(file, &mut self.buffer, offset)?;
        self.window.set_counts(&self.layout, block, &self.buffer)
    }

    /// Notes the uses of all tables except those of level 2.
    fn use_tables(&mut self, uncounted: &mut Uncounted) -> Result<(), Damage> {
        for extent in &self.tables.single {
            self.window.use_alone(extent.clone(), &self.layout)?;
        }
        for block in 0..self.tables.refcount_blocks.len() {
            let Some(offset) = self.tables.refcount_block(block) else { continue };
            let cluster = offset >> self.layout.cluster_bits;
            if self.layout.block_of(cluster) != block {
                self.allow_uncounted(cluster, uncounted)?;
            }
            self.window.use_alone(cluster..cluster + 1, &self.layout)?;
        }
        Ok(())
    }

    fn count_uses(
        &mut self,
        file: &File,
        table: L2Table,
        uncounted: &mut Uncounted,
    ) -> Result<(), Damage> {
        let own = table.cluster..table.cluster + 1;
        let is_new = table.is_active && table.uses == 1;
        if is_new && table.in_place {
            self.allow_uncounted(table.cluster, uncounted)?;
        }
        self.window.use_table(own, &table, &self.layout)?;
        let mut buffer = std::mem::take(&mut self.buffer);
        read_up_to(file, &mut buffer, table.cluster << self.layout.cluster_bits)?;
        for bytes in buffer.as_chunks().0 {
            let entry = L2Entry(u64::from_be_bytes(*bytes));
            let Some(Allocation { clusters, in_place }) = entry.allocation(&self.layout)? else {
                continue;
            };
            if is_new && in_place {
                self.allow_uncounted(clusters.start, uncounted)?;
            }
            self.window.use_often(clusters.clone(), table.uses, &self.layout)?;
            if in_place && table.is_active {
                self.window.check_single(clusters, &self.layout)?;
            }
        }
        self.buffer = buffer;
        Ok(())
    }

    /// Treats a cluster that is about to be used as counted, if it is not counted and can be.
    fn allow_uncounted(&mut self, cluster: u64, uncounted: &mut Uncounted) -> Result<(), Damage> {
        let Some(block) = self.tables.refcount_block(self.layout.block_of(cluster)) else {
            return Ok(());
        };
        if !self.window.count_unused(cluster) {
            return Ok(());
        }
        uncounted.add(block, cluster % self.layout.counts_per_block())
    }
}
