//! The report: all comparisons, with medians, quartiles and ratios.

use serde::{Deserialize, Serialize};

use super::counts::{Counts, Idle};
use super::latency::Latency;
use super::pair::Paired;
use super::sample::{Sample, Task};
use super::stores::OURS;
use super::summary::Summary;
use super::work;

/// The results of a run of the bench.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Facts about the machine, each a name and a value.
    pub(crate) machine: Vec<(String, String)>,
    /// The comparisons, in order of their tasks.
    pub(crate) comparisons: Vec<Comparison>,
    /// The costs of requests.
    #[serde(default)]
    pub(crate) counts: Vec<Counts>,
    /// How often xen-virtiod ran without a request.
    #[serde(default)]
    pub(crate) idle: Vec<Idle>,
}

impl Report {
    /// Returns this report with all facts, comparisons and counts of the later one, in place of its
    /// own. It replaces comparisons as a whole, so each comparison comes from one run.
    pub(crate) fn renewed_by(mut self, later: &Report) -> Self {
        self.machine.retain(|(name, _)| later.machine.iter().all(|(other, _)| other != name));
        self.machine.extend_from_slice(&later.machine);
        for new in &later.comparisons {
            put(&mut self.comparisons, new, |old| old.task == new.task);
        }
        sort(&mut self.comparisons);
        for new in &later.counts {
            let key = |counts: &Counts| {
                (counts.guest.clone(), counts.work.clone(), counts.server.clone())
            };
            put(&mut self.counts, new, |old| key(old) == key(new));
        }
        for new in &later.idle {
            put(&mut self.idle, new, |old| old.guest == new.guest);
        }
        self
    }
}

/// Replaces the element that `is_old` selects by `new`, or appends `new` if there is none.
fn put<T: Clone>(all: &mut Vec<T>, new: &T, is_old: impl Fn(&T) -> bool) {
    match all.iter_mut().find(|old| is_old(old)) {
        Some(old) => *old = new.clone(),
        None => all.push(new.clone()),
    }
}

/// The rates of all servers at one task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Comparison {
    /// The task.
    pub(crate) task: Task,
    /// The servers: xen-virtiod first, the others in the order of measurement.
    pub(crate) servers: Vec<Server>,
    /// The part of the host's processor time that other programs took during the run, from 0 to 1.
    /// `None` in reports of earlier versions.
    #[serde(default)]
    pub(crate) other_work: Option<f64>,
    /// The version of the project that was measured: a commit's date and name. `None` in reports of
    /// earlier versions, and where git does not say it.
    #[serde(default)]
    pub(crate) version: Option<String>,
}

/// The rates of one server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Server {
    /// The server's key.
    pub(crate) name: String,
    /// The median and quartiles of its rates.
    pub(crate) rate: Summary,
    /// xen-virtiod's rate divided by this server's: the median over the rounds. `None` if
    /// xen-virtiod did not do the task, or a divisor is 0.
    pub(crate) ratio: Option<f64>,
    /// That ratio's interval. `None` for xen-virtiod itself, and in reports of earlier versions,
    /// where `ratio` is a ratio of medians.
    #[serde(default)]
    pub(crate) paired: Option<Paired>,
    /// The latency of its requests, if the tool measured it.
    #[serde(default)]
    pub(crate) latency: Option<Latency>,
}

impl Server {
    /// Returns whether the server is xen-virtiod, with its default pool.
    pub(crate) fn is_ours(&self) -> bool {
        self.name == OURS
    }
}

/// Summarizes samples: the samples of one task and server are its rounds.
///
/// Guests and targets keep the order of the samples, works have the order of their lists, and
/// xen-virtiod is the first server.
pub(crate) fn comparisons(samples: &[Sample]) -> Vec<Comparison> {
    let mut tasks: Vec<(&Task, Vec<&Sample>)> = Vec::new();
    for sample in samples {
        add(&mut tasks, &sample.task, sample);
    }
    let mut comparisons: Vec<_> =
        tasks.into_iter().map(|(task, samples)| compare(task, &samples)).collect();
    sort(&mut comparisons);
    comparisons
}

/// Sorts comparisons by section, in the order in which sections first occur, and then by work, in
/// the order of the lists.
fn sort(comparisons: &mut [Comparison]) {
    let mut sections: Vec<(String, String)> = Vec::new();
    for Comparison { task, .. } in comparisons.iter() {
        if !sections.contains(&section(task)) {
            sections.push(section(task));
        }
    }
    comparisons.sort_by_key(|Comparison { task, .. }| {
        let section = sections.iter().position(|known| *known == section(task));
        (section, work::place(&task.work))
    });
}

/// Returns the guest and target, which identify a section of the report.
fn section(task: &Task) -> (String, String) {
    (task.guest.clone(), task.target.clone())
}

/// Adds `value` to the group `key`.
fn add<K: PartialEq, V>(groups: &mut Vec<(K, Vec<V>)>, key: K, value: V) {
    match groups.iter_mut().find(|(known, _)| *known == key) {
        Some((_, values)) => values.push(value),
        None => groups.push((key, vec![value])),
    }
}

fn compare(task: &Task, samples: &[&Sample]) -> Comparison {
    let mut servers: Vec<(&str, Vec<&Sample>)> = Vec::new();
    for &sample in samples {
        add(&mut servers, sample.server.as_str(), sample);
    }
    servers.sort_by_key(|(name, _)| *name != OURS);
    let ours = servers.iter().find(|(name, _)| *name == OURS).map(|(_, rounds)| rates(rounds));
    let servers = servers.iter().filter_map(|(name, rounds)| {
        let ours = ours.as_deref().filter(|_| *name != OURS);
        summarize(name, rounds, ours)
    });
    Comparison { task: task.clone(), servers: servers.collect(), other_work: None, version: None }
}

/// Summarizes the rounds of the server `name`, and compares them with `ours`.
fn summarize(name: &str, rounds: &[&Sample], ours: Option<&[(usize, f64)]>) -> Option<Server> {
    let theirs = rates(rounds);
    let rate = Summary::of(&theirs.iter().map(|(_, rate)| *rate).collect::<Vec<_>>())?;
    let paired = ours.and_then(|ours| Paired::of(ours, &theirs));
    let latencies: Vec<_> = rounds.iter().filter_map(|sample| sample.latency).collect();
    Some(Server {
        name: name.to_owned(),
        rate,
        ratio: paired.map(|paired| paired.median),
        paired,
        latency: Latency::median(&latencies),
    })
}

/// Returns the rate of each round, with its number.
fn rates(rounds: &[&Sample]) -> Vec<(usize, f64)> {
    rounds.iter().map(|sample| (sample.round, sample.rate)).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn task(work: &str) -> Task {
        Task { guest: "pvh".into(), target: "ram".into(), work: work.into() }
    }

    pub(crate) fn sample(work: &str, server: &str, rate: f64) -> Sample {
        Sample { task: task(work), server: server.into(), round: 1, rate, latency: None }
    }

    /// Makes a report of `samples`.
    pub(crate) fn report(samples: &[Sample]) -> Report {
        Report { comparisons: comparisons(samples), ..Report::default() }
    }

    #[test]
    fn rounds_are_grouped_in_any_order() {
        let of = |server: &str, round, rate| Sample { round, ..sample("b", server, rate) };
        let comparisons = comparisons(&[
            of("blkback", 1, 50.0),
            of("ours", 1, 100.0),
            sample("a", "ours", 1.0),
            of("blkback", 2, 30.0),
            of("ours", 2, 120.0),
            of("ours", 3, 80.0),
            of("blkback", 3, 40.0),
        ]);
        assert_eq!(comparisons.len(), 2);
        assert_eq!(comparisons[0].task, task("b"));
        let [ours, blkback] = &comparisons[0].servers[..] else { panic!("two servers") };
        assert_eq!((ours.rate.median, ours.ratio), (100.0, None));
        assert_eq!((blkback.rate.median, blkback.ratio), (40.0, Some(2.0)));
        assert_eq!(blkback.rate.rounds, 3);
    }

    #[test]
    fn works_keep_their_order_within_a_section() {
        let of = |guest: &str, work: &str| Sample {
            task: Task { guest: guest.into(), ..task(work) },
            ..sample(work, "ours", 1.0)
        };
        let samples =
            [of("pvh", "tcp-in"), of("pv", "tcp-in"), of("pvh", "tcp-out"), of("pv", "tcp-out")];
        let comparisons = comparisons(&samples);
        let tasks: Vec<_> =
            comparisons.iter().map(|c| (c.task.guest.as_str(), c.task.work.as_str())).collect();
        let expected = [("pvh", "tcp-out"), ("pvh", "tcp-in"), ("pv", "tcp-out"), ("pv", "tcp-in")];
        assert_eq!(tasks, expected);
    }

    #[test]
    fn renewed_report_keeps_other_comparisons() {
        let old = Report {
            machine: vec![("QEMU".into(), "9".into()), ("Xen".into(), "4.20".into())],
            ..report(&[sample("a", "ours", 1.0), sample("a", "x", 1.0), sample("b", "ours", 2.0)])
        };
        let later = Report {
            machine: vec![("QEMU".into(), "10".into()), ("guest".into(), "6.12".into())],
            ..report(&[sample("a", "ours", 3.0), sample("c", "ours", 4.0)])
        };
        let now = old.renewed_by(&later);
        let rates: Vec<_> = now
            .comparisons
            .iter()
            .map(|c| (c.task.work.as_str(), c.servers.len(), c.servers[0].rate.median))
            .collect();
        assert_eq!(rates, [("a", 1, 3.0), ("b", 1, 2.0), ("c", 1, 4.0)]);
        let facts: Vec<_> =
            now.machine.iter().map(|(name, fact)| format!("{name} {fact}")).collect();
        assert_eq!(facts, ["Xen 4.20", "QEMU 10", "guest 6.12"]);
    }

    #[test]
    fn comparison_without_us_has_no_ratio() {
        let comparisons = comparisons(&[sample("a", "floor", 10.0), sample("b", "x", 0.0)]);
        assert_eq!(comparisons[0].servers[0].ratio, None);
        assert_eq!(comparisons[1].servers[0].ratio, None);
    }
}
