//! Mapping a page of another domain by its frame number, and the hypervisor's answer to whoever tries.

mod privcmd;

pub use privcmd::Privcmd;
