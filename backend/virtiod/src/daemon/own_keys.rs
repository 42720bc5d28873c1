//! The keys in XenStore that a device in its guest's process may read and write.

use protocol::binding::backend_key;

use crate::bus::DevicePath;
use crate::config::MAX_PORTS;
use crate::process::message::StoreRequest;

/// Keys of a backend's directory that its device may write, besides those of its ports.
const WRITABLE: [&str; 11] = [
    backend_key::REVISION,
    backend_key::MAX_MESSAGE_SIZE,
    backend_key::TRANSPORT_FEATURES,
    backend_key::BUS_FEATURES,
    "state",
    "error",
    "tty",
    "tap",
    "mac",
    "bridge",
    "cid",
];

/// Whether a device may do something in XenStore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Permit {
    Yes,
    /// It finds nothing there.
    Nothing,
    /// It removes its directory, if that is the backend's to do.
    Directory,
    No,
}

/// The keys of one device.
pub(super) struct OwnKeys {
    backend: String,
    guest: String,
    /// Its directory in the guest's; `None` if the toolstack named another.
    frontend: Option<String>,
}

impl OwnKeys {
    /// The keys of the device at `path`.
    pub(super) fn new(path: &DevicePath) -> Self {
        let guest = format!("/local/domain/{}/", path.guest.0);
        Self { backend: path.to_string(), guest, frontend: None }
    }

    /// Notes the frontend's directory, which the toolstack named.
    pub(super) fn set_frontend(&mut self, frontend: String) {
        let device = frontend.strip_prefix(&self.guest);
        let is_plain = device.is_some_and(|device| device.starts_with("device/"));
        self.frontend = is_plain.then_some(frontend);
    }

    /// Whether the device may do that.
    pub(super) fn permit(&self, request: &StoreRequest) -> Permit {
        let is_permitted = match request {
            StoreRequest::Read { path } | StoreRequest::Watch { path } => {
                // As XenStore answers to who may not read a node.
                return if self.may_read(path) { Permit::Yes } else { Permit::Nothing };
            }
            StoreRequest::Write { path, .. } => self.may_write(path),
            StoreRequest::WriteBeside { existing, path, .. } => {
                self.own_key(existing).is_some() && self.may_write(path)
            }
            StoreRequest::Remove { path } if *path == self.backend => return Permit::Directory,
            StoreRequest::Remove { path } => {
                ["state", "error"].map(Some).contains(&self.own_key(path))
            }
        };
        if is_permitted { Permit::Yes } else { Permit::No }
    }

    /// The key of the backend's directory at a path.
    fn own_key<'a>(&self, path: &'a str) -> Option<&'a str> {
        path.strip_prefix(&self.backend)?.strip_prefix('/').filter(|key| is_plain(key))
    }

    fn may_read(&self, path: &str) -> bool {
        let frontend = self.frontend.as_deref();
        let in_frontend = frontend.and_then(|frontend| path.strip_prefix(frontend));
        let in_frontend = in_frontend.and_then(|key| key.strip_prefix('/'));
        let in_guest = path.strip_prefix(&self.guest);
        let of_guest = |key: &str| {
            let device = frontend.and_then(|frontend| frontend.strip_prefix(&self.guest));
            let error = device.map(|device| format!("error/{device}/error"));
            ["name", "vm"].contains(&key) || error.as_deref() == Some(key)
        };
        path == "domid"
            || self.own_key(path).is_some()
            || in_frontend.is_some_and(is_plain)
            || in_guest.is_some_and(of_guest)
    }

    fn may_write(&self, path: &str) -> bool {
        self.own_key(path)
            .is_some_and(|key| WRITABLE.contains(&key) || key == "socket" || is_port(key))
    }
}

/// Whether a key is one of a console's port: `port/N/name` or `port/N/socket`.
fn is_port(key: &str) -> bool {
    let mut names = key.split('/');
    let (Some("port"), Some(number), Some("name" | "socket"), None) =
        (names.next(), names.next(), names.next(), names.next())
    else {
        return false;
    };
    number.parse().is_ok_and(|port: usize| (1..=MAX_PORTS).contains(&port))
}

/// Whether a key is one, and no way to another directory: XenStore knows no `..`, but who reads
/// the log may.
fn is_plain(key: &str) -> bool {
    !key.is_empty() && !key.split('/').any(|name| name.is_empty() || name.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use xen::DomId;

    fn keys() -> OwnKeys {
        let class = "virtio_disk".to_owned();
        let mut keys = OwnKeys::new(&DevicePath { class, guest: DomId(7), number: 1 });
        keys.set_frontend("/local/domain/7/device/virtio_disk/1".to_owned());
        keys
    }

    fn read(path: &str) -> StoreRequest {
        StoreRequest::Read { path: path.to_owned() }
    }

    fn may(keys: &OwnKeys, request: &StoreRequest) -> bool {
        keys.permit(request) == Permit::Yes
    }

    fn write(path: &str) -> StoreRequest {
        StoreRequest::Write { path: path.to_owned(), value: String::new() }
    }

    #[test]
    fn device_reads_its_own_keys_and_its_guests_name_only() {
        let own = [
            "domid",
            "backend/virtio_disk/7/1/params",
            "/local/domain/7/device/virtio_disk/1/state",
            "/local/domain/7/name",
            "/local/domain/7/vm",
            "/local/domain/7/error/device/virtio_disk/1/error",
        ];
        let others = [
            "",
            "backend",
            "backend/virtio_disk/7/1",
            "backend/virtio_disk/7/10/params",
            "backend/virtio_disk/7/1/../2/params",
            "backend/virtio_disk/7/2/params",
            "backend/virtio_disk/8/1/params",
            "/local/domain/7/device/virtio_disk/1",
            "/local/domain/7/device/virtio_disk/10/state",
            "/local/domain/7/device/vif/0/state",
            "/local/domain/7/console/port",
            "/local/domain/70/name",
            "/local/domain/0/backend/virtio_disk/7/1/params",
            "/vm",
        ];
        let keys = keys();
        own.iter().for_each(|path| assert!(may(&keys, &read(path)), "{path}"));
        others.iter().for_each(|path| assert!(!may(&keys, &read(path)), "{path}"));
    }

    #[test]
    fn device_writes_no_key_of_the_toolstacks() {
        let keys = keys();
        let own = |key: &str| format!("backend/virtio_disk/7/1/{key}");
        for key in ["state", "error", "virtio-msg-revision", "tty", "port/1/socket", "socket"] {
            assert!(may(&keys, &write(&own(key))), "{key}");
        }
        let more = ["port/16/name", "port/0/name", "port/1/name/x", "port/1/x", "port"];
        let toolstacks = ["params", "mode", "frontend", "online", "frontend-id", "type", "dev"];
        for key in toolstacks.into_iter().chain(more) {
            let (existing, value) = (own("state"), String::new());
            let beside = StoreRequest::WriteBeside { existing, path: own(key), value };
            assert!(!may(&keys, &write(&own(key))) && !may(&keys, &beside), "{key}");
            assert!(!may(&keys, &StoreRequest::Remove { path: own(key) }), "{key}");
        }
        let frontend = "/local/domain/7/device/virtio_disk/1/state";
        assert!(!may(&keys, &write(frontend)));
        assert!(may(&keys, &StoreRequest::Remove { path: own("state") }));
        let directory = StoreRequest::Remove { path: "backend/virtio_disk/7/1".to_owned() };
        assert_eq!(keys.permit(&directory), Permit::Directory);
        assert!(!may(&keys, &StoreRequest::Remove { path: "backend/virtio_disk/7".to_owned() }));
    }

    #[test]
    fn frontend_that_is_no_device_of_the_guest_is_not_read() {
        for frontend in ["/local/domain/8/device/virtio_disk/1", "/local/domain/7", "/vm", ""] {
            let mut keys = keys();
            keys.set_frontend(frontend.to_owned());
            assert!(!may(&keys, &read(&format!("{frontend}/state"))), "{frontend}");
        }
    }
}
