//! Tests of the filter of system calls, each in a process of its own.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::thread;

use crate::process::confinement::system_calls::restrict_system_calls;

/// What the child does.
const ACT: &str = "CONFINED_ACT";

/// Runs [`child`] in a process of its own, where it does this.
fn run(act: &str) -> ExitStatus {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "tests::confinement::child", "--ignored", "--test-threads=1"]);
    command.env(ACT, act).output().unwrap().status
}

/// Not a test: the other process of the tests below.
#[test]
#[ignore = "run by other tests"]
fn child() {
    let Ok(act) = std::env::var(ACT) else { return };
    let (mut reader, mut writer) = io::pipe().unwrap();
    nix::sys::prctl::set_no_new_privs().unwrap();
    restrict_system_calls().unwrap();
    match act.as_str() {
        "use what is open" => {
            let sent = thread::spawn(move || writer.write_all(b"x"));
            sent.join().unwrap().unwrap();
            assert_eq!(reader.read(&mut [0; 2]).unwrap(), 1);
        }
        "open a file" => assert!(File::open("/").is_err()),
        "make sockets" => drop(UnixStream::pair()),
        "start a program" => drop(Command::new("/bin/true").status()),
        "find the processors" => assert!(thread::available_parallelism().is_ok()),
        "remove a file" => drop(std::fs::remove_file("/nonexistent")),
        other => panic!("{other:?}"),
    }
}

#[test]
fn filter_permits_what_a_device_needs() {
    for act in ["use what is open", "open a file", "find the processors"] {
        assert!(run(act).success(), "{act}: {:?}", run(act));
    }
}

#[test]
fn kernel_kills_a_process_that_does_more() {
    for act in ["make sockets", "start a program", "remove a file"] {
        assert_eq!(run(act).signal(), Some(libc::SIGSYS), "{act}");
    }
}
