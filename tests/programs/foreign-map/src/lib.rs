//! Maps pages of another domain by their frame numbers, and reports the hypervisor's refusals.

mod privcmd;
mod window;

pub use privcmd::Privcmd;
pub use window::{Access, PAGE, Window};
