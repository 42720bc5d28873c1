//! A small client of the xenbus wire protocol (Xen `public/io/xs_wire.h`), over `/dev/xen/xenbus`.
//!
//! One request at a time; watch events that arrive in between are noted. The device is the same in
//! Dom0 and in a driver domain.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{StoreError, XenStore};

const DEVICE: &str = "/dev/xen/xenbus";
const HEADER: usize = 16;
const MAX_PAYLOAD: usize = 4096;

/// Message types.
mod kind {
    pub(super) const DIRECTORY: u32 = 1;
    pub(super) const READ: u32 = 2;
    pub(super) const WATCH: u32 = 4;
    pub(super) const TRANSACTION_START: u32 = 6;
    pub(super) const TRANSACTION_END: u32 = 7;
    pub(super) const WRITE: u32 = 11;
    pub(super) const RM: u32 = 13;
    pub(super) const WATCH_EVENT: u32 = 15;
    pub(super) const ERROR: u32 = 16;
}

/// A connection to XenStore.
#[derive(Debug)]
pub struct Connection {
    device: File,
    received: Vec<u8>,
    watch_fired: bool,
    /// The transaction that requests are part of; 0: none.
    transaction: u32,
}

/// One whole message from XenStore.
struct Reply {
    kind: u32,
    payload: Vec<u8>,
}

impl Connection {
    /// Connects.
    pub fn open() -> Result<Self, StoreError> {
        let device = OpenOptions::new().read(true).write(true).open(DEVICE);
        let device = device.map_err(|source| broken("open", source))?;
        Ok(Self { device, received: Vec::new(), watch_fired: false, transaction: 0 })
    }

    /// Sends a request whose payload is `parts`, and waits for its answer. Outside a transaction,
    /// unless one was begun.
    fn ask(
        &mut self,
        kind: u32,
        operation: &'static str,
        path: &str,
        parts: &[&[u8]],
    ) -> Result<Vec<u8>, StoreError> {
        let payload = parts.concat();
        if payload.len() > MAX_PAYLOAD || path.contains('\0') {
            return Err(StoreError::TooLong(path.to_owned()));
        }
        let fields = [kind, 0, self.transaction, payload.len() as u32];
        let mut message: Vec<u8> = fields.iter().flat_map(|field| field.to_ne_bytes()).collect();
        message.extend_from_slice(&payload);
        self.device.write_all(&message).map_err(|source| broken("write to", source))?;
        loop {
            let reply = self.receive()?;
            match reply.kind {
                kind::WATCH_EVENT => self.watch_fired = true,
                kind::ERROR => {
                    let errno = text(&reply.payload);
                    return Err(StoreError::Refused { operation, path: path.to_owned(), errno });
                }
                answered if answered == kind => return Ok(reply.payload),
                _ => return Err(StoreError::Protocol("an answer to another request")),
            }
        }
    }

    /// Begins a transaction. A driver domain may have ten at a time: where there is none to be had,
    /// requests go on without, each by itself.
    fn begin(&mut self, path: &str) -> Result<(), StoreError> {
        let begun = self.ask(kind::TRANSACTION_START, "begin a transaction on", path, &[b"\0"]);
        self.transaction = match begun {
            Ok(number) => text(&number)
                .parse()
                .map_err(|_| StoreError::Protocol("a transaction that is no number"))?,
            Err(StoreError::Refused { errno, .. }) if errno == "ENOSPC" => 0,
            Err(error) => return Err(error),
        };
        Ok(())
    }

    /// Ends the transaction; `false` if somebody else changed what it looked at, and nothing was done.
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

    /// Waits for one whole message.
    fn receive(&mut self) -> Result<Reply, StoreError> {
        loop {
            if let Some(reply) = take_reply(&mut self.received)? {
                return Ok(reply);
            }
            self.read_some()?;
        }
    }

    /// Waits for bytes, at least one.
    fn read_some(&mut self) -> Result<(), StoreError> {
        let mut bytes = [0; HEADER + MAX_PAYLOAD];
        let count = self.device.read(&mut bytes).map_err(|source| broken("read from", source))?;
        let read = bytes.get(..count).unwrap_or(&[]);
        if read.is_empty() {
            return Err(broken("read from", io::ErrorKind::UnexpectedEof.into()));
        }
        self.received.extend_from_slice(read);
        Ok(())
    }

    /// Whether a read would give something at once.
    fn readable(&self) -> Result<bool, StoreError> {
        let mut fds = [PollFd::new(self.device.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut fds, PollTimeout::ZERO);
        Ok(ready.map_err(|errno| broken("poll", errno.into()))? > 0)
    }
}

fn broken(operation: &'static str, source: io::Error) -> StoreError {
    StoreError::Connection { operation, path: DEVICE.to_owned(), source }
}

/// Takes the first whole message off the front of `received`.
fn take_reply(received: &mut Vec<u8>) -> Result<Option<Reply>, StoreError> {
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
    Ok(Some(Reply { kind, payload }))
}

/// Text up to the first NUL; what is not UTF-8 is replaced, since peers write it.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or(bytes)).into_owned()
}

/// A missing node is an answer like any other. Of what is missing in a directory that the asker may
/// not read XenStore says EACCES, so what may not be seen counts as missing.
fn found<T>(result: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(StoreError::Refused { errno, .. }) if errno == "ENOENT" || errno == "EACCES" => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

impl XenStore for Connection {
    fn read(&mut self, path: &str) -> Result<Option<String>, StoreError> {
        let value = found(self.ask(kind::READ, "read", path, &[path.as_bytes(), b"\0"]))?;
        Ok(value.map(|bytes| text(&bytes)))
    }

    fn list(&mut self, path: &str) -> Result<Vec<String>, StoreError> {
        let names = found(self.ask(kind::DIRECTORY, "list", path, &[path.as_bytes(), b"\0"]))?;
        let names = names.unwrap_or_default();
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
            // Ended in any case; where an operation failed, there is nothing to commit.
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

    fn take_events(&mut self) -> Result<bool, StoreError> {
        while self.readable()? {
            self.read_some()?;
        }
        while let Some(reply) = take_reply(&mut self.received)? {
            if reply.kind != kind::WATCH_EVENT {
                return Err(StoreError::Protocol("an answer that nobody asked for"));
            }
            self.watch_fired = true;
        }
        Ok(std::mem::take(&mut self.watch_fired))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u32, payload: &[u8]) -> Vec<u8> {
        let fields = [kind, 0, 0, payload.len() as u32];
        fields.iter().flat_map(|f| f.to_ne_bytes()).chain(payload.iter().copied()).collect()
    }

    #[test]
    fn replies_are_taken_whole_and_in_order() {
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

    #[test]
    fn an_impossible_length_is_an_error() {
        let mut received = message(kind::READ, b"");
        received[12..16].copy_from_slice(&4097u32.to_ne_bytes());
        assert!(matches!(take_reply(&mut received), Err(StoreError::Protocol(_))));
    }

    #[test]
    fn what_may_not_be_seen_counts_as_missing() {
        let refused = |errno: &str| -> Result<(), StoreError> {
            let path = "/local/domain/1/device/virtio_disk/51712/state".to_owned();
            Err(StoreError::Refused { operation: "read", path, errno: errno.to_owned() })
        };
        assert!(found(refused("ENOENT")).unwrap().is_none());
        assert!(found(refused("EACCES")).unwrap().is_none());
        assert!(found(refused("EINVAL")).is_err());
    }

    #[test]
    fn text_ends_at_nul_and_survives_what_is_no_text() {
        assert_eq!(text(b"ENOENT\0"), "ENOENT");
        assert_eq!(text(b"a\xffb"), "a\u{fffd}b");
    }
}
