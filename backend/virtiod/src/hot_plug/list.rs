//! Lists the devices that guests have.

use std::io::{self, Write};

use serde::Serialize;
use xen::{DomId, StoreError, XenStore};

use super::device::{Class, DeviceId, Kind};
use super::guest::{Guest, GuestError};
use super::nodes::{Nodes, libxl_class};

/// A device of a guest, as the toolstack sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// The guest's domain id.
    pub domid: u16,
    /// Its name.
    pub domain: String,
    /// The device's name, such as `xvdb` or `virtio/0`.
    pub device: String,
    /// `disk`, `net`, `console`, `rng`, `vsock`, or the value of `type`.
    pub kind: String,
    /// The target of a disk.
    pub target: Option<String>,
    /// Whether a disk is read-only.
    pub read_only: Option<bool>,
    /// The backend's domain id.
    pub backend: u16,
    /// The state of the backend's end.
    pub state: String,
}

/// Lists the devices of a guest, or of all.
///
/// # Errors
/// [`GuestError`].
pub fn list(store: &mut impl XenStore, guest: Option<&str>) -> Result<Vec<Listed>, GuestError> {
    let guests = match guest {
        Some(named) => vec![Guest::find(store, named)?.id],
        None => guests(store)?,
    };
    let mut found = Vec::new();
    for guest in guests {
        for class in Class::ALL {
            for number in numbers(store, guest, class)? {
                found.extend(read_device(store, guest, DeviceId { class, number })?);
            }
        }
    }
    Ok(found)
}

/// All guests of libxl, in the order of their ids.
pub(super) fn guests(store: &mut impl XenStore) -> Result<Vec<DomId>, StoreError> {
    let ids = store.list("/libxl")?;
    let mut ids: Vec<_> = ids.iter().filter_map(|id| id.parse().ok()).collect();
    ids.sort_unstable();
    Ok(ids.into_iter().map(DomId).collect())
}

/// The numbers of a guest's devices of a class, in order.
pub(super) fn numbers(
    store: &mut impl XenStore,
    guest: DomId,
    class: Class,
) -> Result<Vec<u32>, StoreError> {
    let numbers = store.list(&libxl_class(guest, class.directory()))?;
    let mut numbers: Vec<u32> = numbers.iter().filter_map(|it| it.parse().ok()).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

fn read_device(
    store: &mut impl XenStore,
    guest: DomId,
    device: DeviceId,
) -> Result<Option<Listed>, StoreError> {
    let Some((nodes, backend)) = Nodes::find(store, guest, device)? else { return Ok(None) };
    let mut key = |name: &str| store.read(&format!("{}/{name}", nodes.libxl));
    let (kind, target, mode) = match device.class {
        Class::Disk => ("disk".to_owned(), key("params")?, key("mode")?),
        Class::Other => {
            let value = key("type")?.unwrap_or_default();
            (Kind::name_of(&value).map_or(value.clone(), str::to_owned), None, None)
        }
    };
    let state = store.read(&format!("{}/state", nodes.backend))?;
    let domain = store.read(&format!("/local/domain/{}/name", guest.0))?;
    Ok(Some(Listed {
        domid: guest.0,
        domain: domain.unwrap_or_default(),
        device: device.to_string(),
        kind,
        target,
        read_only: mode.map(|mode| mode == "r"),
        backend: backend.0,
        state: state_name(state.as_deref()).to_owned(),
    }))
}

/// The name of a backend's state.
fn state_name(state: Option<&str>) -> &'static str {
    match state {
        Some("1") => "starting",
        Some("2") => "waiting",
        Some("3" | "4") => "connected",
        Some("5") => "closing",
        Some("6") => "closed",
        Some(_) => "unknown",
        None => "refused",
    }
}

/// Prints a list, as JSON or for a person.
///
/// # Errors
/// The output's.
pub fn print<W: Write>(out: &mut W, listed: &[Listed], json: bool) -> io::Result<()> {
    if json {
        serde_json::to_writer(&mut *out, listed)?;
        return writeln!(out);
    }
    if listed.is_empty() {
        return writeln!(out, "no devices");
    }
    let head = ["ID", "NAME", "DEVICE", "TYPE", "STATE", "BACKEND", "TARGET"];
    let line = |out: &mut W, [id, name, device, kind, state, backend, target]: [&str; 7]| {
        writeln!(out, "{id:<5} {name:<16} {device:<10} {kind:<8} {state:<10} {backend:<7} {target}")
    };
    line(out, head)?;
    listed.iter().try_for_each(|it| {
        let access = if it.read_only == Some(true) { " (read-only)" } else { "" };
        let target =
            it.target.as_ref().map_or("-".to_owned(), |target| format!("{target:?}{access}"));
        let (id, backend) = (it.domid.to_string(), it.backend.to_string());
        line(out, [&id, &it.domain, &it.device, &it.kind, &it.state, &backend, &target])
    })
}
