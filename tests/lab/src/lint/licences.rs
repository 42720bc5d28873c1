//! The licences, the versions and the sources of all crates. This is what `cargo deny` checks
//! offline; to build that takes minutes, and Debian has no package of it.

mod policy;

use std::collections::BTreeMap;

use anyhow::Result;
use spdx::{Expression, LicenseReq, ParseMode};

use self::policy::Policy;
use super::{Project, Verdict};
use crate::crates::{Crate, Crates};

/// What is linked into a guest's module, with all that it depends on, and what allows that.
const MODULE: &str = "guest-shim";
const MODULE_LICENCE: &str = "GPL-2.0-only";

/// Checks all crates that Cargo.lock names.
pub(super) fn check(project: &Project) -> Result<Verdict> {
    let policy = Policy::read(&project.dirs.project)?;
    let crates = Crates::read(&project.dirs.project)?;
    let checked = format!("{} crates", crates.all().len());
    Ok(Verdict::of(findings(&crates, &policy), checked))
}

fn findings(crates: &Crates, policy: &Policy) -> Vec<String> {
    let mut found = Vec::new();
    for each in crates.all() {
        let Crate { name, version, .. } = each;
        if let Some(why) = licence_fault(each, |licence| policy.allows(licence)) {
            found.push(format!("{name} {version}: {why}: see {}", policy::FILE));
        }
        found.extend(each.foreign_sources().map(|source| format!("{name} {version}: {source}")));
    }
    for each in crates.linked_into(MODULE) {
        if let Some(why) = licence_fault(each, |licence| licence == MODULE_LICENCE) {
            found.push(format!("{} {}, in the guest's module: {why}", each.name, each.version));
        }
    }
    found.extend(version_faults(crates.all(), policy));
    found
}

/// Why the crate may not be used where `allowed` says which licences are, if so.
fn licence_fault(each: &Crate, allowed: impl Fn(&str) -> bool) -> Option<String> {
    let Some(licence) = &each.license else {
        return Some("it names no licence".to_owned());
    };
    // Old crates write MIT/Apache-2.0.
    let expression = match Expression::parse_mode(licence, ParseMode::LAX) {
        Ok(expression) => expression,
        Err(error) => return Some(format!("{licence:?} is no licence: {}", error.reason)),
    };
    let is_allowed = |requirement: &LicenseReq| allowed(&requirement.to_string());
    (!expression.evaluate(is_allowed)).then(|| format!("its licence {licence} is not allowed"))
}

/// Crates that are there in several versions, and exceptions that are none.
fn version_faults(all: &[Crate], policy: &Policy) -> Vec<String> {
    let mut versions = BTreeMap::<&str, Vec<&str>>::new();
    for each in all {
        versions.entry(&each.name).or_default().push(&each.version);
    }
    let skipped = |name: &str, version: &str| policy.skips(&format!("{name}@{version}"));
    let several = versions.iter().filter_map(|(name, versions)| {
        let counted = versions.iter().filter(|version| !skipped(name, version)).count();
        (counted > 1).then(|| format!("{name} is there several times: {}", versions.join(", ")))
    });
    let unused = policy.skipped().filter(|skip| {
        let (name, version) = skip.split_once('@').unwrap_or((skip, ""));
        !versions.get(name).is_some_and(|all| all.len() > 1 && all.contains(&version))
    });
    several.chain(unused.map(|skip| format!("{}: skip {skip} is unused", policy::FILE))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(licence: &str) -> Option<String> {
        let mut each = Crate::named("one", "1.0.0");
        each.license = Some(licence.to_owned());
        licence_fault(&each, |licence| ["Apache-2.0", "MIT"].contains(&licence))
    }

    #[test]
    fn a_licence_expression_needs_an_allowed_choice() {
        for licence in
            ["MIT", "MIT/Apache-2.0", "GPL-3.0-only OR MIT", "(MIT OR 0BSD) AND Apache-2.0"]
        {
            assert_eq!(fault(licence), None);
        }
        for licence in [
            "GPL-2.0-only",
            "MIT AND GPL-3.0-only",
            "Apache-2.0 WITH LLVM-exception",
            "made up",
            "",
        ] {
            assert!(fault(licence).is_some(), "{licence}");
        }
        assert!(licence_fault(&Crate::named("one", "1.0.0"), |_| true).is_some());
    }

    #[test]
    fn versions_beside_another_need_an_exception() {
        let all =
            [Crate::named("a", "1.0.0"), Crate::named("a", "2.0.0"), Crate::named("b", "1.0.0")];
        let faults = |skip: &[&str]| version_faults(&all, &Policy::skipping(skip));
        assert_eq!(faults(&[]), ["a is there several times: 1.0.0, 2.0.0"]);
        assert!(faults(&["a@1.0.0"]).is_empty());
    }

    #[test]
    fn an_exception_without_a_second_version_is_reported() {
        let all = [Crate::named("b", "1.0.0")];
        for skip in ["b@1.0.0", "c@1.0.0", "b"] {
            assert_eq!(version_faults(&all, &Policy::skipping(&[skip])).len(), 1, "{skip}");
        }
    }
}
