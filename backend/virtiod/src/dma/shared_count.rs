//! Pages that all processes of the daemon have mapped together: a table in memory that they share.
//!
//! Each process has a slot, and only it writes there, so that nothing of a process that dies stays
//! counted: the supervisor clears the slot. A process that writes elsewhere can keep others from
//! mapping; that it could also by mapping itself, since Xen limits domains and not processes.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

/// Number of slots: the most guests that have devices at a time.
const SLOTS: usize = 1024;
/// Size of a slot in bytes.
const SLOT_BYTES: usize = size_of::<AtomicU32>();
/// Size of the table in bytes: whole pages.
const BYTES: usize = SLOTS * SLOT_BYTES;
/// Nobody changes the size of the table: who reads beyond its end would die.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

/// The supervisor's side of the table.
#[derive(Clone, Debug)]
pub struct CountTable(Arc<Table>);

#[derive(Debug)]
struct Table {
    file: File,
    taken: Mutex<Vec<bool>>,
}

/// A slot of a process, free again when this is dropped.
#[derive(Debug)]
pub struct CountSlot {
    table: CountTable,
    index: usize,
}

impl CountTable {
    /// A table without counts.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new() -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(memfd_create("xen-virtiod-pages", flags)?);
        file.set_len(BYTES as u64)?;
        fcntl_add_seals(&file, SEALS)?;
        Ok(Self(Arc::new(Table { file, taken: Mutex::new(vec![false; SLOTS]) })))
    }

    fn taken(&self) -> MutexGuard<'_, Vec<bool>> {
        self.0.taken.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Takes a slot for a process.
    ///
    /// # Errors
    /// All are taken, or the kernel refuses to clear it.
    pub fn take_slot(&self) -> io::Result<CountSlot> {
        let mut taken = self.taken();
        let free = taken.iter_mut().enumerate().find(|(_, is_taken)| !**is_taken);
        let (index, is_taken) = free.ok_or(io::ErrorKind::QuotaExceeded)?;
        self.clear(index)?;
        *is_taken = true;
        Ok(CountSlot { table: self.clone(), index })
    }

    fn clear(&self, index: usize) -> io::Result<()> {
        self.0.file.write_all_at(&[0; SLOT_BYTES], (index * SLOT_BYTES) as u64)
    }
}

impl CountSlot {
    /// The slot's number.
    pub fn index(&self) -> usize {
        self.index
    }
}

impl CountSlot {
    /// The table, opened once more for the process: the flags of an open file, such as `O_APPEND`,
    /// belong to all copies of its descriptor.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open_table(&self) -> io::Result<File> {
        let path = format!("/proc/self/fd/{}", self.table.0.file.as_raw_fd());
        File::options().read(true).write(true).open(path)
    }
}

impl Drop for CountSlot {
    fn drop(&mut self) {
        if let Err(error) = self.table.clear(self.index) {
            tracing::warn!(%error, "pages of a process that is gone stay counted");
        }
        let mut taken = self.table.taken();
        if let Some(is_taken) = taken.get_mut(self.index) {
            *is_taken = false;
        }
        // What the process wrote where it should not is gone with it.
        for (index, _) in taken.iter().enumerate().filter(|(_, is_taken)| !**is_taken) {
            if self.table.clear(index).is_err() {
                return;
            }
        }
    }
}

/// A process's side of the table.
#[derive(Debug)]
pub struct SharedCount {
    table: MmapRegion,
    own: usize,
}

impl SharedCount {
    /// The count of the process with the slot `own` in a table that the supervisor sent.
    ///
    /// # Errors
    /// The file is no such table, or cannot be mapped.
    pub fn open(table: OwnedFd, own: usize) -> io::Result<Self> {
        let is_sealed = fcntl_get_seals(&table)?.contains(SEALS);
        let file = File::from(table);
        if !is_sealed || file.metadata()?.len() != BYTES as u64 || own >= SLOTS {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let table = MmapRegion::from_file(FileOffset::new(file, 0), BYTES);
        Ok(Self { table: table.map_err(io::Error::other)?, own })
    }

    /// Takes `count` units if all processes have at most `most` then.
    ///
    /// # Errors
    /// The units in use. Of processes that take at the same time, several may be refused.
    pub(super) fn take(&self, count: u32, most: u32) -> Result<(), u32> {
        let own = self.slot(self.own);
        own.fetch_add(count, Ordering::Relaxed);
        let used = (0..SLOTS).map(|slot| self.slot(slot).load(Ordering::Relaxed));
        let used = used.fold(0, u32::saturating_add);
        if used > most {
            own.fetch_sub(count, Ordering::Relaxed);
            return Err(used.saturating_sub(count));
        }
        Ok(())
    }

    pub(super) fn give_back(&self, count: u32) {
        // Another process may have written there, though it should not.
        let less = |used: u32| Some(used.saturating_sub(count));
        let _ = self.slot(self.own).fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// A slot. Its value is all that others use, so its orderings are relaxed.
    fn slot(&self, index: usize) -> &AtomicU32 {
        static NONE: AtomicU32 = AtomicU32::new(0);
        // The table has all of them, aligned to their size.
        self.table.get_atomic_ref(index * SLOT_BYTES).unwrap_or(&NONE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(slot: &CountSlot) -> SharedCount {
        SharedCount::open(slot.open_table().unwrap().into(), slot.index()).unwrap()
    }

    #[test]
    fn processes_share_a_limit_and_a_dead_one_has_nothing() {
        let table = CountTable::new().unwrap();
        let (one, other) = (table.take_slot().unwrap(), table.take_slot().unwrap());
        let (first, second) = (open(&one), open(&other));
        assert_eq!(first.take(60, 100), Ok(()));
        assert_eq!(second.take(41, 100), Err(60));
        assert_eq!(second.take(40, 100), Ok(()));
        assert_eq!(first.take(1, 100), Err(100));
        first.give_back(10);
        assert_eq!(second.take(10, 100), Ok(()));
        // The second process dies.
        drop(other);
        assert_eq!(first.take(50, 100), Ok(()));
        let next = table.take_slot().unwrap();
        assert_eq!((next.index(), open(&next).take(1, 100)), (1, Err(100)));
    }

    #[test]
    fn table_that_could_shrink_is_refused() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(BYTES as u64).unwrap();
        assert!(SharedCount::open(file.into(), 0).is_err());
        let slot = CountTable::new().unwrap().take_slot().unwrap();
        let table = || OwnedFd::from(slot.open_table().unwrap());
        assert!(SharedCount::open(table(), SLOTS).is_err());
        assert!(File::from(table()).set_len(0).is_err());
    }
}
