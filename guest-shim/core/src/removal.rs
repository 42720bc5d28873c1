//! Whether a device can be taken from its driver while requests are unfinished.
//!
//! A driver waits for some requests when it is removed, and takes others back. Those that it takes
//! back are no reason to keep a device whose backend died: the driver unmaps them, each grant that
//! the backend no longer uses ends, and a page that it still uses is withheld [3.6].

/// What is known of the device at the other end of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendState {
    /// Nothing was found wrong with it. Its backend may have died unseen.
    Open,
    /// It has just answered a request.
    Answering,
    /// It was given up, or its backend left: it finishes no request any more.
    Broken,
}

/// What to do with a device that is to be taken from its driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// Remove it: the driver's part of that ends.
    Remove,
    /// Send the device a request first, and ask again with what became of it.
    AskDevice,
    /// Keep it, dead: its driver would wait for ever.
    Keep,
}

/// What a stock driver does with unfinished requests when it is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unfinished {
    TakenBack,
    WaitedFor,
}

// Device ids (virtio 1.3 section 5).
const NETWORK: u32 = 1;
const CONSOLE: u32 = 3;
const ENTROPY: u32 = 4;
const VSOCK: u32 = 19;

/// Drivers of these devices post buffers in advance, which wait in the queue until something
/// arrives, and take back what is left there. Of a driver that is not known to do so, the worst is
/// assumed.
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

/// What to do with a device of type `device_id` that has `pages` pages of unfinished requests. A
/// driver that waits may have more to write when it is removed: the device is asked though it has
/// none now.
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
    fn posted_receive_buffers_do_not_keep_a_device_whose_backend_died() {
        for device in [NETWORK, CONSOLE, ENTROPY, VSOCK] {
            for connection in CONNECTIONS {
                assert_eq!(next(device, 256, connection), Removal::Remove, "device {device}");
            }
        }
    }

    #[test]
    fn a_disk_with_requests_that_nobody_finishes_is_kept() {
        for device in [BLOCK, UNKNOWN] {
            assert_eq!(next(device, 1, BackendState::Broken), Removal::Keep);
        }
    }

    #[test]
    fn a_backend_that_may_have_died_unseen_is_asked_before_its_disk_is_waited_for() {
        for device in [BLOCK, UNKNOWN] {
            for pages in [0, 1] {
                assert_eq!(next(device, pages, BackendState::Open), Removal::AskDevice);
                assert_eq!(next(device, pages, BackendState::Answering), Removal::Remove);
            }
        }
    }

    #[test]
    fn a_device_without_requests_that_is_given_up_is_removed_whatever_it_is() {
        for device in 0..64 {
            assert_eq!(next(device, 0, BackendState::Broken), Removal::Remove);
        }
    }

    #[test]
    fn a_suspend_waits_for_requests_that_a_driver_would_wait_for() {
        assert!(waits_for_requests(BLOCK) && waits_for_requests(UNKNOWN));
        assert!(![NETWORK, CONSOLE, ENTROPY, VSOCK].map(waits_for_requests).contains(&true));
    }
}
