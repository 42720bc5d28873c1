//! The store in the user's cache: an entry is complete or does not exist.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::lock;

/// Returns the entry `name` of the recipe with this `key`; calls `make` to fill its directory if it
/// does not exist.
///
/// The directory gets its final name when `make` has succeeded, so the next run replaces an
/// interrupted one.
pub(crate) fn entry(
    cache: &Path,
    name: &str,
    key: &str,
    make: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let path = cache.join(format!("{name}-{key}"));
    if path.exists() {
        return Ok(path);
    }
    let _lock = lock::take(&cache.join(format!("{name}.lock")), || {
        eprintln!("{name}: waiting for another `cargo lab` that is fetching it");
    })?;
    if path.exists() {
        return Ok(path);
    }
    let unfinished = cache.join(format!("{name}.unfinished"));
    empty_dir(&unfinished)?;
    make(&unfinished).inspect_err(|_| drop(fs::remove_dir_all(&unfinished)))?;
    fs::rename(&unfinished, &path)
        .with_context(|| format!("cannot rename {} to {}", unfinished.display(), path.display()))?;
    Ok(path)
}

fn empty_dir(path: &Path) -> Result<()> {
    if path.exists() {
        fs::remove_dir_all(path)
            .with_context(|| format!("cannot remove the unfinished entry {}", path.display()))?;
    }
    fs::create_dir(path).with_context(|| format!("cannot create {}", path.display()))
}

/// Returns a short hash over the parts of a recipe. The hash covers each part's length, so moving
/// text from one part to the next changes it.
pub(crate) fn key<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    let digest = hash.finalize();
    digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::bail;

    #[test]
    fn key_depends_on_every_part_and_its_length() {
        let keys =
            [key(["a", "b"]), key(["ab"]), key(["ab", ""]), key(["a", "c"]), key(["b", "a"])];
        for (i, one) in keys.iter().enumerate() {
            assert_eq!(one.len(), 12);
            assert!(!keys[..i].contains(one));
        }
        assert_eq!(key(["a", "b"]), keys[0]);
    }

    #[test]
    fn entry_is_made_once() {
        let cache = tempfile::tempdir().unwrap();
        let make = |dir: &Path| Ok(fs::write(dir.join("file"), "x")?);
        let first = entry(cache.path(), "thing", "k", make).unwrap();
        let second = entry(cache.path(), "thing", "k", |_| bail!("made twice")).unwrap();
        assert_eq!(first, second);
        assert!(first.join("file").exists());
    }

    #[test]
    fn failed_or_interrupted_make_leaves_no_entry() {
        let cache = tempfile::tempdir().unwrap();
        entry(cache.path(), "thing", "k", |_| bail!("no")).unwrap_err();
        fs::create_dir(cache.path().join("thing.unfinished")).unwrap();
        fs::write(cache.path().join("thing.unfinished/half"), "x").unwrap();
        let made = entry(cache.path(), "thing", "k", |_| Ok(())).unwrap();
        assert!(!made.join("half").exists());
    }
}
