//! A disk's target: an image, and the checks of every request.

mod error;
#[cfg(any(test, feature = "sample-images"))]
#[allow(clippy::panic, reason = "test code: a panic fails the test")]
pub mod exercise;
mod in_place;
mod options;

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

pub use self::error::TargetError;
pub(super) use self::in_place::InPlaceTarget;
pub use self::options::{AccessMode, Caching, Discard, LogicalBlockSize, TargetOptions};
use super::SECTOR_SIZE;
use super::claim::{ClaimError, Handover, Images, LocalImages, Sharing};
use super::disk_file::DiskFile;
use super::facts::{DiskFacts, Extent};
use super::files::DiskFiles;
use super::image::{self, BlockSize, Image, ImageFormat, Storage};
use super::progress::{Deadline, PartSize, Progress};
use super::request::{BlockCommand, Range, RangeChange, Task};
use super::submit::is_exhaustion;
use crate::device::{Gather, Scatter, WriteMode};

/// Maximum bytes of a request's data that are transferred at once.
pub(super) const PART_BYTES: usize = 1 << 20;

/// Whether a driver uses the disk through this device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Activity {
    /// No driver does, or the guest's other domain uses the disk.
    Idle,
    /// As [`Activity::Idle`], and another device may have written the image meanwhile.
    Stale,
    /// A driver uses it.
    Active,
}

/// An open target.
pub struct Target {
    image: Box<dyn Image>,
    files: DiskFiles,
    options: TargetOptions,
    write_mode: WriteMode,
    activity: Activity,
    /// Whether the facts changed since they were taken.
    has_new_facts: bool,
    /// Sizes of the parts of discards and write-zeroes.
    discard_size: PartSize,
    zero_size: PartSize,
}

impl Target {
    /// Opens a file or a block device.
    ///
    /// # Errors
    /// [`TargetError`], which names the path and the fault.
    pub fn open(options: TargetOptions) -> Result<Self, TargetError> {
        Self::open_claimed(options, &(Arc::new(LocalImages) as Arc<dyn Images>))
    }

    /// As [`Target::open`], with files that `images` claims.
    ///
    /// # Errors
    /// [`TargetError`].
    pub fn open_claimed(
        options: TargetOptions,
        images: &Arc<dyn Images>,
    ) -> Result<Self, TargetError> {
        let path = options.path.clone();
        if !path.is_absolute() {
            return Err(TargetError::Relative { path });
        }
        let writes = options.mode == AccessMode::ReadWrite;
        if writes && options.sharing == Sharing::Forced && options.format() == ImageFormat::Qcow2 {
            return Err(TargetError::Unshareable { path });
        }
        let mode = options.mode;
        let failed = |source| TargetError::Open { path: path.clone(), mode, source };
        let claimed = DiskFiles::claim(&options, images);
        let mut files = claimed.map_err(|error| match error {
            ClaimError::Open(source) => failed(source),
            error => TargetError::Claim(error),
        })?;
        let image = image::open(&options, &mut files).map_err(failed)?;
        let block = seen_block_size(&options, &*image).logical;
        let bytes = image.size();
        if bytes < u64::from(block) {
            return Err(TargetError::TooSmall { path, bytes, block });
        }
        Ok(Self {
            image,
            files,
            options,
            write_mode: WriteMode::Back,
            activity: Activity::Idle,
            has_new_facts: false,
            discard_size: PartSize::default(),
            zero_size: PartSize::default(),
        })
    }

    /// Reads a sector of the image.
    #[cfg(test)]
    pub(crate) fn read_for_test(&mut self, sector: u64) -> [u8; SECTOR_SIZE as usize] {
        let mut bytes = [0; SECTOR_SIZE as usize];
        let read = self.image.read(sector * SECTOR_SIZE, &Scatter::of(&mut bytes));
        assert!(read.is_ok(), "{read:?}");
        bytes
    }

    /// Replaces the target's image.
    #[cfg(test)]
    pub(super) fn with_image(self, image: Box<dyn Image>) -> Self {
        Self { image, ..self }
    }

    /// The path of the file or the block device.
    pub fn path(&self) -> &Path {
        &self.options.path
    }

    /// Whether the guest may write.
    pub fn mode(&self) -> AccessMode {
        self.options.mode
    }

    /// The format of the image.
    pub fn format(&self) -> ImageFormat {
        self.options.format()
    }

    /// Size in sectors of 512 bytes; a whole number of logical blocks.
    pub fn sectors(&self) -> u64 {
        let block = u64::from(self.block_size().logical);
        self.image.size() / block * block / SECTOR_SIZE
    }

    /// The block sizes that the guest sees.
    pub fn block_size(&self) -> BlockSize {
        seen_block_size(&self.options, &*self.image)
    }

    /// What a device shows of the disk.
    pub(super) fn facts(&self) -> DiskFacts {
        let alignment = self.image.granularity().max(self.block_size().physical.into());
        let is_active = self.activity == Activity::Active;
        DiskFacts {
            sectors: self.sectors(),
            block_size: self.block_size(),
            discard_alignment: u32::try_from(alignment / SECTOR_SIZE).unwrap_or(u32::MAX),
            access: self.mode(),
            discard: self.options.discard,
            can_discard: self.image.can_discard(),
            has_cache: self.image.has_cache(),
            sized_file: self.image.sized_file(),
            file: self.image.file(self.files.durability()).filter(|_| is_active).map(Arc::new),
            in_place: self.image.in_place().filter(|_| is_active),
            sync_file: self.sync_file().filter(|_| is_active).map(Arc::new),
            durability: Arc::clone(self.files.durability()),
            can_be_taken_over: self.files.are_marked(),
            outlives_its_domain: self.outlives_its_domain(),
            writes_through: self.options.caching == Caching::WriteThrough,
            write_mode: self.write_mode,
        }
    }

    fn outlives_its_domain(&self) -> bool {
        let file = self.image.file(self.files.durability());
        let is_written_past = file.is_some_and(|file| file.is_past_cache());
        self.mode() == AccessMode::ReadOnly
            || (is_written_past && self.files.target().queue_limits().is_plain)
    }

    /// The file whose sync makes writes durable that the image has completed.
    fn sync_file(&self) -> Option<DiskFile> {
        match self.mode() {
            AccessMode::ReadOnly => None,
            AccessMode::ReadWrite => self.image.sync_file(self.files.durability()),
        }
    }

    /// The target for transfers beside the worker, while a driver uses it.
    pub(super) fn in_place(&self) -> Option<InPlaceTarget> {
        let image = self.image.in_place().filter(|_| self.activity == Activity::Active)?;
        Some(InPlaceTarget {
            image,
            sectors: self.sectors(),
            access: self.mode(),
            write_mode: self.write_mode,
            durability: Arc::clone(self.files.durability()),
        })
    }

    /// The facts, if they changed since the last call.
    pub(super) fn take_new_facts(&mut self) -> Option<DiskFacts> {
        std::mem::take(&mut self.has_new_facts).then(|| self.facts())
    }

    /// Reads the size again; returns whether the number of sectors changed. The end of the file
    /// within the last sector is a fact too.
    ///
    /// # Errors
    /// [`TargetError::Io`].
    pub(super) fn refresh(&mut self) -> Result<bool, TargetError> {
        let before = self.sectors();
        self.has_new_facts |= self.image.refresh()?;
        Ok(self.sectors() != before)
    }

    /// Carries out a request, or the rest of it, until the time is over.
    ///
    /// # Errors
    /// [`TargetError`], but for guests' faults.
    pub(super) fn execute(
        &mut self,
        task: &mut Task,
        data: &mut [u8],
        deadline: &Deadline,
    ) -> Result<Progress, TargetError> {
        let Task { command, done } = task;
        match command {
            BlockCommand::Read { sector } => self.read(*sector, data, done, deadline),
            BlockCommand::Write { sector } => self.write(*sector, data, done, deadline),
            BlockCommand::Flush => self.flush().map(|()| Progress::Done),
            BlockCommand::Change { change, ranges } => {
                self.change_all(*change, ranges, done, deadline)
            }
            BlockCommand::GetId | BlockCommand::Unsupported => Err(TargetError::Unsupported),
        }
    }

    /// Discards or zeroes ranges, and removes those that are done. If one range is outside the
    /// disk, none is changed.
    fn change_all(
        &mut self,
        change: RangeChange,
        ranges: &mut VecDeque<Range>,
        done: &mut u64,
        deadline: &Deadline,
    ) -> Result<Progress, TargetError> {
        ranges.iter().try_for_each(|range| self.check_range(*range))?;
        while let Some(range) = ranges.front() {
            if self.change(change, *range, done, deadline)? == Progress::Unfinished {
                return Ok(Progress::Unfinished);
            }
            ranges.pop_front();
            *done = 0;
            if deadline.is_over() && !ranges.is_empty() {
                return Ok(Progress::Unfinished);
            }
        }
        Ok(Progress::Done)
    }

    /// Notes that a driver starts to use the disk; `mode` says when its writes must be durable.
    ///
    /// # Errors
    /// [`TargetError::Elsewhere`], while the guest's other domain uses the disk;
    /// [`TargetError::Io`].
    pub(super) fn start(&mut self, mode: WriteMode) -> Result<(), TargetError> {
        self.write_mode = mode;
        self.has_new_facts = true;
        self.activate()
    }

    /// Notes that the driver is gone, after writing cached data to the file for the next user.
    ///
    /// # Errors
    /// [`TargetError::Io`]; then the disk still belongs to this driver.
    pub(super) fn stop(&mut self) -> Result<(), TargetError> {
        if self.activity != Activity::Active {
            return Ok(());
        }
        if self.mode() == AccessMode::ReadWrite {
            self.image.write_back()?;
        }
        self.activity = Activity::Idle;
        self.has_new_facts = true;
        self.files.deactivate();
        Ok(())
    }

    /// Activates the disk for this device, unless the guest uses it in another domain.
    fn activate(&mut self) -> Result<(), TargetError> {
        if self.activity == Activity::Active {
            return Ok(());
        }
        let handover = self.files.activate().map_err(TargetError::Elsewhere)?;
        if handover == Handover::FromOther || self.activity == Activity::Stale {
            self.activity = Activity::Stale;
            self.image = image::open(&self.options, &mut self.files)?;
        }
        self.activity = Activity::Active;
        self.has_new_facts = true;
        Ok(())
    }

    /// As [`Target::activate`], for a request. A raw target can be read even while the guest writes
    /// it in another domain.
    fn activate_for(&mut self, access: AccessMode) -> Result<(), TargetError> {
        match self.activate() {
            Err(TargetError::Elsewhere(_))
                if access == AccessMode::ReadOnly && self.options.format() == ImageFormat::Raw =>
            {
                Ok(())
            }
            outcome => outcome,
        }
    }

    /// Does the work that must precede the first write, part by part, until the time is over.
    fn prepare_to_write(&mut self, deadline: &Deadline) -> Result<Progress, TargetError> {
        self.check_writable()?;
        self.activate_for(AccessMode::ReadWrite)?;
        self.check_write_durable()?;
        Ok(self.image.prepare_to_write(deadline)?)
    }

    /// Reads from `sector` on, from byte `done` of the data on, until the time is over.
    fn read(
        &mut self,
        sector: u64,
        data: &mut [u8],
        done: &mut u64,
        deadline: &Deadline,
    ) -> Result<Progress, TargetError> {
        let extent = Extent::of_data(sector, data.len() as u64, self.sectors())?;
        self.activate_for(AccessMode::ReadOnly)?;
        for_each_part(data, done, deadline, |part, done| {
            Ok(self.image.read(extent.offset + done, &Scatter::of(part))?)
        })
    }

    /// Writes from `sector` on, from byte `done` of the data on, until the time is over.
    fn write(
        &mut self,
        sector: u64,
        data: &mut [u8],
        done: &mut u64,
        deadline: &Deadline,
    ) -> Result<Progress, TargetError> {
        let extent = Extent::of_data(sector, data.len() as u64, self.sectors())?;
        if self.prepare_to_write(deadline)? == Progress::Unfinished {
            return Ok(Progress::Unfinished);
        }
        for_each_part(data, done, deadline, |part, done| {
            self.write_to_image(extent.offset + done, &Gather::of(part))
        })
    }

    pub(super) fn write_to_image(
        &mut self,
        offset: u64,
        from: &Gather<'_>,
    ) -> Result<(), TargetError> {
        let outcome = self.image.write(offset, from, self.write_mode);
        outcome.map_err(|error| self.note_write_error(error))?;
        self.sync_unsynced()
    }

    /// Syncs what was just written, if no flush of the guest's may make it durable.
    fn sync_unsynced(&mut self) -> Result<(), TargetError> {
        if self.image.take_unsynced() { self.sync_all() } else { Ok(()) }
    }

    /// Writes back and syncs what this and all other devices wrote. An error is a loss, also for
    /// lack of space: the kernel reports it once, whoever wrote what it did not keep.
    fn sync_all(&mut self) -> Result<(), TargetError> {
        // Whatever needed a sync has this one.
        self.image.take_unsynced();
        self.image.write_back()?;
        let synced = self.files.durability().sync(|| self.image.sync());
        synced.ok_or(TargetError::Lost)?.map_err(TargetError::Sync)
    }

    /// Handles the error of a write. For a write-through write the kernel does not say whether the
    /// write or its sync failed: unless storage was exhausted, data of earlier writes may be lost
    /// too.
    fn note_write_error(&mut self, error: io::Error) -> TargetError {
        if self.write_mode == WriteMode::Through && !is_exhaustion(&error) {
            self.files.durability().note_loss();
        }
        error.into()
    }

    /// Makes the image consistent at the end of a batch, since this program may be killed.
    ///
    /// # Errors
    /// [`TargetError::Io`]; the next flush tries again.
    pub(super) fn finish_batch(&mut self) -> Result<(), TargetError> {
        Ok(self.image.finish_batch()?)
    }

    /// Makes all completed writes durable.
    pub(super) fn flush(&mut self) -> Result<(), TargetError> {
        if self.mode() == AccessMode::ReadOnly {
            return Ok(());
        }
        self.activate_for(AccessMode::ReadWrite)?;
        self.check_durable()?;
        self.sync_all()
    }

    /// Checks that a range may be changed.
    fn check_range(&self, range: Range) -> Result<(), TargetError> {
        self.check_writable()?;
        self.range_extent(range).map(drop)
    }

    /// Discards or zeroes a range part by part, from its byte `done` on, until the time is over.
    pub(super) fn change(
        &mut self,
        change: RangeChange,
        range: Range,
        done: &mut u64,
        deadline: &Deadline,
    ) -> Result<Progress, TargetError> {
        let Extent { offset, bytes } = self.range_extent(range)?;
        if self.prepare_to_write(deadline)? == Progress::Unfinished {
            return Ok(Progress::Unfinished);
        }
        let (end, granularity) = (offset + bytes, self.image.granularity());
        while *done < bytes {
            let (start, begun) = (offset + *done, Instant::now());
            let bytes_wanted = self.part_size(change).end(start, end, granularity) - start;
            let changed = self.change_part(change, range, start, bytes_wanted)?;
            if changed == bytes_wanted {
                self.part_size(change).learn(start + bytes_wanted, end, begun.elapsed());
            }
            *done += changed;
            if *done < bytes && deadline.is_over() {
                // Another request's sync must not take the error of these zeros.
                self.sync_unsynced()?;
                return Ok(Progress::Unfinished);
            }
        }
        match self.write_mode {
            WriteMode::Through => self.flush()?,
            WriteMode::Back => self.sync_unsynced()?,
        }
        Ok(Progress::Done)
    }

    fn change_part(
        &mut self,
        change: RangeChange,
        range: Range,
        offset: u64,
        bytes: u64,
    ) -> io::Result<u64> {
        match (change, self.options.discard) {
            (RangeChange::Discard, Discard::Allowed) => {
                self.image.discard(offset, bytes)?;
                Ok(bytes)
            }
            // The driver negotiated discards before, elsewhere: a discard that is refused here
            // succeeds.
            (RangeChange::Discard, Discard::Refused) => Ok(bytes),
            (RangeChange::WriteZeroes, Discard::Allowed) if range.unmap() => {
                self.image.write_zeroes(offset, bytes, Storage::GiveBack)
            }
            (RangeChange::WriteZeroes, _) => self.image.write_zeroes(offset, bytes, Storage::Keep),
        }
    }

    fn part_size(&mut self, change: RangeChange) -> &mut PartSize {
        match change {
            RangeChange::Discard => &mut self.discard_size,
            RangeChange::WriteZeroes => &mut self.zero_size,
        }
    }

    fn range_extent(&self, range: Range) -> Result<Extent, TargetError> {
        Extent::new(range.sector, u64::from(range.sectors) * SECTOR_SIZE, self.sectors())
    }

    fn check_writable(&self) -> Result<(), TargetError> {
        match self.mode() {
            AccessMode::ReadOnly => Err(TargetError::ReadOnly),
            AccessMode::ReadWrite => Ok(()),
        }
    }

    fn check_durable(&self) -> Result<(), TargetError> {
        if self.files.durability().is_lost() { Err(TargetError::Lost) } else { Ok(()) }
    }

    /// Without flushes every write must be durable, so after one that was lost all further ones
    /// fail.
    fn check_write_durable(&self) -> Result<(), TargetError> {
        match self.write_mode {
            WriteMode::Through => self.check_durable(),
            WriteMode::Back => Ok(()),
        }
    }
}

/// The block sizes of an image, with the logical one that is configured. Requests that are smaller
/// than the storage's blocks go through the page cache, which reads the rest of a block.
fn seen_block_size(options: &TargetOptions, image: &dyn Image) -> BlockSize {
    let own = image.block_size();
    let logical = options.logical_block.map_or(own.logical, LogicalBlockSize::bytes);
    BlockSize { logical, physical: own.physical.max(logical) }
}

/// Calls `each` for the data part by part, from byte `done` on, until the time is over; at least
/// once.
fn for_each_part(
    data: &mut [u8],
    done: &mut u64,
    deadline: &Deadline,
    mut each: impl FnMut(&mut [u8], u64) -> Result<(), TargetError>,
) -> Result<Progress, TargetError> {
    let rest = data.get_mut(*done as usize..).unwrap_or(&mut []);
    let mut parts = rest.chunks_mut(PART_BYTES).peekable();
    while let Some(part) = parts.next() {
        each(part, *done)?;
        *done += part.len() as u64;
        if parts.peek().is_some() && deadline.is_over() {
            return Ok(Progress::Unfinished);
        }
    }
    Ok(Progress::Done)
}
