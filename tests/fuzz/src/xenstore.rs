//! The XenStore client, against a hostile server.

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use arbitrary::{Arbitrary, Result, Unstructured};
use xen::{StoreError, XenStore, XenStoreConnection};

/// A request of the client.
#[derive(Arbitrary, Debug)]
enum Question {
    Read,
    List,
    Write,
    WriteBeside,
    Remove,
    Watch,
    TakeEvents,
}

/// A part of the server's output.
#[derive(Arbitrary, Debug)]
enum Saying<'a> {
    /// A message of a known kind, with a payload of the right length.
    Message { kind: u8, payload: &'a [u8] },
    /// An error message with the name of an error.
    Refusal { errno: u8 },
    /// A header with any length and no payload.
    Long { kind: u8, length: u32 },
    /// Arbitrary bytes.
    Bytes(&'a [u8]),
}

const ERRNOS: [&str; 10] = [
    "ENOENT",
    "EACCES",
    "EAGAIN",
    "ENOSPC",
    "EINVAL",
    "E2BIG",
    "EIO",
    "ENOMEM",
    "EBUSY",
    "E\u{fffd}",
];

/// Maximum number of requests on one connection: the socket holds them, and no server reads them.
const MOST: usize = 64;

pub(crate) fn run(bytes: &[u8]) {
    // An input that ends within a part ends the run.
    let _ = play(&mut Unstructured::new(bytes));
}

fn play(input: &mut Unstructured<'_>) -> Result<()> {
    let questions: Vec<Question> = input.arbitrary()?;
    let mut answers = Vec::new();
    while !input.is_empty() {
        match input.arbitrary()? {
            Saying::Message { kind, payload } => message(&mut answers, kind, payload),
            Saying::Refusal { errno } => {
                let name = ERRNOS[usize::from(errno) % ERRNOS.len()];
                message(&mut answers, 16, format!("{name}\0").as_bytes());
            }
            Saying::Long { kind, length } => header(&mut answers, kind, length),
            Saying::Bytes(bytes) => answers.extend_from_slice(bytes),
        }
    }
    ask(&questions, &answers);
    Ok(())
}

/// Sends the requests to a server that has written all its output before, and closed its side.
fn ask(questions: &[Question], answers: &[u8]) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let _ = theirs.write_all(&answers[..answers.len().min(64 << 10)]);
    theirs.shutdown(Shutdown::Write).unwrap();
    let mut store = XenStoreConnection::over(ours);
    for question in questions.iter().take(MOST) {
        let path = "backend/virtio_disk/1/51712/state";
        let answered = match question {
            Question::Read => store.read(path).map(drop),
            Question::List => store.list(path).map(drop),
            Question::Write => store.write(path, "4"),
            Question::WriteBeside => store.write_beside(path, path, "4"),
            Question::Remove => store.remove(path),
            Question::Watch => store.watch(path),
            Question::TakeEvents => store.take_events().map(drop),
        };
        match answered {
            Ok(()) | Err(StoreError::Refused { .. }) => {}
            // After these errors the caller must connect again.
            Err(StoreError::Connection { .. } | StoreError::Protocol(_)) => return,
            Err(StoreError::ListTooLong(_)) => {}
            Err(StoreError::TooLong(path)) => panic!("{path} is not too long"),
        }
    }
}

fn message(answers: &mut Vec<u8>, kind: u8, payload: &[u8]) {
    header(answers, kind, payload.len() as u32);
    answers.extend_from_slice(payload);
}

fn header(answers: &mut Vec<u8>, kind: u8, length: u32) {
    for field in [u32::from(kind % 20), 0, 0, length] {
        answers.extend(field.to_ne_bytes());
    }
}
