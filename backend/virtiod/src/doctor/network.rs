//! The host's network, if guests use it.

use std::collections::BTreeMap;
use std::io;

use super::domain;
use super::finding::Finding;
use super::host::Host;
use super::inventory::Kind;
use crate::tap::network::{Bridge, USUAL_BRIDGE};

const TUN: &str = "/dev/net/tun";
/// The flag of an interface that is up (IFF_UP).
const UP: u64 = 1;

pub(super) fn examine(host: &Host) -> Vec<Finding> {
    // An invalid file is another check's.
    let config = host.config.load().ok().flatten().unwrap_or_default();
    let named: Vec<_> = config.bridges().collect();
    let devices = host.inventory.as_ref().map_or(0, |inventory| inventory.count(Kind::Network));
    if named.is_empty() && domain::is_xen(host) && host.inventory.is_err() {
        return host.inventory().err().into_iter().collect();
    }
    if devices == 0 && named.is_empty() {
        return vec![Finding::ok("no guest has a network device, and no bridge is configured")];
    }
    let mut findings: Vec<_> = examine_tun(host).into_iter().collect();
    // The names of bridges that must exist, and whether a port has VLANs of its own.
    let mut names = BTreeMap::new();
    for (bridge, has_vlans) in &named {
        match bridge {
            Bridge::Named(name) => *names.entry(name.to_string()).or_insert(false) |= has_vlans,
            Bridge::Usual if *has_vlans => {
                names.insert(USUAL_BRIDGE.to_owned(), true);
            }
            Bridge::Usual | Bridge::Alone => {}
        }
    }
    let is_alone = named.iter().any(|(bridge, _)| *bridge == Bridge::Alone);
    for (name, has_vlans) in &names {
        findings.extend(examine_bridge(host, name, true));
        findings.extend(examine_filter(host, name).filter(|_| *has_vlans));
    }
    if names.is_empty() && devices > 0 && !is_alone {
        findings.extend(examine_bridge(host, USUAL_BRIDGE, false));
    }
    match findings.is_empty() {
        true => vec![Finding::ok("/dev/net/tun and all bridges are there")],
        false => findings,
    }
}

fn examine_tun(host: &Host) -> Option<Finding> {
    let error = (host.try_open)(&host.path(TUN)).err()?;
    if error.kind() == io::ErrorKind::PermissionDenied && !host.is_root {
        return Some(Finding::root_only(TUN));
    }
    let text = format!("{TUN} cannot be opened, so that guests have no network devices: {error}");
    Some(Finding::error(text).mend("modprobe tun"))
}

/// Looks at a bridge that must exist, or that is used if it exists.
fn examine_bridge(host: &Host, name: &str, is_required: bool) -> Option<Finding> {
    let create = format!("ip link add {name} type bridge; ip link set {name} up");
    let interface = format!("/sys/class/net/{name}");
    if !host.has(&interface) {
        return Some(match is_required {
            true => {
                let text = format!(
                    "the configuration needs the bridge {name}, which does not exist: devices \
                     that are to join it are refused"
                );
                Finding::error(text).mend(create)
            }
            false => {
                let text = format!("there is no bridge {name}: guests' interfaces join none");
                Finding::warning(text).mend(create)
            }
        });
    }
    if !host.has(format!("{interface}/bridge")) {
        let text = format!("{name} is not a bridge: devices that are to join it are refused");
        let mend = format!("editor {}   # bridge = \"...\"", host.config.path().display());
        return Some(Finding::error(text).mend(mend));
    }
    let flags = host.line(format!("{interface}/flags"));
    let flags = u64::from_str_radix(flags.trim_start_matches("0x"), 16).ok()?;
    (flags & UP == 0).then(|| {
        let text = format!("the bridge {name} is down: it passes no packets");
        Finding::warning(text).mend(format!("ip link set {name} up"))
    })
}

/// Looks at a bridge one of whose ports has VLANs of its own.
fn examine_filter(host: &Host, name: &str) -> Option<Finding> {
    let setting = |file: &str| host.line(format!("/sys/class/net/{name}/bridge/{file}"));
    host.has(format!("/sys/class/net/{name}/bridge")).then_some(())?;
    let is_on = setting("vlan_filtering") == "1" && setting("vlan_protocol") == "0x8100";
    (!is_on).then(|| {
        let text = format!(
            "the bridge {name} does not filter VLANs: devices with vlan = \"...\" are refused"
        );
        let mend = format!("ip link set {name} type bridge vlan_filtering 1 vlan_protocol 802.1Q");
        Finding::error(text).mend(mend)
    })
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::super::inventory::StoreFailure;
    use super::super::tests::TestHost;

    const CHECK: &str = "network";
    const USUAL: &str = "/sys/class/net/xenbr0";

    #[test]
    fn missing_usual_bridge_is_a_warning() {
        let host = TestHost::healthy();
        host.expect(CHECK, &["ok: /dev/net/tun and all bridges"]);
        host.write("/sys/class/net/xenbr0/flags", "0x1002\n");
        host.expect(CHECK, &["warning: the bridge xenbr0 is down", "mend: ip link set xenbr0 up"]);
        host.remove("/sys/class/net/xenbr0/bridge");
        host.expect(CHECK, &["error: xenbr0 is not a bridge", "mend: editor "]);
        host.remove(USUAL);
        host.expect(CHECK, &["warning: there is no bridge xenbr0", "ip link add xenbr0 type bri"]);
        host.configure("[default.net]\nbridge = \"none\"\n");
        host.expect(CHECK, &["ok: /dev/net/tun"]);
    }

    #[test]
    fn a_bridge_that_does_not_filter_vlans_is_an_error_if_a_port_has_some() {
        let host = TestHost::healthy();
        let filter = "error: the bridge xenbr0 does not filter VLANs";
        for bridge in ["", "bridge = \"xenbr0\"\n"] {
            host.configure(&format!("[domain.web.virtio.0.net]\n{bridge}vlan = \"10\"\n"));
            host.write("/sys/class/net/xenbr0/bridge/vlan_filtering", "0\n");
            host.write("/sys/class/net/xenbr0/bridge/vlan_protocol", "0x8100\n");
            host.expect(CHECK, &[filter, "ip link set xenbr0 type bridge vlan_filtering 1"]);
            host.write("/sys/class/net/xenbr0/bridge/vlan_filtering", "1\n");
            host.expect(CHECK, &["ok: /dev/net/tun and all bridges"]);
            host.write("/sys/class/net/xenbr0/bridge/vlan_protocol", "0x88a8\n");
            host.expect(CHECK, &[filter]);
        }
        host.configure("[default.net]\nvlan = \"none\"\n");
        host.expect(CHECK, &["ok: /dev/net/tun and all bridges"]);
    }

    #[test]
    fn missing_bridge_that_is_named_is_an_error() {
        let host = TestHost::healthy();
        host.remove(USUAL);
        for text in ["[default.net]", "[domain.web.virtio.0.net]"] {
            host.configure(&format!("{text}\nbridge = \"inside\"\n"));
            host.expect(
                CHECK,
                &["error: the configuration needs the bridge inside", "ip link add"],
            );
        }
    }

    #[test]
    fn host_without_network_devices_needs_no_network() {
        let mut host = TestHost::healthy();
        host.hypervisor.store_remove("/local/domain/0/backend/virtio/3/0");
        host.remove(USUAL);
        host.remove("/dev/net/tun");
        host.expect(CHECK, &["ok: no guest has a network device"]);
        host.fail_store(StoreFailure::NotPermitted);
        host.expect(CHECK, &["unknown: XenStore does not show"]);
    }

    #[test]
    fn missing_tun_is_an_error() {
        let mut host = TestHost::healthy();
        host.remove("/dev/net/tun");
        host.expect(CHECK, &["error: /dev/net/tun cannot be opened", "mend: modprobe tun"]);
        host.host.try_open = |_| Err(io::ErrorKind::PermissionDenied.into());
        host.host.is_root = false;
        host.expect(CHECK, &["unknown: /dev/net/tun: only root"]);
    }
}
