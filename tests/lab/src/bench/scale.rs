//! The measurements of scaling with guests and queues: see bench-scale/dom0.sh.

use super::work::{Unit, Work};

/// All works: 4 KiB random reads, with depth 32 for each guest or queue.
pub(crate) const WORKS: &[Work] = &[
    work("guests-1", "1 guest, a disk each"),
    work("guests-2", "2 guests, a disk each"),
    work("guests-4", "4 guests, a disk each"),
    work("guests-8", "8 guests, a disk each"),
    work("queues-1", "4 virtual processors, 1 of them reads"),
    work("queues-2", "4 virtual processors, 2 of them read"),
    work("queues-4", "4 virtual processors, all of them read"),
];

const fn work(key: &'static str, name: &'static str) -> Work {
    Work { key, name, unit: Unit::Count, quick: false, options: &[] }
}
