//! A host that is made up: files below a temporary directory, and a simulated XenStore.

mod all;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::rc::Rc;
use std::sync::Arc;

use tempfile::TempDir;
use xen::{DomId, Xen};
use xen_sim::Hypervisor;

use super::daemon::Daemon;
use super::host::{self, Host};
use super::inventory::{Inventory, StoreFailure};
use super::{examine, images, print};
use crate::bus::DevicePath;
use crate::config::ConfigFile;
use crate::daemon::registry::Registry;
use crate::guest_log::GuestLog;

/// The daemon's process.
pub(super) const PROCESS: i32 = 77;
/// libxl's record of the guest.
pub(super) const RECORD: &str =
    "/var/lib/xen/userdata-d.3.a566a76a-27e5-4510-a415-6da14768d411.libxl-json";

/// Files of a Dom0 that lacks nothing.
const FILES: [(&str, &str); 27] = [
    ("/sys/hypervisor/type", "xen\n"),
    ("/sys/hypervisor/guest_type", "PV\n"),
    ("/sys/hypervisor/version/major", "4\n"),
    ("/sys/hypervisor/version/minor", "20\n"),
    ("/proc/xen/capabilities", "control_d\n"),
    ("/sys/module/xen_gntdev/refcnt", "0\n"),
    ("/sys/module/xen_evtchn/refcnt", "0\n"),
    ("/dev/xen/gntdev", ""),
    ("/dev/xen/evtchn", ""),
    ("/dev/xen/xenbus", ""),
    ("/dev/net/tun", ""),
    ("/usr/lib/x86_64-linux-gnu/libxenlight.so.4.20", ""),
    ("/etc/xen-virtiod.toml", "[default.net]\nqueues = 1\n"),
    ("/etc/systemd/system/xen-virtiod.service", "[Unit]\n"),
    ("/run/systemd/system/place", ""),
    ("/proc/77/fd/0", ""),
    ("/proc/77/fd/1", ""),
    ("/proc/77/limits", "Limit  Soft Limit\nMax open files  524288  524288  files\n"),
    ("/proc/sys/kernel/osrelease", "6.12.48+deb13-amd64\n"),
    ("/proc/sys/kernel/io_uring_disabled", "0\n"),
    ("/proc/sys/kernel/seccomp/actions_avail", "kill_process\n"),
    ("/proc/sys/vm/max_map_count", "1048576\n"),
    ("/proc/interrupts", "  CPU0\n 1: 5 xen-percpu timer0\n"),
    ("/sys/class/net/xenbr0/flags", "0x1003\n"),
    ("/sys/class/net/xenbr0/bridge/bridge_id", "8000.feffffffffff\n"),
    ("/images/web.img", "data"),
    (RECORD, "{\"b_info\": {}}\n\0"),
];

/// XenStore of it: a guest with a disk, a network device and an entropy device.
const STORE: [(&str, &str); 11] = [
    ("/local/domain/0/domid", "0"),
    ("/local/domain/3/name", "web"),
    ("/local/domain/3/vm", "/vm/a566a76a-27e5-4510-a415-6da14768d411"),
    ("/local/domain/0/backend/virtio_disk/3/51712/params", "/images/web.img"),
    ("/local/domain/0/backend/virtio/3/0/type", "virtio,device1"),
    ("/local/domain/0/backend/virtio/3/1/type", "virtio,device4"),
    ("/libxl/3/type", "pvh"),
    ("/libxl/3/device/virtio_disk/51712/dev", "xvda"),
    ("/libxl/3/device/virtio/0/state", "4"),
    ("/libxl/3/device/virtio/1/state", "4"),
    ("/libxl/0/dm-version", "qemu_xen"),
];

/// Output of programs, by their command lines.
type Outputs = Rc<RefCell<BTreeMap<String, String>>>;

/// A host that is made up.
pub(super) struct TestHost {
    directory: TempDir,
    pub(super) hypervisor: Hypervisor,
    pub(super) host: Host,
    outputs: Outputs,
    /// Whether XenStore fails.
    pub(super) failure: Option<StoreFailure>,
}

/// A daemon that serves the guest's disk.
fn daemon() -> Daemon {
    let registry = Registry::default();
    let path = DevicePath { class: "virtio_disk".to_owned(), guest: DomId(3), number: 51712 };
    registry.begin(&path, Arc::<GuestLog>::default());
    Daemon::Present { process: Some(PROCESS), report: registry.report() }
}

impl TestHost {
    /// A Dom0 that lacks nothing.
    pub(super) fn healthy() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (root, outputs) = (directory.path().to_owned(), Outputs::default());
        let run = {
            let outputs = Rc::clone(&outputs);
            move |program: &str, arguments: &[&str]| {
                outputs.borrow().get(&format!("{program} {}", arguments.join(" "))).cloned()
            }
        };
        let host = Host {
            config: ConfigFile::new(Some(root.join("etc/xen-virtiod.toml"))),
            root,
            is_root: true,
            inventory: Ok(Inventory::default()),
            daemon: daemon(),
            run: Box::new(run),
            open: host::open,
            try_open: host::try_open,
            try_lock: host::try_lock,
            has_landlock: || true,
            storage_limit: images::LIMIT,
            most_descriptors: 524_288,
        };
        let hypervisor = Hypervisor::default();
        let mut made = Self { directory, hypervisor, host, outputs, failure: None };
        FILES.iter().for_each(|(path, text)| made.write(path, text));
        made.link(&format!("/proc/{PROCESS}/exe"), "/usr/local/sbin/xen-virtiod");
        made.hypervisor.store_write_all(STORE);
        made.answer("systemctl --version", "systemd 257 (257.9-1)\n");
        let version = format!("xen-virtiod {}\n", env!("CARGO_PKG_VERSION"));
        made.answer(&format!("/proc/{PROCESS}/exe --version"), &version);
        made
    }

    /// Makes it a driver domain.
    pub(super) fn become_driver_domain(&mut self) {
        self.write("/proc/xen/capabilities", "");
        self.hypervisor.store_write("/local/domain/0/domid", "7");
        self.hypervisor.store_remove("/libxl");
    }

    pub(super) fn write(&self, path: &str, text: &str) {
        let path = self.host.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub(super) fn link(&self, path: &str, target: &str) {
        let path = self.host.path(path);
        let _ = fs::remove_file(&path);
        std::os::unix::fs::symlink(target, path).unwrap();
    }

    pub(super) fn remove(&self, path: &str) {
        let path = self.host.path(path);
        assert!(path.starts_with(self.directory.path()));
        match path.is_dir() {
            true => fs::remove_dir_all(path).unwrap(),
            false => fs::remove_file(path).unwrap(),
        }
    }

    pub(super) fn configure(&self, text: &str) {
        self.write("/etc/xen-virtiod.toml", text);
    }

    /// Has a command print a text.
    pub(super) fn answer(&mut self, command: &str, text: &str) {
        self.outputs.borrow_mut().insert(command.to_owned(), text.to_owned());
    }

    /// Adds a disk that this domain serves.
    pub(super) fn disk(&self, guest: u16, number: u32, target: &str) {
        let path = format!("/local/domain/0/backend/virtio_disk/{guest}/{number}/params");
        self.hypervisor.store_write(&path, target);
    }

    /// Adds a driver domain that serves a disk and an interface, with this record of libxl's.
    pub(super) fn serve_elsewhere(&self, record: &str) {
        let uuid = "b566a76a-27e5-4510-a415-6da14768d412";
        self.hypervisor.store_write_all([
            ("/local/domain/5/name", "storage"),
            ("/local/domain/5/vm", &format!("/vm/{uuid}")),
            ("/libxl/5/type", "pvh"),
            ("/libxl/3/device/virtio_disk/51728/dev", "xvdb"),
            (
                "/libxl/3/device/virtio_disk/51728/backend",
                "/local/domain/5/backend/virtio_disk/3/51728",
            ),
            ("/libxl/3/device/virtio/2/backend", "/local/domain/5/backend/virtio/3/2"),
        ]);
        self.write(&format!("/var/lib/xen/userdata-d.5.{uuid}.libxl-json"), record);
    }

    pub(super) fn limit_descriptors(&self, limit: u64) {
        self.write("/proc/77/limits", &format!("Max open files            {limit} 9 files\n"));
    }

    pub(super) fn fail_store(&mut self, failure: StoreFailure) {
        self.failure = Some(failure);
    }

    /// All lines that are printed now, each `mend:` behind its finding.
    pub(super) fn all(&self) -> Vec<String> {
        let host = Host {
            inventory: match &self.failure {
                Some(failure) => Err(failure.clone()),
                None => Ok(Inventory::read(&mut self.hypervisor.store().unwrap()).unwrap()),
            },
            root: self.host.root.clone(),
            config: self.host.config.clone(),
            daemon: self.host.daemon.clone(),
            run: {
                let outputs = Rc::clone(&self.outputs);
                Box::new(move |program, arguments| {
                    outputs.borrow().get(&format!("{program} {}", arguments.join(" "))).cloned()
                })
            },
            ..self.host
        };
        let mut out = Vec::new();
        print(&mut out, &examine(&host), false).unwrap();
        let text = String::from_utf8(out).unwrap().replace("\n         mend:", " mend:");
        text.lines().map(str::to_owned).collect()
    }

    /// Asserts that the lines of a check have these texts, in this order; a text that begins with a
    /// severity begins a finding.
    pub(super) fn expect(&self, check: &str, texts: &[&str]) {
        let mark = format!("  {check}: ");
        let lines = self.all();
        let lines = lines.iter().filter_map(|line| line.split_once(&mark));
        let found: Vec<_> =
            lines.map(|(severity, text)| format!("{}: {text}", severity.trim())).collect();
        let all = found.join("\n");
        let mut rest = all.as_str();
        for text in texts {
            let at = rest.find(text);
            let at = at.unwrap_or_else(|| panic!("no {text:?} in its place in\n{all}"));
            rest = &rest[at + text.len()..];
        }
    }
}
