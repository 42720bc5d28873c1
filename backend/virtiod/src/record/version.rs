//! The versions of a record, so that an upgrade takes devices over from the program before it.
//!
//! | version | the text of a slot |
//! |---|---|
//! | 1 | the [`DriverSetup`] |
//! | 2 | the program that wrote it, and the [`DriverSetup`] |
//!
//! A program reads its own version and the one before, and keeps the version of a record that it
//! takes over: until the driver connects anew, the program before it can go on with the device too.

use serde::{Deserialize, Serialize};

use super::{DriverSetup, RecordError};

/// The version of a record: of its layout, and of the fields of its state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum RecordVersion {
    /// That of the program before.
    Previous = 1,
    /// That of new records.
    #[default]
    Newest = 2,
}

impl RecordVersion {
    /// Reads a version's number, in a program that knows `newest` and older ones.
    pub(super) fn read(found: u32, newest: Self) -> Result<Self, RecordError> {
        let known = [Self::Previous, Self::Newest].into_iter();
        let mut same = known.filter(|known| *known <= newest && *known as u32 == found);
        same.next().ok_or(RecordError::Version { found, known: newest as u32 })
    }

    /// The text of a slot.
    pub(super) fn text(self, setup: &DriverSetup) -> Result<Vec<u8>, RecordError> {
        Ok(match self {
            Self::Previous => serde_json::to_vec(setup)?,
            Self::Newest => serde_json::to_vec(&Written { program: PROGRAM, setup })?,
        })
    }

    /// Reads the text of a slot, and the program that wrote it.
    pub(super) fn parse(self, text: &[u8]) -> Result<(DriverSetup, Option<String>), RecordError> {
        Ok(match self {
            Self::Previous => (serde_json::from_slice(text)?, None),
            Self::Newest => {
                let read: Read = serde_json::from_slice(text)?;
                (read.setup, Some(read.program))
            }
        })
    }
}

/// This program, as its records name it.
const PROGRAM: &str = concat!("xen-virtiod ", env!("CARGO_PKG_VERSION"));

/// The text of version 2.
#[derive(Serialize)]
struct Written<'a> {
    program: &'a str,
    setup: &'a DriverSetup,
}

/// The text of version 2, as it is read.
#[derive(Deserialize)]
struct Read {
    program: String,
    setup: DriverSetup,
}
