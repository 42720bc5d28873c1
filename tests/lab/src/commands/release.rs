//! `cargo lab release`: makes the files of a release.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::build::PackagesBuild;
use crate::command;
use crate::crates::{Crate, Crates};
use crate::debian::Suite;
use crate::dirs::Dirs;
use crate::host;
use crate::lab;
use crate::progress::Progress;

/// The name of the release, with its version.
const NAME: &str = concat!("virtio-msg-xen-", env!("CARGO_PKG_VERSION"));

/// The releases of Debian that have packages.
const SUITES: [Suite; 2] = [Suite::Bookworm, Suite::Trixie];

/// The crates that a release consists of: the daemon, and the module.
const PRODUCTS: [&str; 2] = ["xen-virtiod", "guest-shim"];

/// Makes the files, and prints their paths.
pub(crate) fn release() -> Result<i32> {
    let progress = Progress::new();
    let dirs = Dirs::find()?;
    let _lock = lab::lock(&dirs, &progress)?;
    let logs = dirs.fresh_logs("release")?;
    host::ensure_tools(&progress, &logs.join("install.log"))?;
    ensure_committed(&dirs.project)?;
    let out = dirs.lab.join("release");
    if out.exists() {
        fs::remove_dir_all(&out).with_context(|| format!("cannot remove {}", out.display()))?;
    }
    fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
    let mut files = vec![archive(&dirs.project, &out)?, bill(&dirs.project, &out)?];
    for suite in SUITES {
        let build = PackagesBuild::prepare(suite, &dirs, &logs, &progress)?;
        for package in build.build(&progress)? {
            let copy = out.join(package.file_name().unwrap_or_default());
            fs::copy(&package, &copy).with_context(|| format!("cannot copy {}", copy.display()))?;
            files.push(copy);
        }
    }
    files.push(checksums(&files, &out)?);
    for file in files {
        println!("{}", file.strip_prefix(&dirs.project).unwrap_or(&file).display());
    }
    Ok(0)
}

fn ensure_committed(project: &Path) -> Result<()> {
    let mut git = Command::new("git");
    git.args(["status", "--porcelain"]).current_dir(project);
    let changes = command::output(&mut git, "asking git for changes")?;
    ensure!(changes.is_empty(), "commit these changes first:\n{changes}");
    Ok(())
}

/// The sources of the commit.
fn archive(project: &Path, out: &Path) -> Result<PathBuf> {
    let path = out.join(format!("{NAME}.tar.gz"));
    let mut git = Command::new("git");
    // gzip notes neither a time nor a name.
    git.args(["-c", "tar.tar.gz.command=gzip -n", "archive", "--format=tar.gz"])
        .arg(format!("--prefix={NAME}/"))
        .arg("--output")
        .arg(&path)
        .arg("HEAD")
        .current_dir(project);
    command::output(&mut git, "archiving the sources")?;
    Ok(path)
}

/// Writes a bill of materials (CycloneDX 1.5).
fn bill(project: &Path, out: &Path) -> Result<PathBuf> {
    let path = out.join(format!("{NAME}.cdx.json"));
    let text = serde_json::to_string_pretty(&bill_of(&Crates::read(project)?))?;
    fs::write(&path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

fn bill_of(crates: &Crates) -> Value {
    let linked = PRODUCTS.iter().flat_map(|product| crates.linked_into(product));
    let mut components: Vec<_> = linked.filter(|each| each.source.is_some()).collect();
    components.sort_by_key(|each| (&each.name, &each.version));
    components.dedup_by_key(|each| (each.name.clone(), each.version.clone()));
    json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": { "component": {
            "type": "application",
            "name": "virtio-msg-xen",
            "version": env!("CARGO_PKG_VERSION"),
        }},
        "components": components.into_iter().map(component).collect::<Vec<_>>(),
    })
}

fn component(each: &Crate) -> Value {
    let Crate { name, version, license, .. } = each;
    let license = license.as_deref().unwrap_or("NOASSERTION").replace('/', " OR ");
    json!({
        "type": "library",
        "name": name,
        "version": version,
        "purl": format!("pkg:cargo/{name}@{version}"),
        "licenses": [{ "expression": license }],
    })
}

/// Writes the files' checksums, as `sha256sum --check` reads them.
fn checksums(files: &[PathBuf], out: &Path) -> Result<PathBuf> {
    let path = out.join("SHA256SUMS");
    let mut text = String::new();
    for file in files {
        let mut hash = Sha256::new();
        let opened = File::open(file).with_context(|| format!("cannot read {}", file.display()));
        std::io::copy(&mut opened?, &mut hash)?;
        let digest: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        text.push_str(&format!("{digest}  {name}\n"));
    }
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bill_lists_what_the_products_link_and_not_what_tests_use() {
        let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let bill = bill_of(&Crates::read(&project).unwrap());
        let named = |name: &str| {
            let components = bill["components"].as_array().unwrap();
            components.iter().filter(|each| each["name"] == name).count()
        };
        assert_eq!((named("virtio-queue"), named("criterion"), named("xen")), (1, 0, 0));
        let first = &bill["components"][0];
        assert!(first["purl"].as_str().unwrap().starts_with("pkg:cargo/"), "{first}");
    }

    #[test]
    fn checksums_are_those_of_sha256sum() {
        let out = tempfile::tempdir().unwrap();
        let file = out.path().join("a");
        fs::write(&file, "abc").unwrap();
        let text = fs::read_to_string(checksums(&[file], out.path()).unwrap()).unwrap();
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  a\n";
        assert_eq!(text, expected);
    }
}
