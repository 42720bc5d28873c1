//! Tests of the console's size and of its named ports.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use protocol::message::{Request, Response};
use rustix::termios::{Winsize, tcsetwinsize};
use tempfile::TempDir;

use super::console::{console, end, pattern, terminal};
use super::driver::{Driver, Shared};
use super::host::{Ends, Host};
use crate::record::Record;
use xen::Access;

/// A control message of the driver or of the device: port, event, value and data.
type Message = (u32, u16, u16, Vec<u8>);

const CONTROL_RECEIVE: usize = 2;
const CONTROL_TRANSMIT: usize = 3;
const READY: u16 = 0;
const ADD: u16 = 1;
const PORT_READY: u16 = 3;
const CONSOLE_PORT: u16 = 4;
const RESIZE: u16 = 5;
const OPEN: u16 = 6;
const NAME: u16 = 7;

fn say(driver: &mut Driver, port: u32, event: u16, value: u16) {
    driver.use_queue(CONTROL_TRANSMIT);
    let mut bytes = port.to_le_bytes().to_vec();
    bytes.extend(event.to_le_bytes().into_iter().chain(value.to_le_bytes()));
    let message = driver.share(&bytes, Access::ReadOnly);
    driver.submit(&[message.readable()]);
    driver.wait_used();
    driver.unshare(&message);
}

fn next_message(driver: &mut Driver) -> Message {
    driver.use_queue(CONTROL_RECEIVE);
    let buffer = driver.share(&[0; 4096], Access::ReadWrite);
    driver.submit(&[buffer.writable()]);
    let (_, written) = driver.wait_used();
    let bytes = driver.unshare(&buffer)[..written as usize].to_vec();
    let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    (u32::from(half(0)), half(4), half(6), bytes[8..].to_vec())
}

/// A console with ports "agent" and "log", whose driver has initialised them.
fn ports(directory: &TempDir) -> (Host, Ends, Driver) {
    let host = Host::start();
    host.hypervisor.store_write("/local/domain/1/name", "web1");
    host.configure(&format!(
        "[domain.web1.virtio.0.console]\nports = [\"agent\", \"log\"]\ndirectory = {:?}",
        directory.path()
    ));
    let ends = host.add("virtio", 1, 0, &[("type", "virtio,device3")]);
    let mut driver = host.connect(&ends);
    driver.start_with(8);
    say(&mut driver, 0, READY, 1);
    assert_eq!(
        [(); 3].map(|()| next_message(&mut driver)),
        [0, 1, 2].map(|port| (port, ADD, 1, vec![]))
    );
    (host, ends, driver)
}

/// Columns, rows and number of ports from the configuration space.
fn config(driver: &mut Driver) -> (u16, u16, u32) {
    driver.ask(Request::GetConfig { offset: 0, size: 8 }, |answer| match answer {
        Response::GetConfig(config) => {
            let half = |at: usize| u16::from_le_bytes([config.data[at], config.data[at + 1]]);
            (half(0), half(2), u32::from(half(4)))
        }
        other => panic!("{other:?}"),
    })
}

fn resize(terminal: &File, columns: u16, rows: u16) {
    let size = Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).unwrap();
}

#[test]
fn size_change_sends_a_config_event() {
    let (host, ends, mut driver) = console();
    assert_eq!(config(&mut driver), (0, 0, 1), "not known yet");
    let terminal = terminal(&host, &ends);
    for (columns, rows) in [(80, 25), (132, 50)] {
        resize(&terminal, columns, rows);
        driver.wait_config_event();
        assert_eq!(config(&mut driver), (columns, rows, 1));
    }
    end(host, &ends, driver);
}

#[test]
fn driver_is_notified_of_ports_names_and_size() {
    let directory = TempDir::new().unwrap();
    let (host, ends, mut driver) = ports(&directory);
    assert_eq!(config(&mut driver), (0, 0, 3));
    say(&mut driver, 0, PORT_READY, 1);
    assert_eq!(next_message(&mut driver), (0, CONSOLE_PORT, 1, vec![]));
    assert_eq!(next_message(&mut driver), (0, OPEN, 1, vec![]));
    resize(&terminal(&host, &ends), 132, 50);
    assert_eq!(next_message(&mut driver), (0, RESIZE, 0, vec![132, 0, 50, 0]));
    // After a reset the driver starts anew and is notified of the size at once.
    driver.set_status(0);
    driver.free_rings();
    driver.start_with(8);
    say(&mut driver, 0, PORT_READY, 1);
    let heard = [(); 3].map(|()| next_message(&mut driver));
    assert_eq!(heard[2], (0, RESIZE, 0, vec![132, 0, 50, 0]));
    say(&mut driver, 2, PORT_READY, 1);
    assert_eq!(next_message(&mut driver), (2, NAME, 1, b"log".to_vec()));
    // Messages for nonexistent ports and unknown events are ignored.
    say(&mut driver, 77, PORT_READY, 1);
    say(&mut driver, 77, OPEN, 1);
    say(&mut driver, 1, 99, 1);
    say(&mut driver, 1, PORT_READY, 1);
    assert_eq!(next_message(&mut driver), (1, NAME, 1, b"agent".to_vec()));
    end(host, &ends, driver);
}

#[test]
fn named_port_is_a_socket_and_notifies_both_sides() {
    let directory = TempDir::new().unwrap();
    let (host, ends, mut driver) = ports(&directory);
    let socket = directory.path().join("web1-0-log.sock");
    let key = |key: &str| host.hypervisor.store_read(&format!("{}/{key}", ends.backend)).unwrap();
    assert_eq!(
        (key("port/2/name"), key("port/2/socket")),
        ("log".into(), socket.display().to_string())
    );
    // The program connects before the guest, and its data waits for an application.
    let mut program = UnixStream::connect(&socket).unwrap();
    program.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    program.write_all(b"early").unwrap();
    say(&mut driver, 2, PORT_READY, 1);
    assert_eq!(next_message(&mut driver), (2, NAME, 1, b"log".to_vec()));
    assert_eq!(next_message(&mut driver), (2, OPEN, 1, vec![]));
    let (receive, transmit) = (8 - 2, 8 - 1);
    driver.use_queue(receive);
    let buffer = driver.share(&[0; 64], Access::ReadWrite);
    driver.submit(&[buffer.writable()]);
    say(&mut driver, 2, OPEN, 1);
    driver.use_queue(receive);
    let (_, written) = driver.wait_used();
    assert_eq!(&driver.unshare(&buffer)[..written as usize], b"early");
    // The guest's data, more than a socket holds: the program reads late, and nothing is lost.
    let all = pattern(1 << 20);
    let expected = all.clone();
    let mut reading = program.try_clone().unwrap();
    let reader = thread::spawn(move || {
        thread::sleep(Duration::from_millis(1500));
        let mut got = vec![0; expected.len()];
        reading.read_exact(&mut got).unwrap();
        assert!(got == expected, "all bytes in order");
    });
    for chunk in all.chunks(32 << 10) {
        driver.use_queue(transmit);
        let text = driver.share(chunk, Access::ReadOnly);
        driver.submit(&[text.readable()]);
        driver.wait_used();
        driver.unshare(&text);
    }
    reader.join().unwrap();
    // A program that has shut down its writing side may still read.
    program.write_all(b"bye").unwrap();
    program.shutdown(Shutdown::Write).unwrap();
    driver.use_queue(receive);
    let buffer = driver.share(&[0; 64], Access::ReadWrite);
    driver.submit(&[buffer.writable()]);
    driver.wait_used();
    assert_eq!(&driver.unshare(&buffer)[..3], b"bye");
    driver.use_queue(transmit);
    let text = driver.share(b"still here", Access::ReadOnly);
    driver.submit(&[text.readable()]);
    driver.wait_used();
    driver.unshare(&text);
    let mut last = [0; 10];
    program.read_exact(&mut last).unwrap();
    assert_eq!(&last, b"still here");
    drop(program);
    assert_eq!(next_message(&mut driver), (2, OPEN, 0, vec![]));
    // When a program leaves, the guest is notified after its last data. Another may connect.
    let mut program = UnixStream::connect(&socket).unwrap();
    assert_eq!(next_message(&mut driver), (2, OPEN, 1, vec![]));
    program.write_all(b"bye").unwrap();
    drop(program);
    driver.use_queue(CONTROL_RECEIVE);
    let news = driver.share(&[0; 64], Access::ReadWrite);
    driver.submit(&[news.writable()]);
    let (ring, guest) = driver.ring();
    let heard = ring.used_index(guest);
    for _ in 0..20 {
        driver.status();
    }
    let (ring, guest) = driver.ring();
    assert_eq!(ring.used_index(guest), heard, "not before its last data");
    driver.use_queue(receive);
    let buffer = driver.share(&[0; 64], Access::ReadWrite);
    driver.submit(&[buffer.writable()]);
    driver.wait_used();
    assert_eq!(&driver.unshare(&buffer)[..3], b"bye");
    driver.use_queue(CONTROL_RECEIVE);
    driver.wait_used();
    assert_eq!(driver.unshare(&news)[..8], [2, 0, 0, 0, OPEN as u8, 0, 0, 0]);
    let _next = UnixStream::connect(&socket).unwrap();
    assert_eq!(next_message(&mut driver), (2, OPEN, 1, vec![]));
    end(host, &ends, driver);
}

#[test]
fn program_that_leaves_a_closed_port_is_noticed() {
    let directory = TempDir::new().unwrap();
    let (host, ends, mut driver) = ports(&directory);
    say(&mut driver, 1, PORT_READY, 1);
    next_message(&mut driver);
    let mut program = UnixStream::connect(directory.path().join("web1-0-agent.sock")).unwrap();
    assert_eq!(next_message(&mut driver), (1, OPEN, 1, vec![]));
    program.write_all(b"nobody reads this").unwrap();
    drop(program);
    assert_eq!(next_message(&mut driver), (1, OPEN, 0, vec![]));
    end(host, &ends, driver);
}

#[test]
fn driver_without_control_buffers_is_delayed() {
    let directory = TempDir::new().unwrap();
    let (host, ends, mut driver) = ports(&directory);
    // The device answers each message with a name.
    (0..64).for_each(|_| say(&mut driver, 1, PORT_READY, 1));
    driver.use_queue(CONTROL_TRANSMIT);
    let bytes = [1, 0, 0, 0, 3, 0, 1, 0];
    let message = driver.share(&bytes, Access::ReadOnly);
    driver.submit(&[message.readable()]);
    for _ in 0..20 {
        driver.status();
    }
    let (ring, guest) = driver.ring();
    assert_eq!(ring.used_index(guest), 1 + 64, "the last stays in the ring");
    (0..65).for_each(|_| assert_eq!(next_message(&mut driver).1, NAME));
    driver.use_queue(CONTROL_TRANSMIT);
    driver.wait_used();
    driver.unshare(&message);
    end(host, &ends, driver);
}

/// A console with 15 named ports, which the driver has not initialised; the first four queues are
/// set up.
fn many_ports(directory: &TempDir) -> (Host, Ends, Driver) {
    let host = Host::start();
    host.hypervisor.store_write("/local/domain/1/name", "web1");
    let names: Vec<_> = (0..15).map(|number| format!("port{number}")).collect();
    host.configure(&format!(
        "[domain.web1.virtio.0.console]\nports = {names:?}\ndirectory = {:?}",
        directory.path()
    ));
    let ends = host.add("virtio", 1, 0, &[("type", "virtio,device3")]);
    let mut driver = host.connect(&ends);
    driver.start_with(4);
    (host, ends, driver)
}

/// Sends the same control message several times.
fn say_together(driver: &mut Driver, message: &Shared, count: usize) {
    driver.use_queue(CONTROL_TRANSMIT);
    let (ring, guest) = driver.ring();
    for _ in 0..count {
        ring.add(guest, &[message.readable()]);
    }
    ring.doorbell.notify();
}

/// Number of the driver's control messages that the device has taken.
fn taken(host: &Host, driver: &mut Driver) -> u16 {
    host.wait_until_idle(driver);
    driver.use_queue(CONTROL_TRANSMIT);
    let (ring, guest) = driver.ring();
    ring.used_index(guest)
}

#[test]
fn messages_with_many_answers_wait_for_space() {
    let directory = TempDir::new().unwrap();
    let (host, ends, mut driver) = many_ports(&directory);
    // The device answers each message with 16, and at most 64 wait.
    let ready = driver.share(&[0, 0, 0, 0, READY as u8, 0, 1, 0], Access::ReadOnly);
    say_together(&mut driver, &ready, 15);
    assert_eq!(taken(&host, &mut driver), 4);
    // One taken answer leaves space for less than 16: the device takes the next message, and waits
    // with it.
    assert_eq!(next_message(&mut driver).1, ADD);
    assert_eq!(taken(&host, &mut driver), 5);
    for number in 1..15 * 16 {
        assert_eq!(next_message(&mut driver), (number % 16, ADD, 1, vec![]));
    }
    assert_eq!(taken(&host, &mut driver), 15);
    driver.unshare(&ready);
    end(host, &ends, driver);
}

#[test]
fn reconnecting_programs_queue_a_bounded_number_of_messages() {
    let directory = TempDir::new().unwrap();
    let (host, ends, mut driver) = many_ports(&directory);
    say(&mut driver, 1, PORT_READY, 1);
    let path = directory.path().join("web1-0-port0.sock");
    for _ in 0..100 {
        let program = UnixStream::connect(&path).unwrap();
        host.wait_until_idle(&mut driver);
        drop(program);
        host.wait_until_idle(&mut driver);
    }
    let _last = UnixStream::connect(&path).unwrap();
    host.wait_until_idle(&mut driver);
    assert_eq!(next_message(&mut driver).1, NAME);
    // 63 wait after it: every other one reports an open port. The last one reports the current
    // state.
    for position in 0..63 {
        assert_eq!(next_message(&mut driver), (1, OPEN, 1 - position % 2, vec![]));
    }
    say(&mut driver, 2, PORT_READY, 1);
    assert_eq!(next_message(&mut driver), (2, NAME, 1, b"port1".to_vec()));
    end(host, &ends, driver);
}

#[test]
fn ports_are_announced_again_by_the_next_process_and_their_programs_are_gone() {
    let directory = TempDir::new().unwrap();
    let (mut host, ends, mut driver) = ports(&directory);
    say(&mut driver, 2, PORT_READY, 1);
    assert_eq!(next_message(&mut driver), (2, NAME, 1, b"log".to_vec()));
    say(&mut driver, 2, OPEN, 1);
    let socket = directory.path().join("web1-0-log.sock");
    let program = UnixStream::connect(&socket).unwrap();
    assert_eq!(next_message(&mut driver), (2, OPEN, 1, vec![]));
    host.leave();
    host.serve_again();
    let heard = [(); 5].map(|()| next_message(&mut driver));
    let (add, closed) = (|port| (port, ADD, 1, vec![]), |port| (port, OPEN, 0, vec![]));
    assert_eq!(heard, [add(0), add(1), closed(1), add(2), closed(2)]);
    drop(program);
    // The driver has the port, and says so; the guest's end is still open.
    say(&mut driver, 2, PORT_READY, 1);
    assert_eq!(next_message(&mut driver), (2, NAME, 1, b"log".to_vec()));
    let mut program = UnixStream::connect(&socket).unwrap();
    assert_eq!(next_message(&mut driver), (2, OPEN, 1, vec![]));
    driver.use_queue(6);
    let buffer = driver.share(&[0; 16], Access::ReadWrite);
    driver.submit(&[buffer.writable()]);
    program.write_all(b"hello").unwrap();
    assert_eq!(driver.wait_used().1, 5);
    assert_eq!(driver.unshare(&buffer)[..5], *b"hello");
    end(host, &ends, driver);
}

#[test]
fn reset_by_the_driver_closes_ports_for_the_next_process_too() {
    let directory = TempDir::new().unwrap();
    let (mut host, ends, mut driver) = ports(&directory);
    let path = host.records().join("virtio-1-0.record");
    let noted = || {
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        Record::open(file).unwrap().note().get()
    };
    say(&mut driver, 2, OPEN, 1);
    assert_eq!(noted(), 2);
    host.leave();
    host.serve_again();
    driver.status();
    assert_eq!(noted(), 2);
    driver.reset_device();
    driver.free_rings();
    assert_eq!(noted(), 0);
    end(host, &ends, driver);
}
