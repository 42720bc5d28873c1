//! Vectored file I/O from and into memory that another domain can change. The crate knows no Xen.

pub mod block_device;
pub mod file_engine;
pub mod iovec;
