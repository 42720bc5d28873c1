//! xen-virtiod
fn main() {}
