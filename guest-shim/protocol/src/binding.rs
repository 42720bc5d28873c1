//! XenStore keys, states and limits of the Xen bus binding (SPEC sections 2 and 7).

/// The virtio-msg revision both sides must name [2.3].
pub const REVISION: u32 = 1;
/// The smallest maximum message size that may be offered [2.3].
pub const MIN_MESSAGE_SIZE: u32 = 52;
/// The size offered unless there is a reason for another: 256 bytes of config behind a header.
pub const RECOMMENDED_MESSAGE_SIZE: u32 = 264;
/// The device number of the one device behind a frontend/backend pair [1.2].
pub const DEVICE_NUMBER: u16 = 0;

/// Bus feature bit: the device keeps pages mapped that the driver shares with it [3.10].
pub const F_SHARED_POOL: u32 = 1 << 0;

/// Transport feature bit: SET_CONFIG with another generation than the current is rejected [2.11].
pub const F_STRICT_CONFIG_GENERATION: u32 = 1 << 0;

/// The transport features that the two sides of this project know: none.
pub const TRANSPORT_FEATURES: u32 = 0;

/// Keys the backend writes into its own directory before state 2 [2.3].
pub mod backend_key {
    /// virtio-msg revision, decimal.
    pub const REVISION: &str = "virtio-msg-revision";
    /// Largest message, in bytes, that either side may send, decimal.
    pub const MAX_MESSAGE_SIZE: &str = "virtio-msg-max-size";
    /// Bus feature bits that the backend offers, decimal: [`super::F_SHARED_POOL`].
    pub const BUS_FEATURES: &str = "virtio-msg-bus-features";
    /// Transport feature bits that the backend offers, decimal; without the key, none [2.11].
    pub const TRANSPORT_FEATURES: &str = "virtio-msg-transport-features";
}

/// Keys the frontend writes into its own directory before state 3 [2.4].
pub mod frontend_key {
    /// Grant reference of the message page, decimal.
    pub const MESSAGE_PAGE: &str = "message-page-ref";
    /// Event channel of the message page, decimal.
    pub const EVENT_CHANNEL: &str = "event-channel";
    /// Of the transport feature bits that the backend offers those that the frontend takes,
    /// decimal; without the key, none [2.11].
    pub const TRANSPORT_FEATURES: &str = "virtio-msg-transport-features";
}

/// A xenbus end's state, as the `state` key holds it in decimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum XenbusState {
    /// No state: the key is missing, or something else stands in it.
    Unknown = 0,
    /// Being set up by the toolstack, or starting again.
    Initialising = 1,
    /// Backend: negotiation keys are written.
    InitWait = 2,
    /// Frontend: page and port are written.
    Initialised = 3,
    /// Messages flow.
    Connected = 4,
    /// Going down.
    Closing = 5,
    /// Down; nothing of the peer's is held.
    Closed = 6,
}

impl XenbusState {
    /// The state with this number; [`XenbusState::Unknown`] for any other number, since the peer
    /// wrote it.
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

/// What both sides work with once the negotiation keys are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// Largest message that either side may send, in bytes.
    pub max_message_size: u32,
    /// Whether the driver may share pages [3.10].
    pub shared_pool: bool,
}

/// Why a driver cannot work with what a backend offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NegotiationError {
    /// Another revision than [`REVISION`].
    Revision(u32),
    /// A maximum message size below [`MIN_MESSAGE_SIZE`].
    MessageSize(u32),
}

/// Checks what the backend offers [2.3]. Bus features beyond those known here are not used. A
/// larger maximum than a slot of the message page holds is cut down to the slot.
///
/// # Errors
/// [`NegotiationError`] names the key that does not fit.
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
    Ok(Negotiated { max_message_size, shared_pool: bus_features & F_SHARED_POOL != 0 })
}

/// The transport features that a frontend takes of those that are offered [2.11].
pub const fn taken_transport_features(offered: u32) -> u32 {
    offered & TRANSPORT_FEATURES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spec_2_11_no_transport_feature_is_taken_that_is_not_known() {
        for offered in [0, F_STRICT_CONFIG_GENERATION, 0x8000_0000, u32::MAX] {
            assert_eq!(taken_transport_features(offered), 0, "{offered:#x}");
        }
    }

    #[test]
    fn spec_2_3_negotiation_refuses_what_it_does_not_know() {
        let size = |offered| negotiate(1, offered, 0).map(|agreed| agreed.max_message_size);
        assert_eq!((size(264), size(65535)), (Ok(264), Ok(480)));
        assert_eq!(negotiate(2, 264, 0), Err(NegotiationError::Revision(2)));
        assert_eq!(negotiate(1, 51, 0), Err(NegotiationError::MessageSize(51)));
    }

    #[test]
    fn spec_2_3_of_the_bus_features_those_are_used_that_are_known() {
        let pool = |features| negotiate(1, 264, features).map(|agreed| agreed.shared_pool);
        assert_eq!(
            (pool(0), pool(1), pool(6), pool(7)),
            (Ok(false), Ok(true), Ok(false), Ok(true))
        );
    }

    #[test]
    fn spec_2_2_states_of_any_number_decode() {
        assert_eq!(XenbusState::from_number(4), XenbusState::Connected);
        assert_eq!(XenbusState::from_number(7), XenbusState::Unknown);
        assert_eq!(XenbusState::from_number(u32::MAX), XenbusState::Unknown);
    }
}
