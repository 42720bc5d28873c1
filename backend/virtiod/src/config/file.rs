//! Where the configuration stands, and what is wrong with it, in a line that names the place.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::Config;

/// Where the file is looked for if nothing else is said.
pub const DEFAULT_PATH: &str = "/etc/xen-virtiod.toml";

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file.
    #[error("cannot read {path}", path = .path.display())]
    Read {
        /// Its path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// What stands in it.
    #[error("{path}:{line}: {key}{message}", path = .path.display(), key = Prefix(.key))]
    Content {
        /// Its path.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key with the tables that it is in; empty if no key could be made out.
        key: String,
        /// What is wrong with it.
        message: String,
    },
}

/// A key in front of what is said of it.
struct Prefix<'a>(&'a str);

impl fmt::Display for Prefix<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, "{}: ", self.0) }
    }
}

/// A configuration file. It is read again for every device that is set up, so that a change needs
/// no restart, which would cost every guest its devices.
#[derive(Clone, Debug)]
pub struct ConfigFile {
    path: PathBuf,
    required: bool,
}

impl ConfigFile {
    /// The file that a person named, which has to be there, or else the usual one, which need not.
    pub fn new(named: Option<PathBuf>) -> Self {
        let required = named.is_some();
        Self { path: named.unwrap_or_else(|| DEFAULT_PATH.into()), required }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads it; `None` if it is not there and need not be.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load(&self) -> Result<Option<Config>, ConfigError> {
        match fs::read_to_string(&self.path) {
            Ok(text) => parse(&text, &self.path).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.required => Ok(None),
            Err(source) => Err(ConfigError::Read { path: self.path.clone(), source }),
        }
    }
}

/// Reads a file's text.
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
        // "." stands for the whole file.
        wrong(error.inner(), if key == "." { String::new() } else { key })
    })
}

/// What a log can show: of what the file names, a line break too is shown as it is written there.
fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter.is_control() {
            true => line.extend(letter.escape_default()),
            false => line.push(letter),
        }
    }
    line
}

/// The line that a byte is in, from 1.
fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

/// What looks like a key in the line that a byte is in, where the syntax is too broken to tell.
fn key_in_line(text: &str, offset: usize) -> String {
    let line = text.lines().nth(line_of(text, offset) - 1).unwrap_or_default();
    line.split('=').next().unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{PollTime, RateLimit};
    use crate::device::DeviceId;
    use crate::device::blk::{ImageFormat, Sharing};
    use crate::device::net::QueuePairs;
    use crate::tap::network::Bridge;

    /// The complaint about a file of these lines, without the path.
    fn complaint(text: &str) -> String {
        let error = parse(text, Path::new("f")).unwrap_err().to_string();
        assert!(!error.contains('\n'), "one line: {error}");
        error.strip_prefix("f:").unwrap().to_owned()
    }

    #[test]
    fn a_name_with_a_line_break_is_complained_of_in_one_line() {
        let said = complaint("[default]\n\"a\\nb\" = 1");
        assert!(said.starts_with("2: default.a\\nb: unknown field"), "{said}");
        let said = complaint("[domain.\"a\\nb\".virtio.0.rng]\nrate = \"x\"");
        assert!(said.contains("domain.a\\nb.virtio.0.rng.rate"), "{said}");
    }

    #[test]
    fn the_example_is_valid_and_says_what_it_explains() {
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
    fn what_holds_for_every_device_is_what_the_file_says() {
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
    fn the_examples_network_devices_are_what_it_explains() {
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
    }

    #[test]
    fn the_examples_disks_are_what_it_explains() {
        let example = concat!(env!("CARGO_MANIFEST_DIR"), "/xen-virtiod.toml");
        let config = ConfigFile::new(Some(example.into())).load().unwrap().unwrap();
        let disk = |domain, vdev| {
            let settings = config.disk(domain, vdev);
            (settings.format, settings.force_share)
        };
        assert_eq!(disk(Some("db1"), "xvda"), (Some(ImageFormat::Qcow2), Sharing::Safe));
        assert_eq!(disk(Some("db1"), "xvdb"), (Some(ImageFormat::Raw), Sharing::Forced));
        assert_eq!(disk(Some("db1"), "xvdc"), (None, Sharing::Safe));
        assert_eq!(disk(None, "xvda"), (None, Sharing::Safe));
        let config = parse("[default.disk]\nformat = \"raw\"", Path::new("f")).unwrap();
        assert_eq!(config.disk(None, "xvda").format, Some(ImageFormat::Raw));
    }

    #[test]
    fn an_empty_file_is_no_limit() {
        let config = parse("# nothing\n", Path::new("f")).unwrap();
        assert_eq!(config, Config::default());
        let device = config.device(Some("web1"), 0, DeviceId::Entropy).unwrap();
        assert_eq!(device.rng.rate, None);
    }

    #[test]
    fn a_section_for_another_type_does_not_fit_unless_it_is_the_default() {
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
    fn what_is_wrong_is_named_by_line_and_key() {
        let cases = [
            (
                "\n[domain.web1.virtio.0.rng]\nraet = \"1B/s\"",
                "3: domain.web1.virtio.0.rng.raet: unknown",
            ),
            (
                "[domain.web1.virtio.0]\n\nrng.rate = \"fast\"",
                "3: domain.web1.virtio.0.rng.rate: \"fast\" is not a rate",
            ),
            ("[default]\npoll = \"1s\"", "2: default.poll: \"1s\" is not a time to look"),
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
            ("[default.disk]\nforce-share = true", "2: default.disk.force-share: unknown"),
            (
                "[domain.a.virtio.0.console]\nports = [\"agent\", \"a/b\"]",
                "2: domain.a.virtio.0.console.ports[1]: \"a/b\" is not the name of a port",
            ),
            (
                "[domain.a.virtio.0.console]\nports = [\"x\", \"x\"]",
                "2: domain.a.virtio.0.console.ports: port \"x\" stands twice",
            ),
            (
                "[domain.a.virtio.0.vsock]\ncid = 2",
                "2: domain.a.virtio.0.vsock.cid: 2 is no guest's context id",
            ),
            (
                "[domain.a.virtio.0.vsock]\npath = \"here\"",
                "2: domain.a.virtio.0.vsock.path: \"here\" is not the path of a socket",
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
    fn only_a_file_that_was_named_has_to_be_there() {
        let path = PathBuf::from("/nonexistent/xen-virtiod.toml");
        let missing = ConfigFile { path: path.clone(), required: false };
        assert_eq!(missing.load().unwrap(), None);
        let error = ConfigFile::new(Some(path)).load().unwrap_err();
        let error = crate::Causes(&error).to_string();
        assert!(error.starts_with("cannot read /nonexistent/xen-virtiod.toml: "), "{error}");
    }

    #[test]
    fn a_file_that_is_no_text_is_an_error_that_names_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), b"\xff\xfe").unwrap();
        let error = ConfigFile::new(Some(file.path().to_owned())).load().unwrap_err().to_string();
        assert!(error.contains(file.path().to_str().unwrap()), "{error}");
    }
}
