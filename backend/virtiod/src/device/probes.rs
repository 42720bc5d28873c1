//! Probes in a request's life, for bpftrace and others (USDT). Each is one instruction that does
//! nothing until somebody traces it.
//!
//! A request is identified by its thread, its queue and its head: one thread serves a queue, and
//! the driver uses a head again only after the answer.

/// A disk begins a request, after it has waited for limits. `operation` is its type (virtio 1.3
/// section 5.2.6), `bytes` those of all buffers.
#[inline(always)]
pub(super) fn request_begin(queue: usize, head: u16, operation: u32, bytes: u64) {
    probe::probe!(xen_virtiod, request__begin, queue, head, operation, bytes);
}

/// The request was handed to storage or to the disk's worker; most others are answered at once.
#[inline(always)]
pub(super) fn request_wait(queue: usize, head: u16) {
    probe::probe!(xen_virtiod, request__wait, queue, head);
}

/// Storage or the worker has ended the request.
#[inline(always)]
pub(super) fn request_done(queue: usize, head: u16) {
    probe::probe!(xen_virtiod, request__done, queue, head);
}

/// The request is answered. `written` are the bytes in its buffers, with the status.
#[inline(always)]
pub(super) fn request_end(queue: usize, head: u16, written: u32) {
    probe::probe!(xen_virtiod, request__end, queue, head, written);
}
