//! Which file systems say something about a file without asking anybody for it.
//!
//! A server may be gone: then a call waits for ever, and a watch concerns all disks.

use nix::sys::statfs::FsType;

/// Who knows the size of a file, and that somebody writes to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Knowledge {
    /// The kernel, which reports writes too.
    Kernel,
    /// Somebody else: a server, or a program. The kernel remembers the size, and says it to who
    /// does not ask for more (`AT_STATX_DONT_SYNC`). It asks before it watches a file.
    Remembered,
    /// Perhaps somebody else, whom the kernel asks each time.
    Unknown,
}

/// File systems on this domain's own block devices, and in memory: ext2 to ext4, XFS, Btrfs, F2FS,
/// bcachefs, ZFS, JFS, NILFS, FAT, exFAT, tmpfs, ramfs. Numbers of `linux/magic.h`, or else of the
/// file system.
const KERNEL: [u32; 12] = [
    0xef53,
    0x5846_5342,
    0x9123_683e,
    0xf2f5_2010,
    0xca45_1a4e,
    0x2fc1_2fc1,
    0x3153_464a,
    0x3434,
    0x4d44,
    0x2011_bab0,
    0x0102_1994,
    0x8584_58f6,
];

/// NFS, Ceph, FUSE, and overlayfs, below which one of these may be.
const REMEMBERED: [u32; 4] = [0x6969, 0x00c3_6400, 0x6573_5546, 0x794c_7630];

impl Knowledge {
    /// Of files on a file system of this type.
    pub(super) fn of(kind: FsType) -> Self {
        let is_one_of = |types: &[u32]| types.iter().any(|number| kind == FsType((*number).into()));
        match kind {
            _ if is_one_of(&KERNEL) => Self::Kernel,
            _ if is_one_of(&REMEMBERED) => Self::Remembered,
            _ => Self::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::statfs::{
        BTRFS_SUPER_MAGIC, CODA_SUPER_MAGIC, EXT4_SUPER_MAGIC, FUSE_SUPER_MAGIC, NFS_SUPER_MAGIC,
        OCFS2_SUPER_MAGIC, SMB_SUPER_MAGIC, TMPFS_MAGIC, XFS_SUPER_MAGIC,
    };

    use super::*;

    #[test]
    fn nobody_but_the_kernel_is_asked_about_a_file() {
        for kind in [EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, BTRFS_SUPER_MAGIC, TMPFS_MAGIC] {
            assert_eq!(Knowledge::of(kind), Knowledge::Kernel, "{kind:?}");
        }
        for kind in [NFS_SUPER_MAGIC, FUSE_SUPER_MAGIC] {
            assert_eq!(Knowledge::of(kind), Knowledge::Remembered, "{kind:?}");
        }
        // Lustre, which no header of the kernel names, stands for others that nobody thought of.
        let lustre = FsType(0x0bd0_0bd0);
        for kind in [SMB_SUPER_MAGIC, CODA_SUPER_MAGIC, OCFS2_SUPER_MAGIC, lustre] {
            assert_eq!(Knowledge::of(kind), Knowledge::Unknown, "{kind:?}");
        }
    }
}
