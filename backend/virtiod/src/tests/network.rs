//! Tests of the network device (virtio 1.3 section 5.1): packets in both directions.

use std::sync::Arc;

use protocol::status::{
    ACKNOWLEDGE, DEVICE_NEEDS_RESET, DRIVER, DRIVER_OK, F_ACCESS_PLATFORM, F_VERSION_1, FEATURES_OK,
};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF,
};

use super::driver::{Driver, Shared};
use super::fake_network::{FakeLink, LINK_CAPACITY};
use super::host::{Ends, Host, TestNet};
use crate::device::net::LinkState;
use crate::device::net::interface::MAX_PACKET;
use xen::{Access, DomId};

const RECEIVE: usize = 0;
pub(super) const TRANSMIT: usize = 1;
pub(super) const HEADER: usize = 12;

/// Adds a network device with a connected driver; returns the other end of its cable as well.
pub(super) fn add(host: &Host, guest: u16) -> (Ends, Driver, Arc<FakeLink>) {
    let ends = host.add("virtio", guest, 0, &[("type", "virtio,device1")]);
    let driver = host.connect(&ends);
    let cable = host.network.link(&format!("virtio{guest}.0"));
    (ends, driver, cable)
}

/// A packet of `length` bytes after a header of zeros.
pub(super) fn packet(length: usize, seed: u8) -> Vec<u8> {
    let frame = (0..length).map(|position| (position * 7 + position / 256) as u8 ^ seed);
    [0; HEADER].into_iter().chain(frame).collect()
}

/// The packet as a driver receives it in `count` buffers.
pub(super) fn in_buffers(packet: &[u8], count: u8) -> Vec<u8> {
    let mut packet = packet.to_vec();
    packet[10] = count;
    packet
}

/// Adds a buffer to the receive queue.
pub(super) fn offer(driver: &mut Driver, length: usize) -> Shared {
    driver.use_queue(RECEIVE);
    let buffer = driver.share(&vec![0xee; length], Access::ReadWrite);
    driver.submit(&[buffer.writable()]);
    buffer
}

/// Returns the bytes received in these buffers, in order; the last one may be larger than its part.
pub(super) fn received(driver: &mut Driver, buffers: &[Shared]) -> Vec<u8> {
    driver.use_queue(RECEIVE);
    let mut packet = Vec::new();
    for buffer in buffers {
        let (_, written) = driver.wait_used();
        let bytes = driver.unshare(buffer);
        packet.extend_from_slice(&bytes[..written as usize]);
    }
    packet
}

/// Sends a packet from the guest, in buffers of these lengths.
pub(super) fn send(driver: &mut Driver, packet: &[u8], lengths: &[usize]) {
    driver.use_queue(TRANSMIT);
    let mut rest = packet;
    let mut parts = Vec::new();
    for length in lengths {
        let (now, later) = rest.split_at(*length);
        parts.push(driver.share(now, Access::ReadOnly));
        rest = later;
    }
    assert!(rest.is_empty());
    let chain: Vec<_> = parts.iter().map(Shared::readable).collect();
    let head = driver.submit(&chain);
    assert_eq!(driver.wait_used(), (head, 0));
    parts.iter().for_each(|part| drop(driver.unshare(part)));
}

#[test]
fn packet_in_more_pieces_than_an_iovec_holds_is_sent() {
    let mut net = TestNet::connect();
    net.driver.ring_size = 128;
    net.driver.start_with(2);
    net.driver.use_queue(TRANSMIT);
    // Two of every four bytes of a page, so that no pieces are adjacent.
    let sent = packet(188, 3);
    let mut spread = vec![0xee; 2 * sent.len()];
    for (position, two) in sent.chunks(2).enumerate() {
        spread[4 * position..4 * position + 2].copy_from_slice(two);
    }
    let data = net.driver.share(&spread, Access::ReadOnly);
    let pieces = sent.len() / 2;
    let mut table = Vec::new();
    for position in 0..pieces {
        table.extend((data.address() + 4 * position as u64).to_le_bytes());
        table.extend(2u32.to_le_bytes());
        table.extend(u16::from(position + 1 < pieces).to_le_bytes());
        table.extend((position as u16 + 1).to_le_bytes());
    }
    let table = net.driver.share(&table, Access::ReadOnly);
    let (ring, guest) = net.driver.ring();
    ring.write(guest, 0, table.readable(), 4, 0);
    ring.offer(guest, 0);
    ring.doorbell.notify();
    assert_eq!(net.driver.wait_used(), (0, 0));
    assert_eq!(net.link.next(), (0, sent));
    net.driver.unshare(&data);
    net.driver.unshare(&table);
}

fn end(host: Host, ends: &Ends, driver: Driver) {
    driver.close();
    host.remove(ends);
    // The name is free for another device before the toolstack sees state 6.
    assert_eq!(host.network.names(), [""; 0], "interfaces left");
    host.finish();
}

#[test]
fn packets_pass_both_ways_and_are_counted() {
    for mut net in TestNet::each_way() {
        net.driver.start_with(2);
        let (small, large) = (packet(60, 1), packet(MAX_PACKET - HEADER, 2));
        send(&mut net.driver, &small, &[HEADER, 60]);
        send(&mut net.driver, &large, &[100, 4096, MAX_PACKET - 4196]);
        assert_eq!(net.link.next(), (0, small.clone()));
        assert!(net.link.next() == (0, large.clone()), "the large one");

        let buffer = offer(&mut net.driver, 2000);
        assert!(net.link.send(0, &small));
        assert_eq!(received(&mut net.driver, &[buffer]), in_buffers(&small, 1));
        let buffer = offer(&mut net.driver, MAX_PACKET);
        assert!(net.link.send(0, &large));
        assert!(received(&mut net.driver, &[buffer]) == in_buffers(&large, 1), "the large one");

        let stats = net.host.stat(DomId(1)).stats;
        let bytes = (60 + MAX_PACKET - HEADER) as u64;
        assert_eq!((stats.requests.read, stats.requests.write), (2, 2));
        assert_eq!((stats.bytes.read, stats.bytes.written), (bytes, bytes));
        assert_eq!((stats.dropped.to_guest, stats.dropped.from_guest), (0, 0));
        assert_eq!(stats.state.kind, "net");
    }
}

/// The first second's packets are credit.
#[test]
fn packets_beyond_the_rate_wait_in_both_directions() {
    let host = Host::start();
    let settings = "rate-from-guest = \"40kB/s\"\nrate-to-guest = \"40kB/s\"";
    host.configure(&format!("[default.net]\n{settings}"));
    let (ends, mut driver, link) = add(&host, 1);
    driver.start_with(2);
    let packets: Vec<_> = (0..12).map(|seed| packet(5000, seed)).collect();
    for packet in &packets {
        send(&mut driver, packet, &[packet.len()]);
        assert_eq!(link.next(), (0, packet.clone()));
    }
    let waits = || host.stat(DomId(1)).stats.waits;
    let from_guest = waits();
    assert!(from_guest > 0, "from the guest");
    for packet in &packets {
        let buffer = offer(&mut driver, packet.len());
        assert!(link.send(0, packet));
        assert_eq!(received(&mut driver, &[buffer]), in_buffers(packet, 1));
    }
    assert!(waits() > from_guest, "to the guest");
    assert_eq!(host.stat(DomId(1)).stats.dropped.to_guest, 0);
    end(host, &ends, driver);
}

#[test]
fn packet_uses_as_many_mergeable_buffers_as_needed() {
    for mut net in TestNet::each_way() {
        net.driver.start_with(2);
        let buffers: Vec<_> = (0..7).map(|_| offer(&mut net.driver, 1000)).collect();
        let (large, exact, small) = (packet(2500, 3), packet(2000 - HEADER, 4), packet(60, 5));
        for packet in [&large, &exact, &small] {
            assert!(net.link.send(0, packet));
        }
        assert_eq!(received(&mut net.driver, &buffers[..3]), in_buffers(&large, 3));
        assert_eq!(received(&mut net.driver, &buffers[3..5]), in_buffers(&exact, 2));
        assert_eq!(received(&mut net.driver, &buffers[5..6]), in_buffers(&small, 1));
        // The last buffer waits for the next packet and is not mapped meanwhile.
        assert_eq!(net.host.hypervisor.mapped_pages(DomId(1)), 1 + 2 * 3);
        assert!(net.link.send(0, &small));
        assert_eq!(received(&mut net.driver, &buffers[6..]), in_buffers(&small, 1));
    }
}

#[test]
fn packets_that_arrive_together_are_delivered_together() {
    for mut net in TestNet::each_way() {
        net.driver.start_with(2);
        // The packets wait for the first buffer.
        let packets: Vec<_> = (0..10).map(|seed| packet(700, seed)).collect();
        assert!(net.link.send_together(0, &packets));
        net.driver.status();
        net.driver.use_queue(RECEIVE);
        let buffers: Vec<_> =
            (0..10).map(|_| net.driver.share(&[0; 1000], Access::ReadWrite)).collect();
        let before = net.host.hypervisor.map_calls();
        let (ring, guest) = net.driver.ring();
        for buffer in &buffers {
            ring.add(guest, &[buffer.writable()]);
        }
        ring.doorbell.notify();
        for (seed, buffer) in buffers.into_iter().enumerate() {
            let expected = in_buffers(&packet(700, seed as u8), 1);
            assert_eq!(received(&mut net.driver, &[buffer]), expected);
        }
        let copies = net.host.stat(DomId(1)).stats.counts.copies;
        assert_eq!((copies, net.host.hypervisor.map_calls() - before), (1, 0));
    }
}

#[test]
fn batched_packets_keep_their_order_both_ways() {
    for mut net in TestNet::each_way() {
        net.driver.start_with(2);
        // One of these has no frame and is dropped.
        let sent: Vec<_> =
            [300, 0, 1000, 60, 1500].map(|length| packet(length, length as u8)).into();
        net.driver.use_queue(TRANSMIT);
        let shared: Vec<_> =
            sent.iter().map(|packet| net.driver.share(packet, Access::ReadOnly)).collect();
        let (ring, guest) = net.driver.ring();
        for packet in &shared {
            ring.add(guest, &[packet.readable()]);
        }
        ring.doorbell.notify();
        for (packet, shared) in sent.iter().zip(&shared) {
            net.driver.wait_used();
            net.driver.unshare(shared);
            if packet.len() > HEADER {
                assert!(net.link.next().1 == *packet, "the packet of {} bytes", packet.len());
            }
        }
        assert_eq!(net.host.stat(DomId(1)).stats.dropped.from_guest, 1);

        let buffers: Vec<_> = (0..8).map(|_| offer(&mut net.driver, 2000)).collect();
        let packets: Vec<_> = (1..=8).map(|seed| packet(100 * seed, seed as u8)).collect();
        for packet in &packets {
            assert!(net.link.send(0, packet));
        }
        for (buffer, packet) in buffers.into_iter().zip(&packets) {
            assert_eq!(received(&mut net.driver, &[buffer]), in_buffers(packet, 1));
        }
    }
}

#[test]
fn packet_too_large_for_the_buffers_is_dropped_alone() {
    for mut net in TestNet::each_way() {
        let features = 1 << F_VERSION_1 | 1 << F_ACCESS_PLATFORM | 1 << VIRTIO_NET_F_MAC;
        // Without mergeable buffers a packet uses one; with them, up to the ring's 16.
        for (features, length) in [(features, 100), (features | 1 << VIRTIO_NET_F_MRG_RXBUF, 1601)]
        {
            let dropped = net.host.stat(DomId(1)).stats.dropped.to_guest;
            net.driver.start_accepting(features, 2);
            let buffers: Vec<_> = (0..16).map(|_| offer(&mut net.driver, 100)).collect();
            assert!(net.link.send(0, &packet(length, 1)));
            assert!(net.link.send(0, &packet(80, 2)));
            let (first, rest) = buffers.split_first().unwrap();
            net.driver.use_queue(RECEIVE);
            let (_, written) = net.driver.wait_used();
            let bytes = net.driver.unshare(first);
            assert_eq!(bytes[..written as usize], in_buffers(&packet(80, 2), 1));
            assert_eq!(net.host.stat(DomId(1)).stats.dropped.to_guest, dropped + 1);
            net.driver.reset_device();
            rest.iter().for_each(|buffer| drop(net.driver.unshare(buffer)));
            net.driver.free_rings();
        }
        net.driver.start_with(2);
    }
}

#[test]
fn driver_without_checksum_offload_gets_no_flags() {
    let mut net = TestNet::connect();
    let least = 1 << F_VERSION_1 | 1 << F_ACCESS_PLATFORM;
    for (features, flags) in [(least, 0), (least | 1 << VIRTIO_NET_F_GUEST_CSUM, 2)] {
        net.driver.start_accepting(features, 2);
        let buffer = offer(&mut net.driver, 2000);
        let mut valid = packet(60, 1);
        // VIRTIO_NET_HDR_F_DATA_VALID, which the kernel sets on its own.
        valid[0] = 2;
        assert!(net.link.send(0, &valid));
        assert_eq!(received(&mut net.driver, &[buffer])[0], flags);
        net.driver.reset_device();
        net.driver.free_rings();
    }
    net.driver.start_with(2);
}

#[test]
fn guest_without_buffers_keeps_a_bounded_number_of_packets() {
    for mut net in TestNet::each_way() {
        net.driver.start_with(2);
        let mut kept = 200u32;
        let first: Vec<_> = (0..kept).map(|seed| packet(60, seed as u8)).collect();
        assert!(net.link.send_together(0, &first));
        // Until the cable is full, which a file is a little later: the device takes so many packets
        // and no more.
        let mut refused = 0;
        while refused < 1000 {
            if net.link.send(0, &packet(60, kept as u8)) {
                kept += 1
            } else {
                refused += 1
            }
            net.driver.status();
        }
        assert!(kept as usize <= LINK_CAPACITY + 128, "{kept} packets kept");
        for seed in 0..kept {
            let buffer = offer(&mut net.driver, 1000);
            assert_eq!(
                received(&mut net.driver, &[buffer]),
                in_buffers(&packet(60, seed as u8), 1)
            );
        }
    }
}

#[test]
fn unsendable_packet_is_dropped_and_its_buffer_returned() {
    let mut net = TestNet::connect();
    net.driver.start_with(2);
    net.link.set_link(LinkState::Down);
    send(&mut net.driver, &packet(60, 1), &[HEADER + 60]);
    net.link.set_link(LinkState::Up);
    // No frame after the header, and a frame that is too long.
    send(&mut net.driver, &packet(0, 1), &[HEADER]);
    send(&mut net.driver, &packet(MAX_PACKET + 1 - HEADER, 1), &[MAX_PACKET + 1]);
    send(&mut net.driver, &packet(61, 2), &[HEADER + 61]);
    assert_eq!(net.link.next(), (0, packet(61, 2)));
    assert_eq!(net.host.stat(DomId(1)).stats.dropped.from_guest, 3);
}

#[test]
fn wrong_direction_buffer_is_a_fault_of_that_device_only() {
    for (queue, word) in [(RECEIVE, "receive queue"), (TRANSMIT, "transmit queue")] {
        let host = Host::start();
        let (ends, mut driver, cable) = add(&host, 1);
        let (other_ends, mut other, other_cable) = add(&host, 2);
        driver.start_with(2);
        other.start_with(2);
        driver.use_queue(queue);
        let buffer = driver.share(&[0; 100], Access::ReadWrite);
        let wrong = if queue == RECEIVE { buffer.readable() } else { buffer.writable() };
        driver.submit(&[wrong]);
        cable.send(0, &packet(60, 1));
        while driver.wait_config_event() & DEVICE_NEEDS_RESET == 0 {}
        let why = host.stat(DomId(1)).stats.state.needs_reset.unwrap();
        assert!(why.contains(word), "{word:?} is not in {why:?}");
        driver.unshare(&buffer);
        send(&mut other, &packet(60, 1), &[HEADER + 60]);
        assert_eq!(other_cable.next().0, 0);
        other.close();
        host.remove(&other_ends);
        // A reset clears the fault.
        driver.reset_device();
        driver.free_rings();
        driver.start_with(2);
        send(&mut driver, &packet(60, 2), &[HEADER + 60]);
        assert_eq!(cable.next(), (0, packet(60, 2)));
        end(host, &ends, driver);
    }
}

#[test]
fn spec_6_5_interface_missing_at_driver_ok_sends_an_event() {
    let mut net = TestNet::connect();
    let offered = net.driver.offered();
    net.driver.negotiate(offered);
    (0..2).for_each(|index| net.driver.add_ring(index));
    net.link.tear();
    let ready = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
    assert_eq!(net.driver.set_status(ready), ready | DEVICE_NEEDS_RESET);
    // The event is sent although the response has the status: the net.driver need not check that.
    assert_eq!(net.driver.wait_config_event(), ready | DEVICE_NEEDS_RESET);
}

#[test]
fn removed_interface_is_a_fault() {
    for mut net in TestNet::each_way() {
        net.driver.start_with(2);
        net.link.tear();
        while net.driver.wait_config_event() & DEVICE_NEEDS_RESET == 0 {}
        let why = net.host.stat(DomId(1)).stats.state.needs_reset.unwrap();
        assert!(why.contains("network interface"), "{why}");
    }
}

#[test]
fn reset_drops_packets_for_the_next_driver() {
    for mut net in TestNet::each_way() {
        assert!(!net.link.send(0, &packet(60, 1)), "no net.driver is ready yet");
        net.driver.start_with(2);
        let buffer = offer(&mut net.driver, 100);
        (0..5).for_each(|seed| assert!(net.link.send(0, &packet(60, seed))));
        assert_eq!(received(&mut net.driver, &[buffer])[HEADER..], packet(60, 0)[HEADER..]);
        let left = offer(&mut net.driver, 50);
        net.driver.reset_device();
        assert_eq!(net.host.hypervisor.mapped_pages(DomId(1)), 1, "the message page");
        net.driver.unshare(&left);
        net.driver.free_rings();
        assert!(!net.link.send(0, &packet(60, 9)), "no net.driver is ready any more");
        net.driver.start_with(2);
        let buffer = offer(&mut net.driver, 100);
        assert!(net.link.send(0, &packet(60, 10)));
        assert_eq!(received(&mut net.driver, &[buffer]), in_buffers(&packet(60, 10), 1));
    }
}
