//! The prepared lab: everything that is fetched and built, from which machines boot.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread::{self, ScopedJoinHandle};

use anyhow::{Context, Result, ensure};
use nix::fcntl::Flock;

use crate::boot::{Init, Machine, MachineKind, Setup};
use crate::build::{
    self, Built, Compiler, Dom0Programs, GuestFiles, Installation, PackagesBuild, Payload,
    StorageTools,
};
use crate::cpio::Cpio;
use crate::debian::{Arch, Suite};
use crate::dirs::Dirs;
use crate::fetch::{self, Fetched, Kernel};
use crate::host;
use crate::lock;
use crate::progress::Progress;

/// Locks `target/lab` for this process, and waits while another process holds the lock.
pub(crate) fn lock(dirs: &Dirs, progress: &Progress) -> Result<Flock<File>> {
    lock::take(&dirs.lab.join("lock"), || {
        progress.line("target/lab is locked: waiting for another `cargo lab` to end");
    })
}

/// The lab, ready to boot. It holds the lock on `target/lab` until it is dropped.
pub(crate) struct Lab {
    dirs: Dirs,
    fetched: Fetched,
    built: Built,
    logs: PathBuf,
    _lock: Flock<File>,
}

impl Lab {
    /// Fetches and builds everything that is missing; `command` names the directory of the logs.
    ///
    /// Guests can then use the kernels of the releases `others` beside the default one, except
    /// those for which [`Lab::lacks`] returns a reason.
    pub(crate) fn prepare(
        arch: Arch,
        command: &str,
        others: &[Suite],
        progress: &Progress,
    ) -> Result<Lab> {
        let dirs = Dirs::for_arch(arch)?;
        let lock = lock(&dirs, progress)?;
        let logs = dirs.fresh_logs(command)?;
        host::ensure_tools(progress, &logs.join("install.log"))?;
        let minutes = progress.minutes();
        let (fetched, built) = thread::scope(|scope| {
            // This host's compiler needs no fetched packages for Dom0's programs.
            let at_once = (arch == Arch::default()).then(|| {
                let compiler = Compiler::host(&dirs, &logs);
                scope.spawn(move || build::dom0_programs(&compiler, progress))
            });
            let fetched =
                minutes.part("fetch", || fetch::all(arch, others, &dirs.cache, &logs, progress))?;
            let build = || build_with(at_once, &dirs, &fetched, &logs, progress);
            let built = minutes.part("build", build)?;
            Ok::<_, anyhow::Error>((fetched, built))
        })?;
        Ok(Lab { dirs, fetched, built, logs, _lock: lock })
    }

    /// Returns why guests cannot use the kernel of `suite`, or `None` if they can.
    pub(crate) fn lacks(&self, suite: Suite) -> Option<&str> {
        self.built.guests.lacks(suite)
    }

    /// Builds what a guest with `kernel` boots.
    pub(crate) fn guest_files(&self, kernel: &Kernel, progress: &Progress) -> Result<GuestFiles> {
        let (guest, programs) = (&self.fetched.guest, &self.built.guest_programs);
        build::guest(&self.dirs, guest, kernel, programs, &self.logs, progress)
    }

    /// Returns the directories that the lab reads and writes.
    pub(crate) fn dirs(&self) -> &Dirs {
        &self.dirs
    }

    /// Returns the fetched kernels, programs and images.
    pub(crate) fn fetched(&self) -> &Fetched {
        &self.fetched
    }

    /// Returns the directory of this command's logs.
    pub(crate) fn logs(&self) -> &Path {
        &self.logs
    }

    /// Boots the machine `kind` with `payload`, and waits until its Dom0 is ready for the job. With
    /// `terminal`, Dom0 has a console that the caller can use.
    pub(crate) fn boot(
        &self,
        kind: MachineKind,
        payload: &Payload,
        terminal: bool,
        progress: &Progress,
    ) -> Result<Machine> {
        let arch = self.fetched.tools.arch();
        ensure!(
            kind == MachineKind::default() || arch == Arch::default(),
            "the machine {kind} is for x86_64"
        );
        let installation = match kind.init() {
            Init::Lab => None,
            Init::Systemd => Some(self.installation(payload.guest_tools, progress)?),
        };
        progress.line(crate::boot::accel_line(arch));
        let step = progress.step(&match kind {
            MachineKind::Default => "boot Xen and Dom0".to_owned(),
            other => format!("boot Xen and Dom0 on the machine {other}"),
        });
        let logs = self.machine_logs(kind)?;
        let payload_image = self.dirs.lab.join("payload.tar");
        build::write_payload(
            &payload_image,
            &self.dirs,
            &self.fetched.guest,
            &self.built,
            payload,
            installation.as_ref(),
        )?;
        let machine = Machine::start(&Setup {
            kind,
            tools: &self.fetched.tools,
            dom0: &self.fetched.dom0,
            initrd: &self.dom0_initrd()?,
            payload: &payload_image,
            guest_system: installation.as_ref().map(|all| all.guest_system.as_path()),
            logs: &logs,
            terminal,
        })?;
        machine.wait_ready(kind.init().limit())?;
        step.done();
        Ok(machine)
    }

    /// Builds the packages of Dom0's release, and a guest's disk with them.
    fn installation(&self, tools: StorageTools, progress: &Progress) -> Result<Installation> {
        let build = PackagesBuild::prepare(Suite::LAB, &self.dirs, &self.logs, progress)?;
        let packages = build.build(progress)?;
        Ok(Installation {
            packages,
            guest_system: build::guest_system(tools, &build, &self.dirs, &self.logs, progress)?,
            kernel: self.fetched.dom0.kernel(),
            initrd: self.fetched.dom0.initrd(),
        })
    }

    /// Returns the directory of a machine's logs. Each machine except the default has its own.
    fn machine_logs(&self, kind: MachineKind) -> Result<PathBuf> {
        let logs = match kind {
            MachineKind::Default => self.logs.clone(),
            other => self.logs.join(other.name()),
        };
        fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
        Ok(logs)
    }

    /// Writes Dom0's initrd: the distribution's part, and the script that runs first in it.
    fn dom0_initrd(&self) -> Result<PathBuf> {
        let mut ours = Cpio::default();
        ours.copy("init", &self.dirs.tests().join("lab/dom0/initrd-init"))?;
        let theirs = self.fetched.dom0.initrd();
        let mut initrd =
            fs::read(&theirs).with_context(|| format!("cannot read {}", theirs.display()))?;
        initrd.extend(ours.finish());
        let path = self.dirs.lab.join("dom0-initrd");
        fs::write(&path, initrd)?;
        Ok(path)
    }
}

/// Builds everything that depends on fetched packages, and waits for Dom0's programs, if they do
/// not.
fn build_with(
    dom0_programs: Option<ScopedJoinHandle<'_, Result<Dom0Programs>>>,
    dirs: &Dirs,
    fetched: &Fetched,
    logs: &Path,
    progress: &Progress,
) -> Result<Built> {
    let compiler = Compiler::for_fetched(fetched, dirs, logs);
    let guest_programs = build::guest_programs(&compiler, progress)?;
    let guests = build::guests(dirs, fetched, &guest_programs, logs, progress)?;
    let dom0_programs = match dom0_programs {
        Some(thread) => fetch::join(thread)?,
        None => build::dom0_programs(&compiler, progress)?,
    };
    let archive =
        |name, program: &Path| build::backend_archive(dirs, &fetched.guest, name, program);
    let driver_domain = archive("driver-domain", &dom0_programs.xen_virtiod)?;
    let vm_memory_xen = archive("vm-memory-xen", &dom0_programs.vm_memory_xen)?;
    Ok(Built { dom0_programs, guest_programs, guests, driver_domain, vm_memory_xen })
}
