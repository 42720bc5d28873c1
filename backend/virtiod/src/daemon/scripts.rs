//! The scripts of all interfaces: what each has done and has to take back, in notes that outlive
//! the daemon, and one script at a time for each interface.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use serde::{Deserialize, Serialize};

use super::interface_script::{Action, InterfaceScript, LIMIT};
use crate::Causes;
use crate::tap::script::ScriptError;

/// What a script has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Progress {
    /// It was started: there may be something to take back.
    Begun,
    /// The interface is attached.
    Attached,
}

/// A note of a script that ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    script: InterfaceScript,
    progress: Progress,
}

/// The scripts of all interfaces. A clone is the same.
#[derive(Clone, Debug, Default)]
pub struct Scripts {
    /// The directory of the notes, which only root may read; `None` if they end with this process.
    directory: Option<PathBuf>,
    latest: Arc<Mutex<Latest>>,
    is_stopped: Arc<AtomicBool>,
}

#[derive(Debug, Default)]
struct Latest {
    /// The number of services so far.
    count: u64,
    /// The latest service of each interface.
    of: BTreeMap<String, Turn>,
    /// The notes, where there is no directory.
    notes: BTreeMap<String, Note>,
}

/// The latest service of an interface: it takes back what the script did. Earlier ones, whose
/// process died, may still look for the interface.
#[derive(Clone, Debug)]
pub(super) struct Turn {
    interface: String,
    device: String,
    number: u64,
    /// Locked while a script runs: the next one for the interface waits for it.
    running: Arc<Mutex<()>>,
}

impl Turn {
    /// The device, as its record is named.
    pub(super) fn device(&self) -> &str {
        &self.device
    }
}

impl Scripts {
    /// Scripts with notes in this directory.
    pub fn with_notes(directory: PathBuf) -> Self {
        Self { directory: Some(directory), ..Self::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Latest> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Kills the scripts that run, and starts none any more: the daemon ends.
    pub fn stop(&self) {
        self.is_stopped.store(true, Ordering::Relaxed);
    }

    fn is_stopped(&self) -> bool {
        self.is_stopped.load(Ordering::Relaxed)
    }

    /// Makes the caller the latest service of an interface.
    pub(super) fn begin(&self, interface: &str, device: &str) -> Turn {
        let mut latest = self.lock();
        latest.count += 1;
        let running = latest.of.get(interface).map(|turn| Arc::clone(&turn.running));
        let turn = Turn {
            interface: interface.to_owned(),
            device: device.to_owned(),
            number: latest.count,
            running: running.unwrap_or_default(),
        };
        latest.of.insert(interface.to_owned(), turn.clone());
        turn
    }

    /// Whether a service is still the latest of its interface.
    pub(super) fn has(&self, turn: &Turn) -> bool {
        self.lock().of.get(&turn.interface).is_some_and(|latest| latest.number == turn.number)
    }

    /// Forgets an interface, if this is its latest service.
    pub(super) fn end(&self, turn: &Turn) {
        let mut latest = self.lock();
        if latest.of.get(&turn.interface).is_some_and(|latest| latest.number == turn.number) {
            latest.of.remove(&turn.interface);
        }
    }

    /// Attaches a new interface by its script, or one that was left and that no script has
    /// attached. If an earlier run did not get to its end, what it did is taken back first.
    ///
    /// # Errors
    /// [`ScriptError`]; then what the script did is taken back.
    pub(super) fn attach(
        &self,
        turn: &Turn,
        script: &InterfaceScript,
        is_left: bool,
    ) -> Result<(), ScriptError> {
        let _running = turn.running.lock().unwrap_or_else(PoisonError::into_inner);
        let earlier = self.note(&script.device);
        if is_left && earlier.as_ref().is_some_and(|note| note.progress == Progress::Attached) {
            return Ok(());
        }
        if let Some(Note { script, .. }) = earlier {
            self.run_offline(&script);
        }
        self.write(script, Progress::Begun);
        match script.run(Action::Online, LIMIT, || self.is_stopped()) {
            Ok(()) => {
                self.write(script, Progress::Attached);
                Ok(())
            }
            // The next daemon takes it back.
            Err(stopped @ ScriptError::Stopped { .. }) => Err(stopped),
            Err(error) => {
                self.run_offline(script);
                Err(error)
            }
        }
    }

    /// Whether a script has attached the interface of a device, or began to.
    pub(super) fn concern(&self, device: &str) -> bool {
        self.note(device).is_some()
    }

    /// Takes back what the script of a device's interface did, if it did something and the
    /// interface is no other device's by now.
    fn take_back(&self, device: &str) {
        let Some(Note { script, .. }) = self.note(device) else { return };
        let latest = self.lock().of.get(script.interface.as_str()).cloned();
        let other = latest.as_ref().filter(|latest| latest.device != device);
        if other.is_some() {
            tracing::warn!("{} is another device's: {device} takes nothing back", script.interface);
            return self.remove(device);
        }
        let _running = latest
            .as_ref()
            .map(|latest| latest.running.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(Note { script, .. }) = self.note(device) {
            self.run_offline(&script);
        }
    }

    /// As the latest service of its interface, takes back what the script did.
    pub(super) fn take_back_as(&self, turn: &Turn) {
        if self.has(turn) {
            self.take_back(&turn.device);
        }
    }

    /// Takes back what the script of a device that is gone did, in a thread.
    pub(super) fn take_back_of(&self, device: String) {
        if self.concern(&device) {
            self.take_back_in_thread(vec![device]);
        }
    }

    /// As [`Scripts::take_back_of`], for all devices but these.
    pub(super) fn take_back_others(&self, devices: &BTreeSet<String>) {
        self.take_back_in_thread(self.devices().difference(devices).cloned().collect());
    }

    fn take_back_in_thread(&self, gone: Vec<String>) {
        if gone.is_empty() || self.is_stopped() {
            return;
        }
        let scripts = self.clone();
        let body = move || gone.iter().for_each(|device| scripts.take_back(device));
        if let Err(error) = thread::Builder::new().name("scripts".to_owned()).spawn(body) {
            tracing::warn!(%error, "nothing was taken back of interfaces that are gone");
        }
    }

    /// Runs a script for what is gone; nobody is there any more to hear of an error.
    fn run_offline(&self, script: &InterfaceScript) {
        match script.run(Action::Offline, LIMIT, || self.is_stopped()) {
            // The next daemon takes it back.
            Err(ScriptError::Stopped { .. }) => return,
            Err(error) => {
                let name = &script.interface;
                tracing::warn!("not all was taken back of {name}: {}", Causes(&error));
            }
            Ok(()) => {}
        }
        self.remove(&script.device);
    }

    fn path(&self, device: &str) -> Option<PathBuf> {
        self.directory.as_ref().map(|directory| directory.join(format!("{device}{SUFFIX}")))
    }

    fn note(&self, device: &str) -> Option<Note> {
        let Some(path) = self.path(device) else {
            return self.lock().notes.get(device).cloned();
        };
        let text = fs::read(&path).ok()?;
        let note = serde_json::from_slice(&text);
        note.inspect_err(|error| tracing::warn!(%error, "cannot read {}", path.display())).ok()
    }

    fn write(&self, script: &InterfaceScript, progress: Progress) {
        let note = Note { script: script.clone(), progress };
        let Some(path) = self.path(&script.device) else {
            self.lock().notes.insert(script.device.clone(), note);
            return;
        };
        let new = path.with_extension("new");
        let written = serde_json::to_vec(&note).map_err(io::Error::from);
        let written = written.and_then(|text| fs::write(&new, text));
        if let Err(error) = written.and_then(|()| fs::rename(&new, &path)) {
            tracing::warn!(%error, "cannot note what a script did in {}", path.display());
        }
    }

    fn remove(&self, device: &str) {
        match self.path(device) {
            Some(path) => drop(fs::remove_file(path)),
            None => drop(self.lock().notes.remove(device)),
        }
    }

    /// The devices that have notes.
    fn devices(&self) -> BTreeSet<String> {
        let Some(directory) = &self.directory else {
            return self.lock().notes.keys().cloned().collect();
        };
        let entries = fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter_map(|name| Some(name.strip_suffix(SUFFIX)?.to_owned())).collect()
    }
}

/// The end of a note's name.
const SUFFIX: &str = ".script";

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;
    use std::time::{Duration, Instant};

    use tempfile::TempDir;

    use super::*;
    use crate::bus::DevicePath;
    use xen::DomId;

    /// The name of the interface of all devices here.
    const NAME: &str = "inside";

    /// A script that notes its runs, and fails if it is to.
    struct Noted(TempDir);

    impl Noted {
        fn new() -> Self {
            let directory = TempDir::new().unwrap();
            let (path, runs) = (directory.path().join("script"), directory.path().join("runs"));
            let (fails, runs) = (directory.path().join("fails"), runs.display());
            let fails = fails.display();
            let text =
                format!("#!/bin/sh\necho $1 $mac >>{runs}\n[ $1 = offline ] || ! [ -e {fails} ]\n");
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
            Self(directory)
        }

        fn has_to_fail(&self) {
            fs::write(self.0.path().join("fails"), "").unwrap();
        }

        fn of(&self, guest: u16, mac: &str) -> InterfaceScript {
            let path = self.0.path().join("script").display().to_string().parse().unwrap();
            let device = DevicePath { class: "virtio".to_owned(), guest: DomId(guest), number: 0 };
            let variables = vec![("mac", mac.to_owned())];
            InterfaceScript::new(path, &NAME.parse().unwrap(), &device, variables)
        }

        fn runs(&self) -> Vec<String> {
            let runs = fs::read_to_string(self.0.path().join("runs")).unwrap_or_default();
            runs.lines().map(str::to_owned).collect()
        }
    }

    fn scripts() -> (TempDir, Scripts) {
        let notes = TempDir::new().unwrap();
        let scripts = Scripts::with_notes(notes.path().to_owned());
        (notes, scripts)
    }

    #[test]
    fn what_a_script_did_is_taken_back_once_with_its_variables_by_any_daemon() {
        let ((notes, scripts), noted) = (scripts(), Noted::new());
        let turn = scripts.begin(NAME, "virtio-1-0");
        scripts.attach(&turn, &noted.of(1, "m1"), false).unwrap();
        // The next daemon finds the interface, and another configuration.
        let next = Scripts::with_notes(notes.path().to_owned());
        let turn = next.begin(NAME, "virtio-1-0");
        next.attach(&turn, &noted.of(1, "other"), true).unwrap();
        assert_eq!(noted.runs(), ["online m1"]);
        next.take_back_as(&turn);
        next.take_back_as(&turn);
        assert_eq!(noted.runs(), ["online m1", "offline m1"]);
        assert!(!next.concern("virtio-1-0"));
    }

    #[test]
    fn run_that_did_not_end_is_taken_back_and_done_again() {
        let ((_notes, scripts), noted) = (scripts(), Noted::new());
        scripts.write(&noted.of(1, "m1"), Progress::Begun);
        let turn = scripts.begin(NAME, "virtio-1-0");
        scripts.attach(&turn, &noted.of(1, "m2"), true).unwrap();
        assert_eq!(noted.runs(), ["offline m1", "online m2"]);
    }

    #[test]
    fn failed_run_is_taken_back() {
        let ((_notes, scripts), noted) = (scripts(), Noted::new());
        noted.has_to_fail();
        let turn = scripts.begin(NAME, "virtio-1-0");
        let failed = scripts.attach(&turn, &noted.of(1, "m1"), false);
        assert!(matches!(failed, Err(ScriptError::Failed { .. })), "{failed:?}");
        assert_eq!(noted.runs(), ["online m1", "offline m1"]);
        assert!(!scripts.concern("virtio-1-0"));
    }

    #[test]
    fn nothing_is_taken_back_of_an_interface_that_is_another_devices() {
        let ((_notes, scripts), noted) = (scripts(), Noted::new());
        let first = scripts.begin(NAME, "virtio-1-0");
        scripts.attach(&first, &noted.of(1, "m1"), false).unwrap();
        let second = scripts.begin(NAME, "virtio-2-0");
        scripts.attach(&second, &noted.of(2, "m2"), false).unwrap();
        scripts.take_back_as(&first);
        scripts.take_back("virtio-1-0");
        assert_eq!(noted.runs(), ["online m1", "online m2"]);
        scripts.end(&first);
        scripts.take_back_as(&second);
        assert_eq!(noted.runs(), ["online m1", "online m2", "offline m2"]);
    }

    #[test]
    fn script_of_a_gone_device_takes_back_what_it_did() {
        let ((_notes, scripts), noted) = (scripts(), Noted::new());
        scripts.write(&noted.of(1, "m1"), Progress::Attached);
        scripts.take_back_of("virtio-2-0".to_owned());
        scripts.take_back_others(&BTreeSet::from(["virtio-1-0".to_owned()]));
        scripts.take_back_of("virtio-1-0".to_owned());
        let end = Instant::now() + Duration::from_secs(10);
        while scripts.concern("virtio-1-0") {
            assert!(Instant::now() < end, "waited 10 s for the script");
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(noted.runs(), ["offline m1"]);
    }

    #[test]
    fn daemon_that_ends_leaves_scripts_to_the_next() {
        let ((notes, scripts), noted) = (scripts(), Noted::new());
        scripts.write(&noted.of(1, "m1"), Progress::Attached);
        scripts.stop();
        scripts.take_back("virtio-1-0");
        let next = Scripts::with_notes(notes.path().to_owned());
        assert!(next.concern("virtio-1-0"), "{:?}", noted.runs());
    }
}
