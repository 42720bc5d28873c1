//! Tests of a network device's options: address, bridge, queues, link.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_MQ,
    VIRTIO_NET_S_ANNOUNCE,
};

use super::driver::Driver;
use super::host::{Ends, Host, in_processes};
use super::network::{HEADER, TRANSMIT, add, packet, received, send};
use crate::device::net::interface::Offload;
use crate::device::net::{LinkState, MacAddress};
use xen::Access;
use xen::DomId;

const UUID: &str = "3b6a5f0c-9d52-4a3f-8d55-1e2f4c6b7a89";
/// Queue numbers of a device with three pairs.
const RECEIVE_1: usize = 2;
const TRANSMIT_1: usize = 3;
const CONTROL: usize = 6;
/// In the low byte of the status in the configuration.
const ANNOUNCE: u8 = VIRTIO_NET_S_ANNOUNCE as u8;

fn published(host: &Host, ends: &Ends, key: &str) -> Option<String> {
    host.hypervisor.store_read(&format!("{}/{key}", ends.backend))
}

fn end(host: Host, ends: &Ends, driver: Driver) {
    driver.close();
    host.remove(ends);
    host.finish();
}

/// Sends a control command to a device with three pairs; returns its status byte.
fn command(driver: &mut Driver, bytes: &[u8]) -> u8 {
    command_in(CONTROL, driver, bytes)
}

fn command_in(queue: usize, driver: &mut Driver, bytes: &[u8]) -> u8 {
    driver.use_queue(queue);
    let (question, status) =
        (driver.share(bytes, Access::ReadOnly), driver.share(&[0xff], Access::ReadWrite));
    let head = driver.submit(&[question.readable(), status.writable()]);
    assert_eq!(driver.wait_used(), (head, 1));
    driver.unshare(&question);
    driver.unshare(&status)[0]
}

#[test]
fn mac_address_derives_from_the_uuid_and_is_published() {
    let host = Host::start();
    host.hypervisor.store_write("/local/domain/1/vm", &format!("/vm/{UUID}-1"));
    let (ends, mut driver, _) = add(&host, 1);
    let mac = MacAddress::of_device(UUID, 0);
    let config = driver.config(0, 12);
    assert_eq!(config[..6], mac.bytes());
    assert_eq!(config[8..], [1, 0, 0xdc, 0x05], "one pair, an MTU of 1500");
    assert_eq!(published(&host, &ends, "mac"), Some(mac.to_string()));
    // In processes, interfaces of these tests are none of the supervisor's: see `processes`.
    if !in_processes() {
        assert_eq!(published(&host, &ends, "tap").as_deref(), Some("virtio1.0"));
        assert_eq!(published(&host, &ends, "bridge").as_deref(), Some("xenbr0"));
    }
    end(host, &ends, driver);
}

#[test]
fn mac_address_is_random_if_the_uuid_is_unreadable() {
    let host = Host::start();
    host.hypervisor.store_write("/local/domain/1/vm", &format!("/vm/{UUID}"));
    host.hypervisor.store_deny("/local/domain/1/vm");
    let (ends, mut driver, _) = add(&host, 1);
    let config = driver.config(0, 6);
    assert_eq!(config[0] & 3, 2, "a locally administered unicast address");
    assert_ne!(config, MacAddress::of_device(UUID, 0).bytes());
    end(host, &ends, driver);
}

#[test]
fn guest_sees_the_speed_of_the_interface() {
    let host = Host::start();
    let (ends, mut driver, _) = add(&host, 1);
    assert_eq!(driver.config(12, 5), [0x10, 0x27, 0, 0, 1], "10000 Mbit/s, full duplex");
    end(host, &ends, driver);
}

#[test]
fn guest_changes_its_mac_address_unless_it_is_locked() {
    const MAC: [u8; 6] = [0, 0x16, 0x3e, 0, 0, 5];
    const OTHER: [u8; 6] = [0, 0x16, 0x3e, 0, 0, 6];
    for (is_locked, status) in [(false, 0), (true, 1)] {
        let host = Host::start();
        host.configure(&format!(
            "[domain.web1.virtio.0.net]\nmac = \"00:16:3e:00:00:05\"\nlock-mac = {is_locked}",
        ));
        host.hypervisor.store_write("/local/domain/1/name", "web1");
        let (ends, mut driver, _) = add(&host, 1);
        driver.start_with(3);
        let mut set = |bytes: [u8; 6]| command_in(2, &mut driver, &[&[1, 1], &bytes[..]].concat());
        assert_eq!(set(MAC), 0, "its own");
        assert_eq!(set([0xff; 6]), 1, "no station's");
        assert_eq!(set(OTHER), status);
        let config = driver.config(0, 6);
        assert_eq!(config, if is_locked { MAC } else { OTHER });
        assert_eq!(command_in(2, &mut driver, &[1, 1, 0]), 1, "too short");
        driver.reset_device();
        driver.free_rings();
        assert_eq!(driver.config(0, 6), MAC, "as before the driver");
        end(host, &ends, driver);
    }
}

#[test]
fn configuration_sets_address_interface_bridge_and_queues() {
    let host = Host::start();
    host.configure(
        "[default.net]\nbridge = \"nosuch\"\nqueues = 2\n\
         [domain.web1.virtio.0.net]\nmac = \"00:16:3e:01:02:03\"\ntap = \"web1\"\nbridge = \"none\"",
    );
    host.hypervisor.store_write("/local/domain/1/name", "web1");
    let ends = host.add("virtio", 1, 0, &[("type", "virtio,device1")]);
    let mut driver = host.connect(&ends);
    assert_eq!(host.network.names(), ["web1"]);
    assert_eq!(driver.config(0, 10), [0, 0x16, 0x3e, 1, 2, 3, 0, 0, 2, 0]);
    assert_eq!(published(&host, &ends, "bridge"), None);
    end(host, &ends, driver);
}

/// An IPv4 packet behind its headers, whose source has this last byte, in frames of the MAC address
/// 00:16:3e:00:00:05.
fn ipv4_from(last: u8, length: usize) -> Vec<u8> {
    let mut bytes = packet(length, last);
    let frame = &mut bytes[HEADER..];
    frame[6..14].copy_from_slice(&[0, 0x16, 0x3e, 0, 0, 5, 8, 0]);
    frame[26..30].copy_from_slice(&[192, 0, 2, last]);
    bytes
}

#[test]
fn locked_guest_sends_from_its_own_addresses_alone() {
    for is_file in [false, true] {
        let host = Host::start();
        host.configure(
            "[domain.web1.virtio.0.net]\nmac = \"00:16:3e:00:00:05\"\n\
             lock-addresses = [\"192.0.2.5\"]",
        );
        host.hypervisor.store_write("/local/domain/1/name", "web1");
        let (ends, mut driver, cable) = add(&host, 1);
        if is_file {
            cable.use_messages();
        }
        driver.start_with(2);
        let frames = [(5, 60), (6, 60), (5, 1400), (6, 1400), (5, 200)];
        driver.use_queue(TRANSMIT);
        let frames = frames.map(|(last, length)| ipv4_from(last, length));
        // Several at once, as with segments in several buffers.
        let shared = frames.each_ref().map(|frame| driver.share(frame, Access::ReadOnly));
        let (ring, guest) = driver.ring();
        for frame in &shared {
            ring.add(guest, &[frame.readable()]);
        }
        ring.doorbell.notify();
        for frame in &shared {
            driver.wait_used();
            driver.unshare(frame);
        }
        // One alone, whose begin is in several buffers.
        send(&mut driver, &frames[3], &[10, 20, 30, 1352]);
        send(&mut driver, &frames[2], &[10, 20, 30, 1352]);
        for own in [0, 2, 4, 2] {
            assert!(cable.next().1 == frames[own], "{is_file} {own}");
        }
        assert_eq!(host.stat(DomId(1)).stats.dropped.from_guest, 3);
        end(host, &ends, driver);
    }
}

#[test]
fn missing_bridge_refuses_the_device_by_name() {
    let host = Host::start();
    host.configure("[default.net]\nbridge = \"xenbr7\"");
    let ends = host.add("virtio", 1, 0, &[("type", "virtio,device1")]);
    host.hypervisor.store_wait(&format!("{}/state", ends.backend), None);
    let error = host.error(&ends).unwrap();
    assert!(error.contains("no bridge xenbr7"), "{error}");
    assert_eq!(host.network.names(), [""; 0]);
    host.hypervisor.store_remove(&ends.backend);
    host.finish();
}

#[test]
fn interface_is_in_the_vlans_of_the_configuration() {
    let own = "[domain.web1.virtio.0.net]\n";
    for (text, vlans) in [
        (format!("{own}vlan = \"20/10p\""), Some("10p/20")),
        (format!("{own}vlan = \"none\"\n[default.net]\nvlan = \"7\""), None),
        ("[default.net]\nvlan = \"7\"".to_owned(), Some("7p")),
    ] {
        let host = Host::start();
        host.configure(&text);
        host.hypervisor.store_write("/local/domain/1/name", "web1");
        let (ends, driver, _) = add(&host, 1);
        assert_eq!(host.network.link("virtio1.0").vlans().as_deref(), vlans, "{text}");
        end(host, &ends, driver);
    }
}

#[test]
fn device_that_would_not_be_in_its_vlans_is_refused() {
    let refused = |text: &str, why: &str| {
        let host = Host::start();
        host.configure(text);
        host.hypervisor.store_deny("/local/domain/1/name");
        let ends = host.add("virtio", 1, 0, &[("type", "virtio,device1")]);
        host.hypervisor.store_wait(&format!("{}/state", ends.backend), None);
        let error = host.error(&ends).unwrap();
        assert!(error.contains(why), "{error}");
        assert_eq!(host.network.names(), [""; 0]);
        host.hypervisor.store_remove(&ends.backend);
        host.finish();
    };
    refused("[default.net]\nvlan = \"7\"\nscript = \"/etc/route\"", "no effect on a script");
    refused("[default.net]\nvlan = \"7/8\"", "append p to its number");
    for own in [
        "bridge = \"none\"",
        "script = \"/etc/route\"",
        "vlan = \"7\"",
        "lock-mac = true",
        "lock-addresses = [\"192.0.2.1\"]",
    ] {
        let text = format!("[domain.web1.virtio.0.net]\n{own}");
        refused(&text, "the guest's name cannot be read");
    }
}

#[test]
fn host_passes_only_offloads_that_the_driver_accepted() {
    let host = Host::start();
    let (ends, mut driver, cable) = add(&host, 1);
    let offered = driver.offered();
    let (tso4, tso6, ecn) =
        (1 << VIRTIO_NET_F_GUEST_TSO4, 1 << VIRTIO_NET_F_GUEST_TSO6, 1 << VIRTIO_NET_F_GUEST_ECN);
    let cases: [(u64, &[Offload]); 3] = [
        (offered, &[Offload::Checksum, Offload::Tso4, Offload::Tso6, Offload::TsoEcn]),
        (offered & !(tso6 | ecn), &[Offload::Checksum, Offload::Tso4]),
        (offered & !(tso4 | tso6 | ecn | 1 << VIRTIO_NET_F_GUEST_CSUM), &[]),
    ];
    for (features, offloads) in cases {
        driver.start_accepting(features, 2);
        assert_eq!(cable.offloads(), offloads);
        driver.reset_device();
        driver.free_rings();
    }
    driver.start_with(2);
    end(host, &ends, driver);
}

#[test]
fn device_with_one_pair_does_not_offer_several() {
    let host = Host::start();
    let (ends, mut driver, _) = add(&host, 1);
    let features = 1 << VIRTIO_NET_F_MQ | 1 << VIRTIO_NET_F_CTRL_VQ;
    assert_eq!(driver.offered() & features, 1 << VIRTIO_NET_F_CTRL_VQ);
    end(host, &ends, driver);
}

#[test]
fn device_that_starts_asks_the_guest_to_announce_itself_until_it_does() {
    let host = Host::start();
    let (ends, mut driver, _) = add(&host, 1);
    assert_eq!(driver.config(6, 2)[0] & ANNOUNCE, 0);
    for _ in 0..2 {
        driver.start_with(3);
        driver.wait_config_event();
        assert_eq!(driver.config(6, 2)[0] & ANNOUNCE, ANNOUNCE);
        assert_eq!(command_in(2, &mut driver, &[3, 0]), 0);
        assert_eq!(driver.config(6, 2)[0] & ANNOUNCE, 0);
        assert_eq!(command_in(2, &mut driver, &[3, 1]), 1, "the class has no other command");
        driver.reset_device();
        driver.free_rings();
    }
    let features = driver.offered() & !(1 << VIRTIO_NET_F_GUEST_ANNOUNCE);
    driver.start_accepting(features, 2);
    assert_eq!(driver.config(6, 2)[0] & ANNOUNCE, 0, "the driver does not know how");
    end(host, &ends, driver);
}

#[test]
fn driver_sets_the_number_of_pairs() {
    let host = Host::start();
    host.configure("[default.net]\nqueues = 3");
    let (ends, mut driver, cable) = add(&host, 1);
    driver.start_with(7);
    assert_eq!(cable.pairs(), 1, "one pair until the driver enables more");
    assert_eq!(command(&mut driver, &[4, 0, 3, 0]), 0);
    assert_eq!(cable.pairs(), 3);

    driver.use_queue(RECEIVE_1);
    let buffer = driver.share(&[0; 100], Access::ReadWrite);
    driver.submit(&[buffer.writable()]);
    assert!(cable.send(1, &packet(60, 1)));
    driver.wait_used();
    assert_eq!(driver.unshare(&buffer)[12..72], packet(60, 1)[12..]);
    driver.use_queue(TRANSMIT_1);
    let sent = driver.share(&packet(60, 2), Access::ReadOnly);
    driver.submit(&[sent.readable()]);
    driver.wait_used();
    assert_eq!(cable.next(), (1, packet(60, 2)));

    // Fewer again: packets left in the second transmit queue leave through the first pair.
    assert_eq!(command(&mut driver, &[4, 0, 1, 0]), 0);
    assert!(!cable.send(1, &packet(60, 3)));
    driver.use_queue(TRANSMIT_1);
    driver.submit(&[sent.readable()]);
    driver.wait_used();
    assert_eq!(cable.next(), (0, packet(60, 2)));
    driver.unshare(&sent);
    end(host, &ends, driver);
}

#[test]
fn pairs_get_their_packets_whatever_the_others_do() {
    let host = Host::start();
    host.configure("[default.net]\nqueues = 3");
    let (ends, mut driver, cable) = add(&host, 1);
    cable.use_messages();
    driver.start_with(7);
    let offer = |driver: &mut Driver, queue| {
        driver.use_queue(queue);
        let buffer = driver.share(&[0; 100], Access::ReadWrite);
        driver.submit(&[buffer.writable()]);
        buffer
    };
    let take = |driver: &mut Driver, queue, buffer| {
        driver.use_queue(queue);
        driver.wait_used();
        driver.unshare(&buffer)[HEADER..HEADER + 60].to_vec()
    };
    // The driver fills its receive queues before it enables the pairs, and rings no more.
    let early = offer(&mut driver, RECEIVE_1);
    assert_eq!(command(&mut driver, &[4, 0, 3, 0]), 0);
    assert!(cable.send(1, &packet(60, 9)));
    assert_eq!(take(&mut driver, RECEIVE_1, early), packet(60, 9)[HEADER..]);
    // Doorbells of one pair while packets of another arrive.
    for round in 0..100 {
        let second = offer(&mut driver, RECEIVE_1);
        assert!(cable.send(1, &packet(60, round)));
        let first = offer(&mut driver, 0);
        assert!(cable.send(0, &packet(60, round)));
        assert_eq!(take(&mut driver, RECEIVE_1, second), packet(60, round)[HEADER..]);
        assert_eq!(take(&mut driver, 0, first), packet(60, round)[HEADER..]);
    }
    end(host, &ends, driver);
}

#[test]
fn pair_without_buffers_leaves_the_others_their_packets() {
    let host = Host::start();
    host.configure("[default.net]\nqueues = 3");
    let (ends, mut driver, cable) = add(&host, 1);
    cable.use_messages();
    driver.start_with(7);
    assert_eq!(command(&mut driver, &[4, 0, 3, 0]), 0);
    for round in 0..3 {
        // More than the device has room for, though it may take them one by one.
        for seed in 0..50 {
            assert!(cable.send(0, &packet(60, seed)));
            driver.status();
        }
        driver.use_queue(RECEIVE_1);
        let buffer = driver.share(&[0; 100], Access::ReadWrite);
        driver.submit(&[buffer.writable()]);
        assert!(cable.send(1, &packet(60, round)));
        driver.wait_used();
        assert_eq!(driver.unshare(&buffer)[12..72], packet(60, round)[12..]);
    }
    // They are delivered once there are buffers.
    driver.use_queue(0);
    for seed in (0..3).flat_map(|_| 0..50) {
        let buffer = driver.share(&[0; 100], Access::ReadWrite);
        driver.submit(&[buffer.writable()]);
        driver.wait_used();
        assert_eq!(driver.unshare(&buffer)[12..72], packet(60, seed)[12..]);
    }
    end(host, &ends, driver);
}

#[test]
fn invalid_and_unknown_commands_change_nothing() {
    let host = Host::start();
    host.configure("[default.net]\nqueues = 3");
    let (ends, mut driver, cable) = add(&host, 1);
    driver.start_with(7);
    assert_eq!(command(&mut driver, &[4, 0, 2, 0]), 0);
    let cases: [&[u8]; 7] = [
        &[4, 0, 0, 0],
        &[4, 0, 4, 0],
        &[4, 0, 2, 1],
        &[4, 0, 2],
        &[4],
        &[4, 0, 2, 0, 0],
        &[0, 0, 1],
    ];
    for wrong in cases {
        assert_eq!(command(&mut driver, wrong), 1, "{wrong:?}");
    }
    assert_eq!(cable.pairs(), 2);
    end(host, &ends, driver);
}

#[test]
fn control_queue_without_multiqueue_is_the_third() {
    let host = Host::start();
    host.configure("[default.net]\nqueues = 3");
    let (ends, mut driver, cable) = add(&host, 1);
    let offered = driver.offered();
    driver.start_accepting(offered & !(1 << VIRTIO_NET_F_MQ), 3);
    driver.use_queue(2);
    let (question, status) =
        (driver.share(&[0, 0, 1], Access::ReadOnly), driver.share(&[9], Access::ReadWrite));
    driver.submit(&[question.readable(), status.writable()]);
    driver.wait_used();
    driver.unshare(&question);
    assert_eq!(driver.unshare(&status), [1]);
    driver.use_queue(0);
    let buffer = driver.share(&[0; 100], Access::ReadWrite);
    driver.submit(&[buffer.writable()]);
    assert!(cable.send(0, &packet(60, 1)));
    assert_eq!(received(&mut driver, &[buffer])[12..], packet(60, 1)[12..]);
    end(host, &ends, driver);
}

#[test]
fn link_changes_send_config_events() {
    let host = Host::start();
    let (ends, mut driver, cable) = add(&host, 1);
    let features = driver.offered() & !(1 << VIRTIO_NET_F_GUEST_ANNOUNCE);
    driver.start_accepting(features, 2);
    assert_eq!(driver.config(6, 2), [1, 0]);
    for (link, status) in [(LinkState::Down, 0), (LinkState::Up, 1)] {
        cable.set_link(link);
        while driver.config(6, 2) != [status, 0] {
            driver.wait_config_event();
        }
    }
    end(host, &ends, driver);
}

#[test]
fn guests_with_one_uuid_are_served_with_a_note_of_the_same_address() {
    let host = Host::start();
    let uuid = "3b6a5f0c-9d52-4a3f-8d55-1e2f4c6b7a89";
    let ends = [1, 2].map(|guest| {
        host.hypervisor.store_write(&format!("/local/domain/{guest}/vm"), &format!("/vm/{uuid}"));
        let ends = host.add("virtio", guest, 0, &[("type", "virtio,device1")]);
        host.wait_state(&ends, "2");
        ends
    });
    let said = |guest| host.stat(DomId(guest)).stats.state.details.get("same mac as").cloned();
    assert_eq!(said(1), None);
    assert_eq!(said(2).unwrap(), "virtio/0 of domain 1");
    // A removed device does not count.
    host.remove(&ends[0]);
    host.hypervisor.store_write("/local/domain/3/vm", &format!("/vm/{uuid}"));
    let third = host.add("virtio", 3, 0, &[("type", "virtio,device1")]);
    host.wait_state(&third, "2");
    assert_eq!(said(3).unwrap(), "virtio/0 of domain 2");
    host.remove(&ends[1]);
    host.remove(&third);
    host.finish();
}
