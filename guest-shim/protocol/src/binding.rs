//! XenStore keys, states and limits of the Xen bus binding (SPEC sections 2 and 7).

/// The virtio-msg revision that the backend offers and the frontend requires [2.3].
pub const REVISION: u32 = 1;
/// The smallest maximum message size that a backend may offer, in bytes [2.3].
pub const MIN_MESSAGE_SIZE: u32 = 52;
/// The maximum message size that a backend should offer, in bytes: a header and 256 bytes [2.3].
pub const RECOMMENDED_MESSAGE_SIZE: u32 = 264;
/// The number of the one device of a bus instance, which is one frontend and one backend [1.2].
pub const DEVICE_NUMBER: u16 = 0;

/// Bus feature bit: the device keeps the pages mapped that the driver shares with it [3.10].
pub const F_SHARED_POOL: u32 = 1 << 0;

/// Bus feature bit: the device gives pages of the pool back before a reset [5.11].
pub const F_UNSHARE: u32 = 1 << 1;

/// Bus feature bit: a backend in another domain can go on with the device [2.16].
pub const F_MOVABLE: u32 = 1 << 2;

/// Transport feature bit: the device rejects SET_CONFIG if its generation is not the current one
/// [2.11].
pub const F_STRICT_CONFIG_GENERATION: u32 = 1 << 0;

/// The transport features that the two sides of this project know: none.
pub const TRANSPORT_FEATURES: u32 = 0;

/// Keys that the backend writes into its own directory before it enters state 2 [2.3].
pub mod backend_key {
    /// virtio-msg revision, decimal: [`super::REVISION`].
    pub const REVISION: &str = "virtio-msg-revision";
    /// Largest message that either side may send, in bytes, decimal.
    pub const MAX_MESSAGE_SIZE: &str = "virtio-msg-max-size";
    /// Bus feature bits that the backend offers, decimal: [`super::F_SHARED_POOL`],
    /// [`super::F_UNSHARE`], [`super::F_MOVABLE`].
    pub const BUS_FEATURES: &str = "virtio-msg-bus-features";
    /// Transport feature bits that the backend offers, decimal; a missing key means 0 [2.11].
    pub const TRANSPORT_FEATURES: &str = "virtio-msg-transport-features";
    /// By which the toolstack asks the frontend to let go of the device: [`DETACH_ASKED`] [2.15].
    pub const DETACH: &str = "detach";
    /// The question.
    pub const DETACH_ASKED: &str = "asked";
    /// By which the toolstack has the backend go on with another target: [`RETARGET_ASKED`].
    pub const RETARGET: &str = "retarget";
    /// The toolstack has written another target.
    pub const RETARGET_ASKED: &str = "asked";
}

/// Keys that the frontend writes into its own directory before it enters state 3 [2.4].
pub mod frontend_key {
    /// Grant reference of the message page, decimal.
    pub const MESSAGE_PAGE: &str = "message-page-ref";
    /// Event channel that accompanies the message page, unbound, for the backend's domain; decimal.
    pub const EVENT_CHANNEL: &str = "event-channel";
    /// Transport feature bits that the frontend takes from the backend's offer, decimal; a missing
    /// key means 0 [2.11].
    pub const TRANSPORT_FEATURES: &str = "virtio-msg-transport-features";
    /// The answer to the backend's key of the same name: [`DETACH_IN_USE`] [2.15].
    pub const DETACH: &str = "detach";
    /// The device is in use.
    pub const DETACH_IN_USE: &str = "in-use";
    /// There while the frontend waits for a backend in another domain [2.16].
    pub const BACKEND_AWAITED: &str = "backend-awaited";
}

/// The xenbus state of a frontend or a backend, whose key `state` holds it in decimal [2.2].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum XenbusState {
    /// The key is missing, or its value is no state.
    Unknown = 0,
    /// The toolstack has created the directory, or the frontend starts again.
    Initialising = 1,
    /// The backend has written its keys [2.3].
    InitWait = 2,
    /// The frontend has written its keys [2.4].
    Initialised = 3,
    /// The frontend may send messages.
    Connected = 4,
    /// This side is closing the connection.
    Closing = 5,
    /// This side has closed the connection and holds nothing of the peer's.
    Closed = 6,
}

impl XenbusState {
    /// Decodes a number that the peer wrote; any number that is no state decodes to
    /// [`XenbusState::Unknown`] [2.2].
    pub const fn from_number(number: u32) -> Self {
        match number {
            1 => Self::Initialising,
            2 => Self::InitWait,
            3 => Self::Initialised,
            4 => Self::Connected,
            5 => Self::Closing,
            6 => Self::Closed,
            _ => Self::Unknown,
        }
    }
}

/// The result of the negotiation of the backend's keys [2.3].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// Largest message that either side may send, in bytes.
    pub max_message_size: u32,
    /// Whether the driver may share pages for a pool [3.10].
    pub shared_pool: bool,
    /// Whether the driver may take pages back from the pool [5.11].
    pub unshare: bool,
    /// Whether a backend in another domain can go on with the device [2.16].
    pub movable: bool,
}

/// The reason why a driver cannot use a backend's offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NegotiationError {
    /// The backend offers a revision other than [`REVISION`].
    Revision(u32),
    /// The backend offers a maximum message size below [`MIN_MESSAGE_SIZE`].
    MessageSize(u32),
}

/// Checks the backend's offer [2.3]. Unknown bits of `bus_features` are ignored. A
/// `max_message_size` above [`SLOT_SIZE`](crate::page::SLOT_SIZE) is reduced to it.
///
/// # Errors
/// [`NegotiationError`] names the key that the driver cannot use, and its value.
pub const fn negotiate(
    revision: u32,
    max_message_size: u32,
    bus_features: u32,
) -> Result<Negotiated, NegotiationError> {
    if revision != REVISION {
        return Err(NegotiationError::Revision(revision));
    }
    if max_message_size < MIN_MESSAGE_SIZE {
        return Err(NegotiationError::MessageSize(max_message_size));
    }
    let slot = crate::page::SLOT_SIZE as u32;
    let max_message_size = if max_message_size > slot { slot } else { max_message_size };
    let shared_pool = bus_features & F_SHARED_POOL != 0;
    let unshare = shared_pool && bus_features & F_UNSHARE != 0;
    let movable = bus_features & F_MOVABLE != 0;
    Ok(Negotiated { max_message_size, shared_pool, unshare, movable })
}

/// The offered transport features that a frontend takes: those in [`TRANSPORT_FEATURES`] [2.11].
pub const fn taken_transport_features(offered: u32) -> u32 {
    offered & TRANSPORT_FEATURES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spec_2_11_unknown_transport_features_are_not_taken() {
        for offered in [0, F_STRICT_CONFIG_GENERATION, 0x8000_0000, u32::MAX] {
            assert_eq!(taken_transport_features(offered), 0, "{offered:#x}");
        }
    }

    #[test]
    fn spec_2_3_unknown_revision_and_small_size_are_refused() {
        let size = |offered| negotiate(1, offered, 0).map(|agreed| agreed.max_message_size);
        assert_eq!((size(264), size(65535)), (Ok(264), Ok(480)));
        assert_eq!(negotiate(2, 264, 0), Err(NegotiationError::Revision(2)));
        assert_eq!(negotiate(1, 51, 0), Err(NegotiationError::MessageSize(51)));
    }

    #[test]
    fn spec_2_3_unknown_bus_features_are_ignored() {
        let agreed = |features| {
            negotiate(1, 264, features).map(|agreed| (agreed.shared_pool, agreed.unshare))
        };
        assert_eq!(
            [0, 1, 3, 0xfffc, 0xfffd, u32::MAX].map(agreed),
            [
                (false, false),
                (true, false),
                (true, true),
                (false, false),
                (true, false),
                (true, true)
            ]
            .map(Ok)
        );
    }

    #[test]
    fn spec_2_3_unsharing_without_a_pool_is_not_used() {
        assert!(negotiate(1, 264, F_UNSHARE).is_ok_and(|agreed| !agreed.unshare));
    }

    #[test]
    fn spec_2_2_any_state_number_decodes() {
        assert_eq!(XenbusState::from_number(4), XenbusState::Connected);
        assert_eq!(XenbusState::from_number(7), XenbusState::Unknown);
        assert_eq!(XenbusState::from_number(u32::MAX), XenbusState::Unknown);
    }
}
