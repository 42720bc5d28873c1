//! A virtqueue of a virtio block device, and two requests in it, in two pages that have nothing
//! else. Its parts stand where Linux puts them for a queue of 256: see virtio 1.2, 2.7.

use std::fmt;

/// Bytes of it all. Linux aligns it to as much.
pub(crate) const BLOCK: u64 = 8192;

// Where things stand. The card knows of the available and the used ring by the guest's driver.
const HEADERS: u64 = 0x800;
const STATUS: u64 = 0x820;
const GIVEN: u64 = 0xa00;
const TAKEN: u64 = 0xc00;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x1240;

const SECTOR: usize = 512;
const HEADER: u32 = 16;

/// The sector that the first request writes to; the second reads the disk's first.
const SECTOR_WRITTEN: u64 = 64;

/// A status byte that no device has written.
const UNTOUCHED: u8 = 0xff;

const NEXT: u16 = 1;
const DEVICE_WRITES: u16 = 2;

/// The kinds of request [5.2.6].
const IN: u32 = 0;
const OUT: u32 = 1;

/// What is to be written, and where in the block, to plant a virtqueue at `address`. The first
/// request writes `words` to the disk.
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
        // No flags, two entries: the chains that begin with descriptors 0 and 3.
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

/// What a card made of a planted virtqueue.
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

/// What a card made of the virtqueue that `read` reads from; none if nothing.
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
    fn the_parts_do_not_overlap() {
        let mut end = 0;
        for (at, bytes) in planted(0, "words") {
            assert!(at >= end, "{at:#x} is behind {end:#x}");
            end = at + bytes.len() as u64;
        }
        assert!(end <= BLOCK);
    }

    #[test]
    fn descriptors_lie_in_the_block_that_they_are_planted_in() {
        let block = block(0x4000);
        let address = |n: usize| u64::from_le_bytes(block[16 * n..16 * n + 8].try_into().unwrap());
        for n in 0..6 {
            assert!((0x4000..0x4000 + BLOCK).contains(&address(n)));
        }
        assert_eq!(&block[GIVEN as usize..GIVEN as usize + 5], b"words");
    }

    #[test]
    fn only_what_a_device_wrote_counts_as_used() {
        let mut block = block(0);
        assert_eq!(used_in(&block), None);
        block[USED as usize + 2] = 2;
        block[STATUS as usize..STATUS as usize + 2].fill(0);
        block[TAKEN as usize..TAKEN as usize + 5].copy_from_slice(b"disk\n");
        let used = used_in(&block).unwrap();
        assert_eq!(used.to_string(), "2 requests served, status 0 and 0, read: disk");
    }
}
