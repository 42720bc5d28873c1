//! The interface to the module's C glue. `linux/shim.h` declares it in C, field by field.
//!
//! Each function converts C's numbers and pointers to the core's types, and the result back; it has
//! no logic. Errors are negative `errno` numbers.
//!
//! Every caller must guarantee the following, and every SAFETY comment below relies on it:
//! `transport` points to memory that `shim_transport_init` set up, and `page` to a whole page of
//! 4096 bytes that stays mapped during the call; the glue holds its lock during calls with the same
//! transport; all other pointers are to valid objects of their type that nothing else uses during
//! the call.

mod device;
mod dma;
mod pool;
mod unfinished;

use core::ffi::c_int;
use core::slice;

use protocol::binding::{
    Negotiated, NegotiationError, XenbusState, negotiate, taken_transport_features,
};
use protocol::grant::GrantRef;
use protocol::message::{
    BindOutcome, ConfigData, FeatureBlocks, Request, Response, ShareOutcome, UnshareOutcome,
    VqueueFlags, VqueueUpdate,
};
use protocol::page::PageWords;
use protocol::pool::PoolPage;

use crate::state::{self, FrontendAction};
use crate::transport::{Mismatch, Received, SendError, Transport, ring_size};

const EIO: c_int = -5;
const EAGAIN: c_int = -11;
const EBUSY: c_int = -16;
const EINVAL: c_int = -22;
const ERANGE: c_int = -34;
const EPROTO: c_int = -71;
const EMSGSIZE: c_int = -90;

/// `struct shim_negotiated`: the result of the negotiation.
#[repr(C)]
pub(crate) struct ShimNegotiated {
    max_message_size: u32,
    shared_pool: u32,
    unshare: u32,
    movable: u32,
}

/// `struct shim_request`: a request. Only the fields of its kind are used.
#[repr(C)]
pub(crate) struct ShimRequest {
    kind: u32,
    index: u32,
    offset: u32,
    size: u32,
    status: u32,
    port: u32,
    count: u32,
    reference: u32,
    features: u64,
    descriptor: u64,
    driver: u64,
    device: u64,
    data: *const u8,
}

/// `enum shim_request_kind`.
mod kind {
    pub(super) const DEVICE_INFO: u32 = 0;
    pub(super) const GET_FEATURES: u32 = 1;
    pub(super) const SET_FEATURES: u32 = 2;
    pub(super) const GET_CONFIG: u32 = 3;
    pub(super) const SET_CONFIG: u32 = 4;
    pub(super) const GET_STATUS: u32 = 5;
    pub(super) const SET_STATUS: u32 = 6;
    pub(super) const GET_VQUEUE: u32 = 7;
    pub(super) const SET_VQUEUE: u32 = 8;
    pub(super) const RESET_VQUEUE: u32 = 9;
    pub(super) const BIND_QUEUE: u32 = 10;
    pub(super) const SHARE_PAGES: u32 = 11;
    pub(super) const UNSHARE_PAGES: u32 = 12;
}

/// `struct shim_answer`: the device's answer. Fields of other kinds are 0.
#[derive(Default)]
#[repr(C)]
pub(crate) struct ShimAnswer {
    device_id: u32,
    vendor_id: u32,
    max_virtqueues: u32,
    status: u32,
    config_generation: u32,
    config_size: u32,
    queue_size: u32,
    queue_max_size: u32,
    queue_enabled: u32,
    bound: u32,
    shared: u32,
    unshared: u32,
    features: u64,
}

/// `struct shim_received`: the result of one attempt to receive a message.
#[repr(C)]
pub(crate) struct ShimReceived {
    what: u32,
    index: u32,
    status: u32,
    signal: u32,
}

/// `struct shim_counters`: numbers of dropped messages.
#[repr(C)]
pub(crate) struct ShimCounters {
    malformed: u64,
    unexpected: u64,
}

/// Size of a transport in bytes. Its alignment is at most 8, as of the kernel's allocations.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn shim_transport_size() -> usize {
    const { assert!(align_of::<Transport>() <= 8) };
    size_of::<Transport>()
}

/// Sets a transport up for a zeroed page.
///
/// # Safety
/// `transport` points to `shim_transport_size()` writable bytes, aligned to 8, that nothing else
/// uses during the call; `negotiated` points to the result of `shim_negotiate`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn shim_transport_init(
    transport: *mut Transport,
    negotiated: *const ShimNegotiated,
) {
    // SAFETY: the caller guarantees a valid `struct shim_negotiated`.
    let ShimNegotiated { max_message_size, shared_pool, unshare, movable } =
        unsafe { negotiated.read() };
    let (shared_pool, unshare, movable) = (shared_pool != 0, unshare != 0, movable != 0);
    let new = Transport::new(Negotiated { max_message_size, shared_pool, unshare, movable });
    // SAFETY: the caller guarantees size, alignment and sole use; `write` does not drop the old
    // bytes.
    unsafe { transport.write(new) };
}

/// Checks the backend's keys [2.3]. Returns 0, or a negative number for the key that the driver
/// cannot use: -1 for the revision, -2 for the size.
///
/// # Safety
/// See the module.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn shim_negotiate(
    revision: u32,
    max_message_size: u32,
    bus_features: u32,
    negotiated: *mut ShimNegotiated,
) -> c_int {
    let found = match negotiate(revision, max_message_size, bus_features) {
        Ok(found) => found,
        Err(NegotiationError::Revision(_)) => return -1,
        Err(NegotiationError::MessageSize(_)) => return -2,
    };
    // SAFETY: a valid `struct shim_negotiated` by the module's contract.
    unsafe {
        negotiated.write(ShimNegotiated {
            max_message_size: found.max_message_size,
            shared_pool: found.shared_pool.into(),
            unshare: found.unshare.into(),
            movable: found.movable.into(),
        });
    }
    0
}

/// The transport features that the frontend takes from the backend's offer [2.11].
#[unsafe(no_mangle)]
pub(crate) extern "C" fn shim_transport_features(offered: u32) -> u32 {
    taken_transport_features(offered)
}

/// The frontend's action for these two xenbus states: an `enum shim_action`.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn shim_next_action(own: u32, backend: u32) -> u32 {
    match state::next(XenbusState::from_number(own), XenbusState::from_number(backend)) {
        FrontendAction::Nothing => 0,
        FrontendAction::Offer => 1,
        FrontendAction::Connect => 2,
        FrontendAction::Close => 3,
        FrontendAction::Finish => 4,
    }
}

/// Sends a request. Returns 0, -EAGAIN if the page is full, -ERANGE for a range outside of the
/// configuration space, or another error of [`error_of`].
///
/// # Safety
/// See the module; `request.data` points to `request.size` readable bytes if the kind is
/// SET_CONFIG.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn shim_send(
    transport: *mut Transport,
    page: *const PageWords,
    request: *const ShimRequest,
) -> c_int {
    // SAFETY: the pointers are valid by the module's contract, and the lock makes this borrow of
    // the transport the only one. Both sides access the page as atomics only, so that the peer's
    // writes are no data race.
    let (transport, page, request) = unsafe { (&mut *transport, &*page, &*request) };
    // SAFETY: the caller guarantees the bytes at `data`.
    unsafe { with_request(request, |request| error_of(transport.send(page, request))) }
}

/// Converts a C request and calls `then` with it; returns -EINVAL for an unknown kind.
///
/// # Safety
/// `request.data` points to `request.size` readable bytes, which nothing changes during the call,
/// if the kind is SET_CONFIG.
unsafe fn with_request(request: &ShimRequest, then: impl FnOnce(Request<'_>) -> c_int) -> c_int {
    let features = request.features.to_le_bytes();
    let index = request.index;
    let request = match request.kind {
        kind::DEVICE_INFO => Request::GetDeviceInfo,
        kind::GET_FEATURES => Request::GetDeviceFeatures { first: 0, count: 2 },
        kind::SET_FEATURES => Request::SetDriverFeatures(FeatureBlocks::new(0, &features)),
        kind::GET_CONFIG => Request::GetConfig { offset: request.offset, size: request.size },
        kind::SET_CONFIG => Request::SetConfig(ConfigData {
            // The baseline profile requires 0 [6.6].
            generation: 0,
            offset: request.offset,
            // SAFETY: the caller guarantees `size` readable bytes that nothing changes during the
            // call, which is as long as the slice lives.
            data: unsafe { slice::from_raw_parts(request.data, request.size as usize) },
        }),
        kind::GET_STATUS => Request::GetDeviceStatus,
        kind::SET_STATUS => Request::SetDeviceStatus(request.status),
        kind::GET_VQUEUE => Request::GetVqueue { index },
        kind::SET_VQUEUE => Request::SetVqueue(VqueueUpdate {
            index,
            flags: VqueueFlags(VqueueFlags::ENABLE),
            size: request.size,
            reserved: 0,
            descriptor: request.descriptor,
            driver: request.driver,
            device: request.device,
        }),
        kind::RESET_VQUEUE => Request::ResetVqueue { index },
        kind::BIND_QUEUE => Request::BindQueue { index, port: request.port },
        kind::SHARE_PAGES => Request::SharePages {
            first: PoolPage(index),
            count: request.count,
            reference: GrantRef(request.reference),
        },
        kind::UNSHARE_PAGES => {
            Request::UnsharePages { first: PoolPage(index), count: request.count }
        }
        _ => return EINVAL,
    };
    then(request)
}

fn error_of(sent: Result<(), SendError>) -> c_int {
    match sent {
        Ok(()) => 0,
        Err(SendError::Busy) => EBUSY,
        Err(SendError::Full) => EAGAIN,
        Err(SendError::TooLong) => EMSGSIZE,
        Err(SendError::NoSuchQueue) => EINVAL,
        Err(SendError::OutsideConfig) => ERANGE,
        Err(SendError::Broken) => EIO,
    }
}

/// Takes one message out of the page. `received.what` is an `enum shim_what`.
///
/// # Safety
/// See the module.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn shim_receive(
    transport: *mut Transport,
    page: *const PageWords,
    received: *mut ShimReceived,
) {
    // SAFETY: as in `shim_send`.
    let (transport, page) = unsafe { (&mut *transport, &*page) };
    let mut out = ShimReceived { what: 0, index: 0, status: 0, signal: 0 };
    match transport.receive(page) {
        Received::Drained { signal } => out.signal = signal.into(),
        Received::Dropped => out.what = 1,
        Received::Answer => out.what = 2,
        Received::ConfigChanged { status } => (out.what, out.status) = (3, status),
        Received::Used { index } => (out.what, out.index) = (4, index),
        Received::Broken => out.what = 5,
        Received::Pinged => out.what = 6,
    }
    // SAFETY: a valid `struct shim_received` by the module's contract.
    unsafe { received.write(out) };
}

/// Takes the answer to the outstanding request, and copies its configuration bytes to `data`.
/// Returns 0, -EAGAIN before the answer arrives, -EPROTO if it does not match the request or its
/// bytes exceed `capacity`, or -EIO if the transport is broken.
///
/// # Safety
/// See the module; `data` points to `capacity` writable bytes, or is NULL if the caller does not
/// want the bytes.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn shim_take_answer(
    transport: *mut Transport,
    answer: *mut ShimAnswer,
    data: *mut u8,
    capacity: u32,
) -> c_int {
    // SAFETY: as in `shim_send`.
    let transport = unsafe { &mut *transport };
    let broken = transport.is_broken();
    let (out, bytes) = match transport.take_answer() {
        Some(Ok(response)) => flatten(&response),
        Some(Err(Mismatch)) => return EPROTO,
        None if broken => return EIO,
        None => return EAGAIN,
    };
    if !data.is_null() {
        if bytes.len() > capacity as usize {
            return EPROTO;
        }
        // SAFETY: the bytes are in the transport's own buffer, disjoint from the caller's, and the
        // check above shows that they fit into `capacity`.
        unsafe { data.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }
    // SAFETY: a valid `struct shim_answer` by the module's contract.
    unsafe { answer.write(out) };
    0
}

/// Converts a response to C's structure; returns its configuration bytes beside that.
fn flatten<'a>(response: &Response<'a>) -> (ShimAnswer, &'a [u8]) {
    let mut out = ShimAnswer::default();
    let mut bytes: &[u8] = &[];
    match *response {
        Response::GetDeviceInfo(info) => {
            out.device_id = info.device_id;
            out.vendor_id = info.vendor_id;
            out.config_size = info.config_size;
            out.max_virtqueues = info.max_virtqueues;
        }
        Response::GetDeviceFeatures(blocks) => out.features = blocks.low_bits(),
        Response::GetConfig(config) | Response::SetConfig(config) => {
            out.config_generation = config.generation;
            out.config_size = config.data.len() as u32;
            bytes = config.data;
        }
        Response::GetDeviceStatus(status) | Response::SetDeviceStatus(status) => {
            out.status = status;
        }
        Response::GetVqueue(queue) => {
            out.queue_size = queue.size;
            out.queue_max_size = ring_size(queue.max_size);
            out.queue_enabled = queue.enabled.into();
        }
        Response::BindQueue { outcome, .. } => out.bound = (outcome == BindOutcome::Bound).into(),
        Response::SharePages { outcome, .. } => {
            out.shared = (outcome == ShareOutcome::Shared).into();
        }
        Response::UnsharePages { outcome, .. } => {
            out.unshared = (outcome == UnshareOutcome::Unshared).into();
        }
        Response::SetDriverFeatures
        | Response::SetVqueue
        | Response::ResetVqueue
        | Response::GetShm { .. }
        | Response::Ping(_) => {}
    }
    (out, bytes)
}

/// Notifies the device in band that a queue has available buffers. Returns 1 if the caller must
/// signal the event channel, 0 if not, or a negative error.
///
/// # Safety
/// See the module.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn shim_event_avail(
    transport: *mut Transport,
    page: *const PageWords,
    index: u32,
) -> c_int {
    // SAFETY: as in `shim_send`.
    let (transport, page) = unsafe { (&mut *transport, &*page) };
    match transport.event_avail(page, index) {
        Ok(signal) => signal.into(),
        Err(error) => error_of(Err(error)),
    }
}

/// Gives the device up: from now on the transport sends and receives nothing.
///
/// # Safety
/// See the module.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn shim_give_up(transport: *mut Transport) {
    // SAFETY: as in `shim_send`.
    unsafe { &mut *transport }.give_up();
}

/// The configuration generation in the device's last message that carried one.
///
/// # Safety
/// See the module.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn shim_generation(transport: *const Transport) -> u32 {
    // SAFETY: as in `shim_send`; the call only reads the transport.
    unsafe { &*transport }.generation()
}

/// The maximum number of configuration bytes that one message can carry.
///
/// # Safety
/// See the module.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn shim_max_config_bytes(transport: *const Transport) -> u32 {
    // SAFETY: as in `shim_send`; the call only reads the transport.
    unsafe { &*transport }.max_config_bytes()
}

/// The numbers of messages that the transport has dropped.
///
/// # Safety
/// See the module.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn shim_counters(
    transport: *const Transport,
    counters: *mut ShimCounters,
) {
    // SAFETY: as in `shim_send`; the call only reads the transport.
    let found = unsafe { &*transport }.counters();
    // SAFETY: a valid `struct shim_counters` by the module's contract.
    unsafe {
        counters.write(ShimCounters { malformed: found.malformed, unexpected: found.unexpected });
    }
}
