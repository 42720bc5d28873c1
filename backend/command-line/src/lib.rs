//! The command line of `xen-virtiod`: its commands, options and their help.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use tracing::Level;

/// The default path of the configuration file.
pub const DEFAULT_CONFIG: &str = "/etc/xen-virtiod.toml";

/// The default path of the control socket.
pub const DEFAULT_SOCKET: &str = "/run/xen-virtiod.sock";

/// Serves virtio devices to Xen guests and reaches only the memory that they granted.
///
/// Without a command, xen-virtiod runs as the daemon: it watches XenStore for devices that xl sets
/// up (a disk line with backendtype=standalone,specification=virtio) and serves them until SIGTERM
/// or SIGINT stops it. Guests then wait for the next daemon, which goes on with their devices. Each
/// guest has a process of its own. It needs the kernel modules xen-gntdev and xen-evtchn, and no
/// privilege over the guests: it works the same in Dom0 and in a driver domain.
#[derive(Debug, Parser)]
#[command(
    name = "xen-virtiod",
    version,
    after_help = "\
A disk line that it serves (target last):
  disk = [\"format=raw,vdev=xvda,access=rw,backendtype=standalone,specification=virtio,target=/path\"]
A network device, at the bridge xenbr0 if that exists:
  virtio = [\"type=virtio,device1\"]
Other types: device3 is a console, device4 an entropy device, device13 a socket device (vsock).

For a device that it cannot serve, it writes the reason to the log and to the key `error` of the
backend's directory (xenstore-ls backend). `xen-virtiod stat` shows it too."
)]
pub struct CommandLine {
    /// Command to run [default: serve devices].
    #[command(subcommand)]
    pub action: Option<Operation>,

    /// Least severe level to log to standard error: error, warn, info, debug or trace.
    #[arg(long, default_value = "info", value_name = "LEVEL", global = true)]
    pub log: Level,

    /// Logs lines for the journal, which the supervisor passes on.
    #[arg(long, hide = true, global = true)]
    pub journal: bool,

    /// Path of the control socket, which `stat` and others connect to.
    #[arg(long, default_value = DEFAULT_SOCKET, value_name = "PATH", global = true)]
    pub socket: PathBuf,

    /// Path of the configuration file [default: /etc/xen-virtiod.toml, which may be missing].
    #[arg(long, value_name = "PATH", global = true)]
    pub config: Option<PathBuf>,
}

/// A command other than serving.
#[derive(Debug, Subcommand)]
pub enum Operation {
    /// Shows every device: state, target, requests, bytes, latency, addresses, pages mapped.
    ///
    /// Also shows how many requests of a disk wait for storage ("in flight") and for how long the
    /// oldest has; at the end removed disks that still wait for storage, and the latest 64 other
    /// removed devices. Latency is the time from taking a request out of its queue to answering it.
    ///
    ///   xen-virtiod stat web
    ///   xen-virtiod stat --watch 5
    #[command(verbatim_doc_comment)]
    Stat {
        /// The guest's name or domain id [default: all guests].
        domain: Option<String>,
        /// Prints one JSON object, for programs.
        #[arg(long)]
        json: bool,
        /// Prints a line for each device that is present, with rates and latency in the interval,
        /// again and again until it is interrupted [default: every second].
        #[arg(
            long,
            value_name = "SECONDS",
            num_args = 0..=1,
            default_missing_value = "1",
            value_parser = clap::value_parser!(u32).range(1..=86400),
            conflicts_with = "json"
        )]
        watch: Option<u32>,
    },
    /// Says what this host lacks to serve devices, with the commands that mend it.
    ///
    /// Run it in Dom0 or in a driver domain, with or without a daemon. It changes nothing. Each
    /// line begins with "ok", "unknown" (the check could not look, as for a user who is not root),
    /// "warning" (slower, less safe, or lost later) or "error" (not served). The exit status is 1
    /// if there is an error.
    Doctor {
        /// Prints one JSON object, for programs.
        #[arg(long)]
        json: bool,
    },
    /// Prints counters, gauges and latency histograms of all devices for Prometheus.
    ///
    /// It prints the text format of OpenMetrics. With --output it writes the earlier text format of
    /// Prometheus, which the textfile collector of node_exporter reads.
    Metrics {
        /// Replaces this file, whose name ends in .prom, instead of printing.
        #[arg(long, value_name = "PATH")]
        output: Option<PathBuf>,
    },
    /// Ends all devices for good, and the daemon: guests lose them, as after an unplugged disk.
    ///
    /// To stop or restart the daemon does not end disks: their guests wait for the next daemon.
    End,
    /// One for the devices of a guest.
    #[command(flatten)]
    Device(DeviceCommand),
    /// Lets disks go on that are paused because their storage failed (on-error in the
    /// configuration).
    ///
    /// Repair the storage first. The requests that failed are done again.
    Resume {
        /// The guest's name or domain id [default: all guests].
        domain: Option<String>,
        /// The disk's name, such as xvda, or virtio_disk/51712 [default: all that are paused].
        device: Option<String>,
    },
    /// Applies the changed configuration file to running devices: the limits of their rates.
    ///
    /// Prints a line for each device whose limits change. Other keys apply to devices that are set
    /// up from then on, also without this. SIGHUP does the same; the log says what changed.
    Reload {
        /// Prints one JSON array, for programs.
        #[arg(long)]
        json: bool,
    },
    /// Serves the devices of one guest. The daemon starts this program so, with a socket as its
    /// standard input.
    #[command(hide = true)]
    ServeGuest {
        /// The guest's domain id.
        guest: u16,
    },
    /// Checks the configuration file: prints "ok", or one line with file, line and key of the
    /// error. The exit status of an error is 78.
    Check {
        /// Path of the file [default: the file that the daemon reads].
        path: Option<PathBuf>,
    },
}

/// A command for the devices of guests that run.
#[derive(Debug, Subcommand)]
pub enum DeviceCommand {
    /// Attaches a device to a guest that runs, as xl does when it creates one.
    ///
    /// Run it in Dom0, as root. The guest has the device when its module virtio_msg_xen is loaded,
    /// and keeps it over reboot, save and migration. To attach the same disk once more changes
    /// nothing; another `net` is another device. xl cannot hold disks with and without
    /// specification=virtio in one guest.
    #[command(after_help = "\
Types and their options:
  disk target=PATH   a raw file, a block device, or a qcow2 image named .qcow2, in the backend's
                     domain
       vdev=NAME     its name, xvda or later, in HVM guests xvde or later [default: the first free
                     one]
       ro            read-only
       direct        bypass Dom0's page cache (direct-io-safe in xl's disk lines)
       no-discard    the guest may not discard
       untrusted     the guest grants no page that holds more than a buffer's data
  net, console, rng, vsock

  xen-virtiod attach web disk target=/dev/vg/data vdev=xvdb
  xen-virtiod attach web net")]
    Attach {
        /// The guest's name, domain id or UUID.
        domain: String,
        /// disk, net, console, rng or vsock.
        kind: String,
        /// Options of the type, such as target=/path.
        options: Vec<String>,
        /// Name or domain id of the driver domain whose xen-virtiod serves it [default: Dom0].
        #[arg(long, value_name = "DOMAIN")]
        backend: Option<String>,
        /// Prints one JSON object, for programs.
        #[arg(long)]
        json: bool,
    },
    /// Detaches a device from a guest that runs, once the guest does not use it.
    ///
    /// Run it in Dom0. A disk is in use while it, or a partition of it, is open in the guest, such
    /// as by a mounted file system. The other devices go at once. To detach a device once more
    /// changes nothing.
    Detach {
        /// The guest's name, domain id or UUID.
        domain: String,
        /// A disk's name, such as xvdb, or a device as `list` shows it, such as virtio/0.
        device: String,
        /// Takes the device away although the guest uses it, or nobody answers.
        #[arg(long)]
        force: bool,
        /// Seconds to wait for the guest to let go.
        #[arg(long, value_name = "SECONDS", default_value_t = 30, conflicts_with = "force")]
        wait: u16,
        /// Prints one JSON object, for programs.
        #[arg(long)]
        json: bool,
    },
    /// Gives the devices of a driver domain that has rebooted their backend again.
    ///
    /// Run it in Dom0, as root, when the driver domain is there again: it has another domain id,
    /// and only Dom0 can name that to the guests. A guest whose module has reconnect=SECONDS goes
    /// on with its interfaces, and with disks that are read-only, or block devices with
    /// `direct-io-safe`:
    ///
    ///   xen-virtiod reattach net-domain
    ///
    /// With --watch it does so for each driver domain that comes back, until it is stopped, as in
    /// the unit xen-virtiod-reattach.service.
    #[command(verbatim_doc_comment)]
    Reattach {
        /// The driver domain's name or domain id.
        #[arg(required_unless_present = "watch")]
        domain: Option<String>,
        /// Goes on for each driver domain that begins.
        #[arg(long, conflicts_with = "domain")]
        watch: bool,
        /// Prints one JSON object for each device, for programs.
        #[arg(long)]
        json: bool,
    },
    /// Gives a disk of a guest that runs another target, such as an overlay after a snapshot.
    ///
    /// Run it in Dom0, as root. The guest sees a pause. Requests that have ended are in the earlier
    /// target, later ones go to the new one, which must have the same content and no smaller size:
    ///
    ///   qemu-img create -f qcow2 -b data.img -F raw /images/data-2.qcow2
    ///   xen-virtiod retarget web xvdb target=/images/data-2.qcow2
    #[command(verbatim_doc_comment)]
    Retarget {
        /// The guest's name, domain id or UUID.
        domain: String,
        /// The disk's name, such as xvdb.
        device: String,
        /// target=PATH: a file or block device in the backend's domain.
        target: String,
        /// Prints one JSON object, for programs.
        #[arg(long)]
        json: bool,
    },
    /// Lists the virtio devices of a guest, or of all. Run it in Dom0.
    List {
        /// The guest's name, domain id or UUID [default: all guests].
        domain: Option<String>,
        /// Prints one JSON array, for programs.
        #[arg(long)]
        json: bool,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_consistent() {
        use clap::CommandFactory;
        CommandLine::command().debug_assert();
    }

    #[test]
    fn version_is_the_crates() {
        use clap::CommandFactory;
        let version = CommandLine::command().render_version();
        assert_eq!(version, format!("xen-virtiod {}\n", env!("CARGO_PKG_VERSION")));
    }

    #[test]
    fn stat_takes_a_guest_and_an_interval() {
        let stat = |arguments: &[&str]| {
            let words = ["xen-virtiod", "stat"].iter().chain(arguments);
            match CommandLine::try_parse_from(words).ok()?.action? {
                Operation::Stat { domain, json, watch } => Some((domain, json, watch)),
                _ => None,
            }
        };
        let web = Some("web".to_owned());
        assert_eq!(stat(&[]), Some((None, false, None)));
        assert_eq!(stat(&["web", "--json"]), Some((web.clone(), true, None)));
        assert_eq!(stat(&["web", "--watch"]), Some((web.clone(), false, Some(1))));
        assert_eq!(stat(&["--watch", "5", "web"]), Some((web, false, Some(5))));
        for wrong in [&["--watch", "0"][..], &["--watch", "web"], &["--watch", "--json"]] {
            assert_eq!(stat(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn no_command_means_serve() {
        let parsed = CommandLine::try_parse_from(["xen-virtiod", "--log", "debug"]).unwrap();
        assert!(parsed.action.is_none());
        assert_eq!(parsed.log, Level::DEBUG);
        assert!(CommandLine::try_parse_from(["xen-virtiod", "--log", "loud"]).is_err());
    }

    #[test]
    fn help_names_the_default_configuration_file() {
        use clap::CommandFactory;
        let help = CommandLine::command().render_long_help().to_string();
        assert!(help.contains(DEFAULT_CONFIG), "{help}");
    }
}
