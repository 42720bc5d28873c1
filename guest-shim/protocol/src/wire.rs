//! Bounds-checked access to the little-endian fields of messages.

use crate::message::MessageError;

/// Reads consecutive fields from the front of a received message.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    /// Whether all bytes were read.
    pub(crate) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Result<&'a [u8], MessageError> {
        let (head, rest) = self.0.split_at_checked(count).ok_or(MessageError::Truncated)?;
        self.0 = rest;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], MessageError> {
        self.bytes(N)?.try_into().map_err(|_| MessageError::Truncated)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, MessageError> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub(crate) fn u16(&mut self) -> Result<u16, MessageError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, MessageError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, MessageError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Reads `count` bytes, where the peer supplied the count.
    pub(crate) fn counted(&mut self, count: u32) -> Result<&'a [u8], MessageError> {
        self.bytes(usize::try_from(count).map_err(|_| MessageError::Truncated)?)
    }
}

/// Writes consecutive fields into a buffer.
pub(crate) struct Writer<'a> {
    buffer: &'a mut [u8],
    used: usize,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(buffer: &'a mut [u8]) -> Self {
        Self { buffer, used: 0 }
    }

    pub(crate) fn used(&self) -> usize {
        self.used
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Result<(), MessageError> {
        let end = self.used.checked_add(bytes.len()).ok_or(MessageError::TooLong)?;
        let target = self.buffer.get_mut(self.used..end).ok_or(MessageError::TooLong)?;
        // Not copy_from_slice: the optimiser may keep the panic of its length check.
        target.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        self.used = end;
        Ok(())
    }

    pub(crate) fn u8(&mut self, value: u8) -> Result<(), MessageError> {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn u16(&mut self, value: u16) -> Result<(), MessageError> {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn u32(&mut self, value: u32) -> Result<(), MessageError> {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn u32s<const N: usize>(&mut self, values: [u32; N]) -> Result<(), MessageError> {
        values.into_iter().try_for_each(|value| self.u32(value))
    }

    pub(crate) fn u64(&mut self, value: u64) -> Result<(), MessageError> {
        self.bytes(&value.to_le_bytes())
    }

    /// Overwrites bytes at offset `at`, for a field whose value is known only at the end.
    pub(crate) fn patch(&mut self, at: usize, bytes: &[u8]) {
        self.buffer.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
    }
}
