//! Tests of a device whose storage keeps the driver's buffers until it is told to let go: resets
//! and the end of the device are not complete before, and yet hold nobody up for ever.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use protocol::message::{Request, Response, ShareOutcome, UnshareOutcome};
use protocol::pool::PoolPage;
use protocol::status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, F_RING_RESET, FEATURES_OK};

use super::bare_device::{BareSession, Storage, serve};
use super::host::Host;
use xen::Access;

#[test]
fn spec_6_4_reset_answers_with_another_status_until_storage_lets_go() {
    let (host, storage) = (Host::start(), Storage::hung());
    let BareSession { ends, thread, .. } = serve(&host, &storage, None);
    let mut driver = host.connect(&ends);
    driver.start();
    driver.share_pool(PoolPage(0), 2);
    let status = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
    assert_eq!(driver.set_status(0), status);
    assert_eq!(driver.ask_unshare(PoolPage(0), 2), UnshareOutcome::Refused);
    let (_, shared) = driver.try_share_pool(PoolPage(2), 2, Access::ReadWrite);
    assert_eq!(shared, ShareOutcome::Refused);
    // Nothing can be begun anew.
    assert_eq!((driver.set_status(ACKNOWLEDGE), driver.set_status(0)), (status, status));
    driver.free_rings();
    storage.let_go();
    driver.until("the reset is complete", |driver| driver.status() == 0);
    driver.close();
    host.remove(&ends);
    thread.join().unwrap();
    host.finish();
}

#[test]
fn spec_6_7_queue_reset_is_answered_when_storage_lets_go() {
    let (host, storage) = (Host::start(), Storage::hung());
    let BareSession { ends, thread, .. } = serve(&host, &storage, None);
    let mut driver = host.connect(&ends);
    let features = driver.offered() | 1 << F_RING_RESET;
    driver.start_accepting(features, 1);
    let release = Arc::clone(&storage);
    let releasing = thread::spawn(move || {
        thread::sleep(Duration::from_millis(200));
        release.let_go();
    });
    let answered = driver.ask(Request::ResetVqueue { index: 0 }, |answer| {
        assert_eq!(answer, Response::ResetVqueue);
        storage.holds()
    });
    assert!(!answered, "the queue's buffers are still in use");
    releasing.join().unwrap();
    driver.close();
    host.remove(&ends);
    thread.join().unwrap();
    host.finish();
}

#[test]
fn spec_6_6_configuration_change_that_a_queue_reset_finds_is_told_at_once() {
    let (host, storage) = (Host::start(), Storage::sound());
    let BareSession { ends, thread, .. } = serve(&host, &storage, None);
    let mut driver = host.connect(&ends);
    let features = driver.offered() | 1 << F_RING_RESET;
    driver.start_accepting(features, 1);
    storage.plan_change();
    driver.ask(Request::ResetVqueue { index: 0 }, |answer| {
        assert_eq!(answer, Response::ResetVqueue);
    });
    driver.wait_config_event();
    driver.ask(Request::GetConfig { offset: 0, size: 0 }, |answer| match answer {
        Response::GetConfig(config) => assert_eq!(config.generation, 1),
        other => panic!("{other:?}"),
    });
    driver.close();
    host.remove(&ends);
    thread.join().unwrap();
    host.finish();
}

#[test]
fn spec_2_7_toolstacks_end_does_not_wait_for_storage_for_ever() {
    let (host, storage) = (Host::start(), Storage::hung());
    let BareSession { ends, thread, .. } = serve(&host, &storage, None);
    let mut driver = host.connect(&ends);
    driver.start();
    // Waits for state 6 as libxl does, with its limit.
    host.remove(&ends);
    assert!(thread.join().unwrap(), "the device was dropped where its storage is waited for");
    assert!(storage.holds());
    driver.release();
    host.finish();
}

#[test]
fn spec_2_7_device_is_not_offered_again_before_storage_lets_go() {
    let (host, storage) = (Host::start(), Storage::hung());
    let BareSession { ends, thread, .. } = serve(&host, &storage, None);
    let mut driver = host.connect(&ends);
    driver.start();
    driver.write_state("5");
    host.wait_state(&ends, "6");
    driver.release();
    driver.write_state("1");
    let state = || host.hypervisor.store_read(&format!("{}/state", ends.backend));
    // An offer would follow at once.
    thread::sleep(Duration::from_millis(300));
    assert_eq!(state().as_deref(), Some("6"));
    storage.let_go();
    host.wait_state(&ends, "2");
    host.remove(&ends);
    thread.join().unwrap();
    host.finish();
}
