//! The network measurements: what is done, and how its tools' output is read.
//!
//! A round of a guest's is a file of results: `ROUND-WORK@SERVER.json` of iperf3's, and `.rate`, a number of round
//! trips a second, of the request-response loop's.

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use super::block::Extent;
use super::sample::{Sample, Task};
use super::work::{Unit, Work};

/// The bridge that a guest's packets go to: the only target there is.
const TARGET: &str = "bridge";

/// All work there is; the options are those of the guest's iperf3.
pub(crate) const WORKS: &[Work] = &[
    Work {
        key: "tcp-out",
        name: "one TCP stream, from the guest",
        unit: Unit::Bytes,
        quick: true,
        options: &[],
    },
    Work {
        key: "tcp-in",
        name: "one TCP stream, to the guest",
        unit: Unit::Bytes,
        quick: true,
        options: &["-R"],
    },
    Work {
        key: "tcp-8-out",
        name: "8 TCP streams, from the guest",
        unit: Unit::Bytes,
        quick: false,
        options: &["-P", "8"],
    },
    Work {
        key: "tcp-8-in",
        name: "8 TCP streams, to the guest",
        unit: Unit::Bytes,
        quick: false,
        options: &["-P", "8", "-R"],
    },
    Work {
        key: "udp-64-out",
        name: "packets of 64 bytes, from the guest",
        unit: Unit::Count,
        quick: true,
        options: &["-u", "-b", "0", "-l", "64"],
    },
    Work {
        key: "udp-64-in",
        name: "packets of 64 bytes, to the guest",
        unit: Unit::Count,
        quick: false,
        options: &["-u", "-b", "0", "-l", "64", "-R"],
    },
    Work {
        key: ROUND_TRIPS,
        name: "requests and responses of one byte",
        unit: Unit::Count,
        quick: true,
        options: &[],
    },
];

/// The one that iperf3 does not do.
const ROUND_TRIPS: &str = "tcp-rr";

/// The works of a run, a line each: the key, and the options of the tool.
pub(crate) fn list(extent: Extent) -> String {
    let works = WORKS.iter().filter(|work| extent.has(work));
    works.map(|work| format!("{} {}\n", work.key, work.options.join(" "))).collect()
}

#[derive(Deserialize)]
struct Output {
    error: Option<String>,
    end: Option<End>,
}

#[derive(Deserialize)]
struct End {
    sum: Option<Packets>,
    sum_received: Option<Received>,
}

#[derive(Deserialize)]
struct Packets {
    seconds: f64,
    packets: f64,
    lost_packets: f64,
}

#[derive(Deserialize)]
struct Received {
    bits_per_second: f64,
}

/// What the file `name` says.
pub(crate) fn sample(guest: &str, name: &str, text: &str) -> Result<Sample> {
    let parts = name.rsplit_once('.').and_then(|(stem, kind)| {
        let (work, server) = stem.split_once('-')?.1.split_once('@')?;
        Some((WORKS.iter().find(|known| known.key == work)?, server, kind))
    });
    let (work, server, kind) = parts.with_context(|| format!("{name} names no work"))?;
    let rate = match kind {
        "json" => iperf(work, text)?,
        "rate" => text.trim().parse().with_context(|| format!("no rate: {text}"))?,
        _ => bail!("{name} is no result"),
    };
    ensure!(rate > 0.0, "nothing came through");
    let (guest, target, work) = (guest.to_owned(), TARGET.to_owned(), work.key.to_owned());
    Ok(Sample { task: Task { guest, target, work }, server: server.to_owned(), rate })
}

/// What arrived, of what iperf3 tells.
fn iperf(work: &Work, text: &str) -> Result<f64> {
    let output: Output = serde_json::from_str(text).context("this is not what iperf3 prints")?;
    if let Some(error) = output.error {
        bail!("iperf3 says: {error}");
    }
    let end = output.end.context("iperf3 came to no end")?;
    match work.unit {
        Unit::Bytes => Ok(end.sum_received.context("no bytes")?.bits_per_second / 8.0),
        Unit::Count => {
            let Packets { seconds, packets, lost_packets } = end.sum.context("no packets")?;
            Ok((packets - lost_packets) / seconds)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: &str = r#"{"start":{},"intervals":[],"end":{"streams":[],
        "sum_sent":{"seconds":2.0,"bytes":1,"bits_per_second":9000.0},
        "sum_received":{"seconds":2.0,"bytes":2000,"bits_per_second":8000.0}}}"#;
    const UDP: &str = r#"{"end":{"sum":{"seconds":2.0,"packets":1000,"lost_packets":400,
        "lost_percent":40.0},"sum_received":{"bits_per_second":1.0}}}"#;

    #[test]
    fn a_stream_is_counted_where_it_arrives() {
        let sample = sample("pv", "3-tcp-8-out@netback.json", TCP).unwrap();
        assert_eq!((sample.rate, sample.server.as_str()), (1000.0, "netback"));
        assert_eq!((sample.task.work.as_str(), sample.task.target.as_str()), ("tcp-8-out", TARGET));
    }

    #[test]
    fn lost_packets_do_not_count() {
        assert_eq!(sample("pv", "1-udp-64-in@ours.json", UDP).unwrap().rate, 300.0);
    }

    #[test]
    fn round_trips_are_a_number() {
        assert_eq!(sample("pv", "1-tcp-rr@ours.rate", "812.5\n").unwrap().rate, 812.5);
        assert!(sample("pv", "1-tcp-rr@ours.rate", "0").is_err());
    }

    #[test]
    fn what_went_wrong_is_said() {
        let refused = sample("pv", "1-tcp-in@ours.json", r#"{"error":"refused"}"#).unwrap_err();
        assert!(refused.to_string().contains("refused"));
        assert!(sample("pv", "1-nosuch@ours.json", TCP).is_err());
        assert!(sample("pv", "1-tcp-in@ours.json", UDP).is_ok());
    }
}
