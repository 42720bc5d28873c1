//! The kernel of this domain.

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetError,
};

use super::finding::Finding;
use super::host::Host;

/// The oldest version that was tried.
const OLDEST: (u32, u32) = (6, 1);
const NEWER: &str = "apt install linux-image-amd64; reboot";

/// Whether the kernel makes rules of Landlock's. Makes some, and does not apply them.
pub(super) fn has_landlock() -> bool {
    let rules = || -> Result<_, RulesetError> {
        let rules = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
        rules.handle_access(AccessFs::from_all(ABI::V1))?.create()
    };
    rules().is_ok()
}

pub(super) fn examine(host: &Host) -> Vec<Finding> {
    let findings = [examine_version(host), examine_uring(host), examine_confinement(host)];
    findings.into_iter().flatten().collect()
}

fn examine_version(host: &Host) -> Vec<Finding> {
    let release = host.line("/proc/sys/kernel/osrelease");
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit());
    let mut number = || numbers.next()?.parse::<u32>().ok();
    let Some((major, minor)) = number().and_then(|major| Some((major, number()?))) else {
        return vec![Finding::unknown("the kernel does not show its version")];
    };
    if (major, minor) < OLDEST {
        let text = format!("Linux {release} is older than 6.1, the oldest that was tried");
        return vec![Finding::warning(text).mend(NEWER)];
    }
    vec![Finding::ok(format!("Linux {release}"))]
}

fn examine_uring(host: &Host) -> Vec<Finding> {
    // Kernels before 6.6 have no such switch.
    let path = "/proc/sys/kernel/io_uring_disabled";
    match host.number(path) {
        None | Some(0) => vec![Finding::ok("io_uring is permitted")],
        Some(value) => {
            let text = format!(
                "io_uring is not permitted (kernel.io_uring_disabled is {value}): threads serve \
                 disks, which is slower"
            );
            let file = "/etc/sysctl.d/60-xen-virtiod.conf";
            vec![
                Finding::warning(text)
                    .mend(format!("echo kernel.io_uring_disabled=0 >{file}; sysctl --system"))
                    .mend("systemctl restart xen-virtiod"),
            ]
        }
    }
}

/// The means by which the process of a guest gives up its rights.
fn examine_confinement(host: &Host) -> Vec<Finding> {
    if !host.has("/proc/sys/kernel/seccomp/actions_avail") {
        let text = "the kernel has no CONFIG_SECCOMP_FILTER: the processes of guests cannot be \
                    confined, and do not start";
        return vec![Finding::error(text).mend(NEWER)];
    }
    if (host.has_landlock)() {
        return vec![Finding::ok("seccomp and Landlock confine the processes of guests")];
    }
    let text = "the kernel has no Landlock, or does not use it: one guard less around the processes \
                of guests; the others hold";
    let modules = host.line("/sys/kernel/security/lsm");
    let others = modules.split(',').filter(|name| !["", "capability", "landlock"].contains(name));
    let modules = ["landlock"].into_iter().chain(others).collect::<Vec<_>>().join(",");
    let option = format!("GRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX lsm={modules}\"");
    vec![
        Finding::warning(text)
            .mend(format!("echo '{option}' >>/etc/default/grub; update-grub; reboot")),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::tests::TestHost;

    const CHECK: &str = "kernel";

    #[test]
    fn old_kernel_is_a_warning() {
        let host = TestHost::healthy();
        host.expect(CHECK, &["ok: Linux 6.12.48+deb13-amd64"]);
        for release in ["6.0.19", "5.10.0-28-amd64"] {
            host.write("/proc/sys/kernel/osrelease", release);
            host.expect(CHECK, &[&format!("warning: Linux {release} is older than 6.1")]);
        }
        for release in ["6.1.0-40-amd64", "7.0"] {
            host.write("/proc/sys/kernel/osrelease", release);
            host.expect(CHECK, &[&format!("ok: Linux {release}")]);
        }
        host.write("/proc/sys/kernel/osrelease", "Plan 9");
        host.expect(CHECK, &["unknown: the kernel does not show"]);
    }

    #[test]
    fn io_uring_that_is_not_permitted_is_a_warning() {
        let host = TestHost::healthy();
        for value in ["1", "2"] {
            host.write("/proc/sys/kernel/io_uring_disabled", value);
            let expected = format!("kernel.io_uring_disabled is {value})");
            host.expect(CHECK, &["warning: io_uring", &expected, "io_uring_disabled=0 >/etc/sys"]);
        }
        host.remove("/proc/sys/kernel/io_uring_disabled");
        host.expect(CHECK, &["ok: io_uring is permitted"]);
    }

    #[test]
    fn missing_landlock_is_a_warning_and_missing_seccomp_an_error() {
        let mut host = TestHost::healthy();
        host.host.has_landlock = || false;
        host.write("/sys/kernel/security/lsm", "capability,yama,apparmor\n");
        host.expect(
            CHECK,
            &["warning: the kernel has no Landlock", "lsm=landlock,yama,apparmor\""],
        );
        host.remove("/proc/sys/kernel/seccomp");
        host.expect(CHECK, &["error: the kernel has no CONFIG_SECCOMP_FILTER"]);
    }
}
