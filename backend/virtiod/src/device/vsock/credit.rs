//! Flow control (virtio 1.3 section 5.10.6.3): neither side sends what the other has no room for.
//! All counts are modulo 2³².

use super::header::Credit;

/// Bytes that this side keeps for a connection whose other end does not take them.
pub const BUFFER_SIZE: u32 = 128 << 10;

/// What the guest has room for.
#[derive(Debug)]
pub struct PeerCredit {
    room: Credit,
    sent: u32,
}

impl PeerCredit {
    /// As a first packet said.
    pub fn new(room: Credit) -> Self {
        Self { room, sent: 0 }
    }

    /// Takes what a packet says.
    pub fn update(&mut self, room: Credit) {
        self.room = room;
    }

    /// Bytes that may be sent now. None if the guest says that it took more than it was sent.
    pub fn available(&self) -> u32 {
        let underway = self.sent.wrapping_sub(self.room.fwd_cnt);
        self.room.buf_alloc.saturating_sub(underway)
    }

    /// Counts what was sent.
    pub fn spend(&mut self, bytes: u32) {
        self.sent = self.sent.wrapping_add(bytes);
    }
}

/// What this side has room for.
#[derive(Debug, Default)]
pub struct RxWindow {
    received: u32,
    forwarded: u32,
    /// The forwarded bytes that the guest was told of last.
    told: u32,
}

impl RxWindow {
    /// Counts what came; `false`, and not counted, if there was no room for it.
    pub fn receive(&mut self, bytes: u32) -> bool {
        let kept = self.received.wrapping_sub(self.forwarded);
        let fits = bytes <= BUFFER_SIZE.saturating_sub(kept);
        if fits {
            self.received = self.received.wrapping_add(bytes);
        }
        fits
    }

    /// Counts what was passed on.
    pub fn forward(&mut self, bytes: u32) {
        self.forwarded = self.forwarded.wrapping_add(bytes);
    }

    /// Whether the guest is to be told: by what it knows half of the room is taken, and there is
    /// more.
    pub fn is_stale(&self) -> bool {
        let known = self.received.wrapping_sub(self.told);
        known > BUFFER_SIZE / 2 && self.told != self.forwarded
    }

    /// What a packet to the guest says, which then knows.
    pub fn advertise(&mut self) -> Credit {
        self.told = self.forwarded;
        Credit { buf_alloc: BUFFER_SIZE, fwd_cnt: self.forwarded }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_underway_takes_room_until_it_is_passed_on() {
        let mut peer_credit = PeerCredit::new(Credit { buf_alloc: 100, fwd_cnt: 0 });
        peer_credit.spend(100);
        assert_eq!(peer_credit.available(), 0);
        peer_credit.update(Credit { buf_alloc: 100, fwd_cnt: 60 });
        assert_eq!(peer_credit.available(), 60);
        // A buffer that shrinks below what is in it.
        peer_credit.update(Credit { buf_alloc: 10, fwd_cnt: 60 });
        assert_eq!(peer_credit.available(), 0);
    }

    #[test]
    fn counts_wrap() {
        let mut peer_credit = PeerCredit::new(Credit { buf_alloc: 100, fwd_cnt: 0 });
        peer_credit.spend(u32::MAX);
        peer_credit.update(Credit { buf_alloc: 100, fwd_cnt: u32::MAX });
        peer_credit.spend(10);
        assert_eq!(peer_credit.available(), 90);
        let mut window = RxWindow { received: u32::MAX, forwarded: u32::MAX, told: u32::MAX };
        assert!(window.receive(BUFFER_SIZE));
        window.forward(BUFFER_SIZE);
        assert_eq!(window.advertise().fwd_cnt, BUFFER_SIZE - 1);
    }

    #[test]
    fn a_guest_that_claims_to_have_taken_more_than_it_was_sent_is_sent_nothing() {
        let peer_credit = PeerCredit::new(Credit { buf_alloc: 100, fwd_cnt: 1 });
        assert_eq!(peer_credit.available(), 0);
    }

    #[test]
    fn more_than_there_is_room_for_is_refused() {
        let mut window = RxWindow::default();
        assert!(window.receive(BUFFER_SIZE));
        assert!(!window.receive(1));
        window.forward(1);
        assert!(window.receive(1));
        assert!(!window.receive(u32::MAX));
    }

    #[test]
    fn the_guest_is_told_when_half_of_what_it_knows_of_is_taken() {
        let mut window = RxWindow::default();
        assert!(window.receive(BUFFER_SIZE / 2 + 1));
        assert!(!window.is_stale(), "nothing to advertise yet");
        window.forward(1);
        assert!(window.is_stale());
        assert_eq!(window.advertise(), Credit { buf_alloc: BUFFER_SIZE, fwd_cnt: 1 });
        assert!(!window.is_stale());
    }
}
