//! One machine: QEMU with Xen, Dom0 and the job that Dom0 is to do.

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
use crate::fetch::{Dom0, Tools};

/// How long QEMU may take to end once Dom0 powers off.
const POWER_OFF_LIMIT: Duration = Duration::from_secs(20);

/// Memory of the machine and of Dom0 in it, in MiB; the rest is for guests and Xen.
const MEMORY: u32 = 3584;
const DOM0_MEMORY: u32 = 1536;

/// What a machine is made of.
pub(crate) struct Setup<'a> {
    /// Which machine it is.
    pub(crate) kind: MachineKind,
    /// QEMU.
    pub(crate) tools: &'a Tools,
    /// Xen and Dom0.
    pub(crate) dom0: &'a Dom0,
    /// Dom0's initrd.
    pub(crate) initrd: &'a Path,
    /// The archive for `/lab`.
    pub(crate) payload: &'a Path,
    /// Where the console's and the daemon's logs go.
    pub(crate) logs: &'a Path,
    /// Whether Dom0 gets a terminal.
    pub(crate) terminal: bool,
}

/// The lab's end of Dom0's terminal.
pub(crate) type Terminal = UnixStream;

/// A running machine. It is stopped when this is dropped.
pub(crate) struct Machine {
    qemu: Child,
    events: Receiver<Result<Event>>,
    output: Vec<JoinHandle<()>>,
    console: PathBuf,
    /// Dom0's terminal, if it was asked for.
    pub(crate) terminal: Option<Terminal>,
}

impl Machine {
    /// Starts QEMU. What the job prints goes to standard output and standard error.
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

    /// Waits until Dom0 tells something; `what` it is expected to tell, and within which limit,
    /// is for the error.
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

    /// Waits until Dom0 is ready for its job.
    pub(crate) fn wait_ready(&self, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.next("Dom0 to be ready", left)? {
                Event::Ready => return Ok(()),
                Event::Up => (),
                other => bail!("expected Dom0 to be ready, but it said {other:?}"),
            }
        }
    }

    /// Waits until the machine is off and all the job printed is shown.
    pub(crate) fn wait_off(mut self) -> Result<()> {
        match self.events.recv_timeout(POWER_OFF_LIMIT) {
            Err(RecvTimeoutError::Disconnected) => (),
            Ok(event) => bail!("after its end the job told {event:?}"),
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

    /// The end of the console's log, and where the log is.
    pub(crate) fn console(&self) -> String {
        command::quote(&self.console)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to stop.
        drop(self.qemu.kill());
        drop(self.qemu.wait());
    }
}

/// Xen's options. A processor with emulated SVM must not switch between a PVH guest and another
/// domain: guests then triple-fault, and vector registers leak from one domain to another. So Dom0
/// has processor 0 for itself, guests have processor 1 (see `dom0/init`), and vector registers are
/// switched at once, not when first used.
const XEN_OPTIONS: &str = "console=com1 com1=115200,8n1 guest_loglvl=all \
                           dom0_max_vcpus=1 dom0_vcpus_pin spec-ctrl=eager-fpu";

fn add_machine(qemu: &mut Command, setup: &Setup, console: &Path) {
    let xen = format!("{XEN_OPTIONS} dom0_mem={DOM0_MEMORY}M,max:{DOM0_MEMORY}M");
    qemu.args(Accel::detect().0.options())
        .args(setup.kind.chipset())
        .args(["-smp", &setup.kind.processors().to_string(), "-m", &MEMORY.to_string()])
        .args(["-display", "none", "-nodefaults", "-no-reboot"])
        .arg("-serial")
        .arg(format!("file:{}", console.display()))
        .arg("-kernel")
        .arg(setup.dom0.xen())
        .args(["-append", &xen])
        .arg("-initrd")
        .arg(format!(
            "{} console=hvc0 panic=-1{},{}",
            setup.dom0.kernel().display(),
            setup.kind.init().options(),
            setup.initrd.display()
        ));
    let access = setup.kind.disk_access();
    add_disk(qemu, "root", setup.dom0.disk(), "snapshot=on", access);
    add_disk(qemu, "payload", setup.payload.into(), "readonly=on", access);
    if setup.kind.init() == Init::Systemd {
        // For a driver domain that boots the same system.
        add_disk(qemu, "system", setup.dom0.disk(), "readonly=on", access);
    }
    for card in setup.kind.spare_cards() {
        add_spare_card(qemu, card);
    }
    qemu.args(["-device", "virtio-serial-pci,max_ports=8"]);
}

fn add_disk(qemu: &mut Command, name: &str, image: PathBuf, mode: &str, access: Access) {
    qemu.arg("-drive")
        .arg(format!("file={},if=none,id={name},format=raw,{mode}", image.display()))
        .arg("-device")
        .arg(format!("virtio-blk-pci,drive={name},serial={name},{}", access.options()));
}

/// Adds a card with a disk of zeros, which keeps what is written to it as long as the machine runs.
fn add_spare_card(qemu: &mut Command, SpareCard { serial, access, slot }: &SpareCard) {
    let access = access.options();
    qemu.arg("-drive")
        .arg(format!("driver=null-co,read-zeroes=on,size=16M,if=none,id={serial},snapshot=on"))
        .arg("-device")
        .arg(format!("virtio-blk-pci,drive={serial},serial={serial},addr={slot:#x},{access}"));
}

/// Reads events in a thread of its own, so that waiting for one can have a limit.
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

/// Copies what Dom0 prints, as it comes.
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
