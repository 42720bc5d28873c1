//! Two slots for the state: while one is written, the other one holds the state before.
//!
//! | offset in a slot | bytes | |
//! |---|---|---|
//! | 0 | 8 | number of the state, from 1; the slot with the higher one is valid |
//! | 8 | 4 | length of the text |
//! | 16 | 32 | SHA-256 of number, length and text |
//! | 64 | | the text |

use sha2::{Digest, Sha256};
use vm_memory::{Bytes, VolatileSlice};

use super::{RecordError, header};

/// Length of a slot in bytes.
const SLOT: usize = 16 << 10;
/// Length of both slots in bytes.
pub(super) const LENGTH: usize = 2 * SLOT;
/// Offset of the text in a slot.
const TEXT: usize = 64;
/// Longest text in bytes.
const LIMIT: usize = SLOT - TEXT;

/// The number of the state that was written last; 0 for none. It lies in the slot that it is odd or
/// even for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Slots {
    number: u64,
}

impl Slots {
    /// Finds the valid slot of a record.
    pub(super) fn find(record: VolatileSlice<'_>) -> Result<Self, RecordError> {
        let numbers = [0, 1].map(|slot| read(record, slot).map_or(0, |(number, _)| number));
        match numbers.into_iter().max().unwrap_or(0) {
            0 => Err(RecordError::Damaged("it holds no whole state")),
            number => Ok(Self { number }),
        }
    }

    /// Writes a state into the slot that is not valid, which makes that the valid one.
    pub(super) fn write(
        &mut self,
        record: VolatileSlice<'_>,
        text: &[u8],
    ) -> Result<(), RecordError> {
        if text.len() > LIMIT {
            return Err(RecordError::TooLarge { bytes: text.len(), limit: LIMIT });
        }
        let number = self.number + 1;
        let slot = slot(record, number)?;
        // Until all is written, the digest is that of another text.
        slot.write_slice(text, TEXT)?;
        slot.write_slice(&number.to_le_bytes(), 0)?;
        slot.write_slice(&(text.len() as u32).to_le_bytes(), 8)?;
        slot.write_slice(&digest(number, text), 16)?;
        self.number = number;
        Ok(())
    }

    /// The text of the valid slot.
    pub(super) fn read(&self, record: VolatileSlice<'_>) -> Result<Vec<u8>, RecordError> {
        let found = read(record, self.number).filter(|(number, _)| *number == self.number);
        found.map(|(_, text)| text).ok_or(RecordError::Damaged("its state changed"))
    }
}

/// The slot of a state with this number.
fn slot(record: VolatileSlice<'_>, number: u64) -> Result<VolatileSlice<'_>, RecordError> {
    Ok(record.subslice(header::LENGTH + (number % 2) as usize * SLOT, SLOT)?)
}

/// Reads a slot; `None` if it is not whole.
fn read(record: VolatileSlice<'_>, which: u64) -> Option<(u64, Vec<u8>)> {
    let slot = slot(record, which).ok()?;
    let (mut number, mut length, mut expected) = ([0; 8], [0; 4], [0; 32]);
    slot.read_slice(&mut number, 0).ok()?;
    slot.read_slice(&mut length, 8).ok()?;
    slot.read_slice(&mut expected, 16).ok()?;
    let (number, length) = (u64::from_le_bytes(number), u32::from_le_bytes(length) as usize);
    if length > LIMIT || number % 2 != which % 2 {
        return None;
    }
    let mut text = vec![0; length];
    slot.read_slice(&mut text, TEXT).ok()?;
    (digest(number, &text) == expected).then_some((number, text))
}

fn digest(number: u64, text: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(number.to_le_bytes());
    hash.update((text.len() as u32).to_le_bytes());
    hash.update(text);
    hash.finalize().into()
}
