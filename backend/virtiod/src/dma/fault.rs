//! Errors of accesses to guest memory.

use std::fmt;

use vm_memory::GuestMemoryError;

use super::AddressFault;
use crate::dma::budget::BudgetError;
use xen::{Causes, MapError};

/// A failed access to guest memory. [`AccessFault::is_shortage`] distinguishes a shortage of this
/// domain from a fault of the guest.
#[derive(Debug, thiserror::Error)]
pub enum AccessFault {
    /// The address is invalid on the platform.
    #[error(transparent)]
    Address(#[from] AddressFault),
    /// The hypervisor or the kernel did not map the pages.
    #[error("cannot reach memory at {address:#x}")]
    Map {
        /// The first address of the access.
        address: u64,
        /// The error of the map.
        source: MapError,
    },
    /// The mapping would exceed a budget.
    #[error("cannot reach memory at {address:#x}")]
    Budget {
        /// The first address of the access.
        address: u64,
        /// The budget that is used up.
        source: BudgetError,
    },
    /// The range touches more pages than one range may.
    #[error("{length} bytes at {address:#x} are more than {limit} pages")]
    TooLong {
        /// The first address of the access.
        address: u64,
        /// Length of the access in bytes.
        length: u64,
        /// Maximum number of pages.
        limit: u32,
    },
}

impl AccessFault {
    /// Whether this domain lacks resources, so that a later try may succeed.
    pub fn is_shortage(&self) -> bool {
        matches!(self, Self::Map { source: MapError::NoRoom { .. }, .. } | Self::Budget { .. })
    }

    /// Returns the fault inside an error of vm-memory, if [`super::DmaMemory`] put one there.
    pub fn of(error: &GuestMemoryError) -> Option<&Self> {
        match error {
            GuestMemoryError::IOError(error) => {
                error.get_ref()?.downcast_ref().map(|WithCauses(fault)| fault)
            }
            _ => None,
        }
    }
}

/// A fault that prints its causes: vm-memory's error prints its inner error and has no source.
#[derive(Debug)]
struct WithCauses(AccessFault);

impl std::error::Error for WithCauses {}

impl fmt::Display for WithCauses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Causes(&self.0).fmt(f)
    }
}

impl From<AccessFault> for GuestMemoryError {
    fn from(fault: AccessFault) -> Self {
        Self::IOError(std::io::Error::other(WithCauses(fault)))
    }
}
