//! A disk that pauses when its storage fails, until an operator has repaired that.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use nix::sys::eventfd::{EfdFlags, EventFd};
use serde::{Deserialize, Serialize};
use tracing::Level;

use super::Block;
use super::request::BlockCommand;
use super::target::TargetError;
use super::throttle::Taken;
use crate::Causes;
use crate::device::{Source, VirtioRequest};

/// What a disk does when its storage fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorPolicy {
    /// The guest gets an I/O error.
    #[default]
    Report,
    /// The disk pauses.
    Pause,
    /// The disk pauses if no space is left, and reports other errors.
    PauseIfFull,
}

impl ErrorPolicy {
    /// Whether a disk pauses after this outcome of a request. What a failed flush has lost cannot
    /// be done again: the guest gets its error.
    fn pauses(self, command: &BlockCommand, error: &TargetError) -> bool {
        let can_be_repeated = matches!(
            command,
            BlockCommand::Read { .. } | BlockCommand::Write { .. } | BlockCommand::Change { .. }
        );
        let TargetError::Io(error) = error else { return false };
        match self {
            Self::Report => false,
            Self::Pause => can_be_repeated,
            Self::PauseIfFull => can_be_repeated && is_full(error),
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Whether a disk is paused, for all of its threads and for who resumes it.
#[derive(Debug, Default)]
pub struct PauseSwitch {
    /// Orders nothing: the requests that wait are each thread's own, and the event comes after.
    is_paused: AtomicBool,
    state: Mutex<PauseState>,
}

#[derive(Debug, Default)]
struct PauseState {
    reason: Option<String>,
    /// Woken when the disk goes on.
    threads: Vec<Weak<EventFd>>,
}

impl PauseSwitch {
    /// Why the disk is paused, if it is.
    pub fn reason(&self) -> Option<String> {
        self.lock().reason.clone()
    }

    /// Lets the disk go on. Returns whether it was paused.
    pub fn resume(&self) -> bool {
        let mut state = self.lock();
        let was_paused = state.reason.take().is_some();
        self.is_paused.store(false, Ordering::Relaxed);
        state.threads.retain(|thread| thread.strong_count() > 0);
        for thread in state.threads.iter().filter_map(Weak::upgrade) {
            // It fails only if the counter is full: then the thread is woken anyway.
            let _ = thread.write(1);
        }
        was_paused
    }

    /// Pauses the disk. Returns whether it was not paused before.
    fn pause(&self, reason: String) -> bool {
        let mut state = self.lock();
        self.is_paused.store(true, Ordering::Relaxed);
        let is_first = state.reason.is_none();
        state.reason.get_or_insert(reason);
        is_first
    }

    fn lock(&self) -> MutexGuard<'_, PauseState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread's part in the pause of its disk.
pub(super) struct Pause {
    policy: ErrorPolicy,
    switch: Arc<PauseSwitch>,
    /// Tells that the disk goes on; none with [`ErrorPolicy::Report`].
    woken: Option<Arc<EventFd>>,
    /// The requests that failed.
    failed: Vec<Taken>,
}

impl Pause {
    /// Without a descriptor left, the disk reports errors.
    pub(super) fn new(policy: ErrorPolicy, switch: Arc<PauseSwitch>) -> Self {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let make = || EventFd::from_value_and_flags(0, flags).ok().map(Arc::new);
        let woken = if policy == ErrorPolicy::Report { None } else { make() };
        if let Some(woken) = &woken {
            switch.lock().threads.push(Arc::downgrade(woken));
        }
        if policy != ErrorPolicy::Report && woken.is_none() {
            tracing::warn!("no descriptor is left: the disk reports errors instead of a pause");
        }
        let policy = if woken.is_some() { policy } else { ErrorPolicy::Report };
        Self { policy, switch, woken, failed: Vec::new() }
    }

    /// As [`Pause::new`], for another thread of the same disk.
    pub(super) fn share(&self) -> Self {
        Self::new(self.policy, Arc::clone(&self.switch))
    }

    #[cfg(test)]
    pub(super) fn switch(&self) -> &PauseSwitch {
        &self.switch
    }

    pub(super) fn is_paused(&self) -> bool {
        self.woken.is_some() && self.switch.is_paused.load(Ordering::Relaxed)
    }

    /// Number of requests that failed.
    pub(super) fn len(&self) -> usize {
        self.failed.len()
    }

    pub(super) fn has_of(&self, queue: usize) -> bool {
        self.failed.iter().any(|taken| taken.queue == queue)
    }

    /// Forgets the requests of a queue, or of all. Without any driver's, the disk is not paused.
    pub(super) fn forget(&mut self, queue: Option<usize>) {
        self.failed.retain(|taken| queue.is_some_and(|queue| queue != taken.queue));
        if queue.is_none() && self.is_paused() {
            self.switch.resume();
        }
    }

    /// Whether requests of this thread are to be begun again.
    pub(super) fn may_go_on(&self) -> bool {
        if let Some(woken) = &self.woken {
            // Read first: a disk that is resumed from now on is ready again.
            let _ = woken.read();
        }
        !self.failed.is_empty() && !self.is_paused()
    }

    /// Takes the requests to begin again.
    pub(super) fn take(&mut self) -> Vec<Taken> {
        std::mem::take(&mut self.failed)
    }

    /// Whether the disk may ever be paused.
    pub(super) fn is_possible(&self) -> bool {
        self.woken.is_some()
    }

    /// Ready when the disk goes on, while it is paused. A source that nobody waits for would stay
    /// ready.
    pub(super) fn source(&self) -> Option<Source<'_>> {
        let woken = self.woken.as_ref().filter(|_| self.is_paused() || !self.failed.is_empty());
        woken.map(|woken| Source::readable(woken.as_fd()))
    }
}

impl Block {
    /// Whether the request is kept, and the disk pauses, instead of an answer with this error.
    #[cold]
    pub(super) fn keeps_failed(
        &mut self,
        queue: usize,
        request: &VirtioRequest,
        command: &BlockCommand,
        error: &TargetError,
    ) -> bool {
        if !self.pause.policy.pauses(command, error) {
            return false;
        }
        let command = Ok(command.clone());
        self.pause.failed.push(Taken { queue, request: request.clone(), command });
        let reason = Causes(error).to_string();
        if self.pause.switch.pause(reason.clone()) {
            self.common.stats.log.line(
                Level::ERROR,
                format_args!(
                    "disk paused: {reason}; its requests wait: repair the storage, then run \
                     `xen-virtiod resume`"
                ),
            );
        }
        true
    }
}
