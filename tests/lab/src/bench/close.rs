//! Tests of the scripts with which a guest finds the comparisons that need more rounds.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::dirs::Dirs;

/// Runs the script `name` of bench-block with awk and its operands, and returns its output's lines,
/// sorted.
fn awk(name: &str, operands: &[PathBuf]) -> Vec<String> {
    let scripts = Dirs::find().unwrap().tests().join("bench/scenarios/bench-block");
    let output =
        Command::new("awk").arg("-f").arg(scripts.join(name)).args(operands).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// Writes `text` to the file `name` in `dir`, and returns its path.
fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, text).unwrap();
    path
}

/// Returns what matters of fio's output for a job that reads and writes.
fn fio(job: &str, rate: f64) -> String {
    let half = rate / 2.0;
    format!(
        "\"jobname\" : \"{job}\",\n\"read\" : {{\n\"bw_bytes\" : {half},\n\"iops\" : 9,\n\
         \"write\" : {{\n\"bw_bytes\" : {half},\n"
    )
}

#[test]
fn close_comparisons_of_fio_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let round = |number: usize, close: f64, far: f64| {
        let text = [
            fio("randread-4k-qd1@ours-null1ms", close),
            fio("randread-4k-qd1@blkback-null1ms", 100.0),
            fio("read-1m-qd4@ours-file", far),
            fio("read-1m-qd4@blkback-tuned-file", 100.0),
        ];
        write(dir.path(), &format!("{number}.json"), &text.concat())
    };
    // The first round warms up. In one of the others each ratio is an outlier.
    let files = [
        round(0, 500.0, 100.0),
        round(1, 110.0, 100.0),
        round(2, 300.0, 130.0),
        round(3, 90.0, 140.0),
    ];
    assert_eq!(awk("close.awk", &files), ["randread-4k-qd1@null1ms"]);
}

#[test]
fn close_comparisons_of_other_tools_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let iperf = |server: &str, rate: f64| {
        let name = format!("1-tcp-in@{server}-bridge.json");
        let text =
            format!("\"bits_per_second\": 1,\n\"sum_received\": {{\n\"bits_per_second\": {rate}\n");
        write(dir.path(), &name, &text)
    };
    let rate = |server: &str, rate: f64| {
        write(dir.path(), &format!("1-shell@{server}-file.rate"), &format!("{rate}\n"))
    };
    let files =
        [iperf("ours", 5e8), iperf("netback", 4.5e8), rate("ours", 1.0), rate("blkback", 2.0)];
    assert_eq!(awk("close.awk", &files), ["tcp-in@bridge"]);
}

#[test]
fn selected_jobs_remain_with_the_common_options() {
    let dir = tempfile::tempdir().unwrap();
    let list = write(dir.path(), "list", "a-qd1@file\nc@file\na-qd1@null\n");
    let jobs = "[global]\nx=1\n\n[a-qd1@ours-file]\nb=2\n\n[b@ours-file]\nq\n\n\
                [a-qd1@blkback-tuned-file]\nz\n\n[beside:a-qd1@ours-file]\nw\n\n\
                [a-qd1@ours-ram]\ny\n\n[c@ours-file]\nv\n\n[a-qd1@blkback-null]\nu\n";
    let jobs = write(dir.path(), "forward.fio", jobs);
    let operands = [list, "RS=".into(), jobs];
    let kept: Vec<_> =
        awk("select.awk", &operands).into_iter().filter(|line| line.starts_with('[')).collect();
    let expected = [
        "[a-qd1@blkback-null]",
        "[a-qd1@blkback-tuned-file]",
        "[a-qd1@ours-file]",
        "[beside:a-qd1@ours-file]",
        "[c@ours-file]",
        "[global]",
    ];
    assert_eq!(kept, expected);
}
