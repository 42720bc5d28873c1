//! Waiting for a change in XenStore.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use xen::{StoreError, XenStore};

/// What ended a wait.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Waited<T> {
    /// What was looked for is there.
    Found(T),
    /// The time is over.
    TimedOut,
    /// The command is to stop.
    Stopped,
}

/// Waits until `look` finds something, whenever something changes that `store` watches, or until
/// `stop`, if given, is readable.
pub(super) fn wait<S: XenStore, T>(
    store: &mut S,
    stop: Option<BorrowedFd<'_>>,
    limit: Duration,
    mut look: impl FnMut(&mut S) -> Result<Option<T>, StoreError>,
) -> Result<Waited<T>, StoreError> {
    let end = Instant::now() + limit;
    loop {
        store.take_events()?;
        if let Some(found) = look(store)? {
            return Ok(Waited::Found(found));
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Waited::TimedOut);
        }
        if !wait_for_event(store, stop, left)? {
            // What has arrived meanwhile counts.
            let found = look(store)?;
            return Ok(found.map_or(Waited::Stopped, Waited::Found));
        }
    }
}

/// Waits until something changes that `store` watches, or `stop`, if given, is readable, for at
/// most `limit`; returns whether the command goes on: `stop` is not readable.
pub(super) fn wait_for_event<S: XenStore>(
    store: &mut S,
    stop: Option<BorrowedFd<'_>>,
    limit: Duration,
) -> Result<bool, StoreError> {
    // An event may have arrived with the last answer.
    let milliseconds = match store.take_events()? {
        true => 0,
        false => u16::try_from(limit.as_millis() + 1).unwrap_or(u16::MAX),
    };
    let awaited = |fd| PollFd::new(fd, PollFlags::POLLIN);
    let mut fds: Vec<_> = stop.into_iter().chain([store.as_fd()]).map(awaited).collect();
    // An error shows at the next request.
    let _ = poll(&mut fds, PollTimeout::from(milliseconds));
    Ok(stop.and_then(|_| fds.first()?.any()) != Some(true))
}
