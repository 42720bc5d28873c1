//! The events from one guest: takes those that are pending, and unmasks their ports later.

use std::sync::atomic::Ordering;

use super::queue_group::QueueGroup;
use super::scheduler::clock::KernelClock;
use crate::dma::AccessPlatform;
use xen::{EventChannels, EventError, LocalPort};

/// Event channels with one guest: the doorbells of a queue group, and for the first group that of
/// the message page.
pub struct Doorbells<E> {
    /// The channels.
    pub channels: E,
    /// Ports whose events were handled and that are still masked.
    masked: Vec<LocalPort>,
    /// The port of the message page.
    messages: Option<LocalPort>,
}

impl<E: EventChannels> Doorbells<E> {
    /// Without doorbells yet; `messages` is the port of the message page, if that is among
    /// `channels`.
    pub fn new(channels: E, messages: Option<LocalPort>) -> Self {
        Self { channels, masked: Vec::new(), messages }
    }

    /// Takes pending events; returns whether one announces messages.
    ///
    /// # Errors
    /// [`EventError`] if the kernel does not tell which are pending.
    pub fn take<P: AccessPlatform>(
        &mut self,
        group: &mut QueueGroup<P>,
    ) -> Result<bool, EventError> {
        let (mut messages, mut doorbells, mut count) = (false, false, 0);
        while let Some(port) = self.channels.pending()? {
            count += 1;
            self.masked.push(port);
            if self.messages == Some(port) {
                messages = true;
            } else {
                doorbells = true;
                group.handle_doorbell(port);
            }
        }
        group.stats().events_received.fetch_add(count, Ordering::Relaxed);
        if count > 0 {
            group.scheduler.woken_by_events(doorbells, &KernelClock);
        }
        Ok(messages)
    }

    /// Unmasks ports whose events were handled. Ports stay masked until the iteration ends, and
    /// longer if their events brought no work, so that a guest's events cost at most one wake-up an
    /// iteration.
    ///
    /// # Errors
    /// [`EventError`]: the port stays masked, so its events would be lost.
    pub fn unmask<P: AccessPlatform>(
        &mut self,
        group: &mut QueueGroup<P>,
    ) -> Result<(), EventError> {
        if !group.scheduler.may_unmask(&KernelClock) {
            return Ok(());
        }
        for port in self.masked.drain(..) {
            // The driver may have closed the doorbell since.
            if self.messages == Some(port) || group.has_doorbell(port) {
                self.channels.unmask(port)?;
            }
        }
        Ok(())
    }
}
