//! Tests of devices that outlive their daemon: another one takes them over.

use std::fs;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::Ordering::{Acquire, Release};

use protocol::message::{Request, Response};
use protocol::pool::PoolPage;
use protocol::status::{ACKNOWLEDGE, DEVICE_NEEDS_RESET, DRIVER_OK};
use tempfile::NamedTempFile;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};

use super::block::{OK, header, request};
use super::driver::Driver;
use super::entropy::random;
use super::host::{Ends, Host, TestDisk, TestGuest, TestNet, XVDA, numbered_disk};
use super::network::{in_buffers, offer, packet, received, send};
use super::qcow2::image;
use super::vsock::guest::Setting;
use crate::device::blk::{Target, TargetOptions};
use crate::record::{MessageMark, Record};
use xen::{Access, EventChannels, Xen};

/// Reads sector 2 of a numbered disk.
fn read(driver: &mut Driver) {
    assert_eq!(request(driver, VIRTIO_BLK_T_IN, 2, &[], 512), (OK, vec![2; 512]));
}

fn state(host: &Host, ends: &Ends) -> Option<String> {
    host.hypervisor.store_read(&format!("{}/state", ends.backend))
}

#[test]
fn spec_2_13_disk_goes_on_with_the_next_daemon() {
    let mut disk = TestDisk::start(numbered_disk(8), "w");
    for _ in 0..5 {
        read(&mut disk.driver);
        disk.host.leave();
        assert_eq!(state(&disk.host, &disk.ends).as_deref(), Some("4"));
        assert_eq!(disk.host.hypervisor.mapped_pages(disk.ends.guest), 0);
        disk.host.serve_again();
        read(&mut disk.driver);
        let written = vec![7; 512];
        assert_eq!(request(&mut disk.driver, VIRTIO_BLK_T_OUT, 3, &written, 0).0, OK);
        let (status, bytes) = request(&mut disk.driver, VIRTIO_BLK_T_IN, 3, &[], 512);
        assert_eq!((status, bytes), (OK, written));
    }
}

/// The path of the record of the first guest's disk.
fn record(host: &Host) -> PathBuf {
    host.records().join("virtio_disk-1-51712.record")
}

#[test]
fn spec_2_13_what_came_while_no_daemon_ran_is_served_by_the_next() {
    let mut disk = TestDisk::start(numbered_disk(8), "w");
    read(&mut disk.driver);
    disk.host.leave();
    let driver = &mut disk.driver;
    let head = driver.share(&header(VIRTIO_BLK_T_IN, 5), Access::ReadOnly);
    let input = driver.share(&[0; 512], Access::ReadWrite);
    let status = driver.share(&[0xff], Access::ReadWrite);
    let chain = driver.submit(&[head.readable(), input.writable(), status.writable()]);
    driver.send_silently(Request::GetDeviceStatus);
    driver.port.notify();
    disk.host.serve_again();
    let driver = &mut disk.driver;
    let status_byte = driver.wait_answer("the answer of the next daemon", |answer| match answer {
        Response::GetDeviceStatus(status) => status,
        other => panic!("{other:?}"),
    });
    assert_eq!(status_byte & (DRIVER_OK | DEVICE_NEEDS_RESET), DRIVER_OK);
    assert_eq!(driver.wait_used().0, chain);
    assert_eq!(driver.unshare(&input), vec![5; 512]);
    driver.unshare(&head);
    assert_eq!(driver.unshare(&status), [OK]);
    let stat = disk.host.stat(disk.ends.guest).stats;
    assert_eq!((stat.state.state.as_str(), stat.requests.read), ("connected", 1));
    assert!(stat.state.features.iter().any(|name| name == "VIRTIO_F_VERSION_1"));
}

/// A process dies between a request and the end of its slot: before its response is in the page,
/// and behind that.
#[test]
fn spec_2_13_request_of_a_dead_process_is_answered_once() {
    for was_sent in [true, false] {
        let (mut host, ends, mut driver, _file) = left();
        host.serve_again();
        driver.wait_config_event();
        let word =
            |driver: &Driver, at: usize| driver.guest.words(driver.page)[at / 4].load(Acquire);
        let (taken, sent) = (word(&driver, TAKEN), word(&driver, SENT));
        driver.send_silently(Request::SetDeviceStatus(ACKNOWLEDGE));
        driver.port.notify();
        driver.wait_sent_by_device(sent + 1);
        host.leave();
        driver.guest.words(driver.page)[TAKEN / 4].store(taken, Release);
        if !was_sent {
            driver.guest.words(driver.page)[SENT / 4].store(sent, Release);
        }
        host.serve_again();
        // The response, and EVENT_CONFIG.
        driver.wait_sent_by_device(sent + 2);
        assert_eq!(word(&driver, TAKEN), taken + 1, "sent: {was_sent}");
        let status = |answer: Response<'_>| match answer {
            Response::SetDeviceStatus(status) => status,
            other => panic!("{other:?}"),
        };
        assert_eq!(driver.wait_answer("the one response", status) & DRIVER_OK, DRIVER_OK);
        driver.wait_config_event();
        read(&mut driver);
        driver.close();
        host.remove(&ends);
        host.finish();
    }
}

/// Offsets in the message page of the consumer's index of the queue to the device, and of the
/// producer's index of the one to the driver [4.1].
const TAKEN: usize = 0x40;
const SENT: usize = 0x80;

#[test]
fn mark_of_a_request_that_is_done_again_is_removed_before_anything_is_sent() {
    let (mut host, ends, mut driver, _file) = left();
    let words = driver.guest.words(driver.page);
    let (taken, sent) = (words[TAKEN / 4].load(Acquire), words[SENT / 4].load(Acquire));
    // A process that died between the mark and the response to a request that changes nothing.
    set_mark(&host, MessageMark { message: taken, response: sent });
    host.serve_again();
    driver.wait_config_event();
    host.leave();
    assert_eq!(mark(&host), MessageMark::NONE);
    host.serve_again();
    driver.close();
    host.remove(&ends);
    host.finish();
}

fn open_record(host: &Host) -> Record {
    Record::open(fs::File::options().read(true).write(true).open(record(host)).unwrap()).unwrap()
}

fn mark(host: &Host) -> MessageMark {
    open_record(host).mark()
}

fn set_mark(host: &Host, mark: MessageMark) {
    open_record(host).set_mark(mark);
}

#[test]
fn queues_of_all_threads_go_on_and_a_changed_configuration_halts_none() {
    let file = numbered_disk(8);
    let mut disk = TestDisk::connect_configured(file, "w", "[default]\nthreads = 2\n");
    disk.driver.start_with(2);
    for turn in 0..3 {
        for queue in [0, 1] {
            disk.driver.use_queue(queue);
            read(&mut disk.driver);
        }
        disk.host.leave();
        disk.host.serve_again();
        // EVENT_CONFIG came with it, and no message follows.
        for queue in [1, 0, 1] {
            disk.driver.use_queue(queue);
            read(&mut disk.driver);
        }
        let grown = 16 + turn;
        disk.file.as_file().set_len(grown * 512).unwrap();
        disk.driver.use_queue(0);
        disk.wait_until_idle();
        disk.driver.use_queue(1);
        read(&mut disk.driver);
    }
    disk.driver.use_queue(0);
}

#[test]
fn pool_that_is_larger_than_a_new_limit_goes_on() {
    let file = numbered_disk(8);
    let mut disk = TestDisk::start(file, "w");
    let pooled = disk.driver.share_pool(PoolPage(0), 16);
    let before = disk.host.hypervisor.mapped_pages(disk.ends.guest);
    disk.host.leave();
    disk.host.configure("[default]\npool = 8\n");
    disk.host.serve_again();
    read(&mut disk.driver);
    assert_eq!(disk.host.hypervisor.mapped_pages(disk.ends.guest), before);
    drop(pooled);
}

#[test]
fn connection_waits_for_a_port_that_the_earlier_process_still_has() {
    let (mut host, ends, mut driver, _file) = left();
    let mut earlier = host.hypervisor.events(ends.guest).unwrap();
    earlier.bind(driver.port.port).unwrap();
    host.serve_again();
    // The daemon has tried, and tries again.
    host.wait_for_starting(ends.guest);
    assert_eq!(state(&host, &ends).as_deref(), Some("4"));
    // A stop leaves it to the daemon after that.
    host.leave();
    assert_eq!(state(&host, &ends).as_deref(), Some("4"));
    host.serve_again();
    host.wait_for_starting(ends.guest);
    drop(earlier);
    read(&mut driver);
    driver.close();
    host.remove(&ends);
    host.finish();
}

#[test]
fn driver_resets_a_device_that_was_taken_over_and_starts_it_again() {
    let mut disk = TestDisk::start(numbered_disk(8), "w");
    for _ in 0..3 {
        disk.host.leave();
        disk.host.serve_again();
        read(&mut disk.driver);
        disk.driver.reset_device();
        disk.driver.free_rings();
        // What is set up no more is not taken over.
        disk.host.leave();
        disk.host.serve_again();
        assert_eq!(disk.driver.status(), 0);
        disk.driver.start();
        read(&mut disk.driver);
    }
}

/// A disk whose daemon has left.
fn left() -> (Host, Ends, Driver, NamedTempFile) {
    let (mut host, file) = (Host::start(), numbered_disk(8));
    let ends = host.add_disk(1, XVDA, file.path(), "w");
    let mut driver = host.connect(&ends);
    driver.start();
    read(&mut driver);
    host.leave();
    (host, ends, driver, file)
}

#[test]
fn device_that_was_removed_while_no_daemon_ran_ends() {
    let (mut host, ends, mut driver, _file) = left();
    assert!(record(&host).exists());
    let key = |name| format!("{}/{name}", ends.backend);
    let (online, state) = (key("online"), key("state"));
    host.hypervisor.store_write_all([(&*online, "0"), (&*state, "5")]);
    host.serve_again();
    host.wait_state(&ends, "6");
    host.hypervisor.store_remove(&ends.frontend);
    host.hypervisor.store_remove(&ends.backend);
    driver.release();
    host.leave();
    host.serve_again();
    // The daemon has scanned XenStore when it serves another guest.
    let other = numbered_disk(8);
    let second = host.add_disk(2, XVDA, other.path(), "r");
    host.connect(&second).close();
    assert!(!record(&host).exists(), "the record of a guest that is gone");
    host.remove(&second);
    host.finish();
}

#[test]
fn device_whose_record_cannot_be_used_is_closed_with_the_reason() {
    type Damage<'a> = &'a dyn Fn(&Host, &Ends);
    let damage: [(&str, Damage<'_>); 4] = [
        ("there is no record of it", &|host, _| fs::remove_file(record(host)).unwrap()),
        ("version 255; this xen-virtiod knows 2 and older", &|host, _| overwrite(host, 8, &[0xff])),
        ("no whole state", &|host, _| overwrite(host, 4096, &[0; 32 << 10])),
        ("of another connection", &|host, ends| {
            let key = format!("{}/event-channel", ends.frontend);
            host.hypervisor.store_write(&key, "77");
        }),
    ];
    for (reason, damage) in damage {
        let (mut host, ends, mut driver, _file) = left();
        damage(&host, &ends);
        host.serve_again();
        host.wait_state(&ends, "6");
        let error = host.error(&ends).unwrap();
        assert!(error.contains(reason), "{reason}: {error}");
        driver.release();
        host.remove(&ends);
        host.finish();
    }
}

#[test]
fn connection_whose_grants_are_gone_is_closed() {
    let (mut host, ends, mut driver, _file) = left();
    driver.free_rings();
    host.serve_again();
    host.wait_state(&ends, "6");
    let error = host.error(&ends).unwrap();
    assert!(error.contains("cannot set up queue 0 again"), "{error}");
    assert_eq!(host.hypervisor.mapped_pages(ends.guest), 0);
    driver.release();
    host.remove(&ends);
    host.finish();
}

fn overwrite(host: &Host, at: u64, bytes: &[u8]) {
    let file = fs::File::options().write(true).open(record(host)).unwrap();
    file.write_all_at(bytes, at).unwrap();
}

#[test]
fn device_without_a_record_ends_with_its_daemon() {
    let (mut host, file) = (Host::start(), numbered_disk(8));
    fs::remove_dir(host.records()).unwrap();
    let ends = host.add_disk(1, XVDA, file.path(), "w");
    let mut driver = host.connect(&ends);
    host.leave();
    assert_eq!(state(&host, &ends).as_deref(), Some("6"));
    fs::create_dir(host.records()).unwrap();
    host.serve_again();
    driver.release();
    host.remove(&ends);
    host.finish();
}

/// Each write needs clusters. What was answered is in the file already: the next process reads it
/// from a copy as a kill would leave it, and from the image itself.
#[test]
fn qcow2_image_that_is_written_goes_on() {
    let mut host = Host::start();
    let (directory, path) = image(None);
    let ends = host.add_disk(1, XVDA, &path, "w");
    let mut driver = host.connect(&ends);
    driver.start();
    let killed = directory.path().join("killed.qcow2");
    let sectors = |round: u8| [0, 5 << 10].map(|sector| sector + 300 * u64::from(round));
    for round in 1..5 {
        let data = vec![round; 4096];
        for sector in sectors(round) {
            assert_eq!(request(&mut driver, VIRTIO_BLK_T_OUT, sector, &data, 0).0, OK);
        }
        fs::copy(&path, &killed).unwrap();
        let mut copy = Target::open(TargetOptions::for_test(&killed)).unwrap();
        host.leave();
        assert_eq!(state(&host, &ends).as_deref(), Some("4"));
        host.serve_again();
        for sector in sectors(round) {
            assert_eq!(copy.read_for_test(sector), [round; 512]);
            let (status, read) = request(&mut driver, VIRTIO_BLK_T_IN, sector, &[], data.len());
            assert_eq!((status, &read), (OK, &data));
        }
    }
    driver.close();
    host.remove(&ends);
    host.finish();
}

#[test]
fn entropy_device_goes_on() {
    let mut guest =
        TestGuest::connect(|host| host.add("virtio", 1, 0, &[("type", "virtio,device4")]));
    guest.driver.start();
    for _ in 0..2 {
        assert_eq!(random(&mut guest.driver, 64).len(), 64);
        guest.host.leave();
        guest.host.serve_again();
    }
    assert_eq!(random(&mut guest.driver, 64).len(), 64);
}

#[test]
fn socket_device_tells_its_driver_that_connections_are_gone() {
    let mut setting = Setting::new();
    let mut program = setting.host_connects().0;
    // One buffer for events, as the driver posts at its start.
    setting.driver.use_queue(2);
    let event = setting.driver.share(&[0xff; 8], Access::ReadWrite);
    let head = setting.driver.submit(&[event.writable()]);
    setting.host.leave();
    assert_eq!(program.read(&mut [0]).unwrap(), 0, "the program's end is closed");
    setting.host.serve_again();
    setting.driver.use_queue(2);
    assert_eq!(setting.driver.wait_used(), (head, 4));
    // VIRTIO_VSOCK_EVENT_TRANSPORT_RESET.
    assert_eq!(setting.driver.unshare(&event)[..4], [0; 4]);
    // Its socket has its name, and connections work.
    setting.host_connects();
    setting.end();
}

#[test]
fn socket_device_owes_the_event_until_there_is_a_buffer() {
    let mut setting = Setting::new();
    setting.host.leave();
    setting.host.serve_again();
    setting.driver.use_queue(2);
    let events = [(); 2].map(|()| setting.driver.share(&[0; 4], Access::ReadWrite));
    let heads = events.each_ref().map(|event| setting.driver.submit(&[event.writable()]));
    assert_eq!(setting.driver.wait_used(), (heads[0], 4));
    // One event, and no more.
    setting.host_connects();
    setting.driver.use_queue(2);
    let (ring, guest) = setting.driver.ring();
    assert_eq!(ring.used_index(guest), 1);
    events.iter().for_each(|event| drop(setting.driver.unshare(event)));
    setting.end();
}

#[test]
fn network_device_keeps_its_interface_and_its_queues() {
    let mut net = TestNet::connect();
    net.driver.start_with(2);
    for round in 1..4 {
        // A buffer that the device has taken when it is left.
        let buffer = offer(&mut net.driver, 256);
        net.host.leave();
        assert_eq!(net.host.network.names(), ["virtio1.0"]);
        net.host.serve_again();
        // Answered by the next process, which has the interface then.
        net.driver.status();
        let sent = packet(100, round);
        assert!(net.link.send(0, &sent));
        assert_eq!(received(&mut net.driver, &[buffer]), in_buffers(&sent, 1));
        send(&mut net.driver, &sent, &[sent.len()]);
        assert_eq!(net.link.next(), (0, sent));
    }
}

#[test]
fn interface_of_a_guest_that_is_gone_is_removed() {
    let mut host = Host::start();
    let ends = host.add("virtio", 1, 0, &[("type", "virtio,device1")]);
    let mut driver = host.connect(&ends);
    driver.start_with(2);
    host.leave();
    assert_eq!(host.network.names(), ["virtio1.0"]);
    driver.release();
    host.hypervisor.store_remove(&ends.backend);
    host.serve_again();
    // The first scan is over when it has found another device.
    let disk = numbered_disk(8);
    let other = host.add_disk(2, XVDA, disk.path(), "r");
    host.connect(&other).close();
    assert_eq!(host.network.names(), [""; 0]);
    host.remove(&other);
    host.finish_with_guests();
}
