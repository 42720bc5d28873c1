//! Tests of records.

use std::num::Wrapping;
use std::os::unix::fs::FileExt;

use tempfile::{TempDir, tempdir};

use super::*;

struct Fixture {
    directory: RecordDirectory,
    files: TempDir,
}

impl Fixture {
    fn new() -> Self {
        let files = tempdir().unwrap();
        Self { directory: RecordDirectory::new(&files.path().join("made")).unwrap(), files }
    }

    fn record(&self) -> Record {
        self.directory.create("disk", &[256, 8]).unwrap()
    }

    fn reopened(&self) -> Record {
        self.directory.open("disk").unwrap().unwrap()
    }

    fn file(&self) -> File {
        let path = self.files.path().join("made/disk.record");
        File::options().read(true).write(true).open(path).unwrap()
    }
}

fn state(status: u32) -> DriverSetup {
    DriverSetup { status, queues: vec![QueueSetup::default(); 3], ..DriverSetup::default() }
}

#[test]
fn record_has_the_state_that_was_saved_last() {
    let fixture = Fixture::new();
    let mut record = fixture.record();
    assert_eq!(fixture.directory.names().unwrap(), ["disk"]);
    assert!(record.setup().is_err(), "none was saved");
    for status in 1..5 {
        record.save(&state(status)).unwrap();
        assert_eq!(record.setup().unwrap(), state(status));
        assert_eq!(fixture.reopened().setup().unwrap(), state(status));
        assert_eq!(fixture.reopened().queue_sizes(), [256, 8]);
    }
    let mark = MessageMark { message: u32::MAX, response: 7 };
    record.set_mark(mark);
    assert_eq!(fixture.reopened().mark(), mark);
    fixture.directory.remove("disk").unwrap();
    assert!(fixture.directory.open("disk").unwrap().is_none());
    fixture.directory.remove("disk").unwrap();
}

#[test]
fn state_that_was_not_written_whole_leaves_the_one_before() {
    let fixture = Fixture::new();
    let mut record = fixture.record();
    record.save(&state(1)).unwrap();
    let before = std::fs::read(fixture.files.path().join("made/disk.record")).unwrap();
    record.save(&state(2)).unwrap();
    let after = std::fs::read(fixture.files.path().join("made/disk.record")).unwrap();
    let changed: Vec<_> = (0..before.len()).filter(|at| before[*at] != after[*at]).collect();
    let last = changed.len() - 1;
    assert!(changed.len() > 40, "text, number, length and digest");
    // Any part of the second write, in any order, is as good as none.
    let order = changed.iter().chain(changed.iter().rev()).collect::<Vec<_>>();
    for start in [0, changed.len()] {
        fixture.file().write_all_at(&before, 0).unwrap();
        for (count, at) in order.iter().skip(start).take(changed.len()).enumerate() {
            let found = fixture.reopened().setup().unwrap();
            assert_eq!(found, state(1), "after {count} of {last} bytes");
            fixture.file().write_all_at(&after[**at..**at + 1], **at as u64).unwrap();
        }
        assert_eq!(fixture.reopened().setup().unwrap(), state(2));
    }
}

#[test]
fn damaged_and_foreign_records_are_refused() {
    let fixture = Fixture::new();
    fixture.record().save(&state(1)).unwrap();
    let error = |change: &dyn Fn(&File)| {
        let whole = std::fs::read(fixture.files.path().join("made/disk.record")).unwrap();
        change(&fixture.file());
        let error = fixture.directory.open("disk").map(drop).unwrap_err().to_string();
        fixture.file().set_len(0).unwrap();
        fixture.file().write_all_at(&whole, 0).unwrap();
        error
    };
    let write = |bytes: &'static [u8], at| move |file: &File| file.write_all_at(bytes, at).unwrap();
    assert!(error(&write(b"X", 0)).contains("does not begin"));
    assert!(error(&write(&[3], 8)).contains("version 3; this xen-virtiod knows 2 and older"));
    assert!(error(&write(&[0], 8)).contains("version 0;"));
    assert!(error(&write(&[0xff], 12)).contains("too many queues"));
    assert!(error(&write(&[3], 12)).contains("its size"));
    assert!(error(&write(&[0xff; 16 << 10], 4096 + (16 << 10) + 64)).contains("no whole state"));
    assert!(error(&|file: &File| file.set_len(100).unwrap()).contains("no header"));
    assert!(error(&|file: &File| file.set_len(5000).unwrap()).contains("its size"));
    assert_eq!(fixture.reopened().setup().unwrap(), state(1));
}

#[test]
fn record_keeps_its_version_and_names_the_program_that_wrote_it() {
    let fixture = Fixture::new();
    fixture.record();
    for version in [RecordVersion::Previous, RecordVersion::Newest] {
        fixture.file().set_len(0).unwrap();
        let mut record = Record::create_as(version, fixture.file(), &[256, 8]).unwrap();
        for status in 1..3 {
            record.save(&state(status)).unwrap();
            record = fixture.reopened();
            assert_eq!(
                (record.header.version(), record.setup().unwrap()),
                (version, state(status))
            );
        }
        let named = record.program().unwrap();
        assert_eq!(named.is_some(), version == RecordVersion::Newest);
        assert!(named.is_none_or(|program| program.starts_with("xen-virtiod ")));
        let text = record.slots.read(record.memory.bytes()).unwrap();
        let bare: Result<DriverSetup, _> = serde_json::from_slice(&text);
        assert_eq!(
            bare.is_ok(),
            version == RecordVersion::Previous,
            "what the program before reads"
        );
    }
}

#[test]
fn state_that_is_too_large_is_refused_and_leaves_the_one_before() {
    let fixture = Fixture::new();
    let mut record = fixture.record();
    record.save(&state(1)).unwrap();
    let chunk = PoolChunk { first: u32::MAX, count: u32::MAX, reference: u32::MAX };
    let large = DriverSetup { pool: vec![chunk; 1000], ..state(2) };
    assert!(matches!(record.save(&large), Err(RecordError::TooLarge { .. })));
    assert_eq!(fixture.reopened().setup().unwrap(), state(1));
}

#[test]
fn queue_has_what_was_taken_and_not_given_back() {
    let fixture = Fixture::new();
    let mut record = fixture.record();
    record.save(&state(1)).unwrap();
    let mut queue = record.queue(1).unwrap();
    assert!(record.queue(2).is_none());
    [3, 0, 7, 8, 9999].into_iter().for_each(|head| queue.take(head));
    queue.give_back([0].into_iter(), Wrapping(1));
    let (found, other) =
        (fixture.reopened().queue(1).unwrap(), fixture.reopened().queue(0).unwrap());
    assert_eq!((found.taken(), found.used()), (vec![3, 7], Wrapping(1)));
    assert_eq!((other.taken(), other.used()), (vec![], Wrapping(0)));
    queue.begin(Wrapping(0));
    assert_eq!((found.taken(), found.used()), (vec![], Wrapping(0)));
}
