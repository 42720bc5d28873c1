//! A block of two pages with a virtqueue of a virtio block device and two requests. The available
//! and the used ring have the offsets of Linux's layout for a queue of 256: see virtio 1.2, 2.7.

use std::fmt;

/// Size of a block in bytes, which is also Linux's alignment of the virtqueue.
pub(crate) const BLOCK: u64 = 8192;

// Offsets in the block. The guest's driver gives those of the available and used ring to the card.
const HEADERS: u64 = 0x800;
const STATUS: u64 = 0x820;
const GIVEN: u64 = 0xa00;
const TAKEN: u64 = 0xc00;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x1240;

const SECTOR: usize = 512;
const HEADER: u32 = 16;

/// The sector that the first request writes; the second request reads sector 0.
const SECTOR_WRITTEN: u64 = 64;

/// The initial status byte, which no device writes.
const UNTOUCHED: u8 = 0xff;

const NEXT: u16 = 1;
const DEVICE_WRITES: u16 = 2;

/// Request types (virtio 1.2, 5.2.6).
const IN: u32 = 0;
const OUT: u32 = 1;

/// The contents of a block at `address`, each with its offset. The first request writes `words` to
/// the disk.
pub(crate) fn planted(address: u64, words: &str) -> Vec<(u64, Vec<u8>)> {
    let mut given = words.as_bytes().to_vec();
    given.resize(SECTOR, 0);
    let write = chain(0, address + HEADERS, address + GIVEN, 0, address + STATUS);
    let second_header = address + HEADERS + u64::from(HEADER);
    let read = chain(3, second_header, address + TAKEN, DEVICE_WRITES, address + STATUS + 1);
    vec![
        (0, [write, read].concat()),
        (HEADERS, [header(OUT, SECTOR_WRITTEN), header(IN, 0)].concat()),
        (STATUS, vec![UNTOUCHED; 2]),
        (GIVEN, given),
        (TAKEN, vec![0; SECTOR]),
        // No flags, index 2: the chains that start at descriptors 0 and 3.
        (AVAILABLE, [0u16, 2, 0, 3].map(u16::to_le_bytes).concat()),
        (USED, vec![0; 4]),
    ]
}

/// Descriptors `first` to `first + 2`: header, data and status.
fn chain(first: u16, header: u64, data: u64, data_flags: u16, status: u64) -> Vec<u8> {
    [
        descriptor(header, HEADER, NEXT, first + 1),
        descriptor(data, SECTOR as u32, NEXT | data_flags, first + 2),
        descriptor(status, 1, DEVICE_WRITES, 0),
    ]
    .concat()
}

fn descriptor(address: u64, length: u32, flags: u16, next: u16) -> Vec<u8> {
    let (address, length) = (address.to_le_bytes(), length.to_le_bytes());
    [address.as_slice(), &length, &flags.to_le_bytes(), &next.to_le_bytes()].concat()
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [kind.to_le_bytes().as_slice(), &[0; 4], &sector.to_le_bytes()].concat()
}

/// The traces of a card in a planted virtqueue.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Used {
    served: u16,
    status: [u8; 2],
    taken: String,
}

impl fmt::Display for Used {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Used { served, status: [write, read], taken } = self;
        write!(f, "{served} requests served, status {write} and {read}, read: {taken}")
    }
}

/// Reads a block with `read`, and returns a card's traces; `None` if no card has used it.
pub(crate) fn used(read: impl Fn(u64, &mut [u8])) -> Option<Used> {
    let mut index = [0; 2];
    read(USED + 2, &mut index);
    let mut status = [0; 2];
    read(STATUS, &mut status);
    let served = u16::from_le_bytes(index);
    if served == 0 && status == [UNTOUCHED; 2] {
        return None;
    }
    let mut sector = [0; SECTOR];
    read(TAKEN, &mut sector);
    let words = sector.split(|&byte| byte == 0 || byte == b'\n').next().unwrap_or_default();
    Some(Used { served, status, taken: String::from_utf8_lossy(words).into_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(address: u64) -> Vec<u8> {
        let mut block = vec![0; BLOCK as usize];
        for (at, bytes) in planted(address, "words") {
            block[at as usize..at as usize + bytes.len()].copy_from_slice(&bytes);
        }
        block
    }

    fn used_in(block: &[u8]) -> Option<Used> {
        used(|at, bytes| bytes.copy_from_slice(&block[at as usize..at as usize + bytes.len()]))
    }

    #[test]
    fn parts_do_not_overlap() {
        let mut end = 0;
        for (at, bytes) in planted(0, "words") {
            assert!(at >= end, "{at:#x} is behind {end:#x}");
            end = at + bytes.len() as u64;
        }
        assert!(end <= BLOCK);
    }

    #[test]
    fn descriptors_name_memory_of_their_own_block() {
        let block = block(0x4000);
        let address = |n: usize| u64::from_le_bytes(block[16 * n..16 * n + 8].try_into().unwrap());
        for n in 0..6 {
            assert!((0x4000..0x4000 + BLOCK).contains(&address(n)));
        }
        assert_eq!(&block[GIVEN as usize..GIVEN as usize + 5], b"words");
    }

    #[test]
    fn only_blocks_that_a_device_wrote_are_used() {
        let mut block = block(0);
        assert_eq!(used_in(&block), None);
        block[USED as usize + 2] = 2;
        block[STATUS as usize..STATUS as usize + 2].fill(0);
        block[TAKEN as usize..TAKEN as usize + 5].copy_from_slice(b"disk\n");
        let used = used_in(&block).unwrap();
        assert_eq!(used.to_string(), "2 requests served, status 0 and 0, read: disk");
    }
}
