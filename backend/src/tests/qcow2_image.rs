//! qcow2 images made byte by byte: sound ones, and those that no tool would make.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// The shape of an image.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) version: u32,
    pub(crate) cluster_bits: u32,
    pub(crate) refcount_order: u32,
    /// The disk's bytes.
    pub(crate) size: u64,
    /// The disk's first clusters that have data: each the byte of its number.
    pub(crate) data: u64,
}

impl Default for Shape {
    fn default() -> Self {
        Self { version: 3, cluster_bits: 16, refcount_order: 4, size: 8 << 20, data: 2 }
    }
}

/// Where things are in every image here, in clusters.
pub(crate) mod place {
    pub(crate) const REFCOUNT_TABLE: u64 = 1;
    pub(crate) const REFCOUNT_BLOCK: u64 = 2;
    pub(crate) const L1: u64 = 3;
    pub(crate) const L2: u64 = 4;
    pub(crate) const DATA: u64 = 5;
}

/// The mark of what is used once.
pub(crate) const COPIED: u64 = 1 << 63;

/// An image's bytes.
pub(crate) struct ImageBytes {
    pub(crate) shape: Shape,
    pub(crate) bytes: Vec<u8>,
}

impl ImageBytes {
    /// A sound image with one level 2 table.
    pub(crate) fn new(shape: Shape) -> Self {
        let cluster = 1 << shape.cluster_bits;
        let bytes = vec![0; ((place::DATA + shape.data) * cluster) as usize];
        let mut image = Self { shape, bytes };
        image.put_header();
        image.put_u64(image.at(place::REFCOUNT_TABLE), image.at(place::REFCOUNT_BLOCK));
        image.put_u64(image.at(place::L1), COPIED | image.at(place::L2));
        for number in 0..shape.data {
            let data = image.at(place::DATA + number);
            image.put_u64(image.l2_entry(number), COPIED | data);
            image.bytes[data as usize..][..cluster as usize].fill(number as u8 + 1);
        }
        for number in 0..place::DATA + shape.data {
            image.set_refcount(number, 1);
        }
        image
    }

    fn put_header(&mut self) {
        let Shape { version, cluster_bits, refcount_order, size, .. } = self.shape;
        let l2_covers = 1u64 << (2 * cluster_bits - 3);
        assert!(size <= l2_covers, "one level 2 table");
        self.bytes[..4].copy_from_slice(b"QFI\xfb");
        self.put_u32(4, version);
        self.put_u32(20, cluster_bits);
        self.put_u64(24, size);
        self.put_u32(36, 1);
        self.put_u64(40, self.at(place::L1));
        self.put_u64(48, self.at(place::REFCOUNT_TABLE));
        self.put_u32(56, 1);
        if version >= 3 {
            self.put_u32(96, refcount_order);
            self.put_u32(100, 104);
        }
    }

    /// The offset of a cluster.
    pub(crate) fn at(&self, cluster: u64) -> u64 {
        cluster << self.shape.cluster_bits
    }

    /// The offset of an entry of the level 2 table.
    pub(crate) fn l2_entry(&self, number: u64) -> u64 {
        self.at(place::L2) + 8 * number
    }

    pub(crate) fn put_u32(&mut self, at: u64, value: u32) {
        self.bytes[at as usize..][..4].copy_from_slice(&value.to_be_bytes());
    }

    pub(crate) fn put_u64(&mut self, at: u64, value: u64) {
        self.bytes[at as usize..][..8].copy_from_slice(&value.to_be_bytes());
    }

    /// Adds clusters of zeros at the end; gives the first one's number.
    pub(crate) fn add_clusters(&mut self, count: u64) -> u64 {
        let first = (self.bytes.len() as u64).div_ceil(self.at(1));
        self.bytes.resize(self.at(first + count) as usize, 0);
        first
    }

    pub(crate) fn set_refcount(&mut self, cluster: u64, count: u64) {
        let order = self.shape.refcount_order;
        let (bits, block) = (1u64 << order, self.at(place::REFCOUNT_BLOCK) as usize);
        let at = block + (cluster * bits / 8) as usize;
        if bits >= 8 {
            let bytes = (bits / 8) as usize;
            self.bytes[at..at + bytes].copy_from_slice(&count.to_be_bytes()[8 - bytes..]);
        } else {
            let shift = cluster * bits % 8;
            let mask = ((1u64 << bits) - 1) as u8;
            self.bytes[at] = self.bytes[at] & !(mask << shift) | (count as u8) << shift;
        }
    }

    /// Adds a header extension behind those that are there; `at` is where it goes.
    pub(crate) fn add_extension(&mut self, at: u64, kind: u32, data: &[u8]) -> u64 {
        self.put_u32(at, kind);
        self.put_u32(at + 4, data.len() as u32);
        self.bytes[at as usize + 8..][..data.len()].copy_from_slice(data);
        at + 8 + (data.len() as u64).next_multiple_of(8)
    }

    /// Names a backing file, and its format in an extension.
    pub(crate) fn set_backing(&mut self, name: &str, format: Option<&str>) {
        const BACKING_FORMAT: u32 = 0xe279_2aca;
        let mut at = if self.shape.version == 2 { 72 } else { 104 };
        if let Some(format) = format {
            at = self.add_extension(at, BACKING_FORMAT, format.as_bytes());
        }
        at = self.add_extension(at, 0, &[]);
        self.put_u64(8, at);
        self.put_u32(16, name.len() as u32);
        self.bytes[at as usize..][..name.len()].copy_from_slice(name.as_bytes());
    }

    /// Writes it into a directory of its own.
    pub(crate) fn store(&self) -> (TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.qcow2");
        self.store_at(&path);
        (directory, path)
    }

    pub(crate) fn store_at(&self, path: &Path) {
        fs::write(path, &self.bytes).unwrap();
    }
}
