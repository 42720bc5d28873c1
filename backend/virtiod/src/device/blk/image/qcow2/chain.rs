//! The chain of a qcow2 image and its backing files.
//!
//! The maker of an image chose the names of backing files, and may not be the one who assigned it
//! to a guest: an image from elsewhere could name any file of this domain, and its guest would read
//! that file. So a name is accepted only if it is that of a file in the image's own directory. The
//! format of a backing file is not guessed either: a raw one may have been a guest's disk.

use std::fmt;
use std::fs;
use std::io::{self, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use imago::FormatAccess;
use imago::file::File;
use imago::qcow2::Qcow2;
use imago::raw::Raw;

use super::header::{Backing, HeaderError, Qcow2Header};
use super::memory;
use crate::device::blk::ImageFormat;
use crate::device::blk::claim::FileId;
use crate::device::blk::files::DiskFiles;
use crate::device::blk::target::AccessMode;

/// Maximum number of images in a chain.
const MAX_IMAGES: usize = 16;

/// The reason for which a readable image is refused.
#[derive(Debug, thiserror::Error)]
enum ChainError {
    #[error(
        "it names no format for its backing file {name:?}; set one: qemu-img rebase -u -F \
         FORMAT -b {name:?} {image:?}"
    )]
    NoFormat { name: String, image: PathBuf },
    #[error(
        "the format {format:?} of its backing file {name:?} is neither raw nor qcow2; merge \
         both: qemu-img convert -O qcow2 {image:?} NEW"
    )]
    ImageFormat { name: String, format: String, image: PathBuf },
    #[error(
        "its backing file {name:?} is not a file in {directory:?}, beside the image, and so is \
         refused; if the image may use it, move it there"
    )]
    Elsewhere { name: String, directory: PathBuf },
    #[error("its chain of backing files comes back to {0:?}")]
    Circle(PathBuf),
    #[error("its chain of backing files has more than {MAX_IMAGES} images")]
    TooLong,
    #[error(
        "it and its backing files need {needed} MiB of this domain's memory for tables, more than \
         {most} MiB; merge them into one image with smaller clusters: qemu-img convert -O qcow2 -o \
         cluster_size=64k {image:?} NEW",
        needed = .needed >> 20,
        most = memory::MOST >> 20
    )]
    Memory { needed: u64, image: PathBuf },
    #[error("its backing file {path:?}")]
    Backing { path: PathBuf, source: io::Error },
}

impl From<ChainError> for io::Error {
    fn from(error: ChainError) -> Self {
        Self::other(error)
    }
}

/// A refusal whose text has the image's path instead of FILE, so that commands can be copied.
#[derive(Debug)]
struct Refused {
    path: PathBuf,
    error: HeaderError,
}

impl std::error::Error for Refused {}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = format!("{:?}", self.path);
        f.write_str(&self.error.to_string().replace("FILE", &path))
    }
}

/// Reads the header of the image at `path`.
///
/// # Errors
/// The error of the storage, or the reason for which the image is refused.
pub(super) fn header(file: &fs::File, path: &Path) -> io::Result<Qcow2Header> {
    Qcow2Header::read(file).map_err(|error| match error {
        HeaderError::Read(error) => error,
        error => io::Error::other(Refused { path: path.to_owned(), error }),
    })
}

/// The path of an image's backing file, and its format, by the image's header; `None` if it has
/// none. A format that is unknown, and refused, counts as raw.
///
/// # Errors
/// The error of the storage, or the reason for which the image is refused.
pub fn backing_of(file: &fs::File, path: &Path) -> io::Result<Option<(PathBuf, ImageFormat)>> {
    let Some(Backing { name, format }) = header(file, path)?.backing else { return Ok(None) };
    let format = match format.as_deref() {
        Some("qcow2") => ImageFormat::Qcow2,
        _ => ImageFormat::Raw,
    };
    Ok(Some((beside(path, &name)?, format)))
}

/// The files of a chain that were opened so far.
pub(super) struct Chain<'f> {
    files: &'f mut DiskFiles,
    /// The first image of the chain.
    target: PathBuf,
    seen: Vec<FileId>,
    /// Number of bytes of memory that the library may allocate for the images.
    memory: u64,
    /// The files with data, each behind its backing files, as the library lists them.
    data: Vec<Arc<fs::File>>,
}

impl<'f> Chain<'f> {
    /// A chain that begins with a claimed target.
    pub(super) fn new(files: &'f mut DiskFiles, target: &Path) -> Self {
        let seen = vec![files.target().id()];
        Self { files, target: target.to_owned(), seen, memory: 0, data: Vec::new() }
    }

    /// Opens the image in `file`, whose header was read, and its backing files for reading.
    ///
    /// # Errors
    /// The error of the storage, or the reason for which the image or a backing file is refused.
    pub(super) fn open(
        &mut self,
        file: &fs::File,
        path: &Path,
        header: &Qcow2Header,
        mode: AccessMode,
    ) -> io::Result<Qcow2<File>> {
        self.add_memory(file, header, mode)?;
        // The backing file first, since opening an image for writing may change the image.
        let backing = match &header.backing {
            Some(backing) => Some(self.open_backing(path, backing)?),
            None => None,
        };
        self.data.push(Arc::new(file.try_clone()?));
        let write = mode == AccessMode::ReadWrite;
        let mut image = Qcow2::<File>::open_image(File::try_from(file.try_clone()?)?, write)?;
        image.set_data_file(None);
        image.set_backing(backing);
        Ok(image)
    }

    /// The files with data of all images that were opened.
    pub(super) fn into_data_files(self) -> Vec<Arc<fs::File>> {
        self.data
    }

    fn add_memory(
        &mut self,
        mut file: &fs::File,
        header: &Qcow2Header,
        mode: AccessMode,
    ) -> io::Result<()> {
        let length = file.seek(SeekFrom::End(0))?;
        self.memory += memory::of_image(header, length, mode);
        if self.memory > memory::MOST {
            let (needed, image) = (self.memory, self.target.clone());
            return Err(ChainError::Memory { needed, image }.into());
        }
        Ok(())
    }

    fn open_backing(&mut self, image: &Path, backing: &Backing) -> io::Result<FormatAccess<File>> {
        let Backing { name, format } = backing;
        let (name, image) = (name.clone(), image.to_owned());
        let format = match format.as_deref() {
            None => return Err(ChainError::NoFormat { name, image }.into()),
            Some("raw") => BackingFormat::Raw,
            Some("qcow2") => BackingFormat::Qcow2,
            Some(format) => {
                return Err(
                    ChainError::ImageFormat { name, format: format.to_owned(), image }.into()
                );
            }
        };
        let path = self.files.find_backing(&image, &name)?;
        self.follow(&path)?;
        let opened = self.open_format(&path, format);
        opened.map_err(|source| ChainError::Backing { path, source }.into())
    }

    fn open_format(
        &mut self,
        path: &Path,
        format: BackingFormat,
    ) -> io::Result<FormatAccess<File>> {
        let file = self.files.open_backing(path).map_err(io::Error::other)?;
        match format {
            BackingFormat::Raw => {
                self.data.push(Arc::new(file.try_clone()?));
                let file = File::try_from(file.try_clone()?)?;
                Ok(FormatAccess::new(Raw::<File>::open_image(file, false)?))
            }
            BackingFormat::Qcow2 => {
                let header = header(&file, path)?;
                let image = self.open(&file, path, &header, AccessMode::ReadOnly)?;
                Ok(FormatAccess::new(image))
            }
        }
    }

    /// Adds a file to the chain.
    fn follow(&mut self, path: &Path) -> io::Result<()> {
        let id = self.files.identify(path).map_err(io::Error::other)?;
        if self.seen.contains(&id) {
            return Err(ChainError::Circle(path.to_owned()).into());
        }
        if self.seen.len() == MAX_IMAGES {
            return Err(ChainError::TooLong.into());
        }
        self.seen.push(id);
        Ok(())
    }
}

/// Formats of backing files.
#[derive(Clone, Copy)]
enum BackingFormat {
    Raw,
    Qcow2,
}

/// The path of the file that `image` names `name`, if it is in the image's own directory.
///
/// # Errors
/// [`ChainError::Elsewhere`], or the error of the storage.
pub fn beside(image: &Path, name: &str) -> io::Result<PathBuf> {
    let image = image.canonicalize()?;
    let directory = image.parent().unwrap_or(Path::new("/"));
    let named = directory.join(name).canonicalize();
    // A file elsewhere is not examined: to report its absence would reveal something too.
    let found = named.ok().filter(|path| path.parent() == Some(directory));
    let found = found.filter(|path| fs::metadata(path).is_ok_and(|found| found.is_file()));
    found.ok_or_else(|| no_backing(&image, name))
}

/// The error of an image that names a file outside its directory, or none.
pub fn no_backing(image: &Path, name: &str) -> io::Error {
    let directory = image.parent().unwrap_or(Path::new("/")).to_owned();
    ChainError::Elsewhere { name: name.to_owned(), directory }.into()
}
