//! The kernel's `checkpatch` over the module's C.

use anyhow::Result;

use super::{Project, Verdict, files, tool};

/// Where the C is, and `.checkpatch.conf`, which has the options and what is left out, with
/// reasons.
const DIRECTORY: &str = "guest-shim/linux";

const COMMAND: &str = "perl /opt/checkpatch/checkpatch.pl --no-tree --terse -f -- \"$@\"";

/// Checks each file as a whole.
pub(super) fn check(project: &Project) -> Result<Verdict> {
    let all = files::all(&project.dirs.project)?;
    let c = all.iter().filter_map(|path| c_file(path)).collect::<Vec<_>>();
    let mut found = tool::findings(project, "checkpatch", DIRECTORY, COMMAND, &c)?;
    found.retain(|line| !line.starts_with("total: "));
    Ok(Verdict::of(found, format!("{} files", c.len())))
}

/// The name in [`DIRECTORY`] of a C file of the module's.
fn c_file(path: &str) -> Option<&str> {
    let name = path.strip_prefix(DIRECTORY)?.strip_prefix('/')?;
    (name.ends_with(".c") || name.ends_with(".h")).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c_files_of_the_module_are_checked() {
        assert_eq!(c_file("guest-shim/linux/main.c"), Some("main.c"));
        assert_eq!(c_file("guest-shim/linux/include/shim.h"), Some("include/shim.h"));
        assert_eq!(c_file("guest-shim/linux/Kbuild"), None);
        assert_eq!(c_file("backend/main.c"), None);
    }
}
