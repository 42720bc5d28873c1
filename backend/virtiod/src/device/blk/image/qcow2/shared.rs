//! What the threads of a disk share of a qcow2 image.
//!
//! One thread changes the image's tables: the disk's worker. Others transfer data that lies where
//! no table has to change for it. They ask the library only for places that nobody looked up
//! before, and hold none of its locks while they wait for storage, except to read compressed data.
//! So neither a request that allocates clusters nor one whose storage hangs holds theirs up.

use std::fmt;
use std::fs;
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

use imago::file::File;
use imago::{FormatAccess, Mapping};

use super::cluster_map::{ClusterMap, Piece, Stored};
use crate::device::blk::claim::Durability;
use crate::device::blk::disk_file::DiskFile;
use crate::device::blk::image::{InPlace, Located};
use crate::device::blk::target::AccessMode;
use crate::device::{Gather, WriteMode};

/// Maximum number of clusters beyond a request whose places are looked up with it.
const LOOK_AHEAD: u64 = 1024;
/// Number of bytes that are read at once to have them in the page cache.
const WARM_BYTES: u64 = 16 << 10;

/// A file with data of an image.
pub(super) trait DataFile: fmt::Debug + Send + Sync {
    /// Reads into the buffer from `offset` on, with zeros behind the end of the file.
    fn read(&self, into: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes the buffer from `offset` on.
    fn write(&self, from: &mut [u8], offset: u64, mode: WriteMode) -> io::Result<()>;

    /// Number of bytes of the file.
    fn bytes(&self) -> io::Result<u64>;
}

impl DataFile for fs::File {
    fn read(&self, mut into: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !into.is_empty() {
            match self.read_at(into, offset) {
                Ok(0) => {
                    into.fill(0);
                    return Ok(());
                }
                Ok(count) => {
                    into = into.get_mut(count..).unwrap_or(&mut []);
                    offset += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn write(&self, from: &mut [u8], offset: u64, mode: WriteMode) -> io::Result<()> {
        let from = Gather::of(from);
        match from.write(self.as_fd(), offset, mode) {
            // The file system cannot write through.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                from.write(self.as_fd(), offset, WriteMode::Back)?;
                self.sync_data()
            }
            outcome => outcome,
        }
    }

    fn bytes(&self) -> io::Result<u64> {
        // The position is not used: all transfers have an offset.
        let mut file = self;
        file.seek(SeekFrom::End(0))
    }
}

/// A file of an image's chain.
#[derive(Debug)]
struct ImageFile {
    data: Arc<dyn DataFile>,
    /// The same file, for transfers by the device.
    disk: Option<Arc<DiskFile>>,
    /// Number of bytes that it had at the last look: images only grow. Relaxed: a smaller number
    /// only leaves a transfer to others.
    bytes: AtomicU64,
}

impl ImageFile {
    fn new(file: Arc<fs::File>, durability: &Arc<Durability>) -> Self {
        // The size does not matter: no transfer goes beyond `bytes`.
        let disk = DiskFile::new(&file, None, u64::MAX, durability).ok().map(Arc::new);
        Self { data: file, disk, bytes: AtomicU64::new(0) }
    }

    fn look_at_size(&self) -> io::Result<u64> {
        let bytes = self.data.bytes()?;
        self.bytes.store(bytes, Ordering::Relaxed);
        Ok(bytes)
    }
}

/// An image, and what is known of its clusters.
#[derive(Debug)]
pub(super) struct SharedImage {
    image: RwLock<FormatAccess<File>>,
    /// The files of its chain, in the library's order.
    files: Vec<ImageFile>,
    cluster_size: u64,
    map: Mutex<ClusterMap>,
    /// Signalled when a transfer has ended.
    ended: Condvar,
    /// Whether the image was found sound, so that it may be written.
    is_sound: AtomicBool,
}

/// A transfer in progress.
struct User<'s> {
    shared: &'s SharedImage,
    number: u64,
}

impl Drop for User<'_> {
    fn drop(&mut self) {
        self.shared.leave(self.number);
    }
}

/// A change of a range that no transfer uses.
struct Change<'s> {
    shared: &'s SharedImage,
    range: Range<u64>,
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        self.shared.map().end_change(&self.range);
    }
}

impl SharedImage {
    pub(super) fn new(
        image: FormatAccess<File>,
        files: Vec<Arc<fs::File>>,
        durability: &Arc<Durability>,
        cluster_size: u64,
    ) -> Self {
        let files = files.into_iter().map(|file| ImageFile::new(file, durability));
        Self {
            image: RwLock::new(image),
            files: files.collect(),
            cluster_size,
            map: Mutex::default(),
            ended: Condvar::new(),
            is_sound: AtomicBool::new(false),
        }
    }

    /// Replaces the file of the last image.
    #[cfg(test)]
    pub(super) fn replace_file(&mut self, file: Arc<dyn DataFile>) {
        self.files.pop();
        self.files.push(ImageFile { data: file, disk: None, bytes: AtomicU64::new(0) });
    }

    /// Waits until a change has begun.
    #[cfg(test)]
    pub(super) fn wait_for_change(&self, limit: std::time::Duration) {
        let end = std::time::Instant::now() + limit;
        while !self.map().is_changing() {
            assert!(std::time::Instant::now() < end, "waited {limit:?} for a change");
            std::thread::yield_now();
        }
    }

    /// The image. A poisoned lock is that of a thread which has ended, and the worker with it.
    pub(super) fn image(&self) -> RwLockReadGuard<'_, FormatAccess<File>> {
        self.image.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn image_mut(&self) -> RwLockWriteGuard<'_, FormatAccess<File>> {
        self.image.write().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn map(&self) -> MutexGuard<'_, ClusterMap> {
        self.map.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Notes that the image may be written.
    pub(super) fn note_sound(&self) {
        self.is_sound.store(true, Ordering::Release);
    }

    /// Number of bytes of the disk that a level 2 table maps.
    pub(super) fn table_bytes(&self) -> u64 {
        self.cluster_size / 8 * self.cluster_size
    }

    /// The range, widened to whole clusters.
    fn whole_clusters(&self, range: &Range<u64>) -> Range<u64> {
        let start = range.start - range.start % self.cluster_size;
        start..range.end.next_multiple_of(self.cluster_size)
    }

    /// Has `write` store data that may need clusters. Only the worker does.
    pub(super) fn allocate<T>(
        &self,
        range: &Range<u64>,
        write: impl FnOnce(&FormatAccess<File>) -> io::Result<T>,
    ) -> io::Result<T> {
        let range = self.whole_clusters(range);
        self.map().note_unwritten(&range);
        let outcome = write(&self.image());
        self.map().forget(&range);
        outcome
    }

    /// Has `change` give back or mark the clusters of a range, after all transfers there have
    /// ended: the library may use the storage for something else at once. Only the worker does.
    pub(super) fn change<T>(
        &self,
        range: &Range<u64>,
        change: impl FnOnce(&mut FormatAccess<File>) -> io::Result<T>,
    ) -> io::Result<T> {
        let range = self.whole_clusters(range);
        let mut map = self.map();
        map.note_unwritten(&range);
        map.begin_change(&range);
        let _changing = Change { shared: self, range: range.clone() };
        while map.is_used(&range) {
            map = self.ended.wait(map).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        drop(map);
        change(&mut self.image_mut())
    }

    /// Writes all cached metadata to the file. Only the worker does.
    pub(super) fn write_back(&self) -> io::Result<()> {
        self.image().flush()?;
        self.map().note_written();
        Ok(())
    }

    /// Begins a transfer; `None` while the worker changes its range, and serves it afterwards.
    fn enter(&self, range: &Range<u64>) -> Option<User<'_>> {
        let number = self.map().enter(range)?;
        Some(User { shared: self, number })
    }

    /// The places of a range; `None` if a part has none, because its data is compressed.
    fn places(&self, range: &Range<u64>) -> io::Result<Option<Vec<Piece>>> {
        if let Some(known) = self.map().places(range.clone()) {
            return Ok(Some(known));
        }
        let mut pieces = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let changes = self.map().changes();
            let Some(found) = self.look_up(at)? else { return Ok(None) };
            let mut map = self.map();
            for piece in found {
                map.learn(&piece, changes);
                if piece.range.start < range.end {
                    at = piece.range.end;
                    pieces.push(Piece {
                        range: piece.range.start..piece.range.end.min(range.end),
                        ..piece
                    });
                }
            }
        }
        Ok(Some(pieces))
    }

    /// Has the library look up the place of a byte, and of what follows it there.
    fn look_up(&self, at: u64) -> io::Result<Option<Vec<Piece>>> {
        let table_end = (at + 1).next_multiple_of(self.table_bytes());
        let most = (table_end - at).min(LOOK_AHEAD * self.cluster_size);
        let image = self.image();
        let (mapping, count) = image.get_mapping(at, most)?;
        let range = at..at + count;
        match mapping {
            Mapping::Raw { storage, offset, writable, .. } if count > 0 => {
                let mut files = image.inner().collect_storage_dependencies().into_iter();
                let file = files.position(|file| std::ptr::eq(file, storage));
                let file = file.ok_or_else(unknown_file)?;
                self.pieces_in_file(range, Stored::File { file, offset, writable }).map(Some)
            }
            Mapping::Zero { .. } if count > 0 => {
                Ok(Some(vec![Piece { range, place: Stored::Zeros }]))
            }
            _ => Ok(None),
        }
    }

    /// Divides what lies in a file at the file's end: the library has to know how the file grows.
    fn pieces_in_file(&self, range: Range<u64>, place: Stored) -> io::Result<Vec<Piece>> {
        let Stored::File { file, offset, .. } = place else {
            return Ok(vec![Piece { range, place }]);
        };
        let length = self.file(file)?.look_at_size()?;
        let inside = length.saturating_sub(offset).min(range.end - range.start);
        let behind = Stored::File { file, offset: offset + inside, writable: false };
        let middle = range.start + inside;
        let pieces = [
            Piece { range: range.start..middle, place },
            Piece { range: middle..range.end, place: behind },
        ];
        Ok(pieces.into_iter().filter(|piece| !piece.range.is_empty()).collect())
    }

    fn file(&self, number: usize) -> io::Result<&ImageFile> {
        self.files.get(number).ok_or_else(unknown_file)
    }

    /// Reads what an allocation will copy: the rest of the clusters at both ends of a write. The
    /// worker finds it in the page cache then.
    fn warm(&self, range: &Range<u64>) {
        let whole = self.whole_clusters(range);
        let size = self.image().size();
        for rest in [whole.start..range.start, range.end..whole.end.min(size)] {
            let mut bytes = [0; WARM_BYTES as usize];
            for start in rest.clone().step_by(WARM_BYTES as usize) {
                let end = rest.end.min(start + WARM_BYTES);
                let bytes = bytes.get_mut(..(end - start) as usize).unwrap_or(&mut []);
                // The worker reports errors.
                let _ = self.read_pieces(&(start..end), bytes);
            }
        }
    }

    /// Reads a range, unless a part of it is compressed; returns whether it did.
    fn read_pieces(&self, range: &Range<u64>, into: &mut [u8]) -> io::Result<bool> {
        let Some(pieces) = self.places(range)? else { return Ok(false) };
        let mut rest = into;
        for Piece { range, place } in pieces {
            let part = (range.end - range.start) as usize;
            let (part, behind) = rest.split_at_mut_checked(part).ok_or_else(super::short_buffer)?;
            match place {
                Stored::Zeros => part.fill(0),
                Stored::File { file, offset, .. } => self.file(file)?.data.read(part, offset)?,
            }
            rest = behind;
        }
        Ok(true)
    }
}

impl InPlace for SharedImage {
    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<bool> {
        let range = offset..offset + into.len() as u64;
        let Some(_user) = self.enter(&range) else { return Ok(false) };
        if !self.read_pieces(&range, into)? {
            self.image().read(into, offset)?;
        }
        Ok(true)
    }

    fn write(&self, offset: u64, from: &mut [u8], mode: WriteMode) -> io::Result<bool> {
        if !self.is_sound.load(Ordering::Acquire) {
            return Ok(false);
        }
        let range = offset..offset + from.len() as u64;
        let Some(_user) = self.enter(&range) else { return Ok(false) };
        let places = self
            .places(&range)?
            .filter(|pieces| pieces.iter().all(|piece| piece.place.is_writable()));
        let Some(pieces) = places else {
            self.warm(&range);
            return Ok(false);
        };
        // Checked after the look-up, since the library shows a new cluster before its entry is in
        // the file.
        if self.map().is_unwritten(&range) {
            return Ok(false);
        }
        let mut rest = from;
        for Piece { range, place } in pieces {
            let part = (range.end - range.start) as usize;
            let (part, behind) = rest.split_at_mut_checked(part).ok_or_else(super::short_buffer)?;
            if let Stored::File { file, offset, .. } = place {
                self.file(file)?.data.write(part, offset, mode)?;
            }
            rest = behind;
        }
        Ok(true)
    }

    fn locate(self: Arc<Self>, range: Range<u64>, access: AccessMode) -> Option<Located> {
        let writes = access == AccessMode::ReadWrite;
        if writes && !self.is_sound.load(Ordering::Acquire) {
            return None;
        }
        let mut map = self.map();
        let Stored::File { file, offset, writable } = map.place(&range)? else { return None };
        if writes && (!writable || map.is_unwritten(&range)) {
            return None;
        }
        let file = self.files.get(file)?;
        let end = offset.checked_add(range.end - range.start)?;
        let disk = file.disk.clone().filter(|_| end <= file.bytes.load(Ordering::Relaxed))?;
        let user = map.enter(&range)?;
        drop(map);
        Some(Located::new(disk, offset, self, user))
    }

    fn leave(&self, user: u64) {
        self.map().leave(user);
        self.ended.notify_all();
    }
}

fn unknown_file() -> io::Error {
    io::Error::other("internal error: data is in an unknown file of the image; please report it")
}
