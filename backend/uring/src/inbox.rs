//! Messages that the kernel receives from message devices, such as the queues of a TAP interface,
//! as they arrive: they are in memory before anybody asks for them, and their arrival shows without
//! a system call.
//!
//! For each device one operation stays in the ring (`IORING_OP_READ_MULTISHOT`, Linux 6.7). It
//! takes one of the device's buffers for each message, and ends when there is none left.

mod buffers;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use io_uring::{cqueue, opcode, types};

use self::buffers::Buffers;
use crate::rings::{self, IdleRing, LentRing};
use crate::submission::{has_room, stop_polls, submit, submit_and_wait, wait_in_ring};
use crate::waiting::{AwaitedFd, POLL_MARK, RingPolls, wait_by_poll};

/// Marks requests to end a reception, whose results mean nothing.
const END_MARK: u64 = 1 << 61;
/// Most times in a row that a reception fails and is begun again.
const MOST_FAILURES: u8 = 16;
/// Maximum time for which the end of an inbox waits for the kernel each time, and how often.
const END_WAIT: Duration = Duration::from_millis(100);
const END_WAITS: u32 = 10;

/// A message in a buffer of an inbox. Given back, the buffer takes another message.
#[derive(Debug)]
pub struct Message {
    device: usize,
    buffer: u16,
    length: u32,
}

impl Message {
    /// The number of the device that it is from.
    pub fn device(&self) -> usize {
        self.device
    }

    /// Number of bytes.
    pub fn length(&self) -> usize {
        self.length as usize
    }
}

/// What the kernel does for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reception {
    /// Nothing.
    Ended,
    /// It receives.
    Running,
    /// It was asked to end that.
    Ending,
    /// It cannot receive from this device, or no more.
    Refused,
}

/// The reception from one device.
struct Receiver {
    reception: Reception,
    /// Number of times that it failed since the last message.
    failures: u8,
    buffers: Buffers,
}

impl Receiver {
    /// The kernel's last result of a reception.
    fn end(&mut self, result: i32) {
        self.reception = match -result {
            // No buffer is left, it was asked to end, or the ring had no room for more results.
            libc::ENOBUFS | libc::ECANCELED => Reception::Ended,
            ..0 => Reception::Ended,
            libc::EAGAIN | libc::EINTR | libc::ENOMEM if self.failures < MOST_FAILURES => {
                self.failures += 1;
                Reception::Ended
            }
            _ => Reception::Refused,
        };
    }
}

/// Receives messages of several devices, by number, each into buffers of its own.
pub struct Inbox {
    ring: LentRing,
    polls: RingPolls,
    receivers: Vec<Receiver>,
    /// Messages that were found beside other results.
    arrived: VecDeque<Message>,
    /// A reception has ended since everything was taken: it may have to be begun again.
    has_ended: bool,
}

impl Inbox {
    /// An inbox for so many devices, each with `count` buffers (a power of two, at most 64) for
    /// messages of at most `length` bytes; `None` if the kernel does not permit it.
    pub fn open(devices: u16, count: u16, length: usize) -> Option<Self> {
        let IdleRing { ring, last_poll } = rings::take()?;
        let mut inbox = Self {
            ring: LentRing::new(ring, last_poll),
            polls: RingPolls::after(last_poll),
            receivers: Vec::new(),
            arrived: VecDeque::new(),
            has_ended: false,
        };
        if !rings::can_receive() {
            return None;
        }
        for device in 0..devices {
            let buffers = Buffers::new(&inbox.ring, device, count, length);
            let mut buffers = buffers
                .inspect_err(|error| tracing::debug!(%error, "no buffers for messages"))
                .ok()?;
            buffers.provide_all();
            inbox.receivers.push(Receiver { reception: Reception::Ended, failures: 0, buffers });
        }
        Some(inbox)
    }

    /// Has the kernel receive the messages of a device, unless it does, or no buffer is left. The
    /// descriptor stays open as long as the inbox. What the kernel cannot receive, the caller
    /// receives in another way: see [`Inbox::can_receive`].
    pub fn receive_from(&mut self, device: usize, file: BorrowedFd<'_>) {
        let Some(receiver) = self.receivers.get_mut(device) else { return };
        if receiver.reception != Reception::Ended || receiver.buffers.provided() == 0 {
            return;
        }
        // Without an offset: these files have no position. There are fewer devices than groups.
        let entry = opcode::ReadMulti::new(types::Fd(file.as_raw_fd()), 0, device as u16);
        let entry = entry.offset(u64::MAX).build().user_data(device as u64);
        // If the kernel takes nothing now, the next call tries again.
        if !has_room(&mut self.ring, 1) {
            return;
        }
        // SAFETY: range: the kernel writes into registered buffers, each of the length that it was
        // told. Lifetime: they are freed when no reception is left, or never. Aliasing: a buffer
        // that the kernel may write into is given out to nobody. A descriptor that was closed
        // against what the caller promised is another file, or none.
        if unsafe { self.ring.submission().push(&entry) }.is_ok() {
            receiver.reception = Reception::Running;
        }
        submit(&mut self.ring);
    }

    /// Ends the reception from a device.
    fn end_one(&mut self, device: usize) {
        let is_running = |receiver: &&mut Receiver| receiver.reception == Reception::Running;
        let found = self.receivers.get_mut(device).filter(is_running);
        let (Some(receiver), true) = (found, has_room(&mut self.ring, 1)) else { return };
        let entry = opcode::AsyncCancel::new(device as u64).build().user_data(END_MARK);
        // SAFETY: the entry refers to no memory.
        if unsafe { self.ring.submission().push(&entry) }.is_ok() {
            receiver.reception = Reception::Ending;
        }
        submit(&mut self.ring);
    }

    /// Whether the kernel receives a device's messages, or would.
    pub fn can_receive(&self, device: usize) -> bool {
        let receiver = self.receivers.get(device);
        receiver.is_some_and(|receiver| receiver.reception != Reception::Refused)
    }

    /// A descriptor that is readable while results wait in the ring. [`Inbox::wait_for`] finds it
    /// ready as [`Inbox::has_arrived`] says.
    pub fn arrivals(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the ring, which `self` owns.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }

    /// Whether messages have arrived that nobody took, or a reception has ended, without a system
    /// call.
    pub fn has_arrived(&self) -> bool {
        // SAFETY: no other view of the completion queue exists: the others borrow the ring
        // exclusively, and this one ends with the expression.
        self.has_news() || !unsafe { self.ring.completion_shared() }.is_empty()
    }

    fn has_news(&self) -> bool {
        self.has_ended || !self.arrived.is_empty()
    }

    /// Takes the next message that has arrived. After the last one, receptions that have ended are
    /// to be begun again.
    #[inline]
    pub fn take(&mut self) -> Option<Message> {
        if self.arrived.is_empty() {
            self.fetch();
            self.has_ended &= !self.arrived.is_empty();
        }
        self.arrived.pop_front()
    }

    /// The bytes of a message of this inbox.
    pub fn bytes(&mut self, message: &Message) -> Option<&mut [u8]> {
        let receiver = self.receivers.get_mut(message.device)?;
        receiver.buffers.bytes(message.buffer)?.get_mut(..message.length())
    }

    /// Lets the buffer take another message.
    pub fn give_back(&mut self, message: Message) {
        if let Some(receiver) = self.receivers.get_mut(message.device) {
            receiver.buffers.provide(message.buffer);
        }
    }

    /// Fetches all results from the ring.
    fn fetch(&mut self) {
        let Self { ring, polls, receivers, arrived, has_ended } = self;
        loop {
            for entry in ring.completion() {
                match entry.user_data() {
                    number if number & POLL_MARK != 0 => polls.take_result(number, entry.result()),
                    END_MARK => {}
                    device => {
                        let device = device as usize;
                        let Some(receiver) = receivers.get_mut(device) else { continue };
                        arrived.extend(message(&entry, device, receiver));
                        if !cqueue::more(entry.flags()) {
                            receiver.end(entry.result());
                            *has_ended = true;
                        }
                    }
                }
            }
            // The kernel keeps what the ring cannot hold until it is asked.
            if !ring.submission().cq_overflow() || ring.submit().is_err() {
                break;
            }
        }
    }

    /// Waits until one of `fds` is ready or something has arrived, for at most `limit`
    /// ([`Duration::MAX`]: for ever); may return earlier. The ring keeps these files open until a
    /// wait without them.
    ///
    /// # Errors
    /// The kernel's.
    pub fn wait_for(&mut self, fds: &mut [AwaitedFd], limit: Duration) -> io::Result<()> {
        let is_ready = self.has_news();
        let Self { ring, polls, .. } = self;
        let waited = if ring.params().is_feature_ext_arg() {
            wait_in_ring(ring, polls, fds, is_ready, limit)
        } else {
            None
        };
        let Some(waited) = waited else {
            // What is in memory does not show in descriptors.
            wait_by_poll(fds, if is_ready { Duration::ZERO } else { limit })?;
            let own = self.ring.as_raw_fd();
            let own = fds.iter_mut().filter(|awaited| awaited.is(own));
            own.for_each(|awaited| awaited.is_ready |= is_ready);
            return Ok(());
        };
        self.fetch();
        self.polls.note(fds);
        let (own, has_news) = (self.ring.as_raw_fd(), self.has_news());
        fds.iter_mut().filter(|awaited| awaited.is(own)).for_each(|awaited| {
            awaited.is_ready = has_news;
        });
        waited
    }

    /// Has the ring poll no descriptor any more: it keeps no file open but those that it receives
    /// from.
    pub fn stop_polling(&mut self) {
        stop_polls(&mut self.ring, &mut self.polls);
        self.fetch();
    }

    fn is_idle(&self) -> bool {
        let is_idle = |reception| matches!(reception, Reception::Ended | Reception::Refused);
        self.receivers.iter().all(|receiver| is_idle(receiver.reception))
    }

    /// Ends all receptions; returns whether they have ended.
    fn end(&mut self) -> bool {
        for _ in 0..END_WAITS {
            (0..self.receivers.len()).for_each(|device| self.end_one(device));
            self.fetch();
            if self.is_idle() {
                return true;
            }
            if submit_and_wait(&self.ring, 1, END_WAIT).is_err() {
                break;
            }
        }
        false
    }
}

/// The message of a result, if it has one. Its buffer is the receiver's no more.
fn message(entry: &cqueue::Entry, device: usize, receiver: &mut Receiver) -> Option<Message> {
    let buffer = cqueue::buffer_select(entry.flags())?;
    if !receiver.buffers.take(buffer) {
        return None;
    }
    match u32::try_from(entry.result()) {
        Ok(length @ 1..) => {
            receiver.failures = 0;
            Some(Message { device, buffer, length })
        }
        Ok(0) | Err(_) => {
            receiver.buffers.provide(buffer);
            None
        }
    }
}

impl Drop for Inbox {
    /// Leaks what the kernel may still write into.
    fn drop(&mut self) {
        let has_ended = self.end();
        if has_ended {
            self.stop_polling();
        }
        let mut is_idle = has_ended && self.polls.len() == 0;
        for (group, receiver) in (0..).zip(&mut self.receivers) {
            if !is_idle || !receiver.buffers.unregister(&self.ring, group) {
                receiver.buffers.leak();
                is_idle = false;
            }
        }
        if is_idle {
            self.ring.set_last_poll(self.polls.last());
        } else {
            self.ring.keep_from_others();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;

    use super::*;

    fn devices() -> (UnixDatagram, UnixDatagram) {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        (ours, theirs)
    }

    /// An inbox with four buffers of eight bytes for each device, if the kernel has any.
    fn inbox(devices: u16) -> Option<Inbox> {
        let inbox = Inbox::open(devices, 4, 8);
        if inbox.is_none() {
            println!("skipped: the kernel receives no messages into buffers of a ring");
        }
        inbox
    }

    fn next(inbox: &mut Inbox) -> Option<(usize, Vec<u8>)> {
        let message = inbox.take()?;
        let bytes = inbox.bytes(&message).unwrap().to_vec();
        let device = message.device();
        inbox.give_back(message);
        Some((device, bytes))
    }

    #[test]
    fn messages_of_several_devices_show_in_memory() {
        let Some(mut inbox) = inbox(2) else { return };
        let ((first, to_first), (second, to_second)) = (devices(), devices());
        to_first.send(b"before").unwrap();
        inbox.receive_from(0, first.as_fd());
        inbox.receive_from(1, second.as_fd());
        assert_eq!(next(&mut inbox), Some((0, b"before".to_vec())));
        for round in 0..100 {
            assert!(!inbox.has_arrived(), "{round}");
            to_second.send(&[round]).unwrap();
            // The send's return has the kernel do the rest.
            assert!(inbox.has_arrived(), "{round}");
            assert_eq!(next(&mut inbox), Some((1, vec![round])));
        }
        // What does not fit is cut off.
        to_first.send(b"0123456789").unwrap();
        assert_eq!(next(&mut inbox), Some((0, b"01234567".to_vec())));
    }

    #[test]
    fn reception_goes_on_after_all_buffers_were_full() {
        let Some(mut inbox) = inbox(2) else { return };
        let ((ours, theirs), (other, to_other)) = (devices(), devices());
        inbox.receive_from(0, ours.as_fd());
        inbox.receive_from(1, other.as_fd());
        (0..6).for_each(|number| assert_eq!(theirs.send(&[number]).unwrap(), 1));
        let kept: Vec<_> = std::iter::from_fn(|| inbox.take()).collect();
        assert_eq!(kept.len(), 4);
        // Nothing changes while it has no buffers, and the other has its own.
        inbox.receive_from(0, ours.as_fd());
        assert!(!inbox.has_arrived());
        to_other.send(b"other").unwrap();
        assert_eq!(next(&mut inbox), Some((1, b"other".to_vec())));
        for (number, message) in kept.into_iter().enumerate() {
            assert_eq!(inbox.bytes(&message).unwrap(), [number as u8]);
            inbox.give_back(message);
        }
        inbox.receive_from(0, ours.as_fd());
        assert_eq!([4, 5].map(|_| next(&mut inbox).unwrap().1), [[4], [5]]);
        assert!(inbox.take().is_none());
    }

    #[test]
    fn reception_that_ends_is_news() {
        let Some(mut inbox) = inbox(1) else { return };
        let (ours, theirs) = devices();
        inbox.receive_from(0, ours.as_fd());
        (0..4).for_each(|_| assert_eq!(theirs.send(b"full").unwrap(), 4));
        let kept: Vec<_> = std::iter::from_fn(|| inbox.take()).collect();
        // Without a buffer for this one, the reception ends, behind the messages.
        theirs.send(b"more").unwrap();
        kept.into_iter().for_each(|message| inbox.give_back(message));
        inbox.receive_from(0, ours.as_fd());
        for _ in 0..2 {
            let mut fds = [AwaitedFd::readable(inbox.arrivals())];
            inbox.wait_for(&mut fds, Duration::from_secs(10)).unwrap();
            assert!(fds[0].is_ready && inbox.has_arrived());
            if inbox.arrived.is_empty() {
                assert!(inbox.take().is_none() && !inbox.has_arrived());
                inbox.receive_from(0, ours.as_fd());
            }
        }
        assert_eq!(next(&mut inbox), Some((0, b"more".to_vec())));
    }

    #[test]
    fn wait_ends_with_a_message_or_with_another_descriptor() {
        let Some(mut inbox) = inbox(1) else { return };
        let ((ours, theirs), (other, to_other)) = (devices(), devices());
        inbox.receive_from(0, ours.as_fd());
        for round in 0..3 {
            let mut fds =
                [AwaitedFd::readable(inbox.arrivals()), AwaitedFd::readable(other.as_fd())];
            theirs.send(b"message").unwrap();
            inbox.wait_for(&mut fds, Duration::MAX).unwrap();
            assert_eq!(fds.map(|fd| fd.is_ready), [true, false], "{round}");
            assert!(next(&mut inbox).is_some());
            to_other.send(b"other").unwrap();
            inbox.wait_for(&mut fds, Duration::MAX).unwrap();
            assert_eq!(fds.map(|fd| fd.is_ready), [false, true], "{round}");
            other.recv(&mut [0; 8]).unwrap();
        }
        inbox.wait_for(&mut [], Duration::from_millis(1)).unwrap();
    }

    #[test]
    fn device_that_cannot_be_received_from_is_refused() {
        let Some(mut inbox) = inbox(1) else { return };
        let file = tempfile::tempfile().unwrap();
        assert!(inbox.can_receive(0));
        inbox.receive_from(0, file.as_fd());
        assert!(inbox.take().is_none());
        assert!(!inbox.can_receive(0));
    }

    #[test]
    fn inbox_that_ends_lets_go_of_its_devices() {
        let Some(mut inbox) = inbox(1) else { return };
        let (ours, theirs) = devices();
        inbox.receive_from(0, ours.as_fd());
        drop(ours);
        theirs.send(b"open").unwrap();
        drop(inbox);
        assert_eq!(theirs.send(b"gone").unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}
