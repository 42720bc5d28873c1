//! Reads what `fio --output-format=json` prints.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// How fast one job of fio's was.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct JobRate {
    /// The name of its section.
    pub(crate) name: String,
    /// Requests a second, reads and writes together.
    pub(crate) requests: f64,
    /// Bytes a second, likewise.
    pub(crate) bytes: f64,
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
}

/// The jobs of one run. fio may print notes in front of its JSON.
///
/// # Errors
/// It is no output of fio's, or a job of it failed or did nothing.
pub(crate) fn jobs(output: &str) -> Result<Vec<JobRate>> {
    let json = output.find('{').and_then(|start| output.get(start..));
    let output: Output = serde_json::from_str(json.with_context(|| format!("fio said: {output}"))?)
        .context("this is not what fio prints")?;
    output.jobs.into_iter().map(rate).collect()
}

fn rate(job: Job) -> Result<JobRate> {
    let Job { jobname: name, error, read, write } = job;
    ensure!(error == 0, "fio's job {name} failed with error {error}");
    let requests = read.iops + write.iops;
    ensure!(requests > 0.0, "fio's job {name} did nothing");
    Ok(JobRate { name, requests, bytes: read.bw_bytes + write.bw_bytes })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Two jobs, with less than fio says of each.
    pub(crate) const EXAMPLE: &str = r#"note: both iodepth >= 1 and synchronous I/O engine are selected
{"fio version":"fio-3.39","global options":{"direct":"1"},"jobs":[
 {"jobname":"randread-4k-qd1@ours-ram","groupid":0,"error":0,"eta":0,
  "read":{"io_bytes":4096000,"bw_bytes":2048000,"bw":2000,"iops":500.0,"runtime":2000},
  "write":{"io_bytes":0,"bw_bytes":0,"bw":0,"iops":0.0,"runtime":0}},
 {"jobname":"randrw-64k-qd8@blkback-ram","groupid":1,"error":0,
  "read":{"bw_bytes":6553600,"iops":100.0},"write":{"bw_bytes":3276800,"iops":50.0}}]}"#;

    #[test]
    fn reads_and_writes_of_a_job_are_one_rate() {
        let jobs = jobs(EXAMPLE).unwrap();
        let first = JobRate {
            name: "randread-4k-qd1@ours-ram".into(),
            requests: 500.0,
            bytes: 2_048_000.0,
        };
        assert_eq!(jobs[0], first);
        assert_eq!((jobs[1].requests, jobs[1].bytes), (150.0, 9_830_400.0));
    }

    #[test]
    fn a_job_that_failed_or_did_nothing_is_an_error() {
        let failed = EXAMPLE.replacen(r#""error":0"#, r#""error":5"#, 1);
        let error = jobs(&failed).unwrap_err().to_string();
        assert!(error.contains("randread-4k-qd1@ours-ram"), "{error}");
        let idle = EXAMPLE.replace("500.0", "0.0");
        assert!(jobs(&idle).unwrap_err().to_string().contains("did nothing"));
    }

    #[test]
    fn what_is_no_output_is_quoted() {
        assert!(jobs("fio: no such file").unwrap_err().to_string().contains("no such file"));
        assert!(jobs("{}").is_err());
    }
}
