//! Whether a request whose buffer finds the pool full, and the pool at its limit, waits or is
//! granted.
//!
//! Granting page by page costs both sides more than the wait for a request that is in flight. The
//! driver waits by itself if the mapping of a buffer fails:
//!
//! * Only drivers of block devices try again: Linux' `virtio_blk` turns a mapping error into
//!   `BLK_STS_RESOURCE`, and the block layer sends the request again when a request of the same
//!   queue ends, and after 3 ms in any case. Other drivers drop what they cannot map.
//! * Nothing waits while fewer than [`BUSY_REQUESTS`] requests of its queue are in flight. So a
//!   request that never fits into the pool is granted, and a device is never idle for lack of
//!   space.
//! * One request of a queue is granted in each [`PERIOD_MS`] in any case. So a large request ends,
//!   even if small ones find space before it does all the time.

use super::atomic::{AtomicU64, Ordering};

/// Requests in flight that keep a queue busy.
const BUSY_REQUESTS: u32 = 4;

/// Length of a period, in milliseconds. It divides 2^32, where the clock wraps around.
const PERIOD_MS: u32 = 512;

/// Device ID of a block device (virtio 1.3 section 5).
const BLOCK: u32 = 2;

/// The request of a queue that was last granted although others were in flight. Zeroed, it is none.
///
/// The period's number, from 1 on, is in the upper half. In the lower is how many requests the
/// driver had added to the queue before this one: all buffers of a request find the same number.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct Admission(AtomicU64);

impl Admission {
    /// Whether a request of a device of type `device_id` waits, of which a buffer does not fit.
    /// `in_flight` requests of its queue are in flight, and `added` were added so far; `now` is in
    /// milliseconds.
    pub fn waits(&self, device_id: u32, in_flight: u32, added: u16, now: u32) -> bool {
        if device_id != BLOCK || in_flight < BUSY_REQUESTS {
            return false;
        }
        let period = u64::from(now / PERIOD_MS + 1);
        let request = period << 32 | u64::from(added);
        let last = self.0.load(Ordering::Relaxed);
        if last >> 32 != period {
            self.0.store(request, Ordering::Relaxed);
            return false;
        }
        last != request
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A queue that has granted a request in the period of time `now`: number 10.
    fn admitted(now: u32) -> Admission {
        let admission = Admission::default();
        assert!(!admission.waits(BLOCK, BUSY_REQUESTS, 10, now));
        admission
    }

    #[test]
    fn spec_3_7_buffer_of_a_busy_disk_is_a_mapping_error() {
        assert!(admitted(0).waits(BLOCK, BUSY_REQUESTS, 11, 0));
        assert!(admitted(0).waits(BLOCK, 256, 9, PERIOD_MS - 1));
    }

    #[test]
    fn request_without_others_in_flight_never_waits() {
        let queue = admitted(0);
        let waits = |in_flight| queue.waits(BLOCK, in_flight, 11, 0);
        assert!((0..BUSY_REQUESTS).all(|in_flight| !waits(in_flight)));
    }

    #[test]
    fn only_drivers_that_try_again_wait() {
        for device in (0..64).filter(|device| *device != BLOCK) {
            assert!(!admitted(0).waits(device, 256, 11, 0), "device {device}");
        }
    }

    #[test]
    fn all_buffers_of_one_request_are_granted_in_each_period() {
        for start in [0, PERIOD_MS, 5000, u32::MAX - PERIOD_MS + 1] {
            let queue = admitted(start);
            for period in 1..4 {
                let now = start.wrapping_add(period * PERIOD_MS);
                let request = 20 + period as u16;
                assert!(!queue.waits(BLOCK, 256, request, now), "the first buffer");
                assert!(!queue.waits(BLOCK, 256, request, now + 3), "the second buffer");
                assert!(queue.waits(BLOCK, 256, request + 1, now + 3), "the next request");
            }
        }
    }
}
