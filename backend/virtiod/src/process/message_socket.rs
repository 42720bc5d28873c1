//! Messages with descriptors between the supervisor and a guest's process: JSON in packets of a
//! Unix socket, so that each arrives whole or not at all.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, SocketFlags, SocketType,
    recvmsg, sendmsg, shutdown, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Maximum length of a message in bytes.
pub const LONGEST: usize = 1 << 16;
/// Maximum number of descriptors with a message; the kernel closes what comes beyond.
pub const MOST_DESCRIPTORS: usize = 12;

/// A message that cannot be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// The socket fails.
    #[error("cannot {0} a message between supervisor and guest's process")]
    Socket(&'static str, #[source] io::Error),
    /// The message is too long.
    #[error("a message between supervisor and guest's process is longer than {LONGEST} bytes")]
    TooLong,
    /// The message is none of this version.
    #[error("a message between supervisor and guest's process cannot be understood")]
    Text(#[from] serde_json::Error),
}

/// One end of a socket between the supervisor and a guest's process.
#[derive(Debug)]
pub struct MessageSocket(OwnedFd);

impl MessageSocket {
    /// Both ends of a new socket.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, other) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Self(one), Self(other)))
    }

    /// The end that another process has sent.
    pub fn of(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }

    /// The same end once more.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn share(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// The descriptor, to pass it on.
    pub fn into_descriptor(self) -> OwnedFd {
        self.0
    }

    /// Bounds the time for which one call of [`MessageSocket::send`] waits.
    ///
    /// # Errors
    /// The kernel's.
    pub fn limit_send(&self, limit: Duration) -> io::Result<()> {
        Ok(set_socket_timeout(&self.0, Timeout::Send, Some(limit))?)
    }

    /// Ends the conversation for both sides.
    pub fn shut_down(&self) {
        // It fails if the other side has ended it.
        let _ = shutdown(&self.0, Shutdown::Both);
    }

    /// Sends a message with copies of these descriptors.
    ///
    /// # Errors
    /// [`MessageError`]; then nothing was sent.
    pub fn send(
        &self,
        message: &impl Serialize,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), MessageError> {
        let text = serde_json::to_vec(message)?;
        if text.len() > LONGEST {
            return Err(MessageError::TooLong);
        }
        let failed = |error: io::Error| MessageError::Socket("send", error);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(failed(io::ErrorKind::InvalidInput.into()));
        }
        loop {
            let sent = sendmsg(&self.0, &[IoSlice::new(&text)], &mut control, SendFlags::NOSIGNAL);
            match sent {
                Err(rustix::io::Errno::INTR) => {}
                sent => return sent.map(drop).map_err(|error| failed(error.into())),
            }
        }
    }

    /// Waits for a message and its descriptors; `None` at the end of the other side.
    ///
    /// # Errors
    /// [`MessageError`]; the message is lost, and its descriptors are closed.
    pub fn receive<T: DeserializeOwned>(&self) -> Result<Option<(T, Vec<OwnedFd>)>, MessageError> {
        let mut bytes = vec![0; LONGEST];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let mut into = [IoSliceMut::new(&mut bytes)];
            match recvmsg(&self.0, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Err(rustix::io::Errno::INTR) => {}
                // The other side has closed its end before it read everything.
                Err(rustix::io::Errno::CONNRESET) => return Ok(None),
                received => break received,
            }
        };
        let received = received.map_err(|error| MessageError::Socket("receive", error.into()))?;
        let descriptors = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        });
        let descriptors: Vec<_> = descriptors.flatten().collect();
        if received.bytes == 0 {
            return Ok(None);
        }
        if received.flags.contains(ReturnFlags::TRUNC) {
            return Err(MessageError::TooLong);
        }
        let text = bytes.get(..received.bytes).unwrap_or_default();
        Ok(Some((serde_json::from_slice(text)?, descriptors)))
    }
}

impl AsFd for MessageSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn messages_arrive_whole_and_with_their_descriptors() {
        let (one, other) = MessageSocket::pair().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        one.send(&("first", 1), &[]).unwrap();
        one.send(&"second", &[writer.as_fd()]).unwrap();
        drop((one, writer));
        let first: ((String, u32), _) = other.receive().unwrap().unwrap();
        assert_eq!((first.0.0.as_str(), first.0.1, first.1.len()), ("first", 1, 0));
        let (second, mut descriptors): (String, Vec<OwnedFd>) = other.receive().unwrap().unwrap();
        assert_eq!((second.as_str(), descriptors.len()), ("second", 1));
        let mut sent = File::from(descriptors.pop().unwrap());
        sent.write_all(b"through it").unwrap();
        drop(sent);
        let mut read = String::new();
        reader.read_to_string(&mut read).unwrap();
        assert_eq!(read, "through it");
        assert!(other.receive::<String>().unwrap().is_none(), "the end");
    }

    #[test]
    fn messages_that_are_none_are_refused_and_the_next_is_received() {
        let (one, other) = MessageSocket::pair().unwrap();
        assert!(matches!(one.send(&"x".repeat(LONGEST), &[]), Err(MessageError::TooLong)));
        one.send(&1, &[]).unwrap();
        one.send(&"text", &[]).unwrap();
        assert!(matches!(other.receive::<String>(), Err(MessageError::Text(_))));
        assert_eq!(other.receive::<String>().unwrap().unwrap().0, "text");
    }
}
