//! Copies kernel modules from a root to an initrd, with lists of the order in which to load them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::cpio::Cpio;
use crate::debian::root::Root;

/// The initrd's directory of modules. Its file `order` lists the modules that init loads, in order;
/// `NAME.order` lists the module NAME and its dependencies, which a script can load.
const DIRECTORY: &str = "lib/modules";

/// Adds the modules `wanted` and `optional` of the root's kernel, with their dependencies, to an
/// initrd. Init loads the wanted ones; scripts can load the optional ones.
pub(super) fn add(cpio: &mut Cpio, root: &Root, wanted: &[&str], optional: &[&str]) -> Result<()> {
    let each = optional.iter().map(|module| (format!("{module}.order"), vec![*module]));
    let lists: Vec<_> = [("order".to_owned(), wanted.to_vec())].into_iter().chain(each).collect();
    add_lists(cpio, root, &lists)
}

/// Adds the modules `optional` like [`add`], to an initrd that has the file `order` already.
pub(super) fn add_optional(cpio: &mut Cpio, root: &Root, optional: &[&str]) -> Result<()> {
    let each = optional.iter().map(|module| (format!("{module}.order"), vec![*module]));
    add_lists(cpio, root, &each.collect::<Vec<_>>())
}

/// Adds modules by lists. Each list is the name of a file, and the modules that the file lists.
fn add_lists(cpio: &mut Cpio, root: &Root, lists: &[(String, Vec<&str>)]) -> Result<()> {
    let tree = root.file("usr/lib/modules").join(root.kernel_release()?);
    let read = |name: &str| {
        let path = tree.join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let known = Known { dependencies: &read("modules.dep")?, built_in: &read("modules.builtin")? };
    cpio.directories(&["lib", DIRECTORY]);
    let mut added = BTreeSet::new();
    for (list, modules) in lists {
        let mut order = String::new();
        for path in known.load_order(modules)? {
            let file = format!("{}.ko", name(path));
            if added.insert(path) {
                let module = contents(root, &tree.join(path))?;
                cpio.file(&format!("{DIRECTORY}/{file}"), 0o644, &module);
            }
            order.push_str(&format!("{file}\n"));
        }
        cpio.file(&format!("{DIRECTORY}/{list}"), 0o644, order.as_bytes());
    }
    Ok(())
}

/// The files `modules.dep` and `modules.builtin` of a kernel.
struct Known<'a> {
    /// Lines `PATH: PATH…`: a module and its dependencies, those to load first at the end.
    dependencies: &'a str,
    /// Paths of modules that are built into this kernel.
    built_in: &'a str,
}

impl<'a> Known<'a> {
    /// Returns the paths of the modules `wanted` and of their dependencies, each after its own
    /// dependencies. It leaves out modules that are built into the kernel.
    ///
    /// # Errors
    /// The kernel has no module of that name.
    fn load_order(&self, wanted: &[&str]) -> Result<Vec<&'a str>> {
        let mut order: Vec<&str> = Vec::new();
        for module in wanted.iter().filter(|module| !self.has_in_itself(module)) {
            let (path, needs) = self
                .dependencies
                .lines()
                .filter_map(|line| line.split_once(':'))
                .find(|(path, _)| name(path) == *module)
                .with_context(|| format!("the kernel has no module {module}"))?;
            for path in needs.split_whitespace().rev().chain([path]) {
                if !order.contains(&path) {
                    order.push(path);
                }
            }
        }
        Ok(order)
    }

    fn has_in_itself(&self, module: &str) -> bool {
        self.built_in.lines().any(|path| name(path) == module)
    }
}

/// Reads the module in `file`, and decompresses it if its name ends in `.xz`.
fn contents(root: &Root, file: &Path) -> Result<Vec<u8>> {
    if file.extension().is_some_and(|extension| extension == "xz") {
        root.unpacked("unxz", file)
    } else {
        fs::read(file).with_context(|| format!("cannot read {}", file.display()))
    }
}

/// Returns the name of the module in the file `path`.
fn name(path: &str) -> &str {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: Known<'static> = Known {
        dependencies: "kernel/fs/ext4/ext4.ko.xz: kernel/fs/jbd2.ko.xz kernel/crc.ko.xz\n\
                       kernel/fs/jbd2.ko.xz: kernel/crc.ko.xz\n\
                       kernel/crc.ko.xz:\n",
        built_in: "kernel/drivers/char/virtio_console.ko\n",
    };

    #[test]
    fn dependencies_load_once_before_their_module() {
        let order = KNOWN.load_order(&["jbd2", "ext4"]).unwrap();
        let names: Vec<_> = order.into_iter().map(name).collect();
        assert_eq!(names, ["crc", "jbd2", "ext4"]);
    }

    #[test]
    fn built_in_module_is_not_loaded() {
        assert_eq!(KNOWN.load_order(&["virtio_console"]).unwrap(), Vec::<&str>::new());
    }

    #[test]
    fn unknown_module_error_names_the_module() {
        let error = KNOWN.load_order(&["nosuch"]).unwrap_err();
        assert!(error.to_string().contains("nosuch"));
    }
}
