//! Whether Xen and its toolstack are new enough, and fit each other. A driver domain needs neither.

use super::domain;
use super::finding::Finding;
use super::host::Host;

/// The first version whose xl sets up virtio disks, and the first that sets up all devices.
const DISKS: (u64, u64) = (4, 17);
const DEVICES: (u64, u64) = (4, 19);

const NEWER: &str = "apt install xen-system-amd64; reboot   # of Debian 13 or newer";

/// Directories of libxl's library.
const LIBRARIES: [&str; 4] =
    ["/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib"];
const LIBRARY: &str = "libxenlight.so.";

pub(super) fn examine(host: &Host) -> Vec<Finding> {
    let Some(xen) = domain::version(host) else {
        return vec![Finding::unknown("the kernel does not show Xen's version")];
    };
    let shown = format!("{}.{}", xen.0, xen.1);
    if !host.is_dom0() {
        return vec![Finding::ok(format!("Xen {shown}; the toolstack is Dom0's"))];
    }
    let toolstacks = toolstacks(host);
    let mut findings = Vec::new();
    if !toolstacks.is_empty() && !toolstacks.contains(&xen) {
        let others = toolstacks.iter().map(|(major, minor)| format!("{major}.{minor}"));
        let others = others.collect::<Vec<_>>().join(", ");
        let text = format!(
            "Xen {shown} runs, and the toolstack is of version {others}: xl fails until the newer \
             Xen has started"
        );
        findings.push(Finding::error(text).mend("reboot"));
    }
    if xen < DISKS {
        let text = format!("xl of Xen {shown} sets up no virtio devices: 4.17 is needed for disks");
        findings.push(Finding::error(text).mend(NEWER));
    } else if xen < DEVICES {
        let text = format!(
            "xl of Xen {shown} sets up disks alone, and ignores lines virtio = [ ... ]: 4.19 is \
             needed for network, console, entropy and vsock"
        );
        findings.push(Finding::warning(text).mend(NEWER));
    } else if findings.is_empty() {
        findings.push(Finding::ok(format!("xl of Xen {shown} sets up all devices")));
    }
    findings
}

/// The versions of the toolstacks that are installed, by libxl's libraries (`libxenlight.so.4.20`).
fn toolstacks(host: &Host) -> Vec<(u64, u64)> {
    let names = LIBRARIES.iter().flat_map(|directory| host.names(directory));
    let versions = names.filter_map(|name| {
        let (major, minor) = name.to_str()?.strip_prefix(LIBRARY)?.split_once('.')?;
        let minor = minor.split('.').next()?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    });
    let mut versions: Vec<_> = versions.collect();
    versions.sort_unstable();
    versions.dedup();
    versions
}

#[cfg(test)]
mod tests {
    use super::super::tests::TestHost;

    const CHECK: &str = "versions";

    fn with_minor(minor: u64) -> TestHost {
        let host = TestHost::healthy();
        host.write("/sys/hypervisor/version/minor", &format!("{minor}\n"));
        host.remove("/usr/lib/x86_64-linux-gnu/libxenlight.so.4.20");
        host
    }

    #[test]
    fn version_decides_which_devices_xl_sets_up() {
        for (minor, expected) in [
            (16, "error: xl of Xen 4.16 sets up no virtio devices"),
            (17, "warning: xl of Xen 4.17 sets up disks alone"),
            (18, "warning: xl of Xen 4.18 sets up disks alone"),
            (19, "ok: xl of Xen 4.19 sets up all devices"),
        ] {
            with_minor(minor).expect(CHECK, &[expected]);
        }
        with_minor(16).expect(CHECK, &["mend: apt install xen-system-amd64; reboot"]);
        let host = with_minor(0);
        host.write("/sys/hypervisor/version/major", "5\n");
        host.expect(CHECK, &["ok: xl of Xen 5.0"]);
    }

    #[test]
    fn toolstack_of_another_version_is_an_error() {
        let host = TestHost::healthy();
        host.write("/sys/hypervisor/version/minor", "19\n");
        host.expect(
            CHECK,
            &["error: Xen 4.19 runs, and the toolstack is of version 4.20", "reboot"],
        );
        host.write("/usr/lib64/libxenlight.so.4.19.0", "");
        host.expect(CHECK, &["ok: xl of Xen 4.19"]);
    }

    #[test]
    fn driver_domain_needs_no_toolstack() {
        let mut host = with_minor(16);
        host.become_driver_domain();
        host.expect(CHECK, &["ok: Xen 4.16; the toolstack is Dom0's"]);
        host.remove("/sys/hypervisor/version/minor");
        host.expect(CHECK, &["unknown: the kernel does not show"]);
    }
}
