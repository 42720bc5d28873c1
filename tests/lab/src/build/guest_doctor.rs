//! Runs the module's `virtio-msg-xen-doctor` on file systems that are made up.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

const SCRIPT: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../guest-shim/linux/virtio-msg-xen-doctor");
const RELEASE: &str = "6.12.48+deb13-amd64";
const DEVICES: &str = "sys/bus/xen/devices";

/// Files of a guest that lacks nothing.
const FILES: [(&str, &str); 15] = [
    ("sys/hypervisor/type", "xen\n"),
    ("sys/hypervisor/guest_type", "PVH\n"),
    ("proc/sys/kernel/osrelease", "6.12.48+deb13-amd64\n"),
    ("proc/mounts", "proc /proc proc rw 0 0\n/dev/vda1 / ext4 rw 0 0\n"),
    ("boot/config-6.12.48+deb13-amd64", "CONFIG_XEN=y\n# CONFIG_XEN_VIRTIO is not set\n"),
    ("boot/initrd.img-6.12.48+deb13-amd64", ""),
    ("boot/vmlinuz-6.12.48+deb13-amd64", ""),
    ("lib/modules/6.12.48+deb13-amd64/updates/virtio_msg_xen.ko", ""),
    (
        "lib/modules/6.12.48+deb13-amd64/modules.dep",
        "kernel/drivers/block/virtio_blk.ko.xz:\nkernel/drivers/net/virtio_net.ko.xz: a/b.ko\n\
         kernel/drivers/char/hw_random/virtio-rng.ko.xz:\n",
    ),
    ("lib/modules/6.12.48+deb13-amd64/modules.builtin", "kernel/drivers/char/virtio_console.ko\n"),
    ("sys/module/virtio_msg_xen/version", "0.1.0\n"),
    ("sys/module/virtio_msg_xen/srcversion", "A1\n"),
    ("sys/bus/xen/devices/virtio_disk-51712/state", "Connected\n"),
    ("sys/bus/xen/devices/virtio_disk-51712/grants_outstanding", "64\n"),
    ("sys/bus/xen/devices/virtio_disk-51712/virtio0/device", "0x0002\n"),
];

/// Programs of the guest, as shell scripts.
const PROGRAMS: [(&str, &str); 6] = [
    ("modinfo", "echo A1"),
    ("lsinitramfs", "echo usr/lib/modules/6/virtio_msg_xen.ko; echo usr/lib/virtio_blk.ko.xz"),
    ("dkms", "echo 'virtio_msg_xen/0.1.0, 6.12.48+deb13-amd64, x86_64: installed'"),
    ("dmesg", "echo '[    1.5] virtio_msg_xen virtio_disk-51712: virtio0 is virtio device 2'"),
    ("journalctl", "exit 1"),
    ("sleep", "exit 0"),
];

/// A guest that is made up.
struct Guest(TempDir);

impl Guest {
    /// One that lacks nothing.
    fn healthy() -> Self {
        let guest = Self(tempfile::tempdir().unwrap());
        FILES.iter().for_each(|(path, text)| guest.write(path, text));
        PROGRAMS.iter().for_each(|(name, text)| guest.program(name, text));
        guest.set_pool(0, 0);
        for device in ["virtio_disk-51712", "virtio_disk-51712/virtio0"] {
            symlink("/", guest.path(&format!("{DEVICES}/{device}/driver"))).unwrap();
        }
        guest
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join("root").join(path)
    }

    fn programs(&self) -> PathBuf {
        self.0.path().join("programs")
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn remove(&self, path: &str) {
        let path = self.path(path);
        match path.is_dir() && !path.is_symlink() {
            true => fs::remove_dir_all(path).unwrap(),
            false => fs::remove_file(path).unwrap(),
        }
    }

    fn program(&self, name: &str, text: &str) {
        fs::create_dir_all(self.programs()).unwrap();
        let path = self.programs().join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn set_pool(&self, fallbacks: u32, retries: u32) {
        let text =
            format!("shared 64\nin_use 3\nfallbacks {fallbacks}\nretries {retries}\ngrowths 0\n");
        self.write(&format!("{DEVICES}/virtio_disk-51712/pool"), &text);
    }

    /// The output of the script, and its exit status.
    fn examine(&self) -> (String, Option<i32>) {
        let path = format!("{}:/usr/bin:/bin", self.programs().display());
        let mut script = Command::new(SCRIPT);
        script.args(["--wait", "0"]).env("DESTDIR", self.path("")).env("PATH", path);
        let output = script.output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(errors, "", "the script itself has failed");
        (String::from_utf8(output.stdout).unwrap(), output.status.code())
    }

    /// Asserts that the script prints these texts in this order, and fails if one is an error.
    fn expect(&self, texts: &[&str]) {
        let (printed, status) = self.examine();
        let mut rest = printed.as_str();
        for text in texts {
            let at = rest.find(text);
            let at = at.unwrap_or_else(|| panic!("no {text:?} in its place in\n{printed}"));
            rest = &rest[at + text.len()..];
        }
        let fails = printed.lines().any(|line| line.starts_with("error "));
        assert_eq!(status, Some(i32::from(fails)), "{printed}");
    }
}

#[test]
fn guest_that_lacks_nothing_has_no_findings_but_ok() {
    let (printed, status) = Guest::healthy().examine();
    let lines: Vec<_> = printed.lines().collect();
    let (last, lines) = lines.split_last().unwrap();
    assert!(lines.len() > 7 && lines.iter().all(|line| line.starts_with("ok ")), "{printed}");
    assert_eq!((*last, status), ("0 error(s), 0 warning(s)", Some(0)));
}

#[test]
fn guest_elsewhere_than_under_xen_is_an_error() {
    let guest = Guest::healthy();
    guest.remove("sys/hypervisor/type");
    guest.expect(&["error    Xen: this system is no guest of Xen", "mend: xl create"]);
}

#[test]
fn old_kernel_or_one_with_its_own_operations_is_an_error() {
    let guest = Guest::healthy();
    for release in ["5.10.0-28-amd64", "6.0.1"] {
        guest.write("proc/sys/kernel/osrelease", release);
        guest.expect(&[&format!("error    kernel: Linux {release} is older than 6.1"), "reboot"]);
    }
    for release in ["6.1.0-40-amd64", "7.0-rc1"] {
        guest.write("proc/sys/kernel/osrelease", release);
        guest.expect(&[&format!("ok       kernel: Linux {release}"), "unknown  configuration"]);
    }
    let guest = Guest::healthy();
    guest.write(&format!("boot/config-{RELEASE}"), "CONFIG_XEN=y\nCONFIG_XEN_VIRTIO=y\n");
    guest.expect(&["error    configuration: the kernel has CONFIG_XEN_VIRTIO", "reboot"]);
}

#[test]
fn missing_module_is_an_error_with_the_command_that_installs_it() {
    let guest = Guest::healthy();
    guest.remove("sys/module/virtio_msg_xen");
    guest.expect(&["error    module: virtio_msg_xen is not loaded", "modprobe virtio_msg_xen"]);
    guest.remove(&format!("lib/modules/{RELEASE}/updates"));
    guest.expect(&["error    module: virtio_msg_xen is not installed for the", "mend: make -C"]);
    guest.write("var/lib/dkms/virtio_msg_xen/0.1.0/source", "");
    guest.expect(&["mend: dkms install virtio_msg_xen/0.1.0 -k 6.12.48+deb13-amd64"]);
}

#[test]
fn module_of_another_build_and_kernels_without_it_are_warnings() {
    let guest = Guest::healthy();
    guest.program("modinfo", "echo B2");
    guest.expect(&["warning  module: another version of virtio_msg_xen is loaded", "mend: reboot"]);
    let guest = Guest::healthy();
    guest.write("lib/modules/6.12.63/modules.dep", "");
    guest.expect(&["ok       module", "0 warning(s)"]);
    guest.write("boot/vmlinuz-6.12.63", "");
    guest.expect(&[
        "warning  module: virtio_msg_xen is not installed for 6.12.63,",
        "6.12.63/build",
    ]);
}

#[test]
fn missing_drivers_are_found() {
    let guest = Guest::healthy();
    let list = format!("lib/modules/{RELEASE}/modules.dep");
    guest.write(&list, "kernel/virtio_blk.ko:\nkernel/virtio_net.ko:\n");
    guest.expect(&["warning  drivers: the kernel lacks virtio_rng,", "reboot"]);
    guest.write(&list, "kernel/a.ko: kernel/virtio_blk.ko kernel/virtio_net.ko\n");
    guest.expect(&["error    drivers: the kernel has no driver of disks", "reboot"]);
}

#[test]
fn initrd_without_the_module_is_an_error_for_a_root_disk() {
    let guest = Guest::healthy();
    guest.program("lsinitramfs", "echo usr/lib/virtio_blk.ko");
    let error = "error    initrd: /boot/initrd.img-6.12.48+deb13-amd64 lacks virtio_msg_xen: the";
    guest.expect(&[error, "initrd/hooks install 6.12.48+deb13-amd64", "mend: scp"]);
    guest.write("proc/mounts", "/dev/mapper/vg-root / ext4 rw 0 0\n");
    guest.expect(&["warning  initrd: ", "lacks virtio_msg_xen: a root disk would need it"]);
    // A volume on a virtio disk.
    fs::create_dir_all(guest.path("dev/mapper")).unwrap();
    symlink("../dm-0", guest.path("dev/mapper/vg-root")).unwrap();
    guest.write("sys/class/block/dm-0/slaves/vda2/size", "");
    guest.expect(&[error]);
    guest.program("lsinitramfs", "exit 1");
    guest.expect(&["unknown  initrd: /boot/initrd.img-6.12.48+deb13-amd64 cannot be listed"]);
    guest.remove(&format!("boot/initrd.img-{RELEASE}"));
    guest.expect(&["unknown  initrd: there is none of 6.12.48+deb13-amd64 in /boot"]);
}

#[test]
fn initrd_of_dracut_is_read_too() {
    let guest = Guest::healthy();
    fs::remove_file(guest.programs().join("lsinitramfs")).unwrap();
    if ["/usr/bin", "/bin"].iter().any(|bin| Path::new(bin).join("lsinitramfs").exists()) {
        println!("skipped: this system has lsinitramfs, which the script prefers");
        return;
    }
    guest.expect(&["unknown  initrd: neither lsinitramfs nor lsinitrd is there", "apt install"]);
    guest.program("lsinitrd", "echo usr/lib/virtio_msg_xen.ko.xz; echo usr/lib/virtio_blk.ko");
    guest.remove(&format!("boot/initrd.img-{RELEASE}"));
    guest.write(&format!("boot/initramfs-{RELEASE}.img"), "");
    guest.expect(&["ok       initrd: /boot/initramfs-6.12.48+deb13-amd64.img has virtio_msg_xen"]);
}

#[test]
fn module_that_dkms_has_not_built_is_a_warning() {
    let guest = Guest::healthy();
    guest.write("var/lib/dkms/virtio_msg_xen/0.1.0/source", "");
    guest.expect(&["ok       dkms: virtio_msg_xen 0.1.0 is installed"]);
    guest.program("dkms", "echo 'virtio_msg_xen/0.1.0, 6.12.48+deb13-amd64, x86_64: built'");
    guest.expect(&["warning  dkms: ", "mend: dkms install virtio_msg_xen/0.1.0 -k", "make.log"]);
}

#[test]
fn devices_that_do_not_work_are_errors() {
    let guest = Guest::healthy();
    let device = format!("{DEVICES}/virtio_disk-51712");
    guest.expect(&["ok       devices: virtio_disk-51712 is connected; 64 page(s) are granted"]);
    guest.remove(&format!("{device}/virtio0/driver"));
    guest.expect(&[
        "error    devices: virtio_disk-51712 is connected, but no",
        "modprobe virtio_blk",
    ]);
    guest.write(&format!("{device}/state"), "Initialised\n");
    guest.expect(&["error    devices: virtio_disk-51712 waits for its backend (Initialised)"]);
    guest.write(&format!("{device}/state"), "Closed\n");
    guest.expect(&[
        "error    devices: virtio_disk-51712 is closed",
        "echo virtio_disk-51712 >unbind",
    ]);
    guest.remove(&format!("{device}/driver"));
    guest.expect(&["error    devices: virtio_disk-51712 has no driver", "virtio_msg_xen/bind"]);
    guest.remove(&device);
    guest.expect(&["warning  devices: the guest has no virtio devices", "xen-virtiod attach"]);
}

#[test]
fn pool_whose_counts_increase_is_a_warning() {
    let guest = Guest::healthy();
    guest.set_pool(5, 7);
    guest.expect(&["ok       pools: no buffer"]);
    for (count, other) in [("fallbacks 5", "fallbacks 6"), ("retries 7", "retries 9")] {
        guest.set_pool(5, 7);
        let pool = guest.path(&format!("{DEVICES}/virtio_disk-51712/pool"));
        guest.program("sleep", &format!("sed -i 's/{count}/{other}/' {}", pool.display()));
        guest.expect(&[
            "warning  pools: the pool of virtio_disk-51712 is too",
            "pool=4096",
            "reboot",
        ]);
    }
}

#[test]
fn log_names_devices_that_were_given_up_and_suspends_that_were_refused() {
    let guest = Guest::healthy();
    let line = |text: &str| format!("echo '[ 9.1] virtio_msg_xen virtio_disk-51712: {text}'");
    guest.program("dmesg", &line("16 suspend refused: requests are unfinished"));
    guest.expect(&["warning  log: ", "suspend refused: requests are unfinished", "mend: xl save"]);
    for text in ["device given up: no other backend goes on with it", "the device did not return"] {
        guest.program("dmesg", &line(text));
        guest.expect(&["warning  log: ", text, "echo virtio_disk-51712 >unbind"]);
    }
    guest.program("dmesg", "exit 1");
    guest.program("journalctl", &line("cannot go on with this backend: no memory"));
    guest.expect(&["warning  log: ", "cannot go on with this backend"]);
    guest.program("journalctl", "exit 1");
    guest.expect(&["unknown  log: the kernel's log cannot be read"]);
}
