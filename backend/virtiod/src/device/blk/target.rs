//! A disk's target: an image, and the checks of every request.

mod error;
#[cfg(any(test, feature = "sample-images"))]
#[allow(clippy::panic, reason = "test code: a panic fails the test")]
pub mod exercise;
mod options;

use std::io;
use std::time::Instant;

pub use self::error::TargetError;
pub use self::options::{AccessMode, Caching, Discard, TargetOptions};
use super::SECTOR_SIZE;
use super::claim::{ClaimError, Handover, Sharing};
use super::files::DiskFiles;
use super::image::{self, BlockSize, Image, ImageFormat, Storage};
use super::progress::{Deadline, PartSize, Progress};
use super::request::{BlockCommand, MAX_DATA, Range, RangeChange};
use crate::device::{
    Buffers, Completed, DeviceMemory, Fault, Gather, Scatter, Source, TransferBatch, WriteMode,
};

/// Maximum bytes of a request's data that are transferred at once.
const PART_BYTES: u64 = 1 << 20;

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
    /// Sizes of the parts of discards and write-zeroes.
    discard_size: PartSize,
    zero_size: PartSize,
}

/// A part of a disk, checked to be inside the disk.
#[derive(Clone, Copy)]
struct Extent {
    offset: u64,
    bytes: u64,
}

impl Target {
    /// Opens a file or a block device.
    ///
    /// # Errors
    /// [`TargetError`], which names the path and the fault.
    pub fn open(options: TargetOptions) -> Result<Self, TargetError> {
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
        let claimed = DiskFiles::claim(&options);
        let mut files = claimed.map_err(|error| match error {
            ClaimError::Open(source) => failed(source),
            error => TargetError::Claim(error),
        })?;
        let image = image::open(&options, &mut files).map_err(failed)?;
        let (bytes, block) = (image.size(), image.block_size().logical);
        if bytes < u64::from(block) {
            return Err(TargetError::TooSmall { path, bytes, block });
        }
        Ok(Self {
            image,
            files,
            options,
            write_mode: WriteMode::Back,
            activity: Activity::Idle,
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

    /// Whether the guest may write.
    pub fn mode(&self) -> AccessMode {
        self.options.mode
    }

    /// Whether the guest may deallocate storage.
    pub fn discard_mode(&self) -> Discard {
        self.options.discard
    }

    /// Whether a discard deallocates storage, as far as an attempt showed.
    pub fn can_discard(&self) -> bool {
        self.image.can_discard()
    }

    /// Size in sectors of 512 bytes; a whole number of logical blocks.
    pub fn sectors(&self) -> u64 {
        let block = u64::from(self.block_size().logical);
        self.image.size() / block * block / SECTOR_SIZE
    }

    /// Preferred block sizes.
    pub fn block_size(&self) -> BlockSize {
        self.image.block_size()
    }

    /// Alignment in sectors at which a discard is best divided.
    pub fn discard_alignment(&self) -> u32 {
        let alignment = self.image.granularity().max(self.block_size().physical.into());
        u32::try_from(alignment / SECTOR_SIZE).unwrap_or(u32::MAX)
    }

    /// A source that becomes ready when the size may have changed.
    pub fn size_source(&self) -> Option<Source<'_>> {
        self.image.size_source()
    }

    /// Reads the size again; returns whether it changed.
    ///
    /// # Errors
    /// [`TargetError::Io`].
    pub fn refresh(&mut self) -> Result<bool, TargetError> {
        Ok(self.image.refresh()?)
    }

    /// Notes that a driver starts to use the disk; `mode` says when its writes must be durable.
    ///
    /// # Errors
    /// [`TargetError::Elsewhere`], while the guest's other domain uses the disk;
    /// [`TargetError::Io`].
    pub(super) fn start(&mut self, mode: WriteMode) -> Result<(), TargetError> {
        self.write_mode = mode;
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

    /// Whether transfers can run together.
    pub(super) fn has_file(&self) -> bool {
        self.image.file().is_some() && self.activity == Activity::Active
    }

    /// Adds the transfer of a read or write to a batch. Leaves out other commands, and transfers
    /// that are long or have too many pieces.
    ///
    /// # Errors
    /// As for [`Target::read`] and [`Target::write`], except for errors of the image.
    pub(super) fn add<'m, M: DeviceMemory>(
        &self,
        number: usize,
        (command, data): (&BlockCommand, Buffers<'_>),
        memory: &'m M,
        batch: &mut TransferBatch<'_, 'm>,
    ) -> Result<(), TargetError> {
        if data.length() > PART_BYTES {
            return Ok(());
        }
        match command {
            BlockCommand::Read { sector } => {
                let extent = self.data_extent(*sector, data)?;
                if let Some(into) = scatter(data, memory)? {
                    batch.read(number, extent.offset, &into);
                }
            }
            BlockCommand::Write { sector } => {
                self.check_writable()?;
                self.check_write_durable()?;
                let extent = self.data_extent(*sector, data)?;
                if let Some(from) = gather(data, memory)? {
                    batch.write(number, extent.offset, &from);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Runs a batch, as far as the engine can.
    pub(super) fn run(&self, batch: TransferBatch<'_, '_>) -> Completed {
        let mode = self.write_mode;
        self.image.file().map(|file| batch.run(file, mode)).unwrap_or_default()
    }

    /// Reads from `sector` on into the guest's buffers, from byte `done` on, until the time is
    /// over.
    pub(super) fn read<M: DeviceMemory>(
        &mut self,
        sector: u64,
        data: Buffers<'_>,
        done: &mut u64,
        memory: &M,
        deadline: &Deadline,
    ) -> Result<Progress, TargetError> {
        let extent = self.data_extent(sector, data)?;
        self.activate_for(AccessMode::ReadOnly)?;
        for_each_part(data, done, deadline, |part, done| {
            self.read_part(extent.offset + done, part, memory)
        })
    }

    fn read_part<M: DeviceMemory>(
        &mut self,
        mut offset: u64,
        data: Buffers<'_>,
        memory: &M,
    ) -> Result<(), TargetError> {
        let mut scatter = Scatter::default();
        for buffer in data.writable(memory) {
            if let Err(buffer) = scatter.push(buffer?) {
                self.image.read(offset, &scatter)?;
                offset += scatter.length() as u64;
                scatter = Scatter::default();
                // An empty vector has capacity for one piece.
                drop(scatter.push(buffer));
            }
        }
        Ok(self.image.read(offset, &scatter)?)
    }

    /// Writes the guest's buffers from `sector` on, from byte `done` on, until the time is over.
    pub(super) fn write<M: DeviceMemory>(
        &mut self,
        sector: u64,
        data: Buffers<'_>,
        done: &mut u64,
        memory: &M,
        deadline: &Deadline,
    ) -> Result<Progress, TargetError> {
        let extent = self.data_extent(sector, data)?;
        if self.prepare_to_write(deadline)? == Progress::Unfinished {
            return Ok(Progress::Unfinished);
        }
        // A request with a malformed last buffer changes nothing on the disk.
        data.readable(memory).try_for_each(|buffer| buffer.map(drop))?;
        for_each_part(data, done, deadline, |part, done| {
            self.write_part(extent.offset + done, part, memory)
        })
    }

    fn write_part<M: DeviceMemory>(
        &mut self,
        mut offset: u64,
        data: Buffers<'_>,
        memory: &M,
    ) -> Result<(), TargetError> {
        let mut gather = Gather::default();
        for buffer in data.readable(memory) {
            if let Err(buffer) = gather.push(buffer?) {
                self.write_to_image(offset, &gather)?;
                offset += gather.length() as u64;
                gather = Gather::default();
                // An empty vector has capacity for one piece.
                drop(gather.push(buffer));
            }
        }
        self.write_to_image(offset, &gather)
    }

    pub(super) fn write_to_image(
        &mut self,
        offset: u64,
        from: &Gather<'_>,
    ) -> Result<(), TargetError> {
        let outcome = self.image.write(offset, from, self.write_mode);
        outcome.map_err(|error| self.note_write_error(error))
    }

    /// Handles the error of a write. For a write-through write the kernel does not say whether the
    /// write or its sync failed: unless storage was exhausted, data of earlier writes may be lost
    /// too.
    fn note_write_error(&mut self, error: io::Error) -> TargetError {
        let no_room = [libc::ENOSPC, libc::EDQUOT, libc::EFBIG];
        let harmless = error.raw_os_error().is_some_and(|errno| no_room.contains(&errno));
        if self.write_mode == WriteMode::Through && !harmless {
            self.files.note_loss();
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
        self.image.write_back()?;
        let synced = self.files.sync(|| self.image.sync());
        synced.ok_or(TargetError::Lost)?.map_err(TargetError::Sync)
    }

    /// Checks that a range may be changed.
    pub(super) fn check_range(&self, range: Range) -> Result<(), TargetError> {
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
                self.part_size(change).learn(begun.elapsed());
            }
            *done += changed;
            if *done < bytes && deadline.is_over() {
                return Ok(Progress::Unfinished);
            }
        }
        if self.write_mode == WriteMode::Through {
            self.flush()?;
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
        self.extent(range.sector, u64::from(range.sectors) * SECTOR_SIZE)
    }

    fn check_writable(&self) -> Result<(), TargetError> {
        match self.mode() {
            AccessMode::ReadOnly => Err(TargetError::ReadOnly),
            AccessMode::ReadWrite => Ok(()),
        }
    }

    fn check_durable(&self) -> Result<(), TargetError> {
        if self.files.is_lost() { Err(TargetError::Lost) } else { Ok(()) }
    }

    /// Without flushes every write must be durable, so after one that was lost all further ones
    /// fail.
    fn check_write_durable(&self) -> Result<(), TargetError> {
        match self.write_mode {
            WriteMode::Through => self.check_durable(),
            WriteMode::Back => Ok(()),
        }
    }

    fn data_extent(&self, sector: u64, data: Buffers<'_>) -> Result<Extent, TargetError> {
        let bytes = data.length();
        if bytes > MAX_DATA {
            return Err(TargetError::Range { sector, bytes });
        }
        self.extent(sector, bytes)
    }

    /// The extent of `bytes` from `sector` on, if they are whole sectors inside the disk.
    fn extent(&self, sector: u64, bytes: u64) -> Result<Extent, TargetError> {
        let end = sector.checked_add(bytes / SECTOR_SIZE);
        let inside = end.is_some_and(|end| end <= self.sectors());
        if !inside || bytes == 0 || !bytes.is_multiple_of(SECTOR_SIZE) {
            return Err(TargetError::Range { sector, bytes });
        }
        Ok(Extent { offset: sector * SECTOR_SIZE, bytes })
    }
}

/// Calls `each` for the data part by part, from byte `done` on, until the time is over; at least
/// once.
fn for_each_part(
    mut data: Buffers<'_>,
    done: &mut u64,
    deadline: &Deadline,
    mut each: impl FnMut(Buffers<'_>, u64) -> Result<(), TargetError>,
) -> Result<Progress, TargetError> {
    data.split_front(*done);
    while let Some(part) = data.split_front(PART_BYTES.min(data.length())) {
        each(part, *done)?;
        *done += part.length();
        if data.length() == 0 {
            break;
        }
        if deadline.is_over() {
            return Ok(Progress::Unfinished);
        }
    }
    Ok(Progress::Done)
}

/// The buffers for a read; `None` if they have too many pieces.
fn scatter<'m, M: DeviceMemory>(
    data: Buffers<'_>,
    memory: &'m M,
) -> Result<Option<Scatter<'m>>, Fault> {
    let mut scatter = Scatter::default();
    for buffer in data.writable(memory) {
        if scatter.push(buffer?).is_err() {
            return Ok(None);
        }
    }
    Ok(Some(scatter))
}

/// The buffers for a write; `None` if they have too many pieces.
fn gather<'m, M: DeviceMemory>(
    data: Buffers<'_>,
    memory: &'m M,
) -> Result<Option<Gather<'m>>, Fault> {
    let mut gather = Gather::default();
    for buffer in data.readable(memory) {
        if gather.push(buffer?).is_err() {
            return Ok(None);
        }
    }
    Ok(Some(gather))
}
