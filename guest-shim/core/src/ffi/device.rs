//! C interface of the modules `interrupt`, `config`, `removal`, `restore` and `waiting`.

use protocol::binding::XenbusState;

use crate::config::{Announced, Generations, Reading};
use crate::interrupt::{Interrupt, Message, Next};
use crate::removal::{self, BackendState, Removal};
use crate::restore::{self, Difference, Traits};
use crate::waiting::{self, Waiting};

/// Counts a message of an interrupt, an `enum shim_message`; returns an `enum shim_next`.
///
/// # Safety
/// `interrupt` points to a valid `struct shim_interrupt` that nothing else uses during the call.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn shim_interrupt_count(
    interrupt: *mut Interrupt,
    message: u32,
) -> u32 {
    let message = match message {
        0 => Message::None,
        2 => Message::Useful,
        _ => Message::Useless,
    };
    // SAFETY: valid, and used by nothing else during the call, by the function's contract.
    match unsafe { &mut *interrupt }.count(message) {
        Next::Receive => 0,
        Next::Later => 1,
        Next::Done => 2,
        Next::Spurious => 3,
    }
}

/// Records an EVENT_CONFIG; returns 1 if it differs from the one before, else 0.
///
/// # Safety
/// `announced` points to a valid `struct shim_announced` that nothing else uses during the call.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn shim_config_is_news(
    announced: *mut Announced,
    status: u32,
    generation: u32,
) -> u32 {
    // SAFETY: valid, and used by nothing else during the call, by the function's contract.
    unsafe { &mut *announced }.is_news(status, generation).into()
}

/// Records the generation that a check found; `now` is in milliseconds, from a monotonic clock.
/// Returns 1 if the driver must give the device up because the generation never stays the same.
///
/// # Safety
/// `generations` points to a valid `struct shim_generations` that nothing else uses during the
/// call.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn shim_generation_observe(
    generations: *mut Generations,
    generation: u32,
    now: u64,
) -> u32 {
    // SAFETY: valid, and used by nothing else during the call, by the function's contract.
    let reading = unsafe { &mut *generations }.observe(generation, now);
    (reading == Reading::GiveUp).into()
}

/// Returns 1 if a driver of devices of this type waits for its requests when it is removed, else 0.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn shim_waits_for_requests(device_id: u32) -> u32 {
    removal::waits_for_requests(device_id).into()
}

/// Returns 1 if a driver of devices of this type unmaps the buffers that it takes back, else 0.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn shim_unmaps_buffers(device_id: u32) -> u32 {
    removal::unmaps_buffers(device_id).into()
}

/// Decides on the removal of a device from its driver; returns an `enum shim_removal`. `backend`
/// is an `enum shim_backend_state`.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn shim_removal(device_id: u32, pages: u32, backend: u32) -> u32 {
    let backend = match backend {
        0 => BackendState::Open,
        1 => BackendState::Answering,
        _ => BackendState::Broken,
    };
    match removal::next(device_id, pages, backend) {
        Removal::Remove => 0,
        Removal::AskDevice => 1,
        Removal::Keep => 2,
    }
}

/// Decides on a request that has had no response for `waited` milliseconds; returns how many more
/// to wait before the next decision, or 0 to give the device up. `running` is a boolean, `backend`
/// an `enum xenbus_state`.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn shim_response_wait(waited: u64, running: u32, backend: u32) -> u64 {
    match waiting::next(waited, running != 0, XenbusState::from_number(backend)) {
        Waiting::WaitFor(more) => more,
        Waiting::GiveUp => 0,
    }
}

/// Returns the bytes of configuration that `struct shim_traits` holds of a device of this type.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn shim_traits_size(device_id: u32) -> u32 {
    restore::config_size(device_id) as u32
}

/// Returns the first difference that a driver cannot cope with, an `enum shim_difference`.
///
/// # Safety
/// `had` and `found` point to valid objects of type `struct shim_traits`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn shim_traits_differ(
    had: *const Traits,
    found: *const Traits,
) -> u32 {
    // SAFETY: both are valid by the function's contract.
    let (had, found) = unsafe { (&*had, &*found) };
    match restore::difference(had, found) {
        None => 0,
        Some(Difference::DeviceId) => 1,
        Some(Difference::Features) => 2,
        Some(Difference::Pool) => 3,
        Some(Difference::Capacity) => 4,
        Some(Difference::BlockSize) => 5,
        Some(Difference::QueueCount) => 6,
        Some(Difference::Limits) => 7,
        Some(Difference::Address) => 8,
        Some(Difference::Ports) => 9,
        Some(Difference::ReadOnly) => 10,
    }
}
