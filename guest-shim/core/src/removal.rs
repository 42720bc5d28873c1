//! Whether a device can be removed from its driver while requests are unfinished.
//!
//! A driver that is removed waits for some requests and takes others back. Requests that it takes
//! back do not prevent the removal of a device whose backend died: the driver unmaps them, the
//! module ends each grant that the backend no longer uses, and leaks the pages that it still uses
//! [3.6].

/// The driver's knowledge of the device at the other end of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendState {
    /// The connection has no known fault. The backend may have died unnoticed.
    Open,
    /// The device has just answered a request.
    Answering,
    /// The driver gave the device up, or the backend left: the device finishes no more requests.
    Broken,
}

/// The decision on the removal of a device from its driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// Remove the device: the driver does not wait for ever.
    Remove,
    /// Send the device a request, and decide again with the resulting [`BackendState`].
    AskDevice,
    /// Keep the device, broken: its driver would wait for ever.
    Keep,
}

/// The treatment of unfinished requests by a stock driver that is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unfinished {
    /// The driver takes them back.
    TakenBack,
    /// The driver waits until the device finishes them.
    WaitedFor,
}

// Device IDs (virtio 1.3 section 5).
const NETWORK: u32 = 1;
const CONSOLE: u32 = 3;
const ENTROPY: u32 = 4;
const VSOCK: u32 = 19;

/// Drivers of the listed devices post receive buffers in advance, and take back those that are
/// still in the queue. The core assumes that any other driver waits.
const fn unfinished(device_id: u32) -> Unfinished {
    match device_id {
        NETWORK | CONSOLE | ENTROPY | VSOCK => Unfinished::TakenBack,
        _ => Unfinished::WaitedFor,
    }
}

/// Whether the driver of a device of type `device_id` waits for its requests when it is removed.
pub const fn waits_for_requests(device_id: u32) -> bool {
    matches!(unfinished(device_id), Unfinished::WaitedFor)
}

/// Whether the driver of a device of type `device_id` unmaps the buffers that it takes back.
pub const fn unmaps_buffers(device_id: u32) -> bool {
    !matches!(device_id, ENTROPY | VSOCK)
}

/// Decides on the removal of a device of type `device_id` that holds `pages` pages of unfinished
/// requests. A driver that waits may send more requests when it is removed; so the decision is
/// [`Removal::AskDevice`] even if `pages` is 0.
pub const fn next(device_id: u32, pages: u32, connection: BackendState) -> Removal {
    match (unfinished(device_id), pages, connection) {
        (Unfinished::TakenBack, ..) | (_, _, BackendState::Answering) => Removal::Remove,
        (Unfinished::WaitedFor, _, BackendState::Open) => Removal::AskDevice,
        (Unfinished::WaitedFor, 0, BackendState::Broken) => Removal::Remove,
        (Unfinished::WaitedFor, _, BackendState::Broken) => Removal::Keep,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u32 = 2;
    const UNKNOWN: u32 = 77;
    const CONNECTIONS: [BackendState; 3] =
        [BackendState::Open, BackendState::Answering, BackendState::Broken];

    #[test]
    fn device_with_only_receive_buffers_is_removed() {
        for device in [NETWORK, CONSOLE, ENTROPY, VSOCK] {
            for connection in CONNECTIONS {
                assert_eq!(next(device, 256, connection), Removal::Remove, "device {device}");
            }
        }
    }

    #[test]
    fn broken_disk_with_unfinished_requests_is_kept() {
        for device in [BLOCK, UNKNOWN] {
            assert_eq!(next(device, 1, BackendState::Broken), Removal::Keep);
        }
    }

    #[test]
    fn disk_is_asked_before_its_driver_waits_for_it() {
        for device in [BLOCK, UNKNOWN] {
            for pages in [0, 1] {
                assert_eq!(next(device, pages, BackendState::Open), Removal::AskDevice);
                assert_eq!(next(device, pages, BackendState::Answering), Removal::Remove);
            }
        }
    }

    #[test]
    fn broken_device_without_requests_is_removed() {
        for device in 0..64 {
            assert_eq!(next(device, 0, BackendState::Broken), Removal::Remove);
        }
    }

    #[test]
    fn only_drivers_without_receive_buffers_wait_for_requests() {
        assert!(waits_for_requests(BLOCK) && waits_for_requests(UNKNOWN));
        assert!(![NETWORK, CONSOLE, ENTROPY, VSOCK].map(waits_for_requests).contains(&true));
    }

    #[test]
    fn entropy_and_sockets_leave_their_buffers_mapped() {
        let unmapping = [NETWORK, BLOCK, CONSOLE, UNKNOWN];
        assert!(unmapping.into_iter().all(unmaps_buffers));
        assert!(![ENTROPY, VSOCK].into_iter().any(unmaps_buffers));
    }
}
