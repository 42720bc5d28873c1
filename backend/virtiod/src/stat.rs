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

/// Prints the devices that have ended.
///
/// # Errors
/// The error of the output.
pub fn print_ended(out: &mut impl Write, report: &Report) -> io::Result<()> {
    let mut ended = report.devices.iter().filter(|device| device.stats.state.state != "closed");
    ended.try_for_each(|device| {
        let kind = &device.stats.state.kind;
        writeln!(out, "domain {} {}: ended ({kind})", device.domid, device.device)
    })?;
    writeln!(out, "xen-virtiod has stopped")
}

fn print_device(out: &mut impl Write, device: &RegisteredDevice) -> io::Result<()> {
    let stats = &device.stats;
    let requests = &stats.requests;
    writeln!(out, "domain {} {}: {}", device.domid, device.device, stats.state.state)?;
    if let Some(error) = &stats.state.error {
        writeln!(out, "  error      {error}")?;
    }
    if let Some(paused) = &stats.state.paused {
        writeln!(out, "  paused     {paused}; `xen-virtiod resume` after the repair")?;
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
    match &stats.storage {
        Some(storage) if storage.waiting => writeln!(out, "  waiting for storage: {storage}")?,
        Some(storage) => writeln!(out, "  storage    {storage}")?,
        None => {}
    }
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
         sent, {} received, {} sleep(s), {} byte(s) copied",
        counts.maps,
        counts.maps_pages,
        counts.copies,
        counts.copies_pages,
        counts.events_sent,
        counts.events_received,
        counts.sleeps,
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use xen::DomId;
    use xen_virtiod::bus::DevicePath;
    use xen_virtiod::daemon::registry::Registry;
    use xen_virtiod::guest_log::GuestLog;
    use xen_virtiod::stats::StorageUse;

    use super::*;

    #[test]
    fn disk_that_waits_for_storage_is_shown_with_its_image() {
        let registry = Registry::default();
        let path = DevicePath { class: "virtio_disk".to_owned(), guest: DomId(1), number: 51712 };
        let stats = registry.begin(&path, Arc::<GuestLog>::default());
        let storage = Arc::new(StorageUse::new("/dev/vg/disk".to_owned(), 1));
        stats.set_storage(&storage);
        let part = StorageUse::add_part(&storage);
        let printed = |json| {
            let mut out = Vec::new();
            print(&mut out, &registry.report(), json).unwrap();
            String::from_utf8(out).unwrap()
        };
        let text = printed(false);
        let line = "\n  storage    0 of 1 request(s) in flight, image \"/dev/vg/disk\"\n";
        assert!(text.contains(line), "{text}");
        part.set_waiting(true);
        registry.end(&path);
        let text = printed(false);
        let line =
            "\n  waiting for storage: 0 of 1 request(s) in flight, image \"/dev/vg/disk\" locked\n";
        assert!(text.contains(line), "{text}");
        let object = "\"storage\":{\"image\":\"/dev/vg/disk\",\"in_flight\":0,\"limit\":1,\
                      \"oldest_ms\":null,\"waiting\":true}";
        assert!(printed(true).contains(object), "{}", printed(true));
        drop((part, storage));
        assert!(!printed(false).contains("waiting for storage"));
    }
}
