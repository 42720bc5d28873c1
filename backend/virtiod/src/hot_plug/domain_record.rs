//! libxl's record of a domain: a file of JSON, from which it makes the domain again at a reboot, a
//! save or a migration.
//!
//! libxl protects the file by a lock: another file, which exists while it is locked.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use serde_json::Value;

use super::device::{DeviceId, is_entry_of};
use super::guest::Guest;

/// The directory of libxl's records.
pub const RECORDS: &str = "/var/lib/xen";
/// Maximum time for which the lock is awaited, and the interval of the tries.
const LOCK_LIMIT: Duration = Duration::from_secs(10);
const LOCK_LOOK: Duration = Duration::from_millis(20);
/// Maximum number of bytes of a record; one has some KiB.
const MOST_BYTES: u64 = 4 << 20;

/// A record that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DomainRecordError {
    /// libxl is making the domain.
    #[error("xl is still creating or restoring the domain: try again when it has ended")]
    NotReady,
    /// The lock stays taken.
    #[error("{0:?} is locked for 10 s: is an xl command for this domain under way? Try again")]
    Locked(PathBuf),
    /// A file operation failed.
    #[error("cannot {operation} {path:?}")]
    File {
        /// What failed.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// It is not as libxl writes it.
    #[error("{0:?} is no record of libxl's: {1}; restart the guest with xl, which writes it anew")]
    Content(PathBuf, String),
}

/// A record, locked.
#[derive(Debug)]
pub struct DomainRecord {
    path: PathBuf,
    lock_path: PathBuf,
    _lock: Flock<File>,
    /// `None`: there is no record to keep.
    content: Option<Value>,
}

impl DomainRecord {
    /// Locks and reads the record of a domain, in the directory of records. A domain that another
    /// toolstack made has none.
    ///
    /// # Errors
    /// [`DomainRecordError`].
    pub fn open(records: &Path, guest: &Guest) -> Result<Self, DomainRecordError> {
        let file = |kind: char, name: &str| {
            records.join(format!("userdata-{kind}.{}.{}.{name}", guest.id.0, guest.uuid))
        };
        let (path, lock_path) = (file('d', "libxl-json"), file('l', "domain-userdata-lock"));
        let lock = lock(&lock_path)?;
        let content = match read(&path) {
            // libxl writes the record when it has made the domain.
            Err(DomainRecordError::File { source, .. })
                if source.kind() == io::ErrorKind::NotFound =>
            {
                match guest.by_libxl {
                    true => Err(DomainRecordError::NotReady),
                    false => Ok(None),
                }
            }
            content => content.map(Some),
        };
        if content.is_err() {
            let _ = fs::remove_file(&lock_path);
        }
        Ok(Self { content: content?, path, lock_path, _lock: lock })
    }

    /// Whether the record has the device.
    pub fn has(&self, device: DeviceId) -> bool {
        let list = self.content.as_ref().and_then(|content| content.get(device.class.list()));
        let list = list.and_then(Value::as_array);
        list.is_some_and(|list| list.iter().any(|entry| is_entry_of(entry, device)))
    }

    /// The name of the domain of a device's backend, if it is not Dom0.
    pub(super) fn backend_of(&self, device: DeviceId) -> Option<&str> {
        let list = self.content.as_ref()?.get(device.class.list())?.as_array()?;
        let entry = list.iter().find(|entry| is_entry_of(entry, device))?;
        entry.get("backend_domname")?.as_str()
    }

    /// Adds a device, in place of one with the same name, and writes the record.
    ///
    /// # Errors
    /// [`DomainRecordError`]; the file is as it was.
    pub fn add(&mut self, device: DeviceId, entry: Value) -> Result<(), DomainRecordError> {
        self.change(device, |list| list.push(entry))
    }

    /// Removes a device, and writes the record.
    ///
    /// # Errors
    /// [`DomainRecordError`]; the file is as it was.
    pub fn remove(&mut self, device: DeviceId) -> Result<(), DomainRecordError> {
        if self.has(device) { self.change(device, |_| ()) } else { Ok(()) }
    }

    /// Gives a disk another target, and writes the record. Its place stays: libxl boots from the
    /// first disk.
    ///
    /// # Errors
    /// [`DomainRecordError`]; the file is as it was.
    pub fn retarget(&mut self, device: DeviceId, target: &str) -> Result<(), DomainRecordError> {
        let Some(mut content) = self.content.clone() else { return Ok(()) };
        let list = content.get_mut(device.class.list()).and_then(Value::as_array_mut);
        let mut entries = list.into_iter().flatten();
        let entry = entries.find(|entry| is_entry_of(entry, device));
        let Some(entry) = entry.and_then(Value::as_object_mut) else { return Ok(()) };
        entry.insert("pdev_path".to_owned(), target.into());
        self.write(&content)?;
        self.content = Some(content);
        Ok(())
    }

    fn change(
        &mut self,
        device: DeviceId,
        change: impl FnOnce(&mut Vec<Value>),
    ) -> Result<(), DomainRecordError> {
        let wrong = |what: &str| DomainRecordError::Content(self.path.clone(), what.to_owned());
        let Some(mut content) = self.content.clone() else { return Ok(()) };
        let object = content.as_object_mut().ok_or_else(|| wrong("it is no object"))?;
        let name = device.class.list();
        let list = object.entry(name).or_insert_with(|| Value::Array(Vec::new()));
        let list = list.as_array_mut().ok_or_else(|| wrong("its devices are no list"))?;
        list.retain(|entry| !is_entry_of(entry, device));
        change(list);
        if list.is_empty() {
            object.remove(name);
        }
        self.write(&content)?;
        self.content = Some(content);
        Ok(())
    }

    /// Replaces the file, as libxl does, with the zero byte that ends its text.
    fn write(&self, content: &Value) -> Result<(), DomainRecordError> {
        let new = self.path.with_extension("libxl-json.new");
        let failed = |operation: &'static str| {
            let path = new.clone();
            move |source| DomainRecordError::File { operation, path, source }
        };
        let mut text = serde_json::to_vec_pretty(content).unwrap_or_default();
        text.extend(b"\n\0");
        let options =
            File::options().write(true).create(true).truncate(true).mode(0o600).open(&new);
        let mut file = options.map_err(failed("create"))?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed("write"))?;
        fs::rename(&new, &self.path).map_err(failed("rename"))
    }
}

impl Drop for DomainRecord {
    /// Unlocks it: the file goes first, so that whoever waited for its lock makes another one.
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.lock_path);
    }
}

fn read(path: &Path) -> Result<Value, DomainRecordError> {
    let failed =
        |source| DomainRecordError::File { operation: "read", path: path.to_owned(), source };
    let wrong = |what: String| DomainRecordError::Content(path.to_owned(), what);
    if fs::metadata(path).map_err(failed)?.len() > MOST_BYTES {
        return Err(wrong("it is too long".to_owned()));
    }
    let bytes = fs::read(path).map_err(failed)?;
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    serde_json::from_slice(text).map_err(|error| wrong(error.to_string()))
}

/// Takes the lock: the lock of the file that has this name once it is locked.
fn lock(path: &Path) -> Result<Flock<File>, DomainRecordError> {
    let end = Instant::now() + LOCK_LIMIT;
    let failed =
        |source| DomainRecordError::File { operation: "lock", path: path.to_owned(), source };
    loop {
        let options = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path);
        match Flock::lock(options.map_err(failed)?, FlockArg::LockExclusiveNonblock) {
            Ok(lock) if is_named(&lock, path) => return Ok(lock),
            Ok(_) | Err((_, nix::Error::EWOULDBLOCK)) => {}
            Err((_, errno)) => return Err(failed(errno.into())),
        }
        if Instant::now() >= end {
            return Err(DomainRecordError::Locked(path.to_owned()));
        }
        thread::sleep(LOCK_LOOK);
    }
}

fn is_named(file: &File, path: &Path) -> bool {
    let id = |facts: fs::Metadata| (facts.dev(), facts.ino());
    let (named, locked) = (fs::metadata(path).map(id), file.metadata().map(id));
    named.is_ok_and(|named| locked.is_ok_and(|locked| named == locked))
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use xen::DomId;

    use super::super::device::{Class, Kind, Wanted};
    use super::*;

    fn guest() -> Guest {
        let uuid = "a566a76a-27e5-4510-a415-6da14768d411".to_owned();
        Guest { id: DomId(3), name: "web".to_owned(), uuid, by_libxl: true }
    }

    fn record(text: &str) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let name = format!("userdata-d.3.{}.libxl-json", guest().uuid);
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        (directory, path)
    }

    #[test]
    fn devices_come_and_go_and_the_rest_stays() {
        let (directory, path) = record("{\"c_info\": {\"domid\": 4294967295}}\n\0");
        let device = DeviceId { class: Class::Other, number: 1 };
        let mut record = DomainRecord::open(directory.path(), &guest()).unwrap();
        record.add(device, Wanted::Other(Kind::Rng).entry(1, None)).unwrap();
        record.add(device, Wanted::Other(Kind::Net).entry(1, None)).unwrap();
        drop(record);
        assert!(fs::read(&path).unwrap().ends_with(b"}\n\0"));
        let mut record = DomainRecord::open(directory.path(), &guest()).unwrap();
        assert!(record.has(device));
        assert_eq!(record.content.as_ref().unwrap()["virtios"].as_array().unwrap().len(), 1);
        assert_eq!(record.content.as_ref().unwrap()["virtios"][0]["type"], "virtio,device1");
        record.remove(device).unwrap();
        assert_eq!(record.content, Some(json!({ "c_info": { "domid": 4294967295u32 } })));
        drop(record);
        let names: Vec<_> = fs::read_dir(directory.path()).unwrap().collect();
        assert_eq!(names.len(), 1, "{names:?}");
    }

    #[test]
    fn lock_is_that_of_libxl() {
        let (directory, _path) = record("{}");
        let lock =
            directory.path().join(format!("userdata-l.3.{}.domain-userdata-lock", guest().uuid));
        let held = self::lock(&lock).unwrap();
        let waiting = thread::spawn({
            let directory = directory.path().to_owned();
            move || DomainRecord::open(&directory, &guest()).map(drop)
        });
        // As libxl unlocks.
        fs::remove_file(&lock).unwrap();
        drop(held);
        waiting.join().unwrap().unwrap();
        assert!(!lock.exists());
    }

    #[test]
    fn domain_without_a_record_is_another_toolstacks_or_not_ready() {
        let directory = tempfile::tempdir().unwrap();
        let opened = DomainRecord::open(directory.path(), &guest());
        assert!(matches!(opened, Err(DomainRecordError::NotReady)), "{opened:?}");
        let other = Guest { by_libxl: false, ..guest() };
        let mut record = DomainRecord::open(directory.path(), &other).unwrap();
        let device = DeviceId { class: Class::Other, number: 1 };
        record.add(device, json!({ "devid": 1 })).unwrap();
        record.remove(device).unwrap();
        drop(record);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn damaged_record_is_refused_and_unlocked() {
        for text in ["", "{", "[]", "{\"virtios\": 3}"] {
            let (directory, path) = record(text);
            let device = DeviceId { class: Class::Other, number: 1 };
            let added = DomainRecord::open(directory.path(), &guest())
                .and_then(|mut record| record.add(device, json!({ "devid": 1 })));
            assert!(matches!(added, Err(DomainRecordError::Content(..))), "{text}: {added:?}");
            assert_eq!(fs::read_to_string(path).unwrap(), text);
            assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "{text}");
        }
    }
}
