//! Which references of a map that failed the hypervisor refuses.
//!
//! For every status of Xen's, gntdev says EINVAL to a map. Copying a byte out of each page tells
//! more.

use std::fs::File;

use protocol::grant::GrantRef;

use super::copy::copy;
use crate::staging::Staging;
use crate::{CopyDirection, CopyError, CopySegment, DomId};

/// The first of `references` that cannot be read, if one cannot.
///
/// # Errors
/// The hypervisor could not be asked.
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
