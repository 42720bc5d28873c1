//! The messages between the supervisor and a guest's process.
//!
//! The supervisor trusts none of what a process sends: it checks each request against the device
//! for which it started the thread (`device_service`).
//!
//! They have no version: the supervisor starts its own program (`launch`), and a process ends with
//! its supervisor. What one version leaves to the next are records (`record`), which have one.

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::device_thread::{Ended, Found};
use crate::Causes;
use crate::bus::{DevicePath, Ending};
use crate::device::blk::{AccessMode, ClaimError, FileId, Handover, Owner, QueueLimits, Sharing};
use crate::setup::rates::DeviceRates;
use crate::stats::StatsSnapshot;

/// A command of the supervisor's to a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// The first command. The table of all processes' mapped pages comes with it.
    Begin {
        /// The process's slot in the table.
        slot: usize,
        /// The user that the process becomes, if it is root.
        user: u32,
    },
    /// Start a device. Three descriptors come with it: the device's socket, one that tells of
    /// changes in XenStore, and the text of the configuration file, which the supervisor seals.
    Start {
        /// The device.
        path: DevicePath,
        /// The state in which the supervisor found it.
        found: Found,
        /// Why it must not go on without a reset, if it was left.
        fault: Option<String>,
        /// Why the configuration file cannot be used, if it cannot.
        config_error: Option<String>,
    },
    /// End a device.
    Stop {
        /// The device.
        path: DevicePath,
        /// How it ends.
        ending: Ending,
    },
    /// End, once no device is left and storage has let go of all of them.
    Finish,
    /// Replace the limits of a device's rate, also of one that is started later.
    Limit {
        /// The device.
        path: DevicePath,
        /// The limits; `None`: those of the configuration that comes with its start.
        rates: Option<DeviceRates>,
    },
    /// Let a paused disk go on.
    Resume {
        /// The disk.
        path: DevicePath,
    },
    /// Report a device's statistics.
    Report {
        /// The device.
        path: DevicePath,
    },
}

/// A report of a process's to the supervisor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// The process serves no device, and ends.
    CannotStart {
        /// The reason.
        reason: String,
    },
    /// A device has ended.
    Ended {
        /// Its end.
        ended: Ended,
        /// Its last statistics.
        stats: Box<StatsSnapshot>,
    },
    /// The answer to [`Command::Report`].
    Stats {
        /// The device.
        path: DevicePath,
        /// Its statistics; `None` if the process has no such device.
        stats: Option<Box<StatsSnapshot>>,
    },
}

/// A request of a device's to the supervisor. Each gets one [`Reply`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// The device was opened; these are its statistics.
    Opened(Box<StatsSnapshot>),
    /// Connect to XenStore, anew if there was a connection.
    OpenStore,
    /// Do something in XenStore.
    Store(StoreRequest),
    /// Do something about the disk's files.
    Image(ImageRequest),
    /// Open the console's terminal, or the one of an earlier process. The answer comes with both of
    /// its ends.
    OpenTerminal,
    /// Open a handle to the guest's event channels, which comes with the answer.
    OpenEvents,
    /// Do something about the device's record.
    Record(RecordRequest),
    /// Attach the network device's interface. Its queues come with the answer, and a socket that
    /// tells that the link may have changed.
    AttachInterface,
    /// Say whether the interface's link is up.
    LinkState,
    /// Listen on a socket of the device, or pass the one on that an earlier process had. It comes
    /// with the answer.
    Listen {
        /// The socket's path.
        path: PathBuf,
    },
    /// Connect to the program that listens for a port of the guest's. The socket comes with the
    /// answer.
    Connect {
        /// The guest's port.
        port: u32,
    },
}

/// A request about the device's record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RecordRequest {
    /// Make an empty file in place of the record. It comes with the answer.
    Create,
    /// Open the record. It comes with the answer, if there is one.
    Open,
    /// Remove the record.
    Remove,
}

/// A request about XenStore.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StoreRequest {
    /// Read a node.
    Read {
        /// Its path, relative to the daemon's own directory.
        path: String,
    },
    /// Write a node.
    Write {
        /// Its path.
        path: String,
        /// Its value.
        value: String,
    },
    /// Write a node if another one exists.
    WriteBeside {
        /// The path of the one that has to exist.
        existing: String,
        /// The path to write.
        path: String,
        /// The value.
        value: String,
    },
    /// Remove a node and all below it.
    Remove {
        /// Its path.
        path: String,
    },
    /// Watch a node.
    Watch {
        /// Its path.
        path: String,
    },
}

/// A request about a disk's files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageRequest {
    /// Claim the disk's target. The answer comes with its file.
    ClaimTarget {
        /// Its path.
        path: PathBuf,
        /// Whether the disk may write it.
        access: AccessMode,
        /// Whether others may use it too.
        sharing: Sharing,
    },
    /// Find the backing file that a claimed image had when the disk was claimed first.
    FindBacking {
        /// The image's path.
        image: PathBuf,
    },
    /// Identify a backing file of the target.
    Identify {
        /// Its path.
        path: PathBuf,
    },
    /// Claim a backing file of the target. The answer comes with the file.
    ClaimBacking {
        /// Its path.
        path: PathBuf,
    },
    /// Open a claimed file for direct I/O. The answer comes with the file.
    OpenDirect {
        /// The number of the claim.
        claim: u64,
    },
    /// Tell of changes of a claimed file's size. A socket for that comes with the answer.
    WatchSize {
        /// The file.
        file: FileId,
        /// The size in bytes that the device knows.
        bytes: u64,
    },
    /// Say whether another device may write a claimed file.
    HasOtherWriter {
        /// The number of the claim.
        claim: u64,
    },
    /// Note that a driver uses the disk.
    Activate {
        /// The number of the claim.
        claim: u64,
    },
    /// Note that no driver uses the disk any more.
    Deactivate {
        /// The number of the claim.
        claim: u64,
    },
    /// Give a claim up.
    Release {
        /// The number of the claim.
        claim: u64,
    },
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// It was done.
    Done,
    /// The value that was read.
    Value(Option<String>),
    /// XenStore refused it, or cannot be reached.
    StoreFailed {
        /// Whether a new connection is needed.
        is_lost: bool,
        /// The reason.
        reason: String,
    },
    /// A file was claimed.
    Claimed {
        /// The number of the claim, for further requests.
        claim: u64,
        /// Whether a later process can tell when operations on the file have ended.
        is_marked: bool,
        /// The limits of the block device that it is or is on.
        limits: QueueLimits,
    },
    /// A terminal was opened.
    Terminal {
        /// The path of the end that programs open.
        path: PathBuf,
    },
    /// An interface was attached.
    Attached {
        /// Maximum payload in bytes of a frame.
        mtu: u16,
        /// The bridge that it is a port of.
        bridge: Option<String>,
    },
    /// The kernel, or the host's set-up, does not permit it.
    Failed {
        /// The kernel's number of the error, if it has one.
        number: Option<i32>,
        /// The reason.
        reason: String,
    },
    /// The path of a file.
    Found(PathBuf),
    /// The identity of a file.
    Identity(FileId),
    /// A file could not be claimed or opened.
    ClaimFailed(ClaimFailure),
    /// Whether it is so.
    Answer(bool),
    /// Who could write the image since the disk used it last, or who uses it.
    Activated(Result<Handover, Owner>),
    /// The device may not do that.
    Forbidden,
}

/// A file that could not be claimed or opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClaimFailure {
    /// The kernel does not open it.
    Open {
        /// The kernel's number of the error, if it has one.
        number: Option<i32>,
        /// The error.
        reason: String,
    },
    /// It is in use, or not to be used.
    Refused {
        /// The reason.
        reason: String,
        /// Whether the user may be the device itself.
        may_be_own: bool,
        /// Whether operations of the device itself have not ended.
        is_unfinished: bool,
    },
}

impl Reply {
    /// The answer to a request that failed.
    pub fn failed(error: &(dyn std::error::Error + 'static)) -> Self {
        let number = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
        Self::Failed { number, reason: Causes(error).to_string() }
    }

    /// The error of an answer to another request, or to one that failed.
    pub fn into_error(self) -> io::Error {
        match self {
            Self::Failed { number: Some(number), .. } => io::Error::from_raw_os_error(number),
            Self::Failed { reason, .. } => io::Error::other(reason),
            Self::Forbidden => io::ErrorKind::PermissionDenied.into(),
            other => io::Error::other(format!("the supervisor answers {other:?}")),
        }
    }
}

impl From<ClaimError> for ClaimFailure {
    fn from(error: ClaimError) -> Self {
        let reason = Causes(&error).to_string();
        match error {
            ClaimError::Open(error) => Self::Open { number: error.raw_os_error(), reason },
            error => {
                let (may_be_own, is_unfinished) = (error.may_be_own(), error.is_unfinished());
                Self::Refused { reason, may_be_own, is_unfinished }
            }
        }
    }
}

impl From<ClaimFailure> for ClaimError {
    fn from(failure: ClaimFailure) -> Self {
        match failure {
            ClaimFailure::Open { number, reason } => {
                let number = number.map(io::Error::from_raw_os_error);
                Self::Open(number.unwrap_or_else(|| io::Error::other(reason)))
            }
            ClaimFailure::Refused { reason, may_be_own, is_unfinished } => {
                Self::Supervisor { reason, may_be_own, is_unfinished }
            }
        }
    }
}
