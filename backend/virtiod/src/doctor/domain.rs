//! Whether this is a domain of Xen's, and which.

use super::finding::Finding;
use super::host::Host;

/// The check's name.
pub(super) const NAME: &str = "Xen";

/// Whether this system runs under Xen.
pub(super) fn is_xen(host: &Host) -> bool {
    host.line("/sys/hypervisor/type") == "xen"
}

/// Xen's version, as in `4.20`.
pub(super) fn version(host: &Host) -> Option<(u64, u64)> {
    let part = |name| host.number(format!("/sys/hypervisor/version/{name}"));
    Some((part("major")?, part("minor")?))
}

pub(super) fn examine(host: &Host) -> Vec<Finding> {
    if !is_xen(host) {
        let text = "this system does not run under Xen: it can serve no guest";
        return vec![
            Finding::error(text)
                .mend("apt install xen-system-amd64; reboot   # then choose Xen in the boot menu"),
        ];
    }
    if !host.has("/proc/xen") {
        let text = "the kernel has no /proc/xen (CONFIG_XEN_COMPAT_XENFS), which the systemd unit \
                    waits for: it does not start the daemon";
        let mend = "systemctl edit xen-virtiod   # [Unit], then a line ConditionPathExists=";
        return vec![Finding::error(text).mend(mend)];
    }
    let which = if host.is_dom0() { "Dom0" } else { "a driver domain" };
    let kind = match host.line("/sys/hypervisor/guest_type") {
        kind if kind.is_empty() => String::new(),
        kind => format!(", {kind}"),
    };
    let version = version(host).map(|(major, minor)| format!(" {major}.{minor}"));
    let version = version.unwrap_or_default();
    vec![Finding::ok(format!("this is {which}{kind}, under Xen{version}"))]
}

#[cfg(test)]
mod tests {
    use super::super::tests::TestHost;

    #[test]
    fn machine_without_xen_is_an_error() {
        let host = TestHost::healthy();
        host.expect("Xen", &["ok: this is Dom0, PV, under Xen 4.20"]);
        host.write("/sys/hypervisor/type", "kvm\n");
        host.expect("Xen", &["error: this system does not run under Xen", "apt install xen-"]);
        host.remove("/sys/hypervisor/type");
        host.expect("Xen", &["error: this system does not run under Xen"]);
    }

    #[test]
    fn checks_of_a_domain_are_left_out_elsewhere() {
        let host = TestHost::healthy();
        assert!(host.all().iter().all(|line| !line.contains("other checks")));
        host.remove("/sys/hypervisor/type");
        let lines = host.all();
        assert!(lines.iter().all(|line| !line.contains("XenStore: ")), "{lines:?}");
        host.expect("other checks", &["unknown: without Xen", "XenStore", "map tracking"]);
    }

    #[test]
    fn domain_without_proc_xen_is_an_error() {
        let host = TestHost::healthy();
        host.remove("/proc/xen");
        host.expect("Xen", &["error: the kernel has no /proc/xen", "systemctl edit"]);
    }

    #[test]
    fn domain_without_control_is_a_driver_domain() {
        let mut host = TestHost::healthy();
        host.become_driver_domain();
        host.expect("Xen", &["ok: this is a driver domain, PV, under Xen 4.20"]);
    }
}
