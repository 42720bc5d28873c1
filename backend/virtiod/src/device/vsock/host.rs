//! The host's side: a Unix socket for connections to the guest, and those of programs that the
//! guest connects to.
//!
//! Programs use it as they use those of other hypervisors: who wants to reach the guest's port 52
//! connects to PATH and says `CONNECT 52`; who wants to be reached at the host's port 52 listens on
//! `PATH_52`.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::acceptor::Acceptor;
use crate::device::Source;
use crate::listener::{ListenError, would_wait};

/// Longest line that a program may say: the word, a port and the end of the line.
const LINE_SIZE: usize = "CONNECT 4294967295\n".len();

/// How long a program may take to say it.
const GREETING_LIMIT: Duration = Duration::from_secs(10);

/// Why there is no socket for a guest.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The socket.
    #[error(transparent)]
    Listen(#[from] ListenError),
}

/// The socket that programs connect to.
#[derive(Debug)]
pub struct HostSocket(Acceptor);

impl HostSocket {
    /// Listens on `path`.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn listen(path: &Path) -> Result<Self, HostError> {
        Ok(Self(Acceptor::listen(path)?))
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Becomes ready when a program connects; `None` while none can be accepted.
    pub fn source(&self) -> Option<Source<'_>> {
        self.0.source()
    }

    /// When programs can be accepted again.
    pub fn deadline(&self) -> Option<Instant> {
        self.0.deadline()
    }

    /// A program that connected, if one did.
    pub fn accept(&mut self) -> Option<Handshake> {
        self.0.accept().map(Handshake::new)
    }

    /// Connects to the program that listens for the guest on `port`.
    ///
    /// # Errors
    /// The kernel's: nobody listens, or so many wait for it that no more can.
    pub fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let mut path = self.path().as_os_str().to_owned();
        path.push(format!("_{port}"));
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(&socket, &SocketAddrUnix::new(&path)?)?;
        Ok(UnixStream::from(socket))
    }
}

/// A program that has connected and is yet to say to which port.
#[derive(Debug)]
pub struct Handshake {
    socket: UnixStream,
    line: Vec<u8>,
    until: Instant,
}

/// What has come of a handshake.
#[derive(Debug)]
pub enum HandshakeState {
    /// The line has not ended.
    NotYet(Handshake),
    /// It wants to reach this port of the guest's.
    Wants(u32, UnixStream),
    /// It is gone, said something else, or nothing in time.
    Nothing,
}

impl Handshake {
    fn new(socket: UnixStream) -> Self {
        Self { socket, line: Vec::new(), until: Instant::now() + GREETING_LIMIT }
    }

    /// When it must have said to which port.
    pub fn deadline(&self) -> Instant {
        self.until
    }

    /// Becomes ready when the program says something.
    pub fn source(&self) -> Source<'_> {
        Source::readable(self.socket.as_fd())
    }

    fn wait(self) -> HandshakeState {
        if self.until <= Instant::now() {
            HandshakeState::Nothing
        } else {
            HandshakeState::NotYet(self)
        }
    }

    /// Reads on.
    pub fn proceed(mut self) -> HandshakeState {
        // Byte by byte: what follows the line is for the guest.
        let mut byte = [0];
        while self.line.len() < LINE_SIZE {
            match self.socket.read(&mut byte) {
                Ok(0) => return HandshakeState::Nothing,
                Ok(_) => self.line.extend_from_slice(&byte),
                Err(error) if would_wait(&error) => return self.wait(),
                Err(_) => return HandshakeState::Nothing,
            }
            if byte == *b"\n" {
                break;
            }
        }
        match port_of(&self.line) {
            Some(port) => HandshakeState::Wants(port, self.socket),
            None => HandshakeState::Nothing,
        }
    }
}

/// The port in `CONNECT PORT`.
fn port_of(line: &[u8]) -> Option<u32> {
    let digits = line.strip_prefix(b"CONNECT ")?.strip_suffix(b"\n")?;
    // Parsing alone would take a sign.
    let plain = digits.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(digits).ok().filter(|_| plain)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_a_port_in_one_way() {
        assert_eq!(port_of(b"CONNECT 52\n"), Some(52));
        assert_eq!(port_of(b"CONNECT 4294967295\n"), Some(u32::MAX));
        for line in ["", "CONNECT", "CONNECT \n", "CONNECT 52", "connect 52\n", "CONNECT +52\n"] {
            assert_eq!(port_of(line.as_bytes()), None, "{line:?}");
        }
        assert_eq!(port_of(b"CONNECT 4294967296\n"), None);
        assert_eq!(port_of(b"CONNECT 52 \n"), None);
    }

    #[test]
    fn a_program_that_says_nothing_in_time_is_let_go() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let handshake = Handshake { until: Instant::now(), ..Handshake::new(ours) };
        assert!(matches!(handshake.proceed(), HandshakeState::Nothing));
    }

    #[test]
    fn what_follows_the_line_is_left_for_the_guest() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let handshake = Handshake::new(ours);
        let HandshakeState::NotYet(handshake) = handshake.proceed() else {
            panic!("nothing was said")
        };
        io::Write::write_all(&mut theirs, b"CONNECT 7\nhello").unwrap();
        let HandshakeState::Wants(7, mut socket) = handshake.proceed() else {
            panic!("it was said")
        };
        let mut bytes = [0; 9];
        assert_eq!(socket.read(&mut bytes).unwrap(), 5);
        assert_eq!(&bytes[..5], b"hello");
    }
}
