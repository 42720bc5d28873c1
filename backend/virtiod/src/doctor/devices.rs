//! Devices that the daemon does not serve.

use super::daemon::Daemon;
use super::finding::Finding;
use super::host::Host;
use crate::daemon::registry::RegisteredDevice;

pub(super) fn examine(host: &Host) -> Vec<Finding> {
    let Daemon::Present { report, .. } = &host.daemon else {
        return vec![Finding::unknown("no daemon says which devices it serves")];
    };
    let there = || report.devices.iter().filter(|device| device.stats.state.state != "closed");
    let findings: Vec<_> = there().flat_map(|device| examine_one(host, device)).collect();
    match findings.is_empty() {
        true => {
            vec![Finding::ok(format!("the daemon serves all of {} device(s)", there().count()))]
        }
        false => findings,
    }
}

fn examine_one(host: &Host, device: &RegisteredDevice) -> Vec<Finding> {
    let (guest, name) = (host.guest(device.domid), &device.device);
    let mut findings = Vec::new();
    if let Some(error) = &device.stats.state.error {
        let text = format!("{name} of {guest} is not served: {error}");
        let mend =
            format!("xl shutdown -w {}; xl create FILE   # in Dom0, after that", device.domid);
        findings.push(Finding::error(text).mend(mend));
    }
    if let Some(why) = &device.stats.state.needs_reset {
        let text = format!("{name} of {guest} has stopped until the guest binds it anew: {why}");
        let name = name.replace('/', "-");
        let mend = format!(
            "cd /sys/bus/xen/drivers/virtio_msg_xen; echo {name} >unbind; echo {name} >bind   \
             # in the guest"
        );
        findings.push(Finding::warning(text).mend(mend));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::daemon::Daemon;
    use super::super::tests::TestHost;

    const CHECK: &str = "devices";

    #[test]
    fn refused_device_is_an_error_and_a_stopped_one_a_warning() {
        let mut host = TestHost::healthy();
        host.expect(CHECK, &["ok: the daemon serves all of 1 "]);
        let Daemon::Present { report, .. } = &mut host.host.daemon else { unreachable!() };
        let state = &mut report.devices[0].stats.state;
        state.error = Some("image is locked".to_owned());
        state.needs_reset = Some("descriptor loop".to_owned());
        host.expect(
            CHECK,
            &[
                "error: virtio_disk/51712 of web is not served: image is locked",
                "mend: xl shutdown -w 3;",
                "warning: virtio_disk/51712 of web has stopped until the guest binds it anew: desc",
                "echo virtio_disk-51712 >unbind",
            ],
        );
    }

    #[test]
    fn removed_device_does_not_count() {
        let mut host = TestHost::healthy();
        let Daemon::Present { report, .. } = &mut host.host.daemon else { unreachable!() };
        let state = &mut report.devices[0].stats.state;
        (state.error, state.state) = (Some("image is locked".to_owned()), "closed".to_owned());
        host.expect(CHECK, &["ok: the daemon serves all of 0 "]);
        host.host.daemon = Daemon::Absent;
        host.expect(CHECK, &["unknown: no daemon says"]);
    }
}
