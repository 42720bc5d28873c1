//! Prints what devices do in an interval: a line for each, as iostat does.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use xen_virtiod::daemon::registry::{RegisteredDevice, Report};
use xen_virtiod::stats::{LatencySnapshot, LatencySnapshots, Operation, StatsSnapshot};

use super::{guest, short, state, vdev};

/// Moves the cursor to the top of the terminal and clears it.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// The age from which on the oldest request of a disk is shown.
const OLD: Duration = Duration::from_secs(1);

/// The columns at the left: the device. They are wider where a name is longer.
const NAMES: [(&str, usize); 3] = [("GUEST", 16), ("DEVICE", 10), ("KIND", 7)];

/// The columns of numbers. Rates are per second; `grant%` is the part of the buffers that are not
/// in the pool.
const NUMBERS: [(&str, usize); 14] = [
    ("r/s", 8),
    ("w/s", 8),
    ("f/s", 6),
    ("rMB/s", 8),
    ("wMB/s", 8),
    ("depth", 5),
    ("r-p50", 6),
    ("r-p99", 6),
    ("w-p50", 6),
    ("w-p99", 6),
    ("f-p50", 6),
    ("f-p99", 6),
    ("grant%", 6),
    ("err/s", 6),
];

/// A report and its time.
#[derive(Clone, Debug)]
pub struct Sample {
    report: Report,
    at: Instant,
}

impl Sample {
    /// A report that has just been made.
    pub fn of(report: Report) -> Self {
        Self { report, at: Instant::now() }
    }
}

/// Prints the difference between two samples, on a cleared screen if `clears`.
///
/// # Errors
/// The error of the output.
pub fn print(out: &mut impl Write, before: &Sample, now: &Sample, clears: bool) -> io::Result<()> {
    if clears {
        write!(out, "{CLEAR}")?;
    }
    let present: Vec<_> = now.report.devices.iter().filter(|device| !device.removed).collect();
    let widths = widths(&present);
    let head = NUMBERS.map(|(name, width)| format!("{name:>width$}"));
    let names = aligned(&NAMES.map(|(name, _)| name.to_owned()), widths);
    writeln!(out, "{names} {}", head.join(" "))?;
    let seconds = now.at.saturating_duration_since(before.at).as_secs_f64();
    for device in present {
        let is_it = |other: &&RegisteredDevice| {
            !other.removed && (other.domid, &other.device) == (device.domid, &device.device)
        };
        let before = before.report.devices.iter().find(is_it).map(|device| &device.stats);
        let names = aligned(&names_of(device), widths);
        writeln!(out, "{names} {}", line(&device.stats, before, seconds))?;
    }
    if !clears {
        writeln!(out)?;
    }
    Ok(())
}

fn names_of(device: &RegisteredDevice) -> [String; 3] {
    [
        guest(device).unwrap_or_else(|| device.domid.to_string()),
        vdev(device).unwrap_or_else(|| device.device.clone()),
        device.stats.state.kind.clone(),
    ]
}

/// The widths of the columns at the left.
fn widths(devices: &[&RegisteredDevice]) -> [usize; 3] {
    let mut widths = NAMES.map(|(_, width)| width);
    for device in devices {
        let lengths = names_of(device).map(|name| name.chars().count());
        widths.iter_mut().zip(lengths).for_each(|(width, length)| *width = length.max(*width));
    }
    widths
}

fn aligned(names: &[String; 3], widths: [usize; 3]) -> String {
    let columns = names.iter().zip(widths).map(|(name, width)| format!("{name:<width$}"));
    columns.collect::<Vec<_>>().join(" ")
}

/// The line of a device, behind its names. Without an earlier snapshot, it was set up in the
/// interval.
fn line(now: &StatsSnapshot, before: Option<&StatsSnapshot>, seconds: f64) -> String {
    let numbers = numbers(now, before, seconds);
    let numbers = numbers.iter().zip(NUMBERS).map(|(text, (_, width))| format!("{text:>width$}"));
    let columns: Vec<_> = numbers.chain(note(now)).collect();
    columns.join(" ")
}

fn numbers(now: &StatsSnapshot, before: Option<&StatsSnapshot>, seconds: f64) -> [String; 14] {
    // The process that serves the device may be another one, which counts from 0.
    let more = |count: fn(&StatsSnapshot) -> u64| {
        let (now, before) = (count(now), before.map_or(0, count));
        now.checked_sub(before).unwrap_or(now)
    };
    let rate = |count| more(count) as f64 / seconds.max(1e-3);
    let megabytes = |rate: f64| format!("{:.1}", rate / 1e6);
    let (granted, pooled) = (more(|it| it.addresses.grant), more(|it| it.addresses.pool));
    let buffers = granted.saturating_add(pooled);
    let granted = (buffers > 0).then(|| 100.0 * granted as f64 / buffers as f64);
    let times = |operation| in_interval(now, before, operation);
    let percentile = |times: &Option<LatencySnapshot>, share| {
        times.as_ref().and_then(|times| times.percentile(share)).map_or("-".to_owned(), short)
    };
    let [read, write, flush] = [Operation::Read, Operation::Write, Operation::Flush].map(times);
    [
        few_digits(rate(|it| it.requests.read)),
        few_digits(rate(|it| it.requests.write)),
        few_digits(rate(|it| it.requests.flush)),
        megabytes(rate(|it| it.bytes.read)),
        megabytes(rate(|it| it.bytes.written)),
        now.storage.as_ref().map_or("-".to_owned(), |storage| storage.in_flight.to_string()),
        percentile(&read, 0.5),
        percentile(&read, 0.99),
        percentile(&write, 0.5),
        percentile(&write, 0.99),
        percentile(&flush, 0.5),
        percentile(&flush, 0.99),
        granted.map_or("-".to_owned(), few_digits),
        few_digits(rate(errors)),
    ]
}

/// A number, with a digit behind the point if it is small and not 0.
fn few_digits(number: f64) -> String {
    let digits = usize::from(number > 0.0 && number < 9.95);
    format!("{number:.digits$}")
}

/// Requests that failed, and packets that were dropped.
fn errors(stats: &StatsSnapshot) -> u64 {
    let dropped = stats.dropped.to_guest.saturating_add(stats.dropped.from_guest);
    stats.requests.failed.saturating_add(dropped)
}

/// The times of an operation's requests in the interval.
fn in_interval(
    now: &StatsSnapshot,
    before: Option<&StatsSnapshot>,
    operation: Operation,
) -> Option<LatencySnapshot> {
    let of = |latency: &LatencySnapshots| latency.of(operation).clone();
    let now = now.latency.as_ref().map(of)?;
    let before = before.and_then(|before| before.latency.as_ref()).map(of);
    Some(before.map_or_else(|| now.clone(), |before| now.since(&before)))
}

/// What else is to be known: why the device does not work, or an old request.
fn note(stats: &StatsSnapshot) -> Option<String> {
    if let Some(error) = &stats.state.error {
        return Some(format!("error: {error}"));
    }
    if let Some(why) = &stats.state.paused {
        return Some(format!("paused: {why}"));
    }
    if let Some(why) = &stats.state.needs_reset {
        return Some(format!("needs reset: {why}"));
    }
    if stats.state.state != "connected" {
        return Some(state(stats).to_owned());
    }
    let oldest = stats.storage.as_ref()?.oldest_ms.map(Duration::from_millis);
    oldest.filter(|age| *age >= OLD).map(|age| format!("oldest request {}", short(age)))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::Ordering;

    use xen::DomId;
    use xen_virtiod::bus::DevicePath;
    use xen_virtiod::daemon::registry::Registry;
    use xen_virtiod::guest_log::GuestLog;
    use xen_virtiod::stats::{DeviceStats, StorageUse};

    use super::*;

    fn begin(registry: &Registry, class: &str, guest: u16) -> Arc<DeviceStats> {
        let path = DevicePath { class: class.to_owned(), guest: DomId(guest), number: 51712 };
        let stats = registry.begin(&path, Arc::<GuestLog>::default());
        let kind = if class == "virtio" { "net" } else { "blk" };
        stats.update(|state| {
            (state.kind, state.state) = (kind.to_owned(), "connected".to_owned());
        });
        stats
    }

    fn printed(before: &Sample, now: &Sample, clears: bool) -> String {
        let mut out = Vec::new();
        print(&mut out, before, now, clears).unwrap();
        String::from_utf8(out).unwrap()
    }

    /// The two lines of a screen with one device, with one space between two columns.
    fn columns(before: &Sample, now: &Sample) -> String {
        let text = printed(before, now, false);
        let line = text.lines().nth(1).unwrap();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    fn after(registry: &Registry, before: &Sample, seconds: u64) -> Sample {
        Sample { report: registry.report(), at: before.at + Duration::from_secs(seconds) }
    }

    #[test]
    fn rates_and_latency_are_those_of_the_interval() {
        let registry = Registry::default();
        let disk = begin(&registry, "virtio_disk", 5);
        disk.set_guest("web");
        let storage = Arc::new(StorageUse::new("/image".to_owned(), 4));
        disk.set_storage(&storage);
        let part = StorageUse::add_part(&storage);
        let add = |counter: &std::sync::atomic::AtomicU64, count| {
            counter.fetch_add(count, Ordering::Relaxed);
        };
        add(&disk.reads, 1000);
        disk.latency.record(Operation::Read, 9_000_000_000, 1000);
        let before = Sample::of(registry.report());
        add(&disk.reads, 20);
        add(&disk.bytes_read, 5_000_000);
        add(&disk.writes, 2);
        add(&disk.flushes, 4);
        add(&disk.failed, 6);
        add(&disk.grant_addresses, 1);
        add(&disk.pool_addresses, 3);
        disk.latency.record(Operation::Read, 100_000, 20);
        part.begin(0, xen_virtiod::stats::Tick::now());
        let now = after(&registry, &before, 2);
        let expected = "web xvda blk 10 1.0 2.0 2.5 0.0 1 96us 127us - - - - 25 3.0";
        assert_eq!(columns(&before, &now), expected);
        // Nothing has happened since.
        let later = after(&registry, &now, 1);
        assert_eq!(columns(&now, &later), "web xvda blk 0 0 0 0.0 0.0 1 - - - - - - - 0");
        // Another process counts from 0.
        let (mut many, few) = (now.clone(), now.clone());
        many.report.devices[0].stats.requests.read = 5000;
        assert!(columns(&many, &after(&registry, &few, 1)).contains(" blk 1020 "));
    }

    #[test]
    fn readme_shows_what_is_printed() {
        let registry = Registry::default();
        let disk = |guest: &str, domain, number| {
            let class = "virtio_disk".to_owned();
            let path = DevicePath { class, guest: DomId(domain), number };
            let stats = registry.begin(&path, Arc::<GuestLog>::default());
            stats.set_guest(guest);
            stats.update(|state| {
                (state.kind, state.state) = ("blk".to_owned(), "connected".to_owned());
            });
            let storage = Arc::new(StorageUse::new("/image".to_owned(), 256));
            stats.set_storage(&storage);
            stats.pool_addresses.store(1, Ordering::Relaxed);
            (stats, storage)
        };
        let ((web, storage), (mail, _idle)) = (disk("web", 5, 51712), disk("mail", 6, 51728));
        let part = StorageUse::add_part(&storage);
        part.begin(0, xen_virtiod::stats::Tick::now());
        let before = Sample::of(registry.report());
        for stats in [&web, &mail] {
            stats.reads.store(1374, Ordering::Relaxed);
            stats.bytes_read.store(1374 << 12, Ordering::Relaxed);
            stats.pool_addresses.store(951, Ordering::Relaxed);
            stats.grant_addresses.store(50, Ordering::Relaxed);
            stats.latency.record(Operation::Read, 45_000, 1350);
            stats.latency.record(Operation::Read, 300_000, 24);
        }
        web.writes.store(310, Ordering::Relaxed);
        web.bytes_written.store(310 << 15, Ordering::Relaxed);
        web.flushes.store(86, Ordering::Relaxed);
        web.failed.store(1, Ordering::Relaxed);
        web.latency.record(Operation::Write, 100_000, 300);
        web.latency.record(Operation::Write, 500_000, 10);
        web.latency.record(Operation::Flush, 400_000, 80);
        web.latency.record(Operation::Flush, 50_000_000, 6);
        let text = printed(&before, &after(&registry, &before, 1), false);
        let quoted: String = text.trim_end().lines().map(|line| format!("    {line}\n")).collect();
        let readme = include_str!("../../README.md");
        assert!(readme.contains(&quoted), "README.md does not have\n{quoted}");
    }

    #[test]
    fn present_devices_have_a_line_each_and_removed_ones_none() {
        let registry = Registry::default();
        let before = Sample::of(registry.report());
        begin(&registry, "virtio_disk", 7);
        registry.end(&DevicePath {
            class: "virtio_disk".to_owned(),
            guest: DomId(7),
            number: 51712,
        });
        let net = begin(&registry, "virtio", 6);
        net.reads.store(30, Ordering::Relaxed);
        net.dropped_to_guest.store(10, Ordering::Relaxed);
        let now = after(&registry, &before, 10);
        let text = printed(&before, &now, false);
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.starts_with("GUEST ") && text.ends_with("\n\n"), "{text}");
        let expected = "6 virtio/51712 net 3.0 0 0 0.0 0.0 - - - - - - - - 1.0";
        assert_eq!(columns(&before, &now), expected);
        let screen = printed(&before, &now, true);
        assert_eq!(screen, format!("{CLEAR}{}", text.trim_end().to_owned() + "\n"));
    }

    #[test]
    fn numbers_stand_below_their_heads() {
        let registry = Registry::default();
        begin(&registry, "virtio", 6);
        let sample = Sample::of(registry.report());
        let text = printed(&sample, &sample, false);
        let ends: Vec<_> = text.lines().take(2).map(|line| line.trim_end().len()).collect();
        assert_eq!(ends[0], ends[1], "{text}");
    }

    #[test]
    fn line_ends_with_why_a_device_does_not_work() {
        let registry = Registry::default();
        let disk = begin(&registry, "virtio_disk", 5);
        let storage = Arc::new(StorageUse::new(String::new(), 1));
        disk.set_storage(&storage);
        let noted = || note(&registry.report().devices[0].stats);
        assert_eq!(noted(), None);
        let mut stats = registry.report().devices[0].stats.clone();
        stats.storage.as_mut().unwrap().oldest_ms = Some(61_400);
        assert_eq!(note(&stats).unwrap(), "oldest request 61s");
        disk.update(|state| state.state = "waiting".to_owned());
        assert_eq!(noted().unwrap(), "waiting for the guest's driver");
        disk.update(|state| state.needs_reset = Some("bad ring".to_owned()));
        assert_eq!(noted().unwrap(), "needs reset: bad ring");
        disk.update(|state| state.error = Some("no image".to_owned()));
        assert_eq!(noted().unwrap(), "error: no image");
    }
}
