//! Parses the output of `fio --output-format=json`.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::latency::Latency;

/// The rates of one of fio's jobs.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct JobRate {
    /// The name of its section in the job file.
    pub(crate) name: String,
    /// Requests per second, reads and writes together.
    pub(crate) requests: f64,
    /// Bytes per second, reads and writes together.
    pub(crate) bytes: f64,
    /// The latency of reads or of writes, whichever are more. `None` if fio did not measure it.
    pub(crate) latency: Option<Latency>,
}

#[derive(Deserialize)]
struct Output {
    jobs: Vec<Job>,
}

#[derive(Deserialize)]
struct Job {
    jobname: String,
    error: i64,
    read: Direction,
    write: Direction,
}

#[derive(Deserialize)]
struct Direction {
    iops: f64,
    bw_bytes: f64,
    clat_ns: Option<Times>,
}

/// Times in nanoseconds.
#[derive(Deserialize)]
struct Times {
    #[serde(default)]
    percentile: BTreeMap<String, u64>,
}

impl Direction {
    fn latency(&self) -> Option<Latency> {
        let percentile = &self.clat_ns.as_ref()?.percentile;
        let micros = |name: &str| Some(*percentile.get(name)? as f64 / 1000.0);
        Some(Latency {
            p50: micros("50.000000")?,
            p99: micros("99.000000")?,
            p999: micros("99.900000")?,
        })
    }
}

/// Parses the jobs of one run. fio may print notes before its JSON.
///
/// # Errors
/// `output` is no output of fio's, or a job failed or did nothing.
pub(crate) fn jobs(output: &str) -> Result<Vec<JobRate>> {
    let json = output.find('{').and_then(|start| output.get(start..));
    let json = json.with_context(|| format!("fio printed no JSON: {output}"))?;
    let output: Output = serde_json::from_str(json).context("cannot parse fio's output")?;
    output.jobs.into_iter().map(rate).collect()
}

fn rate(job: Job) -> Result<JobRate> {
    let Job { jobname: name, error, read, write } = job;
    ensure!(error == 0, "fio's job {name} failed with error {error}");
    let requests = read.iops + write.iops;
    ensure!(requests > 0.0, "fio's job {name} did nothing");
    let main = if read.iops >= write.iops { &read } else { &write };
    let latency = main.latency();
    Ok(JobRate { name, requests, bytes: read.bw_bytes + write.bw_bytes, latency })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Two jobs, without the fields that the lab does not read.
    pub(crate) const EXAMPLE: &str = r#"note: both iodepth >= 1 and synchronous I/O engine are selected
{"fio version":"fio-3.39","global options":{"direct":"1"},"jobs":[
 {"jobname":"randread-4k-qd1@ours-ram","groupid":0,"error":0,"eta":0,
  "read":{"io_bytes":4096000,"bw_bytes":2048000,"bw":2000,"iops":500.0,"runtime":2000,
   "clat_ns":{"mean":1.5,"percentile":{"50.000000":1500000,"99.000000":4000000,"99.900000":9000000}}},
  "write":{"io_bytes":0,"bw_bytes":0,"bw":0,"iops":0.0,"runtime":0,"clat_ns":{"mean":0.0}}},
 {"jobname":"randrw-64k-qd8@blkback-ram","groupid":1,"error":0,
  "read":{"bw_bytes":6553600,"iops":100.0},"write":{"bw_bytes":3276800,"iops":50.0}}]}"#;

    #[test]
    fn reads_and_writes_of_a_job_are_summed() {
        let jobs = jobs(EXAMPLE).unwrap();
        let first = JobRate {
            name: "randread-4k-qd1@ours-ram".into(),
            requests: 500.0,
            bytes: 2_048_000.0,
            latency: Some(Latency { p50: 1500.0, p99: 4000.0, p999: 9000.0 }),
        };
        assert_eq!(jobs[0], first);
        assert_eq!((jobs[1].requests, jobs[1].bytes), (150.0, 9_830_400.0));
        assert_eq!(jobs[1].latency, None);
    }

    #[test]
    fn failed_or_idle_job_is_an_error() {
        let failed = EXAMPLE.replacen(r#""error":0"#, r#""error":5"#, 1);
        let error = jobs(&failed).unwrap_err().to_string();
        assert!(error.contains("randread-4k-qd1@ours-ram"), "{error}");
        let idle = EXAMPLE.replace("500.0", "0.0");
        assert!(jobs(&idle).unwrap_err().to_string().contains("did nothing"));
    }

    #[test]
    fn malformed_output_is_quoted() {
        assert!(jobs("fio: no such file").unwrap_err().to_string().contains("no such file"));
        assert!(jobs("{}").is_err());
    }
}
