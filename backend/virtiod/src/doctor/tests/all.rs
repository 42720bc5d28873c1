//! All checks together.

use serde_json::Value;

use super::super::finding::{Finding, Severity};
use super::super::report::{Report, print};
use super::TestHost;

#[test]
fn host_that_lacks_nothing_has_no_findings_but_ok() {
    let lines = TestHost::healthy().all();
    let (last, lines) = lines.split_last().unwrap();
    assert_eq!(last, "0 error(s), 0 warning(s)");
    assert!(lines.iter().all(|line| line.starts_with("ok ")), "{lines:#?}");
    assert!(lines.len() >= super::super::CHECKS.len(), "{lines:#?}");
}

#[test]
fn driver_domain_that_lacks_nothing_has_no_findings_but_ok() {
    let mut host = TestHost::healthy();
    host.become_driver_domain();
    let lines = host.all();
    assert_eq!(lines.last().unwrap(), "0 error(s), 0 warning(s)", "{lines:#?}");
}

#[test]
fn every_error_and_warning_has_a_command() {
    let mut host = TestHost::healthy();
    for path in ["/dev", "/sys/module", "/sys/class", "/proc/sys", "/images", "/etc/systemd"] {
        host.remove(path);
    }
    host.host.has_landlock = || false;
    host.configure("[default");
    let lines = host.all();
    let bad = |line: &&String| line.starts_with("error ") || line.starts_with("warning ");
    assert!(lines.iter().filter(bad).count() > 5, "{lines:#?}");
    assert!(lines.iter().filter(bad).all(|line| line.contains(" mend: ")), "{lines:#?}");
}

#[test]
fn text_of_a_guest_takes_one_line() {
    let mut report = Report::default();
    let long = "x".repeat(5000);
    report.add("devices", Finding::error(format!("a\nerror  b: c{long}")).mend("d\ne"));
    let mut out = Vec::new();
    print(&mut out, &report, false).unwrap();
    let text = String::from_utf8(out).unwrap();
    assert_eq!(text.lines().count(), 3, "{text}");
    assert!(text.len() < 1200, "{text}");
}

#[test]
fn json_has_all_that_the_lines_have() {
    let mut report = Report::default();
    report.add("Xen", Finding::ok("this is Dom0"));
    report.add("daemon", Finding::error("no daemon runs").mend("xen-virtiod &"));
    let mut out = Vec::new();
    print(&mut out, &report, true).unwrap();
    let object: Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(object["findings"][0]["severity"], "ok");
    assert_eq!(object["findings"][1]["check"], "daemon");
    assert_eq!(object["findings"][1]["text"], "no daemon runs");
    assert_eq!(object["findings"][1]["mend"][0], "xen-virtiod &");
    assert_eq!(report.count(Severity::Error), 1);
}
