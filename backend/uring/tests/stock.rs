//! A process that makes its rings in advance. The stock is the process's: this file has one test.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use uring::engine::{Engine, Landed, Method};
use uring::operation::{Operation, Work};
use uring::owned::OwnedVector;
use uring::rings;
use uring::waiting::AwaitedFd;

/// Syncs a file, which chooses the engine's method.
fn sync(engine: &mut Engine<u32>) -> io::Result<()> {
    let file = Arc::new(tempfile::tempfile()?);
    engine.submit(Operation::new(file, Work::Sync, OwnedVector::empty()), 7);
    let mut landed = Vec::new();
    loop {
        engine.wait(10_000);
        engine.take(&mut landed);
        if let Some(Landed { outcome, .. }) = landed.pop() {
            return outcome;
        }
    }
}

#[test]
fn rings_of_the_stock_are_used_again_and_threads_work_where_none_is_left() {
    if !Method::Ring.is_available() {
        return println!("skipped: the kernel refuses io_uring");
    }
    rings::stock(1).unwrap();
    assert!(rings::stock(1).is_err(), "only once");
    for _ in 0..3 {
        let mut first = Engine::new(Method::Ring);
        assert!(sync(&mut first).is_ok());
        assert!(!Method::Ring.is_available(), "it is in use");
        // It polls a descriptor when it ends.
        let (reader, mut writer) = std::io::pipe().unwrap();
        let mut fds = [AwaitedFd::readable(reader.as_fd())];
        first.wait_for(&mut fds, Duration::from_millis(1)).unwrap();
        let mut second = Engine::new(Method::Ring);
        assert!(sync(&mut second).is_ok(), "by threads");
        drop((first, second));
        assert!(Method::Ring.is_available(), "it was given back");
        // The next user of the ring hears nothing of that poll.
        let mut third = Engine::new(Method::Ring);
        assert!(sync(&mut third).is_ok());
        writer.write_all(b"x").unwrap();
        let (other, _writer) = std::io::pipe().unwrap();
        let mut fds = [AwaitedFd::readable(other.as_fd())];
        third.wait_for(&mut fds, Duration::from_millis(20)).unwrap();
        assert!(!fds[0].is_ready);
    }
}
