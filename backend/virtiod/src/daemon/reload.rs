//! Applies a changed configuration file to running devices, where a device can change: the limits
//! of its rate.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::eventfd::EventFd;
use serde::{Deserialize, Serialize};

use crate::bus::{DevicePath, keys};
use crate::config::Config;
use crate::setup::rates::DeviceRates;
use crate::setup::{DISKS, device_id};
use xen::{StoreError, XenStore};

/// Maximum time until the server has done it.
const ANSWER_LIMIT: Duration = Duration::from_secs(4);

/// What a reload changed, or why nothing.
pub type Reloaded = Result<Vec<Change>, String>;

/// A change of a running device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The guest's domain id.
    pub domid: u16,
    /// The guest's name, if this domain may read it.
    pub guest: Option<String>,
    /// The device, by its class and number in XenStore.
    pub device: String,
    /// The disk's name in the guest's configuration; for another device as `device`.
    pub vdev: String,
    /// The limits that it had.
    pub from: String,
    /// The limits that it has.
    pub to: String,
    /// Why it keeps the earlier limits, if it does.
    pub kept: Option<String>,
}

/// One line for people.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domid, guest, vdev, from, to, kept, .. } = self;
        match guest {
            Some(guest) => write!(f, "{guest} {vdev}: ")?,
            None => write!(f, "domain {domid} {vdev}: ")?,
        }
        match kept {
            Some(why) => write!(f, "keeps {from}: {why}"),
            None => write!(f, "{from} -> {to}"),
        }
    }
}

/// Requests to reload, which the server carries out between its events.
#[derive(Debug)]
pub struct Reloads {
    waiting: Mutex<Vec<Sender<Reloaded>>>,
    woken: Arc<EventFd>,
}

impl Reloads {
    /// Requests for the server that waits for `woken`.
    pub(super) fn new(woken: Arc<EventFd>) -> Self {
        Self { waiting: Mutex::default(), woken }
    }

    /// Has the server reload the configuration file, and waits for that.
    pub fn ask(&self) -> Reloaded {
        let (sender, receiver) = mpsc::channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
        self.woken.write(1).map_err(|error| format!("cannot wake up the server: {error}"))?;
        receiver
            .recv_timeout(ANSWER_LIMIT)
            .unwrap_or_else(|_| Err("the server is busy or ends; the log says what it did".into()))
    }

    /// Those who wait.
    pub(super) fn take(&self) -> Vec<Sender<Reloaded>> {
        std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The limits of a device by a configuration file, and the group that a disk shares them with.
type Limits = Result<Option<(DeviceRates, Option<String>)>, String>;

/// Compares the limits of a device that was set up with `before` and has `replaced` since, with
/// those of `now`. Returns the change, if there is one, and the limits to set: always for a disk of
/// a group, which may have those of a disk that was set up before it.
pub(super) fn change<S: XenStore>(
    store: &mut S,
    path: &DevicePath,
    (before, replaced): (&Config, Option<DeviceRates>),
    now: &Config,
) -> Result<(Option<Change>, Option<DeviceRates>), StoreError> {
    let guest = keys::guest_name(store, path.guest)?;
    let key = if path.class == DISKS { "dev" } else { "type" };
    let said = store.read(&path.key(key))?.unwrap_or_default();
    let of = |config: &Config| limits_of(config, path, guest.as_deref(), &said);
    // It would not run otherwise.
    let Ok(Some((rates, group))) = of(before) else { return Ok((None, None)) };
    let rates = replaced.unwrap_or(rates);
    let change = |to: &str, kept| Change {
        domid: path.guest.0,
        guest: guest.clone(),
        device: path.name(),
        vdev: if path.class == DISKS { said.clone() } else { path.name() },
        from: rates.to_string(),
        to: to.to_owned(),
        kept,
    };
    Ok(match of(now) {
        Err(error) => (Some(change("", Some(error))), None),
        Ok(Some((_, other))) if other != group => {
            let why = "its group changes when it is attached anew, or its guest is created anew"
                .to_owned();
            (Some(change("", Some(why))), None)
        }
        Ok(Some((other, _))) if other != rates => {
            (Some(change(&other.to_string(), None)), Some(other))
        }
        Ok(Some((other, Some(_)))) => (None, Some(other)),
        Ok(_) => (None, None),
    })
}

/// The limits of a device. `said`: a disk's name in the guest's configuration, or the type of
/// another device.
fn limits_of(config: &Config, path: &DevicePath, guest: Option<&str>, said: &str) -> Limits {
    if path.class == DISKS {
        let (rates, group) = config.disk_rates(guest, said).map_err(|error| error.to_string())?;
        return Ok(Some((DeviceRates::Disk(rates), group)));
    }
    let Some(id) = device_id(said) else { return Ok(None) };
    let settings = config.device(guest, path.number, id).map_err(|error| error.to_string())?;
    Ok(DeviceRates::of(id, &settings).map(|rates| (rates, None)))
}

/// A device that keeps its limits because it could not be asked for its name.
pub(super) fn kept(path: &DevicePath, why: String) -> Change {
    Change {
        domid: path.guest.0,
        guest: None,
        device: path.name(),
        vdev: path.name(),
        from: "its limits".to_owned(),
        to: String::new(),
        kept: Some(why),
    }
}

/// The limits that were set since devices were set up.
pub(super) type Replaced = BTreeMap<DevicePath, DeviceRates>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readme_shows_what_is_printed() {
        let limits = |text: &str| toml::from_str::<crate::config::LimitSettings>(text).unwrap();
        let rates = |text: &str| limits(text).rates().to_string();
        let change = Change {
            domid: 5,
            guest: Some("web".to_owned()),
            device: "virtio_disk/51712".to_owned(),
            vdev: "xvda".to_owned(),
            from: rates("read-rate = \"4MiB/s\"\nwrite-iops = 100"),
            to: rates("read-rate = \"8MiB/s\""),
            kept: None,
        };
        let readme = include_str!("../../README.md");
        assert!(readme.contains(&format!("\n    {change}\n")), "{change}");
    }
}
