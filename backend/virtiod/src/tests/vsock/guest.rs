//! A guest with a socket device that sends and receives packets.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;

use crate::tests::driver::Driver;
use crate::tests::host::{Ends, Host};
use xen::Access;

pub(in crate::tests) const RECEIVE: usize = 0;
pub(in crate::tests) const TRANSMIT: usize = 1;
/// The guest's context id: its domain's number plus 2.
pub(in crate::tests) const CID: u64 = 3;
/// The guest's receive buffer in bytes (`buf_alloc`).
pub(in crate::tests) const ROOM: u32 = 1 << 20;
/// The device's buffer for a connection whose program does not read, in bytes.
pub(in crate::tests) const BUFFER_SIZE: usize = 128 << 10;

pub(in crate::tests) const REQUEST: u16 = 1;
pub(in crate::tests) const RESPONSE: u16 = 2;
pub(in crate::tests) const RESET: u16 = 3;
pub(in crate::tests) const SHUTDOWN: u16 = 4;
pub(in crate::tests) const DATA: u16 = 5;
pub(in crate::tests) const UPDATE: u16 = 6;
pub(in crate::tests) const ASK: u16 = 7;

/// A packet in either direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::tests) struct Packet {
    pub(in crate::tests) operation: u16,
    pub(in crate::tests) host: u32,
    pub(in crate::tests) guest: u32,
    pub(in crate::tests) flags: u32,
    pub(in crate::tests) forwarded: u32,
    pub(in crate::tests) room: u32,
    pub(in crate::tests) data: Vec<u8>,
}

impl Packet {
    /// Returns a packet from the guest's port 1000 to the host's port `host`.
    pub(in crate::tests) fn new(operation: u16, host: u32) -> Self {
        Self { operation, host, guest: 1000, flags: 0, forwarded: 0, room: ROOM, data: Vec::new() }
    }

    pub(in crate::tests) fn data(host: u32, data: &[u8]) -> Self {
        Self { data: data.to_vec(), ..Self::new(DATA, host) }
    }

    pub(in crate::tests) fn shutdown(host: u32, flags: u32) -> Self {
        Self { flags, ..Self::new(SHUTDOWN, host) }
    }

    pub(in crate::tests) fn bytes(&self) -> Vec<u8> {
        let mut bytes = [CID.to_le_bytes(), 2u64.to_le_bytes()].concat();
        for field in [self.guest, self.host, self.data.len() as u32] {
            bytes.extend(field.to_le_bytes());
        }
        bytes.extend([1, 0]);
        bytes.extend(self.operation.to_le_bytes());
        for field in [self.flags, self.room, self.forwarded] {
            bytes.extend(field.to_le_bytes());
        }
        bytes.extend(&self.data);
        bytes
    }

    pub(in crate::tests) fn parse(bytes: &[u8]) -> Self {
        let field = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!(bytes[..16], [2u64.to_le_bytes(), CID.to_le_bytes()].concat(), "the ends");
        assert_eq!(field(24) as usize, bytes.len() - 44, "the length");
        assert_eq!(bytes[28..30], [1, 0], "the type");
        Self {
            host: field(16),
            guest: field(20),
            operation: u16::from_le_bytes([bytes[30], bytes[31]]),
            flags: field(32),
            room: field(36),
            forwarded: field(40),
            data: bytes[44..].to_vec(),
        }
    }
}

/// A guest with a socket device, whose driver is ready.
pub(in crate::tests) struct Setting {
    pub(in crate::tests) host: Host,
    pub(in crate::tests) ends: Ends,
    pub(in crate::tests) driver: Driver,
    pub(in crate::tests) directory: TempDir,
}

impl Setting {
    pub(in crate::tests) fn new() -> Self {
        let host = Host::start();
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("guest");
        host.hypervisor.store_write("/local/domain/1/name", "web1");
        host.configure(&format!("[domain.web1.virtio.0.vsock]\npath = {path:?}"));
        let ends = host.add("virtio", 1, 0, &[("type", "virtio,device13")]);
        let mut driver = host.connect(&ends);
        driver.start_with(3);
        Self { host, ends, driver, directory }
    }

    pub(in crate::tests) fn path(&self, suffix: &str) -> PathBuf {
        self.directory.path().join(format!("guest{suffix}"))
    }

    pub(in crate::tests) fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.path(&format!("_{port}"))).unwrap()
    }

    /// Sends bytes as a packet, and waits until the device has taken them.
    pub(in crate::tests) fn send_bytes(&mut self, bytes: &[u8]) {
        self.driver.use_queue(TRANSMIT);
        let shared = self.driver.share(bytes, Access::ReadOnly);
        let head = self.driver.submit(&[shared.readable()]);
        assert_eq!(self.driver.wait_used(), (head, 0));
        self.driver.unshare(&shared);
    }

    pub(in crate::tests) fn send(&mut self, packet: &Packet) {
        self.send_bytes(&packet.bytes());
    }

    /// Receives the device's next packet, in a buffer of Linux' size.
    pub(in crate::tests) fn receive(&mut self) -> Packet {
        self.driver.use_queue(RECEIVE);
        let buffer = self.driver.share(&[0; 4096], Access::ReadWrite);
        self.driver.submit(&[buffer.writable()]);
        let (_, written) = self.driver.wait_used();
        Packet::parse(&self.driver.unshare(&buffer)[..written as usize])
    }

    pub(in crate::tests) fn expect(&mut self, operation: u16) -> Packet {
        let packet = self.receive();
        assert_eq!(packet.operation, operation, "{packet:?}");
        packet
    }

    /// The guest connects to a program that listens on `port`.
    pub(in crate::tests) fn guest_connects(
        &mut self,
        listener: &UnixListener,
        port: u32,
    ) -> UnixStream {
        self.send(&Packet::new(REQUEST, port));
        let packet = self.expect(RESPONSE);
        assert_eq!((packet.host, packet.guest), (port, 1000));
        assert_eq!(packet.room as usize, BUFFER_SIZE);
        patient(listener.accept().unwrap().0)
    }

    /// Connects a program that has not sent anything yet.
    pub(in crate::tests) fn program(&self) -> UnixStream {
        patient(UnixStream::connect(self.path("")).unwrap())
    }

    /// Connects a program to the guest's port 1000; returns the host's port with it.
    pub(in crate::tests) fn host_connects(&mut self) -> (UnixStream, u32) {
        let mut program = self.program();
        program.write_all(b"CONNECT 1000\n").unwrap();
        let packet = self.expect(REQUEST);
        assert_eq!(packet.guest, 1000);
        self.send(&Packet::new(RESPONSE, packet.host));
        let line = format!("OK {}\n", packet.host);
        assert_eq!(read(&mut program, line.len()), line.as_bytes());
        (program, packet.host)
    }

    pub(in crate::tests) fn end(self) {
        self.driver.close();
        self.host.remove(&self.ends);
        self.host.finish();
        assert!(!self.directory.path().join("guest").exists(), "the socket is left");
    }
}

/// Sets a time limit for reads.
pub(in crate::tests) fn patient(stream: UnixStream) -> UnixStream {
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

pub(in crate::tests) fn read(stream: &mut UnixStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

pub(in crate::tests) fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|position| (position * 7 + position / 256) as u8).collect()
}
