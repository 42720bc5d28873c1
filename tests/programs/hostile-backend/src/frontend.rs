//! The states of the two ends (SPEC section 2), up to the connection.

use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use protocol::binding::{REVISION, backend_key, frontend_key};
use protocol::grant::GrantRef;
use xen::{Access, DomId, Gntdev, GrantTable, RemotePort, XenStore, XenStoreConnection};

const DISKS: &str = "backend/virtio_disk";

/// Bytes in the longest message.
pub(crate) const MAX_MESSAGE_SIZE: usize = 264;

/// The frontend of a disk that shows its message page.
pub(crate) struct Frontend {
    pub(crate) guest: DomId,
    pub(crate) port: RemotePort,
    page: GrantRef,
    backend: String,
}

impl Frontend {
    /// Says that it is ready, offers the first disk that is to be served, and waits for its
    /// frontend.
    pub(crate) fn accept() -> Result<Self> {
        let mut store = XenStoreConnection::open()?;
        store.watch(DISKS)?;
        println!("hostile-backend: ready to serve");
        let backend = wait_for(&mut store, new_disk)?;
        offer(&mut store, &backend)?;
        let frontend = store.read(&format!("{backend}/frontend"))?.context("no frontend")?;
        store.watch(&frontend)?;
        wait_for(&mut store, |store| {
            Ok(store.read(&format!("{frontend}/state"))?.filter(|state| state == "3"))
        })?;
        let mut number = |key: &str| number(&mut store, &format!("{frontend}/{key}"));
        let page = GrantRef(number(frontend_key::MESSAGE_PAGE)?);
        let port = RemotePort(number(frontend_key::EVENT_CHANNEL)?);
        let guest = Path::new(&backend).parent().and_then(Path::file_name);
        let guest = guest.and_then(|name| name.to_str()).context("no guest")?.parse()?;
        Ok(Self { guest: DomId(guest), port, page, backend })
    }

    pub(crate) fn map(&self, grants: &Gntdev) -> Result<<Gntdev as GrantTable>::Pages> {
        Ok(grants.map(&[self.page], Access::ReadWrite)?)
    }

    pub(crate) fn connected(&self) -> Result<()> {
        Ok(XenStoreConnection::open()?.write(&format!("{}/state", self.backend), "4")?)
    }
}

/// Looks, and looks again whenever something may have changed, until something is found.
fn wait_for<T>(
    store: &mut XenStoreConnection,
    mut look: impl FnMut(&mut XenStoreConnection) -> Result<Option<T>>,
) -> Result<T> {
    loop {
        if let Some(found) = look(store)? {
            return Ok(found);
        }
        while !store.take_events()? {
            let mut fds = [PollFd::new(store.as_fd(), PollFlags::POLLIN)];
            ensure!(poll(&mut fds, PollTimeout::NONE)? > 0, "XenStore cannot be waited for");
        }
    }
}

/// The directory of a disk that nobody serves yet.
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
    let value = store.read(path)?.with_context(|| format!("there is no {path}"))?;
    value.parse().with_context(|| format!("{path} is {value:?}"))
}
