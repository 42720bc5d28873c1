//! Bouncing: the driver copies those ends of a buffer that share a page with other data to pages of
//! their own, so that it grants nothing but the buffer [3.9].

use protocol::grant::PAGE_SIZE;

/// The only domain whose backends can be trusted by default [3.8].
const DOM0: u16 = 0;

/// When to bounce buffers that share a page with other data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Bounce for an untrusted backend [3.8].
    Auto,
    /// Bounce for every backend.
    Always,
    /// Bounce for no backend: it can read whole pages that hold a part of a buffer.
    Never,
}

impl Policy {
    /// Whether to bounce for a backend in domain `backend`, where `trusted` is the toolstack's key
    /// [3.8].
    pub const fn bounces(self, trusted: bool, backend: u16) -> bool {
        match self {
            Self::Auto => !trusted || backend != DOM0,
            Self::Always => true,
            Self::Never => false,
        }
    }
}

/// The bytes of a buffer in one of its pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Offset of the first byte in the page.
    pub offset: u32,
    /// Number of bytes, at least 1 and not past the page's end.
    pub length: u32,
}

impl Piece {
    /// The piece of the buffer of `length` bytes at `address` in its page `index`, counted from 0;
    /// `None` if the buffer touches fewer pages. Only the page offset of `address` counts, so that
    /// the address may be guest-physical or a DMA address.
    pub const fn of(address: u64, length: u64, index: u32) -> Option<Self> {
        let start = address & (PAGE_SIZE - 1);
        let (offset, before) =
            if index == 0 { (start, 0) } else { (0, index as u64 * PAGE_SIZE - start) };
        if length <= before {
            return None;
        }
        let (left, to_page_end) = (length - before, PAGE_SIZE - offset);
        let length = if left < to_page_end { left } else { to_page_end };
        Some(Self { offset: offset as u32, length: length as u32 })
    }

    /// Whether the piece fills its page, so that the driver may grant the page itself [3.9].
    pub const fn fills_page(self) -> bool {
        self.length as u64 == PAGE_SIZE
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use super::*;
    use crate::dma::{DmaDirection, Plan};

    /// Offset and length of the piece in each page, and whether it bounces.
    fn pieces(address: u64, length: u64) -> Vec<(u32, u32, bool)> {
        (0..)
            .map_while(|index| Piece::of(address, length, index))
            .map(|piece| (piece.offset, piece.length, !piece.fills_page()))
            .collect()
    }

    #[test]
    fn spec_3_8_backend_is_trusted_in_dom0_with_key_trusted() {
        for (trusted, backend, bounces) in
            [(true, 0, false), (false, 0, true), (true, 3, true), (false, 3, true)]
        {
            assert_eq!(Policy::Auto.bounces(trusted, backend), bounces, "{trusted} {backend}");
            assert!(Policy::Always.bounces(trusted, backend));
            assert!(!Policy::Never.bounces(trusted, backend));
        }
    }

    #[test]
    fn spec_3_9_whole_pages_are_not_bounced() {
        assert_eq!(pieces(0x1000, 4096), [(0, 4096, false)]);
        assert_eq!(pieces(0x5000, 12288), [(0, 4096, false); 3]);
    }

    #[test]
    fn spec_3_9_partly_filled_pages_are_bounced() {
        assert_eq!(pieces(0x1000, 512), [(0, 512, true)], "ends early");
        assert_eq!(pieces(0x1e00, 512), [(0xe00, 512, true)], "starts late");
        assert_eq!(pieces(0x1ff0, 1), [(0xff0, 1, true)], "neither");
        assert_eq!(pieces(0x1fff, 2), [(0xfff, 1, true), (0, 1, true)], "two bytes that straddle");
        assert_eq!(pieces(0x1001, 4095), [(1, 4095, true)]);
    }

    #[test]
    fn spec_3_9_only_the_ends_of_a_long_buffer_are_bounced() {
        let (whole, head, tail) = ((0, 4096, false), (0xe00, 512, true), (0, 512, true));
        assert_eq!(pieces(0x1e00, 512 + 8192 + 512), [head, whole, whole, tail]);
        assert_eq!(pieces(0x1e00, 512 + 8192), [head, whole, whole]);
        assert_eq!(pieces(0x1000, 8192 + 512), [whole, whole, tail]);
    }

    #[test]
    fn spec_3_9_pieces_cover_the_buffer_page_by_page() {
        for start in [0, 1, 511, 2048, 4095] {
            for length in [1, 2, 4095, 4096, 4097, 8191, 8192, 70_000] {
                let plan = Plan::new(0x7_0000 + start, length, DmaDirection::ToDevice).unwrap();
                let pieces = pieces(start, length);
                assert_eq!(pieces.len(), plan.pages as usize, "{length} bytes at {start}");
                let bytes: u64 = pieces.iter().map(|(_, length, _)| u64::from(*length)).sum();
                assert_eq!(bytes, length);
                assert_eq!(u64::from(pieces[0].0), start);
                assert!(pieces[1..].iter().all(|(offset, ..)| *offset == 0));
                let ends = pieces[..pieces.len() - 1].iter().map(|(at, length, _)| at + length);
                assert!(ends.into_iter().all(|end| end == 4096));
            }
        }
    }

    #[test]
    fn pieces_of_impossible_buffers_are_none_or_within_their_page() {
        assert_eq!(Piece::of(0x1000, 0, 0), None);
        assert_eq!(Piece::of(u64::MAX, u64::MAX, 0), Some(Piece { offset: 4095, length: 1 }));
        let last = Piece::of(u64::MAX, u64::MAX, u32::MAX);
        assert_eq!(last, Some(Piece { offset: 0, length: 4096 }));
    }
}
