//! Scripts of the administrator's that attach interfaces, by the conventions of Xen's own
//! (`xl-network-configuration(5)`, `/etc/xen/scripts/vif-*`): Open vSwitch, routes, VLANs.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::name::InterfaceName;

/// The directory of Xen's scripts.
const DIRECTORY: &str = "/etc/xen/scripts";
/// Maximum length of a path in bytes.
const LONGEST: usize = 200;

/// The path of a script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScriptPath(PathBuf);

/// Text that does not name a script.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAScript {
    /// The text is neither a name nor an absolute path.
    #[error("{0:?} is not a script: give a file's name in {DIRECTORY}, or an absolute path")]
    Path(String),
    /// The path does not fit.
    #[error("the path of a script has at most {LONGEST} bytes")]
    TooLong,
    /// The daemon does that itself. In an interface's name the script would also look for a vif's
    /// domain, and write to the path of one that does not exist.
    #[error(
        "vif-bridge is not for virtio: leave script out, and name the bridge in bridge = \"...\""
    )]
    Bridge,
}

impl ScriptPath {
    /// The path.
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

impl fmt::Display for ScriptPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

impl FromStr for ScriptPath {
    type Err = NotAScript;

    fn from_str(text: &str) -> Result<Self, NotAScript> {
        let is_name = !text.contains('/') && !["", ".", ".."].contains(&text);
        if !is_name && !text.starts_with('/') || text.chars().any(char::is_control) {
            return Err(NotAScript::Path(text.to_owned()));
        }
        // An absolute path replaces the directory.
        let path = Path::new(DIRECTORY).join(text);
        if path == Path::new(DIRECTORY).join("vif-bridge") {
            return Err(NotAScript::Bridge);
        }
        let fits = path.as_os_str().len() <= LONGEST;
        if fits { Ok(Self(path)) } else { Err(NotAScript::TooLong) }
    }
}

impl Serialize for ScriptPath {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ScriptPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A script for an interface, and its parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    /// The script.
    pub path: ScriptPath,
    /// What it attaches the interface to, in its own terms: Open vSwitch's `vif-openvswitch` has
    /// the VLAN behind a dot.
    pub bridge: Option<InterfaceName>,
    /// The interface whose address `vif-route` uses.
    pub gateway: Option<InterfaceName>,
}

/// A script that did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// It cannot be started.
    #[error("cannot start the script {script}")]
    Start {
        /// The script.
        script: ScriptPath,
        /// The kernel's error.
        source: io::Error,
    },
    /// It failed.
    #[error("the script {script} failed, {status}{}", Said(.said))]
    Failed {
        /// The script.
        script: ScriptPath,
        /// How it ended.
        status: ExitStatus,
        /// What it wrote to `hotplug-error` in XenStore, as Xen's scripts do.
        said: Option<String>,
    },
    /// It was killed, since the daemon ends.
    #[error("the script {script} was killed, since xen-virtiod ends")]
    Stopped {
        /// The script.
        script: ScriptPath,
    },
    /// It was killed.
    #[error("the script {script} was killed: it did not end within {} s", .limit.as_secs())]
    Late {
        /// The script.
        script: ScriptPath,
        /// The time that it had.
        limit: Duration,
    },
}

/// A script's own words as the end of a message.
struct Said<'a>(&'a Option<String>);

impl fmt::Display for Said<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_ref().map_or(Ok(()), |said| write!(f, ": {said}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_are_names_in_xens_directory_or_absolute_paths() {
        let path = |text: &str| text.parse::<ScriptPath>().map(|path| path.to_string());
        assert_eq!(path("vif-route").as_deref(), Ok("/etc/xen/scripts/vif-route"));
        assert_eq!(path("/opt/attach").as_deref(), Ok("/opt/attach"));
        for wrong in ["", "..", "a/b", "./a", "a\nb"] {
            assert_eq!(path(wrong), Err(NotAScript::Path(wrong.to_owned())));
        }
        assert_eq!(path(&format!("/{}", "a".repeat(200))), Err(NotAScript::TooLong));
        for bridge in ["vif-bridge", "/etc/xen/scripts/vif-bridge"] {
            assert_eq!(path(bridge), Err(NotAScript::Bridge));
        }
    }
}
