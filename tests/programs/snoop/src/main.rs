//! `snoop`: a backend that a guest should not trust. It serves devices with xen-virtiod's library,
//! and searches every page that it maps, as a whole, for words that the guest must not expose.
#![forbid(unsafe_code)]

mod handles;
mod search;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Parser;
use xen::DevXen;
use xen_virtiod::config::ConfigFile;
use xen_virtiod::daemon::control::{Control, ControlSocket, DEFAULT_SOCKET};
use xen_virtiod::daemon::registry::Registry;
use xen_virtiod::daemon::runner::SharedHost;
use xen_virtiod::daemon::server::Server;
use xen_virtiod::daemon::signals::stop_on_signals;
use xen_virtiod::domain::ByGrants;
use xen_virtiod::tap::network::HostNetwork;

use crate::handles::Snoop;
use crate::search::Search;

/// Serves devices like xen-virtiod, until SIGTERM, and searches all pages that it maps for WORDs.
#[derive(Debug, Parser)]
struct CommandLine {
    /// The file for the report: a line `found WORD` when each word is first found and, at the end,
    /// `looked through N pages`.
    report: PathBuf,

    /// The words to search for.
    #[arg(required = true)]
    words: Vec<String>,
}

fn main() -> ExitCode {
    match serve(&CommandLine::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("snoop: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(command_line: &CommandLine) -> Result<()> {
    tracing_subscriber::fmt().with_ansi(false).with_target(false).init();
    let stop = stop_on_signals(None).context("cannot wait for SIGTERM")?;

    let report = &command_line.report;
    let search = Search::new(report, &command_line.words)
        .with_context(|| format!("cannot write the report {}", report.display()))?;
    let search = Arc::new(search);
    let registry = Arc::new(Registry::default());
    let xen = ByGrants(Snoop::new(DevXen, Arc::clone(&search)));
    let shared = SharedHost::new(None, Arc::new(HostNetwork)).context("no descriptor is left")?;
    let reloads = Arc::clone(&shared.reloads);
    let server = Server::new(xen, Arc::clone(&registry), ConfigFile::new(None), shared)?;
    let control = Control { registry, stop: Arc::clone(&stop), reloads };
    let _control = ControlSocket::listen(Path::new(DEFAULT_SOCKET), control)?;
    println!("snoop: ready to serve");
    server.run(&stop)?;
    search.finish().with_context(|| format!("cannot write the report {}", report.display()))
}
