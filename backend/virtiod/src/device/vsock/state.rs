//! The life of a connection, as a table (virtio 1.3 section 5.10.6.6).

use super::header::{Operation, Shutdown};

/// Where a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnState {
    /// The guest was asked for it and has not answered.
    Requested,
    /// Data flows both ways.
    Open,
    /// The guest sends nothing more.
    ToGuest,
    /// The host sends nothing more, or the guest takes nothing more.
    ToHost,
    /// Neither sends; the host is yet to be given what the guest sent. The guest waits for a reset.
    Finishing,
    /// As [`ConnState::Finishing`], of a connection that the guest has forgotten.
    Abandoned,
    /// Over: to be forgotten.
    Closed,
}

/// What happens to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnEvent {
    /// A packet of the guest's; its flags with it.
    VsockPacket(Operation, Shutdown),
    /// The host's program ended what it sends.
    HostEnded,
    /// The host's program is gone.
    HostGone,
    /// The host's program was given all that the guest sent.
    Delivered,
}

/// What to send to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Nothing.
    Nothing,
    /// That the host sends nothing more.
    Shutdown,
    /// That the connection is over, or never was.
    Reset,
}

impl ConnState {
    /// Whether what the host's program sends is for the guest.
    pub fn reads_host(self) -> bool {
        matches!(self, Self::Open | Self::ToGuest)
    }

    /// Whether the host's program can expect more.
    pub fn feeds_host(self) -> bool {
        matches!(self, Self::Requested | Self::Open | Self::ToHost)
    }

    /// The table: where the connection stands then, and what the guest is told.
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
            // Out of turn, or in a direction that was ended.
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

    /// The guest ends one direction or both.
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

    const STAGES: [ConnState; 7] = [Requested, Open, ToGuest, ToHost, Finishing, Abandoned, Closed];

    fn packet(operation: Operation) -> ConnEvent {
        VsockPacket(operation, Shutdown(0))
    }

    fn shutdown(flags: u32) -> ConnEvent {
        VsockPacket(Operation::Shutdown, Shutdown(flags))
    }

    #[test]
    fn a_connection_opens_by_the_guests_response_alone() {
        assert_eq!(Requested.next(packet(Operation::Response)), (Open, Reply::Nothing));
        assert_eq!(Requested.next(packet(Operation::Reset)), (Closed, Reply::Nothing));
        assert_eq!(Requested.next(packet(Operation::Data)), (Closed, Reply::Reset));
        assert_eq!(Requested.next(shutdown(3)), (Closed, Reply::Reset));
        for state in [Open, ToGuest, ToHost, Finishing] {
            assert_eq!(state.next(packet(Operation::Response)), (Closed, Reply::Reset));
            assert_eq!(state.next(packet(Operation::VirtioRequest)), (Closed, Reply::Reset));
        }
    }

    #[test]
    fn each_direction_ends_by_itself_and_both_end_the_connection_when_all_is_delivered() {
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
    fn data_in_a_direction_that_was_ended_resets() {
        for state in [ToGuest, Finishing] {
            assert_eq!(state.next(packet(Operation::Data)), (Closed, Reply::Reset));
        }
        assert_eq!(ToHost.next(packet(Operation::Data)), (ToHost, Reply::Nothing));
    }

    #[test]
    fn a_reset_is_never_answered_and_what_came_before_it_is_delivered() {
        for state in STAGES {
            let (after, answer) = state.next(packet(Operation::Reset));
            assert_eq!(answer, Reply::Nothing, "{state:?}");
            assert!(matches!(after, Abandoned | Closed), "{state:?}");
        }
        assert_eq!(Abandoned.next(Delivered), (Closed, Reply::Nothing));
    }

    #[test]
    fn a_host_that_is_gone_closes_every_connection() {
        for state in STAGES {
            assert_eq!(state.next(HostGone).0, Closed, "{state:?}");
        }
    }
}
