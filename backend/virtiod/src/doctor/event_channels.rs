//! Event channels of this domain. A device takes one, and one more for each of its queues.

use super::finding::Finding;
use super::host::Host;

/// Limits of Xen: with FIFO event channels, with the older ones, and of a guest whose configuration
/// has no `max_event_channels`.
const FIFO: usize = 131_071;
const TWO_LEVELS: usize = 4095;
const GUEST: usize = 1023;

pub(super) fn examine(host: &Host) -> Vec<Finding> {
    let Ok(interrupts) = host.text("/proc/interrupts") else {
        return vec![Finding::unknown("/proc/interrupts cannot be read")];
    };
    // As in `xen-dyn-lateeoi  evtchn:xen-virtiod` for those that programs have bound.
    let used = interrupts.lines().filter(|line| line.contains(" xen-")).count();
    let bound = interrupts.lines().filter(|line| line.contains(" evtchn:")).count();
    let has_fifo = !host.line("/proc/cmdline").split(' ').any(|it| it == "xen.fifo_events=0");
    let limit = match host.is_dom0() {
        true if has_fifo => FIFO,
        true => TWO_LEVELS,
        false => GUEST,
    };
    if used <= limit / 4 * 3 {
        return vec![Finding::ok(format!(
            "{used} of {limit} are bound, {bound} of them by programs"
        ))];
    }
    let text = format!("{used} of {limit} are bound, {bound} of them by programs: few are left");
    vec![match host.is_dom0() {
        true => Finding::warning(text)
            .mend("editor /etc/default/grub; update-grub; reboot   # without xen.fifo_events=0"),
        false => Finding::warning(format!("{text}, unless max_event_channels is set")).mend(
            "editor FILE   # in Dom0, this domain's configuration: max_event_channels = 8191; then \
             xl shutdown, and xl create",
        ),
    }]
}

#[cfg(test)]
mod tests {
    use super::super::tests::TestHost;

    const CHECK: &str = "event channels";

    fn bind(host: &TestHost, count: usize) {
        let line = " 9: 0 1  xen-dyn-lateeoi  evtchn:xen-virtiod\n".repeat(count);
        host.write("/proc/interrupts", &format!("  CPU0 CPU1\n 1: 5 0 xen-percpu timer0\n{line}"));
    }

    #[test]
    fn driver_domain_has_fewer_event_channels() {
        let mut host = TestHost::healthy();
        bind(&host, 765);
        host.expect(CHECK, &["ok: 766 of 131071 are bound, 765 of them by programs"]);
        host.become_driver_domain();
        bind(&host, 764);
        host.expect(CHECK, &["ok: 765 of 1023"]);
        bind(&host, 765);
        host.expect(CHECK, &["warning: 766 of 1023", "max_event_channels = 8191"]);
    }

    #[test]
    fn dom0_with_the_older_event_channels_has_fewer() {
        let host = TestHost::healthy();
        bind(&host, 4000);
        host.expect(CHECK, &["ok: 4001 of 131071"]);
        host.write("/proc/cmdline", "root=/dev/xvda xen.fifo_events=0 quiet\n");
        host.expect(CHECK, &["warning: 4001 of 4095", "without xen.fifo_events=0"]);
        host.remove("/proc/interrupts");
        host.expect(CHECK, &["unknown: /proc/interrupts"]);
    }
}
