//! What the glue asks of a device as a whole: its interrupts, its configuration, its removal.

use crate::config::{Announced, Generations, Reading};
use crate::interrupt::{Interrupt, Message, Next};
use crate::removal::{self, BackendState, Removal};

/// Counts a message, an `enum shim_message`, of an interrupt; gives an `enum shim_next`.
///
/// # Safety
/// `interrupt` is a valid `struct shim_interrupt`.
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
        Next::ComeBack => 1,
        Next::Done => 2,
        Next::DoneForNothing => 3,
    }
}

/// Takes note of an EVENT_CONFIG: 1 if it tells something new.
///
/// # Safety
/// `announced` is a valid `struct shim_announced`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn shim_config_is_news(
    announced: *mut Announced,
    status: u32,
    generation: u32,
) -> u32 {
    // SAFETY: valid, and used by nothing else during the call, by the function's contract.
    unsafe { &mut *announced }.is_news(status, generation).into()
}

/// Takes note of the generation that a look found; `now` is in milliseconds. 1 if it will never
/// stand still.
///
/// # Safety
/// `generations` is a valid `struct shim_generations`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn shim_generation_look(
    generations: *mut Generations,
    generation: u32,
    now: u64,
) -> u32 {
    // SAFETY: valid, and used by nothing else during the call, by the function's contract.
    let reading = unsafe { &mut *generations }.look(generation, now);
    (reading == Reading::GiveUp).into()
}

/// 1 if the driver of such a device waits for its requests when it is removed.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn shim_waits_for_requests(device_id: u32) -> u32 {
    removal::waits_for_requests(device_id).into()
}

/// What to do with a device that is to be taken from its driver: `enum shim_removal`. `connection`
/// is an `enum shim_connection`.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn shim_removal(device_id: u32, pages: u32, connection: u32) -> u32 {
    let connection = match connection {
        0 => BackendState::Open,
        1 => BackendState::Answering,
        _ => BackendState::Broken,
    };
    match removal::next(device_id, pages, connection) {
        Removal::Remove => 0,
        Removal::AskDevice => 1,
        Removal::Keep => 2,
    }
}
