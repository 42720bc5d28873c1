//! Devices as the toolstack names and describes them.

use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::vdev::Vdev;

/// A class of devices of libxl.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Disks of `specification=virtio`.
    Disk,
    /// Devices of `virtio = [ ... ]`.
    Other,
}

impl Class {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Disk, Self::Other];

    /// The directory's name in XenStore.
    pub fn directory(self) -> &'static str {
        match self {
            Self::Disk => "virtio_disk",
            Self::Other => "virtio",
        }
    }

    /// The list's name in libxl's record of a domain.
    pub(super) fn list(self) -> &'static str {
        match self {
            Self::Disk => "disks",
            Self::Other => "virtios",
        }
    }
}

/// A device of a guest, such as `xvdb`, or `virtio/0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceId {
    /// Its class.
    pub class: Class,
    /// Its number in the class.
    pub number: u32,
}

impl DeviceId {
    /// Parses a disk's name, or the class and the number as `xen-virtiod stat` shows them.
    pub fn parse(name: &str) -> Option<Self> {
        if let Some(vdev) = Vdev::parse(name) {
            return Some(Self { class: Class::Disk, number: vdev.number() });
        }
        let (directory, number) = name.split_once('/')?;
        let class = Class::ALL.into_iter().find(|class| class.directory() == directory)?;
        let number = number.parse().ok().filter(|_| number.bytes().all(|b| b.is_ascii_digit()))?;
        Some(Self { class, number })
    }

    /// The disk's name, if it is a disk that has one.
    pub fn vdev(self) -> Option<Vdev> {
        Some(self.number).filter(|_| self.class == Class::Disk).and_then(Vdev::of_number)
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.vdev() {
            Some(vdev) => vdev.fmt(f),
            None => write!(f, "{}/{}", self.class.directory(), self.number),
        }
    }
}

/// A type of `virtio = [ ... ]`, named by the device id of virtio 1.2, section 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A network device.
    Net,
    /// A console.
    Console,
    /// An entropy device.
    Rng,
    /// A socket device.
    Vsock,
}

impl Kind {
    /// All types, with their names.
    pub const ALL: [(&'static str, Self); 4] = [
        ("net", Self::Net),
        ("console", Self::Console),
        ("rng", Self::Rng),
        ("vsock", Self::Vsock),
    ];

    /// The value of `type`.
    fn value(self) -> &'static str {
        match self {
            Self::Net => "virtio,device1",
            Self::Console => "virtio,device3",
            Self::Rng => "virtio,device4",
            Self::Vsock => "virtio,device13",
        }
    }

    /// The name of a type, by its value.
    pub(super) fn name_of(value: &str) -> Option<&'static str> {
        Self::ALL.into_iter().find(|(_, kind)| kind.value() == value).map(|(name, _)| name)
    }
}

/// A disk to attach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The file or block device, in the backend's domain.
    pub target: PathBuf,
    /// The name; `None`: the first free one.
    pub vdev: Option<Vdev>,
    /// Whether the guest may write.
    pub writes: bool,
    /// Whether Dom0's page cache is bypassed.
    pub direct: bool,
    /// Whether the guest may discard.
    pub discards: bool,
    /// Whether the guest trusts the backend with what shares a page with a buffer; `None`: it
    /// decides by the backend's domain.
    pub trusted: Option<bool>,
}

/// A device to attach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// A disk.
    Disk(Disk),
    /// Another device.
    Other(Kind),
}

/// A description of a device that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WantedError {
    /// The type is unknown.
    #[error("{0:?} is no type of device: disk, net, console, rng or vsock")]
    Type(String),
    /// An option is unknown to devices of this type.
    #[error("{0:?} is no option of this device; see `xen-virtiod attach --help`")]
    Option(String),
    /// A disk has no target.
    #[error("a disk needs target=/path of a file or block device")]
    NoTarget,
    /// A disk's target is no absolute path of XenStore's characters.
    #[error("target={0:?} is no absolute path")]
    Target(String),
    /// A disk's name is unknown.
    #[error("vdev={0:?} is no name of a disk: xvda and later")]
    Vdev(String),
}

impl Wanted {
    /// Parses a type and its options.
    ///
    /// # Errors
    /// [`WantedError`].
    pub fn parse(kind: &str, options: &[String]) -> Result<Self, WantedError> {
        if kind == "disk" {
            return Disk::parse(options).map(Self::Disk);
        }
        let known = Kind::ALL.into_iter().find(|(name, _)| *name == kind);
        let (_, kind) = known.ok_or_else(|| WantedError::Type(kind.to_owned()))?;
        match options.first() {
            Some(option) => Err(WantedError::Option(option.clone())),
            None => Ok(Self::Other(kind)),
        }
    }

    /// The device's class.
    pub fn class(&self) -> Class {
        match self {
            Self::Disk(_) => Class::Disk,
            Self::Other(_) => Class::Other,
        }
    }

    /// The keys of the backend's directory that libxl writes besides those of all devices.
    pub(super) fn backend_keys(&self, number: u32) -> Vec<(&'static str, String)> {
        let flag = |is: bool| u8::from(is).to_string();
        let mut keys = match self {
            Self::Disk(disk) => {
                let vdev = Vdev::of_number(number).map(|vdev| vdev.to_string());
                let mut keys = vec![
                    ("params", disk.target.display().to_string()),
                    ("removable", flag(false)),
                    ("bootable", flag(true)),
                    ("dev", vdev.unwrap_or_default()),
                    ("type", "standalone".to_owned()),
                    ("mode", (if disk.writes { "w" } else { "r" }).to_owned()),
                    ("device-type", "disk".to_owned()),
                    ("discard-enable", flag(disk.discards && disk.writes)),
                    ("specification", "virtio".to_owned()),
                ];
                keys.extend(disk.direct.then(|| ("direct-io-safe", flag(true))));
                keys
            }
            Self::Other(kind) => vec![("type", kind.value().to_owned())],
        };
        // As libxl: `mmio` for each disk, `unknown` if the configuration has no key `transport`.
        let transport = match self {
            Self::Disk(_) => "mmio",
            Self::Other(_) => "unknown",
        };
        keys.extend([
            ("transport", transport.to_owned()),
            ("base", "0".to_owned()),
            ("irq", "0".to_owned()),
            ("grant_usage", "1".to_owned()),
        ]);
        keys
    }

    /// The same for the frontend's directory; a backend in Dom0 is trusted unless the disk says
    /// otherwise.
    pub(super) fn frontend_keys(&self, number: u32, in_dom0: bool) -> Vec<(&'static str, String)> {
        let Self::Disk(disk) = self else { return Vec::new() };
        vec![
            ("virtual-device", number.to_string()),
            ("device-type", "disk".to_owned()),
            ("trusted", u8::from(disk.trusted.unwrap_or(in_dom0)).to_string()),
        ]
    }

    /// The entry in libxl's record of the domain.
    pub(super) fn entry(&self, number: u32, backend: Option<&str>) -> Value {
        let text = |is: bool| Value::from(if is { "True" } else { "False" });
        let mut entry = Map::new();
        match self {
            Self::Disk(disk) => {
                let vdev = Vdev::of_number(number).map(|vdev| vdev.to_string());
                entry.insert("pdev_path".into(), json!(disk.target.display().to_string()));
                entry.insert("vdev".into(), json!(vdev));
                entry.insert("backend".into(), json!("standalone"));
                entry.insert("format".into(), json!("raw"));
                entry.insert("specification".into(), json!("virtio"));
                if disk.writes {
                    entry.insert("readwrite".into(), json!(1));
                    entry.insert("discard_enable".into(), text(disk.discards));
                }
                if disk.direct {
                    entry.insert("direct_io_safe".into(), json!(true));
                }
                if let Some(trusted) = disk.trusted {
                    entry.insert("trusted".into(), text(trusted));
                }
            }
            Self::Other(kind) => {
                entry.insert("type".into(), json!(kind.value()));
                entry.insert("devid".into(), json!(number));
            }
        }
        entry.insert("grant_usage".into(), text(true));
        if let Some(backend) = backend {
            entry.insert("backend_domname".into(), json!(backend));
        }
        Value::Object(entry)
    }
}

/// Whether an entry of libxl's record describes the device.
pub(super) fn is_entry_of(entry: &Value, device: DeviceId) -> bool {
    match device.class {
        Class::Disk => {
            let named = entry.get("vdev").and_then(Value::as_str).and_then(Vdev::parse);
            named.is_some() && named == device.vdev()
        }
        Class::Other => entry.get("devid").and_then(Value::as_u64) == Some(device.number.into()),
    }
}

impl Disk {
    fn parse(options: &[String]) -> Result<Self, WantedError> {
        let mut disk = Self {
            target: PathBuf::new(),
            vdev: None,
            writes: true,
            direct: false,
            discards: true,
            trusted: None,
        };
        for option in options {
            match option.split_once('=') {
                Some(("target", path)) => disk.target = parse_target(path)?,
                Some(("vdev", name)) => {
                    let vdev = Vdev::parse(name);
                    disk.vdev = Some(vdev.ok_or_else(|| WantedError::Vdev(name.to_owned()))?);
                }
                None if option == "ro" => disk.writes = false,
                None if option == "direct" => disk.direct = true,
                None if option == "no-discard" => disk.discards = false,
                None if option == "untrusted" => disk.trusted = Some(false),
                _ => return Err(WantedError::Option(option.clone())),
            }
        }
        if disk.target.as_os_str().is_empty() {
            return Err(WantedError::NoTarget);
        }
        Ok(disk)
    }
}

fn parse_target(path: &str) -> Result<PathBuf, WantedError> {
    let is_usable = Path::new(path).is_absolute() && !path.chars().any(char::is_control);
    is_usable.then(|| path.into()).ok_or_else(|| WantedError::Target(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(options: &[&str]) -> Result<Wanted, WantedError> {
        let options: Vec<_> = options.iter().map(ToString::to_string).collect();
        Wanted::parse("disk", &options)
    }

    #[test]
    fn options_of_a_disk() {
        let wanted = disk(&["target=/dev/vg/a", "vdev=xvdc", "ro", "direct", "untrusted"]).unwrap();
        let Wanted::Disk(disk_options) = &wanted else { panic!("{wanted:?}") };
        assert_eq!(disk_options.vdev, Vdev::parse("xvdc"));
        assert!(!disk_options.writes && disk_options.direct);
        assert_eq!(disk_options.trusted, Some(false));
        assert_eq!(disk(&[]), Err(WantedError::NoTarget));
        assert!(matches!(disk(&["target=a.img"]), Err(WantedError::Target(_))));
        assert!(matches!(disk(&["target=/a\nb"]), Err(WantedError::Target(_))));
        assert!(matches!(disk(&["target=/a", "vdev=sda"]), Err(WantedError::Vdev(_))));
        assert!(matches!(disk(&["target=/a", "rw"]), Err(WantedError::Option(_))));
        assert!(matches!(Wanted::parse("net", &["ro".to_owned()]), Err(WantedError::Option(_))));
        assert!(matches!(Wanted::parse("gpu", &[]), Err(WantedError::Type(_))));
        assert_eq!(Wanted::parse("rng", &[]), Ok(Wanted::Other(Kind::Rng)));
    }

    #[test]
    fn devices_have_the_names_of_xl_and_of_stat() {
        let disk = DeviceId { class: Class::Disk, number: 51728 };
        for name in ["xvdb", "virtio_disk/51728"] {
            assert_eq!(DeviceId::parse(name), Some(disk));
        }
        assert_eq!(disk.to_string(), "xvdb");
        let other = DeviceId { class: Class::Other, number: 2 };
        assert_eq!(DeviceId::parse("virtio/2"), Some(other));
        assert_eq!(other.to_string(), "virtio/2");
        for wrong in ["", "virtio", "virtio/", "virtio/+1", "vbd/51728", "virtio/1/state"] {
            assert_eq!(DeviceId::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn entries_name_their_devices() {
        let wanted = disk(&["target=/a"]).unwrap();
        let device = DeviceId { class: Class::Disk, number: 51728 };
        assert!(is_entry_of(&wanted.entry(51728, None), device));
        assert!(!is_entry_of(&wanted.entry(51712, None), device));
        let net = Wanted::Other(Kind::Net);
        let first = DeviceId { class: Class::Other, number: 0 };
        assert!(is_entry_of(&net.entry(0, None), first));
        assert!(!is_entry_of(&json!({ "type": "virtio,device1" }), first));
        assert!(!is_entry_of(&net.entry(1, Some("net")), first));
    }
}
