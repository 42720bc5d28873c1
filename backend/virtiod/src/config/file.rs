//! Reads the configuration file and reports errors in one line with file, line and key.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Config;
use crate::excerpt::one_line;

/// Default path of the configuration file.
pub const DEFAULT_PATH: &str = command_line::DEFAULT_CONFIG;

/// A configuration file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}", path = .path.display())]
    Read {
        /// The file's path.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// Another process cannot read the file.
    #[error("{0}")]
    Unread(Arc<str>),
    /// The file's content is invalid.
    #[error("{path}:{line}: {key}{message}", path = .path.display(), key = Prefix(.key))]
    Content {
        /// The file's path.
        path: PathBuf,
        /// The line of the error, from 1.
        line: usize,
        /// The key with its tables; empty if the parser found none.
        key: String,
        /// The parser's message.
        message: String,
    },
}

/// A key as the prefix of a message.
struct Prefix<'a>(&'a str);

impl fmt::Display for Prefix<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, "{}: ", self.0) }
    }
}

/// A configuration file. The daemon reads it again for every device that it sets up, so that a
/// change needs no restart, for which every guest would wait.
#[derive(Clone, Debug)]
pub struct ConfigFile {
    path: PathBuf,
    required: bool,
    /// Its text at an earlier time, which is read instead, or why another process cannot read it.
    text: Option<Result<Arc<str>, Arc<str>>>,
}

impl ConfigFile {
    /// Returns the file `named`, which must exist, or else the default one, which may be missing.
    pub fn new(named: Option<PathBuf>) -> Self {
        let required = named.is_some();
        Self { path: named.unwrap_or_else(|| DEFAULT_PATH.into()), required, text: None }
    }

    /// The file `path`, which may be missing.
    #[cfg(test)]
    pub(crate) fn optional(path: &Path) -> Self {
        Self { path: path.to_owned(), required: false, text: None }
    }

    /// The file as it is now, whatever becomes of it; a missing one is empty.
    ///
    /// # Errors
    /// [`ConfigError::Read`].
    pub fn as_it_is(&self) -> Result<Self, ConfigError> {
        let text = self.read()?.unwrap_or_default();
        Ok(self.with_text(&text))
    }

    /// The file as if this was its text.
    pub fn with_text(&self, text: &str) -> Self {
        Self { text: Some(Ok(text.into())), ..self.clone() }
    }

    /// The file as if it could not be read for this reason.
    pub fn with_error(&self, error: String) -> Self {
        Self { text: Some(Err(error.into())), ..self.clone() }
    }

    /// What is read instead of the file: a text, or why there is none.
    ///
    /// # Errors
    /// The reason.
    pub fn text(&self) -> Result<&str, &str> {
        match &self.text {
            Some(Ok(text)) => Ok(text),
            Some(Err(reason)) => Err(reason),
            None => Ok(""),
        }
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the file; `None` if it is missing and may be.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load(&self) -> Result<Option<Config>, ConfigError> {
        self.read()?.map(|text| parse(&text, &self.path)).transpose()
    }

    fn read(&self) -> Result<Option<String>, ConfigError> {
        match &self.text {
            Some(Ok(text)) => return Ok(Some(text.to_string())),
            Some(Err(error)) => return Err(ConfigError::Unread(Arc::clone(error))),
            None => {}
        }
        match fs::read_to_string(&self.path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.required => Ok(None),
            Err(source) => Err(ConfigError::Read { path: self.path.clone(), source }),
        }
    }
}

/// Parses the text of the file at `path`.
pub(super) fn parse(text: &str, path: &Path) -> Result<Config, ConfigError> {
    let wrong = |error: &toml::de::Error, key: String| ConfigError::Content {
        path: path.to_owned(),
        line: line_of(text, error.span().map_or(0, |span| span.start)),
        key: one_line(&key),
        message: one_line(&error.message().lines().collect::<Vec<_>>().join(", ")),
    };
    let syntax = toml::Deserializer::parse(text).map_err(|error| {
        let offset = error.span().map_or(0, |span| span.start);
        wrong(&error, key_in_line(text, offset))
    })?;
    serde_path_to_error::deserialize(syntax).map_err(|error| {
        let key = error.path().to_string();
        // "." means the whole file.
        wrong(error.inner(), if key == "." { String::new() } else { key })
    })
}

/// The line of a byte offset, from 1.
fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

/// Guesses the key in the line of a byte offset, if the syntax is too broken for the parser.
fn key_in_line(text: &str, offset: usize) -> String {
    let line = text.lines().nth(line_of(text, offset) - 1).unwrap_or_default();
    line.split('=').next().unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{PollTime, RateLimit};
    use crate::device::DeviceId;
    use crate::device::blk::{ImageFormat, InFlightLimits, Sharing};
    use crate::device::net::QueuePairs;
    use crate::tap::network::Bridge;

    /// The error of a file with this text, without the path.
    fn complaint(text: &str) -> String {
        let error = parse(text, Path::new("f")).unwrap_err().to_string();
        assert!(!error.contains('\n'), "one line: {error}");
        error.strip_prefix("f:").unwrap().to_owned()
    }

    #[test]
    fn error_about_a_key_with_a_line_break_takes_one_line() {
        let said = complaint("[default]\n\"a\\nb\" = 1");
        assert!(said.starts_with("2: default.a\\nb: unknown field"), "{said}");
        let said = complaint("[domain.\"a\\nb\".virtio.0.rng]\nrate = \"x\"");
        assert!(said.contains("domain.a\\nb.virtio.0.rng.rate"), "{said}");
    }

    #[test]
    fn example_file_is_valid() {
        let example = concat!(env!("CARGO_MANIFEST_DIR"), "/xen-virtiod.toml");
        let config = ConfigFile::new(Some(example.into())).load().unwrap().unwrap();
        let rate =
            |domain, index| config.device(domain, index, DeviceId::Entropy).unwrap().rng.rate;
        let limited = |text: &str| Some(RateLimit::Limited(text.parse().unwrap()));
        assert_eq!(rate(Some("web1"), 0), limited("64KiB/s"));
        assert_eq!(rate(Some("web1"), 1), Some(RateLimit::Unlimited));
        assert_eq!(rate(Some("web1"), 2), limited("1MiB/s"));
        assert_eq!(rate(Some("other"), 0), limited("1MiB/s"));
        assert_eq!(rate(None, 0), limited("1MiB/s"));
        let console = config.device(Some("web2"), 0, DeviceId::Console).unwrap().console;
        let ports: Vec<_> = console.ports.0.iter().map(ToString::to_string).collect();
        assert_eq!(ports, ["org.example.agent", "org.example.log"]);
        assert_eq!(console.directory.unwrap().0, Path::new("/run/web2"));
        let socket = config.device(Some("web2"), 1, DeviceId::Socket).unwrap().vsock;
        assert_eq!(socket.cid.unwrap().number(), 42);
        assert_eq!(socket.path.unwrap().0, Path::new("/run/web2/vsock"));
    }

    #[test]
    fn example_sets_the_service_of_every_device() {
        let example = concat!(env!("CARGO_MANIFEST_DIR"), "/xen-virtiod.toml");
        let config = ConfigFile::new(Some(example.into())).load().unwrap().unwrap();
        let service = config.service();
        assert_eq!(service.poll, PollTime::Fixed(std::time::Duration::from_millis(1)));
        assert_eq!(service.pool.pages(), 1024);
        let config = parse("[default]\npoll = \"never\"", Path::new("f")).unwrap();
        let service = config.service();
        assert_eq!((service.poll, service.pool.pages()), (PollTime::NEVER, 4096));
    }

    #[test]
    fn example_sets_network_devices() {
        let example = concat!(env!("CARGO_MANIFEST_DIR"), "/xen-virtiod.toml");
        let config = ConfigFile::new(Some(example.into())).load().unwrap().unwrap();
        let net = |domain, index| config.device(domain, index, DeviceId::Network).unwrap().net;
        let (other, first, second) = (net(None, 0), net(Some("router"), 0), net(Some("router"), 1));
        assert_eq!(other.bridge, Some(Bridge::Named("xenbr0".parse().unwrap())));
        assert_eq!(other.queues.map(QueuePairs::count), Some(1));
        assert_eq!((other.mac, other.tap), (None, None));
        assert_eq!((first.bridge, first.queues.map(QueuePairs::count)), (other.bridge, Some(2)));
        assert_eq!((second.bridge, second.queues), (Some(Bridge::Alone), other.queues));
        assert_eq!(second.tap.unwrap().as_str(), "router-inside");
        assert_eq!(second.mac.unwrap().to_string(), "00:16:3e:11:22:33");
        let mail = net(Some("mail"), 0);
        assert_eq!(mail.script.unwrap().to_string(), "/etc/xen/scripts/vif-route");
        assert_eq!(mail.gateway.unwrap().as_str(), "eth0");
    }

    #[test]
    fn example_sets_disks() {
        let example = concat!(env!("CARGO_MANIFEST_DIR"), "/xen-virtiod.toml");
        let config = ConfigFile::new(Some(example.into())).load().unwrap().unwrap();
        let disk = |domain, vdev| {
            let settings = config.disk(domain, vdev);
            (settings.format, settings.force_share)
        };
        let in_flight = |domain, vdev| {
            let limits = config.disk(domain, vdev).in_flight();
            (limits.requests, limits.bytes)
        };
        assert_eq!(in_flight(Some("db1"), "xvda"), (512, 64 << 20));
        let rates = |vdev| {
            let (rates, group) = config.disk_rates(Some("db1"), vdev).unwrap();
            (rates.to_string(), group)
        };
        let (own, none) = rates("xvda");
        assert_eq!(none, None);
        assert_eq!(own, "iops 5000, write-rate 104857600 B/s, write-iops 500, burst 100ms");
        let of_group = ("rate 20971520 B/s, burst 100ms".to_owned(), Some("logs".to_owned()));
        assert_eq!(rates("xvdc"), of_group);
        let text = fs::read_to_string(example).unwrap();
        let InFlightLimits { requests, bytes } = InFlightLimits::default();
        assert!(text.contains(&format!("guest's queues; default: {requests}\n")), "{text}");
        assert!(text.contains(&format!("default: \"{}MiB\"", bytes >> 20)), "{text}");
        assert_eq!(in_flight(Some("db1"), "xvdb"), (64, 64 << 20));
        assert_eq!(in_flight(None, "xvda"), (512, 64 << 20));
        assert_eq!(disk(Some("db1"), "xvda"), (Some(ImageFormat::Qcow2), Sharing::Safe));
        assert_eq!(disk(Some("db1"), "xvdb"), (Some(ImageFormat::Raw), Sharing::Forced));
        assert_eq!(disk(Some("db1"), "xvdc"), (None, Sharing::Safe));
        assert_eq!(disk(None, "xvda"), (None, Sharing::Safe));
        let config = parse("[default.disk]\nformat = \"raw\"", Path::new("f")).unwrap();
        assert_eq!(config.disk(None, "xvda").format, Some(ImageFormat::Raw));
        assert_eq!(config.disk(None, "xvda").in_flight(), InFlightLimits::default());
    }

    #[test]
    fn empty_file_sets_no_limit() {
        let config = parse("# nothing\n", Path::new("f")).unwrap();
        assert_eq!(config, Config::default());
        let device = config.device(Some("web1"), 0, DeviceId::Entropy).unwrap();
        assert_eq!(device.rng.rate, None);
    }

    #[test]
    fn section_for_another_type_is_an_error_except_in_default() {
        let text = "[default.rng]\nrate = \"2B/s\"\n[domain.web1.virtio.1.rng]\nrate = \"1B/s\"";
        let config = parse(text, Path::new("f")).unwrap();
        let device = |index| config.device(Some("web1"), index, DeviceId::Console);
        assert!(device(0).is_ok());
        let error = device(1).unwrap_err().to_string();
        assert!(error.contains("domain.web1.virtio.1.rng"), "{error}");
        let text = "[default.net]\nqueues = 2\n[domain.web1.virtio.1.net]\nqueues = 1";
        let config = parse(text, Path::new("f")).unwrap();
        assert!(config.device(Some("web1"), 0, DeviceId::Entropy).is_ok());
        let error = config.device(Some("web1"), 1, DeviceId::Entropy).unwrap_err().to_string();
        assert!(error.contains("domain.web1.virtio.1.net"), "{error}");
    }

    #[test]
    fn errors_name_line_and_key() {
        let cases = [
            (
                "\n[domain.web1.virtio.0.rng]\nraet = \"1B/s\"",
                "3: domain.web1.virtio.0.rng.raet: unknown",
            ),
            (
                "[domain.web1.virtio.0]\n\nrng.rate = \"fast\"",
                "3: domain.web1.virtio.0.rng.rate: \"fast\" is not a rate",
            ),
            ("[default]\npoll = \"1s\"", "2: default.poll: \"1s\" is not a poll time"),
            ("[default]\npool = 4097", "2: default.pool: 4097 is not a number of pages"),
            ("[default.rng]\nrate = 5", "2: default.rng.rate: invalid type: integer `5`"),
            (
                "[default.net]\nqueues = 9",
                "2: default.net.queues: 9 is not a number of queue pairs",
            ),
            ("[default.net]\nbridge = \"a b\"", "2: default.net.bridge: \"a b\" is not a network"),
            ("[default.net]\nmac = \"00:16:3e:00:00:01\"", "2: default.net.mac: unknown"),
            (
                "[domain.web1.virtio.0.net]\nmac = \"01:16:3e:00:00:01\"",
                "2: domain.web1.virtio.0.net.mac: \"01:16:3e:00:00:01\" is not the MAC",
            ),
            (
                "[domain.web1.virtio.0.net]\n\ntap = \"sixteen-letters-\"",
                "3: domain.web1.virtio.0.net.tap: \"sixteen-letters-\" is not a network",
            ),
            ("\n\n[default.gpu]\nx = 1", "3: default.gpu: unknown"),
            (
                "[domain.web1.virtio.first.rng]\nrate = \"1B/s\"",
                "1: domain.web1.virtio.first: \"first\" is not the position",
            ),
            ("[domain.web1.virtio.00]\n", "1: domain.web1.virtio.00: \"00\" is not the position"),
            ("[domain.web1.disk.0]\n", "1: domain.web1.disk.0: \"0\" is not the vdev of a disk"),
            (
                "[domain.web1.disk.xvda]\n\nformat = \"vmdk\"",
                "3: domain.web1.disk.xvda.format: unknown variant `vmdk`, expected `raw` or `qcow2`",
            ),
            (
                "[domain.web1.disk.xvda]\nforce-share = \"yes\"",
                "2: domain.web1.disk.xvda.force-share: invalid type: string",
            ),
            ("[domain.web1.disk.xvda]\nshare = true", "2: domain.web1.disk.xvda.share: unknown"),
            (
                "[default.disk]\nlimits = { rate = \"fast\" }",
                "2: default.disk.limits.rate: \"fast\" is not a rate",
            ),
            (
                "[domain.web1.disk.xvda.limits]\niops = 0",
                "2: domain.web1.disk.xvda.limits.iops: a number of requests in a second",
            ),
            (
                "[domain.web1.group.data]\nread-iops = \"many\"",
                "2: domain.web1.group.data.read-iops: a number of requests in a second",
            ),
            (
                "[default.disk.limits]\nburst = \"2m\"",
                "2: default.disk.limits.burst: \"2m\" is not a time",
            ),
            ("[default.disk.limits]\nbps = 1", "2: default.disk.limits.bps: unknown"),
            (
                "[default.disk]\nqueues = 5",
                "2: default.disk.queues: 5 is not a number of queues, 1 to 4",
            ),
            (
                "[default.disk]\ncache = \"unsafe\"",
                "2: default.disk.cache: unknown variant `unsafe`, expected one of `writeback`",
            ),
            (
                "[domain.web1.disk.xvda]\nserial = \"more than twenty letters\"",
                "2: domain.web1.disk.xvda.serial: \"more than twenty letters\" is not a serial",
            ),
            (
                "[domain.web1.disk.xvda]\nlogical-block-size = 520",
                "2: domain.web1.disk.xvda.logical-block-size: 520 is not a logical block size: 512",
            ),
            // It would make the existing disks of all guests unreadable.
            (
                "[default.disk]\nlogical-block-size = 512",
                "2: default.disk.logical-block-size: unknown",
            ),
            (
                "[domain.web1.disk.xvda]\ndetect-zeroes = \"true\"",
                "2: domain.web1.disk.xvda.detect-zeroes: unknown variant `true`, expected one of",
            ),
            ("[default.disk]\nserial = \"a\"", "2: default.disk.serial: unknown"),
            ("[default.disk]\ngroup = \"a\"", "2: default.disk.group: unknown"),
            ("[default.disk]\nforce-share = true", "2: default.disk.force-share: unknown"),
            (
                "[default.disk]\nin-flight-requests = 0",
                "2: default.disk.in-flight-requests: 0 is not a number of requests in flight, 1 to",
            ),
            (
                "[domain.web1.disk.xvda]\nin-flight-requests = 2049",
                "2: domain.web1.disk.xvda.in-flight-requests: 2049 is not a number of requests",
            ),
            (
                "[domain.web1.disk.xvda]\nin-flight-bytes = \"2GiB\"",
                "2: domain.web1.disk.xvda.in-flight-bytes: \"2GiB\" is not a size of the data in",
            ),
            (
                "[domain.a.virtio.0.console]\nports = [\"agent\", \"a/b\"]",
                "2: domain.a.virtio.0.console.ports[1]: \"a/b\" is not the name of a port",
            ),
            (
                "[domain.a.virtio.0.console]\nports = [\"x\", \"x\"]",
                "2: domain.a.virtio.0.console.ports: port \"x\" is listed twice",
            ),
            (
                "[domain.a.virtio.0.vsock]\ncid = 2",
                "2: domain.a.virtio.0.vsock.cid: 2 is not a guest's context id",
            ),
            (
                "[domain.a.virtio.0.vsock]\npath = \"here\"",
                "2: domain.a.virtio.0.vsock.path: \"here\" is not an absolute path",
            ),
            ("[default.vsock]\ncid = 5", "1: default.vsock: unknown"),
            ("domains = 1", "1: domains: unknown"),
            ("default = 1", "1: default: invalid type"),
            ("a = 1\n[default.rng]\nrate = \"x", "3: rate: "),
            ("[default.rng]\nrate = \"1B/s\"\nrate = \"2B/s\"", "3: rate: duplicate key"),
        ];
        for (text, start) in cases {
            let said = complaint(text);
            assert!(said.starts_with(start), "{said:?} does not start with {start:?}");
        }
    }

    #[test]
    fn only_a_named_file_must_exist() {
        let path = PathBuf::from("/nonexistent/xen-virtiod.toml");
        let missing = ConfigFile { path: path.clone(), required: false, text: None };
        assert_eq!(missing.load().unwrap(), None);
        let error = ConfigFile::new(Some(path)).load().unwrap_err();
        let error = crate::Causes(&error).to_string();
        assert!(error.starts_with("cannot read /nonexistent/xen-virtiod.toml: "), "{error}");
    }

    #[test]
    fn error_of_a_file_without_utf8_names_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), b"\xff\xfe").unwrap();
        let error = ConfigFile::new(Some(file.path().to_owned())).load().unwrap_err().to_string();
        assert!(error.contains(file.path().to_str().unwrap()), "{error}");
    }
}
