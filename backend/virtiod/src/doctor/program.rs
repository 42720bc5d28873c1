//! Runs a program that answers at once, and takes its output.

use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// Maximum time for an answer.
const LIMIT: Duration = Duration::from_secs(5);
/// Maximum number of bytes of an answer.
const MOST_BYTES: u64 = 64 << 10;

/// A program's standard output; `None` if it is not there, fails, or takes too long.
pub(super) fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    command.args(arguments).env("LC_ALL", "C");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().ok()?;
    let printed = child.stdout.take()?;
    let (send, receive) = mpsc::channel();
    let read = move || {
        let mut bytes = Vec::new();
        let read = printed.take(MOST_BYTES).read_to_end(&mut bytes);
        // Nobody waits for it any more if it comes late.
        let _ = send.send(read.map(|_| bytes));
    };
    let reading = thread::Builder::new().name("output".to_owned()).spawn(read);
    let bytes = reading.ok().and_then(|_| receive.recv_timeout(LIMIT).ok()?.ok());
    if bytes.is_none() {
        let _ = child.kill();
    }
    let status = child.wait().ok()?;
    bytes.filter(|_| status.success()).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::output;

    #[test]
    fn output_is_that_of_a_program_that_succeeds() {
        assert_eq!(output("echo", &["4.20"]).as_deref(), Some("4.20\n"));
        assert_eq!(output("false", &[]), None);
        assert_eq!(output("/no/such/program", &[]), None);
    }
}
