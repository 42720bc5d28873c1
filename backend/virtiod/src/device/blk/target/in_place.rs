//! Reads and writes of a target by threads beside its worker.

use std::sync::Arc;

use super::{AccessMode, PART_BYTES, TargetError};
use crate::device::WriteMode;
use crate::device::blk::claim::Durability;
use crate::device::blk::facts::Extent;
use crate::device::blk::image::InPlace;
use crate::device::blk::request::{BlockCommand, Task};
use crate::device::blk::submit::is_exhaustion;

/// An active target, for transfers that change no metadata of its image.
#[derive(Clone)]
pub(in crate::device::blk) struct InPlaceTarget {
    pub(super) image: Arc<dyn InPlace>,
    pub(super) sectors: u64,
    pub(super) access: AccessMode,
    pub(super) write_mode: WriteMode,
    pub(super) durability: Arc<Durability>,
}

impl InPlaceTarget {
    /// Whether requests of this command may be carried out in place.
    pub(in crate::device::blk) fn takes(command: &BlockCommand) -> bool {
        matches!(command, BlockCommand::Read { .. } | BlockCommand::Write { .. })
    }

    /// Carries out a request; returns whether it did. If not, the worker has to do the rest.
    ///
    /// # Errors
    /// [`TargetError`], but for guests' faults.
    pub(in crate::device::blk) fn execute(
        &self,
        task: &mut Task,
        data: &mut [u8],
    ) -> Result<bool, TargetError> {
        match task.command {
            BlockCommand::Read { sector } => self.read(sector, data, &mut task.done),
            BlockCommand::Write { sector } => self.write(sector, data, &mut task.done),
            _ => Ok(false),
        }
    }

    /// Reads from byte `done` of the data on, as far as that is possible in place.
    fn read(&self, sector: u64, data: &mut [u8], done: &mut u64) -> Result<bool, TargetError> {
        let extent = Extent::of_data(sector, data.len() as u64, self.sectors)?;
        let rest = data.get_mut(*done as usize..).unwrap_or(&mut []);
        for part in rest.chunks_mut(PART_BYTES) {
            if !self.image.read(extent.offset + *done, part)? {
                return Ok(false);
            }
            *done += part.len() as u64;
        }
        Ok(true)
    }

    /// Writes from byte `done` of the data on, as far as that is possible in place.
    fn write(&self, sector: u64, data: &mut [u8], done: &mut u64) -> Result<bool, TargetError> {
        let extent = Extent::of_data(sector, data.len() as u64, self.sectors)?;
        if self.access == AccessMode::ReadOnly {
            return Err(TargetError::ReadOnly);
        }
        if self.write_mode == WriteMode::Through && self.durability.is_lost() {
            return Err(TargetError::Lost);
        }
        let rest = data.get_mut(*done as usize..).unwrap_or(&mut []);
        for part in rest.chunks_mut(PART_BYTES) {
            let written = self.image.write(extent.offset + *done, part, self.write_mode);
            let written = written.inspect_err(|error| {
                // As for the worker's writes.
                if self.write_mode == WriteMode::Through && !is_exhaustion(error) {
                    self.durability.note_loss();
                }
            })?;
            if !written {
                return Ok(false);
            }
            *done += part.len() as u64;
        }
        Ok(true)
    }
}
