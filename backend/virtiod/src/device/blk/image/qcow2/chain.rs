//! A qcow2 image and the backing files that it names, and those name.
//!
//! Whoever made an image chose these names, and that need not be whoever gave it to a guest: one
//! from elsewhere could name any file of this domain, and its guest would read it. So a name counts
//! only if it is that of a file beside the image. Nor is a backing file's format guessed: a raw one
//! may have been a guest's disk.

use std::fmt;
use std::fs;
use std::io::{self, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use imago::FormatAccess;
use imago::file::File;
use imago::qcow2::Qcow2;
use imago::raw::Raw;

use super::header::{Backing, HeaderError, Qcow2Header};
use super::memory;
use crate::device::blk::claim::FileId;
use crate::device::blk::files::DiskFiles;
use crate::device::blk::target::AccessMode;

/// Most images in a chain.
const MAX_IMAGES: usize = 16;

/// Why an image is not opened although it can be read.
#[derive(Debug, thiserror::Error)]
enum ChainError {
    #[error(
        "it names no format of its backing file {name:?}; give it one: qemu-img rebase -u -F \
         FORMAT -b {name:?} {image:?}"
    )]
    NoFormat { name: String, image: PathBuf },
    #[error(
        "the format {format:?} of its backing file {name:?} is neither raw nor qcow2; make one \
         image of both: qemu-img convert -O qcow2 {image:?} NEW"
    )]
    ImageFormat { name: String, format: String, image: PathBuf },
    #[error(
        "its backing file {name:?} is not a file in {directory:?}, beside the image, and so is \
         refused"
    )]
    Elsewhere { name: String, directory: PathBuf },
    #[error("its chain of backing files comes back to {0:?}")]
    Circle(PathBuf),
    #[error("its chain of backing files has more than {MAX_IMAGES} images")]
    TooLong,
    #[error(
        "it and its backing files would take {needed} MiB of this domain's memory for tables, more \
         than {most} MiB; make one image with smaller clusters of them: qemu-img convert -O qcow2 -o \
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

/// A refusal, with the image's name where it says FILE: for commands that can be copied.
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
/// The storage's, or why the image is not served.
pub(super) fn header(file: &fs::File, path: &Path) -> io::Result<Qcow2Header> {
    Qcow2Header::read(file).map_err(|error| match error {
        HeaderError::Read(error) => error,
        error => io::Error::other(Refused { path: path.to_owned(), error }),
    })
}

/// The files of a chain, as far as it was followed.
pub(super) struct Chain<'f> {
    files: &'f mut DiskFiles,
    /// The image that the chain begins with.
    target: PathBuf,
    seen: Vec<FileId>,
    /// Bytes that the library may take for the images.
    memory: u64,
}

impl<'f> Chain<'f> {
    /// The chain of a target that was claimed.
    pub(super) fn new(files: &'f mut DiskFiles, target: &Path) -> Self {
        let seen = vec![files.target().id()];
        Self { files, target: target.to_owned(), seen, memory: 0 }
    }

    /// Opens the image in `file`, whose header was read, and what it is based on for reading.
    ///
    /// # Errors
    /// The storage's, the format's, or that of a name which does not count.
    pub(super) fn open(
        &mut self,
        file: &fs::File,
        path: &Path,
        header: &Qcow2Header,
        mode: AccessMode,
    ) -> io::Result<Qcow2<File>> {
        self.add_memory(file, header, mode)?;
        // The backing file first: to open an image for writing may change it.
        let backing = match &header.backing {
            Some(backing) => Some(self.open_backing(path, backing)?),
            None => None,
        };
        let write = mode == AccessMode::ReadWrite;
        let mut image = Qcow2::<File>::open_image(File::try_from(file.try_clone()?)?, write)?;
        image.set_data_file(None);
        image.set_backing(backing);
        Ok(image)
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
        let path = beside(&image, &name)?;
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

    /// Notes that the chain leads to a file.
    fn follow(&mut self, path: &Path) -> io::Result<()> {
        let id = FileId::of(path).map_err(io::Error::other)?;
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
