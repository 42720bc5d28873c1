//! How busy the host was with other work during a run: that work disturbs the measurements.

use std::fs;

use anyhow::{Context, Result};
use nix::sys::resource::{UsageWho, getrusage};
use nix::unistd::{SysconfVar, sysconf};

/// The part of the host's processor time that other programs may take during a run that is
/// recorded.
pub(crate) const MOST_OTHER_WORK: f64 = 0.02;

/// Processor time in seconds since some moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Busyness {
    /// The time that the host's processors had.
    all: f64,
    /// The time that they were busy.
    busy: f64,
    /// The part of it for programs that the lab ran and that have ended.
    ours: f64,
}

impl Busyness {
    /// Reads the times until now.
    ///
    /// # Errors
    /// The kernel does not report them.
    pub(crate) fn now() -> Result<Busyness> {
        let stat = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
        let ticks = sysconf(SysconfVar::CLK_TCK)?.context("the kernel has no clock ticks")?;
        let (all, busy) = times(&stat).context("/proc/stat has no line `cpu` with its times")?;
        let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
        let seconds =
            |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
        let ours = seconds(usage.user_time()) + seconds(usage.system_time());
        Ok(Busyness { all: all / ticks as f64, busy: busy / ticks as f64, ours })
    }

    /// Returns the part of the host's processor time since `then` that was for other programs, from
    /// 0 to 1.
    pub(crate) fn others_since(&self, then: &Busyness) -> f64 {
        let all = self.all - then.all;
        let others = (self.busy - then.busy) - (self.ours - then.ours);
        if all > 0.0 { (others / all).clamp(0.0, 1.0) } else { 0.0 }
    }
}

/// Returns all times and the busy times of the line `cpu` of `/proc/stat`, in clock ticks.
fn times(stat: &str) -> Option<(f64, f64)> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    // user, nice, system, idle, iowait, irq, softirq, steal; user includes guests.
    let times: Vec<f64> =
        line.split_whitespace().take(8).map(str::parse).collect::<Result<_, _>>().ok()?;
    let all: f64 = times.iter().sum();
    let idle = times.get(3)? + times.get(4)?;
    Some((all, all - idle))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_and_waiting_times_are_not_busy() {
        let stat = "cpu  10 20 30 400 50 1 2 3 9 0\ncpu0 1 1 1 1 1 1 1 1\n";
        assert_eq!(times(stat), Some((516.0, 66.0)));
        assert_eq!(times("intr 1\n"), None);
    }

    #[test]
    fn time_of_our_programs_is_subtracted() {
        let then = Busyness { all: 100.0, busy: 50.0, ours: 20.0 };
        let now = Busyness { all: 300.0, busy: 200.0, ours: 70.0 };
        assert_eq!(now.others_since(&then), 0.5);
        assert_eq!(then.others_since(&then), 0.0);
    }

    #[test]
    fn this_host_reports_its_times() {
        let now = Busyness::now().unwrap();
        assert!(now.all >= now.busy && now.busy > 0.0);
    }
}
