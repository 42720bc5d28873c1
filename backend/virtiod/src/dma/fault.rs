//! Why a guest address could not be reached.

use std::fmt;

use vm_memory::GuestMemoryError;

use super::AddressFault;
use crate::dma::budget::BudgetError;
use xen::{Causes, MapError};

/// Why a guest address could not be reached. [`AccessFault::is_shortage`] says which are not the
/// guest's doing, or may not be.
#[derive(Debug, thiserror::Error)]
pub enum AccessFault {
    /// The address means nothing.
    #[error(transparent)]
    Address(#[from] AddressFault),
    /// The pages could not be mapped.
    #[error("cannot reach memory at {address:#x}")]
    Map {
        /// The address asked for.
        address: u64,
        /// What the hypervisor said.
        source: MapError,
    },
    /// There is no room to map the pages.
    #[error("cannot reach memory at {address:#x}")]
    Budget {
        /// The address asked for.
        address: u64,
        /// Whose room is used up.
        source: BudgetError,
    },
    /// More at once than the device reaches for one request.
    #[error("{length} bytes at {address:#x} are more than {limit} pages")]
    TooLong {
        /// The address asked for.
        address: u64,
        /// Bytes asked for.
        length: u64,
        /// The most pages there may be.
        limit: u32,
    },
}

impl AccessFault {
    /// Whether it is this domain that is short of something, so that a later try may succeed.
    pub fn is_shortage(&self) -> bool {
        matches!(self, Self::Map { source: MapError::NoRoom { .. }, .. } | Self::Budget { .. })
    }

    /// The fault inside an error of vm-memory's, if [`super::DmaMemory`] put one there.
    pub fn of(error: &GuestMemoryError) -> Option<&Self> {
        match error {
            GuestMemoryError::IOError(error) => {
                error.get_ref()?.downcast_ref().map(|WithCauses(fault)| fault)
            }
            _ => None,
        }
    }
}

/// A fault that prints its causes: vm-memory's error prints what it holds, and has no causes.
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
