//! The configuration file.

use std::fmt;
use std::io;

use xen::Causes;

use super::finding::Finding;
use super::host::Host;
use crate::config::{ConfigError, Contradiction};

pub(super) fn examine(host: &Host) -> Vec<Finding> {
    let path = host.config.path().display();
    let finding = match host.config.load() {
        Ok(Some(config)) => {
            let found = config.contradictions();
            let found: Vec<_> =
                found.map(|(section, why)| contradicts(&path, &section, why)).collect();
            if !found.is_empty() {
                return found;
            }
            Finding::ok(format!("{path} is valid"))
        }
        Ok(None) => Finding::ok(format!("{path} does not exist: all devices have their defaults")),
        Err(ConfigError::Read { source, .. })
            if source.kind() == io::ErrorKind::PermissionDenied && !host.is_root =>
        {
            Finding::root_only(&path.to_string())
        }
        Err(error) => {
            let text =
                format!("the daemon refuses new devices, and does not start: {}", Causes(&error));
            Finding::error(text).mend(format!("editor {path}; xen-virtiod check {path}"))
        }
    };
    vec![finding]
}

fn contradicts(path: &impl fmt::Display, section: &str, why: Contradiction) -> Finding {
    let text = format!("network devices of [{section}] are refused: {why}");
    Finding::error(text).mend(format!("editor {path}; xen-virtiod check {path}"))
}

#[cfg(test)]
mod tests {
    use super::super::tests::TestHost;
    use crate::config::ConfigFile;

    const CHECK: &str = "configuration";

    #[test]
    fn invalid_file_is_an_error_with_its_line() {
        let host = TestHost::healthy();
        host.expect(CHECK, &["ok: ", " is valid"]);
        host.configure("[default]\npool = 5000\n");
        host.expect(CHECK, &["error: the daemon refuses", ":2: default.pool", "xen-virtiod check"]);
    }

    #[test]
    fn settings_that_cannot_hold_together_are_an_error() {
        let host = TestHost::healthy();
        host.configure(
            "[default.net]\nvlan = \"7\"\n[domain.web.virtio.1.net]\nbridge = \"none\"\n",
        );
        host.expect(CHECK, &["error: network devices of [domain.web.virtio.1.net] are refused"]);
        host.configure("[default.net]\nvlan = \"7\"\nscript = \"/etc/route\"\n");
        host.expect(CHECK, &["error: network devices of [default.net] are refused"]);
        host.configure("[default.net]\nvlan = \"none\"\nscript = \"/etc/route\"\n");
        host.expect(CHECK, &["ok: ", " is valid"]);
    }

    #[test]
    fn missing_file_means_defaults_unless_it_was_named() {
        let mut host = TestHost::healthy();
        host.host.config = ConfigFile::new(Some("/no/such/file".into()));
        host.expect(CHECK, &["error: the daemon refuses", "cannot read /no/such/file"]);
        host.host.config = ConfigFile::new(None).as_it_is().unwrap();
        host.expect(CHECK, &["ok: "]);
    }
}
