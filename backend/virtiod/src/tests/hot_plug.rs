//! Tests of devices that are attached to a guest that runs, and detached.

use std::fs;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sys::eventfd::EventFd;
use protocol::binding::F_MOVABLE;
use serde_json::Value;
use tempfile::{NamedTempFile, TempDir};
use virtio_bindings::virtio_blk::VIRTIO_BLK_T_IN;

use super::block::{OK, request};
use super::driver::Driver;
use super::host::{Ends, Host, numbered_disk};
use crate::hot_plug::attach::{AttachError, Attached, attach};
use crate::hot_plug::detach::{DetachError, Detached, Manner, detach};
use crate::hot_plug::device::{DeviceId, Wanted};
use crate::hot_plug::domain_record::DomainRecordError;
use crate::hot_plug::list::list;
use crate::hot_plug::reattach::{ReattachError, Reattached, follow, reattach};
use crate::hot_plug::retarget::{RetargetError, retarget};
use xen::{DomId, Xen};

const UUID: &str = "a566a76a-27e5-4510-a415-6da14768d411";

/// A host with a guest `web`, domain 1, as libxl has created it.
struct Setting {
    host: Host,
    records: TempDir,
    file: NamedTempFile,
    /// Readable when a command is to stop.
    stop: EventFd,
}

impl Setting {
    fn new() -> Self {
        let (host, records) = (Host::start(), tempfile::tempdir().unwrap());
        for (path, value) in [
            ("/local/domain/1/name", "web"),
            ("/local/domain/1/vm", &*format!("/vm/{UUID}")),
            ("/libxl/1/type", "pv"),
        ] {
            host.hypervisor.store_write(path, value);
        }
        let stop = EventFd::new().unwrap();
        let setting = Self { host, records, file: numbered_disk(8), stop };
        fs::write(setting.record_path(), "{}\0").unwrap();
        setting
    }

    fn record_path(&self) -> PathBuf {
        self.records.path().join(format!("userdata-d.1.{UUID}.libxl-json"))
    }

    fn record(&self) -> Value {
        let text = fs::read_to_string(self.record_path()).unwrap();
        serde_json::from_str(text.trim_end_matches('\0')).unwrap()
    }

    fn disk(&self, more: &[&str]) -> Wanted {
        let target = format!("target={}", self.file.path().display());
        let options = [target].into_iter().chain(more.iter().map(ToString::to_string));
        Wanted::parse("disk", &options.collect::<Vec<_>>()).unwrap()
    }

    fn attach(&self, wanted: &Wanted) -> Result<Attached, AttachError> {
        let store = &mut self.host.hypervisor.store().unwrap();
        attach(store, self.records.path(), self.stop.as_fd(), "web", wanted, None)
    }

    fn detach(&self, device: &str, manner: Manner) -> Result<Detached, DetachError> {
        let store = &mut self.host.hypervisor.store().unwrap();
        let device = DeviceId::parse(device).unwrap();
        detach(store, self.records.path(), self.stop.as_fd(), "web", device, manner)
    }

    /// The guest's driver of a disk that was attached.
    fn connect(&self, number: u32) -> (Ends, Driver) {
        let ends = Ends {
            guest: DomId(1),
            backend: format!("/local/domain/0/backend/virtio_disk/1/{number}"),
            frontend: format!("/local/domain/1/device/virtio_disk/{number}"),
        };
        let mut driver = self.host.connect(&ends);
        driver.start();
        (ends, driver)
    }
}

fn disk_of(target: &str) -> Wanted {
    Wanted::parse("disk", &[format!("target={target}")]).unwrap()
}

fn asked(seconds: u64) -> Manner {
    Manner::Ask(Duration::from_secs(seconds))
}

#[test]
fn disk_comes_and_goes() {
    let setting = Setting::new();
    let device = DeviceId::parse("xvda").unwrap();
    assert_eq!(setting.attach(&setting.disk(&[])).unwrap(), Attached::Now(device));
    assert_eq!(setting.record()["disks"][0]["vdev"], "xvda");
    let (ends, mut driver) = setting.connect(51712);
    let read = request(&mut driver, VIRTIO_BLK_T_IN, 2, &[], 512);
    assert_eq!(read, (OK, vec![2; 512]));
    // Once more, by its name and without.
    for more in [&[][..], &["vdev=xvda"]] {
        assert_eq!(setting.attach(&setting.disk(more)).unwrap(), Attached::Before(device));
    }
    let store = &mut setting.host.hypervisor.store().unwrap();
    let listed = list(store, Some("1")).unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!((&*listed[0].device, &*listed[0].state), ("xvda", "connected"));
    assert_eq!(list(store, None).unwrap(), listed);

    thread::scope(|scope| {
        let detaching = scope.spawn(|| setting.detach("xvda", asked(10)));
        let hypervisor = &setting.host.hypervisor;
        hypervisor.store_wait(&format!("{}/detach", ends.backend), Some("asked"));
        driver.close();
        assert_eq!(detaching.join().unwrap().unwrap(), Detached::Now);
    });
    for directory in [&*ends.frontend, &*ends.backend, "/libxl/1/device/virtio_disk/51712"] {
        assert_eq!(setting.host.hypervisor.store_read(&format!("{directory}/state")), None);
    }
    assert_eq!(setting.record(), serde_json::json!({}));
    assert_eq!(setting.detach("xvda", asked(1)).unwrap(), Detached::Before);

    // Another disk in its place.
    let other = NamedTempFile::new().unwrap();
    fs::write(other.path(), [9; 4096]).unwrap();
    let wanted = disk_of(other.path().to_str().unwrap());
    assert_eq!(setting.attach(&wanted).unwrap(), Attached::Now(device));
    let (_, mut driver) = setting.connect(51712);
    let read = request(&mut driver, VIRTIO_BLK_T_IN, 2, &[], 512);
    assert_eq!(read, (OK, vec![9; 512]));
    assert_eq!(setting.detach("xvda", Manner::Force).unwrap(), Detached::Now);
    driver.release();
    setting.host.finish();
}

/// After a restore, a driver waits for a connection in state 1.
#[test]
fn spec_2_15_guest_that_has_not_connected_is_asked() {
    let setting = Setting::new();
    setting.attach(&setting.disk(&[])).unwrap();
    let refused = setting.detach("xvda", asked(0));
    assert!(matches!(refused, Err(DetachError::Unanswered(_))), "{refused:?}");
    setting.detach("xvda", Manner::Force).unwrap();
    setting.host.finish();
}

#[test]
fn stopped_command_leaves_all_as_it_was() {
    let setting = Setting::new();
    setting.attach(&setting.disk(&[])).unwrap();
    setting.stop.write(1).unwrap();
    let stopped = setting.detach("xvda", asked(30));
    assert!(matches!(stopped, Err(DetachError::Stopped)), "{stopped:?}");
    let question = "/local/domain/0/backend/virtio_disk/1/51712/detach";
    assert_eq!(setting.host.hypervisor.store_read(question), None);
    assert_eq!(setting.record()["disks"][0]["vdev"], "xvda");
    setting.stop.read().unwrap();
    setting.detach("xvda", Manner::Force).unwrap();
    setting.host.finish();
}

#[test]
fn disk_differs_by_whether_the_guest_trusts_the_backend() {
    let setting = Setting::new();
    setting.attach(&setting.disk(&["vdev=xvda"])).unwrap();
    let differs = setting.attach(&setting.disk(&["vdev=xvda", "untrusted"])).unwrap_err();
    assert!(matches!(differs, AttachError::Taken(_)), "{differs}");
    setting.detach("xvda", Manner::Force).unwrap();
    setting.host.finish();
}

#[test]
fn spec_2_15_disk_that_the_guest_uses_stays_unless_it_is_forced() {
    let setting = Setting::new();
    setting.attach(&setting.disk(&["vdev=xvdc"])).unwrap();
    let (ends, mut driver) = setting.connect(51744);
    let unanswered = setting.detach("xvdc", asked(0));
    assert!(matches!(unanswered, Err(DetachError::Unanswered(_))), "{unanswered:?}");
    thread::scope(|scope| {
        let detaching = scope.spawn(|| setting.detach("xvdc", asked(1)));
        let hypervisor = &setting.host.hypervisor;
        let keys = [&ends.backend, &ends.frontend].map(|end| format!("{end}/detach"));
        hypervisor.store_wait(&keys[0], Some("asked"));
        hypervisor.store_write(&keys[1], "in-use");
        let refused = detaching.join().unwrap();
        assert!(matches!(refused, Err(DetachError::InUse(_))), "{refused:?}");
        assert!(keys.iter().all(|key| hypervisor.store_read(key).is_none()), "they are taken back");
    });
    let read = request(&mut driver, VIRTIO_BLK_T_IN, 2, &[], 512);
    assert_eq!(read.0, OK);
    assert_eq!(setting.record()["disks"][0]["vdev"], "xvdc");
    assert_eq!(setting.detach("xvdc", Manner::Force).unwrap(), Detached::Now);
    driver.release();
    assert_eq!(setting.record(), serde_json::json!({}));
    setting.host.finish();
}

#[test]
fn device_that_cannot_be_attached_leaves_nothing() {
    let setting = Setting::new();
    let nothing = |error: AttachError| {
        let store = &mut setting.host.hypervisor.store().unwrap();
        assert_eq!(list(store, None).unwrap(), [], "{error}");
        assert_eq!(setting.record(), serde_json::json!({}), "{error}");
        error
    };
    let missing = nothing(setting.attach(&disk_of("/no/such/file")).unwrap_err());
    assert!(matches!(missing, AttachError::Target { .. }), "{missing}");
    let directory = nothing(setting.attach(&disk_of("/")).unwrap_err());
    assert!(matches!(directory, AttachError::Kind(_)), "{directory}");
    // The daemon refuses what is smaller than a block.
    let empty = NamedTempFile::new().unwrap();
    let refused = nothing(setting.attach(&disk_of(empty.path().to_str().unwrap())).unwrap_err());
    assert!(
        matches!(&refused, AttachError::Refused(why) if why.contains("less than")),
        "{refused}"
    );
    setting.host.hypervisor.store_write("/libxl/1/device/vbd/51712/state", "4");
    let both = nothing(setting.attach(&setting.disk(&[])).unwrap_err());
    assert!(matches!(both, AttachError::OtherDisks(DomId(1))), "{both}");
    setting.host.finish();
}

#[test]
fn disk_goes_on_with_another_target_or_with_the_earlier_one() {
    let setting = Setting::new();
    setting.attach(&setting.disk(&[])).unwrap();
    let (_, mut driver) = setting.connect(51712);
    let other = NamedTempFile::new().unwrap();
    fs::write(other.path(), [9; 8192]).unwrap();
    let to = |path: &std::path::Path| {
        let store = &mut setting.host.hypervisor.store().unwrap();
        let device = DeviceId::parse("xvda").unwrap();
        retarget(store, setting.records.path(), setting.stop.as_fd(), "web", device, path)
    };
    let read = |driver: &mut Driver| request(driver, VIRTIO_BLK_T_IN, 2, &[], 512);
    assert_eq!(read(&mut driver), (OK, vec![2; 512]));
    to(other.path()).unwrap();
    assert_eq!(read(&mut driver), (OK, vec![9; 512]));
    assert_eq!(setting.record()["disks"][0]["pdev_path"], other.path().to_str().unwrap());
    // What is no target.
    let smaller = to(setting.file.path()).unwrap_err();
    assert!(matches!(smaller, RetargetError::Smaller { .. }), "{smaller}");
    let used = NamedTempFile::with_suffix(".qcow2").unwrap();
    fs::write(used.path(), [0; 16384]).unwrap();
    let refused = to(used.path()).unwrap_err();
    assert!(matches!(refused, RetargetError::Refused(_)), "{refused}");
    assert_eq!(read(&mut driver), (OK, vec![9; 512]));
    assert_eq!(setting.record()["disks"][0]["pdev_path"], other.path().to_str().unwrap());
    driver.close();
    setting.detach("xvda", Manner::Force).unwrap();
    setting.host.finish();
}

#[test]
fn target_is_taken_back_if_no_daemon_has_begun() {
    let mut setting = Setting::new();
    setting.attach(&setting.disk(&[])).unwrap();
    let (_, mut driver) = setting.connect(51712);
    setting.host.leave();
    let other = NamedTempFile::new().unwrap();
    fs::write(other.path(), [9; 8192]).unwrap();
    setting.stop.write(1).unwrap();
    let store = &mut setting.host.hypervisor.store().unwrap();
    let device = DeviceId::parse("xvda").unwrap();
    let (records, stop) = (setting.records.path(), setting.stop.as_fd());
    let stopped = retarget(store, records, stop, "web", device, other.path());
    assert!(matches!(stopped, Err(RetargetError::Stopped)), "{stopped:?}");
    let before = setting.file.path().to_str().unwrap();
    assert_eq!(setting.record()["disks"][0]["pdev_path"], before);
    let key = |key: &str| {
        let path = format!("/local/domain/0/backend/virtio_disk/1/51712/{key}");
        setting.host.hypervisor.store_read(&path)
    };
    assert_eq!(
        (key("params").as_deref(), key("retarget"), key("error")),
        (Some(before), None, None)
    );
    setting.stop.read().unwrap();
    setting.host.serve_again();
    let read = request(&mut driver, VIRTIO_BLK_T_IN, 2, &[], 512);
    assert_eq!(read, (OK, vec![2; 512]));
    driver.close();
    setting.detach("xvda", Manner::Force).unwrap();
    setting.host.finish();
}

#[test]
fn domain_of_another_toolstack_has_no_record() {
    let setting = Setting::new();
    setting.host.hypervisor.store_remove("/libxl/1/type");
    fs::remove_file(setting.record_path()).unwrap();
    let rng = Wanted::parse("rng", &[]).unwrap();
    for number in 0..2 {
        let device = DeviceId::parse(&format!("virtio/{number}")).unwrap();
        assert_eq!(setting.attach(&rng).unwrap(), Attached::Now(device));
    }
    for number in 0..2 {
        let detached = setting.detach(&format!("virtio/{number}"), Manner::Force);
        assert_eq!(detached.unwrap(), Detached::Now);
    }
    // libxl writes the record when it has made the domain.
    setting.host.hypervisor.store_write("/libxl/1/type", "pv");
    let early = setting.attach(&rng).unwrap_err();
    assert!(matches!(early, AttachError::Record(DomainRecordError::NotReady)), "{early}");
    setting.host.finish();
}

#[test]
fn disks_that_qemu_emulates_are_refused() {
    let setting = Setting::new();
    setting.host.hypervisor.store_write("/libxl/1/type", "hvm");
    let refused = setting.attach(&setting.disk(&["vdev=xvdd"])).unwrap_err();
    assert!(matches!(refused, AttachError::Emulated(_)), "{refused}");
    let device = DeviceId::parse("xvde").unwrap();
    assert_eq!(setting.attach(&setting.disk(&[])).unwrap(), Attached::Now(device));
    setting.detach("xvde", Manner::Force).unwrap();
    setting.host.finish();
}

#[test]
fn name_of_another_disk_is_taken() {
    let setting = Setting::new();
    setting.attach(&setting.disk(&["vdev=xvda"])).unwrap();
    let taken = setting.attach(&setting.disk(&["vdev=xvda", "ro"])).unwrap_err();
    assert!(matches!(taken, AttachError::Taken(_)), "{taken}");
    assert_eq!(setting.detach("xvda", Manner::Force).unwrap(), Detached::Now);
    setting.host.finish();
}

#[test]
fn other_devices_have_the_first_free_number() {
    let setting = Setting::new();
    let rng = Wanted::parse("rng", &[]).unwrap();
    for number in 0..3 {
        let device = DeviceId::parse(&format!("virtio/{number}")).unwrap();
        assert_eq!(setting.attach(&rng).unwrap(), Attached::Now(device));
    }
    assert_eq!(setting.detach("virtio/1", Manner::Force).unwrap(), Detached::Now);
    let again = setting.attach(&rng).unwrap();
    assert_eq!(again, Attached::Now(DeviceId::parse("virtio/1").unwrap()));
    assert_eq!(setting.record()["virtios"].as_array().unwrap().len(), 3);
    for number in 0..3 {
        setting.detach(&format!("virtio/{number}"), Manner::Force).unwrap();
    }
    setting.host.finish();
}

/// A disk `xvda` of the guest, whose backend was in domain 5, `driver`.
fn orphan(setting: &Setting) {
    let [before, frontend] = ["/local/domain/5/backend", "/local/domain/1/device"].map(|top| {
        format!("{top}/virtio_disk/{}51712", if top.ends_with("end") { "1/" } else { "" })
    });
    let libxl = "/libxl/1/device/virtio_disk/51712";
    for (directory, key, value) in [
        (libxl, "backend", &*before),
        (libxl, "frontend", &*frontend),
        (libxl, "frontend-id", "1"),
        (libxl, "params", "/dev/xvda"),
        (libxl, "direct-io-safe", "1"),
        (libxl, "online", "1"),
        (libxl, "state", "1"),
        (&*frontend, "backend", &*before),
        (&*frontend, "backend-id", "5"),
        (&*frontend, "state", "4"),
        (&*frontend, "message-page-ref", "8"),
        (&*frontend, "backend-awaited", "1"),
    ] {
        setting.host.hypervisor.store_write(&format!("{directory}/{key}"), value);
    }
    let entry = r#"{ "disks": [{ "vdev": "xvda", "backend_domname": "driver" }] }"#;
    fs::write(setting.record_path(), format!("{entry}\0")).unwrap();
}

fn begin_domain(setting: &Setting, id: u16, name: &str) {
    let uuid = format!("/vm/{}", UUID.replace('a', "b"));
    setting.host.hypervisor.store_write(&format!("/local/domain/{id}/name"), name);
    setting.host.hypervisor.store_write(&format!("/local/domain/{id}/vm"), &uuid);
}

fn reattached(setting: &Setting, domain: &str) -> Result<Vec<Reattached>, ReattachError> {
    let mut found = Vec::new();
    let store = &mut setting.host.hypervisor.store().unwrap();
    reattach(store, setting.records.path(), domain, |one| found.push(one)).map(|()| found)
}

#[test]
fn spec_2_16_device_of_a_driver_domain_that_rebooted_has_its_next_backend() {
    let setting = Setting::new();
    orphan(&setting);
    begin_domain(&setting, 7, "driver");
    let done = Reattached {
        guest: "web".to_owned(),
        device: DeviceId::parse("xvda").unwrap(),
        backend: "driver".to_owned(),
        is_awaited: true,
    };
    assert_eq!(reattached(&setting, "driver").unwrap(), [done]);
    let read = |path: &str| setting.host.hypervisor.store_read(path);
    let backend = "/local/domain/7/backend/virtio_disk/1/51712";
    for (key, value) in [
        ("frontend", "/local/domain/1/device/virtio_disk/51712"),
        ("frontend-id", "1"),
        ("params", "/dev/xvda"),
        ("direct-io-safe", "1"),
        ("online", "1"),
        ("state", "6"),
    ] {
        assert_eq!(read(&format!("{backend}/{key}")).as_deref(), Some(value), "{key}");
    }
    assert_eq!(read(&format!("{backend}/backend")), None);
    let frontend = "/local/domain/1/device/virtio_disk/51712";
    assert_eq!(read(&format!("{frontend}/backend")).as_deref(), Some(backend));
    assert_eq!(read(&format!("{frontend}/backend-id")).as_deref(), Some("7"));
    // The guest writes its state itself.
    assert_eq!(read(&format!("{frontend}/state")).as_deref(), Some("4"));
    assert_eq!(read("/libxl/1/device/virtio_disk/51712/backend").as_deref(), Some(backend));
    // Once more, nothing is left to do.
    assert_eq!(reattached(&setting, "7").unwrap(), []);
}

#[test]
fn watching_command_names_a_domain_that_begins_and_ends_when_it_is_stopped() {
    let setting = Setting::new();
    orphan(&setting);
    let (sender, reports) = mpsc::channel();
    thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let store = &mut setting.host.hypervisor.store().unwrap();
            let (records, stop) = (setting.records.path(), setting.stop.as_fd());
            follow(store, records, stop, |one| sender.send(one).unwrap())
        });
        begin_domain(&setting, 7, "driver");
        setting.host.hypervisor.store_write("@introduceDomain", "");
        let one = reports.recv_timeout(Duration::from_secs(10)).unwrap();
        assert_eq!((&*one.backend, one.is_awaited), ("driver", true));
        setting.stop.write(1).unwrap();
        watching.join().unwrap().unwrap();
    });
}

#[test]
fn only_devices_of_the_domain_that_ended_get_another_backend() {
    let setting = Setting::new();
    orphan(&setting);
    // The domain has not ended, though another has its name too.
    begin_domain(&setting, 5, "driver");
    begin_domain(&setting, 7, "other");
    assert_eq!(reattached(&setting, "driver").unwrap(), []);
    setting.host.hypervisor.store_remove("/local/domain/5");
    assert_eq!(reattached(&setting, "other").unwrap(), []);
    assert!(matches!(reattached(&setting, "driver"), Err(ReattachError::Guest(_))));
    begin_domain(&setting, 9, "driver");
    // A guest that does not wait, and one that had begun with a domain that has ended too.
    let frontend = "/local/domain/1/device/virtio_disk/51712";
    setting.host.hypervisor.store_remove(&format!("{frontend}/backend-awaited"));
    setting.host.hypervisor.store_write(&format!("{frontend}/state"), "1");
    let [one] = &*reattached(&setting, "driver").unwrap() else { panic!("not one device") };
    assert!(!one.is_awaited);
    let state = setting.host.hypervisor.store_read(&format!("{frontend}/state"));
    assert_eq!(state.as_deref(), Some("4"));
}

/// Whether another domain can go on with the guest's first disk, as the daemon in domain `own`
/// offers it.
fn is_movable(setting: &Setting, own: &str, more: &[&str]) -> bool {
    setting.host.hypervisor.store_write("/local/domain/0/domid", own);
    setting.attach(&setting.disk(more)).unwrap();
    let key = "/local/domain/0/backend/virtio_disk/1/51712/virtio-msg-bus-features";
    let features = setting.host.hypervisor.store_read(key).unwrap();
    features.parse::<u32>().unwrap() & F_MOVABLE != 0
}

#[test]
fn spec_2_16_disk_is_movable_if_nothing_of_it_ends_with_its_domain() {
    assert!(is_movable(&Setting::new(), "5", &["ro"]));
    // The page cache, or the file system's tables, are in the domain's memory.
    assert!(!is_movable(&Setting::new(), "5", &[]));
    assert!(!is_movable(&Setting::new(), "5", &["direct"]));
    // Dom0 ends with the host.
    assert!(!is_movable(&Setting::new(), "0", &["ro"]));
}

#[test]
fn target_of_a_disk_that_may_wait_for_another_domain_stays() {
    let setting = Setting::new();
    assert!(is_movable(&setting, "5", &["ro"]));
    let (_, mut driver) = setting.connect(51712);
    let store = &mut setting.host.hypervisor.store().unwrap();
    let device = DeviceId::parse("xvda").unwrap();
    let (records, stop) = (setting.records.path(), setting.stop.as_fd());
    let refused = retarget(store, records, stop, "web", device, setting.file.path());
    assert!(matches!(refused, Err(RetargetError::Movable(_))), "{refused:?}");
    let read = request(&mut driver, VIRTIO_BLK_T_IN, 2, &[], 512);
    assert_eq!(read, (OK, vec![2; 512]));
}
