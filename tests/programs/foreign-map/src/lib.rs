//! Mapping pages of another domain by their frame numbers, and the hypervisor's answer to whoever
//! tries.

mod privcmd;
mod window;

pub use privcmd::Privcmd;
pub use window::{Access, PAGE, Window};
