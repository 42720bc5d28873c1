//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use tracing::Level;

use xen_virtiod::daemon::control::DEFAULT_SOCKET;

/// Serves virtio devices to Xen guests, reaching only the memory they granted.
///
/// Without a command it is the daemon: it watches XenStore for devices that xl sets up (a disk line
/// with backendtype=standalone,specification=virtio) and serves them until it is stopped by SIGTERM
/// or SIGINT. It needs the kernel modules xen-gntdev and xen-evtchn, and no privilege over the
/// guests: it works the same in Dom0 and in a driver domain.
#[derive(Debug, Parser)]
#[command(
    name = "xen-virtiod",
    version,
    after_help = "\
A disk line it serves (target last):
  disk = [\"format=raw,vdev=xvda,access=rw,backendtype=standalone,specification=virtio,target=/path\"]
A network device, at the bridge xenbr0 if it is there:
  virtio = [\"type=virtio,device1,transport=mmio\"]
Likewise device3 is a console, device4 an entropy device, device13 a socket device (vsock).

A device that cannot be served says why in the log and in the key `error` of its backend's
directory (xenstore-ls backend)."
)]
pub struct CommandLine {
    /// What to do; without it, serve.
    #[command(subcommand)]
    pub action: Option<Operation>,

    /// How much to log, to standard error: error, warn, info, debug or trace.
    #[arg(long, default_value = "info", value_name = "LEVEL", global = true)]
    pub log: Level,

    /// The control socket, that `stat` asks.
    #[arg(long, default_value = DEFAULT_SOCKET, value_name = "PATH", global = true)]
    pub socket: PathBuf,

    /// The configuration file [default: /etc/xen-virtiod.toml, which may be missing].
    #[arg(long, value_name = "PATH", global = true)]
    pub config: Option<PathBuf>,
}

/// What to do instead of serving.
#[derive(Debug, Subcommand)]
pub enum Operation {
    /// Shows every device: state, features, requests, bytes, addresses, pages mapped.
    ///
    /// Devices that are gone are shown too, the latest 64.
    Stat {
        /// One JSON object, for programs.
        #[arg(long)]
        json: bool,
    },
    /// Checks the configuration file: says "ok", or in a line which file, line and key is wrong.
    Check {
        /// The file, if it is not the one that the daemon reads.
        path: Option<PathBuf>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        CommandLine::command().debug_assert();
    }

    #[test]
    fn the_version_is_the_programs_own() {
        use clap::CommandFactory;
        let version = CommandLine::command().render_version();
        assert_eq!(version, format!("xen-virtiod {}\n", env!("CARGO_PKG_VERSION")));
    }

    #[test]
    fn without_a_command_it_serves() {
        let parsed = CommandLine::try_parse_from(["xen-virtiod", "--log", "debug"]).unwrap();
        assert!(parsed.action.is_none());
        assert_eq!(parsed.log, Level::DEBUG);
        assert!(CommandLine::try_parse_from(["xen-virtiod", "--log", "loud"]).is_err());
    }

    #[test]
    fn the_help_names_the_default_configuration_file() {
        use clap::CommandFactory;
        let help = CommandLine::command().render_long_help().to_string();
        assert!(help.contains(xen_virtiod::config::DEFAULT_PATH), "{help}");
    }
}
