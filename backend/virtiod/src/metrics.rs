//! Prints the statistics of devices as metrics: as OpenMetrics, and as the earlier text format of
//! Prometheus.
//!
//! The number of time series is bounded: only devices that are present have metrics, and no label
//! has a text that a guest's process chooses.

use std::fmt;
use std::fs::Permissions;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, MetricEncoder, NoLabelSet, prometheus_text, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use xen_virtiod::daemon::registry::{RegisteredDevice, Report};
use xen_virtiod::stats::{
    BUCKETS, LatencySnapshot, Operation, StatsSnapshot, StorageSnapshot, bound,
};

/// Bytes of a page of a guest.
const PAGE_BYTES: u64 = 4096;

/// The kinds and states that labels name; the processes of guests report them.
const KINDS: [&str; 5] = ["blk", "console", "net", "rng", "vsock"];
const STATES: [&str; 5] = ["starting", "waiting", "connected", "closed", "failed"];

/// The mode of a written file: another user's program reads it.
const MODE: u32 = 0o644;

/// A failure to write metrics.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// A metric has no text.
    #[error("cannot encode the metrics")]
    Encode(#[from] fmt::Error),
    /// The file cannot be replaced.
    #[error("cannot replace {path:?}: is its directory there, and may this user write to it?")]
    Replace {
        /// The file's path.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
}

/// Returns the metrics in the text format of OpenMetrics.
///
/// # Errors
/// [`MetricsError::Encode`].
pub fn open_metrics(report: Report) -> Result<String, MetricsError> {
    let mut out = String::new();
    text::encode(&mut out, &registry(report))?;
    Ok(out)
}

/// Returns the metrics in the text format of Prometheus.
fn prometheus(report: Report) -> Result<String, MetricsError> {
    let mut out = String::new();
    prometheus_text::encode(&mut out, &registry(report))?;
    Ok(out)
}

/// Replaces a file with the metrics in the text format of Prometheus. Whoever reads it sees either
/// file whole.
///
/// # Errors
/// [`MetricsError`].
pub fn replace_file(path: &Path, report: Report) -> Result<(), MetricsError> {
    let text = prometheus(report)?;
    let failed = |source| MetricsError::Replace { path: path.to_owned(), source };
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let beside = parent.unwrap_or(Path::new("."));
    let file = tempfile::Builder::new().prefix(".xen-virtiod-").tempfile_in(beside);
    let mut file = file.map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    file.as_file().set_permissions(Permissions::from_mode(MODE)).map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}

fn registry(report: Report) -> Registry {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Metrics(report)));
    registry
}

/// A report as metrics.
#[derive(Debug)]
struct Metrics(Report);

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let present: Vec<_> = self.0.devices.iter().filter(|device| !device.removed).collect();
        FAMILIES.iter().try_for_each(|family| family.encode(&present, &mut encoder))
    }
}

/// The value of one time series.
enum Value<'r> {
    Counter(u64),
    Gauge(u64),
    Seconds(Duration),
    Histogram(&'r LatencySnapshot),
    /// Its labels are the information.
    Info,
}

/// A time series of a device: the labels that it has besides those of the device, and its value.
struct Series<'r>(Vec<(&'static str, String)>, Value<'r>);

impl<'r> Series<'r> {
    fn of(value: Value<'r>) -> Vec<Self> {
        vec![Self(Vec::new(), value)]
    }

    fn of_operations(values: impl IntoIterator<Item = (&'static str, Value<'r>)>) -> Vec<Self> {
        let with_label = |(name, value)| Self(vec![("operation", str::to_owned(name))], value);
        values.into_iter().map(with_label).collect()
    }
}

/// Metrics with one name.
struct Family {
    /// The name without unit and `_total`.
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    kind: MetricType,
    of: fn(&StatsSnapshot) -> Vec<Series<'_>>,
}

impl Family {
    fn encode(&self, devices: &[&RegisteredDevice], to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let series = devices.iter().flat_map(|device| {
            let its = (self.of)(&device.stats).into_iter();
            its.map(|Series(more, value)| ([labels(device), more].concat(), value))
        });
        let series: Vec<_> = series.collect();
        if series.is_empty() {
            return Ok(());
        }
        let mut to = to.encode_descriptor(self.name, self.help, self.unit.as_ref(), self.kind)?;
        series.iter().try_for_each(|(labels, value)| encode(labels, value, &mut to))
    }
}

/// The labels of a device.
fn labels(device: &RegisteredDevice) -> Vec<(&'static str, String)> {
    vec![
        ("domain", device.domid.to_string()),
        ("guest", device.guest.clone().unwrap_or_default()),
        ("device", device.device.clone()),
        ("kind", one_of(&KINDS, &device.stats.state.kind)),
    ]
}

/// A text that is one of these, or "unknown", as before a device is opened.
fn one_of(texts: &[&str], text: &str) -> String {
    texts.iter().find(|known| **known == text).map_or("unknown", |known| known).to_owned()
}

fn encode(
    labels: &Vec<(&'static str, String)>,
    value: &Value<'_>,
    to: &mut MetricEncoder<'_>,
) -> fmt::Result {
    match value {
        Value::Info => to.encode_info(labels),
        Value::Counter(count) => {
            to.encode_family(labels)?.encode_counter::<NoLabelSet, _, f64>(count, None)
        }
        Value::Gauge(value) => to.encode_family(labels)?.encode_gauge(value),
        Value::Seconds(time) => to.encode_family(labels)?.encode_gauge(&time.as_secs_f64()),
        Value::Histogram(times) => {
            let seconds = |bucket| bound(bucket).map_or(f64::INFINITY, |time| time.as_secs_f64());
            let bounds = (0..BUCKETS).map(seconds);
            let buckets: Vec<_> = bounds.zip(times.buckets).collect();
            let sum = Duration::from_nanos(times.sum_ns).as_secs_f64();
            let mut to = to.encode_family(labels)?;
            to.encode_histogram::<NoLabelSet>(sum, times.count(), &buckets, None)
        }
    }
}

fn counter(count: u64) -> Vec<Series<'static>> {
    Series::of(Value::Counter(count))
}

fn gauge(value: u64) -> Vec<Series<'static>> {
    Series::of(Value::Gauge(value))
}

fn flag(is_set: bool) -> Vec<Series<'static>> {
    gauge(is_set.into())
}

fn pages_in_bytes(pages: u64) -> Vec<Series<'static>> {
    gauge(pages.saturating_mul(PAGE_BYTES))
}

fn device_info(stats: &StatsSnapshot) -> Vec<Series<'_>> {
    vec![Series(vec![("state", one_of(&STATES, &stats.state.state))], Value::Info)]
}

fn requests(stats: &StatsSnapshot) -> Vec<Series<'_>> {
    let requests = &stats.requests;
    let all = [("read", requests.read), ("write", requests.write)];
    let disk =
        [("flush", requests.flush), ("discard", requests.discard), ("get-id", requests.get_id)];
    let disk = disk.into_iter().filter(|_| stats.latency.is_some());
    Series::of_operations(
        all.into_iter().chain(disk).map(|(name, count)| (name, Value::Counter(count))),
    )
}

fn durations(stats: &StatsSnapshot) -> Vec<Series<'_>> {
    let Some(latency) = &stats.latency else { return Vec::new() };
    let times = |operation: Operation| Value::Histogram(latency.of(operation));
    Series::of_operations(Operation::ALL.map(|operation| (operation.name(), times(operation))))
}

fn dropped(stats: &StatsSnapshot) -> Vec<Series<'_>> {
    if stats.state.kind != "net" {
        return Vec::new();
    }
    let counts = [("read", stats.dropped.to_guest), ("write", stats.dropped.from_guest)];
    Series::of_operations(counts.map(|(name, count)| (name, Value::Counter(count))))
}

fn data(stats: &StatsSnapshot) -> Vec<Series<'_>> {
    let counts = [("read", stats.bytes.read), ("write", stats.bytes.written)];
    Series::of_operations(counts.map(|(name, count)| (name, Value::Counter(count))))
}

/// A gauge of a disk's use of its image.
fn of_storage(
    stats: &StatsSnapshot,
    value: impl FnOnce(&StorageSnapshot) -> Value<'static>,
) -> Vec<Series<'static>> {
    stats.storage.as_ref().map_or_else(Vec::new, |storage| Series::of(value(storage)))
}

/// A counter or gauge of socket devices.
fn of_sockets(stats: &StatsSnapshot, value: Value<'static>) -> Vec<Series<'static>> {
    if stats.state.kind == "vsock" { Series::of(value) } else { Vec::new() }
}

/// All metrics, in the order in which they are printed.
const FAMILIES: &[Family] = &[
    Family {
        name: "xen_virtiod_device",
        help: "State of the device.",
        unit: None,
        kind: MetricType::Info,
        of: device_info,
    },
    Family {
        name: "xen_virtiod_device_connected",
        help: "Whether the guest's driver uses the device.",
        unit: None,
        kind: MetricType::Gauge,
        of: |stats| flag(stats.state.state == "connected"),
    },
    Family {
        name: "xen_virtiod_device_paused",
        help: "Whether the disk waits for xen-virtiod resume, since its storage failed.",
        unit: None,
        kind: MetricType::Gauge,
        of: |stats| flag(stats.state.paused.is_some()),
    },
    Family {
        name: "xen_virtiod_device_needs_reset",
        help: "Whether the device has stopped until the guest binds it anew.",
        unit: None,
        kind: MetricType::Gauge,
        of: |stats| flag(stats.state.needs_reset.is_some()),
    },
    Family {
        name: "xen_virtiod_requests",
        help: "Requests answered with success. A network device counts packets: it reads those to \
               the guest, and writes those from it.",
        unit: None,
        kind: MetricType::Counter,
        of: requests,
    },
    Family {
        name: "xen_virtiod_requests_failed",
        help: "Requests answered with an error.",
        unit: None,
        kind: MetricType::Counter,
        of: |stats| counter(stats.requests.failed),
    },
    Family {
        name: "xen_virtiod_request_duration",
        help: "Time from taking a request out of its queue to answering it with success.",
        unit: Some(Unit::Seconds),
        kind: MetricType::Histogram,
        of: durations,
    },
    Family {
        name: "xen_virtiod_requests_in_flight",
        help: "Requests of a disk that wait for storage.",
        unit: None,
        kind: MetricType::Gauge,
        of: |stats| of_storage(stats, |storage| Value::Gauge(storage.in_flight)),
    },
    Family {
        name: "xen_virtiod_requests_in_flight_limit",
        help: "Most requests of a disk that wait for storage at a time.",
        unit: None,
        kind: MetricType::Gauge,
        of: |stats| of_storage(stats, |storage| Value::Gauge(storage.limit)),
    },
    Family {
        name: "xen_virtiod_oldest_request_age",
        help: "Time for which the oldest request of a disk has waited for storage; 0 without one.",
        unit: Some(Unit::Seconds),
        kind: MetricType::Gauge,
        of: |stats| {
            of_storage(stats, |storage| {
                Value::Seconds(Duration::from_millis(storage.oldest_ms.unwrap_or(0)))
            })
        },
    },
    Family {
        name: "xen_virtiod_data",
        help: "Data that the guest read from the device or wrote to it.",
        unit: Some(Unit::Bytes),
        kind: MetricType::Counter,
        of: data,
    },
    Family {
        name: "xen_virtiod_packets_dropped",
        help: "Dropped packets of a network device: read are those to the guest.",
        unit: None,
        kind: MetricType::Counter,
        of: dropped,
    },
    Family {
        name: "xen_virtiod_rate_limit_waits",
        help: "Times that a rate limit delayed the device.",
        unit: None,
        kind: MetricType::Counter,
        of: |stats| counter(stats.waits),
    },
    Family {
        name: "xen_virtiod_connections",
        help: "Connections that a socket device made.",
        unit: None,
        kind: MetricType::Counter,
        of: |stats| of_sockets(stats, Value::Counter(stats.connections.made)),
    },
    Family {
        name: "xen_virtiod_connections_open",
        help: "Connections of a socket device that are open.",
        unit: None,
        kind: MetricType::Gauge,
        of: |stats| of_sockets(stats, Value::Gauge(stats.connections.open)),
    },
    Family {
        name: "xen_virtiod_pool_addresses",
        help: "Buffers of requests that were in the guest's pool.",
        unit: None,
        kind: MetricType::Counter,
        of: |stats| counter(stats.addresses.pool),
    },
    Family {
        name: "xen_virtiod_grant_addresses",
        help: "Buffers that the guest granted for one request, as when its pool is full.",
        unit: None,
        kind: MetricType::Counter,
        of: |stats| counter(stats.addresses.grant),
    },
    Family {
        name: "xen_virtiod_refused_addresses",
        help: "Buffers that were refused: not granted, or not for writing.",
        unit: None,
        kind: MetricType::Counter,
        of: |stats| counter(stats.addresses.refused),
    },
    Family {
        name: "xen_virtiod_mapped",
        help: "Memory of the guest that is mapped, its pool included.",
        unit: Some(Unit::Bytes),
        kind: MetricType::Gauge,
        of: |stats| pages_in_bytes(stats.grants_mapped),
    },
    Family {
        name: "xen_virtiod_pool",
        help: "Memory of the guest's pool that is mapped.",
        unit: Some(Unit::Bytes),
        kind: MetricType::Gauge,
        of: |stats| pages_in_bytes(stats.pool_pages),
    },
    Family {
        name: "xen_virtiod_grant_maps",
        help: "Mappings of granted pages.",
        unit: None,
        kind: MetricType::Counter,
        of: |stats| counter(stats.counts.maps),
    },
    Family {
        name: "xen_virtiod_grant_map_pages",
        help: "Pages in mappings of granted pages.",
        unit: None,
        kind: MetricType::Counter,
        of: |stats| counter(stats.counts.maps_pages),
    },
    Family {
        name: "xen_virtiod_grant_copies",
        help: "Copies of granted pages by the hypervisor.",
        unit: None,
        kind: MetricType::Counter,
        of: |stats| counter(stats.counts.copies),
    },
    Family {
        name: "xen_virtiod_grant_copy_pages",
        help: "Pages in copies by the hypervisor.",
        unit: None,
        kind: MetricType::Counter,
        of: |stats| counter(stats.counts.copies_pages),
    },
    Family {
        name: "xen_virtiod_copied",
        help: "Data that the daemon itself copied from or into buffers.",
        unit: Some(Unit::Bytes),
        kind: MetricType::Counter,
        of: |stats| counter(stats.counts.bytes_copied),
    },
    Family {
        name: "xen_virtiod_notifications_sent",
        help: "Events sent to the guest's driver.",
        unit: None,
        kind: MetricType::Counter,
        of: |stats| counter(stats.counts.events_sent),
    },
    Family {
        name: "xen_virtiod_notifications_received",
        help: "Events received from the guest's driver.",
        unit: None,
        kind: MetricType::Counter,
        of: |stats| counter(stats.counts.events_received),
    },
    Family {
        name: "xen_virtiod_sleeps",
        help: "Times that the device's threads slept.",
        unit: None,
        kind: MetricType::Counter,
        of: |stats| counter(stats.counts.sleeps),
    },
    Family {
        name: "xen_virtiod_messages",
        help: "Messages received from the guest's driver.",
        unit: None,
        kind: MetricType::Counter,
        of: |stats| counter(stats.messages.received),
    },
    Family {
        name: "xen_virtiod_messages_malformed",
        help: "Messages from the guest's driver that were dropped as malformed or unknown.",
        unit: None,
        kind: MetricType::Counter,
        of: |stats| counter(stats.messages.malformed),
    },
];

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use serde_json::Value as Json;

    use super::*;
    use crate::sample_report::{PRESENT, full_report};

    /// A family of an exposition.
    #[derive(Debug, Default)]
    struct Parsed {
        kind: String,
        unit: Option<String>,
        /// Name, labels and value of each sample.
        samples: Vec<(String, String, f64)>,
    }

    /// Parses the text format of OpenMetrics, as far as these metrics use it. Panics where the
    /// text is none.
    fn parse(text: &str) -> BTreeMap<String, Parsed> {
        let lines = text.strip_suffix("# EOF\n").expect("there is no end");
        let mut families = BTreeMap::<String, Parsed>::new();
        let (mut name, mut series) = (String::new(), BTreeSet::new());
        for line in lines.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (family, help) = help.split_once(' ').unwrap();
                assert!(help.ends_with('.'), "{line}");
                name = family.to_owned();
                assert!(families.insert(name.clone(), Parsed::default()).is_none(), "{line}");
                continue;
            }
            let family = families.get_mut(&name).unwrap();
            if let Some(kind) = line.strip_prefix(&format!("# TYPE {name} ")) {
                assert!(family.kind.is_empty() && family.samples.is_empty(), "{line}");
                family.kind = kind.to_owned();
            } else if let Some(unit) = line.strip_prefix(&format!("# UNIT {name} ")) {
                assert!(name.ends_with(&format!("_{unit}")) && family.samples.is_empty(), "{line}");
                family.unit = Some(unit.to_owned());
            } else {
                let (sample, labels) = line.split_once('{').unwrap();
                let (labels, value) = labels.rsplit_once("} ").unwrap();
                let suffix = sample.strip_prefix(&name).unwrap();
                let suffixes: &[_] = match family.kind.as_str() {
                    "counter" => &["_total"],
                    "gauge" => &[""],
                    "histogram" => &["_sum", "_count", "_bucket"],
                    "info" => &["_info"],
                    other => panic!("{other}"),
                };
                assert!(suffixes.contains(&suffix), "{line}");
                assert!(series.insert((sample.to_owned(), labels.to_owned())), "twice: {line}");
                let value = value.parse().unwrap();
                family.samples.push((sample.to_owned(), labels.to_owned(), value));
            }
        }
        families
    }

    fn names(families: &BTreeMap<String, Parsed>) -> BTreeSet<&str> {
        let samples = families.values().flat_map(|family| &family.samples);
        samples.map(|(name, ..)| name.as_str()).collect()
    }

    #[test]
    fn exposition_has_each_family_once_with_its_unit() {
        let families = parse(&open_metrics(full_report()).unwrap());
        assert_eq!(families.len(), FAMILIES.len(), "a family has no sample");
        for (name, Parsed { kind, unit, samples }) in &families {
            assert!(name.starts_with("xen_virtiod_") && !kind.is_empty(), "{name}");
            assert!(!samples.is_empty(), "{name}");
            let has_unit = ["_seconds", "_bytes"].iter().any(|unit| name.ends_with(unit));
            assert_eq!(unit.is_some(), has_unit, "{name}");
        }
        let connected = &families["xen_virtiod_device_connected"].samples;
        assert_eq!(connected.len(), PRESENT, "{connected:?}");
    }

    #[test]
    fn label_values_are_escaped() {
        let text = open_metrics(full_report()).unwrap();
        let labels =
            r#"domain="5",guest="web \"1\"\nand \\ more",device="virtio_disk/51712",kind="blk""#;
        let line = format!("xen_virtiod_device_connected{{{labels}}} 1\n");
        assert!(text.contains(&line), "{text}");
    }

    #[test]
    fn histogram_counts_up_to_each_bound_and_all_requests() {
        let families = parse(&open_metrics(full_report()).unwrap());
        let samples = &families["xen_virtiod_request_duration_seconds"].samples;
        let of = |suffix: &str| -> Vec<_> {
            let is_its = |name: &str, labels: &str| {
                name.ends_with(suffix)
                    && labels.contains("domain=\"5\"")
                    && labels.contains("operation=\"read\"")
            };
            let its = samples.iter().filter(|(name, labels, _)| is_its(name, labels));
            its.map(|(_, labels, value)| (labels.clone(), *value)).collect()
        };
        let (buckets, count, sum) = (of("_bucket"), of("_count"), of("_sum"));
        assert_eq!((buckets.len(), count.len(), sum.len()), (BUCKETS, 1, 1));
        assert!(buckets.windows(2).all(|pair| pair[0].1 <= pair[1].1), "{buckets:?}");
        let at = |bound: &str| {
            let label = format!("le=\"{bound}\"");
            buckets.iter().find(|(labels, _)| labels.contains(&label)).unwrap().1
        };
        assert_eq!([at("0.000064"), at("0.000128"), at("+Inf")], [0.0, 100.0, 101.0]);
        assert_eq!((count[0].1, sum[0].1), (101.0, 100.0 * 100e-6 + 2.0));
    }

    #[test]
    fn removed_devices_have_no_metrics() {
        let text = open_metrics(full_report()).unwrap();
        assert!(text.contains("domain=\"5\"") && !text.contains("domain=\"4\""), "{text}");
        let none = open_metrics(Report { devices: Vec::new() }).unwrap();
        assert_eq!(none, "# EOF\n");
    }

    #[test]
    fn process_of_a_guest_chooses_no_label() {
        let mut report = full_report();
        let state = &mut report.devices[0].stats.state;
        (state.kind, state.state) = ("invented-1".to_owned(), "invented-2".to_owned());
        state.details.insert("target".to_owned(), "invented-3".to_owned());
        let text = open_metrics(report).unwrap();
        assert!(text.contains("kind=\"unknown\",state=\"unknown\"} 1"), "{text}");
        assert!(!text.contains("invented"), "{text}");
    }

    #[test]
    fn file_is_replaced_whole_and_readable_by_others() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("xen-virtiod.prom");
        fs::write(&path, "earlier").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        let before = fs::metadata(&path).unwrap().ino();
        replace_file(&path, full_report()).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let line = "\nxen_virtiod_mapped_bytes{domain=\"6\",guest=\"\",device=\"virtio/0\",";
        assert!(text.contains(line) && !text.contains("# EOF"), "{text}");
        let metadata = fs::metadata(&path).unwrap();
        assert_ne!(metadata.ino(), before, "a reader could see half of the file");
        assert_eq!(metadata.mode() & 0o777, MODE);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        let nowhere = replace_file(Path::new("/nowhere/x.prom"), full_report());
        assert!(matches!(nowhere, Err(MetricsError::Replace { .. })), "{nowhere:?}");
    }

    #[test]
    fn both_formats_have_the_same_samples() {
        let (open, earlier) = (open_metrics(full_report()), prometheus(full_report()));
        let samples = |text: &str| -> BTreeSet<String> {
            let samples = text.lines().filter(|line| !line.starts_with('#'));
            samples.map(|line| line.split('{').next().unwrap().to_owned()).collect()
        };
        let samples = [samples(&open.unwrap()), samples(&earlier.unwrap())];
        assert_eq!(samples[0], samples[1]);
    }

    /// The names of metrics in an expression.
    fn named(expression: &str) -> impl Iterator<Item = &str> {
        let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        words.filter(|word| word.starts_with("xen_virtiod"))
    }

    /// All texts in a JSON value.
    fn texts(value: &Json) -> Vec<&str> {
        match value {
            Json::String(text) => vec![text],
            Json::Array(values) => values.iter().flat_map(texts).collect(),
            Json::Object(fields) => fields.values().flat_map(texts).collect(),
            _ => Vec::new(),
        }
    }

    #[test]
    fn dashboard_names_metrics_and_labels_that_there_are() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("grafana.json");
        let dashboard: Json = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        let text = open_metrics(full_report()).unwrap();
        let families = parse(&text);
        let names = names(&families);
        let texts = texts(&dashboard);
        let used: BTreeSet<_> = texts.iter().flat_map(|text| named(text)).collect();
        assert!(used.len() > 10, "{used:?}");
        let unknown: Vec<_> = used.difference(&names).collect();
        assert!(unknown.is_empty(), "the dashboard names {unknown:?}");
        for by in texts.iter().flat_map(|text| text.split("by (").skip(1)) {
            let labels = by.split(')').next().unwrap().split(", ");
            let labels: Vec<_> =
                labels.filter(|label| !text.contains(&format!("{label}=\""))).collect();
            assert!(labels.is_empty(), "the dashboard names {labels:?}");
        }
    }
}
