//! The commands for the devices of guests that run.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use xen::{StoreError, XenStoreConnection};
use xen_virtiod::daemon::signals::stop_on_signals;
use xen_virtiod::hot_plug::attach::{AttachError, Attached, attach};
use xen_virtiod::hot_plug::detach::{DetachError, Detached, Manner, detach};
use xen_virtiod::hot_plug::device::{DeviceId, Wanted, WantedError};
use xen_virtiod::hot_plug::domain_record::RECORDS;
use xen_virtiod::hot_plug::guest::GuestError;
use xen_virtiod::hot_plug::list;
use xen_virtiod::hot_plug::reattach::{ReattachError, Reattached, follow, reattach};
use xen_virtiod::hot_plug::retarget::{RetargetError, retarget};

use command_line::DeviceCommand;

/// A command that has failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum DeviceCommandError {
    #[error(transparent)]
    Wanted(#[from] WantedError),
    #[error("{0:?} is no device: xvda and later, or virtio/N; see `xen-virtiod list`")]
    Device(String),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Attach(#[from] AttachError),
    #[error(transparent)]
    Detach(#[from] DetachError),
    #[error(transparent)]
    Retarget(#[from] RetargetError),
    #[error(transparent)]
    Reattach(#[from] ReattachError),
    #[error(transparent)]
    List(#[from] GuestError),
    #[error("cannot wait for signals")]
    Signals(#[source] io::Error),
    #[error("cannot write to standard output")]
    Print(#[from] io::Error),
}

/// Carries out one of the commands, and prints what came of it.
pub(super) fn carry_out(command: &DeviceCommand) -> Result<(), DeviceCommandError> {
    let (mut out, records) = (io::stdout().lock(), Path::new(RECORDS));
    let stop = stop_on_signals(None).map_err(DeviceCommandError::Signals)?;
    let stop = stop.as_fd();
    match command {
        DeviceCommand::Attach { domain, kind, options, backend, json } => {
            let wanted = Wanted::parse(kind, options)?;
            let store = &mut XenStoreConnection::open()?;
            let (device, is_new) =
                match attach(store, records, stop, domain, &wanted, backend.as_deref())? {
                    Attached::Now(device) => (device, true),
                    Attached::Before(device) => (device, false),
                };
            match (*json, is_new) {
                (true, _) => {
                    let object = json!({ "device": device.to_string(), "attached": is_new });
                    writeln!(out, "{object}")?;
                }
                (false, true) => writeln!(out, "attached {device} to {domain}")?,
                (false, false) => writeln!(out, "{domain} had {device} already")?,
            }
        }
        DeviceCommand::Detach { domain, device: name, force, wait, json } => {
            let unknown = || DeviceCommandError::Device(name.clone());
            let device = DeviceId::parse(name).ok_or_else(unknown)?;
            let asked = Manner::Ask(Duration::from_secs((*wait).into()));
            let manner = if *force { Manner::Force } else { asked };
            let store = &mut XenStoreConnection::open()?;
            let was_there = detach(store, records, stop, domain, device, manner)? == Detached::Now;
            match (*json, was_there) {
                (true, _) => {
                    let object = json!({ "device": device.to_string(), "detached": was_there });
                    writeln!(out, "{object}")?;
                }
                (false, true) => writeln!(out, "detached {device} from {domain}")?,
                (false, false) => writeln!(out, "{domain} had no {device}")?,
            }
        }
        DeviceCommand::Retarget { domain, device: name, target, json } => {
            let unknown = || DeviceCommandError::Device(name.clone());
            let device = DeviceId::parse(name).ok_or_else(unknown)?;
            let Wanted::Disk(disk) = Wanted::parse("disk", std::slice::from_ref(target))? else {
                return Ok(());
            };
            let store = &mut XenStoreConnection::open()?;
            retarget(store, records, stop, domain, device, &disk.target)?;
            match json {
                true => {
                    let object = json!({ "device": device.to_string(), "target": disk.target });
                    writeln!(out, "{object}")?;
                }
                false => writeln!(out, "{device} of {domain} has the target {:?}", disk.target)?,
            }
        }
        DeviceCommand::Reattach { domain, watch: _, json } => {
            let store = &mut XenStoreConnection::open()?;
            let (mut count, mut printed) = (0, Ok(()));
            let report = |done| {
                count += 1;
                let line = print_reattached(&mut out, &done, *json);
                printed = std::mem::replace(&mut printed, Ok(())).and(line);
            };
            match domain {
                Some(domain) => reattach(store, records, domain, report)?,
                None => follow(store, records, stop, report)?,
            }
            if let (0, false, Some(domain)) = (count, *json, domain) {
                writeln!(
                    out,
                    "no guest's device has lost a backend in {domain}; see `xen-virtiod list`"
                )?;
            }
            printed?;
        }
        DeviceCommand::List { domain, json } => {
            let found = list::list(&mut XenStoreConnection::open()?, domain.as_deref())?;
            list::print(&mut out, &found, *json)?;
        }
    }
    Ok(())
}

/// Prints what came of a device that has another backend.
fn print_reattached(out: &mut impl Write, done: &Reattached, json: bool) -> io::Result<()> {
    let Reattached { guest, device, backend, is_awaited } = done;
    if json {
        let device = device.to_string();
        let object = json!({
            "domain": guest, "device": device, "backend": backend, "awaited": is_awaited
        });
        return writeln!(out, "{object}");
    }
    match is_awaited {
        true => writeln!(out, "{guest}, which waits, was told that {device} is in {backend} again"),
        false => writeln!(
            out,
            "{device} of {guest} is in {backend} again; the guest has not said that it waits: if \
             it has given the device up, bind its driver anew, or reboot it"
        ),
    }
}
