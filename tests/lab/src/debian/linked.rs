//! The libraries of a program that cannot run on this host.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use object::elf::DT_NEEDED;
use object::read::elf::{Dyn, ElfFile64};

/// Returns the paths of all libraries in `directory` with which `program` is linked, but for the
/// loader.
pub(super) fn libraries(program: &Path, directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found: Vec<PathBuf> = Vec::new();
    let mut next = Some(program.to_owned());
    let mut examined = 0;
    while let Some(file) = next {
        for name in needed(&file).with_context(|| format!("cannot read {}", file.display()))? {
            let path = directory.join(name);
            if !found.contains(&path) {
                found.push(path);
            }
        }
        next = found.get(examined).cloned();
        examined += 1;
    }
    Ok(found)
}

/// Returns the names of the libraries that the ELF file `file` itself needs.
fn needed(file: &Path) -> Result<Vec<String>> {
    let bytes = fs::read(file)?;
    let bytes = bytes.as_slice();
    let elf: ElfFile64<'_> = ElfFile64::parse(bytes)?;
    let (endian, sections) = (elf.endian(), elf.elf_section_table());
    let Some((entries, strings)) = sections.dynamic(endian, bytes)? else { return Ok(Vec::new()) };
    let strings = sections.strings(endian, bytes, strings)?;
    let mut names = Vec::new();
    for entry in entries.iter().filter(|entry| entry.tag32(endian) == Some(DT_NEEDED)) {
        names.push(String::from_utf8_lossy(entry.string(endian, strings)?).into_owned());
    }
    names.retain(|name| !name.starts_with("ld-linux"));
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_program_needs_the_c_library_and_not_the_loader() {
        let program = std::env::current_exe().unwrap();
        let names = needed(&program).unwrap();
        assert!(names.iter().any(|name| name.starts_with("libc.so")), "{names:?}");
        assert!(!names.iter().any(|name| name.starts_with("ld-linux")), "{names:?}");
    }
}
