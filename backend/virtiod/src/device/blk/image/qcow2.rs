//! qcow2 images. The imago library accesses them, after checks of our own: see [`header`] and
//! [`mod@check`].

mod bitmaps;
mod chain;
mod check;
mod cluster_map;
mod header;
mod memory;
mod shared;
#[cfg(test)]
mod tests;

pub use self::chain::{backing_of, beside, no_backing};

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use imago::file::File;
use imago::{FormatAccess, Mapping};

use self::chain::Chain;
use self::check::{Check, Damage};
use self::header::Qcow2Header;
use self::shared::SharedImage;
use super::{BlockSize, Image, InPlace, Storage};
use crate::Causes;
use crate::device::blk::SECTOR_SIZE;
use crate::device::blk::claim::Durability;
use crate::device::blk::disk_file::DiskFile;
use crate::device::blk::files::DiskFiles;
use crate::device::blk::progress::{Deadline, Progress};
use crate::device::blk::target::{AccessMode, Caching, Discard, TargetOptions};
use crate::device::{Gather, Scatter, WriteMode};

/// Maximum time of the check when an image is opened: xl waits 10 s for the disk. The rest of the
/// check precedes the first write.
const CHECK_TIME: Duration = Duration::from_secs(4);
/// Maximum number of zero bytes that one call writes.
const ZEROS: u64 = 1 << 20;

/// A damaged image, which must not be written.
#[derive(Debug, thiserror::Error)]
#[error(
    "it is damaged: {damage}; repair it: qemu-img check -r all {path:?}; if it is refused again, \
     copy the readable data: qemu-img convert -O qcow2 {path:?} NEW"
)]
struct Damaged {
    path: PathBuf,
    damage: Damage,
}

/// An image with more metadata than the check has memory for.
#[derive(Debug, thiserror::Error)]
#[error(
    "its level 1 tables name more than {limit} level 2 tables; convert it to larger clusters: \
     qemu-img convert -O qcow2 -o cluster_size=64k {path:?} NEW"
)]
struct TooLarge {
    path: PathBuf,
    limit: usize,
}

/// The result of the check of an image.
enum Soundness {
    Sound,
    /// The check is not finished, or found clusters to repair.
    Unknown(Box<Check>),
    /// The description of the damage.
    Damaged(String),
}

/// An open qcow2 image, with its backing files.
pub(super) struct Qcow2Image {
    shared: Arc<SharedImage>,
    /// The file of the image.
    file: Arc<std::fs::File>,
    path: PathBuf,
    soundness: Soundness,
    cluster_size: u64,
    clusters: Clusters,
    discard: Discard,
    /// The level 2 table with changes that the library may not have written yet.
    unwritten: Option<u64>,
    /// Holds a request's data during a transfer: the library takes slices, and a guest's memory is
    /// none.
    buffer: Vec<u8>,
    /// Whether data was written that no flush of the guest's may make durable.
    is_unsynced: bool,
}

/// The representation of a cluster without data.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Clusters {
    /// Version 3: a mark that the cluster reads as zeros.
    Zero,
    /// Version 2 without backing file: an unallocated cluster, which reads as zeros.
    Unallocated,
    /// Version 2 with backing file: an unallocated cluster reads as the backing file.
    Backed,
}

impl Clusters {
    fn of(header: &Qcow2Header) -> Self {
        match (header.version, &header.backing) {
            (2, None) => Self::Unallocated,
            (2, Some(_)) => Self::Backed,
            _ => Self::Zero,
        }
    }
}

impl Qcow2Image {
    pub(super) fn open(options: &TargetOptions, files: &mut DiskFiles) -> io::Result<Self> {
        Self::open_within(options, files, &Deadline::after(CHECK_TIME))
    }

    /// Opens an image, after a check that lasts at most until the deadline.
    fn open_within(
        options: &TargetOptions,
        files: &mut DiskFiles,
        deadline: &Deadline,
    ) -> io::Result<Self> {
        if options.caching == Caching::Direct {
            tracing::info!(
                "a qcow2 image stays in the page cache: direct-io-safe or cache = \"none\" has no \
                 effect"
            );
        }
        let path = options.path.clone();
        let file = files.target().file().map_err(io::Error::other)?;
        let header = chain::header(&file, &path)?;
        let soundness = match options.mode {
            AccessMode::ReadOnly => Soundness::Sound,
            AccessMode::ReadWrite => {
                let soundness = check(&file, &header, files, deadline)?;
                soundness.map_err(|damage| damaged(&path, damage))?
            }
        };
        warn_of_odd_size(&path, &header);
        if options.mode == AccessMode::ReadWrite {
            bitmaps::warn_of_their_end(&file, &path, &header);
        }
        let mut chain = Chain::new(files, &path);
        let image = FormatAccess::new(chain.open(&file, &path, &header, options.mode)?);
        let data = chain.into_data_files();
        let shared = SharedImage::new(image, data, files.durability(), header.cluster_size());
        if matches!(soundness, Soundness::Sound) && options.mode == AccessMode::ReadWrite {
            shared.note_sound();
        }
        Ok(Self {
            shared: Arc::new(shared),
            file,
            path,
            soundness,
            cluster_size: header.cluster_size(),
            clusters: Clusters::of(&header),
            discard: options.discard,
            unwritten: None,
            is_unsynced: false,
            buffer: Vec::new(),
        })
    }

    /// Corrects the reference counts of the clusters that the check found uncounted.
    fn repair(&self) -> io::Result<()> {
        let Soundness::Unknown(check) = &self.soundness else { return Ok(()) };
        let clusters = check.uncounted();
        if clusters == 0 {
            return Ok(());
        }
        check.repair()?;
        tracing::warn!(
            clusters,
            "{:?} was not closed properly: corrected the reference counts of uncounted clusters",
            self.path
        );
        Ok(())
    }

    /// Replaces the image's own file in transfers in place.
    #[cfg(test)]
    fn replace_file(&mut self, file: Arc<dyn shared::DataFile>) {
        let shared = Arc::get_mut(&mut self.shared);
        shared.unwrap_or_else(|| unreachable!("no thread uses the image")).replace_file(file);
    }

    fn buffer(&mut self, length: usize) {
        self.buffer.clear();
        self.buffer.resize(length, 0);
    }

    /// Whether a range consists of clusters that are written in place, so that no table changes.
    fn is_in_place(&self, range: Range<u64>) -> io::Result<bool> {
        let mut at = range.start;
        while at < range.end {
            match self.shared.image().get_mapping(at, range.end - at)? {
                (Mapping::Raw { writable: true, .. }, count) if count > 0 => at += count,
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Splits a range into the parts of different level 2 tables.
    fn parts(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
        let table = self.shared.table_bytes();
        let numbers = range.start / table..range.end.div_ceil(table);
        let parts = numbers.map(move |number| {
            let start = number * table;
            start.max(range.start)..start.saturating_add(table).min(range.end)
        });
        parts.filter(|part| !part.is_empty())
    }

    /// Notes that the library is about to change a level 2 table; writes its changes of another
    /// table before.
    ///
    /// The library writes a new table, and the entry that names it, at once, even into a cluster
    /// that it has freed and that the file still uses.
    fn begin_change(&mut self, offset: u64) -> io::Result<()> {
        let table = offset / self.shared.table_bytes();
        if self.unwritten.is_some_and(|before| before != table) {
            self.write_back()?;
        }
        self.unwritten = Some(table);
        Ok(())
    }

    /// Writes the buffer to `range`, table by table.
    fn write_buffer(&mut self, range: Range<u64>) -> io::Result<()> {
        let start = range.start;
        for part in self.parts(range) {
            self.begin_change(part.start)?;
            let bytes = (part.start - start) as usize..(part.end - start) as usize;
            let data = self.buffer.get(bytes).ok_or(io::ErrorKind::InvalidInput)?;
            self.shared.allocate(&part, |image| image.write(data, part.start))?;
        }
        Ok(())
    }

    /// Changes whole clusters of a range, table by table.
    fn change_clusters(&mut self, range: Range<u64>, change: ChangeClusters) -> io::Result<()> {
        for part in self.parts(range) {
            self.begin_change(part.start)?;
            self.shared.change(&part, |image| change(image, part.start, part.end - part.start))?;
        }
        Ok(())
    }

    /// Widens the range of a guest's write: at both ends, to the bounds of a cluster that reads as
    /// zeros and has storage. The library would fill up such a cluster by deallocating the storage
    /// of its rest.
    fn widen(&self, offset: u64, end: u64) -> io::Result<(u64, u64)> {
        let start_of = |at: u64| at - at % self.cluster_size;
        let is_zero = |at: u64| -> io::Result<bool> {
            let image = self.shared.image();
            let (mapping, _) = image.get_mapping(at, SECTOR_SIZE)?;
            Ok(matches!(mapping, Mapping::Zero { explicit: true, .. }))
        };
        let (first, last) = (start_of(offset), start_of(end));
        let offset = if first < offset && is_zero(first)? { first } else { offset };
        let whole = (last + self.cluster_size).min(self.size());
        let end = if last < end && end < whole && is_zero(last)? { whole } else { end };
        Ok((offset, end))
    }

    /// Whether a range reads as zeros, and for how many of its bytes that is so.
    fn zeros_at(&self, at: u64, length: u64) -> io::Result<(bool, u64)> {
        let image = self.shared.image();
        let (mapping, count) = image.get_mapping(at, length)?;
        Ok((matches!(mapping, Mapping::Zero { .. }), count))
    }

    /// Writes zeros to the parts that do not read as zeros, up to a limit. Returns the number of
    /// bytes from `offset` on that are zeros now.
    fn write_zeros_as_data(&mut self, offset: u64, length: u64) -> io::Result<u64> {
        self.buffer(length.min(ZEROS) as usize);
        let (mut at, end, mut written) = (offset, offset + length, 0);
        while at < end && written < ZEROS {
            let table_end = (at + 1).next_multiple_of(self.shared.table_bytes());
            let (is_zero, count) = self.zeros_at(at, end.min(table_end) - at)?;
            if is_zero {
                at += count;
                continue;
            }
            let count = count.min(ZEROS - written);
            self.begin_change(at)?;
            let zeros = self.buffer.get(..count as usize).ok_or_else(short_buffer)?;
            self.shared.allocate(&(at..at + count), |image| image.write(zeros, at))?;
            (at, written) = (at + count, written + count);
        }
        Ok(at - offset)
    }

    /// Zeroes whole clusters with `way`, and writes zeros to the rest of the range. Returns the
    /// number of bytes from `offset` on that are zeros now.
    ///
    /// It does not let the library zero parts of clusters, because the library gets them wrong on a
    /// disk smaller than a cluster.
    fn zero_clusters(&mut self, offset: u64, length: u64, way: ChangeClusters) -> io::Result<u64> {
        let end = offset + length;
        let last =
            if end == self.shared.image().size() { end } else { end - end % self.cluster_size };
        let first = offset.next_multiple_of(self.cluster_size).min(end);
        let last = last.max(first);
        let head = self.write_zeros_as_data(offset, first - offset)?;
        if offset + head < first {
            return Ok(head);
        }
        self.change_clusters(first..last, way)?;
        let tail = self.write_zeros_as_data(last, end - last)?;
        Ok(last + tail - offset)
    }
}

/// Zeroes or discards the clusters of a range.
type ChangeClusters = fn(&mut FormatAccess<File>, offset: u64, length: u64) -> io::Result<()>;

/// Checks an image before it is written, at most until the deadline. An image that the guest's
/// other domain may write is not judged: the check precedes the first write here.
fn check(
    file: &std::fs::File,
    header: &Qcow2Header,
    files: &DiskFiles,
    deadline: &Deadline,
) -> io::Result<Result<Soundness, Damage>> {
    let new = || Ok::<_, io::Error>(Box::new(Check::new(file.try_clone()?, header.clone())));
    let mut check = new()?;
    if files.target().has_other_writer() {
        return Ok(Ok(Soundness::Unknown(check)));
    }
    Ok(match check.run(deadline) {
        Ok(Progress::Done) if check.uncounted() == 0 => Ok(Soundness::Sound),
        Ok(_) => Ok(Soundness::Unknown(check)),
        // The other domain opened the image meanwhile.
        Err(_) if files.target().has_other_writer() => Ok(Soundness::Unknown(new()?)),
        Err(damage) => Err(damage),
    })
}

/// Warns if the last sector of the image is incomplete.
fn warn_of_odd_size(path: &Path, header: &Qcow2Header) {
    let odd = header.size % SECTOR_SIZE;
    if odd != 0 {
        tracing::warn!(
            "{path:?} ends with {odd} bytes of an incomplete sector, which the guest cannot access"
        );
    }
}

fn damaged(path: &Path, damage: Damage) -> io::Error {
    match damage {
        Damage::Read(error) => error,
        Damage::ManyTables { limit } => io::Error::other(TooLarge { path: path.to_owned(), limit }),
        damage => io::Error::other(Damaged { path: path.to_owned(), damage }),
    }
}

impl Image for Qcow2Image {
    fn size(&self) -> u64 {
        self.shared.image().size() / SECTOR_SIZE * SECTOR_SIZE
    }

    fn block_size(&self) -> BlockSize {
        BlockSize { logical: SECTOR_SIZE as u32, physical: 4096 }
    }

    fn read(&mut self, offset: u64, into: &Scatter<'_>) -> io::Result<()> {
        self.buffer(into.length());
        self.shared.image().read(self.buffer.as_mut_slice(), offset)?;
        into.copy_from(&self.buffer);
        Ok(())
    }

    fn prepare_to_write(&mut self, deadline: &Deadline) -> io::Result<Progress> {
        let outcome = match &mut self.soundness {
            Soundness::Sound => return Ok(Progress::Done),
            Soundness::Damaged(why) => return Err(io::Error::other(why.clone())),
            Soundness::Unknown(check) => check.run(deadline),
        };
        match outcome {
            Ok(Progress::Unfinished) => return Ok(Progress::Unfinished),
            Ok(Progress::Done) => {}
            Err(damage) => {
                let error = damaged(&self.path, damage);
                self.soundness = Soundness::Damaged(Causes(&error).to_string());
                return Err(error);
            }
        }
        self.repair()?;
        self.soundness = Soundness::Sound;
        self.shared.note_sound();
        Ok(Progress::Done)
    }

    fn write(&mut self, offset: u64, from: &Gather<'_>, mode: WriteMode) -> io::Result<()> {
        let end = offset + from.length() as u64;
        if self.is_in_place(offset..end)? {
            self.buffer(from.length());
            from.copy_to(&mut self.buffer);
            self.shared.image().write(self.buffer.as_slice(), offset)?;
        } else {
            let (start, end) = self.widen(offset, end)?;
            self.buffer((end - start) as usize);
            let data = self.buffer.get_mut((offset - start) as usize..);
            let data = data.ok_or_else(short_buffer)?;
            from.copy_to(data);
            self.write_buffer(start..end)?;
        }
        self.is_unsynced |= mode == WriteMode::Through;
        Ok(())
    }

    fn take_unsynced(&mut self) -> bool {
        std::mem::take(&mut self.is_unsynced)
    }

    fn finish_batch(&mut self) -> io::Result<()> {
        if self.unwritten.is_some() { self.write_back() } else { Ok(()) }
    }

    fn write_back(&mut self) -> io::Result<()> {
        self.shared.write_back()?;
        self.unwritten = None;
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_all()
    }

    fn in_place(&self) -> Option<Arc<dyn InPlace>> {
        Some(Arc::clone(&self.shared) as Arc<dyn InPlace>)
    }

    fn sync_file(&self, durability: &Arc<Durability>) -> Option<DiskFile> {
        // Nobody transfers with it, so that its size does not matter.
        DiskFile::new(&self.file, None, 0, durability).ok()
    }

    fn can_discard(&self) -> bool {
        self.discard == Discard::Allowed && self.clusters != Clusters::Backed
    }

    fn discard(&mut self, offset: u64, length: u64) -> io::Result<()> {
        let way: ChangeClusters = match self.clusters {
            Clusters::Zero => |image, at, count| image.discard_to_any(at, count),
            Clusters::Unallocated => |image, at, count| image.discard_to_backing(at, count),
            // The guest would see the data of the backing file again, which it had overwritten.
            Clusters::Backed => return Ok(()),
        };
        self.change_clusters(offset..offset + length, way)
    }

    fn write_zeroes(&mut self, offset: u64, length: u64, storage: Storage) -> io::Result<u64> {
        let way: ChangeClusters = match (self.clusters, storage) {
            (Clusters::Zero, Storage::GiveBack) => {
                |image, at, count| image.discard_to_zero(at, count)
            }
            (Clusters::Zero, Storage::Keep) => |image, at, count| image.write_zeroes(at, count),
            (Clusters::Unallocated, Storage::GiveBack) => {
                |image, at, count| image.discard_to_backing(at, count)
            }
            _ => return self.write_zeros_as_data(offset, length),
        };
        self.zero_clusters(offset, length, way)
    }

    fn granularity(&self) -> u64 {
        self.cluster_size
    }
}

fn short_buffer() -> io::Error {
    io::Error::other("internal error: a buffer is shorter than its data; please report it")
}
