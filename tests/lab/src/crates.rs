//! The crates that the workspace is made of and depends on, as `cargo metadata` lists them.

use std::env;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::command;

/// All crates, and which depends on which.
#[derive(Debug, Deserialize)]
pub(crate) struct Crates {
    packages: Vec<Crate>,
    resolve: Resolve,
}

/// A version of a crate.
#[derive(Debug, Deserialize)]
pub(crate) struct Crate {
    id: String,
    pub(crate) name: String,
    pub(crate) version: String,
    /// An SPDX expression.
    pub(crate) license: Option<String>,
    /// Where it comes from, unless it is the project's.
    pub(crate) source: Option<String>,
    dependencies: Vec<Dependency>,
}

/// What a crate's manifest says of a dependency.
#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
    /// The registry, if it is not the usual one.
    registry: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: String,
    deps: Vec<Edge>,
}

#[derive(Debug, Deserialize)]
struct Edge {
    pkg: String,
    dep_kinds: Vec<EdgeKind>,
}

#[derive(Debug, Deserialize)]
struct EdgeKind {
    /// `dev` or `build`; none for what is linked.
    kind: Option<String>,
}

impl Crates {
    /// Asks cargo for those of `project`, on all platforms.
    pub(crate) fn read(project: &Path) -> Result<Crates> {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()));
        cargo.args(["metadata", "--format-version", "1", "--locked"]).current_dir(project);
        let metadata = command::output(&mut cargo, "cargo metadata")?;
        serde_json::from_str(&metadata).context("cannot read what cargo metadata prints")
    }

    /// Each version of each crate.
    pub(crate) fn all(&self) -> &[Crate] {
        &self.packages
    }

    /// The crate `name` and all that is linked with it.
    pub(crate) fn linked_into(&self, name: &str) -> Vec<&Crate> {
        let roots = self.packages.iter().filter(|each| each.name == name);
        let mut ids: Vec<&str> = roots.map(|each| each.id.as_str()).collect();
        let mut done = 0;
        while let Some(&id) = ids.get(done) {
            done += 1;
            for dependency in self.resolve.linked(id) {
                if !ids.contains(&dependency) {
                    ids.push(dependency);
                }
            }
        }
        self.packages.iter().filter(|each| ids.contains(&each.id.as_str())).collect()
    }
}

impl Resolve {
    /// What is linked into the crate `id` directly.
    fn linked<'a>(&'a self, id: &str) -> impl Iterator<Item = &'a str> {
        let node = self.nodes.iter().find(|node| node.id == id);
        let edges = node.into_iter().flat_map(|node| &node.deps);
        let linked = |edge: &&Edge| edge.dep_kinds.iter().any(|kind| kind.kind.is_none());
        edges.filter(linked).map(|edge| edge.pkg.as_str())
    }
}

impl Crate {
    /// Sources of it and of its dependencies that are not the usual registry.
    pub(crate) fn foreign_sources(&self) -> impl Iterator<Item = String> {
        let git = self.source.iter().filter(|source| !is_registry(source));
        let git = git.map(|source| format!("it comes from {source}, not from the usual registry"));
        let others = self.dependencies.iter().filter_map(|dependency| {
            let registry = dependency.registry.as_ref()?;
            Some(format!("it takes {} from the registry {registry}", dependency.name))
        });
        git.chain(others)
    }
}

fn is_registry(source: &str) -> bool {
    source.starts_with("registry+") || source.starts_with("sparse+")
}

#[cfg(test)]
impl Crate {
    /// A crate of the project's without a licence.
    pub(crate) fn named(name: &str, version: &str) -> Crate {
        Crate {
            id: format!("{name}@{version}"),
            name: name.to_owned(),
            version: version.to_owned(),
            license: None,
            source: None,
            dependencies: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `a` links `b`, is tested by `c` and comes from a git repository.
    const METADATA: &str = r#"{"packages":[
        {"id":"a","name":"a","version":"1.0.0","license":"MIT","source":"git+https://git.example/a",
         "dependencies":[{"name":"b","registry":null},{"name":"c","registry":"https://crates.example"}]},
        {"id":"b","name":"b","version":"1.0.0","license":"MIT","source":"registry+https://x.example",
         "dependencies":[]},
        {"id":"c","name":"c","version":"1.0.0","license":"MIT","source":null,"dependencies":[]}],
        "resolve":{"nodes":[
        {"id":"a","deps":[{"pkg":"b","dep_kinds":[{"kind":null}]},
                          {"pkg":"c","dep_kinds":[{"kind":"dev"}]}]},
        {"id":"b","deps":[{"pkg":"a","dep_kinds":[{"kind":null}]}]}, {"id":"c","deps":[]}]}}"#;

    #[test]
    fn what_is_only_for_tests_is_not_linked() {
        let crates: Crates = serde_json::from_str(METADATA).unwrap();
        let names = |of| crates.linked_into(of).iter().map(|each| &each.name).collect::<Vec<_>>();
        assert_eq!(names("a"), ["a", "b"]);
        assert_eq!(names("c"), ["c"]);
    }

    #[test]
    fn other_sources_than_the_usual_registry_are_named() {
        let crates: Crates = serde_json::from_str(METADATA).unwrap();
        let sources = |place: usize| crates.all()[place].foreign_sources().collect::<Vec<_>>();
        assert_eq!(sources(0).len(), 2);
        assert!(sources(0)[0].contains("git.example") && sources(0)[1].contains("crates.example"));
        assert!(sources(1).is_empty() && sources(2).is_empty());
    }
}
