//! Whether a qcow2 image can be written without harm: what `qemu-img check` looks at, as far as the
//! host's safety and the image's own depend on it.
//!
//! The library allocates by reference counts and writes where tables say. So of an image whose
//! counts are too low, or whose tables lie on one another, a guest's write would change metadata,
//! and by that anything: such an image is refused before the first write. A count that is too high
//! costs room, and is left alone.
//!
//! Every cluster of the file must be used no more often than its count says. Whatever is not data
//! must be used once (level 2 tables: as often as level 1 tables name them). Clusters that are
//! written in place, which their entries are marked for, must be used once too.

mod entry;
mod tables;
mod window;

use std::fs::File;
use std::io;

use self::entry::{Allocation, L2Entry};
use self::tables::Tables;
use self::window::Window;
use super::header::{Header, read_up_to};
use crate::device::blk::progress::{Deadline, Progress};

/// A fault of an image.
#[derive(Debug, thiserror::Error)]
pub(super) enum Damage {
    /// Something is outside the file.
    #[error("{what} at {offset:#x} is not in the file")]
    Outside { what: &'static str, offset: u64 },
    /// Something does not begin where a cluster does.
    #[error("{what} at {offset:#x} does not begin where a cluster does")]
    Unaligned { what: &'static str, offset: u64 },
    /// Something is used more often than is counted.
    #[error(
        "the cluster at {offset:#x} is used more often than its reference count of {count} says"
    )]
    Undercounted { offset: u64, count: u16 },
    /// Something is used for two purposes.
    #[error("the cluster at {offset:#x} is used for two purposes")]
    Overlap { offset: u64 },
    /// Something would be written in place although others use it.
    #[error(
        "the cluster at {offset:#x} is marked as used once, but its reference count is {count}"
    )]
    Shared { offset: u64, count: u16 },
    /// A count that nothing can come to.
    #[error("the cluster at {offset:#x} has a reference count of {count}")]
    Count { offset: u64, count: u64 },
    /// An entry has bits that mean nothing.
    #[error("an entry of the {table} has unknown bits: {entry:#x}")]
    Entry { table: &'static str, entry: u64 },
    /// A level 2 table has two places in the disk.
    #[error("the level 2 table at {offset:#x} is used for two parts of the disk")]
    TwoParts { offset: u64 },
    /// There is too much to look at.
    #[error("its snapshots have level 1 tables of more than {limit} entries together")]
    TooMany { limit: u64 },
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] io::Error),
}

/// A check under way.
pub(super) struct Check {
    file: File,
    layout: Layout,
    tables: Tables,
    window: Window,
    stage: Stage,
    /// Holds a cluster.
    buffer: Vec<u8>,
}

/// How the image lies in its file.
#[derive(Clone, Copy, Debug)]
struct Layout {
    version: u32,
    cluster_bits: u32,
    refcount_order: u32,
    /// Clusters of the file; of the last one there may be a part.
    clusters: u64,
}

/// The next step, for the clusters in the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// To read the counts in the refcount block of this number.
    Counts(usize),
    /// To count the uses in the level 2 table of this number.
    Uses(usize),
    /// Nothing.
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

    /// Clusters whose counts are in one refcount block.
    fn counts_per_block(&self) -> u64 {
        (self.cluster_size() * 8) >> self.refcount_order
    }
}

impl Check {
    /// Reads all tables but those of level 2.
    ///
    /// # Errors
    /// [`Damage`].
    pub(super) fn begin(file: File, length: u64, header: &Header) -> Result<Self, Damage> {
        let layout = Layout {
            version: header.version,
            cluster_bits: header.cluster_bits,
            refcount_order: header.refcount_order,
            clusters: length.div_ceil(header.cluster_size()),
        };
        let tables = Tables::read(&file, &layout, header)?;
        let window = Window::first(&layout);
        let stage = Stage::Counts(window.first_block(&layout));
        let buffer = vec![0; layout.cluster_size() as usize];
        Ok(Self { file, layout, tables, window, stage, buffer })
    }

    /// Goes on until it is done or the time is over.
    ///
    /// # Errors
    /// [`Damage`].
    pub(super) fn run(&mut self, deadline: &Deadline) -> Result<Progress, Damage> {
        while self.stage != Stage::Done {
            self.step()?;
            if deadline.is_over() && self.stage != Stage::Done {
                return Ok(Progress::Unfinished);
            }
        }
        Ok(Progress::Done)
    }

    fn step(&mut self) -> Result<(), Damage> {
        match self.stage {
            Stage::Counts(block) if self.window.has_block(&self.layout, block) => {
                self.read_counts(block)?;
                self.stage = Stage::Counts(block + 1);
            }
            Stage::Counts(_) => {
                for extent in &self.tables.single {
                    self.window.use_alone(extent.clone(), &self.layout)?;
                }
                self.stage = Stage::Uses(0);
            }
            Stage::Uses(number) => match self.tables.l2.get(number).copied() {
                Some(table) => {
                    self.count_uses(table)?;
                    self.stage = Stage::Uses(number + 1);
                }
                None => {
                    self.stage = match self.window.next(&self.layout) {
                        Some(next) => {
                            self.window = next;
                            Stage::Counts(self.window.first_block(&self.layout))
                        }
                        None => Stage::Done,
                    };
                }
            },
            Stage::Done => {}
        }
        Ok(())
    }

    fn read_counts(&mut self, block: usize) -> Result<(), Damage> {
        // Where there is no block, all counts are zero, as they are in a new window.
        let Some(offset) = self.tables.refcount_blocks.get(block).copied().filter(|at| *at != 0)
        else {
            return Ok(());
        };
        read_up_to(&self.file, &mut self.buffer, offset)?;
        self.window.set_counts(&self.layout, block, &self.buffer)
    }

    fn count_uses(&mut self, table: tables::L2Table) -> Result<(), Damage> {
        let own = table.cluster..table.cluster + 1;
        self.window.use_table(own, &table, &self.layout)?;
        read_up_to(&self.file, &mut self.buffer, table.cluster << self.layout.cluster_bits)?;
        for bytes in self.buffer.chunks_exact(8) {
            let entry = L2Entry(u64::from_be_bytes(bytes.try_into().unwrap_or_default()));
            let Some(Allocation { clusters, in_place }) = entry.allocation(&self.layout)? else {
                continue;
            };
            self.window.use_often(clusters.clone(), table.uses, &self.layout)?;
            if in_place && table.is_active {
                self.window.check_single(clusters, &self.layout)?;
            }
        }
        Ok(())
    }
}
