//! File descriptors of the daemon.

use super::finding::Finding;
use super::host::Host;

/// Maximum number of descriptors that a device takes, and what the daemon takes without any.
const EACH: u64 = 20;
const OWN: u64 = 64;
/// The limit of the unit.
const USUAL: u64 = 524_288;

pub(super) fn examine(host: &Host) -> Vec<Finding> {
    let devices = host.inventory.as_ref().map_or(0, |inventory| inventory.served.len());
    let needed = OWN + EACH * devices as u64;
    let running = host.daemon.process().and_then(|process| {
        Some((process, limit_of(&host.text(format!("/proc/{process}/limits")).ok()?)?))
    });
    let (limit, used) = match running {
        Some((process, limit)) => (limit, host.names(format!("/proc/{process}/fd")).len() as u64),
        None => (host.most_descriptors, 0),
    };
    if limit >= needed && used <= limit / 4 * 3 {
        let whose = if running.is_some() { "the daemon" } else { "a daemon started here" };
        return vec![Finding::ok(format!("{whose} may have {limit}, and has {used} open"))];
    }
    let text = format!(
        "the daemon may have {limit} file descriptors; {used} are open, and {devices} device(s) may \
         take {needed}: further devices are refused"
    );
    vec![Finding::warning(text).mend(match host.has_systemd() {
        true => format!(
            "systemctl edit xen-virtiod   # [Service], then a line LimitNOFILE={USUAL}; then \
             systemctl restart xen-virtiod"
        ),
        false => format!("ulimit -Hn {USUAL}; xen-virtiod   # as root"),
    })]
}

/// The soft limit of descriptors in `/proc/PID/limits`.
fn limit_of(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::daemon::Daemon;
    use super::super::tests::TestHost;

    const CHECK: &str = "descriptors";

    #[test]
    fn limit_below_the_need_of_devices_is_a_warning() {
        let mut host = TestHost::healthy();
        host.expect(CHECK, &["ok: the daemon may have 524288, and has 2 open"]);
        host.limit_descriptors(123);
        host.expect(CHECK, &["warning: the daemon may have 123", "LimitNOFILE=524288"]);
        host.limit_descriptors(124);
        host.expect(CHECK, &["ok: the daemon may have 124"]);
        host.host.daemon = Daemon::Absent;
        host.expect(CHECK, &["ok: a daemon started here may have 524288, and has 0 open"]);
        host.host.most_descriptors = 100;
        host.remove("/run/systemd/system");
        host.expect(CHECK, &["warning: ", "3 device(s) may take 124", "ulimit -Hn 524288"]);
    }

    #[test]
    fn daemon_that_has_most_of_its_descriptors_open_is_a_warning() {
        let host = TestHost::healthy();
        host.limit_descriptors(200);
        for number in 2..151 {
            host.write(&format!("/proc/77/fd/{number}"), "");
        }
        host.expect(CHECK, &["warning: the daemon may have 200", "151 are open"]);
    }
}
