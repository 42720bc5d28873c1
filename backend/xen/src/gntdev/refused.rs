//! Finds the reference that the hypervisor refuses in a failed map.
//!
//! gntdev returns EINVAL for every status of a map that fails. A copy of a byte out of each page
//! has a status for each reference.

use std::fs::File;

use protocol::grant::GrantRef;

use super::copy::copy;
use crate::staging::Staging;
use crate::{CopyDirection, CopyError, CopySegment, DomId};

/// Returns the first of `references` that cannot be read; `None` if all can.
///
/// # Errors
/// The copy itself failed, so that no status is known.
pub(super) fn first(
    file: &File,
    guest: DomId,
    references: &[GrantRef],
) -> Result<Option<GrantRef>, CopyError> {
    let bytes = Staging::new(references.len());
    let segment = |(at, reference): (usize, &GrantRef)| {
        let here = bytes.as_ref().slice(at, 1).ok_or(CopyError::Beyond)?;
        Ok(CopySegment { reference: *reference, offset: 0, here })
    };
    let segments = references.iter().enumerate().map(segment).collect::<Result<Vec<_>, _>>()?;
    match copy(file, guest, CopyDirection::FromGuest, &segments) {
        Ok(()) => Ok(None),
        Err(CopyError::Refused { reference, .. }) => Ok(Some(reference)),
        Err(error) => Err(error),
    }
}
