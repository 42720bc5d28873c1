//! The service manager.

use super::finding::Finding;
use super::host::Host;

/// The first version that keeps a unit's descriptors while it is stopped.
const KEEPS: u32 = 254;

pub(super) fn examine(host: &Host) -> Vec<Finding> {
    if !host.has_systemd() {
        let text = "systemd does not run this system: start xen-virtiod again yourself when it has \
                    ended; consoles then have other terminals";
        return vec![Finding::ok(text)];
    }
    let version = (host.run)("systemctl", &["--version"]);
    let version = version.as_deref().and_then(|text| text.split_whitespace().nth(1)?.parse().ok());
    vec![match version {
        None::<u32> => Finding::unknown("systemctl does not say its version"),
        Some(version) if version < KEEPS => {
            let text = format!(
                "systemd {version} is older than {KEEPS}: `systemctl stop` and then `start` give \
                 consoles other terminals and end the connections of programs; a restart does not"
            );
            Finding::warning(text).mend("systemctl restart xen-virtiod   # never stop, then start")
        }
        Some(version) => Finding::ok(format!("systemd {version} keeps terminals and sockets")),
    }]
}

#[cfg(test)]
mod tests {
    use super::super::tests::TestHost;

    const CHECK: &str = "systemd";

    #[test]
    fn old_systemd_keeps_nothing_while_the_unit_is_stopped() {
        let mut host = TestHost::healthy();
        host.expect(CHECK, &["ok: systemd 257 keeps"]);
        host.answer("systemctl --version", "systemd 253 (253.1)\n+PAM\n");
        host.expect(CHECK, &["warning: systemd 253 is older than 254", "systemctl restart"]);
        host.answer("systemctl --version", "systemd 254 (254~rc1)\n");
        host.expect(CHECK, &["ok: systemd 254"]);
        host.answer("systemctl --version", "");
        host.expect(CHECK, &["unknown: systemctl does not say"]);
        host.remove("/run/systemd/system");
        host.expect(CHECK, &["ok: systemd does not run this system"]);
    }
}
