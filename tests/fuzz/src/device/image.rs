//! A small qcow2 image with parts that the input overwrites.

use arbitrary::{Result, Unstructured};

/// Size of a cluster in bytes: the smallest, so that a few bytes are a large part of every table.
const CLUSTER: usize = 512;
/// Number of clusters in the file.
const CLUSTERS: usize = 12;
/// Size of the disk in bytes.
const SIZE: u64 = 64 << 10;

/// Numbers of the clusters with the tables and with data.
const REFCOUNT_TABLE: usize = 1;
const REFCOUNT_BLOCK: usize = 2;
const L1: usize = 3;
const L2: usize = 4;
const DATA: usize = 6;

/// Flag of a table entry whose cluster has a reference count of 1.
const COPIED: u64 = 1 << 63;

/// The image after the input has overwritten parts of it.
pub(super) fn spoiled(input: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let mut image = whole();
    for _ in 0..input.int_in_range(0..=8)? {
        let bytes: &[u8] = input.arbitrary()?;
        // Header and tables are most of the image.
        let offset = usize::from(input.arbitrary::<u16>()?) % image.len();
        let length = bytes.len().min(image.len() - offset);
        image[offset..offset + length].copy_from_slice(&bytes[..length]);
    }
    if input.ratio(1, 8)? {
        image.truncate(input.int_in_range(0..=image.len())?);
    }
    Ok(image)
}

fn whole() -> Vec<u8> {
    let mut image = vec![0; CLUSTERS * CLUSTER];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    let at = |cluster: usize| (cluster * CLUSTER) as u64;
    put(0, b"QFI\xfb");
    for (offset, value) in [
        (4, 3),
        // cluster_bits
        (20, 9),
        // l1_size
        (36, 2),
        // refcount_table_clusters
        (56, 1),
        // refcount_order: 16 bits
        (96, 4),
        // header_length
        (100, 104),
    ] {
        put(offset, &u32::to_be_bytes(value));
    }
    put(24, &SIZE.to_be_bytes());
    put(40, &at(L1).to_be_bytes());
    put(48, &at(REFCOUNT_TABLE).to_be_bytes());
    put(REFCOUNT_TABLE * CLUSTER, &at(REFCOUNT_BLOCK).to_be_bytes());
    for cluster in 0..CLUSTERS {
        put(REFCOUNT_BLOCK * CLUSTER + 2 * cluster, &1u16.to_be_bytes());
    }
    for table in 0..2 {
        put(L1 * CLUSTER + 8 * table, &(at(L2 + table) | COPIED).to_be_bytes());
    }
    // The first clusters of each half of the disk have data; the others are unallocated.
    for cluster in DATA..CLUSTERS {
        let (table, entry) = (L2 + cluster % 2, (cluster - DATA) / 2);
        put(table * CLUSTER + 8 * entry, &(at(cluster) | COPIED).to_be_bytes());
    }
    image
}
