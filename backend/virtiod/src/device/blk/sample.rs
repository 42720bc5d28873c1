//! Test support: qcow2 images made byte by byte, sound ones and those that no tool would make.

/// The shape of an image.
#[derive(Clone, Copy)]
pub struct Shape {
    /// The version of the format, 2 or 3.
    pub version: u32,
    /// Binary logarithm of the cluster size in bytes.
    pub cluster_bits: u32,
    /// Binary logarithm of the bits of a refcount.
    pub refcount_order: u32,
    /// Size of the disk in bytes.
    pub size: u64,
    /// Number of the disk's first clusters that have data: each is filled with its number plus 1.
    pub data: u64,
}

impl Default for Shape {
    fn default() -> Self {
        Self { version: 3, cluster_bits: 16, refcount_order: 4, size: 8 << 20, data: 2 }
    }
}

/// Locations in every image here, in clusters.
#[allow(missing_docs, reason = "the names are the documentation")]
pub mod position {
    pub const REFCOUNT_TABLE: u64 = 1;
    pub const REFCOUNT_BLOCK: u64 = 2;
    pub const L1: u64 = 3;
    pub const L2: u64 = 4;
    pub const DATA: u64 = 5;
}

/// The mark in an entry whose cluster is used once.
pub const COPIED: u64 = 1 << 63;

/// An image's bytes.
pub struct ImageBytes {
    /// The shape that the image was made with.
    pub shape: Shape,
    /// The contents of the whole file.
    pub bytes: Vec<u8>,
}

impl ImageBytes {
    /// A sound image with one level 2 table.
    pub fn new(shape: Shape) -> Self {
        let cluster = 1 << shape.cluster_bits;
        let bytes = vec![0; ((position::DATA + shape.data) * cluster) as usize];
        let mut image = Self { shape, bytes };
        image.put_header();
        image.put_u64(image.at(position::REFCOUNT_TABLE), image.at(position::REFCOUNT_BLOCK));
        image.put_u64(image.at(position::L1), COPIED | image.at(position::L2));
        for number in 0..shape.data {
            let data = image.at(position::DATA + number);
            image.put_u64(image.l2_entry(number), COPIED | data);
            image.bytes[data as usize..][..cluster as usize].fill(number as u8 + 1);
        }
        for number in 0..position::DATA + shape.data {
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
        self.put_u64(40, self.at(position::L1));
        self.put_u64(48, self.at(position::REFCOUNT_TABLE));
        self.put_u32(56, 1);
        if version >= 3 {
            self.put_u32(96, refcount_order);
            self.put_u32(100, 104);
        }
    }

    /// The offset of a cluster in the file.
    pub fn at(&self, cluster: u64) -> u64 {
        cluster << self.shape.cluster_bits
    }

    /// The offset in the file of an entry of the level 2 table.
    pub fn l2_entry(&self, number: u64) -> u64 {
        self.at(position::L2) + 8 * number
    }

    /// Writes a big-endian field of 4 bytes at offset `at`.
    pub fn put_u32(&mut self, at: u64, value: u32) {
        self.bytes[at as usize..][..4].copy_from_slice(&value.to_be_bytes());
    }

    /// Writes a big-endian field of 8 bytes at offset `at`.
    pub fn put_u64(&mut self, at: u64, value: u64) {
        self.bytes[at as usize..][..8].copy_from_slice(&value.to_be_bytes());
    }

    /// Adds clusters of zeros at the end; returns the number of the first.
    pub fn add_clusters(&mut self, count: u64) -> u64 {
        let first = (self.bytes.len() as u64).div_ceil(self.at(1));
        self.bytes.resize(self.at(first + count) as usize, 0);
        first
    }

    /// Sets the reference count of a cluster.
    pub fn set_refcount(&mut self, cluster: u64, count: u64) {
        let order = self.shape.refcount_order;
        let (bits, block) = (1u64 << order, self.at(position::REFCOUNT_BLOCK) as usize);
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

    /// Adds a header extension at offset `at`; returns the offset behind it.
    pub fn add_extension(&mut self, at: u64, kind: u32, data: &[u8]) -> u64 {
        self.put_u32(at, kind);
        self.put_u32(at + 4, data.len() as u32);
        self.bytes[at as usize + 8..][..data.len()].copy_from_slice(data);
        at + 8 + (data.len() as u64).next_multiple_of(8)
    }

    /// Sets a backing file, and its format in an extension.
    pub fn set_backing(&mut self, name: &str, format: Option<&str>) {
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
}

/// An image with a snapshot of all its data, as QEMU makes it.
pub fn snapshotted() -> ImageBytes {
    let mut image = ImageBytes::new(Shape::default());
    let table = image.add_clusters(2);
    let (l1, place_of_table) = (table + 1, image.at(table));
    image.put_u32(60, 1);
    image.put_u64(64, place_of_table);
    image.put_u64(place_of_table, image.at(l1));
    image.put_u32(place_of_table + 8, 1);
    image.put_u32(place_of_table + 12, 1 << 16 | 4);
    image.put_u32(place_of_table + 36, 16);
    image.bytes[place_of_table as usize + 56..][..5].copy_from_slice(b"1once");
    // No entry has the mark any more, and all clusters of the disk are counted twice.
    image.put_u64(image.at(position::L1), image.at(position::L2));
    image.put_u64(image.at(l1), image.at(position::L2));
    (0..2).for_each(|number| {
        image.put_u64(image.l2_entry(number), image.at(position::DATA + number))
    });
    [table, l1].into_iter().for_each(|cluster| image.set_refcount(cluster, 1));
    (position::L2..position::DATA + 2).for_each(|cluster| image.set_refcount(cluster, 2));
    image
}

/// An image with clusters of 4096 bytes, whose first data cluster is in compressed form at the end.
pub fn compressed() -> ImageBytes {
    let mut image = ImageBytes::new(Shape { cluster_bits: 12, size: 1 << 20, ..Shape::default() });
    let first = image.add_clusters(2);
    let at = image.at(first) as usize;
    // One stored block of deflate: its length, the same with all bits inverted, and the bytes.
    let block = [&[1, 0x00, 0x10, 0xff, 0xef][..], &[0x5a; 4096]].concat();
    image.bytes[at..at + block.len()].copy_from_slice(&block);
    let further_sectors = block.len() as u64 / 512;
    image.put_u64(image.l2_entry(0), 1 << 62 | further_sectors << 58 | at as u64);
    image.set_refcount(position::DATA, 0);
    [first, first + 1].into_iter().for_each(|cluster| image.set_refcount(cluster, 1));
    image
}

/// Sound images of several shapes, from which fuzzing starts.
pub fn qcow2_samples() -> Vec<Vec<u8>> {
    let shapes = [
        Shape::default(),
        Shape { version: 2, ..Shape::default() },
        Shape { size: 8192, data: 1, ..Shape::default() },
        Shape { cluster_bits: 9, size: 32 << 10, ..Shape::default() },
        Shape { cluster_bits: 12, size: 1 << 20, refcount_order: 0, ..Shape::default() },
        Shape { cluster_bits: 12, size: 1 << 20, refcount_order: 6, ..Shape::default() },
    ];
    let plain = shapes.map(|shape| ImageBytes::new(shape).bytes);
    plain.into_iter().chain([snapshotted().bytes, compressed().bytes]).collect()
}
