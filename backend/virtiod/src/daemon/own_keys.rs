//! The keys in XenStore that a device in its guest's process may read and write.

use std::collections::BTreeSet;
use std::path::Path;

use protocol::binding::backend_key;

use crate::bus::DevicePath;
use crate::config::MAX_PORTS;
use crate::device::net::MacAddress;
use crate::process::message::StoreRequest;

/// Keys of a backend's directory that its device may write with any value, besides names of ports.
const WRITABLE: [&str; 5] = [
    backend_key::REVISION,
    backend_key::MAX_MESSAGE_SIZE,
    backend_key::TRANSPORT_FEATURES,
    backend_key::BUS_FEATURES,
    "error",
];
/// Maximum length of a value in bytes; XenStore's own is 2048 for guests.
const LONGEST_VALUE: usize = 2048;

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
    /// The paths of terminals and sockets that the supervisor opened for it.
    opened: BTreeSet<String>,
    /// What the supervisor has published for a script that root runs, and that finds its parameters
    /// in the directory; `None` if there is no script.
    for_script: Option<Vec<(&'static str, String)>>,
    /// Its interface, and the bridge to which the supervisor attached that.
    interface: Option<String>,
    bridge: Option<String>,
}

impl OwnKeys {
    /// The keys of the device at `path`.
    pub(super) fn new(path: &DevicePath) -> Self {
        let guest = format!("/local/domain/{}/", path.guest.0);
        Self {
            backend: path.to_string(),
            guest,
            frontend: None,
            opened: BTreeSet::new(),
            for_script: None,
            interface: None,
            bridge: None,
        }
    }

    /// Notes the frontend's directory, which the toolstack named.
    pub(super) fn set_frontend(&mut self, frontend: String) {
        let device = frontend.strip_prefix(&self.guest);
        let is_plain = device.is_some_and(|device| device.starts_with("device/"));
        self.frontend = is_plain.then_some(frontend);
    }

    /// Notes a path of a terminal or a socket that the device may publish.
    pub(super) fn note_opened(&mut self, path: &Path) {
        self.opened.insert(path.display().to_string());
    }

    /// Notes what the supervisor has published for the interface's script: the device may publish
    /// nothing else of these keys.
    pub(super) fn fix_for_script(&mut self, published: &[(&'static str, String)]) {
        self.for_script = Some(published.to_vec());
    }

    /// Notes the device's interface and its bridge, which it may publish.
    pub(super) fn set_interface(&mut self, interface: String, bridge: Option<String>) {
        self.interface = Some(interface);
        self.bridge = bridge;
    }

    /// Whether a script may find this value.
    fn is_for_script(&self, key: &str, value: &str) -> bool {
        self.for_script.as_ref().is_none_or(|published| {
            published.iter().any(|(name, known)| *name == key && known == value)
        })
    }

    /// Whether the device may do that.
    pub(super) fn permit(&self, request: &StoreRequest) -> Permit {
        let is_permitted = match request {
            StoreRequest::Read { path } | StoreRequest::Watch { path } => {
                // As XenStore answers to who may not read a node.
                return if self.may_read(path) { Permit::Yes } else { Permit::Nothing };
            }
            StoreRequest::Write { path, value } => self.may_write(path, value),
            StoreRequest::WriteBeside { existing, path, value } => {
                self.own_key(existing).is_some() && self.may_write(path, value)
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

    /// Programs open what some keys name, so those name what the supervisor opened.
    fn may_write(&self, path: &str, value: &str) -> bool {
        let Some(key) = self.own_key(path).filter(|_| value.len() <= LONGEST_VALUE) else {
            return false;
        };
        match key {
            "tty" | "socket" => self.opened.contains(value),
            "tap" => self.interface.as_deref() == Some(value),
            // A script of an earlier configuration may still find it.
            "bridge" if self.for_script.is_none() => self.bridge.as_deref() == Some(value),
            "bridge" => self.is_for_script(key, value),
            "mac" => self.is_for_script(key, value) && value.parse::<MacAddress>().is_ok(),
            "cid" | "state" => value.parse::<u32>().is_ok(),
            key if WRITABLE.contains(&key) => true,
            key => match port_key(key) {
                Some("socket") => self.opened.contains(value),
                Some(_) => true,
                None => false,
            },
        }
    }
}

/// The last name of a key of a console's port: `port/N/name` or `port/N/socket`.
fn port_key(key: &str) -> Option<&str> {
    let mut names = key.split('/');
    let (Some("port"), Some(number), Some(last @ ("name" | "socket")), None) =
        (names.next(), names.next(), names.next(), names.next())
    else {
        return None;
    };
    let is_port = |port: usize| (1..=MAX_PORTS).contains(&port) && port.to_string() == number;
    number.parse().is_ok_and(is_port).then_some(last)
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
        write_value(path, "")
    }

    fn write_value(path: &str, value: &str) -> StoreRequest {
        StoreRequest::Write { path: path.to_owned(), value: value.to_owned() }
    }

    #[test]
    fn device_publishes_what_the_supervisor_opened_only() {
        let mut keys = keys();
        keys.note_opened(Path::new("/dev/pts/7"));
        keys.note_opened(Path::new("/run/own.sock"));
        keys.set_interface("virtio7.1".to_owned(), Some("xenbr0".to_owned()));
        let may = |key: &str, value: &str| {
            may(&keys, &write_value(&format!("backend/virtio_disk/7/1/{key}"), value))
        };
        let good = [
            ("tty", "/dev/pts/7"),
            ("port/1/socket", "/run/own.sock"),
            ("socket", "/run/own.sock"),
            ("port/1/name", "agent"),
            ("tap", "virtio7.1"),
            ("bridge", "xenbr0"),
            ("mac", "02:00:00:00:00:01"),
            ("cid", "7"),
            ("state", "4"),
        ];
        let bad = [
            ("tty", "/dev/sda"),
            ("port/1/socket", "/run/other.sock"),
            ("port/01/name", "agent"),
            ("socket", "/run/other.sock"),
            ("tap", "virtio7.0"),
            ("bridge", "xenbr1"),
            ("mac", "x"),
            ("cid", "-1"),
            ("state", "x"),
            ("error", &"x".repeat(3000)),
        ];
        good.iter().for_each(|(key, value)| assert!(may(key, value), "{key} {value}"));
        bad.iter().for_each(|(key, value)| assert!(!may(key, value), "{key} {value}"));
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
        for key in ["error", "virtio-msg-revision", "port/1/name"] {
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
