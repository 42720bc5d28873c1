//! The header of a qcow2 image (QEMU, `docs/interop/qcow2.txt`). Our own code reads it before the
//! library opens the image.
//!
//! The daemon refuses an image that it cannot serve, with the reason and a command that helps. The
//! library itself does not check encryption, and trusts the offsets and sizes of tables.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// "QFI" and 0xfb.
const MAGIC: u32 = 0x5146_49fb;
/// Bytes of a header of version 2.
const V2_SIZE: u64 = 72;
/// Minimum bytes of a header of version 3.
const V3_SIZE: u64 = 104;
/// Binary logarithms of the allowed cluster sizes: from 2^9 to 2^21 bytes, which is QEMU's limit.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// Maximum bytes of a level 1 table: QEMU's limit.
const MAX_L1_BYTES: u64 = 32 << 20;
/// Maximum bytes of the refcount table: QEMU's limit.
const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
/// Maximum number of internal snapshots: QEMU's limit.
const MAX_SNAPSHOTS: u32 = 65536;
/// Maximum bytes of a backing file's name.
const MAX_NAME: u32 = 1023;
/// Binary logarithm of the bits of a refcount in version 2.
const V2_REFCOUNT_ORDER: u32 = 4;
/// Maximum binary logarithm of the bits of a refcount.
const MAX_REFCOUNT_ORDER: u32 = 6;
/// Bytes of an entry of the feature name table.
const FEATURE_NAME: usize = 48;

/// Types of header extensions.
mod extension {
    pub(super) const END: u32 = 0;
    pub(super) const BACKING_FORMAT: u32 = 0xe279_2aca;
    pub(super) const FEATURE_NAMES: u32 = 0x6803_f857;
    pub(super) const BITMAPS: u32 = 0x2385_2875;
}

/// Bit of `autoclear_features`: the bitmaps are valid.
const BITMAPS_ARE_VALID: u64 = 1 << 0;

/// Bits of `incompatible_features`.
mod incompatible {
    pub(super) const DIRTY: u64 = 1 << 0;
    pub(super) const CORRUPT: u64 = 1 << 1;
    pub(super) const DATA_FILE: u64 = 1 << 2;
    pub(super) const COMPRESSION: u64 = 1 << 3;
    pub(super) const EXTENDED_L2: u64 = 1 << 4;
}

/// The part of a header that the backend needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Qcow2Header {
    /// 2 or 3.
    pub(super) version: u32,
    /// Binary logarithm of the cluster size in bytes.
    pub(super) cluster_bits: u32,
    /// Size of the disk in bytes.
    pub(super) size: u64,
    pub(super) l1: Table,
    pub(super) refcount_table: Table,
    /// Binary logarithm of the bits of a refcount.
    pub(super) refcount_order: u32,
    pub(super) snapshots: Snapshots,
    pub(super) backing: Option<Backing>,
    /// The directory of its dirty bitmaps, if they are valid.
    pub(super) bitmaps: Option<Directory>,
}

/// A table of 8-byte entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Table {
    /// Its offset in the file.
    pub(super) offset: u64,
    /// Number of entries.
    pub(super) entries: u64,
}

/// The table of internal snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Snapshots {
    /// Its offset in the file.
    pub(super) offset: u64,
    /// Number of snapshots.
    pub(super) count: u32,
}

/// The location of the directory of dirty bitmaps in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Directory {
    pub(super) offset: u64,
    /// Its length in bytes.
    pub(super) size: u64,
}

impl Directory {
    fn parse(data: &[u8]) -> Option<Self> {
        let number = |at: Range<usize>| Some(u64::from_be_bytes(data.get(at)?.try_into().ok()?));
        Some(Self { size: number(8..16)?, offset: number(16..24)? })
    }
}

/// The backing file that a header names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Backing {
    /// Its name, as in the header.
    pub(super) name: String,
    /// Its format, if the header names one.
    pub(super) format: Option<String>,
}

/// The reason for which an image is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum HeaderError {
    /// The file is not a qcow2 image, whatever its name is.
    #[error(
        "it is not a qcow2 image; if it is raw, set format = \"raw\" in the configuration file"
    )]
    Magic,
    /// The format's first version, or a later one than 3.
    #[error(
        "it is a qcow image of version {0}, and only 2 and 3 are served; {convert}",
        convert = match .0 {
            1 => "convert it: qemu-img convert -f qcow -O qcow2 FILE NEW",
            _ => "convert it with the QEMU that made it: \
                  qemu-img convert -O qcow2 -o compat=1.1 FILE NEW",
        }
    )]
    Version(u32),
    /// The image is encrypted with AES.
    #[error(
        "it is encrypted (AES), and encrypted images are not served; decrypt it: qemu-img convert \
         --object secret,id=s,file=PASSPHRASE --image-opts \
         driver=qcow2,encrypt.format=aes,encrypt.key-secret=s,file.filename=FILE -O qcow2 NEW"
    )]
    Aes,
    /// The image is encrypted with LUKS.
    #[error(
        "it is encrypted (LUKS), and encrypted images are not served; decrypt it: qemu-img \
         convert --object secret,id=s,file=PASSPHRASE --image-opts \
         driver=qcow2,encrypt.format=luks,encrypt.key-secret=s,file.filename=FILE -O qcow2 NEW"
    )]
    Luks,
    /// The image is encrypted with an unknown method.
    #[error("it is encrypted with the unknown method {0}, and encrypted images are not served")]
    Encryption(u32),
    /// The image is marked as dirty: its refcounts may be wrong.
    #[error("it was not closed properly (dirty); repair it: qemu-img check -r all FILE")]
    Dirty,
    /// The image is marked as corrupt: its metadata may be wrong.
    #[error("it is marked as corrupt; repair it: qemu-img check -r all FILE")]
    Corrupt,
    /// The file has only metadata; the data is in another file.
    #[error(
        "its data is in another file, which is not supported; merge both: qemu-img convert \
         -O qcow2 FILE NEW"
    )]
    DataFile,
    /// Clusters are compressed with another method than zlib's deflate.
    #[error(
        "its compression is {name}, and only zlib is supported; convert it: qemu-img convert -O \
         qcow2 FILE NEW",
        name = if *.0 == 1 { "zstd".to_owned() } else { format!("of type {}", .0) }
    )]
    Compression(u8),
    /// Clusters have subclusters.
    #[error(
        "it has extended level 2 entries, which are not supported; convert it: qemu-img convert \
         -O qcow2 -o extended_l2=off FILE NEW"
    )]
    ExtendedL2,
    /// The image uses features that are unknown here.
    #[error(
        "it uses features that this daemon does not support (incompatible features {0:#x}); \
         convert it with the QEMU that made it: qemu-img convert -O qcow2 FILE NEW"
    )]
    Unknown(u64),
    /// The header has values that no program writes.
    #[error("it is damaged: {0}; no tool repairs that: restore a copy")]
    Damaged(String),
    /// The file cannot be read.
    #[error(transparent)]
    Read(#[from] io::Error),
}

impl From<HeaderError> for io::Error {
    fn from(error: HeaderError) -> Self {
        match error {
            HeaderError::Read(error) => error,
            error => Self::other(error),
        }
    }
}

fn damaged(what: impl Into<String>) -> HeaderError {
    HeaderError::Damaged(what.into())
}

/// The first cluster, which contains the header.
struct HeaderBytes(Vec<u8>);

impl HeaderBytes {
    fn read(file: &File, offset: u64, length: u64) -> io::Result<Self> {
        let mut bytes = vec![0; length as usize];
        read_up_to(file, &mut bytes, offset)?;
        Ok(Self(bytes))
    }

    fn array<const N: usize>(&self, offset: u64) -> Result<[u8; N], HeaderError> {
        let slice = self.slice(offset, N as u64)?;
        slice.first_chunk().copied().ok_or_else(|| damaged("its header is too short"))
    }

    fn slice(&self, offset: u64, length: u64) -> Result<&[u8], HeaderError> {
        let end = offset.checked_add(length).and_then(|end| usize::try_from(end).ok());
        let slice = end.and_then(|end| self.0.get(offset as usize..end));
        slice.ok_or_else(|| damaged("its header is longer than a cluster"))
    }

    fn u32(&self, offset: u64) -> Result<u32, HeaderError> {
        Ok(u32::from_be_bytes(self.array(offset)?))
    }

    fn u64(&self, offset: u64) -> Result<u64, HeaderError> {
        Ok(u64::from_be_bytes(self.array(offset)?))
    }
}

/// Reads from a file; bytes behind its end are zeros.
pub(super) fn read_up_to(file: &File, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.read_at(bytes, offset) {
            Ok(0) => {
                bytes.fill(0);
                return Ok(());
            }
            Ok(count) => {
                offset += count as u64;
                bytes = bytes.split_at_mut(count).1;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl Qcow2Header {
    /// Reads the header of an image that can be served.
    ///
    /// # Errors
    /// [`HeaderError`].
    pub(super) fn read(file: &File) -> Result<Self, HeaderError> {
        let start = HeaderBytes::read(file, 0, V3_SIZE)?;
        if start.u32(0)? != MAGIC {
            return Err(HeaderError::Magic);
        }
        let version = start.u32(4)?;
        if !(2..=3).contains(&version) {
            return Err(HeaderError::Version(version));
        }
        let cluster_bits = start.u32(20)?;
        if !CLUSTER_BITS.contains(&cluster_bits) {
            return Err(damaged(format!("clusters of 2^{cluster_bits} bytes")));
        }
        check_encryption(start.u32(32)?)?;
        let bytes = HeaderBytes::read(file, 0, 1 << cluster_bits)?;
        let length = if version == 2 { V2_SIZE } else { check_features(&bytes)? };
        let cluster = 1u64 << cluster_bits;
        let extensions = Extensions::read(&bytes, length)?;
        let are_valid = version >= 3 && bytes.u64(88)? & BITMAPS_ARE_VALID != 0;
        let header = Self {
            version,
            cluster_bits,
            size: bytes.u64(24)?,
            l1: Table { offset: bytes.u64(40)?, entries: bytes.u32(36)?.into() },
            refcount_table: Table {
                offset: bytes.u64(48)?,
                entries: u64::from(bytes.u32(56)?) * (cluster / 8),
            },
            refcount_order: if version == 2 { V2_REFCOUNT_ORDER } else { bytes.u32(96)? },
            snapshots: Snapshots { offset: bytes.u64(64)?, count: bytes.u32(60)? },
            backing: backing(&bytes, extensions.backing_format)?,
            bitmaps: extensions.bitmaps.filter(|_| are_valid),
        };
        header.check()?;
        Ok(header)
    }

    /// Bytes of a cluster.
    pub(super) fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Refuses values that no program writes.
    fn check(&self) -> Result<(), HeaderError> {
        let Self { l1, refcount_table, snapshots, .. } = self;
        if self.refcount_order > MAX_REFCOUNT_ORDER {
            return Err(damaged(format!("refcounts of 2^{} bits", self.refcount_order)));
        }
        if l1.entries * 8 > MAX_L1_BYTES {
            return Err(damaged(format!("a level 1 table of {} entries", l1.entries)));
        }
        // A level 2 table is a cluster of 8-byte entries, each for a cluster.
        let covered = 2 * self.cluster_bits - 3;
        if self.size.div_ceil(1 << covered) > l1.entries {
            let (entries, size) = (l1.entries, self.size);
            return Err(damaged(format!("a level 1 table of {entries} entries for {size} bytes")));
        }
        if refcount_table.entries * 8 > MAX_REFCOUNT_TABLE_BYTES {
            return Err(damaged(format!("a refcount table of {} entries", refcount_table.entries)));
        }
        if snapshots.count > MAX_SNAPSHOTS {
            return Err(damaged(format!("{} snapshots", snapshots.count)));
        }
        let used = [
            ("level 1 table", l1.offset, l1.entries > 0),
            ("refcount table", refcount_table.offset, refcount_table.entries > 0),
            ("snapshot table", snapshots.offset, snapshots.count > 0),
        ];
        for (what, offset, used) in used {
            if used && (offset == 0 || offset % self.cluster_size() != 0) {
                return Err(damaged(format!("a {what} at {offset:#x}, where no cluster begins")));
            }
        }
        Ok(())
    }
}

fn check_encryption(method: u32) -> Result<(), HeaderError> {
    match method {
        0 => Ok(()),
        1 => Err(HeaderError::Aes),
        2 => Err(HeaderError::Luks),
        other => Err(HeaderError::Encryption(other)),
    }
}

/// Checks the fields of version 3, and returns the header's length.
fn check_features(bytes: &HeaderBytes) -> Result<u64, HeaderError> {
    use incompatible::{COMPRESSION, CORRUPT, DATA_FILE, DIRTY, EXTENDED_L2};
    let features = bytes.u64(72)?;
    let known = DIRTY | CORRUPT | DATA_FILE | COMPRESSION | EXTENDED_L2;
    let length = u64::from(bytes.u32(100)?);
    if length < V3_SIZE {
        return Err(damaged(format!("a header of {length} bytes")));
    }
    let compression = match bytes.slice(0, length)?.get(V3_SIZE as usize) {
        Some(kind) => *kind,
        None => 0,
    };
    let refusals = [
        (features & !known != 0, HeaderError::Unknown(features & !known)),
        (features & DATA_FILE != 0, HeaderError::DataFile),
        (features & EXTENDED_L2 != 0, HeaderError::ExtendedL2),
        (features & COMPRESSION != 0 || compression != 0, HeaderError::Compression(compression)),
        (features & CORRUPT != 0, HeaderError::Corrupt),
        (features & DIRTY != 0, HeaderError::Dirty),
    ];
    refusals.into_iter().find(|(found, _)| *found).map_or(Ok(length), |(_, error)| Err(error))
}

/// The backing file that the header names.
fn backing(bytes: &HeaderBytes, format: Option<String>) -> Result<Option<Backing>, HeaderError> {
    let (offset, name_length) = (bytes.u64(8)?, bytes.u32(16)?);
    if offset == 0 {
        return Ok(None);
    }
    if name_length > MAX_NAME {
        return Err(damaged(format!("a backing file's name of {name_length} bytes")));
    }
    let name = text(bytes.slice(offset, name_length.into())?, "a backing file's name")?;
    Ok(Some(Backing { name, format }))
}

/// The contents of header extensions, which headers of version 2 have too.
#[derive(Default)]
struct Extensions {
    backing_format: Option<String>,
    bitmaps: Option<Directory>,
}

impl Extensions {
    /// Reads the extensions behind a header of `start` bytes.
    fn read(bytes: &HeaderBytes, start: u64) -> Result<Self, HeaderError> {
        // They end at the backing file's name, if they have no end mark of their own.
        let end = match bytes.u64(8)? {
            0 => bytes.0.len() as u64,
            name => name,
        };
        let (mut at, mut extensions) = (start, Self::default());
        while at + 8 <= end {
            let (kind, length) = (bytes.u32(at)?, bytes.u32(at + 4)?);
            let data = bytes.slice(at + 8, length.into())?;
            if kind == extension::END {
                break;
            }
            extensions.add(kind, data)?;
            at += 8 + u64::from(length).next_multiple_of(8);
        }
        Ok(extensions)
    }

    fn add(&mut self, kind: u32, data: &[u8]) -> Result<(), HeaderError> {
        match kind {
            extension::BACKING_FORMAT => {
                let named = text(data, "a backing file's format")?;
                if self.backing_format.as_ref().is_some_and(|before| *before != named) {
                    return Err(damaged("two formats of its backing file"));
                }
                self.backing_format = Some(named);
            }
            // The library assumes whole entries, and panics at a partial one.
            extension::FEATURE_NAMES if !data.len().is_multiple_of(FEATURE_NAME) => {
                let length = data.len();
                return Err(damaged(format!("a feature name table of {length} bytes")));
            }
            extension::BITMAPS => self.bitmaps = Directory::parse(data),
            _ => {}
        }
        Ok(())
    }
}

fn text(bytes: &[u8], what: &str) -> Result<String, HeaderError> {
    String::from_utf8(bytes.to_vec()).map_err(|_| damaged(format!("{what} that is no text")))
}
