//! A number that a device keeps of its driver, besides the rings and the negotiated features.

use std::sync::atomic::Ordering;

use vm_memory::Bytes;

use super::RecordMemory;
use super::header::NOTE;

/// A device's note in its record; 0 in a new one.
#[derive(Clone, Debug)]
pub struct DeviceNote(RecordMemory);

impl DeviceNote {
    pub(super) fn new(memory: &RecordMemory) -> Self {
        Self(memory.clone())
    }

    /// The noted number.
    pub fn get(&self) -> u32 {
        // The header is a part of each record.
        self.0.bytes().load(NOTE, Ordering::Acquire).map_or(0, u32::from_le)
    }

    /// Notes a number, before the driver learns that the device has it.
    pub fn set(&self, number: u32) {
        let _ = self.0.bytes().store(number.to_le(), NOTE, Ordering::Release);
    }
}
