//! Makes every call of a handle to Xen fail, one after the other, once and for ever, with every
//! error that the kernel, xenstored or the hypervisor can return, in the whole life of a device.
//!
//! After every fault the daemon continues and stops on request, no page of the guest's stays mapped
//! and no port bound, nothing is retried without limit, and the log has a line about the fault.

mod guest;
mod handles;
mod log;
mod plan;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use tempfile::NamedTempFile;

use self::guest::ImpatientGuest;
use self::handles::FaultyHandles;
use self::plan::{Call, Counts, Lasting, Plan, plans};
use super::fake_network::FakeNetwork;
use super::host::numbered_disk;
use crate::bus::{Ending, StopSignal};
use crate::config::ConfigFile;
use crate::daemon::registry::Registry;
use crate::daemon::runner::SharedHost;
use crate::daemon::server::Server;
use crate::domain::ByGrants;
use xen::DomId;
use xen_sim::Hypervisor;

/// Maximum time for the daemon to stop.
const LIMIT: Duration = Duration::from_secs(10);
/// Number of concurrent runs, which mostly wait.
const WORKERS: usize = 24;

/// The course of the device's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    /// The guest's driver leaves and connects again; then the toolstack ends the device.
    Reconnected,
    /// The toolstack ends the device in the middle of requests.
    Destroyed,
    /// The daemon stops in the middle of requests.
    Stopped,
}

/// A rule that a run broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Broken {
    /// The daemon ended by itself.
    Ended,
    /// The daemon did not stop on request.
    Hangs,
    /// A thread panicked.
    Panicked,
    /// Pages stay mapped or ports bound.
    Leaks,
    /// Many more handle calls than without the fault.
    Loops,
    /// The log has no line about the fault.
    Silent,
}

/// The result of a run.
struct FaultRun {
    broken: Vec<Broken>,
    counts: Counts,
}

/// Returns a domain id that no other run uses; the log is filtered by it.
fn next_guest() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(1000);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Runs a life, with a fault if `plan` has one; `usual` is the number of calls without a fault.
fn play(life: Life, plan: Option<Plan>, usual: usize) -> FaultRun {
    let (id, hypervisor) = (next_guest(), Hypervisor::default());
    let handles = FaultyHandles::new(hypervisor.clone(), plan);
    let faults = handles.faults.clone();
    let (disk, config) = (numbered_disk(64), NamedTempFile::new().unwrap());
    let file = ConfigFile::new(Some(config.path().to_owned()));
    let network = Arc::new(FakeNetwork::default());
    let shared = SharedHost::new(None, network).unwrap();
    let server = Server::new(ByGrants(handles), Arc::new(Registry::default()), file, shared);
    // A daemon that cannot start reports an error and does nothing else.
    let Ok(server) = server else {
        return FaultRun { broken: Vec::new(), counts: faults.counts() };
    };
    let stop = Arc::new(StopSignal::new().unwrap());
    let (stopped, (end, ended)) = (Arc::clone(&stop), mpsc::channel());
    let thread = thread::Builder::new().name(log::server_thread(id));
    let thread = thread.spawn(move || drop(end.send(server.run(&stopped)))).unwrap();

    let mut guest = ImpatientGuest::add(&hypervisor, id, disk.path());
    guest.use_disk();
    if life == Life::Reconnected {
        guest.leave();
        guest.come_again();
        guest.use_disk();
    }
    guest.ask_without_waiting();
    if life != Life::Stopped {
        guest.destroy();
    }
    let silent = faults.needs_sentence() && !log::wait(id);
    let mut broken = Vec::new();
    // The program's main function reports the daemon's final error.
    let mut said = false;
    if thread.is_finished() {
        broken.push(Broken::Ended);
    } else {
        stop.give(Ending::End).unwrap();
        match ended.recv_timeout(LIMIT) {
            Ok(outcome) => said = outcome.is_err(),
            Err(mpsc::RecvTimeoutError::Timeout) => broken.push(Broken::Hangs),
            Err(mpsc::RecvTimeoutError::Disconnected) => broken.push(Broken::Panicked),
        }
    }
    let log = log::take(id);
    let mapped = hypervisor.mapped_pages(DomId(id));
    let checks = [
        (Broken::Panicked, log.iter().any(|line| line.contains("panicked"))),
        (Broken::Leaks, mapped > 0 || hypervisor.bound_ports() > 0),
        (Broken::Loops, usual > 0 && faults.counts().total() > 8 * usual + 400),
        (Broken::Silent, silent && log.is_empty() && !said && broken.is_empty()),
    ];
    let found = checks.iter().filter(|(_, is)| *is).map(|(broken, _)| *broken);
    broken.extend(found);
    FaultRun { broken, counts: faults.counts() }
}

/// A fault and the rules that it broke.
struct Complaint {
    plan: Plan,
    broken: Vec<Broken>,
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {:?}", self.plan, self.broken)
    }
}

/// Runs a life with every fault; fails if one breaks a rule.
fn survives(life: Life) {
    log::capture();
    let usual = play(life, None, 0);
    assert_eq!(usual.broken, [], "without a fault");
    let calls = usual.counts.total();
    let waiting = Mutex::new(plans(&usual.counts).into_iter());
    let complaints = Mutex::new(Vec::new());
    let ran = Mutex::new(0);
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                loop {
                    let next = waiting.lock().unwrap().next();
                    let Some(plan) = next else { break };
                    let run = play(life, Some(plan), calls);
                    *ran.lock().unwrap() += 1;
                    if !run.broken.is_empty() {
                        complaints.lock().unwrap().push(Complaint { plan, broken: run.broken });
                    }
                }
            });
        }
    });
    let complaints = complaints.into_inner().unwrap();
    println!(
        "{life:?}: {} runs, {calls} handle calls in one without a fault",
        ran.into_inner().unwrap()
    );
    assert!(complaints.is_empty(), "{}", summary(&complaints));
}

/// Groups complaints by call and by rule, with examples.
fn summary(complaints: &[Complaint]) -> String {
    let mut kinds: BTreeMap<(Call, Lasting, Vec<Broken>), Vec<&Complaint>> = BTreeMap::new();
    for complaint in complaints {
        let key = (complaint.plan.call, complaint.plan.lasting, complaint.broken.clone());
        kinds.entry(key).or_default().push(complaint);
    }
    let line =
        |((call, lasting, broken), all): (&(Call, Lasting, Vec<Broken>), &Vec<&Complaint>)| {
            format!("\n{call:?} {lasting:?}: {broken:?} in {} runs, as {}", all.len(), all[0])
        };
    format!(
        "{} faults broke something:{}",
        complaints.len(),
        kinds.iter().map(line).collect::<String>()
    )
}

#[test]
fn reconnected_device_survives_every_fault() {
    survives(Life::Reconnected);
}

#[test]
fn destroyed_device_survives_every_fault() {
    survives(Life::Destroyed);
}

#[test]
fn stopping_daemon_survives_every_fault() {
    survives(Life::Stopped);
}
