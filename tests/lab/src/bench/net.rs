//! The network measurements: the works, and the parser of iperf3's output.

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::selection::Selection;
use super::work::{Unit, Work};

/// All works, with the options of the guest's iperf3.
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

/// The work that `probe round-trips` does instead of iperf3.
pub(crate) const ROUND_TRIPS: &str = "tcp-rr";

/// Returns a line for each work of a run: the key, and iperf3's options.
pub(crate) fn list(selection: &Selection) -> String {
    let works = WORKS.iter().filter(|work| selection.has(work));
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

/// Parses iperf3's output; returns the received bytes or packets per second.
pub(super) fn iperf(work: &Work, text: &str) -> Result<f64> {
    let output: Output = serde_json::from_str(text).context("cannot parse iperf3's output")?;
    if let Some(error) = output.error {
        bail!("iperf3 failed: {error}");
    }
    let end = output.end.context("iperf3's output has no field `end`")?;
    match work.unit {
        Unit::Bytes => {
            let received = end.sum_received.context("iperf3's output has no `sum_received`")?;
            Ok(received.bits_per_second / 8.0)
        }
        Unit::Count => {
            let sum = end.sum.context("iperf3's output has no field `sum`")?;
            let Packets { seconds, packets, lost_packets } = sum;
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

    fn work(key: &str) -> &'static Work {
        WORKS.iter().find(|work| work.key == key).unwrap()
    }

    #[test]
    fn rate_counts_received_bytes_and_packets() {
        assert_eq!(iperf(work("tcp-8-out"), TCP).unwrap(), 1000.0);
        assert_eq!(iperf(work("udp-64-in"), UDP).unwrap(), 300.0);
    }

    #[test]
    fn failure_of_iperf3_is_an_error() {
        let refused = iperf(work("tcp-in"), r#"{"error":"refused"}"#).unwrap_err();
        assert!(refused.to_string().contains("refused"));
        assert!(iperf(work("udp-64-in"), r#"{"end":{}}"#).is_err());
        assert!(iperf(work("udp-64-in"), "iperf3: no such host").is_err());
    }
}
