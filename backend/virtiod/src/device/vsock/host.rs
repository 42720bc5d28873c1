//! The host's end: the Unix socket for connections to the guest, and the sockets of programs that
//! the guest connects to.
//!
//! Programs use them as with other hypervisors: to reach the guest's port 52, a program connects to
//! PATH and sends `CONNECT 52`; to be reached at the host's port 52, it listens on `PATH_52`.

use std::fmt;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::acceptor::Acceptor;
use crate::device::Source;
use crate::listener::{ListenError, SocketDirectory, Sockets, would_wait};

/// Maximum length of a program's line: the word, a port and the end of the line.
const LINE_SIZE: usize = "CONNECT 4294967295\n".len();

/// Maximum time that a program may take for its line.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// The socket that programs connect to.
pub struct HostSocket {
    acceptor: Acceptor,
    sockets: Arc<dyn Sockets>,
}

impl HostSocket {
    /// Listens on `path`.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn listen(
        sockets: Arc<dyn Sockets>,
        path: &Path,
        directory: SocketDirectory,
    ) -> Result<Self, ListenError> {
        let acceptor = Acceptor::new(sockets.listen(path, directory)?);
        Ok(Self { acceptor, sockets })
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        self.acceptor.path()
    }

    /// A source that becomes ready when a program connects; `None` while the device can accept
    /// none.
    pub fn source(&self) -> Option<Source<'_>> {
        self.acceptor.source()
    }

    /// When the device can accept programs again, after accepting failed.
    pub fn deadline(&self) -> Option<Instant> {
        self.acceptor.deadline()
    }

    /// Accepts a program that connected, if there is one.
    pub fn accept(&mut self) -> Option<Handshake> {
        self.acceptor.accept().map(Handshake::new)
    }

    /// Connects to the program that listens for the guest on `port`.
    ///
    /// # Errors
    /// The kernel's: no program listens, or its backlog is full.
    pub fn connect(&self, port: u32) -> io::Result<UnixStream> {
        self.sockets.connect(self.path(), port)
    }
}

impl fmt::Debug for HostSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HostSocket").field(&self.acceptor).finish()
    }
}

/// A program that has connected and not yet sent its `CONNECT` line.
#[derive(Debug)]
pub struct Handshake {
    socket: UnixStream,
    line: Vec<u8>,
    until: Instant,
}

/// The state of a handshake.
#[derive(Debug)]
pub enum HandshakeState {
    /// The line is incomplete.
    NotYet(Handshake),
    /// The program requests this port of the guest.
    Wants(u32, UnixStream),
    /// The program is gone, sent another line, or sent none in time.
    Nothing,
}

impl Handshake {
    fn new(socket: UnixStream) -> Self {
        Self { socket, line: Vec::new(), until: Instant::now() + HANDSHAKE_LIMIT }
    }

    /// When the handshake fails unless the program sent its line.
    pub fn deadline(&self) -> Instant {
        self.until
    }

    /// A source that becomes ready when the program sends bytes.
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

    /// Continues to read the line.
    pub fn proceed(mut self) -> HandshakeState {
        // Byte by byte: the bytes behind the line are for the guest.
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

/// Parses the port of a `CONNECT PORT` line.
fn port_of(line: &[u8]) -> Option<u32> {
    let digits = line.strip_prefix(b"CONNECT ")?.strip_suffix(b"\n")?;
    // parse() alone would accept a sign.
    let plain = digits.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(digits).ok().filter(|_| plain)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connect_line_has_one_spelling() {
        assert_eq!(port_of(b"CONNECT 52\n"), Some(52));
        assert_eq!(port_of(b"CONNECT 4294967295\n"), Some(u32::MAX));
        for line in ["", "CONNECT", "CONNECT \n", "CONNECT 52", "connect 52\n", "CONNECT +52\n"] {
            assert_eq!(port_of(line.as_bytes()), None, "{line:?}");
        }
        assert_eq!(port_of(b"CONNECT 4294967296\n"), None);
        assert_eq!(port_of(b"CONNECT 52 \n"), None);
    }

    #[test]
    fn handshake_without_a_line_times_out() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let handshake = Handshake { until: Instant::now(), ..Handshake::new(ours) };
        assert!(matches!(handshake.proceed(), HandshakeState::Nothing));
    }

    #[test]
    fn bytes_behind_the_connect_line_are_left_for_the_guest() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let handshake = Handshake::new(ours);
        let HandshakeState::NotYet(handshake) = handshake.proceed() else {
            panic!("no line was sent")
        };
        io::Write::write_all(&mut theirs, b"CONNECT 7\nhello").unwrap();
        let HandshakeState::Wants(7, mut socket) = handshake.proceed() else {
            panic!("a whole line was sent")
        };
        let mut bytes = [0; 9];
        assert_eq!(socket.read(&mut bytes).unwrap(), 5);
        assert_eq!(&bytes[..5], b"hello");
    }
}
