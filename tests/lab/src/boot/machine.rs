//! One machine: QEMU with Xen, Dom0 and the job that Dom0 runs.

use std::io::{BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use super::accel::Accel;
use super::event::{self, Event};
use super::hardware::{Access, Init, MachineKind, SpareCard};
use super::port::{self, QemuEnd};
use crate::command;
use crate::debian::Arch;
use crate::fetch::{Dom0, Tools};

/// The maximum time between the end of the job and the end of QEMU.
const POWER_OFF_LIMIT: Duration = Duration::from_secs(20);

/// The memory of the machine, and Dom0's share of it, in MiB. Guests and Xen use the rest.
const MEMORY: u32 = 3584;
const DOM0_MEMORY: u32 = 1536;

/// The parts of a machine.
pub(crate) struct Setup<'a> {
    /// The kind of machine.
    pub(crate) kind: MachineKind,
    /// QEMU.
    pub(crate) tools: &'a Tools,
    /// Xen and Dom0.
    pub(crate) dom0: &'a Dom0,
    /// Dom0's initrd.
    pub(crate) initrd: &'a Path,
    /// The archive that Dom0 unpacks to `/lab`.
    pub(crate) payload: &'a Path,
    /// The disk of a guest with a whole system, for a Dom0 that boots as Debian does.
    pub(crate) guest_system: Option<&'a Path>,
    /// The directory for the logs of the console, of the daemon and of QEMU.
    pub(crate) logs: &'a Path,
    /// Whether Dom0 has a terminal that the lab can use.
    pub(crate) terminal: bool,
}

/// The lab's end of Dom0's terminal.
pub(crate) type Terminal = UnixStream;

/// A running machine. Dropping it kills QEMU.
pub(crate) struct Machine {
    qemu: Child,
    events: Receiver<Result<Event>>,
    output: Vec<JoinHandle<()>>,
    console: PathBuf,
    /// Dom0's terminal, if [`Setup::terminal`] requested one.
    pub(crate) terminal: Option<Terminal>,
}

impl Machine {
    /// Starts QEMU. Threads copy the job's output to the lab's standard output and standard error.
    pub(crate) fn start(setup: &Setup) -> Result<Machine> {
        let console = setup.logs.join("console.log");
        let mut qemu = setup.tools.qemu();
        add_machine(&mut qemu, setup, &console);
        port::add_file(&mut qemu, "daemon", &setup.logs.join("xen-virtiod.log"));
        let mut ends: Vec<QemuEnd> = Vec::new();
        let mut stream = |device: &str, name: &str| -> Result<UnixStream> {
            let (ours, theirs) = port::add(&mut qemu, device, name)?;
            ends.push(theirs);
            Ok(ours)
        };
        let events = stream("virtserialport", "events")?;
        let stdout = stream("virtserialport", "stdout")?;
        let stderr = stream("virtserialport", "stderr")?;
        let terminal = setup.terminal.then(|| stream("virtconsole", "terminal")).transpose()?;
        let log = setup.logs.join("qemu.log");
        let log_file = std::fs::File::create(&log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        let qemu = qemu
            .stdin(Stdio::null())
            .stdout(log_file.try_clone()?)
            .stderr(log_file)
            .spawn()
            .context("cannot start QEMU")?;
        drop(ends);
        Ok(Machine {
            qemu,
            events: follow(events),
            output: vec![copy(stdout, std::io::stdout()), copy(stderr, std::io::stderr())],
            console,
            terminal,
        })
    }

    /// Waits up to `limit` for the next event. `what` names the expected event in errors.
    ///
    /// # Errors
    /// No event arrives in time, the machine ends, or Dom0 sends something that is no event.
    pub(crate) fn next(&self, what: &str, limit: Duration) -> Result<Event> {
        let seconds = limit.as_secs();
        match self.events.recv_timeout(limit) {
            Ok(event) => event,
            Err(RecvTimeoutError::Timeout) => {
                Err(anyhow!("waited {seconds} s for {what}. {}", self.console()))
            }
            Err(RecvTimeoutError::Disconnected) => Err(anyhow!(
                "the machine ended while the lab waited for {what}. {}",
                self.console()
            )),
        }
    }

    /// Waits up to `limit` until Dom0 is ready for its job.
    pub(crate) fn wait_ready(&self, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.next("Dom0 to be ready", left)? {
                Event::Ready => return Ok(()),
                Event::Up => (),
                other => bail!("expected Dom0 to be ready, but it reported {other:?}"),
            }
        }
    }

    /// Waits until the machine is off and the lab has copied all of the job's output.
    pub(crate) fn wait_off(mut self) -> Result<()> {
        match self.events.recv_timeout(POWER_OFF_LIMIT) {
            Err(RecvTimeoutError::Disconnected) => (),
            Ok(event) => bail!("expected the machine to end, but Dom0 reported {event:?}"),
            Err(RecvTimeoutError::Timeout) => bail!(
                "waited {} s for Dom0 to power off. {}",
                POWER_OFF_LIMIT.as_secs(),
                self.console()
            ),
        }
        for thread in self.output.drain(..) {
            drop(thread.join());
        }
        Ok(())
    }

    /// Quotes the end of the console's log, and names the log.
    pub(crate) fn console(&self) -> String {
        command::quote(&self.console)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Both calls fail if QEMU has ended already, which is no error.
        drop(self.qemu.kill());
        drop(self.qemu.wait());
    }
}

/// Xen's options. QEMU's emulated SVM is faulty: if a processor switches between a PVH guest and
/// another domain, guests triple-fault, and vector registers leak from one domain to another. So
/// Dom0 has the first processors for itself, guests run on the next (`keep_guests_off_dom0` in
/// `dom0/job.sh`), and Xen switches vector registers eagerly instead of on first use.
const XEN_OPTIONS: &str = "console=com1 com1=115200,8n1 spec-ctrl=eager-fpu";

/// Xen's options on Arm. Xen has XSM's policy SILO as its default there: no domain but
/// Dom0 may then grant pages to a driver domain.
const XEN_OPTIONS_AARCH64: &str = "console=dtuart xsm=dummy";

/// Where QEMU loads Dom0's kernel and its initrd on Arm: the kernel has 96 MiB.
const KERNEL_AT: &str = "0x49000000";
const INITRD_AT: &str = "0x4f000000";

fn add_machine(qemu: &mut Command, setup: &Setup, console: &Path) {
    let arch = setup.tools.arch();
    let options = match arch {
        Arch::X86_64 => XEN_OPTIONS,
        Arch::Aarch64 => XEN_OPTIONS_AARCH64,
    };
    let xen = format!(
        "{options} guest_loglvl=all dom0_vcpus_pin dom0_max_vcpus={} \
         dom0_mem={DOM0_MEMORY}M,max:{DOM0_MEMORY}M",
        setup.kind.dom0_processors()
    );
    match arch {
        Arch::X86_64 => qemu.args(Accel::detect().0.options()).args(setup.kind.chipset()),
        Arch::Aarch64 => qemu
            .args(["-accel", "tcg,thread=multi", "-cpu", "cortex-a57"])
            .args(["-machine", "virt,virtualization=on,gic-version=2"]),
    };
    qemu.args(["-smp", &setup.kind.processors().to_string(), "-m", &MEMORY.to_string()])
        .args(["-display", "none", "-nodefaults", "-no-reboot"])
        .arg("-serial")
        .arg(format!("file:{}", console.display()))
        .arg("-kernel")
        .arg(setup.dom0.xen())
        .args(["-append", &xen]);
    add_dom0(qemu, setup);
    let access = setup.kind.disk_access();
    add_disk(qemu, arch, "root", setup.dom0.disk(), "snapshot=on", access);
    add_disk(qemu, arch, "payload", setup.payload.into(), "readonly=on", access);
    if setup.kind.init() == Init::Systemd {
        // The root file system of a driver domain that boots the same system.
        add_disk(qemu, arch, "system", setup.dom0.disk(), "readonly=on", access);
    }
    if let Some(image) = setup.guest_system {
        add_disk(qemu, arch, "guest-root", image.into(), "snapshot=on", access);
        for serial in ["guest-xfs", "guest-btrfs", "guest-lvm", "guest-luks"] {
            add_spare_disk(qemu, &SpareDisk { serial, size: "3G" }, "", access);
        }
    }
    for SpareCard { serial, access, slot } in setup.kind.spare_cards() {
        let spare = SpareDisk { serial, size: "16M" };
        add_spare_disk(qemu, &spare, &format!("addr={slot:#x},"), *access);
    }
    qemu.args(["-device", &format!("virtio-serial-{},max_ports=8", bus(arch))]);
}

/// Adds Dom0's kernel and initrd: modules of a multiboot image or, on Arm, in memory, where the
/// device tree says that they are.
fn add_dom0(qemu: &mut Command, setup: &Setup) {
    let kernel = setup.dom0.kernel();
    let options = format!("console=hvc0 panic=-1{}", setup.kind.init().options());
    match setup.tools.arch() {
        Arch::X86_64 => {
            let initrd = setup.initrd.display();
            qemu.arg("-initrd").arg(format!("{} {options},{initrd}", kernel.display()))
        }
        Arch::Aarch64 => qemu
            .arg("-device")
            .arg(format!(
                "guest-loader,addr={KERNEL_AT},kernel={},bootargs={options}",
                kernel.display()
            ))
            .arg("-device")
            .arg(format!("guest-loader,addr={INITRD_AT},initrd={}", setup.initrd.display())),
    };
}

/// The bus of the machine's virtio devices, in the names of QEMU's.
fn bus(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "pci",
        Arch::Aarch64 => "device",
    }
}

fn add_disk(
    qemu: &mut Command,
    arch: Arch,
    name: &str,
    image: PathBuf,
    mode: &str,
    access: Access,
) {
    let (bus, access) = (bus(arch), access.options());
    qemu.arg("-drive")
        .arg(format!("file={},if=none,id={name},format=raw,{mode}", image.display()))
        .arg("-device")
        .arg(format!("virtio-blk-{bus},drive={name},serial={name},{access}"));
}

/// A disk of zeros. It keeps written data until the machine ends.
struct SpareDisk<'a> {
    serial: &'a str,
    size: &'static str,
}

/// Adds a card with a spare disk; `place` is an option for its place on the bus.
fn add_spare_disk(qemu: &mut Command, disk: &SpareDisk<'_>, place: &str, access: Access) {
    let (SpareDisk { serial, size }, access) = (disk, access.options());
    qemu.arg("-drive")
        .arg(format!("driver=null-co,read-zeroes=on,size={size},if=none,id={serial},snapshot=on"))
        .arg("-device")
        .arg(format!("virtio-blk-pci,drive={serial},serial={serial},{place}{access}"));
}

/// Reads events in a thread, so that [`Machine::next`] can limit its wait.
fn follow(stream: UnixStream) -> Receiver<Result<Event>> {
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        let mut input = BufReader::new(stream);
        while let Some(event) = event::read(&mut input).transpose() {
            if send.send(event).is_err() {
                break;
            }
        }
    });
    receive
}

/// Copies Dom0's output in a thread, as it arrives.
fn copy(mut from: UnixStream, mut to: impl Write + Send + 'static) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = std::io::Read::read(&mut from, &mut buffer) {
            let bytes = buffer.get(..read).unwrap_or_default();
            if to.write_all(bytes).and_then(|()| to.flush()).is_err() {
                break;
            }
        }
    })
}
