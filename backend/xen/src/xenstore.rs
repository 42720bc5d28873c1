//! A small client of the xenbus wire protocol (Xen `public/io/xs_wire.h`), over `/dev/xen/xenbus`.
//!
//! The client sends one request at a time and notes watch events that arrive before the answer. The
//! device is the same in Dom0 and in a driver domain.
//!
//! xenstored may die or hang, and the kernel then lets a request wait for ever. So each wait for an
//! answer has a limit, after which the connection counts as lost ([`StoreError::is_lost`]).

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use xen_sys::xs_wire::{
    DEVICE, HEADER_SIZE as HEADER, PAYLOAD_MAX as MAX_PAYLOAD, message_type as kind,
};

use super::{DomId, Fired, StoreError, ToolstackStore, XenStore};

/// Maximum payload of a request: the device buffers request and header in `MAX_PAYLOAD` bytes.
const MAX_REQUEST: usize = MAX_PAYLOAD - HEADER;
/// Maximum time that xenstored may take for an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);
/// Maximum number of device reads in one [`XenStore::take_events`], so that a peer that causes
/// events without end does not keep the caller there.
const MAX_READS: usize = 64;
/// Maximum number of parts of a list: some for each domain that Xen can have, and as many for lists
/// that change meanwhile.
const MAX_PARTS: usize = 256;
/// Maximum time for which a transaction is tried again.
const TRANSACTION_LIMIT: Duration = Duration::from_secs(10);

/// A connection to XenStore.
#[derive(Debug)]
pub struct XenStoreConnection {
    device: File,
    received: Vec<u8>,
    fired: Fired,
    /// The transaction that requests belong to; 0: none.
    transaction: u32,
}

/// One whole message from XenStore.
struct XenStoreReply {
    kind: u32,
    payload: Vec<u8>,
}

impl XenStoreConnection {
    /// Opens `/dev/xen/xenbus`.
    pub fn open() -> Result<Self, StoreError> {
        let device = OpenOptions::new().read(true).write(true).open(DEVICE);
        Ok(Self::over(device.map_err(not_opened)?))
    }

    /// Returns a connection over an open byte stream to xenstored.
    pub fn over(stream: impl Into<OwnedFd>) -> Self {
        let device = File::from(stream.into());
        Self { device, received: Vec::new(), fired: Fired::default(), transaction: 0 }
    }

    /// Sends a request with the payload `parts` and waits for the answer. The request belongs to
    /// the current transaction, if one has begun.
    fn ask(
        &mut self,
        kind: u32,
        operation: &'static str,
        path: &str,
        parts: &[&[u8]],
    ) -> Result<Vec<u8>, StoreError> {
        let payload = parts.concat();
        if payload.len() > MAX_REQUEST || path.contains('\0') {
            return Err(StoreError::TooLong(path.to_owned()));
        }
        let fields = [kind, 0, self.transaction, payload.len() as u32];
        let mut message: Vec<u8> = fields.iter().flat_map(|field| field.to_ne_bytes()).collect();
        message.extend_from_slice(&payload);
        let written = self.device.write_all(&message);
        written.map_err(|source| not_written(kind, operation, path, source))?;
        let end = Instant::now() + ANSWER_LIMIT;
        loop {
            let reply = self.receive(end)?;
            match reply.kind {
                kind::WATCH_EVENT => self.fired.add(path_of(&reply.payload)),
                kind::ERROR => {
                    let errno = text(&reply.payload);
                    return Err(StoreError::Refused { operation, path: path.to_owned(), errno });
                }
                answered if answered == kind => return Ok(reply.payload),
                _ => return Err(StoreError::Protocol("an answer of another type")),
            }
        }
    }

    /// Begins a transaction. xenstored limits a driver domain to ten at a time: beyond the limit,
    /// requests proceed without a transaction.
    fn begin(&mut self, path: &str) -> Result<(), StoreError> {
        let begun = self.ask(kind::TRANSACTION_START, "begin a transaction on", path, &[b"\0"]);
        self.transaction = match begun {
            Ok(number) => text(&number)
                .parse()
                .map_err(|_| StoreError::Protocol("a transaction id that is not a number"))?,
            Err(StoreError::Refused { errno, .. }) if errno == "ENOSPC" => 0,
            Err(error) => return Err(error),
        };
        Ok(())
    }

    /// Ends the transaction. Returns `false` if somebody else changed a node that it read; then
    /// xenstored did nothing.
    fn commit(&mut self, path: &str) -> Result<bool, StoreError> {
        if self.transaction == 0 {
            return Ok(true);
        }
        let ended = self.ask(kind::TRANSACTION_END, "end a transaction on", path, &[b"T\0"]);
        self.transaction = 0;
        match ended {
            Ok(_) => Ok(true),
            Err(StoreError::Refused { errno, .. }) if errno == "EAGAIN" => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The names of a node's children, as [`kind::DIRECTORY`] would list them if they fitted one
    /// answer. Begins again if they change meanwhile: each part names the node's generation.
    fn list_parts(&mut self, path: &str) -> Result<Vec<u8>, StoreError> {
        let (mut names, mut generation) = (Vec::new(), None);
        for _ in 0..MAX_PARTS {
            let offset = format!("{}\0", names.len());
            let parts: &[&[u8]] = &[path.as_bytes(), b"\0", offset.as_bytes()];
            let part = match self.ask(kind::DIRECTORY_PART, "list", path, parts) {
                Err(StoreError::Refused { errno, .. })
                    if errno == "ENOSYS" || errno == "EINVAL" =>
                {
                    return Err(StoreError::ListTooLong(path.to_owned()));
                }
                part => part?,
            };
            let end = part.iter().position(|byte| *byte == 0);
            let Some((now, part)) = end.and_then(|end| part.split_at_checked(end + 1)) else {
                return Err(StoreError::Protocol("a part of a list without a generation"));
            };
            if generation.get_or_insert_with(|| now.to_vec()) != now {
                (names, generation) = (Vec::new(), None);
                continue;
            }
            names.extend_from_slice(part);
            // An empty name stands behind the last one.
            if part == b"\0" || part.ends_with(b"\0\0") {
                return Ok(names);
            }
        }
        // It changes all the time; the caller tries again later.
        let errno = "EAGAIN".to_owned();
        Err(StoreError::Refused { operation: "list", path: path.to_owned(), errno })
    }

    /// Waits for one whole message until `end`.
    fn receive(&mut self, end: Instant) -> Result<XenStoreReply, StoreError> {
        loop {
            if let Some(reply) = take_reply(&mut self.received)? {
                return Ok(reply);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(broken("wait for an answer from", io::ErrorKind::TimedOut.into()));
            }
            if self.readable(left)? {
                self.read_some()?;
            }
        }
    }

    /// Reads bytes, at least one unless a signal interrupts; blocks if there are none.
    fn read_some(&mut self) -> Result<(), StoreError> {
        let mut bytes = [0; HEADER + MAX_PAYLOAD];
        let count = match self.device.read(&mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            count => count.map_err(|source| broken("read from", source))?,
        };
        let read = bytes.get(..count).unwrap_or(&[]);
        if read.is_empty() {
            return Err(broken("read from", io::ErrorKind::UnexpectedEof.into()));
        }
        self.received.extend_from_slice(read);
        Ok(())
    }

    /// Whether a read returns bytes, now or within `limit`.
    fn readable(&self, limit: Duration) -> Result<bool, StoreError> {
        let mut fds = [PollFd::new(self.device.as_fd(), PollFlags::POLLIN)];
        // Rounded up, so that a short wait does not become none.
        let milliseconds = limit.as_micros().div_ceil(1000);
        let limit = u16::try_from(milliseconds).map_or(PollTimeout::MAX, PollTimeout::from);
        match poll(&mut fds, limit) {
            Ok(ready) => Ok(ready > 0),
            Err(nix::Error::EINTR) => Ok(false),
            Err(errno) => Err(broken("poll", errno.into())),
        }
    }

    /// Takes the events that have arrived whole. Between requests nothing but events may arrive.
    fn take_whole_events(&mut self) -> Result<(), StoreError> {
        while let Some(reply) = take_reply(&mut self.received)? {
            if reply.kind != kind::WATCH_EVENT {
                return Err(StoreError::Protocol("an unsolicited answer"));
            }
            self.fired.add(path_of(&reply.payload));
        }
        Ok(())
    }
}

/// The path of a watch event, which stands before its token.
fn path_of(payload: &[u8]) -> String {
    text(payload.split(|byte| *byte == 0).next().unwrap_or_default())
}

/// The error of a failed open, with a hint: outside Xen the device does not exist.
fn not_opened(error: io::Error) -> StoreError {
    let hint = "is this a Xen domain, and may this process open the device?";
    broken("open", io::Error::new(error.kind(), format!("{error} ({hint})")))
}

fn broken(operation: &'static str, source: io::Error) -> StoreError {
    StoreError::Connection { operation, path: DEVICE.to_owned(), source }
}

/// The error of a failed write of a request. The device handles a watch itself, and if xenstored
/// refuses it, as for a quota, the write fails with xenstored's error.
fn not_written(kind: u32, operation: &'static str, path: &str, source: io::Error) -> StoreError {
    use nix::errno::Errno::{self, EIO, ENODEV, ENOTCONN, EPIPE};
    let errno = source.raw_os_error().map(Errno::from_raw);
    match errno {
        Some(errno) if kind == kind::WATCH && ![EIO, ENODEV, ENOTCONN, EPIPE].contains(&errno) => {
            StoreError::Refused { operation, path: path.to_owned(), errno: format!("{errno:?}") }
        }
        _ => broken("write to", source),
    }
}

/// Takes the first whole message off the front of `received`.
fn take_reply(received: &mut Vec<u8>) -> Result<Option<XenStoreReply>, StoreError> {
    let word = |at: usize| {
        let bytes = received.get(at..at + 4)?;
        bytes.try_into().ok().map(u32::from_ne_bytes)
    };
    let (Some(kind), Some(length)) = (word(0), word(12)) else {
        return Ok(None);
    };
    let length = length as usize;
    if length > MAX_PAYLOAD {
        return Err(StoreError::Protocol("an answer longer than the protocol allows"));
    }
    if received.len() < HEADER + length {
        return Ok(None);
    }
    let payload = received.drain(..HEADER + length).skip(HEADER).collect();
    Ok(Some(XenStoreReply { kind, payload }))
}

/// Returns the text up to the first NUL. Replaces bytes that are not UTF-8, since peers write them.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or(bytes)).into_owned()
}

/// Turns the error of a missing node into `None`. XenStore returns EACCES for a missing node in a
/// directory that the caller may not read, so an unreadable node counts as missing too.
fn found<T>(result: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(StoreError::Refused { errno, .. }) if errno == "ENOENT" || errno == "EACCES" => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

impl AsFd for XenStoreConnection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

impl XenStore for XenStoreConnection {
    fn read(&mut self, path: &str) -> Result<Option<String>, StoreError> {
        let value = found(self.ask(kind::READ, "read", path, &[path.as_bytes(), b"\0"]))?;
        Ok(value.map(|bytes| text(&bytes)))
    }

    fn list(&mut self, path: &str) -> Result<Vec<String>, StoreError> {
        let names = match self.ask(kind::DIRECTORY, "list", path, &[path.as_bytes(), b"\0"]) {
            Err(StoreError::Refused { errno, .. }) if errno == "E2BIG" => self.list_parts(path),
            names => names,
        };
        let names = found(names)?.unwrap_or_default();
        let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
        Ok(names.map(text).collect())
    }

    fn write(&mut self, path: &str, value: &str) -> Result<(), StoreError> {
        let parts: &[&[u8]] = &[path.as_bytes(), b"\0", value.as_bytes()];
        self.ask(kind::WRITE, "write", path, parts).map(drop)
    }

    fn write_beside(&mut self, existing: &str, path: &str, value: &str) -> Result<(), StoreError> {
        loop {
            self.begin(path)?;
            let there = self.read(existing);
            let written = there.and_then(|there| there.map_or(Ok(()), |_| self.write(path, value)));
            // The transaction ends in any case; if an operation failed, it has nothing to commit.
            if self.commit(path)? {
                return written;
            }
        }
    }

    fn remove(&mut self, path: &str) -> Result<(), StoreError> {
        match self.ask(kind::RM, "remove", path, &[path.as_bytes(), b"\0"]) {
            Err(StoreError::Refused { errno, .. }) if errno == "ENOENT" => Ok(()),
            answer => answer.map(drop),
        }
    }

    fn watch(&mut self, path: &str) -> Result<(), StoreError> {
        let parts: &[&[u8]] = &[path.as_bytes(), b"\0", b"watch\0"];
        self.ask(kind::WATCH, "watch", path, parts).map(drop)
    }

    fn take_fired(&mut self) -> Result<Fired, StoreError> {
        self.take_whole_events()?;
        for _ in 0..MAX_READS {
            if !self.readable(Duration::ZERO)? {
                break;
            }
            self.read_some()?;
            self.take_whole_events()?;
        }
        Ok(std::mem::take(&mut self.fired))
    }
}

impl ToolstackStore for XenStoreConnection {
    fn transact<T, E: From<StoreError>>(
        &mut self,
        mut change: impl FnMut(&mut Self) -> Result<T, E>,
    ) -> Result<T, E> {
        let end = Instant::now() + TRANSACTION_LIMIT;
        loop {
            self.begin("/")?;
            let done = match change(self) {
                Ok(done) => done,
                Err(error) => {
                    if self.transaction != 0 {
                        let path = "/";
                        let what = "drop a transaction on";
                        let dropped = self.ask(kind::TRANSACTION_END, what, path, &[b"F\0"]);
                        self.transaction = 0;
                        dropped?;
                    }
                    return Err(error);
                }
            };
            if self.commit("/")? {
                return Ok(done);
            }
            if Instant::now() >= end {
                let (path, errno) = ("/".to_owned(), "EAGAIN".to_owned());
                let operation = "end a transaction on";
                return Err(StoreError::Refused { operation, path, errno }.into());
            }
        }
    }

    fn create(&mut self, path: &str, owner: DomId, reader: DomId) -> Result<(), StoreError> {
        self.ask(kind::MKDIR, "create", path, &[path.as_bytes(), b"\0"])?;
        self.share(path, owner, reader)
    }

    fn share(&mut self, path: &str, owner: DomId, reader: DomId) -> Result<(), StoreError> {
        let rights = format!("n{}\0r{}\0", owner.0, reader.0);
        let parts: &[&[u8]] = &[path.as_bytes(), b"\0", rights.as_bytes()];
        self.ask(kind::SET_PERMS, "set the permissions of", path, parts).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::thread;

    use super::*;

    fn message(kind: u32, payload: &[u8]) -> Vec<u8> {
        let fields = [kind, 0, 0, payload.len() as u32];
        fields.iter().flat_map(|f| f.to_ne_bytes()).chain(payload.iter().copied()).collect()
    }

    #[test]
    fn replies_are_parsed_whole_and_in_order() {
        let whole = [message(kind::READ, b"6"), message(kind::WATCH_EVENT, b"a\0b\0")].concat();
        for cut in 0..whole.len() {
            let (mut received, rest) = (whole[..cut].to_vec(), &whole[cut..]);
            let mut kinds = Vec::new();
            while let Some(reply) = take_reply(&mut received).unwrap() {
                kinds.push(reply.kind);
            }
            received.extend_from_slice(rest);
            while let Some(reply) = take_reply(&mut received).unwrap() {
                kinds.push(reply.kind);
            }
            assert_eq!(kinds, [kind::READ, kind::WATCH_EVENT]);
            assert!(received.is_empty());
        }
    }

    /// A connection and xenstored's end of it.
    fn connection() -> (XenStoreConnection, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (XenStoreConnection::over(ours), theirs)
    }

    #[test]
    fn many_events_keep_the_receive_buffer_small() {
        let (mut connection, mut xenstored) = connection();
        let event = message(kind::WATCH_EVENT, &[b'x'; 100]);
        let writer = thread::spawn(move || {
            (0..20_000).for_each(|_| xenstored.write_all(&event).unwrap());
            xenstored
        });
        let mut most = 0;
        while !writer.is_finished() || connection.readable(Duration::ZERO).unwrap() {
            connection.take_events().unwrap();
            most = most.max(connection.received.len());
        }
        // At most one partial message remains, however many came before it.
        assert!(most < 116, "{most}");
        let mut xenstored = writer.join().unwrap();
        xenstored.write_all(&message(kind::READ, b"")).unwrap();
        assert!(matches!(connection.take_events(), Err(StoreError::Protocol(_))));
    }

    /// The body of a message of the client's.
    fn asked(xenstored: &mut UnixStream, kind: u32) -> Vec<u8> {
        let mut header = [0; HEADER];
        xenstored.read_exact(&mut header).unwrap();
        assert_eq!(header[..4], kind.to_ne_bytes());
        let length = u32::from_ne_bytes(header[12..].try_into().unwrap());
        let mut body = vec![0; length as usize];
        xenstored.read_exact(&mut body).unwrap();
        body
    }

    /// Lists a directory that exceeds one answer. `parts`: what is answered to each offset.
    fn list(parts: &[(&str, u32, &[u8])]) -> Result<Vec<String>, StoreError> {
        let (mut connection, mut xenstored) = connection();
        thread::scope(|scope| {
            scope.spawn(move || {
                assert_eq!(asked(&mut xenstored, kind::DIRECTORY), b"guests\0");
                xenstored.write_all(&message(kind::ERROR, b"E2BIG\0")).unwrap();
                for (offset, kind, part) in parts {
                    let body = asked(&mut xenstored, kind::DIRECTORY_PART);
                    assert_eq!(body, format!("guests\0{offset}\0").as_bytes());
                    xenstored.write_all(&message(*kind, part)).unwrap();
                }
            });
            let listed = connection.list("guests");
            // Xenstored, if it waits for another request, ends and fails the test.
            drop(connection);
            listed
        })
    }

    #[test]
    fn long_directory_is_listed_in_parts() {
        let part = kind::DIRECTORY_PART;
        let listed = list(&[("0", part, b"7\x001\x002\0"), ("4", part, b"7\x0010\0\0")]).unwrap();
        assert_eq!(listed, ["1", "2", "10"]);
        let listed = list(&[("0", part, b"7\x001\0"), ("2", part, b"7\0\0")]).unwrap();
        assert_eq!(listed, ["1"], "the part behind the last name has none");
        // Another guest came between the parts.
        let listed = list(&[
            ("0", part, b"7\x001\x002\0"),
            ("4", part, b"8\x002\0\0"),
            ("0", part, b"8\x001\x003\0"),
            ("4", part, b"8\x002\0\0"),
        ]);
        assert_eq!(listed.unwrap(), ["1", "3", "2"]);
        // The directory went.
        let gone = list(&[("0", part, b"7\x001\0"), ("2", kind::ERROR, b"ENOENT\0")]);
        assert_eq!(gone.unwrap(), [""; 0]);
    }

    #[test]
    fn long_directory_is_an_error_that_says_why_without_parts() {
        for errno in ["ENOSYS\0", "EINVAL\0"] {
            let error = list(&[("0", kind::ERROR, errno.as_bytes())]).unwrap_err();
            assert!(matches!(&error, StoreError::ListTooLong(path) if path == "guests"), "{error}");
            assert!(!error.is_lost());
        }
        let error = list(&[("0", kind::DIRECTORY_PART, b"7")]).unwrap_err();
        assert!(error.is_lost(), "{error}");
    }

    #[test]
    fn eof_and_protocol_violations_lose_the_connection_but_refusals_do_not() {
        let (mut ended, xenstored) = connection();
        drop(xenstored);
        assert!(ended.read("x").unwrap_err().is_lost());
        assert!(ended.take_events().unwrap_err().is_lost());

        let (mut refused, mut xenstored) = connection();
        xenstored.write_all(&message(kind::ERROR, b"ENOSPC\0")).unwrap();
        let error = refused.write("x", "y").unwrap_err();
        assert!(!error.is_lost(), "{error}");
        assert!(!refused.write("x", &"y".repeat(4096)).unwrap_err().is_lost());

        xenstored.write_all(&message(kind::RM, b"OK\0")).unwrap();
        assert!(refused.write("x", "y").unwrap_err().is_lost());
    }

    #[test]
    fn open_error_outside_xen_has_a_hint() {
        let error = not_opened(io::ErrorKind::NotFound.into());
        let error = crate::Causes(&error).to_string();
        assert!(error.contains(DEVICE) && error.contains("is this a Xen domain"), "{error}");
    }

    #[test]
    fn oversized_reply_is_an_error() {
        let mut received = message(kind::READ, b"");
        received[12..16].copy_from_slice(&4097u32.to_ne_bytes());
        assert!(matches!(take_reply(&mut received), Err(StoreError::Protocol(_))));
    }

    #[test]
    fn unreadable_node_counts_as_missing() {
        let refused = |errno: &str| -> Result<(), StoreError> {
            let path = "/local/domain/1/device/virtio_disk/51712/state".to_owned();
            Err(StoreError::Refused { operation: "read", path, errno: errno.to_owned() })
        };
        assert!(found(refused("ENOENT")).unwrap().is_none());
        assert!(found(refused("EACCES")).unwrap().is_none());
        assert!(found(refused("EINVAL")).is_err());
    }

    #[test]
    fn refused_watch_keeps_the_connection() {
        let error = |kind, errno| {
            not_written(kind, "watch", "backend/virtio", io::Error::from_raw_os_error(errno))
        };
        let refused = error(kind::WATCH, libc::E2BIG);
        assert!(matches!(refused, StoreError::Refused { errno, .. } if errno == "E2BIG"));
        for (kind, errno) in [(kind::WATCH, libc::EPIPE), (kind::WRITE, libc::E2BIG)] {
            assert!(matches!(error(kind, errno), StoreError::Connection { .. }), "{errno}");
        }
    }

    #[test]
    fn oversized_request_is_refused_before_the_device() {
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let written = XenStoreConnection::over(ours).write("a", &"x".repeat(4096 - HEADER - 1));
        assert!(matches!(written, Err(StoreError::TooLong(_))));
    }

    #[test]
    fn text_ends_at_nul_and_replaces_invalid_utf8() {
        assert_eq!(text(b"ENOENT\0"), "ENOENT");
        assert_eq!(text(b"a\xffb"), "a\u{fffd}b");
    }

    /// Answers requests, in turn, after it has checked their kind and body.
    fn answer(xenstored: &mut UnixStream, answers: &[(u32, &[u8], u32, &[u8])]) {
        for (asked_kind, body, kind, answer) in answers {
            assert_eq!(asked(xenstored, *asked_kind), *body);
            xenstored.write_all(&message(*kind, answer)).unwrap();
        }
    }

    #[test]
    fn transaction_is_repeated_or_dropped_as_a_whole() {
        let (mut connection, mut xenstored) = connection();
        let (start, end) = (kind::TRANSACTION_START, kind::TRANSACTION_END);
        thread::scope(|scope| {
            scope.spawn(move || {
                let once: &[(u32, &[u8], u32, &[u8])] = &[
                    (start, b"\0", start, b"7\0"),
                    (kind::MKDIR, b"a\0", kind::MKDIR, b"OK\0"),
                    (kind::SET_PERMS, b"a\0n3\0r0\0", kind::SET_PERMS, b"OK\0"),
                ];
                answer(&mut xenstored, once);
                answer(&mut xenstored, &[(end, b"T\0", kind::ERROR, b"EAGAIN\0")]);
                answer(&mut xenstored, once);
                answer(&mut xenstored, &[(end, b"T\0", end, b"OK\0")]);
                answer(
                    &mut xenstored,
                    &[(start, b"\0", start, b"8\0"), (end, b"F\0", end, b"OK\0")],
                );
            });
            let mut times = 0;
            let done: Result<u32, StoreError> = connection.transact(|store| {
                times += 1;
                store.create("a", DomId(3), DomId(0))?;
                Ok(times)
            });
            assert_eq!(done.unwrap(), 2);
            let failed: Result<(), StoreError> =
                connection.transact(|_| Err(StoreError::Protocol("as an example")));
            assert!(matches!(failed, Err(StoreError::Protocol("as an example"))));
        });
    }
}
