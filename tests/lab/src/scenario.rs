//! The end-to-end scenarios: folders of `tests/scenarios`, each run with some kinds of guest.
//!
//! `dom0.sh` runs in Dom0; the scripts for guests are in the same folder. The first lines of
//! `dom0.sh` are comments: a description, and lines `# KEY: VALUE`:
//!
//! | line | meaning |
//! |---|---|
//! | `# limit: SECONDS` | the time limit in Dom0; required |
//! | `# guests: KIND…` | the kinds of guest; without it, PV and PVH |
//! | `# soak: KIND…` | further kinds of guest, for `cargo lab soak` alone |
//! | `# machine: NAME` | the machine, if it is not the default one |
//! | `# needs: PROGRAM` | `/lab/files` must have the set of programs that has this one |
//! | `# matrix: KIND…` | kinds of guest with which the scenario also runs for the matrix |
//! | `# not-on-arm: REASON` | the scenario makes no sense on Arm |
//! | `# on-arm: test` | the scenario makes sense on Arm alone; `# guests:` is empty |
//!
//! On Arm there is one kind of guest, which is called PVH here: each scenario with PV or PVH guests
//! runs with it.
//!
//! `KIND-SUITE` is a guest with the kernel of another release of Debian.
//!
//! The scenarios in `tests/matrix` run for the matrix alone.

use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::boot::MachineKind;
use crate::debian::Suite;
use crate::fetch::Programs;

/// The known kinds of guest, and those that a scenario runs with by default.
const KINDS: [&str; 3] = ["pv", "pvh", "hvm"];
const GUESTS: &str = "pv pvh";

/// The time to clean up after a scenario. The scenario's own limit, enforced in Dom0, excludes it.
const CLEAN_UP: Duration = Duration::from_secs(60);

/// One scenario with one kind of guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Scenario {
    /// `pv`, `pvh` or `hvm`.
    pub(crate) guest: &'static str,
    /// The Debian release of the guest's kernel.
    pub(crate) kernel: Suite,
    /// The machine that it runs on.
    pub(crate) machine: MachineKind,
    /// The name of its folder.
    pub(crate) name: String,
    /// The time after which Dom0 stops it.
    pub(crate) limit: Duration,
    /// The factor by which all limits within the scenario are multiplied.
    pub(crate) limit_factor: u32,
    /// Whether only `cargo lab soak` runs it.
    pub(crate) soak: bool,
    /// The programs that it needs in `/lab/files`.
    pub(crate) programs: Option<Programs>,
    /// Whether it measures with them.
    pub(crate) measures: bool,
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kernel {
            Suite::LAB => write!(f, "{}/{}", self.guest, self.name),
            other => write!(f, "{}-{other}/{}", self.guest, self.name),
        }
    }
}

impl Scenario {
    /// Returns the scenario with all its limits multiplied by `times`.
    pub(crate) fn with_limit_factor(self, times: u32) -> Self {
        Scenario { limit: self.limit * times, limit_factor: times, ..self }
    }

    /// Returns the maximum time that the lab waits for its end.
    pub(crate) fn total_limit(&self) -> Duration {
        self.limit + CLEAN_UP
    }
}

/// Returns all scenarios of the directory `dir`, sorted by name, in the order of their guests.
///
/// # Errors
/// A `dom0.sh` cannot be read, has no limit, or names an unknown guest or machine.
pub(crate) fn all(dir: &Path) -> Result<Vec<Scenario>> {
    read(dir, |script| Some(header(script, "guests").unwrap_or(GUESTS)))
}

/// The scenarios on Arm.
#[derive(Debug, Default)]
pub(crate) struct OnArm {
    /// Those that run there.
    pub(crate) scenarios: Vec<Scenario>,
    /// The names of the others, and why they do not.
    pub(crate) skipped: Vec<(String, String)>,
}

/// Returns the scenarios of the directory `dir` on Arm.
///
/// # Errors
/// As [`all`].
pub(crate) fn on_arm(dir: &Path) -> Result<OnArm> {
    let mut found = OnArm::default();
    let all = all(dir)?;
    found.scenarios = read(dir, |script| header(script, "on-arm").map(|_| "pvh"))?;
    found.scenarios.retain(|scenario| !scenario.soak);
    for name in folders(dir)? {
        let text = fs::read_to_string(dir.join(&name).join("dom0.sh"))?;
        if header(&text, "on-arm").is_some() {
            continue;
        }
        let of_name = all.iter().filter(|scenario| scenario.name == name);
        let guests = of_name.filter(|of| of.guest != "hvm" && of.kernel == Suite::LAB);
        // Those that run before a commit come first.
        let reason = match (header(&text, "not-on-arm"), guests.min_by_key(|of| of.soak)) {
            (Some(reason), _) => reason.to_owned(),
            (None, None) => "it has HVM guests, which Arm has not".to_owned(),
            (None, Some(scenario)) if scenario.machine != MachineKind::default() => {
                format!("the machine {} is for x86_64", scenario.machine)
            }
            (None, Some(scenario)) => {
                found.scenarios.push(Scenario { guest: "pvh", ..scenario.clone() });
                continue;
            }
        };
        found.skipped.push((name, reason));
    }
    Ok(found)
}

/// Returns the scenarios of the matrix; `tests` is the directory with `scenarios` and `matrix`.
pub(crate) fn matrix(tests: &Path) -> Result<Vec<Scenario>> {
    let mut scenarios = read(&tests.join("scenarios"), |script| header(script, "matrix"))?;
    scenarios.extend(all(&tests.join("matrix"))?);
    scenarios.retain(|scenario| !scenario.soak);
    Ok(scenarios)
}

/// Reads the scenarios of the directory `dir`; `guests_of` returns the kinds of guest that a script
/// names, if any.
fn read(dir: &Path, guests_of: fn(&str) -> Option<&str>) -> Result<Vec<Scenario>> {
    let mut scenarios = Vec::new();
    for name in folders(dir)? {
        let script = dir.join(&name).join("dom0.sh");
        let text = fs::read_to_string(&script)
            .with_context(|| format!("cannot read {}", script.display()))?;
        let limit = limit(&text)
            .with_context(|| format!("no line `# limit: SECONDS` in {name}/dom0.sh"))?;
        let here = || format!("in {name}/dom0.sh");
        let machine = header(&text, "machine").unwrap_or(MachineKind::default().name());
        let machine = machine.parse().with_context(here)?;
        let needs = header(&text, "needs");
        let programs = needs.map(programs_with).transpose().with_context(here)?;
        let measures = needs == Some("fio");
        let usual = (guests_of(&text).unwrap_or(""), false);
        for (names, soak) in [usual, (header(&text, "soak").unwrap_or(""), true)] {
            for (guest, kernel) in guests(names).with_context(here)? {
                let (name, limit_factor) = (name.clone(), 1);
                scenarios.push(Scenario {
                    guest,
                    kernel,
                    machine,
                    name,
                    limit,
                    limit_factor,
                    soak,
                    programs,
                    measures,
                });
            }
        }
    }
    Ok(scenarios)
}

/// Returns the names of the folders in `dir`, sorted; skips files, such as README.md.
fn folders(dir: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(dir)
        .with_context(|| format!("cannot list the scenarios in {}", dir.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Returns the shell script that runs `scenarios` in Dom0, one after the other.
pub(crate) fn job(scenarios: &[Scenario]) -> String {
    let runs = scenarios
        .iter()
        .map(|scenario| {
            let Scenario { limit, limit_factor, .. } = scenario;
            let patient = if *limit_factor == 1 {
                String::new()
            } else {
                format!("PATIENCE={limit_factor} ")
            };
            format!("{patient}/lab/dom0/run-scenario {scenario} {}\n", limit.as_secs())
        })
        .collect::<String>();
    format!("#!/bin/sh\n{runs}")
}

fn limit(script: &str) -> Option<Duration> {
    Some(Duration::from_secs(header(script, "limit")?.parse().ok()?))
}

/// Returns the set that has `program`.
fn programs_with(program: &str) -> Result<Programs> {
    Programs::with(program).with_context(|| format!("the lab fetches no program {program}"))
}

/// Parses a list of guests, each `KIND` or `KIND-SUITE`.
fn guests(names: &str) -> Result<Vec<(&'static str, Suite)>> {
    names
        .split_whitespace()
        .map(|name| {
            guest(name).with_context(|| {
                let (kinds, suites) = (KINDS.join(", "), Suite::ALL.map(Suite::name).join(", "));
                format!("unknown guest {name}: kinds are {kinds}; kernels are {suites}")
            })
        })
        .collect()
}

/// Parses `KIND` or `KIND-SUITE`.
fn guest(name: &str) -> Option<(&'static str, Suite)> {
    let (kind, suite) = name.split_once('-').unwrap_or((name, Suite::LAB.name()));
    let kind = KINDS.into_iter().find(|known| *known == kind)?;
    Some((kind, Suite::ALL.into_iter().find(|known| known.name() == suite)?))
}

/// Returns VALUE of the line `# KEY: VALUE` among a script's first comments.
fn header<'a>(script: &'a str, key: &str) -> Option<&'a str> {
    script
        .lines()
        .take_while(|line| line.starts_with('#'))
        .find_map(|line| line.strip_prefix("# ")?.strip_prefix(key)?.strip_prefix(':'))
        .map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(scripts: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in scripts {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("dom0.sh"), text).unwrap();
        }
        dir
    }

    #[test]
    fn folder_is_a_scenario_for_each_guest() {
        let dir = folder(&[("b", "# B.\n# limit: 5\n"), ("a", "# A.\n# limit: 7\n")]);
        let scenarios = all(dir.path()).unwrap();
        let names: Vec<_> = scenarios.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["pv/a", "pvh/a", "pv/b", "pvh/b"]);
        assert_eq!(scenarios[0].limit, Duration::from_secs(7));
        assert_eq!(
            job(&scenarios[..2]),
            "#!/bin/sh\n/lab/dom0/run-scenario pv/a 7\n/lab/dom0/run-scenario pvh/a 7\n"
        );
    }

    #[test]
    fn scenario_runs_once_on_arm_or_says_why_not() {
        let dir = folder(&[
            ("a", "# A.\n# guests: pv hvm\n# soak: pvh pv-bookworm\n# limit: 5\n"),
            ("b", "# B.\n# guests:\n# soak: pv\n# limit: 5\n"),
            ("c", "# C.\n# guests: hvm\n# limit: 5\n"),
            ("d", "# D.\n# limit: 5\n# not-on-arm: it counts x86's vectors\n"),
            ("e", "# E.\n# limit: 5\n# machine: systemd\n"),
            ("f", "# F.\n# guests:\n# on-arm: test\n# limit: 5\n"),
        ]);
        assert!(all(dir.path()).unwrap().iter().all(|scenario| scenario.name != "f"));
        let OnArm { scenarios, skipped } = on_arm(dir.path()).unwrap();
        let names: Vec<_> = scenarios.iter().map(|of| (of.to_string(), of.soak)).collect();
        let expected = [("pvh/f", false), ("pvh/a", false), ("pvh/b", true)];
        assert_eq!(names, expected.map(|(name, soak)| (name.to_owned(), soak)));
        let skipped: Vec<_> = skipped.iter().map(|(name, why)| format!("{name}: {why}")).collect();
        assert_eq!(
            skipped,
            [
                "c: it has HVM guests, which Arm has not",
                "d: it counts x86's vectors",
                "e: the machine systemd is for x86_64"
            ]
        );
    }

    #[test]
    fn file_beside_the_folders_is_ignored() {
        let dir = folder(&[("a", "# A.\n# guests: pv\n# limit: 5\n")]);
        fs::write(dir.path().join("README.md"), "# scenarios\n").unwrap();
        assert_eq!(all(dir.path()).unwrap().len(), 1);
    }

    #[test]
    fn patient_scenario_has_multiplied_limits() {
        let dir = folder(&[("a", "# A.\n# guests: pv\n# limit: 7\n# needs: fio\n")]);
        let scenario = all(dir.path()).unwrap().remove(0).with_limit_factor(4);
        assert_eq!((scenario.programs, scenario.measures), (Some(Programs::Bench), true));
        assert_eq!(job(&[scenario]), "#!/bin/sh\nPATIENCE=4 /lab/dom0/run-scenario pv/a 28\n");
    }

    #[test]
    fn scenario_with_a_program_other_than_fio_does_not_measure() {
        let needs = |needs: &str| {
            let dir = folder(&[("a", &format!("# A.\n# guests: pv\n# limit: 7\n{needs}"))]);
            all(dir.path()).map(|mut all| (all[0].programs.take(), all[0].measures))
        };
        assert_eq!(needs("# needs: dmsetup\n").unwrap(), (Some(Programs::Bench), false));
        assert_eq!(needs("# needs: bpftrace\n").unwrap(), (Some(Programs::Tracing), false));
        assert_eq!(needs("").unwrap(), (None, false));
        let error = format!("{:#}", needs("# needs: tool\n").unwrap_err());
        assert!(error.contains("a/dom0.sh") && error.contains("tool"), "{error}");
    }

    #[test]
    fn guests_header_selects_the_guests() {
        let dir = folder(&[("a", "# A.\n# guests: hvm pv\n# limit: 5\n")]);
        let names: Vec<_> = all(dir.path()).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(names, ["hvm/a", "pv/a"]);
        for guest in ["vax", "pv-potato"] {
            let dir = folder(&[("a", &format!("# A.\n# guests: {guest}\n# limit: 5\n"))]);
            let error = format!("{:#}", all(dir.path()).unwrap_err());
            assert!(error.contains("a/dom0.sh") && error.contains(guest), "{error}");
        }
    }

    #[test]
    fn soak_header_adds_guests_for_the_soak() {
        let dir = folder(&[
            ("a", "# A.\n# guests: pv\n# soak: pvh-sid\n# limit: 5\n"),
            ("b", "# B.\n# guests:\n# soak: hvm\n# limit: 5\n"),
        ]);
        let scenarios = all(dir.path()).unwrap();
        let named: Vec<_> = scenarios.iter().map(|one| (one.to_string(), one.soak)).collect();
        let expected = [("pv/a", false), ("pvh-sid/a", true), ("hvm/b", true)];
        assert_eq!(named, expected.map(|(name, soak)| (name.to_owned(), soak)));
    }

    #[test]
    fn guest_suffix_selects_the_kernel() {
        let dir = folder(&[("a", "# A.\n# guests: pv-trixie pvh-sid\n# limit: 5\n")]);
        let scenarios = all(dir.path()).unwrap();
        let names: Vec<_> = scenarios.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["pv/a", "pvh-sid/a"]);
        assert_eq!(scenarios[1].guest, "pvh");
    }

    #[test]
    fn machine_header_selects_the_machine() {
        let dir =
            folder(&[("a", "# A.\n# limit: 5\n# machine: amd-iommu\n"), ("b", "# limit: 5\n")]);
        let scenarios = all(dir.path()).unwrap();
        assert_eq!(scenarios[0].machine, MachineKind::AmdIommu);
        assert_eq!(scenarios[2].machine, MachineKind::Default);
        let dir = folder(&[("a", "# limit: 5\n# machine: vax\n")]);
        let error = format!("{:#}", all(dir.path()).unwrap_err());
        assert!(error.contains("a/dom0.sh") && error.contains("vax"), "{error}");
    }

    #[test]
    fn matrix_has_its_own_scenarios_and_those_with_the_header() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("scenarios/a", "# limit: 5\n# guests: pv\n# matrix: pv hvm\n"),
            ("scenarios/b", "# limit: 5\n"),
            ("matrix/c", "# limit: 5\n# guests: pvh\n"),
        ] {
            fs::create_dir_all(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("dom0.sh"), text).unwrap();
        }
        let names: Vec<_> = matrix(dir.path()).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(names, ["pv/a", "hvm/a", "pvh/c"]);
    }

    #[test]
    fn missing_limit_error_names_the_scenario() {
        for text in ["# A.\n", "# limit: soon\n", "true\n# limit: 5\n"] {
            let dir = folder(&[("a", text)]);
            let error = all(dir.path()).unwrap_err().to_string();
            assert!(error.contains("a/dom0.sh"), "{error}");
        }
    }

    #[test]
    fn readme_table_names_every_scenario() {
        let tests = &Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let readme = fs::read_to_string(tests.join("scenarios/README.md")).unwrap();
        let mut named: Vec<_> = readme
            .lines()
            .filter_map(|line| line.split_once("| on Xen: ")?.1.strip_suffix(" |"))
            .flat_map(|names| names.split(", "))
            .collect();
        named.sort_unstable();
        named.dedup();
        assert_eq!(named, folders(&tests.join("scenarios")).unwrap());
    }

    #[test]
    fn example_configurations_have_scenarios() {
        let tests = &Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let script = |name| tests.join("scenarios").join(name).join("dom0.sh");
        let scripts = folders(&tests.join("scenarios")).unwrap().into_iter();
        let scripts: String =
            scripts.map(|name| fs::read_to_string(script(name)).unwrap()).collect();
        // Several scenarios start these.
        let shared = fs::read_to_string(tests.join("lab/dom0/root-disk.sh")).unwrap();
        for config in fs::read_dir(tests.join("../xen-configs")).unwrap() {
            let file = config.unwrap().file_name().into_string().unwrap();
            let Some(name) = file.strip_suffix(".cfg") else { continue };
            // start_guest and run_guest use the example for the scenario's kind of guest.
            let kind = KINDS.into_iter().any(|kind| name == format!("blk-{kind}"));
            let call = format!("start_example {name} ");
            let named = scripts.contains(&call) || shared.contains(&call);
            assert!(kind || named, "no scenario starts a guest by {file}");
        }
    }

    #[test]
    fn projects_scenarios_are_well_formed() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios");
        assert!(all(&dir).unwrap().len() >= 2);
    }
}
