//! Prints the output of `xen-virtiod stat`.

use std::io::{self, Write};

use xen_virtiod::daemon::registry::{RegisteredDevice, Report};

/// Prints a report, as JSON or for a person.
///
/// # Errors
/// The error of the output.
pub fn print(out: &mut impl Write, report: &Report, json: bool) -> io::Result<()> {
    if json {
        serde_json::to_writer(&mut *out, report)?;
        return writeln!(out);
    }
    if report.devices.is_empty() {
        return writeln!(out, "no devices");
    }
    report.devices.iter().try_for_each(|device| print_device(out, device))
}

fn print_device(out: &mut impl Write, device: &RegisteredDevice) -> io::Result<()> {
    let stats = &device.stats;
    let requests = &stats.requests;
    writeln!(out, "domain {} {}: {}", device.domid, device.device, stats.state.state)?;
    if let Some(error) = &stats.state.error {
        writeln!(out, "  error      {error}")?;
    }
    for (key, value) in &stats.state.details {
        writeln!(out, "  {key:<10} {value}")?;
    }
    writeln!(out, "  features   {}", stats.state.features.join(" "))?;
    writeln!(
        out,
        "  requests   {} read, {} write, {} flush, {} discard, {} get-id, {} failed",
        requests.read,
        requests.write,
        requests.flush,
        requests.discard,
        requests.get_id,
        requests.failed
    )?;
    if stats.state.kind == "net" {
        let dropped = &stats.dropped;
        writeln!(
            out,
            "  dropped    {} to the guest, {} from the guest",
            dropped.to_guest, dropped.from_guest
        )?;
    }
    writeln!(out, "  bytes      {} read, {} written", stats.bytes.read, stats.bytes.written)?;
    if stats.connections.made > 0 {
        let connections = &stats.connections;
        writeln!(out, "  streams    {} made, {} open", connections.made, connections.open)?;
    }
    if stats.waits > 0 {
        writeln!(out, "  waits      {} for its rate", stats.waits)?;
    }
    writeln!(
        out,
        "  addresses  {} by grant, {} in the pool, {} refused",
        stats.addresses.grant, stats.addresses.pool, stats.addresses.refused
    )?;
    writeln!(
        out,
        "  mapped     {} page(s), {} of them the pool's",
        stats.grants_mapped, stats.pool_pages
    )?;
    let counts = &stats.counts;
    writeln!(
        out,
        "  cost       {} mapping(s) of {} page(s), {} copies of {} page(s), {} notification(s) \
         sent, {} received, {} sleep(s), {} change(s) of policy, {} byte(s) copied",
        counts.maps,
        counts.maps_pages,
        counts.copies,
        counts.copies_pages,
        counts.events_sent,
        counts.events_received,
        counts.sleeps,
        counts.policy_changes,
        counts.bytes_copied
    )?;
    writeln!(
        out,
        "  messages   {} received, {} malformed",
        stats.messages.received, stats.messages.malformed
    )?;
    match &stats.state.needs_reset {
        Some(why) => writeln!(out, "  needs reset: {why}"),
        None => Ok(()),
    }
}
