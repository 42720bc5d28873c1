//! The devices of the kernel by which a domain reaches Xen.

use std::io;

use super::finding::Finding;
use super::host::Host;

/// Devices, and the modules that make them.
const DEVICES: [(&str, Option<&str>); 3] = [
    ("/dev/xen/gntdev", Some("xen_gntdev")),
    ("/dev/xen/evtchn", Some("xen_evtchn")),
    // A part of every kernel for Xen.
    ("/dev/xen/xenbus", None),
];

pub(super) fn examine(host: &Host) -> Vec<Finding> {
    let findings: Vec<_> =
        DEVICES.iter().filter_map(|(path, module)| examine_one(host, path, *module)).collect();
    match findings.is_empty() {
        true => vec![Finding::ok("/dev/xen/gntdev, evtchn and xenbus can be opened")],
        false => findings,
    }
}

fn examine_one(host: &Host, path: &str, module: Option<&str>) -> Option<Finding> {
    let error = (host.try_open)(&host.path(path)).err()?;
    let is_loaded = module.is_none_or(|module| host.has(format!("/sys/module/{module}")));
    Some(match (error.kind(), module) {
        (io::ErrorKind::PermissionDenied, _) if !host.is_root => Finding::root_only(path),
        (io::ErrorKind::NotFound, Some(module)) if !is_loaded => {
            let text = format!("{path} is missing: the module {module} is not loaded");
            Finding::error(text).mend(format!("modprobe {}", module.replace('_', "-")))
        }
        (io::ErrorKind::NotFound, Some(module)) => {
            let text = format!("{path} is missing although the module {module} is loaded");
            Finding::error(text).mend("udevadm trigger --subsystem-match=misc --action=add")
        }
        (io::ErrorKind::NotFound, None) => {
            let text = format!("{path} is missing: the kernel has no CONFIG_XEN_XENBUS_FRONTEND");
            Finding::error(text).mend("apt install linux-image-amd64; reboot")
        }
        _ => {
            let text = format!("{path} cannot be opened: {error}");
            Finding::error(text).mend(format!("ls -l {path}   # a character device of root's"))
        }
    })
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::super::tests::TestHost;

    const CHECK: &str = "devices of Xen";

    #[test]
    fn missing_device_names_its_module() {
        let host = TestHost::healthy();
        host.expect(CHECK, &["ok: /dev/xen/gntdev"]);
        host.remove("/dev/xen/evtchn");
        host.expect(CHECK, &["error: /dev/xen/evtchn is missing although", "udevadm trigger"]);
        host.remove("/sys/module/xen_evtchn");
        host.expect(CHECK, &["is not loaded", "mend: modprobe xen-evtchn"]);
        host.remove("/dev/xen/gntdev");
        host.remove("/sys/module/xen_gntdev");
        host.expect(CHECK, &["modprobe xen-gntdev", "modprobe xen-evtchn"]);
    }

    #[test]
    fn missing_xenbus_is_the_kernels() {
        let host = TestHost::healthy();
        host.remove("/dev/xen/xenbus");
        host.expect(CHECK, &["error: /dev/xen/xenbus is missing: the kernel", "reboot"]);
    }

    #[test]
    fn device_that_cannot_be_opened_is_an_error_for_root_alone() {
        let mut host = TestHost::healthy();
        host.host.try_open = |_| Err(io::ErrorKind::PermissionDenied.into());
        host.expect(CHECK, &["error: /dev/xen/gntdev cannot be opened", "mend: ls -l"]);
        host.host.is_root = false;
        host.expect(CHECK, &["unknown: /dev/xen/gntdev: only root", "sudo xen-virtiod doctor"]);
    }
}
