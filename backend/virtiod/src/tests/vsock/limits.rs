//! Tests of a guest's violations of the protocol, and of limits.

use std::io::{Read, Write};

use protocol::status::DEVICE_NEEDS_RESET;

use super::guest::{Packet, RECEIVE, REQUEST, RESET, RESPONSE, Setting, TRANSMIT, read};
use xen::{Access, DomId};

#[test]
fn guest_that_exceeds_its_credit_loses_that_connection_only() {
    let mut setting = Setting::new();
    let listener = setting.listen(52);
    let _program = setting.guest_connects(&listener, 52);
    let other = setting.listen(53);
    let mut neighbour = setting.guest_connects(&other, 53);
    // More than any socket's buffer and the device's together.
    for _ in 0..64 {
        setting.send(&Packet::data(52, &[7; 32 << 10]));
    }
    while setting.receive().operation != RESET {}
    setting.send(&Packet::data(53, b"unharmed"));
    assert_eq!(read(&mut neighbour, 8), b"unharmed");
    setting.end();
}

#[test]
fn invalid_packets_do_not_affect_other_connections() {
    let mut setting = Setting::new();
    let listener = setting.listen(52);
    let mut program = setting.guest_connects(&listener, 52);
    // Data for no connection, or of another type: a reset. A reset for no connection, and packets
    // with a wrong source or destination: no answer.
    setting.send(&Packet::data(99, b"x"));
    assert_eq!(setting.expect(RESET).host, 99);
    let mut seqpacket = Packet::new(REQUEST, 52).bytes();
    seqpacket[28] = 2;
    seqpacket[16] = 1;
    setting.send_bytes(&seqpacket);
    assert_ne!(setting.expect(RESET).guest, 1000);
    setting.send(&Packet::new(RESET, 98));
    let mut forged = Packet::data(52, b"forged").bytes();
    forged[0] = 9;
    setting.send_bytes(&forged);
    let mut elsewhere = Packet::data(52, b"elsewhere").bytes();
    elsewhere[8] = 9;
    setting.send_bytes(&elsewhere);
    setting.send(&Packet::data(52, b"good"));
    assert_eq!(read(&mut program, 4), b"good");
    // An unknown operation ends the connection.
    setting.send(&Packet::new(77, 52));
    setting.expect(RESET);
    assert_eq!(program.read(&mut [0]).unwrap(), 0);
    assert_eq!(setting.driver.status() & DEVICE_NEEDS_RESET, 0);
    setting.end();
}

#[test]
fn second_request_for_a_connection_ends_it() {
    let mut setting = Setting::new();
    let listener = setting.listen(52);
    let mut program = setting.guest_connects(&listener, 52);
    setting.send(&Packet::new(REQUEST, 52));
    setting.expect(RESET);
    assert_eq!(program.read(&mut [0]).unwrap(), 0);
    setting.end();
}

#[test]
fn invalid_chains_are_faults_and_reset_ends_all_connections() {
    let cases: [(usize, usize, bool, &str); 5] = [
        (TRANSMIT, 43, false, "less than a packet's header"),
        (TRANSMIT, 50, false, "less data than it says"),
        (TRANSMIT, 64, true, "transmit queue"),
        (RECEIVE, 64, false, "receive queue"),
        (RECEIVE, 43, true, "no packet fits"),
    ];
    for (queue, length, writable, word) in cases {
        let mut setting = Setting::new();
        let listener = setting.listen(52);
        let mut program = setting.guest_connects(&listener, 52);
        let mut bytes = Packet::data(52, &[0; 20]).bytes();
        bytes.truncate(length);
        setting.driver.use_queue(queue);
        let buffer = setting.driver.share(&bytes, Access::ReadWrite);
        setting.driver.submit(&[if writable { buffer.writable() } else { buffer.readable() }]);
        program.write_all(b"x").unwrap();
        assert_ne!(setting.driver.wait_config_event() & DEVICE_NEEDS_RESET, 0, "{word}");
        let why = setting.host.stat(DomId(1)).stats.state.needs_reset.unwrap();
        assert!(why.contains(word), "{word:?} is not in {why:?}");
        setting.driver.unshare(&buffer);
        setting.driver.reset_device();
        assert_ne!(program.read(&mut [0]).ok(), Some(1), "the connection is over");
        setting.driver.free_rings();
        setting.driver.start_with(3);
        setting.guest_connects(&listener, 52);
        setting.end();
    }
}

#[test]
fn connections_are_limited() {
    let mut setting = Setting::new();
    let listener = setting.listen(52);
    // Each kind has a limit of its own.
    let _silent: Vec<_> = (0..140).map(|_| setting.program()).collect();
    let programs: Vec<_> = (0..128)
        .map(|guest| {
            setting.send(&Packet { guest, ..Packet::new(REQUEST, 52) });
            setting.expect(RESPONSE);
            listener.accept().unwrap().0
        })
        .collect();
    setting.send(&Packet { guest: 128, ..Packet::new(REQUEST, 52) });
    setting.expect(RESET);
    assert_eq!(setting.host.stat(DomId(1)).stats.connections.open, 128);
    drop(programs);
    (0..2 * 128).for_each(|_| drop(setting.receive()));
    setting.guest_connects(&listener, 52);
    setting.end();
}

#[test]
fn guest_without_buffers_is_delayed_and_loses_nothing() {
    let mut setting = Setting::new();
    // The device answers each packet with a reset, and at most 256 of those wait.
    (0..256).for_each(|host| setting.send(&Packet::data(host, b"")));
    let more: Vec<_> = (256..266)
        .map(|host| {
            let bytes = Packet::data(host, b"").bytes();
            let shared = setting.driver.share(&bytes, Access::ReadOnly);
            setting.driver.submit(&[shared.readable()]);
            shared
        })
        .collect();
    for _ in 0..20 {
        setting.driver.status();
    }
    let (ring, guest) = setting.driver.ring();
    assert_eq!(ring.used_index(guest), 256, "the others stay in the ring");
    for host in 0..266 {
        assert_eq!(setting.expect(RESET).host, host);
    }
    setting.driver.use_queue(TRANSMIT);
    for shared in more {
        setting.driver.wait_used();
        setting.driver.unshare(&shared);
    }
    setting.end();
}

#[test]
fn batch_is_taken_as_far_as_its_answers_have_space() {
    let mut setting = Setting::new();
    (0..250).for_each(|host| setting.send(&Packet::data(host, b"")));
    // One batch, in which each packet may have two answers.
    let packets = (250..264)
        .map(|host| setting.driver.share(&Packet::data(host, b"").bytes(), Access::ReadOnly));
    let packets: Vec<_> = packets.collect();
    setting.driver.use_queue(TRANSMIT);
    let (ring, guest) = setting.driver.ring();
    for packet in &packets {
        ring.add(guest, &[packet.readable()]);
    }
    ring.doorbell.notify();
    setting.host.wait_until_idle(&mut setting.driver);
    let (ring, guest) = setting.driver.ring();
    assert_eq!(ring.used_index(guest), 256, "the others stay in the ring");
    for host in 0..264 {
        assert_eq!(setting.expect(RESET).host, host);
    }
    setting.driver.use_queue(TRANSMIT);
    for packet in packets {
        setting.driver.wait_used();
        setting.driver.unshare(&packet);
    }
    setting.end();
}

#[test]
fn socket_with_another_listener_refuses_the_device() {
    let setting = Setting::new();
    setting.host.configure(&format!(
        "[domain.web1.virtio.1.vsock]\npath = {:?}\ncid = 77",
        setting.path("")
    ));
    let second = setting.host.add("virtio", 1, 1, &[("type", "virtio,device13")]);
    setting.host.hypervisor.store_wait(&format!("{}/state", second.backend), None);
    let error = setting.host.error(&second).unwrap();
    assert!(error.contains("somebody else listens on"), "{error}");
    setting.host.hypervisor.store_remove(&second.backend);
    setting.end();
}
