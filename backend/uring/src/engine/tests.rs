//! Tests of the engine, with both methods.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use vm_memory::VolatileSlice;

use super::*;
use crate::iovec::WriteMode;
use crate::operation::Work;

/// Memory that operations share.
pub(crate) struct Memory(std::sync::Mutex<Box<[u8]>>, *mut u8);

// SAFETY: the pointer is to the box, which the value owns.
unsafe impl Send for Memory {}
// SAFETY: as above; it is accessed with volatile accesses only.
unsafe impl Sync for Memory {}

impl Memory {
    pub(crate) fn new(length: usize) -> Self {
        let mut bytes = vec![0; length].into_boxed_slice();
        let start = bytes.as_mut_ptr();
        Self(std::sync::Mutex::new(bytes), start)
    }

    pub(crate) fn vector(owner: &Arc<Self>, offset: usize, length: usize) -> OwnedVector {
        OwnedVector::new(owner, |memory, pieces| {
            // SAFETY: the tests use ranges inside the box.
            let slice = unsafe { VolatileSlice::new(memory.1.add(offset), length) };
            assert!(pieces.push(&slice));
            Ok::<(), ()>(())
        })
        .unwrap()
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().to_vec()
    }
}

const METHODS: [Method; 2] = [Method::Ring, Method::Threads];

fn engine(method: Method) -> Engine<u32> {
    if !method.is_available() {
        println!("skipped in part: the kernel refuses io_uring, and threads serve both");
    }
    Engine::new(method)
}

/// Waits until all operations have ended; returns their tokens and outcomes by token.
fn finish(engine: &mut Engine<u32>) -> Vec<(u32, Result<(), io::ErrorKind>)> {
    let mut landed = Vec::new();
    while engine.in_flight() > 0 {
        engine.wait(10_000);
        engine.take(&mut landed);
    }
    let outcome = |landed: Landed<u32>| (landed.token, landed.outcome.map_err(|e| e.kind()));
    let mut outcomes: Vec<_> = landed.into_iter().map(outcome).collect();
    outcomes.sort_by_key(|(token, _)| *token);
    outcomes
}

fn file(bytes: &[u8]) -> Arc<File> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Arc::new(file)
}

fn operation(file: &Arc<File>, work: Work, vector: OwnedVector) -> Operation {
    Operation::new(Arc::clone(file), work, vector)
}

#[test]
fn reads_writes_and_syncs_end_with_their_own_outcomes() {
    for method in METHODS {
        let mut engine = engine(method);
        let file = file(b"0123456789");
        let memory = Arc::new(Memory::new(16));
        let write = Work::Write { offset: 10, mode: WriteMode::Through };
        let past = Work::Read { offset: 100 };
        let vector = |offset, length| Memory::vector(&memory, offset, length);
        engine.submit(operation(&file, Work::Read { offset: 2 }, vector(0, 8)), 1);
        engine.submit(operation(&file, past, vector(8, 4)), 2);
        engine.submit(operation(&file, Work::Sync, OwnedVector::empty()), 3);
        engine.submit(operation(&file, write, vector(12, 4)), 4);
        assert_eq!(engine.in_flight(), 4);
        engine.commit().unwrap();
        let eof = Err(io::ErrorKind::UnexpectedEof);
        assert_eq!(finish(&mut engine), [(1, Ok(())), (2, eof), (3, Ok(())), (4, Ok(()))]);
        assert_eq!(memory.bytes()[..8], *b"23456789");
        assert_eq!(file.metadata().unwrap().len(), 14);
        assert!(!engine.has_completions() && engine.is_committed());
        assert_eq!(Arc::strong_count(&memory), 1, "the engine keeps nothing of what has ended");
    }
}

#[test]
fn more_operations_than_the_queue_holds_all_end() {
    for method in METHODS {
        let mut engine = engine(method);
        let bytes: Vec<u8> = (0..200).collect();
        let file = file(&bytes);
        let memory = Arc::new(Memory::new(200));
        for index in 0..200u32 {
            let vector = Memory::vector(&memory, index as usize, 1);
            let read = Work::Read { offset: index.into() };
            engine.submit(operation(&file, read, vector), index);
        }
        engine.commit().unwrap();
        let outcomes = finish(&mut engine);
        assert!(outcomes.iter().enumerate().all(|(at, it)| *it == (at as u32, Ok(()))));
        assert_eq!((outcomes.len(), memory.bytes()), (200, bytes));
    }
}

#[test]
fn more_completions_than_the_ring_holds_are_all_taken() {
    let mut engine = engine(Method::Ring);
    let file = file(&[1; 8]);
    let memory = Arc::new(Memory::new(8));
    let count = 3 * rings::COMPLETIONS;
    for index in 0..count {
        let vector = Memory::vector(&memory, 0, 8);
        engine.submit(operation(&file, Work::Read { offset: 0 }, vector), index);
        // The kernel begins and ends each at once; nobody takes any.
        drop(engine.commit());
    }
    assert_eq!(finish(&mut engine).len(), count as usize);
}

#[test]
fn an_operation_that_storage_does_not_answer_holds_up_no_other() {
    for method in METHODS {
        let mut engine = engine(method);
        // A pipe without a writer's data answers as storage does that hangs.
        let (hung, mut answer) = std::io::pipe().unwrap();
        let hung = Arc::new(File::from(std::os::fd::OwnedFd::from(hung)));
        let other = file(b"data");
        let memory = Arc::new(Memory::new(8));
        // A pipe has no offsets: -1 is its position.
        let read = Work::Read { offset: u64::MAX };
        if method == Method::Ring {
            engine.submit(operation(&hung, read, Memory::vector(&memory, 0, 4)), 1);
        } else {
            // preadv refuses a pipe; the kernel's answer shows that the thread was there.
            engine.submit(operation(&hung, read, Memory::vector(&memory, 0, 4)), 9);
        }
        let vector = Memory::vector(&memory, 4, 4);
        engine.submit(operation(&other, Work::Read { offset: 0 }, vector), 2);
        engine.commit().unwrap();
        let mut landed = Vec::new();
        while !landed.iter().any(|landed: &Landed<u32>| landed.token == 2) {
            engine.wait(10_000);
            engine.take(&mut landed);
        }
        assert_eq!(memory.bytes()[4..], *b"data");
        answer.write_all(b"late").unwrap();
        finish(&mut engine);
        drop(answer);
    }
}

#[test]
fn one_wait_is_for_operations_and_descriptors() {
    for method in METHODS {
        let mut engine = engine(method);
        let file = file(b"data");
        let memory = Arc::new(Memory::new(4));
        let ((news, mut sender), (quiet, _sender)) =
            (std::io::pipe().unwrap(), std::io::pipe().unwrap());
        // Before there is a backend, and with it.
        for _ in 0..2 {
            let wait = |engine: &mut Engine<u32>, limit| {
                let own = engine.completions();
                let fds = [news.as_fd(), quiet.as_fd()].into_iter().chain(own);
                let mut fds: Vec<_> = fds.map(AwaitedFd::readable).collect();
                engine.wait_for(&mut fds, limit).unwrap();
                fds.iter().map(|awaited| awaited.is_ready).collect::<Vec<_>>()
            };
            assert!(wait(&mut engine, Duration::ZERO).iter().all(|ready| !ready));
            sender.write_all(b"x").unwrap();
            // It stays ready until it is read.
            for _ in 0..2 {
                assert_eq!(wait(&mut engine, Duration::MAX)[..2], [true, false]);
            }
            std::io::Read::read_exact(&mut &news, &mut [0]).unwrap();
            assert!(wait(&mut engine, Duration::ZERO).iter().all(|ready| !ready));
            let read = Work::Read { offset: 0 };
            engine.submit(operation(&file, read, Memory::vector(&memory, 0, 4)), 1);
            engine.commit().unwrap();
            assert_eq!(wait(&mut engine, Duration::MAX), [false, false, true], "{method:?}");
            assert_eq!(finish(&mut engine), [(1, Ok(()))]);
        }
    }
}

#[test]
fn a_ring_that_polls_no_more_keeps_no_file_open() {
    let mut engine = engine(Method::Ring);
    engine.choose().unwrap();
    let (reader, mut writer) = std::io::pipe().unwrap();
    let mut fds = [AwaitedFd::readable(reader.as_fd())];
    engine.wait_for(&mut fds, Duration::ZERO).unwrap();
    engine.stop_polling();
    drop(reader);
    // A pipe without a reader.
    assert_eq!(writer.write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    assert!(!engine.has_completions());
}

#[test]
fn an_engine_that_ends_early_leaves_the_memory_to_the_kernel() {
    let mut engine = engine(Method::Ring);
    let (hung, _answer) = std::io::pipe().unwrap();
    let hung = Arc::new(File::from(std::os::fd::OwnedFd::from(hung)));
    let memory = Arc::new(Memory::new(8));
    let vector = Memory::vector(&memory, 0, 4);
    engine.submit(operation(&hung, Work::Read { offset: u64::MAX }, vector), 1);
    engine.commit().unwrap();
    drop(engine);
    assert_eq!(Arc::strong_count(&memory), 2);
}

#[test]
fn a_partial_transfer_goes_on_where_it_stopped() {
    for method in METHODS {
        let mut engine = engine(method);
        let file = file(&[5; 100]);
        let memory = Arc::new(Memory::new(200));
        // The file ends in the middle, and grows before the rest is submitted.
        let read = operation(&file, Work::Read { offset: 0 }, Memory::vector(&memory, 0, 200));
        engine.submit(read, 1);
        engine.commit().unwrap();
        engine.wait(10_000);
        file.write_all_at(&[6; 100], 100).unwrap();
        assert_eq!(finish(&mut engine), [(1, Ok(()))], "{method:?}");
        assert_eq!(memory.bytes(), [[5; 100], [6; 100]].concat());
    }
}

#[test]
fn transfers_of_registered_memory_move_the_same_bytes() {
    let mut engine = engine(Method::Ring);
    let file = file(&[7; 8192]);
    let memory = Arc::new(Memory::new(12288));
    let whole = Memory::vector(&memory, 0, 8192);
    if engine.wants_region(&whole) {
        engine.register(Memory::vector(&memory, 0, 8192));
    }
    assert!(!engine.wants_region(&Memory::vector(&memory, 4096, 4096)));
    // A piece inside the region, one across its end, and one outside.
    for (token, offset) in [(1, 0), (2, 6144), (3, 8192)] {
        let vector = Memory::vector(&memory, offset, 4096);
        engine.submit(operation(&file, Work::Read { offset: 0 }, vector), token);
    }
    engine.commit().unwrap();
    assert_eq!(finish(&mut engine), [(1, Ok(())), (2, Ok(())), (3, Ok(()))]);
    let bytes = memory.bytes();
    assert!(bytes[..4096].iter().chain(&bytes[6144..]).all(|byte| *byte == 7));
    assert!(bytes[4096..6144].iter().all(|byte| *byte == 0));
    assert!(Arc::strong_count(&memory) > 1, "the registration has a share of the memory");
    engine.unregister();
    drop(whole);
    assert_eq!(Arc::strong_count(&memory), 1);
}

#[test]
fn operations_of_a_thread_that_has_ended_are_begun_again() {
    if !Method::Ring.is_available() {
        println!("skipped: the kernel refuses io_uring");
        return;
    }
    let (pipe, mut writer) = io::pipe().unwrap();
    let file = Arc::new(File::from(std::os::fd::OwnedFd::from(pipe)));
    let memory = Arc::new(Memory::new(8));
    let read = operation(&file, Work::Read { offset: 0 }, Memory::vector(&memory, 0, 8));
    let mut engine = engine(Method::Ring);
    let submit = move || {
        engine.submit(read, 1);
        engine.commit().unwrap();
        engine
    };
    let mut engine = std::thread::spawn(submit).join().unwrap();
    let mut landed = Vec::new();
    engine.take(&mut landed);
    assert!(landed.is_empty(), "{:?}", landed.first().map(|landed| &landed.outcome));
    writer.write_all(&[7; 8]).unwrap();
    assert_eq!(finish(&mut engine), [(1, Ok(()))]);
    assert_eq!(memory.bytes(), [7; 8]);
}

#[test]
fn a_vector_is_divided_only_where_all_is_registered() {
    let mut engine = engine(Method::Ring);
    let memory = Arc::new(Memory::new(16384));
    let two = || {
        OwnedVector::new(&memory, |memory, pieces| {
            for offset in [0, 8192] {
                // SAFETY: the ranges are inside the box.
                let slice = unsafe { VolatileSlice::new(memory.1.add(offset), 4096) };
                assert!(pieces.push(&slice));
            }
            Ok::<(), ()>(())
        })
        .unwrap()
    };
    assert_eq!(engine.divide(two(), usize::MAX).len(), 1);
    engine.register(Memory::vector(&memory, 0, 4096));
    assert_eq!(engine.divide(two(), usize::MAX).len(), 1);
    engine.register(Memory::vector(&memory, 8192, 8192));
    if Method::Ring.is_available() {
        assert_eq!(engine.divide(two(), usize::MAX).len(), 2);
        assert_eq!(engine.divide(two(), 2048).len(), 4);
    }
}

#[test]
fn bounced_operations_move_the_same_bytes_and_the_kernel_has_no_hold_of_their_memory() {
    for method in METHODS {
        let mut engine = engine(method);
        let file = file(b"0123456789");
        let memory = Arc::new(Memory::new(16));
        let vector = |offset, length| Memory::vector(&memory, offset, length);
        let read = |offset, into| operation(&file, Work::Read { offset }, into);
        assert!(engine.submit_bounced(read(2, vector(0, 6)), 1).is_ok());
        // The file ends inside.
        assert!(engine.submit_bounced(read(7, vector(8, 8)), 2).is_ok());
        engine.commit().unwrap();
        assert_eq!(memory.bytes(), [0; 16], "not before the engine is asked");
        let eof = Err(io::ErrorKind::UnexpectedEof);
        assert_eq!(finish(&mut engine), [(1, Ok(())), (2, eof)]);
        assert_eq!(memory.bytes(), *b"234567\x00\x00789\x00\x00\x00\x00\x00");
        let write = Work::Write { offset: 4, mode: WriteMode::Back };
        assert!(engine.submit_bounced(operation(&file, write, vector(1, 4)), 3).is_ok());
        // What the driver writes from now on is too late.
        vector(1, 4).zero();
        engine.commit().unwrap();
        assert_eq!(finish(&mut engine), [(3, Ok(()))]);
        let mut found = [0; 10];
        file.read_exact_at(&mut found, 0).unwrap();
        assert_eq!(found, *b"0123345689");
    }
}
