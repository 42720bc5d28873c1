//! The directory in which a domain's records are.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::{Record, RecordError};

/// The directory of the daemon's records, independent of its options.
pub const RECORDS: &str = "/run/xen-virtiod/records";

/// Keeps the records of devices.
pub trait Records: fmt::Debug + Send + Sync {
    /// Makes the record `name`, empty, in place of an earlier one.
    ///
    /// # Errors
    /// As for [`Record::create`], and [`RecordError::File`].
    fn create(&self, name: &str, queue_sizes: &[u16]) -> Result<Record, RecordError>;

    /// Opens the record `name`; `None` if there is none.
    ///
    /// # Errors
    /// As for [`Record::open`], and [`RecordError::File`].
    fn open(&self, name: &str) -> Result<Option<Record>, RecordError>;

    /// Removes the record `name`, which may be missing.
    ///
    /// # Errors
    /// The kernel's.
    fn remove(&self, name: &str) -> io::Result<()>;
}

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

    /// Makes an empty file in place of the record `name`.
    ///
    /// # Errors
    /// [`RecordError::File`].
    pub fn create_file(&self, name: &str) -> Result<File, RecordError> {
        self.remove(name).map_err(|error| RecordError::File("replace", error))?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        options.open(self.path(name)).map_err(|error| RecordError::File("make", error))
    }

    /// Opens the file of the record `name`; `None` if there is none.
    ///
    /// # Errors
    /// [`RecordError::File`].
    pub fn open_file(&self, name: &str) -> Result<Option<File>, RecordError> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_NOFOLLOW);
        match options.open(self.path(name)) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(RecordError::File("open", error)),
        }
    }

    /// The directory.
    pub fn path_of_all(&self) -> &Path {
        &self.0
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

impl Records for RecordDirectory {
    fn create(&self, name: &str, queue_sizes: &[u16]) -> Result<Record, RecordError> {
        Record::create(self.create_file(name)?, queue_sizes).inspect_err(|_| {
            // What is left of it is none.
            let _ = self.remove(name);
        })
    }

    fn open(&self, name: &str) -> Result<Option<Record>, RecordError> {
        self.open_file(name)?.map(Record::open).transpose()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.path(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

const SUFFIX: &str = ".record";
