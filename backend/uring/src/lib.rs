//! Vectored file I/O from and into memory that another domain can change. The crate knows no Xen.
//!
//! ```
//! use std::os::fd::AsFd;
//!
//! use uring::iovec::{IoVec, WriteMode};
//! use vm_memory::VolatileSlice;
//!
//! # fn main() -> std::io::Result<()> {
//! let file = tempfile::tempfile()?;
//! let (mut first, mut second) = (*b"block ", *b"device");
//! let mut vector = IoVec::default();
//! assert!(vector.push(&VolatileSlice::from(&mut first[..])));
//! assert!(vector.push(&VolatileSlice::from(&mut second[..])));
//!
//! // Both pieces with one system call.
//! vector.write_to(file.as_fd(), 0, WriteMode::Back)?;
//! assert_eq!(file.metadata()?.len(), 12);
//! # Ok(())
//! # }
//! ```

pub mod block_device;
mod bounce;
pub mod engine;
pub mod inbox;
pub mod inherited;
pub mod iovec;
pub mod message_engine;
pub mod operation;
pub mod owned;
mod registered;
pub mod rings;
mod submission;
mod threads;
pub mod waiting;
