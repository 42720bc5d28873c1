//! The cost of a request: the growth of xen-virtiod's counters over a number of requests, and its
//! system calls.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::block::WORKS;

/// The disk of the requests, xvdm, by its name in XenStore.
const DEVICE: &str = "virtio_disk/51904";

/// The counted works, with the number of requests of each.
const COUNTED: &[(&str, u32)] = &[
    ("randread-4k-qd1", 500),
    ("randread-4k-qd32", 2000),
    ("randwrite-4k-qd32", 2000),
    ("read-1m-qd4", 60),
    ("fsync-4k", 300),
];

/// The cost of the requests of one work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Counts {
    /// The kind of guest.
    pub(crate) guest: String,
    /// The work, by its key.
    pub(crate) work: String,
    /// The number of requests that the device served.
    pub(crate) requests: u64,
    /// The growth of each counter, divided by the number of requests.
    pub(crate) per_request: BTreeMap<String, f64>,
}

/// Returns a line for each counted work: the key, and fio's options.
pub(crate) fn list() -> String {
    let line = |(key, requests): &(&str, u32)| {
        let work = WORKS.iter().find(|work| work.key == *key)?;
        let options: Vec<_> = work.options.iter().map(|option| format!("--{option}")).collect();
        Some(format!("{key} {} --number_ios={requests}\n", options.join(" ")))
    };
    COUNTED.iter().filter_map(line).collect()
}

/// Calculates the cost from the output of `xen-virtiod stat --json` before and after the requests,
/// and from the summary of `strace -c` over as many requests again.
///
/// # Errors
/// A text cannot be parsed, or the device served no request.
pub(crate) fn counts(
    guest: &str,
    work: &str,
    before: &str,
    after: &str,
    calls: &str,
) -> Result<Counts> {
    let (before, after) = (counters(before)?, counters(after)?);
    let grown = |name: &str| {
        let (then, now) = (before.get(name).unwrap_or(&0), after.get(name).unwrap_or(&0));
        now.saturating_sub(*then)
    };
    let requests = ["read", "write", "flush"].map(|kind| grown(&format!("requests.{kind}")));
    let requests = requests.iter().sum::<u64>();
    ensure!(requests > 0, "the counters show no request");
    let per_request = |count: u64| count as f64 / requests as f64;
    let counted = after.keys().filter(|name| is_cost(name)).map(|name| {
        let short = name.strip_prefix("counts.").unwrap_or(name);
        (short.to_owned(), per_request(grown(name)))
    });
    let mut costs: BTreeMap<_, _> = counted.collect();
    costs.insert("system calls".to_owned(), per_request(total(calls)?));
    Ok(Counts { guest: guest.to_owned(), work: work.to_owned(), requests, per_request: costs })
}

/// Returns whether a counter is a cost of requests, such as notifications, and not their number.
fn is_cost(name: &str) -> bool {
    name.starts_with("counts.")
        || ["addresses.grant", "addresses.pool", "messages.received"].contains(&name)
}

/// Parses the connected device's counters, with names such as `requests.read`.
fn counters(stat: &str) -> Result<BTreeMap<String, u64>> {
    let stat: Value =
        serde_json::from_str(stat).context("cannot parse the output of `stat --json`")?;
    let devices = stat.get("devices").and_then(Value::as_array);
    let devices = devices.context("the output of `stat --json` has no list of devices")?;
    let device = devices.iter().rfind(|device| {
        device.get("device").and_then(Value::as_str) == Some(DEVICE)
            && device.get("state").and_then(Value::as_str) == Some("connected")
    });
    let mut numbers = BTreeMap::new();
    flatten(
        "",
        device.with_context(|| format!("`stat --json` lists no connected {DEVICE}"))?,
        &mut numbers,
    );
    Ok(numbers)
}

fn flatten(prefix: &str, value: &Value, numbers: &mut BTreeMap<String, u64>) {
    if let Some(number) = value.as_u64() {
        numbers.insert(prefix.to_owned(), number);
    }
    for (name, value) in value.as_object().into_iter().flatten() {
        let name = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        flatten(&name, value, numbers);
    }
}

/// Returns the number of calls in strace's summary: the fourth column of the line `total`.
fn total(summary: &str) -> Result<u64> {
    let line = summary.lines().rfind(|line| line.trim_end().ends_with(" total"));
    let calls = line.and_then(|line| line.split_whitespace().nth(3)?.parse().ok());
    calls.with_context(|| format!("strace's summary has no line `total` with a count: {summary}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALLS: &str = "\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 60.00    0.006000           3      2000           ioctl
 40.00    0.004000           2      1000         7 poll
------ ----------- ----------- --------- --------- ----------------
100.00    0.010000           3      3000         7 total
";

    fn stat(reads: u64, events: u64) -> String {
        format!(
            r#"{{"devices":[
                {{"domid":1,"device":"{DEVICE}","state":"closed","requests":{{"read":9}}}},
                {{"domid":2,"device":"{DEVICE}","state":"connected","details":{{"a":"b"}},
                  "requests":{{"read":{reads},"write":0,"flush":1}},"grants_mapped":4,
                  "counts":{{"events_sent":{events}}},"addresses":{{"grant":{reads}}}}}]}}"#
        )
    }

    #[test]
    fn growth_is_divided_by_the_requests() {
        let counts = counts("pv", "fsync-4k", &stat(100, 20), &stat(1100, 120), CALLS).unwrap();
        assert_eq!(counts.requests, 1000);
        let per_request: Vec<_> =
            counts.per_request.iter().map(|(n, v)| (n.as_str(), *v)).collect();
        let expected = [("addresses.grant", 1.0), ("events_sent", 0.1), ("system calls", 3.0)];
        assert_eq!(per_request, expected);
    }

    #[test]
    fn missing_requests_device_or_summary_is_an_error() {
        assert!(counts("pv", "x", &stat(1, 1), &stat(1, 1), CALLS).is_err());
        assert!(counts("pv", "x", r#"{"devices":[]}"#, &stat(1, 1), CALLS).is_err());
        assert!(counts("pv", "x", &stat(1, 1), &stat(9, 1), "strace: no").is_err());
    }

    #[test]
    fn counted_works_exist() {
        assert_eq!(list().lines().count(), COUNTED.len());
        assert!(
            list().contains(
                "fsync-4k --rw=randwrite --bs=4k --iodepth=1 --fsync=1 --number_ios=300\n"
            )
        );
    }
}
