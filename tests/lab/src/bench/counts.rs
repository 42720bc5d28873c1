//! The cost of a request: processor time and context switches for each server and, for xen-virtiod,
//! the growth of its counters and its system calls.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::stores::OURS;
use super::work::{self, Work};
use super::{block, net};

/// The devices of the requests, by their names in XenStore: xvdm and the first interface.
const DISK: &str = "virtio_disk/51904";
const INTERFACE: &str = "virtio/0";

/// The names of costs that all servers have: processor time of Dom0 and of the guest in
/// microseconds, and context switches in Dom0.
pub(crate) const DOM0_TIME: &str = "Dom0 µs";
const GUEST_TIME: &str = "guest µs";
const SWITCHES: &str = "Dom0 switches";

/// The context switches of xen-virtiod's threads, and its system calls.
const DAEMON_SWITCHES: &str = "daemon switches";
const CALLS: &str = "system calls";

/// The counted works of disks and of interfaces, with the number of requests of each: for streams
/// in MiB, for packets in seconds, because some are lost, and for round trips in milliseconds.
const OF_DISKS: &[(&str, u32)] = &[
    ("randread-4k-qd1", 4000),
    ("randread-4k-qd32", 12000),
    ("randwrite-4k-qd32", 12000),
    ("read-1m-qd4", 600),
    ("fsync-4k", 1500),
];
const OF_INTERFACES: &[(&str, u32)] = &[
    ("tcp-out", 256),
    ("tcp-in", 256),
    ("udp-64-out", 8),
    ("udp-64-in", 8),
    (net::ROUND_TRIPS, 4000),
];

/// The cost of the requests of one work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Counts {
    /// The kind of guest.
    pub(crate) guest: String,
    /// The work, by its key.
    pub(crate) work: String,
    /// The server.
    #[serde(default = "ours")]
    pub(crate) server: String,
    /// The number of requests: disk requests, packets, MiB of a stream, or round trips.
    pub(crate) requests: u64,
    /// Each cost, divided by the number of requests.
    pub(crate) per_request: BTreeMap<String, f64>,
}

fn ours() -> String {
    OURS.to_owned()
}

/// How often xen-virtiod's threads ran while there was nothing to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Idle {
    /// The kind of guest.
    pub(crate) guest: String,
    /// The time in seconds.
    pub(crate) seconds: u64,
    /// The context switches of all threads.
    pub(crate) switches: u64,
}

/// Returns a line for each counted work: the key, a small and a large number of requests, the other
/// server, and the tool's options.
pub(crate) fn list() -> String {
    let disks = OF_DISKS.iter().map(|counted| (counted, "blkback", "--"));
    let interfaces = OF_INTERFACES.iter().map(|counted| (counted, "netback", ""));
    let line = |((key, many), server, prefix): (&(&str, u32), &str, &str)| {
        let work = work::find(key)?;
        let options: String =
            work.options.iter().map(|option| format!(" {prefix}{option}")).collect();
        Some(format!("{key} {} {many} {server}{options}\n", many / 8))
    };
    disks.chain(interfaces).filter_map(line).collect()
}

/// The files that bench-counts leaves.
pub(crate) struct Files {
    files: BTreeMap<String, String>,
}

impl Files {
    /// Takes the files, each a name and its contents.
    pub(crate) fn new(files: Vec<(String, String)>) -> Files {
        Files { files: files.into_iter().collect() }
    }

    fn text(&self, name: &str) -> Result<&str> {
        let text = self.files.get(name);
        text.map(String::as_str).with_context(|| format!("the scenario left no file counts/{name}"))
    }

    /// Calculates the cost of each work for each server.
    ///
    /// # Errors
    /// A file is missing or cannot be parsed, or a device served no request.
    pub(crate) fn counts(&self, guest: &str) -> Result<Vec<Counts>> {
        let Some(costs) = self.files.get("costs") else { return Ok(Vec::new()) };
        let lines = costs.lines().map(Cost::parse).collect::<Result<Vec<_>>>()?;
        let mut all = Vec::new();
        for [few, many] in lines.as_chunks().0 {
            let work = work::find(many.work)
                .with_context(|| format!("counts/costs names an unknown work {}", many.work))?;
            let (requests, mut per_request) = slope(few, many)?;
            if many.server == OURS {
                self.add_counters(work, many.requests, &mut per_request)?;
            } else {
                per_request.remove(DAEMON_SWITCHES);
            }
            let (guest, work) = (guest.to_owned(), work.key.to_owned());
            all.push(Counts { guest, work, server: many.server.to_owned(), requests, per_request });
        }
        Ok(all)
    }

    /// Adds the growth of the daemon's counters over `requests`, and its system calls.
    fn add_counters(
        &self,
        work: &Work,
        requests: f64,
        per_request: &mut BTreeMap<String, f64>,
    ) -> Result<()> {
        let key = work.key;
        let is_disk = block::WORKS.iter().any(|disk| disk.key == key);
        let device = if is_disk { DISK } else { INTERFACE };
        let before = counters(device, self.text(&format!("{key}.before"))?)?;
        let after = counters(device, self.text(&format!("{key}.after"))?)?;
        for (name, now) in after.iter().filter(|(name, _)| is_cost(name)) {
            let grown = now.saturating_sub(*before.get(name).unwrap_or(&0));
            let short = name.strip_prefix("counts.").unwrap_or(name);
            per_request.insert(short.to_owned(), grown as f64 / requests);
        }
        let traced: f64 = self.text(&format!("{key}.traced"))?.trim().parse()?;
        ensure!(traced > 0.0, "counts/{key}.traced counts no request");
        let calls = total(self.text(&format!("{key}.calls"))?)?;
        per_request.insert(CALLS.to_owned(), calls as f64 / traced);
        Ok(())
    }

    /// Reads how often the daemon's threads ran without a request.
    ///
    /// # Errors
    /// The file does not have two numbers.
    pub(crate) fn idle(&self, guest: &str) -> Result<Option<Idle>> {
        let Some(text) = self.files.get("idle") else { return Ok(None) };
        let numbers = text
            .trim()
            .split_once(' ')
            .and_then(|(seconds, switches)| Some((seconds.parse().ok()?, switches.parse().ok()?)));
        let (seconds, switches) =
            numbers.with_context(|| format!("counts/idle has no two numbers: {text}"))?;
        Ok(Some(Idle { guest: guest.to_owned(), seconds, switches }))
    }
}

/// What a number of requests used: a line of the file `costs`.
struct Cost<'a> {
    work: &'a str,
    server: &'a str,
    requests: f64,
    /// Each use, by its name.
    uses: [(&'static str, f64); 4],
}

impl<'a> Cost<'a> {
    fn parse(line: &'a str) -> Result<Cost<'a>> {
        let parts: Vec<_> = line.split_whitespace().collect();
        let [work, server, requests, dom0, guest, switches, daemon] = parts[..] else {
            anyhow::bail!("counts/costs has a line of {} parts, not 7: {line}", parts.len());
        };
        let number = |text: &str| -> Result<f64> {
            text.parse().with_context(|| format!("counts/costs: {text} is no number"))
        };
        let uses = [
            (DOM0_TIME, number(dom0)? * 1e6),
            (GUEST_TIME, number(guest)? * 1e6),
            (SWITCHES, number(switches)?),
            (DAEMON_SWITCHES, number(daemon)?),
        ];
        Ok(Cost { work, server, requests: number(requests)?, uses })
    }
}

/// Returns the number of requests by which `many` exceeds `few`, and what each of these used. The
/// difference leaves out what a program uses to start and to end.
fn slope(few: &Cost<'_>, many: &Cost<'_>) -> Result<(u64, BTreeMap<String, f64>)> {
    let Cost { work, server, .. } = many;
    ensure!(
        few.work == *work && few.server == *server && few.requests < many.requests,
        "counts/costs has no two lines with few and many requests for {work} and {server}"
    );
    let requests = many.requests - few.requests;
    let uses = few.uses.iter().zip(many.uses);
    let per_request =
        uses.map(|((name, few), (_, many))| ((*name).to_owned(), (many - few) / requests));
    Ok((requests as u64, per_request.collect()))
}

/// Returns whether a counter is a cost of requests, such as notifications, and not their number.
fn is_cost(name: &str) -> bool {
    name.starts_with("counts.")
        || ["addresses.grant", "addresses.pool", "messages.received"].contains(&name)
}

/// Parses a connected device's counters, with names such as `requests.read`.
fn counters(name: &str, stat: &str) -> Result<BTreeMap<String, u64>> {
    let stat: Value =
        serde_json::from_str(stat).context("cannot parse the output of `stat --json`")?;
    let devices = stat.get("devices").and_then(Value::as_array);
    let devices = devices.context("the output of `stat --json` has no list of devices")?;
    let device = devices.iter().rfind(|device| {
        device.get("device").and_then(Value::as_str) == Some(name)
            && device.get("state").and_then(Value::as_str) == Some("connected")
    });
    let mut numbers = BTreeMap::new();
    flatten(
        "",
        device.with_context(|| format!("`stat --json` lists no connected {name}"))?,
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

    const COSTS: &str = "\
fsync-4k ours 100 0.5 0.3 900 300
fsync-4k ours 1000 1.4 1.2 2700 1200
fsync-4k blkback 100 0.5 0.3 900 40
fsync-4k blkback 1000 2.3 1.2 1800 40
";

    fn stat(reads: u64, events: u64) -> String {
        format!(
            r#"{{"devices":[
                {{"domid":1,"device":"{DISK}","state":"closed","requests":{{"read":9}}}},
                {{"domid":2,"device":"{DISK}","state":"connected","details":{{"a":"b"}},
                  "requests":{{"read":{reads},"write":0,"flush":1}},"grants_mapped":4,
                  "counts":{{"events_sent":{events}}},"addresses":{{"grant":{reads}}}}}]}}"#
        )
    }

    fn files() -> Files {
        let files = [
            ("costs", COSTS),
            ("fsync-4k.before", &stat(100, 20)),
            ("fsync-4k.after", &stat(1100, 120)),
            ("fsync-4k.calls", CALLS),
            ("fsync-4k.traced", "1500\n"),
            ("idle", "10 7\n"),
        ];
        Files::new(files.map(|(name, text)| (name.to_owned(), text.to_owned())).to_vec())
    }

    fn without(name: &str) -> Files {
        let mut files = files();
        files.files.remove(name);
        files
    }

    #[test]
    fn cost_of_starting_is_subtracted() {
        let counts = files().counts("pv").unwrap();
        let of = |counts: &Counts| -> Vec<(String, f64)> {
            let rounded = |value: &f64| (value * 1000.0).round() / 1000.0;
            counts.per_request.iter().map(|(name, value)| (name.clone(), rounded(value))).collect()
        };
        let named = |costs: &[(&str, f64)]| -> Vec<(String, f64)> {
            costs.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
        };
        let ours = [
            (SWITCHES, 2.0),
            (DOM0_TIME, 1000.0),
            ("addresses.grant", 1.0),
            (DAEMON_SWITCHES, 1.0),
            ("events_sent", 0.1),
            (GUEST_TIME, 1000.0),
            (super::CALLS, 2.0),
        ];
        assert_eq!((counts[0].server.as_str(), counts[0].requests), ("ours", 900));
        assert_eq!(of(&counts[0]), named(&ours));
        assert_eq!(counts[1].server, "blkback");
        assert_eq!(
            of(&counts[1]),
            named(&[(SWITCHES, 1.0), (DOM0_TIME, 2000.0), (GUEST_TIME, 1000.0)])
        );
    }

    #[test]
    fn missing_file_or_device_is_an_error() {
        for name in ["fsync-4k.before", "fsync-4k.calls", "fsync-4k.traced"] {
            let error = without(name).counts("pv").unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
        let mut files = files();
        files.files.insert("fsync-4k.after".into(), r#"{"devices":[]}"#.into());
        assert!(files.counts("pv").unwrap_err().to_string().contains(DISK));
        assert!(without("costs").counts("pv").unwrap().is_empty());
    }

    #[test]
    fn costs_of_another_work_are_an_error() {
        let mut files = files();
        files.files.insert("costs".into(), COSTS.replacen("fsync-4k ours", "read-1m-qd4 ours", 1));
        assert!(files.counts("pv").is_err());
    }

    #[test]
    fn idle_switches_are_read() {
        let idle = files().idle("pvh").unwrap().unwrap();
        assert_eq!((idle.seconds, idle.switches), (10, 7));
        assert_eq!(without("idle").idle("pvh").unwrap(), None);
    }

    #[test]
    fn counted_works_exist() {
        let list = list();
        assert_eq!(list.lines().count(), OF_DISKS.len() + OF_INTERFACES.len());
        for line in [
            "fsync-4k 187 1500 blkback --rw=randwrite --bs=4k --iodepth=1 --fsync=1\n",
            "udp-64-in 1 8 netback -u -b 0 -l 64 -R\n",
        ] {
            assert!(list.contains(line), "{list}");
        }
    }
}
