//! The size of a device's pool: its limits, by how much it grows, how much it keeps.

use super::{CHUNK_PAGES, MAX_CHUNKS};

/// The pool of one device gets at most 1 of this many of the guest's grant references.
const DEVICE_SHARE: u32 = 8;

/// All pools of the guest together grow to at most 3 of this many of the guest's grant references.
/// The others remain for first chunks, rings, buffers outside of the pools, and other frontends.
const GROWTH_SHARE: u32 = 8;

/// First chunks may use 1 of this many of the references, pools that have grown included: devices
/// that come late find their first chunk, whatever the other pools took.
const FIRST_CHUNK_SHARE: u32 = 2;

/// The maximum number of chunks in one device's pool. The guest's administrator allows `pages`
/// pages for each device; the guest has `references` grant references in all.
pub const fn chunk_limit(pages: u32, references: u32) -> u32 {
    let share = references / DEVICE_SHARE;
    let pages = if pages < share { pages } else { share };
    let chunks = pages / CHUNK_PAGES;
    if chunks < MAX_CHUNKS { chunks } else { MAX_CHUNKS }
}

/// The maximum number of chunks that all pools of the guest have after one of them gets its chunk
/// `number`.
pub const fn guest_limit(number: u32, references: u32) -> u32 {
    let pages = match number {
        0 => references / FIRST_CHUNK_SHARE,
        _ => references / GROWTH_SHARE * 3,
    };
    pages / CHUNK_PAGES
}

/// The number of chunks to which a pool of `chunks` chunks grows when buffers of `missing` pages in
/// all found it full: room for them, and at least twice its size, because each round costs more
/// buffers that are granted one by one.
pub fn grown(chunks: u32, missing: u32, limit: u32) -> u32 {
    let needed = chunks.saturating_add(missing.div_ceil(CHUNK_PAGES));
    needed.max(chunks.saturating_mul(2)).min(limit).max(chunks)
}

/// The number of chunks that a pool keeps: at least `least`, and those up to the last of the chunks
/// that were `touched`, a bit each.
pub const fn kept(touched: u64, least: u32) -> u32 {
    let used = u64::BITS - touched.leading_zeros();
    if used > least { used } else { least }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spec_7_the_pool_is_bounded() {
        assert_eq!(chunk_limit(1024, 32768), 16);
        assert_eq!(chunk_limit(u32::MAX, u32::MAX), MAX_CHUNKS);
        assert_eq!(chunk_limit(1024, 1024), 2, "few references");
        assert_eq!(chunk_limit(63, 32768), 0);
        assert_eq!(chunk_limit(0, 0), 0);
    }

    #[test]
    fn pool_grows_by_what_did_not_fit() {
        assert_eq!(grown(1, 256, 64), 5);
        assert_eq!(grown(1, 257, 64), 6);
        assert_eq!(grown(8, 4096, 64), 64, "the limit");
        assert_eq!(grown(1, u32::MAX, u32::MAX), 1 + u32::MAX / CHUNK_PAGES + 1);
    }

    #[test]
    fn pool_grows_to_twice_its_size_at_least() {
        assert_eq!(grown(4, 1, 64), 8);
        assert_eq!(grown(4, 1, 6), 6, "the limit");
        assert_eq!(grown(4, 1, 2), 4, "a pool beyond its limit stays");
        assert_eq!(grown(0, 1, 64), 1);
    }

    #[test]
    fn pool_of_4_mib_needs_three_rounds_for_deep_requests() {
        // 8 requests of 256 KiB, of which a round serves those that fit.
        let need = 8 * 64;
        let (mut chunks, mut rounds) = (1, 0);
        while chunks * CHUNK_PAGES < need {
            chunks = grown(chunks, need - chunks * CHUNK_PAGES, 64);
            rounds += 1;
        }
        assert!(rounds <= 3, "{rounds}");
    }

    #[test]
    fn pool_keeps_the_chunks_up_to_the_last_that_was_touched() {
        assert_eq!([0, 1, 0b100, 1 << 63].map(|touched| kept(touched, 1)), [1, 1, 3, 64]);
        assert_eq!([0, 0b100, 1 << 7].map(|touched| kept(touched, 5)), [5, 5, 8]);
    }

    #[test]
    fn spec_7_35_pools_of_one_guest_share_its_references() {
        let references = 32768;
        let one = chunk_limit(4096, references);
        assert!(8 * one > guest_limit(1, references), "devices together, not each");
        assert_eq!(guest_limit(1, references) * CHUNK_PAGES, references / 8 * 3);
        assert_eq!(guest_limit(1, 0), 0);
        assert_eq!(guest_limit(1, u32::MAX), (u32::MAX / 8 * 3) / CHUNK_PAGES);
    }

    #[test]
    fn late_device_gets_its_first_chunk() {
        for references in [2048, 32768] {
            let grown = guest_limit(1, references);
            assert!(guest_limit(0, references) >= grown + grown / 3, "{references}");
        }
    }
}
