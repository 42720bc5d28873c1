//! The directory in which a domain's records are.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::{Record, RecordError};

/// The directory of the daemon's records, independent of its options.
pub const RECORDS: &str = "/run/xen-virtiod/records";

/// The directory with the records of all devices, in memory (tmpfs): they must not outlive the
/// host's guests.
#[derive(Clone, Debug)]
pub struct RecordDirectory(PathBuf);

impl RecordDirectory {
    /// The directory at `path`, made if it is missing.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(path: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        Ok(Self(path.to_owned()))
    }

    /// Makes the record `name`, empty, in place of an earlier one.
    ///
    /// # Errors
    /// As for [`Record::create`], and [`RecordError::File`].
    pub fn create(&self, name: &str, queue_sizes: &[u16]) -> Result<Record, RecordError> {
        self.remove(name).map_err(|error| RecordError::File("replace", error))?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let file = options.open(self.path(name));
        let file = file.map_err(|error| RecordError::File("make", error))?;
        Record::create(file, queue_sizes).inspect_err(|_| {
            // What is left of it is none.
            let _ = self.remove(name);
        })
    }

    /// Opens the record `name`; `None` if there is none.
    ///
    /// # Errors
    /// As for [`Record::open`], and [`RecordError::File`].
    pub fn open(&self, name: &str) -> Result<Option<Record>, RecordError> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_NOFOLLOW);
        match options.open(self.path(name)) {
            Ok(file) => Record::open(file).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(RecordError::File("open", error)),
        }
    }

    /// Removes the record `name`, which may be missing.
    ///
    /// # Errors
    /// The kernel's.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.path(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// The names of all records.
    ///
    /// # Errors
    /// The kernel's.
    pub fn names(&self) -> io::Result<Vec<String>> {
        let entries = fs::read_dir(&self.0)?.collect::<io::Result<Vec<_>>>()?;
        let names = entries.iter().filter_map(|entry| entry.file_name().into_string().ok());
        Ok(names.filter_map(|name| Some(name.strip_suffix(SUFFIX)?.to_owned())).collect())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}{SUFFIX}"))
    }
}

const SUFFIX: &str = ".record";
