//! Messages that the kernel receives from message devices, such as the queues of a TAP interface,
//! as they arrive: they are in memory before anybody asks for them, and their arrival shows without
//! a system call.
//!
//! For each device one operation stays in the ring (`IORING_OP_READ_MULTISHOT`, Linux 6.7). It
//! takes a buffer for each message, and ends when there is none left.

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
/// The number of the ring's group of buffers.
const GROUP: u16 = 0;
/// Maximum time for which the end of an inbox waits for the kernel each time, and how often.
const END_WAIT: Duration = Duration::from_millis(100);
const END_WAITS: u32 = 10;

/// A message in a buffer of an inbox. Given back, the buffer takes another message.
#[derive(Debug)]
pub struct Message {
    buffer: u16,
    length: u32,
}

impl Message {
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

/// Receives messages of several devices, by number, into buffers that they share.
pub struct Inbox {
    ring: LentRing,
    polls: RingPolls,
    receptions: Vec<Reception>,
    buffers: Buffers,
    /// Messages that were found beside other results, with their devices.
    arrived: VecDeque<(usize, Message)>,
}

impl Inbox {
    /// An inbox for so many devices, with `count` buffers (a power of two, at most 64) for messages
    /// of at most `length` bytes; `None` if the kernel does not permit it.
    pub fn open(devices: usize, count: u16, length: usize) -> Option<Self> {
        let IdleRing { ring, last_poll } = rings::take()?;
        // Goes back if anything fails.
        let ring = LentRing::new(ring, last_poll);
        let mut buffers = Buffers::new(count, length).filter(|_| rings::can_receive())?;
        buffers.register(&ring, GROUP).ok()?;
        buffers.provide_all();
        Some(Self {
            ring,
            polls: RingPolls::after(last_poll),
            receptions: vec![Reception::Ended; devices],
            buffers,
            arrived: VecDeque::new(),
        })
    }

    /// Has the kernel receive the messages of a device, unless it does, or no buffer is left.
    /// Returns `false` if it cannot: the caller receives them in another way.
    pub fn receive_from(&mut self, device: usize, file: BorrowedFd<'_>) -> bool {
        let Some(reception) = self.receptions.get_mut(device) else { return false };
        match reception {
            Reception::Refused => return false,
            Reception::Running | Reception::Ending => return true,
            Reception::Ended if self.buffers.provided() == 0 => return true,
            Reception::Ended => {}
        }
        // Without an offset: these files have no position.
        let entry = opcode::ReadMulti::new(types::Fd(file.as_raw_fd()), 0, GROUP).offset(u64::MAX);
        let entry = entry.build().user_data(device as u64);
        if !has_room(&mut self.ring, 1) {
            // The kernel takes nothing now; the next call tries again.
            return true;
        }
        // SAFETY: range: the kernel writes into registered buffers, each of the length that it was
        // told. Lifetime: they are freed when no reception is left, or never. Aliasing: a buffer
        // that it may write into is given out to nobody.
        if unsafe { self.ring.submission().push(&entry) }.is_ok() {
            *reception = Reception::Running;
        }
        submit(&mut self.ring);
        true
    }

    /// Has the kernel receive no more messages of a device. Those that have arrived may still show.
    pub fn pause(&mut self, device: usize) {
        let Some(reception @ Reception::Running) = self.receptions.get_mut(device) else { return };
        let entry = opcode::AsyncCancel::new(device as u64).build();
        if !has_room(&mut self.ring, 1) {
            return;
        }
        // SAFETY: the entry refers to no memory.
        if unsafe { self.ring.submission().push(&entry.user_data(END_MARK)) }.is_ok() {
            *reception = Reception::Ending;
        }
        submit(&mut self.ring);
    }

    /// Whether the kernel receives a device's messages, or would.
    pub fn can_receive(&self, device: usize) -> bool {
        self.receptions.get(device).is_some_and(|reception| *reception != Reception::Refused)
    }

    /// A descriptor that is readable while results wait in the ring.
    pub fn arrivals(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the ring, which `self` owns.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }

    /// Whether messages have arrived that nobody took, without a system call.
    pub fn has_arrived(&self) -> bool {
        // SAFETY: no other view of the completion queue exists: the others borrow the ring
        // exclusively, and this one ends with the expression.
        !self.arrived.is_empty() || !unsafe { self.ring.completion_shared() }.is_empty()
    }

    /// Takes the next message that has arrived, with its device.
    #[inline]
    pub fn take(&mut self) -> Option<(usize, Message)> {
        if self.arrived.is_empty() {
            self.fetch();
        }
        self.arrived.pop_front()
    }

    /// The bytes of a message of this inbox.
    pub fn bytes(&mut self, message: &Message) -> Option<&mut [u8]> {
        self.buffers.bytes(message.buffer)?.get_mut(..message.length())
    }

    /// Lets the buffer take another message.
    pub fn give_back(&mut self, message: Message) {
        self.buffers.provide(message.buffer);
    }

    /// Fetches all results from the ring.
    fn fetch(&mut self) {
        let Self { ring, polls, receptions, buffers, arrived } = self;
        loop {
            for entry in ring.completion() {
                let (number, result) = (entry.user_data(), entry.result());
                if number & POLL_MARK != 0 {
                    polls.take_result(number, result);
                    continue;
                }
                if number == END_MARK {
                    continue;
                }
                let device = number as usize;
                let length = u32::try_from(result).unwrap_or(0);
                if let Some(buffer) = cqueue::buffer_select(entry.flags()) {
                    match buffers.take(buffer) {
                        true if length > 0 => {
                            arrived.push_back((device, Message { buffer, length }));
                        }
                        true => buffers.provide(buffer),
                        false => {}
                    }
                }
                if !cqueue::more(entry.flags())
                    && let Some(reception) = receptions.get_mut(device)
                {
                    *reception = after(result);
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
        let Self { ring, polls, arrived, .. } = self;
        if !ring.params().is_feature_ext_arg() {
            return wait_by_poll(fds, limit);
        }
        let Some(waited) = wait_in_ring(ring, polls, fds, !arrived.is_empty(), limit) else {
            return wait_by_poll(fds, limit);
        };
        self.fetch();
        self.polls.note(fds);
        let (own, has_arrived) = (self.ring.as_raw_fd(), !self.arrived.is_empty());
        fds.iter_mut().filter(|awaited| awaited.is(own)).for_each(|awaited| {
            awaited.is_ready = has_arrived;
        });
        waited
    }

    /// Has the ring poll no descriptor any more, so that it keeps no file open.
    pub fn stop_polling(&mut self) {
        stop_polls(&mut self.ring, &mut self.polls);
        self.fetch();
    }

    fn is_idle(&self) -> bool {
        let idle =
            |reception: &Reception| matches!(reception, Reception::Ended | Reception::Refused);
        self.receptions.iter().all(idle)
    }

    /// Ends all receptions; returns whether they have ended.
    fn end(&mut self) -> bool {
        for _ in 0..END_WAITS {
            (0..self.receptions.len()).for_each(|device| self.pause(device));
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

/// What is left of a reception whose last result this is.
fn after(result: i32) -> Reception {
    match -result {
        // No buffer, no room for results, or it was asked to end: it can begin again.
        libc::ENOBUFS | libc::ECANCELED | libc::EAGAIN | libc::EINTR => Reception::Ended,
        _ => Reception::Refused,
    }
}

impl Drop for Inbox {
    /// Leaks what the kernel may still write into.
    fn drop(&mut self) {
        let has_ended = self.end();
        if has_ended {
            self.stop_polling();
        }
        let is_idle = has_ended && self.polls.len() == 0;
        if is_idle && self.buffers.unregister(&self.ring, GROUP) {
            self.ring.set_last_poll(self.polls.last());
        } else {
            self.buffers.leak();
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

    /// An inbox with four buffers of eight bytes, if the kernel has any.
    fn inbox(devices: usize) -> Option<Inbox> {
        let inbox = Inbox::open(devices, 4, 8);
        if inbox.is_none() {
            println!("skipped: the kernel receives no messages into buffers of a ring");
        }
        inbox
    }

    fn next(inbox: &mut Inbox) -> Option<(usize, Vec<u8>)> {
        let (device, message) = inbox.take()?;
        let bytes = inbox.bytes(&message).unwrap().to_vec();
        inbox.give_back(message);
        Some((device, bytes))
    }

    #[test]
    fn messages_of_several_devices_show_in_memory() {
        let Some(mut inbox) = inbox(2) else { return };
        let ((first, to_first), (second, to_second)) = (devices(), devices());
        to_first.send(b"before").unwrap();
        assert!(inbox.receive_from(0, first.as_fd()) && inbox.receive_from(1, second.as_fd()));
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
        let Some(mut inbox) = inbox(1) else { return };
        let (ours, theirs) = devices();
        assert!(inbox.receive_from(0, ours.as_fd()));
        (0..6).for_each(|number| assert_eq!(theirs.send(&[number]).unwrap(), 1));
        let kept: Vec<_> =
            std::iter::from_fn(|| inbox.take()).map(|(_, message)| message).collect();
        assert_eq!(kept.len(), 4);
        // Nothing changes while there are no buffers.
        assert!(inbox.receive_from(0, ours.as_fd()) && !inbox.has_arrived());
        for (number, message) in kept.into_iter().enumerate() {
            assert_eq!(inbox.bytes(&message).unwrap(), [number as u8]);
            inbox.give_back(message);
        }
        assert!(inbox.receive_from(0, ours.as_fd()));
        assert_eq!([4, 5].map(|_| next(&mut inbox).unwrap().1), [[4], [5]]);
        assert!(inbox.take().is_none());
    }

    #[test]
    fn paused_device_keeps_its_messages() {
        let Some(mut inbox) = inbox(1) else { return };
        let (ours, theirs) = devices();
        inbox.receive_from(0, ours.as_fd());
        inbox.pause(0);
        theirs.send(b"later").unwrap();
        assert!(inbox.take().is_none());
        inbox.receive_from(0, ours.as_fd());
        assert_eq!(next(&mut inbox), Some((0, b"later".to_vec())));
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
        inbox.receive_from(0, file.as_fd());
        assert!(inbox.take().is_none());
        assert!(!inbox.receive_from(0, file.as_fd()));
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
