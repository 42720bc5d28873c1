//! `vm-memory-xen`: a backend of another type than xen-virtiod. It serves devices by the same
//! library, but for how a device reaches the guest's memory: by what vm-memory has for Xen.
//! Scenarios use it to show what foreign mapping, by frame numbers, needs, to whom the hypervisor
//! refuses it, and what else it reaches; measurements, to have something to compare with.
#![deny(unsafe_code)]

mod bypass;
mod foreign;
mod handles;
mod map_per_access;
mod peek;
mod permissive;
#[allow(unsafe_code, reason = "vm-memory hands over a pointer to what it mapped")]
mod region;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use xen_virtiod::config::ConfigFile;
use xen_virtiod::daemon::control::{ControlSocket, DEFAULT_SOCKET};
use xen_virtiod::daemon::registry::Registry;
use xen_virtiod::daemon::server::Server;
use xen_virtiod::domain::Domain;
use xen_virtiod::tap::network::HostNetwork;

use crate::bypass::Bypass;
use crate::handles::Handles;
use crate::map_per_access::MapPerAccess;
use crate::permissive::Permissive;

/// Serves devices as xen-virtiod does, until SIGTERM, but reaches memory otherwise.
#[derive(Debug, Parser)]
struct CommandLine {
    /// The type of virtio host.
    host: HostType,

    /// A FIFO. For each line `DOMID FRAME FILE` that is written to it, that page of that domain is
    /// written to the file, or a line `refused: WHY`.
    peek: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum HostType {
    /// Type (a): knows of no platform's mechanism. An address is the guest's own, raw.
    Bypass,
    /// Type (c): by grants for a driver that accepts VIRTIO_F_ACCESS_PLATFORM, else as the driver
    /// likes: an address that is no grant is raw.
    Permissive,
    /// Type (b): by grants, each buffer mapped when it is accessed.
    MapPerAccess,
}

fn main() -> ExitCode {
    let CommandLine { host, peek } = CommandLine::parse();
    let served = match host {
        HostType::Bypass => serve(Handles::<Bypass>::new(), peek),
        HostType::Permissive => serve(Handles::<Permissive>::new(), peek),
        HostType::MapPerAccess => serve(Handles::<MapPerAccess>::new(), peek),
    };
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vm-memory-xen: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(xen: impl Domain, peek: Option<PathBuf>) -> Result<()> {
    tracing_subscriber::fmt().with_ansi(false).with_target(false).init();
    // Blocked before any thread starts, so that it reaches the descriptor and nothing else.
    let signals = SigSet::from(Signal::SIGTERM);
    signals.thread_block().context("cannot block SIGTERM")?;
    let stop = SignalFd::new(&signals).context("cannot wait for SIGTERM")?;

    let registry = Arc::new(Registry::default());
    let (config, network) = (ConfigFile::new(None), Arc::new(HostNetwork));
    let server = Server::new(xen, Arc::clone(&registry), config, network)?;
    let _control = ControlSocket::listen(Path::new(DEFAULT_SOCKET), registry)?;
    if let Some(fifo) = peek {
        std::thread::spawn(move || peek::answer(&fifo));
    }
    println!("vm-memory-xen: ready to serve");
    server.run(&stop)?;
    Ok(())
}
