//! The state machine of a connection, as a table (virtio 1.3 section 5.10.6.6).

use super::header::{Operation, Shutdown};

/// The state of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnState {
    /// The device sent the guest a request, which the guest has not answered.
    Requested,
    /// Data flows both ways.
    Open,
    /// The guest sends no more data.
    ToGuest,
    /// The host sends no more data, or the guest receives no more.
    ToHost,
    /// Neither sends; the program has not taken all of the guest's data. The guest waits for a
    /// reset.
    Finishing,
    /// As [`ConnState::Finishing`], but the guest has forgotten the connection.
    Abandoned,
    /// The connection is over; the muxer removes it.
    Closed,
}

/// An event of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnEvent {
    /// A packet from the guest: its operation and flags.
    VsockPacket(Operation, Shutdown),
    /// The host's program sends no more data.
    HostEnded,
    /// The host's program closed its socket.
    HostGone,
    /// The host's program has taken all data that the guest sent.
    Delivered,
}

/// The packet to send to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// No packet.
    Nothing,
    /// A shutdown: the host sends no more data.
    Shutdown,
    /// A reset: the connection is over, or never existed.
    Reset,
}

impl ConnState {
    /// Whether the device passes data of the host's program on to the guest.
    pub fn reads_host(self) -> bool {
        matches!(self, Self::Open | Self::ToGuest)
    }

    /// Whether the host's program can still receive data.
    pub fn feeds_host(self) -> bool {
        matches!(self, Self::Requested | Self::Open | Self::ToHost)
    }

    /// The state table: returns the next state and the reply to the guest.
    pub fn next(self, event: ConnEvent) -> (Self, Reply) {
        use ConnEvent::{Delivered, HostEnded, HostGone, VsockPacket};
        use ConnState::{Abandoned, Closed, Finishing, Open, Requested, ToGuest, ToHost};
        if let VsockPacket(Operation::Shutdown, Shutdown(flags)) = event {
            return self.shut_down(flags);
        }
        let stays = (self, Reply::Nothing);
        match (self, event) {
            (Closed, _) => stays,
            (Abandoned, Delivered | HostGone | VsockPacket(..)) => (Closed, Reply::Nothing),
            (Requested, VsockPacket(Operation::Reset, _)) => (Closed, Reply::Nothing),
            (_, VsockPacket(Operation::Reset, _)) => (Abandoned, Reply::Nothing),
            (Requested, VsockPacket(Operation::Response, _)) => (Open, Reply::Nothing),
            (Requested, VsockPacket(Operation::CreditUpdate | Operation::CreditRequest, _)) => {
                stays
            }
            (Open | ToHost, VsockPacket(Operation::Data, _)) => stays,
            (_, VsockPacket(Operation::CreditUpdate | Operation::CreditRequest, _)) => stays,
            // Out of order, or in a direction that was shut down.
            (_, VsockPacket(..)) => (Closed, Reply::Reset),
            (Open, HostEnded) => (ToHost, Reply::Shutdown),
            (ToGuest, HostEnded) => (Finishing, Reply::Nothing),
            (Requested, HostEnded) => (Closed, Reply::Reset),
            (ToHost | Finishing | Abandoned, HostEnded) => stays,
            (_, HostGone) => (Closed, Reply::Reset),
            (Finishing, Delivered) => (Closed, Reply::Reset),
            (_, Delivered) => stays,
        }
    }

    /// The guest shuts down one direction or both.
    fn shut_down(self, flags: u32) -> (Self, Reply) {
        use ConnState::{Abandoned, Closed, Finishing, Open, Requested, ToGuest, ToHost};
        let sends = flags & Shutdown::SEND == 0;
        let receives = flags & Shutdown::RECEIVE == 0;
        let after = match (self, sends, receives) {
            (Requested, _, _) => return (Closed, Reply::Reset),
            (state @ (Finishing | Abandoned | Closed), _, _) | (state, true, true) => state,
            (Open | ToGuest, false, true) => ToGuest,
            (Open | ToHost, true, false) => ToHost,
            (Open, false, false) | (ToGuest, _, false) | (ToHost, false, _) => Finishing,
        };
        (after, Reply::Nothing)
    }
}

#[cfg(test)]
mod tests {
    use super::ConnEvent::{Delivered, HostEnded, HostGone, VsockPacket};
    use super::ConnState::{Abandoned, Closed, Finishing, Open, Requested, ToGuest, ToHost};
    use super::*;

    const STATES: [ConnState; 7] = [Requested, Open, ToGuest, ToHost, Finishing, Abandoned, Closed];

    fn packet(operation: Operation) -> ConnEvent {
        VsockPacket(operation, Shutdown(0))
    }

    fn shutdown(flags: u32) -> ConnEvent {
        VsockPacket(Operation::Shutdown, Shutdown(flags))
    }

    #[test]
    fn connection_opens_only_by_a_response() {
        assert_eq!(Requested.next(packet(Operation::Response)), (Open, Reply::Nothing));
        assert_eq!(Requested.next(packet(Operation::Reset)), (Closed, Reply::Nothing));
        assert_eq!(Requested.next(packet(Operation::Data)), (Closed, Reply::Reset));
        assert_eq!(Requested.next(shutdown(3)), (Closed, Reply::Reset));
        for state in [Open, ToGuest, ToHost, Finishing] {
            assert_eq!(state.next(packet(Operation::Response)), (Closed, Reply::Reset));
            assert_eq!(state.next(packet(Operation::Request)), (Closed, Reply::Reset));
        }
    }

    #[test]
    fn directions_end_separately_and_delivery_ends_the_connection() {
        assert_eq!(Open.next(shutdown(Shutdown::SEND)), (ToGuest, Reply::Nothing));
        assert_eq!(Open.next(shutdown(Shutdown::RECEIVE)), (ToHost, Reply::Nothing));
        assert_eq!(Open.next(shutdown(3)), (Finishing, Reply::Nothing));
        assert_eq!(ToGuest.next(shutdown(3)), (Finishing, Reply::Nothing));
        assert_eq!(ToHost.next(shutdown(Shutdown::SEND)), (Finishing, Reply::Nothing));
        assert_eq!(Open.next(HostEnded), (ToHost, Reply::Shutdown));
        assert_eq!(ToGuest.next(HostEnded), (Finishing, Reply::Nothing));
        assert_eq!(Finishing.next(Delivered), (Closed, Reply::Reset));
        assert_eq!(ToGuest.next(Delivered), (ToGuest, Reply::Nothing));
    }

    #[test]
    fn data_in_a_closed_direction_resets_the_connection() {
        for state in [ToGuest, Finishing] {
            assert_eq!(state.next(packet(Operation::Data)), (Closed, Reply::Reset));
        }
        assert_eq!(ToHost.next(packet(Operation::Data)), (ToHost, Reply::Nothing));
    }

    #[test]
    fn reset_gets_no_reply_and_earlier_data_is_delivered() {
        for state in STATES {
            let (after, answer) = state.next(packet(Operation::Reset));
            assert_eq!(answer, Reply::Nothing, "{state:?}");
            assert!(matches!(after, Abandoned | Closed), "{state:?}");
        }
        assert_eq!(Abandoned.next(Delivered), (Closed, Reply::Nothing));
    }

    #[test]
    fn closed_host_socket_closes_the_connection_in_every_state() {
        for state in STATES {
            assert_eq!(state.next(HostGone).0, Closed, "{state:?}");
        }
    }
}
