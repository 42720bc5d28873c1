//! The connection with a frontend through the xenbus states (SPEC section 2).

use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use protocol::binding::{REVISION, backend_key, frontend_key};
use protocol::grant::GrantRef;
use xen::{Access, DomId, Gntdev, GrantTable, RemotePort, XenStore, XenStoreConnection};

const DISKS: &str = "backend/virtio_disk";

/// Size of the longest message, in bytes.
pub(crate) const MAX_MESSAGE_SIZE: usize = 264;

/// A disk's frontend that has granted its message page.
pub(crate) struct Frontend {
    pub(crate) guest: DomId,
    pub(crate) port: RemotePort,
    page: GrantRef,
    backend: String,
}

impl Frontend {
    /// Prints that the program is ready, offers the first new disk, and waits until its frontend is
    /// in state 3.
    pub(crate) fn accept() -> Result<Self> {
        let mut store = XenStoreConnection::open()?;
        store.watch(DISKS)?;
        println!("hostile-backend: ready to serve");
        let backend = wait_for(&mut store, new_disk)?;
        offer(&mut store, &backend)?;
        let frontend = store
            .read(&format!("{backend}/frontend"))?
            .with_context(|| format!("the key frontend is missing in {backend}"))?;
        store.watch(&frontend)?;
        wait_for(&mut store, |store| {
            Ok(store.read(&format!("{frontend}/state"))?.filter(|state| state == "3"))
        })?;
        let mut number = |key: &str| number(&mut store, &format!("{frontend}/{key}"));
        let page = GrantRef(number(frontend_key::MESSAGE_PAGE)?);
        let port = RemotePort(number(frontend_key::EVENT_CHANNEL)?);
        let guest = Path::new(&backend).parent().and_then(Path::file_name);
        let guest = guest
            .and_then(|name| name.to_str())
            .context("the backend's path has no domain ID")?
            .parse()?;
        Ok(Self { guest: DomId(guest), port, page, backend })
    }

    pub(crate) fn map(&self, grants: &Gntdev) -> Result<<Gntdev as GrantTable>::Pages> {
        Ok(grants.map(&[self.page], Access::ReadWrite)?)
    }

    pub(crate) fn connected(&self) -> Result<()> {
        Ok(XenStoreConnection::open()?.write(&format!("{}/state", self.backend), "4")?)
    }
}

/// Calls `check` first and after every XenStore event, until it returns a value.
fn wait_for<T>(
    store: &mut XenStoreConnection,
    mut check: impl FnMut(&mut XenStoreConnection) -> Result<Option<T>>,
) -> Result<T> {
    loop {
        if let Some(found) = check(store)? {
            return Ok(found);
        }
        while !store.take_events()? {
            let mut fds = [PollFd::new(store.as_fd(), PollFlags::POLLIN)];
            ensure!(poll(&mut fds, PollTimeout::NONE)? > 0, "cannot wait for a XenStore event");
        }
    }
}

/// The backend directory of a disk in state 1, which no backend serves yet.
fn new_disk(store: &mut XenStoreConnection) -> Result<Option<String>> {
    for guest in store.list(DISKS)? {
        for number in store.list(&format!("{DISKS}/{guest}"))? {
            let path = format!("{DISKS}/{guest}/{number}");
            if store.read(&format!("{path}/state"))?.as_deref() == Some("1") {
                return Ok(Some(path));
            }
        }
    }
    Ok(None)
}

fn offer(store: &mut XenStoreConnection, backend: &str) -> Result<()> {
    for (key, value) in [
        (backend_key::REVISION, REVISION as usize),
        (backend_key::MAX_MESSAGE_SIZE, MAX_MESSAGE_SIZE),
        (backend_key::BUS_FEATURES, 0),
        ("state", 2),
    ] {
        store.write(&format!("{backend}/{key}"), &value.to_string())?;
    }
    Ok(())
}

fn number(store: &mut XenStoreConnection, path: &str) -> Result<u32> {
    let value = store.read(path)?.with_context(|| format!("the key {path} is missing"))?;
    value.parse().with_context(|| format!("the key {path} is {value:?}, not a number"))
}
