//! `cargo lab demo`: runs one scenario with a PV and a PVH guest, and prints a table of the
//! results.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::debian::{Arch, Suite};
use crate::dirs::Dirs;
use crate::e2e::{self, Outcome};
use crate::lab::Lab;
use crate::progress::Progress;
use crate::scenario;
use crate::stat::{Device, Stat};
use crate::table;

/// The demo's scenario, and its kinds of guest, one a column. Arm has one kind.
const SCENARIO: &str = "files";
const GUESTS: [&str; 2] = ["pv", "pvh"];
const ARM: &str = "Arm";

/// The features that a device must have negotiated.
const REQUIRED: [&str; 2] = ["VIRTIO_F_VERSION_1", "VIRTIO_F_ACCESS_PLATFORM"];

/// Runs the demo, and returns the exit status: 0 if there are no problems.
pub(crate) fn demo(arch: Arch) -> Result<i32> {
    let progress = Progress::new();
    let directory = Dirs::find()?.tests().join("scenarios");
    let mut scenarios = match arch {
        Arch::X86_64 => scenario::all(&directory)?,
        Arch::Aarch64 => scenario::on_arm(&directory)?.scenarios,
    };
    scenarios.retain(|scenario| {
        let wanted = GUESTS.contains(&scenario.guest) && scenario.kernel == Suite::LAB;
        wanted && scenario.name == SCENARIO
    });
    let lab = Lab::prepare(arch, "demo", &[], &progress)?;
    let mut columns = Vec::new();
    let mut problems = Vec::new();
    e2e::run(&lab, &scenarios, &[], &progress, |outcome| {
        let guest = match arch {
            Arch::X86_64 => outcome.scenario.guest.to_uppercase(),
            Arch::Aarch64 => ARM.to_owned(),
        };
        match report(&guest, &outcome) {
            Ok((column, found)) => {
                columns.push(column);
                problems.extend(found.into_iter().map(|what| format!("{guest}: {what}")));
            }
            Err(error) => problems.push(format!("{guest}: {error:#}")),
        }
    });
    if !columns.is_empty() {
        println!("\n{}", table::format(&rows(columns)));
    }
    for problem in &problems {
        println!("FAILED  {problem}");
    }
    if problems.is_empty() {
        println!(
            "Every address was in a page that the guest had granted, and nothing is mapped any more."
        );
    }
    Ok(i32::from(!problems.is_empty()))
}

/// Returns the table's column for one guest, and the problems found.
fn report(guest: &str, outcome: &Outcome) -> Result<(Vec<String>, Vec<String>)> {
    if let Some(failure) = &outcome.failure {
        anyhow::bail!("{failure}");
    }
    let domid = fs::read_to_string(outcome.results.join("domid"))
        .context("cannot read the domain's number from the scenario's results")?
        .trim()
        .parse()?;
    let devices = Stat::read(&outcome.results.join("stat.json"))?.of_domain(domid);
    let mut column = vec![guest.to_owned()];
    column.extend(cells(&devices));
    column.push(work(&outcome.results));
    column.push(format!("{:.0} s", outcome.time.as_secs_f32()));
    Ok((column, problems(&devices)))
}

/// Returns the table's rows: the labels, and a column for each guest.
fn rows(columns: Vec<Vec<String>>) -> Vec<Vec<String>> {
    let labels = [
        "",
        "devices",
        "features",
        "requests",
        "bytes",
        "addresses",
        "grants still mapped",
        "checked",
        "time",
    ];
    let row = |(number, label): (usize, &&str)| {
        let cells = columns.iter().filter_map(|column| column.get(number));
        [(*label).to_owned()].into_iter().chain(cells.cloned()).collect()
    };
    labels.iter().enumerate().map(row).collect()
}

/// Returns the cells from `devices` to `grants still mapped`.
fn cells(devices: &[Device]) -> Vec<String> {
    let sum = |of: fn(&Device) -> u64| devices.iter().map(of).sum::<u64>();
    let names: Vec<&str> = devices.iter().map(|device| device.device.as_str()).collect();
    let mut features: Vec<&str> = Vec::new();
    for feature in devices.iter().flat_map(|device| &device.features) {
        if !features.contains(&feature.as_str()) {
            features.push(feature);
        }
    }
    vec![
        names.join("\n"),
        features.join("\n"),
        format!(
            "{} reads, {} writes, {} flushes\n{} failed",
            sum(|device| device.requests.read),
            sum(|device| device.requests.write),
            sum(|device| device.requests.flush),
            sum(|device| device.requests.failed)
        ),
        format!(
            "{} read, {} written",
            mebibytes(sum(|device| device.bytes.read)),
            mebibytes(sum(|device| device.bytes.written))
        ),
        format!(
            "{} in granted pages\n{} in the shared pool\n{} raw",
            sum(|device| device.addresses.grant),
            sum(|device| device.addresses.pool),
            sum(|device| device.addresses.refused)
        ),
        sum(|device| device.grants_mapped).to_string(),
    ]
}

/// Returns the scenario's list of checks.
fn work(results: &Path) -> String {
    fs::read_to_string(results.join("checked")).unwrap_or_default()
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// Checks the devices of one guest, and returns the problems found.
fn problems(devices: &[Device]) -> Vec<String> {
    let mut problems = Vec::new();
    if devices.is_empty() {
        problems.push("xen-virtiod lists no device of this guest".to_owned());
    }
    for device in devices {
        let mut problem = |what: String| problems.push(format!("{}: {what}", device.device));
        for feature in REQUIRED {
            if !device.features.iter().any(|negotiated| negotiated == feature) {
                problem(format!("{feature} was not negotiated"));
            }
        }
        if device.requests.read == 0 || device.addresses.grant + device.addresses.pool == 0 {
            problem("the guest read nothing through grants".to_owned());
        }
        for (count, what) in [
            (device.requests.failed, "requests failed"),
            (device.addresses.refused, "addresses were refused"),
            (device.grants_mapped, "grants are still mapped"),
        ] {
            if count > 0 {
                problem(format!("{count} {what}"));
            }
        }
        if let Some(why) = &device.needs_reset {
            problem(format!("the device needs a reset: {why}"));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stat::tests::EXAMPLE;

    fn devices(domid: u32) -> Vec<Device> {
        let stat: Stat = serde_json::from_str(EXAMPLE).unwrap();
        stat.of_domain(domid)
    }

    #[test]
    fn good_devices_have_no_problems() {
        assert_eq!(problems(&devices(1)), Vec::<String>::new());
    }

    #[test]
    fn problems_name_their_device() {
        let mut device = devices(1).remove(0);
        device.features.pop();
        device.addresses.refused = 2;
        device.grants_mapped = 7;
        let found = problems(&[device]).join("\n");
        for part in [
            "virtio_disk/51712: VIRTIO_F_ACCESS_PLATFORM was not negotiated",
            "2 addresses were refused",
            "7 grants are still mapped",
        ] {
            assert!(found.contains(part), "{found}");
        }
        assert!(problems(&devices(2)).join("\n").contains("descriptor 5: no grant"));
        assert_eq!(problems(&[]).len(), 1);
    }

    #[test]
    fn table_sums_the_devices_of_a_guest() {
        let cells = cells(&devices(1));
        assert_eq!(cells[0], "virtio_disk/51712\nvirtio_disk/51728");
        assert_eq!(cells[1], "VIRTIO_F_VERSION_1\nVIRTIO_F_ACCESS_PLATFORM");
        assert_eq!(cells[2], "11 reads, 20 writes, 3 flushes\n0 failed");
        assert_eq!(cells[3], "0.0 MiB read, 1.0 MiB written");
        assert_eq!(cells[4], "93 in granted pages\n9 in the shared pool\n0 raw");
    }
}
