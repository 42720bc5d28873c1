//! The policy on crates: the table that `cargo deny` reads too.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

/// Its path in the project.
pub(super) const FILE: &str = ".cargo/deny.toml";

/// What the table says. A key that the lab does not check is an error.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Policy {
    licenses: Licenses,
    bans: Bans,
    #[serde(rename = "sources")]
    _sources: Sources,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Licenses {
    allow: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Bans {
    #[serde(rename = "multiple-versions")]
    _multiple_versions: Deny,
    skip: Vec<Skip>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Skip {
    #[serde(rename = "crate")]
    name_and_version: String,
    #[serde(rename = "reason")]
    _reason: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Sources {
    #[serde(rename = "unknown-registry")]
    _unknown_registry: Deny,
    #[serde(rename = "unknown-git")]
    _unknown_git: Deny,
}

/// The only level that the lab knows.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Deny {
    Deny,
}

impl Policy {
    /// Reads the table of `project`.
    pub(super) fn read(project: &Path) -> Result<Policy> {
        let text = fs::read_to_string(project.join(FILE))
            .with_context(|| format!("cannot read {FILE}"))?;
        toml::from_str(&text).with_context(|| format!("{FILE} is not as the lab knows it"))
    }

    /// Whether crates may have `licence`.
    pub(super) fn allows(&self, licence: &str) -> bool {
        self.licenses.allow.iter().any(|allowed| allowed == licence)
    }

    /// Whether the version `NAME@VERSION` may be there beside another.
    pub(super) fn skips(&self, name_and_version: &str) -> bool {
        self.skipped().any(|skipped| skipped == name_and_version)
    }

    /// All versions that may be there beside another.
    pub(super) fn skipped(&self) -> impl Iterator<Item = &str> {
        self.bans.skip.iter().map(|skip| skip.name_and_version.as_str())
    }
}

#[cfg(test)]
impl Policy {
    /// A policy that allows no licence, and these versions beside others.
    pub(super) fn skipping(skip: &[&str]) -> Policy {
        let skip = skip.iter().map(|&name_and_version| Skip {
            name_and_version: name_and_version.to_owned(),
            _reason: String::new(),
        });
        Policy {
            licenses: Licenses { allow: Vec::new() },
            bans: Bans { _multiple_versions: Deny::Deny, skip: skip.collect() },
            _sources: Sources { _unknown_registry: Deny::Deny, _unknown_git: Deny::Deny },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_projects_policy_has_its_own_licences() {
        let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let policy = Policy::read(&project).unwrap();
        assert!(policy.allows("MIT") && policy.allows("Apache-2.0"));
        assert!(!policy.allows("GPL-3.0-only"));
    }

    #[test]
    fn a_key_that_only_cargo_deny_knows_is_refused() {
        let table = "[licenses]\nallow = []\n[bans]\nmultiple-versions = \"deny\"\nskip = []\n\
                     [sources]\nunknown-registry = \"deny\"\nunknown-git = \"deny\"\n";
        toml::from_str::<Policy>(table).unwrap();
        for other in [format!("{table}allow-git = []\n"), table.replace("\"deny\"", "\"warn\"")] {
            toml::from_str::<Policy>(&other).unwrap_err();
        }
    }
}
