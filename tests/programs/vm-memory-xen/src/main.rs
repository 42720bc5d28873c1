//! `vm-memory-xen`: a backend of another host type than xen-virtiod. It serves devices with the
//! same library, but its devices reach the guest's memory through vm-memory's mappings for Xen.
//! Scenarios use it to show which privilege foreign mapping by frame numbers needs, which domains
//! the hypervisor refuses it to, and which other memory it reaches. Measurements compare
//! xen-virtiod with it.
#![deny(unsafe_code)]

mod bypass;
mod foreign;
mod handles;
mod map_per_access;
mod peek;
mod permissive;
#[allow(unsafe_code, reason = "vm-memory returns a pointer to its mapping")]
mod region;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use xen_virtiod::config::ConfigFile;
use xen_virtiod::daemon::control::{Control, ControlSocket, DEFAULT_SOCKET};
use xen_virtiod::daemon::registry::Registry;
use xen_virtiod::daemon::runner::SharedHost;
use xen_virtiod::daemon::server::Server;
use xen_virtiod::daemon::signals::stop_on_signals;
use xen_virtiod::domain::Domain;
use xen_virtiod::tap::network::HostNetwork;

use crate::bypass::Bypass;
use crate::handles::Handles;
use crate::map_per_access::MapPerAccess;
use crate::permissive::Permissive;

/// Serves devices like xen-virtiod, until SIGTERM, but reaches guests' memory as another host type.
#[derive(Debug, Parser)]
struct CommandLine {
    /// The type of virtio host.
    host: HostType,

    /// A FIFO. For each line `DOMID FRAME FILE` from it, the program writes that page of that
    /// domain to the file, or a line `refused: REASON`.
    peek: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum HostType {
    /// Type (a): uses no platform mechanism. All addresses are the guest's own, raw.
    Bypass,
    /// Type (c): uses only grants if the driver accepts VIRTIO_F_ACCESS_PLATFORM. Otherwise the
    /// driver chooses: an address that is no grant is raw.
    Permissive,
    /// Type (b): uses only grants, and maps each buffer when it accesses it.
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
    let stop = stop_on_signals(None).context("cannot wait for SIGTERM")?;

    let registry = Arc::new(Registry::default());
    let shared = SharedHost::new(None, Arc::new(HostNetwork)).context("no descriptor is left")?;
    let reloads = Arc::clone(&shared.reloads);
    let server = Server::new(xen, Arc::clone(&registry), ConfigFile::new(None), shared)?;
    let control = Control { registry, stop: Arc::clone(&stop), reloads };
    let _control = ControlSocket::listen(Path::new(DEFAULT_SOCKET), control)?;
    if let Some(fifo) = peek {
        std::thread::spawn(move || peek::answer(&fifo));
    }
    println!("vm-memory-xen: ready to serve");
    server.run(&stop)?;
    Ok(())
}
