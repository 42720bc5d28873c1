//! Writes of zeros, which need no storage: the disk zeroes the range instead.

use serde::Deserialize;

use super::facts::Extent;
use super::image::Storage;
use super::request::{Range, SECTOR_SIZE};
use super::{Block, WriteMode};
use crate::device::{Buffers, DeviceMemory, Fault};

/// Sectors of the least range that is zeroed, which is also its alignment. File systems allocate in
/// blocks of this size. And a page of the page cache is never zeroed in part, while another request
/// may write its rest: on a block device, kernels before 6.15 may then restore what was zeroed.
const LEAST: u64 = 8;

/// What a disk does with written data that is zeros.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DetectZeroes {
    /// It writes them as other data.
    #[default]
    Off,
    /// It zeroes the range, and the storage stays allocated: less is transferred.
    On,
    /// It zeroes the range and gives the storage back, where the guest may discard.
    Unmap,
}

impl DetectZeroes {
    fn storage(self) -> Option<Storage> {
        match self {
            Self::Off => None,
            Self::On => Some(Storage::Keep),
            Self::Unmap => Some(Storage::GiveBack),
        }
    }
}

impl Block {
    /// The range to zero instead of a write, if that is configured and the data is zeros. The data
    /// is not read again: what the guest changes meanwhile is its own loss.
    ///
    /// # Errors
    /// [`Fault`], if the data cannot be reached.
    #[inline]
    pub(super) fn zeroed_by<M: DeviceMemory>(
        &self,
        sector: u64,
        data: Buffers<'_>,
        memory: &M,
    ) -> Result<Option<Range>, Fault> {
        match self.common.detect_zeroes.storage() {
            Some(storage) => self.zeroed_range(sector, data, storage, memory),
            None => Ok(None),
        }
    }

    fn zeroed_range<M: DeviceMemory>(
        &self,
        sector: u64,
        data: Buffers<'_>,
        storage: Storage,
        memory: &M,
    ) -> Result<Option<Range>, Fault> {
        let bytes = data.length();
        let extent = Extent::of_data(sector, bytes, self.facts.sectors);
        // Where other writes are reported, this one is too.
        if extent.is_err() || self.facts.check_writable().is_err() {
            return Ok(None);
        }
        // Of an image with metadata, whole clusters alone need no data.
        let unit = match &self.facts.file {
            Some(_) => LEAST,
            None => LEAST.max(self.facts.discard_alignment.into()),
        };
        let is_whole = sector.is_multiple_of(unit) && bytes.is_multiple_of(unit * SECTOR_SIZE);
        // One sync of the whole file for each would cost more than the data.
        let costs_sync = self.facts.write_mode == WriteMode::Through && self.facts.has_cache;
        if !is_whole || costs_sync {
            return Ok(None);
        }
        for buffer in data.readable(memory) {
            if !buffer?.is_zero() {
                return Ok(None);
            }
        }
        Ok(Range::of_write(sector, bytes, storage))
    }
}
