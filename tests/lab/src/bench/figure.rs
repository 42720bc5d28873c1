//! Reads single figures, each from a file: `ROUND-WORK@SERVER-TARGET.json` has the output of
//! iperf3, `ROUND-WORK@SERVER-TARGET.rate` a number.

use anyhow::{Context, Result, bail, ensure};

use super::sample::{Sample, Task};
use super::{net, work};

/// Reads the figure of the file `name`, whose contents are `text`.
///
/// # Errors
/// The name does not have that form, or the contents are no rate.
pub(crate) fn read(guest: &str, name: &str, text: &str) -> Result<Sample> {
    let parts = name.rsplit_once('.').and_then(|(stem, kind)| {
        let (round, named) = stem.split_once('-')?;
        let (key, disk) = named.split_once('@')?;
        Some((round.parse().ok()?, work::find(key)?, disk.rsplit_once('-')?, kind))
    });
    let (round, work, (server, target), kind) = parts
        .with_context(|| format!("the file name {name} is not ROUND-WORK@SERVER-TARGET.KIND"))?;
    let rate: f64 = match kind {
        "json" => net::iperf(work, text)?,
        "rate" => text.trim().parse().with_context(|| format!("the rate {text} is no number"))?,
        _ => bail!("the file name {name} ends in neither .json nor .rate"),
    };
    // A rate of 0 is valid: in some rounds no packet arrives.
    ensure!(rate.is_finite() && rate >= 0.0, "the rate {rate} is negative or not finite");
    let (target, work) = (target.to_owned(), work.key.to_owned());
    let task = Task { guest: guest.to_owned(), target, work };
    Ok(Sample { task, server: server.to_owned(), round, rate, latency: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_name_has_work_server_and_target() {
        let sample = read("pv", "3-tcp-rr@netback-bridge.rate", "812.5\n").unwrap();
        assert_eq!((sample.round, sample.rate, sample.server.as_str()), (3, 812.5, "netback"));
        assert_eq!((sample.task.work.as_str(), sample.task.target.as_str()), ("tcp-rr", "bridge"));
        let sample = read("hvm", "1-shell@virtio-pci-ram.rate", "0.5").unwrap();
        assert_eq!((sample.task.target.as_str(), sample.server.as_str()), ("ram", "virtio-pci"));
        assert_eq!(read("hvm", "2-tcp-in@rtl8139-bridge.rate", "0").unwrap().rate, 0.0);
    }

    #[test]
    fn malformed_name_or_rate_is_an_error() {
        assert!(read("pv", "x-shell@ours-ram.rate", "1").is_err());
        assert!(read("pv", "1-nosuch@ours-ram.rate", "1").is_err());
        assert!(read("pv", "1-shell@ours-ram.txt", "1").is_err());
        assert!(read("pv", "1-shell@ours-ram.rate", "-1").is_err());
        assert!(read("pv", "1-shell@ours-ram.rate", "NaN").is_err());
        assert!(read("pv", "1-shell@ours-ram.rate", "soon").is_err());
    }
}
