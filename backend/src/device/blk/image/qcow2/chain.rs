//! A qcow2 image and the backing files that it names, and those name.
//!
//! Whoever made an image chose these names, and that need not be whoever gave it to a guest: one
//! from elsewhere could name any file of this domain, and its guest would read it. So a name counts
//! only if it is that of a file beside the image. Nor is a backing file's format guessed: a raw one
//! may have been a guest's disk.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use imago::FormatAccess;
use imago::file::File;
use imago::qcow2::Qcow2;
use imago::raw::Raw;

/// Most images in a chain; one that names itself has no end.
const MAX_IMAGES: usize = 16;

/// Why an image is not opened although it can be read.
#[derive(Debug, thiserror::Error)]
enum ChainError {
    #[error("its data is in another file, which is not supported")]
    DataFile,
    #[error(
        "it names no format of its backing file {0:?}; give it one: qemu-img rebase -u -F FORMAT -b FILE"
    )]
    NoFormat(String),
    #[error("the format {format:?} of its backing file {name:?} is neither raw nor qcow2")]
    Format { name: String, format: String },
    #[error(
        "its backing file {name:?} is not a file in {directory:?}, beside the image, and so is refused"
    )]
    Elsewhere { name: String, directory: PathBuf },
    #[error("its chain of backing files has more than {MAX_IMAGES} images")]
    TooLong,
}

impl From<ChainError> for io::Error {
    fn from(error: ChainError) -> Self {
        Self::other(error)
    }
}

/// Opens the image at `path`, and what it is based on for reading.
///
/// # Errors
/// The storage's, the format's, or that of a name which does not count.
pub(super) fn open(path: &Path, write: bool) -> io::Result<Qcow2<File>> {
    open_image(path, write, MAX_IMAGES)
}

/// As [`open`], with at most `left` images.
fn open_image(path: &Path, write: bool, left: usize) -> io::Result<Qcow2<File>> {
    let left = left.checked_sub(1).ok_or(ChainError::TooLong)?;
    let mut image = Qcow2::<File>::open_path(path, write)?;
    if image.requires_external_data_file() {
        return Err(ChainError::DataFile.into());
    }
    image.set_data_file(None);
    let Some(name) = image.implicit_backing_file().cloned() else {
        image.set_backing(None);
        return Ok(image);
    };
    let format = image.implicit_backing_format().cloned();
    image.set_backing(Some(open_backing(path, name, format, left)?));
    Ok(image)
}

fn open_backing(
    image: &Path,
    name: String,
    format: Option<String>,
    left: usize,
) -> io::Result<FormatAccess<File>> {
    let path = beside(image, &name)?;
    match format.as_deref() {
        Some("qcow2") => Ok(FormatAccess::new(open_image(&path, false, left)?)),
        Some("raw") => Ok(FormatAccess::new(Raw::<File>::open_path(&path, false)?)),
        Some(format) => Err(ChainError::Format { name, format: format.to_owned() }.into()),
        None => Err(ChainError::NoFormat(name).into()),
    }
}

/// The file `name` as `image` names it, if it is one in the image's own directory.
fn beside(image: &Path, name: &str) -> io::Result<PathBuf> {
    let image = image.canonicalize()?;
    let directory = image.parent().unwrap_or(Path::new("/"));
    let named = directory.join(name).canonicalize();
    // What is elsewhere is not even looked at: its absence would tell something too.
    let found = named.ok().filter(|path| path.parent() == Some(directory));
    let found = found.filter(|path| fs::metadata(path).is_ok_and(|found| found.is_file()));
    let elsewhere =
        || ChainError::Elsewhere { name: name.to_owned(), directory: directory.to_owned() };
    Ok(found.ok_or_else(elsewhere)?)
}
