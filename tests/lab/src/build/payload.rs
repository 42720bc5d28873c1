//! The payload of one boot: an archive on a disk of its own, which Dom0 unpacks to `/lab`.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tar::{Builder, Header, HeaderMode};

use super::{Built, GuestFiles, StorageTools};
use crate::debian::Suite;
use crate::dirs::Dirs;
use crate::fetch::Guest;

/// The parts of the payload that differ from boot to boot.
pub(crate) struct Payload<'a> {
    /// The shell script that Dom0 runs when it is ready.
    pub(crate) job: String,
    /// The host's files and directories for `/lab/files`.
    pub(crate) files: &'a [PathBuf],
    /// What a guest with a whole system has; only a Dom0 that boots as Debian does has its disk.
    pub(crate) guest_tools: StorageTools,
}

/// The packages to install in Dom0, and the files that boot Dom0's system in a driver domain.
pub(crate) struct Installation {
    /// The packages.
    pub(crate) packages: Vec<PathBuf>,
    /// The disk of a guest with Debian's whole system. Dom0 has it as a disk of its own.
    pub(crate) guest_system: PathBuf,
    /// Dom0's kernel.
    pub(crate) kernel: PathBuf,
    /// The distribution's part of its initrd.
    pub(crate) initrd: PathBuf,
}

/// Writes the archive for one boot to `image`.
pub(crate) fn write_payload(
    image: &Path,
    dirs: &Dirs,
    guest: &Guest,
    built: &Built,
    payload: &Payload,
    installation: Option<&Installation>,
) -> Result<()> {
    let file = File::create(image).with_context(|| format!("cannot create {}", image.display()))?;
    let mut builder = Builder::new(BufWriter::new(file));
    builder.mode(HeaderMode::Deterministic);
    builder.sparse(false); // busybox's tar does not support sparse files
    let mut archive = Archive(builder);
    archive.script("job", &payload.job)?;
    archive.file("bin/xen-virtiod", &built.dom0_programs.xen_virtiod)?;
    archive.file("bin/snoop", &built.dom0_programs.snoop)?;
    archive.file("bin/vm-memory-xen", &built.dom0_programs.vm_memory_xen)?;
    archive.file("bin/probe", &built.guest_programs.probe)?;
    archive.file("bin/planted-rings", &built.dom0_programs.planted_rings)?;
    archive.file("bin/reach-pages", &built.dom0_programs.reach_pages)?;
    archive.file("bin/hostile-backend", &built.dom0_programs.hostile_backend)?;
    archive.file("bin/slow-device", &built.dom0_programs.slow_device)?;
    archive.file("bin/exploit", &built.dom0_programs.exploit)?;
    archive.file("bin/foreign-map", &built.guest_programs.foreign_map)?;
    for files in &built.guests.files {
        let dir = guest_directory(files);
        archive.file(dir.join("vmlinuz"), &files.kernel)?;
        archive.file(dir.join("vmlinux"), &files.unpacked)?;
        archive.file(dir.join("initrd"), &files.initrd)?;
    }
    archive.file("guest/driver-domain.cpio", &built.driver_domain)?;
    archive.file("guest/vm-memory-xen.cpio", &built.vm_memory_xen)?;
    archive.file("guest/tree.cpio", &guest.tree())?;
    archive.tree("xen-configs", &dirs.project.join("xen-configs"))?;
    let trace = dirs.project.join("backend/virtiod/request-times.bt");
    archive.file("request-times.bt", &trace)?;
    archive.tree("dom0", &dirs.tests().join("lab/dom0"))?;
    for scenarios in ["scenarios", "matrix", "bench/scenarios"] {
        archive.tree("scenarios", &dirs.tests().join(scenarios))?;
    }
    if let Some(installation) = installation {
        archive.installation(installation)?;
    }
    archive.directory("files")?;
    for file in payload.files {
        let name = file
            .file_name()
            .with_context(|| format!("the path {} names no file", file.display()))?;
        let inside = Path::new("files").join(name);
        match file.is_dir() {
            true => archive.tree(inside, file)?,
            false => archive.file(inside, file)?,
        }
    }
    archive.0.into_inner()?.into_inner()?.sync_all()?;
    Ok(())
}

/// Returns the directory for a kernel and its initrd: `guest` for the default kernel, `guest/SUITE`
/// for others.
fn guest_directory(files: &GuestFiles) -> PathBuf {
    match files.suite {
        Suite::LAB => PathBuf::from("guest"),
        other => Path::new("guest").join(other.name()),
    }
}

/// A tar archive in which all entries belong to root.
struct Archive(Builder<BufWriter<File>>);

impl Archive {
    fn file(&mut self, inside: impl AsRef<Path>, source: &Path) -> Result<()> {
        self.0
            .append_path_with_name(source, inside)
            .with_context(|| format!("cannot copy {}", source.display()))
    }

    fn tree(&mut self, inside: impl AsRef<Path>, source: &Path) -> Result<()> {
        self.0
            .append_dir_all(inside, source)
            .with_context(|| format!("cannot copy {}", source.display()))
    }

    /// Adds `packages`, and `boot` with Dom0's kernel and initrd.
    fn installation(&mut self, installation: &Installation) -> Result<()> {
        for package in &installation.packages {
            let name = package.file_name().unwrap_or_default();
            self.file(Path::new("packages").join(name), package)?;
        }
        self.file("boot/vmlinuz", &installation.kernel)?;
        self.file("boot/initrd", &installation.initrd)
    }

    fn script(&mut self, inside: &str, text: &str) -> Result<()> {
        let mut header = Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o755);
        Ok(self.0.append_data(&mut header, inside, text.as_bytes())?)
    }

    fn directory(&mut self, inside: &str) -> Result<()> {
        let mut header = Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_size(0);
        header.set_mode(0o755);
        Ok(self.0.append_data(&mut header, inside, std::io::empty())?)
    }
}
