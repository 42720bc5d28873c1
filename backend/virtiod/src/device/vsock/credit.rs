//! Flow control by credit (virtio 1.3 section 5.10.6.3): neither side sends more than the other has
//! buffer space for. All counts are modulo 2³².

use super::header::Credit;

/// Size in bytes of the device's buffer for a connection whose program does not read.
pub const BUFFER_SIZE: u32 = 128 << 10;

/// The credit that the guest grants: how much the device may send.
#[derive(Debug)]
pub struct PeerCredit {
    credit: Credit,
    sent: u32,
}

impl PeerCredit {
    /// The credit that the guest's first packet advertised.
    pub fn new(credit: Credit) -> Self {
        Self { credit, sent: 0 }
    }

    /// Sets the credit that a packet advertised.
    pub fn update(&mut self, credit: Credit) {
        self.credit = credit;
    }

    /// Number of bytes that the device may send now; 0 if the guest claims to have forwarded more
    /// bytes than it received.
    pub fn available(&self) -> u32 {
        let underway = self.sent.wrapping_sub(self.credit.fwd_cnt);
        self.credit.buf_alloc.saturating_sub(underway)
    }

    /// Counts bytes that were sent.
    pub fn spend(&mut self, bytes: u32) {
        self.sent = self.sent.wrapping_add(bytes);
    }
}

/// The credit that the device grants: how much the guest may send.
#[derive(Debug, Default)]
pub struct RxWindow {
    received: u32,
    forwarded: u32,
    /// The count of forwarded bytes that the device advertised last.
    advertised: u32,
}

impl RxWindow {
    /// Counts received bytes. Returns `false`, and counts nothing, if they exceed the buffer.
    pub fn receive(&mut self, bytes: u32) -> bool {
        let kept = self.received.wrapping_sub(self.forwarded);
        let fits = bytes <= BUFFER_SIZE.saturating_sub(kept);
        if fits {
            self.received = self.received.wrapping_add(bytes);
        }
        fits
    }

    /// Counts bytes that were passed on to the program.
    pub fn forward(&mut self, bytes: u32) {
        self.forwarded = self.forwarded.wrapping_add(bytes);
    }

    /// Whether the device should advertise its credit: by the guest's knowledge more than half of
    /// the buffer is full, and in fact there is more space.
    pub fn is_stale(&self) -> bool {
        let known = self.received.wrapping_sub(self.advertised);
        known > BUFFER_SIZE / 2 && self.advertised != self.forwarded
    }

    /// The credit for a packet to the guest; it counts as advertised.
    pub fn advertise(&mut self) -> Credit {
        self.advertised = self.forwarded;
        Credit { buf_alloc: BUFFER_SIZE, fwd_cnt: self.forwarded }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sent_bytes_use_credit_until_they_are_forwarded() {
        let mut peer_credit = PeerCredit::new(Credit { buf_alloc: 100, fwd_cnt: 0 });
        peer_credit.spend(100);
        assert_eq!(peer_credit.available(), 0);
        peer_credit.update(Credit { buf_alloc: 100, fwd_cnt: 60 });
        assert_eq!(peer_credit.available(), 60);
        // A buffer that shrinks below its contents.
        peer_credit.update(Credit { buf_alloc: 10, fwd_cnt: 60 });
        assert_eq!(peer_credit.available(), 0);
    }

    #[test]
    fn credit_counts_wrap() {
        let mut peer_credit = PeerCredit::new(Credit { buf_alloc: 100, fwd_cnt: 0 });
        peer_credit.spend(u32::MAX);
        peer_credit.update(Credit { buf_alloc: 100, fwd_cnt: u32::MAX });
        peer_credit.spend(10);
        assert_eq!(peer_credit.available(), 90);
        let mut window = RxWindow { received: u32::MAX, forwarded: u32::MAX, advertised: u32::MAX };
        assert!(window.receive(BUFFER_SIZE));
        window.forward(BUFFER_SIZE);
        assert_eq!(window.advertise().fwd_cnt, BUFFER_SIZE - 1);
    }

    #[test]
    fn impossible_forward_count_leaves_no_credit() {
        let peer_credit = PeerCredit::new(Credit { buf_alloc: 100, fwd_cnt: 1 });
        assert_eq!(peer_credit.available(), 0);
    }

    #[test]
    fn data_beyond_the_window_is_refused() {
        let mut window = RxWindow::default();
        assert!(window.receive(BUFFER_SIZE));
        assert!(!window.receive(1));
        window.forward(1);
        assert!(window.receive(1));
        assert!(!window.receive(u32::MAX));
    }

    #[test]
    fn window_is_stale_when_half_of_the_known_credit_is_used() {
        let mut window = RxWindow::default();
        assert!(window.receive(BUFFER_SIZE / 2 + 1));
        assert!(!window.is_stale(), "nothing to advertise yet");
        window.forward(1);
        assert!(window.is_stale());
        assert_eq!(window.advertise(), Credit { buf_alloc: BUFFER_SIZE, fwd_cnt: 1 });
        assert!(!window.is_stale());
    }
}
