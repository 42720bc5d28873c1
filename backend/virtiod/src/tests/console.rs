//! Tests of the console device (virtio 1.3 section 5.3) and its terminal.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, poll};
use protocol::grant::{GrantAddress, GrantRef};
use protocol::status::DEVICE_NEEDS_RESET;

use super::driver::{Driver, Shared};
use super::host::{Ends, Host};
use super::ring::Descriptor;
use xen::{Access, DomId};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// A console whose driver is ready.
pub(super) fn console() -> (Host, Ends, Driver) {
    let host = Host::start();
    let ends = host.add("virtio", 1, 0, &[("type", "virtio,device3")]);
    let mut driver = host.connect(&ends);
    driver.start_with(2);
    (host, ends, driver)
}

/// Opens the terminal, as a terminal program does.
pub(super) fn terminal(host: &Host, ends: &Ends) -> File {
    let path = host.hypervisor.store_read(&format!("{}/tty", ends.backend)).unwrap();
    let flags = (OFlag::O_NOCTTY | OFlag::O_NONBLOCK).bits();
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).unwrap()
}

/// Prints in the guest, and waits until the device has taken it.
pub(super) fn print(driver: &mut Driver, bytes: &[u8]) {
    driver.use_queue(TRANSMIT);
    let text = driver.share(bytes, Access::ReadOnly);
    let head = driver.submit(&[text.readable()]);
    assert_eq!(driver.wait_used(), (head, 0));
    driver.unshare(&text);
}

/// Adds a buffer for input to the receive queue.
fn offer(driver: &mut Driver, length: usize) -> Shared {
    driver.use_queue(RECEIVE);
    let buffer = driver.share(&vec![0; length], Access::ReadWrite);
    driver.submit(&[buffer.writable()]);
    buffer
}

/// Waits for input in the oldest buffer and returns it.
fn typed(driver: &mut Driver, buffer: &Shared) -> Vec<u8> {
    driver.use_queue(RECEIVE);
    let (_, written) = driver.wait_used();
    let mut bytes = driver.unshare(buffer);
    bytes.truncate(written as usize);
    bytes
}

/// Reads `count` bytes from the terminal; fails the test after ten seconds without one.
pub(super) fn read(terminal: &mut File, count: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < count {
        let source = terminal.try_clone().unwrap();
        let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(&source), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, 10_000u16).unwrap(), 1, "{} of {count} bytes", bytes.len());
        let mut chunk = vec![0; (count - bytes.len()).min(1000)];
        let read = terminal.read(&mut chunk).unwrap();
        bytes.extend_from_slice(&chunk[..read]);
    }
    bytes
}

/// Bytes that differ between neighbouring positions.
pub(super) fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|position| (position * 7 + position / 256) as u8).collect()
}

pub(super) fn end(host: Host, ends: &Ends, driver: Driver) {
    driver.close();
    host.remove(ends);
    host.finish();
}

#[test]
fn bytes_pass_both_ways_unchanged() {
    let (host, ends, mut driver) = console();
    let mut terminal = terminal(&host, &ends);
    let buffer = offer(&mut driver, 300);
    // All 256 values: no echo, no conversion of line ends, no signals, no flow control.
    let all: Vec<u8> = (0..=255).collect();
    print(&mut driver, &all);
    assert_eq!(read(&mut terminal, 256), all);
    terminal.write_all(&all).unwrap();
    assert_eq!(typed(&mut driver, &buffer), all);
    let stat = host.stat(DomId(1)).stats;
    assert_eq!(
        (stat.bytes.read, stat.bytes.written, stat.state.kind.as_str()),
        (256, 256, "console")
    );
    end(host, &ends, driver);
}

#[test]
fn input_waits_in_order_for_buffers() {
    let (host, ends, mut driver) = console();
    let mut terminal = terminal(&host, &ends);
    // As much as the terminal and the device hold: more than the terminal alone.
    let all = pattern(1 << 20);
    let (mut sent, mut refused) = (0, 0);
    let mut taken = |_: &mut Driver| {
        match terminal.write(&all[sent..]) {
            Ok(count) => (sent, refused) = (sent + count, 0),
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                refused += 1;
            }
        }
        sent > 4096 && refused > 20
    };
    driver.until("the terminal to be full", &mut taken);
    let mut got = Vec::new();
    while got.len() < sent {
        let buffer = offer(&mut driver, 1500);
        got.extend(typed(&mut driver, &buffer));
    }
    assert!(got == all[..sent], "{sent} bytes in order");
    end(host, &ends, driver);
}

#[test]
fn buffers_behind_the_input_are_not_reached_for() {
    let (host, ends, mut driver) = console();
    driver.use_queue(RECEIVE);
    let buffer = driver.share(&[0; 16], Access::ReadWrite);
    let address = GrantAddress::new(GrantRef(5000), 0).encode();
    let behind = Descriptor { address, length: 1 << 30, writable: true };
    let head = driver.submit(&[buffer.writable(), behind]);
    terminal(&host, &ends).write_all(b"abc").unwrap();
    assert_eq!(driver.wait_used(), (head, 3));
    assert_eq!(driver.unshare(&buffer)[..3], *b"abc");
    end(host, &ends, driver);
}

#[test]
fn slow_reader_loses_no_output() {
    let (host, ends, mut driver) = console();
    let mut terminal = terminal(&host, &ends);
    let all = pattern(256 << 10);
    let expected = all.clone();
    let reader = thread::spawn(move || {
        let mut got = Vec::new();
        while got.len() < expected.len() {
            if got.len() % (64 << 10) == 0 {
                // Much less than the time that the device waits for a reader.
                thread::sleep(Duration::from_millis(100));
            }
            let count = (expected.len() - got.len()).min(4096);
            got.extend(read(&mut terminal, count));
        }
        assert!(got == expected, "all bytes in order");
    });
    all.chunks(4096).for_each(|chunk| print(&mut driver, chunk));
    reader.join().unwrap();
    end(host, &ends, driver);
}

/// A request that takes this long was delayed: the device waits a second for a reader.
const HELD_UP: Duration = Duration::from_millis(500);
/// Maximum number of delayed requests: the kernel moves a terminal's bytes at times of its own, so
/// that the terminal may have space once more. On a busy machine others take as long.
const FEW: usize = 32;

#[test]
fn unread_terminal_delays_the_guest_for_a_limited_time() {
    let (host, ends, mut driver) = console();
    let (start, mut held_up) = (Instant::now(), 0);
    for (done, chunk) in (1..).zip(pattern(1 << 20).chunks(4096)) {
        driver.use_queue(TRANSMIT);
        let text = driver.share(chunk, Access::ReadOnly);
        driver.submit(&[text.readable()]);
        // The device's thread answers messages regardless of its terminal.
        let (submitted, mut answered) = (Instant::now(), 0);
        driver.until("the guest's output to continue", |driver| {
            answered += 1;
            let (ring, guest) = driver.ring();
            ring.used_index(guest) == done
        });
        if submitted.elapsed() >= HELD_UP {
            assert!(answered > 2, "no message was answered meanwhile");
            held_up += 1;
        }
        driver.wait_used();
        driver.unshare(&text);
    }
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
    assert!((1..=FEW).contains(&held_up), "{held_up} of 256 requests");
    // A late reader gets the beginning, and then the output from now on.
    let mut terminal = terminal(&host, &ends);
    assert_eq!(read(&mut terminal, 4096), pattern(4096));
    print(&mut driver, b"login: ");
    let mut late = Vec::new();
    while !late.ends_with(b"login: ") {
        late.extend(read(&mut terminal, 1));
    }
    end(host, &ends, driver);
}

#[test]
fn wrong_direction_and_huge_buffers_are_faults() {
    let cases: [(usize, usize, bool, &str); 3] = [
        (RECEIVE, 16, false, "receive queue"),
        (TRANSMIT, 16, true, "transmit queue"),
        (TRANSMIT, (1 << 20) + 1, false, "1 MiB"),
    ];
    for (queue, length, writable, word) in cases {
        let (host, ends, mut driver) = console();
        driver.use_queue(queue);
        let buffer = driver.share(&vec![1; length], Access::ReadWrite);
        driver.submit(&[if writable { buffer.writable() } else { buffer.readable() }]);
        terminal(&host, &ends).write_all(b"x").unwrap();
        assert_ne!(driver.wait_config_event() & DEVICE_NEEDS_RESET, 0);
        let why = host.stat(DomId(1)).stats.state.needs_reset.unwrap();
        assert!(why.contains(word), "{word:?} is not in {why:?}");
        driver.unshare(&buffer);
        end(host, &ends, driver);
    }
}

#[test]
fn reset_keeps_the_terminal_and_its_input() {
    let (host, ends, mut driver) = console();
    let mut terminal = terminal(&host, &ends);
    terminal.write_all(b"typed early").unwrap();
    driver.status();
    driver.reset_device();
    assert_eq!(host.hypervisor.mapped_pages(DomId(1)), 1, "the message page");
    driver.free_rings();
    driver.start_with(2);
    let buffer = offer(&mut driver, 64);
    assert_eq!(typed(&mut driver, &buffer), b"typed early");
    print(&mut driver, b"hello");
    assert_eq!(read(&mut terminal, 5), b"hello");
    end(host, &ends, driver);
}
