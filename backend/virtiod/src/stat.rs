//! Prints the output of `xen-virtiod stat`.

#[cfg(test)]
mod schema;
pub mod watch;

use std::io::{self, Write};
use std::time::Duration;

use xen_virtiod::daemon::registry::{RegisteredDevice, Report};
use xen_virtiod::excerpt::one_line;
use xen_virtiod::hot_plug::vdev::Vdev;
use xen_virtiod::stats::{LatencySnapshots, Operation, StatsSnapshot};

/// The percentiles that are shown, by name.
const PERCENTILES: [(&str, f64); 3] = [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)];

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

/// The guest's name, if it is known.
fn guest(device: &RegisteredDevice) -> Option<String> {
    device.guest.as_deref().map(one_line)
}

/// A disk's name, such as xvda.
pub(super) fn vdev(device: &RegisteredDevice) -> Option<String> {
    let number = device.device.strip_prefix("virtio_disk/")?;
    Vdev::of_number(number.parse().ok()?).map(|vdev| vdev.to_string())
}

/// The state in words.
fn state(stats: &StatsSnapshot) -> &str {
    match stats.state.state.as_str() {
        "" => "being opened",
        "waiting" => "waiting for the guest's driver",
        state => state,
    }
}

/// The percentiles of each operation that the guest used; `None` if it used none.
fn latency(latency: &LatencySnapshots) -> Option<String> {
    let of = |operation: Operation| {
        let times = latency.of(operation);
        let percentile =
            |(name, share)| Some(format!("{name} {}", short(times.percentile(share)?)));
        let shown: Vec<_> = PERCENTILES.into_iter().filter_map(percentile).collect();
        (!shown.is_empty()).then(|| format!("{} {}", operation.name(), shown.join(" ")))
    };
    let all: Vec<_> = Operation::ALL.into_iter().filter_map(of).collect();
    (!all.is_empty()).then(|| all.join(", "))
}

/// A time with two or three digits.
fn short(time: Duration) -> String {
    let micros = time.as_secs_f64() * 1e6;
    let (value, unit) = match micros {
        ..1e3 => (micros, "us"),
        ..1e6 => (micros / 1e3, "ms"),
        _ => (micros / 1e6, "s"),
    };
    // 9.96 would be 10.0.
    let digits = usize::from(value < 9.95);
    format!("{value:.digits$}{unit}")
}

fn print_device(out: &mut impl Write, device: &RegisteredDevice) -> io::Result<()> {
    let stats = &device.stats;
    let requests = &stats.requests;
    let names: Vec<_> = [vdev(device), guest(device)].into_iter().flatten().collect();
    let names = if names.is_empty() { names } else { vec![format!(" ({})", names.join(" of "))] };
    let removed = if device.removed { ", removed" } else { "" };
    let (domid, name, state) = (device.domid, &device.device, state(stats));
    writeln!(out, "domain {domid} {name}{}: {state}{removed}", names.concat())?;
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
    if let Some(latency) = stats.latency.as_ref().and_then(latency) {
        writeln!(out, "  latency    {latency}")?;
    }
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

    #[test]
    fn device_is_shown_with_the_names_of_guest_and_disk_and_its_state_in_words() {
        let registry = Registry::default();
        let begin = |class: &str, guest| {
            let path = DevicePath { class: class.to_owned(), guest: DomId(guest), number: 51728 };
            (registry.begin(&path, Arc::<GuestLog>::default()), path)
        };
        let (disk, path) = begin("virtio_disk", 5);
        disk.set_guest("web\n");
        disk.update(|state| (state.kind, state.state) = ("blk".to_owned(), "waiting".to_owned()));
        begin("virtio_disk", 6);
        begin("virtio", 7);
        let printed = || {
            let mut out = Vec::new();
            print(&mut out, &registry.report(), false).unwrap();
            let text = String::from_utf8(out).unwrap();
            text.lines().filter(|line| line.starts_with("domain")).collect::<Vec<_>>().join("; ")
        };
        let expected = "domain 5 virtio_disk/51728 (xvdb of web\\n): waiting for the guest's driver; \
                        domain 6 virtio_disk/51728 (xvdb): being opened; \
                        domain 7 virtio/51728: being opened";
        assert_eq!(printed(), expected);
        disk.update(|state| state.state = "closed".to_owned());
        registry.end(&path);
        assert!(printed().ends_with("(xvdb of web\\n): closed, removed"), "{}", printed());
    }

    #[test]
    fn readme_shows_what_is_printed() {
        let registry = Registry::default();
        let path = DevicePath { class: "virtio_disk".to_owned(), guest: DomId(5), number: 51712 };
        let stats = registry.begin(&path, Arc::<GuestLog>::default());
        stats.set_guest("web");
        stats.update(|state| {
            (state.kind, state.state) = ("blk".to_owned(), "connected".to_owned());
        });
        let storage = Arc::new(StorageUse::new("/dev/vg/web1".to_owned(), 256));
        stats.set_storage(&storage);
        let part = StorageUse::add_part(&storage);
        let printed = || {
            let mut report = registry.report();
            let shown = report.devices[0].stats.storage.as_mut().unwrap();
            (shown.in_flight, shown.oldest_ms) = (2, Some(61_400));
            let mut out = Vec::new();
            print(&mut out, &report, false).unwrap();
            String::from_utf8(out).unwrap()
        };
        let readme = include_str!("../README.md");
        let line = |begin: &str| {
            let text = printed();
            let lines = text.lines().map(str::trim);
            lines.into_iter().find(|line| line.starts_with(begin)).unwrap().to_owned()
        };
        let first = line("domain 5");
        assert!(readme.replace('\n', " ").contains(&format!("`{first}`")), "{first}");
        let shown = line("storage ");
        assert!(readme.contains(&format!("\n    {shown}\n")), "{shown}");
        part.set_waiting(true);
        registry.end(&path);
        let shown = line("waiting for storage");
        assert!(readme.contains(&format!("\n    {shown}\n")), "{shown}");
    }

    #[test]
    fn latency_is_shown_by_operation() {
        let latencies = xen_virtiod::stats::Latencies::default();
        assert_eq!(latency(&latencies.snapshot()), None);
        latencies.record(Operation::Read, 100_000, 99);
        latencies.record(Operation::Read, 3_000_000, 1);
        latencies.record(Operation::Flush, 12_000_000_000, 1);
        let expected = "read p50 96us p99 128us p99.9 3.9ms, flush p50 13s p99 17s p99.9 17s";
        assert_eq!(latency(&latencies.snapshot()).unwrap(), expected);
    }

    #[test]
    fn times_have_two_or_three_digits() {
        for (nanos, text) in [
            (0, "0.0us"),
            (1_500, "1.5us"),
            (9_970, "10us"),
            (87_400, "87us"),
            (1_234_000, "1.2ms"),
            (345_000_000, "345ms"),
            (61_400_000_000, "61s"),
        ] {
            assert_eq!(short(Duration::from_nanos(nanos)), text);
        }
    }
}
