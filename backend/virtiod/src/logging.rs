//! The log on standard error: lines with time and level for a person, or lines with a priority for
//! systemd's journal.
//!
//! tracing-journald would send a line's fields apart from its text, and `journalctl` shows the text
//! only: a reason without its guest and device.

use std::ffi::OsStr;
use std::fmt::{self, Write};
use std::io;
use std::os::fd::AsFd;

use nix::sys::stat::fstat;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::{self, FormatEvent, FormatFields};
use tracing_subscriber::fmt::{FmtContext, MakeWriter};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

/// The variable with the journal's stream: `DEVICE:INODE` in decimal (systemd.exec(5)).
const JOURNAL_STREAM: &str = "JOURNAL_STREAM";

/// The reader of standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LogReader {
    /// A person, now or later in a file.
    Person,
    /// systemd's journal, which parses `<N>` before a line as its priority (sd-daemon(3)).
    Journal,
}

impl LogReader {
    fn of_standard_error() -> Self {
        Self::of(io::stderr(), std::env::var_os(JOURNAL_STREAM).as_deref())
    }

    /// Compares the stream with the one in the variable, since a redirection does not change that.
    fn of(stream: impl AsFd, journal: Option<&OsStr>) -> Self {
        let names = |named: &OsStr| {
            let file = fstat(&stream).ok()?;
            Some(named.to_str()? == format!("{}:{}", file.st_dev, file.st_ino))
        };
        match journal.and_then(names) {
            Some(true) => Self::Journal,
            _ => Self::Person,
        }
    }
}

/// Whether the reader of standard error is the journal.
pub fn is_for_journal() -> bool {
    LogReader::of_standard_error() == LogReader::Journal
}

/// Starts the log with the levels up to `most_verbose`, for the journal in any case if `journal`.
/// Logs panics as errors.
pub fn start(most_verbose: Level, journal: bool) {
    let reader = if journal { LogReader::Journal } else { LogReader::of_standard_error() };
    subscriber(reader, most_verbose, io::stderr).init();
    std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
}

fn subscriber<W>(reader: LogReader, most_verbose: Level, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    tracing_subscriber::fmt()
        .with_max_level(most_verbose)
        .with_writer(writer)
        .with_ansi(false)
        // It would panic where nothing can be written.
        .log_internal_errors(false)
        .event_format(Lines(reader))
        .finish()
}

/// Prints the error that ends the program, whether or not the log was started.
pub fn last_words(error: &str) {
    let priority = match LogReader::of_standard_error() {
        LogReader::Journal => Priority::of(Level::ERROR).to_string(),
        LogReader::Person => String::new(),
    };
    // Nobody can be told if that fails.
    let _ =
        io::Write::write_fmt(&mut io::stderr(), format_args!("{priority}xen-virtiod: {error}\n"));
}

/// A line's priority in the journal, with syslog's numbers.
struct Priority(u8);

impl Priority {
    fn of(level: Level) -> Self {
        Self(match level {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        })
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{}>", self.0)
    }
}

/// Formats an event as one line with control characters escaped: a guest's text cannot begin a line
/// with a priority of its own.
struct Lines(LogReader);

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: format::Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = String::new();
        let text = format::Writer::new(&mut line);
        let plain = format::format().with_target(false);
        match self.0 {
            LogReader::Person => plain.format_event(context, text, event)?,
            LogReader::Journal => {
                write!(writer, "{}", Priority::of(*event.metadata().level()))?;
                // The journal has its own time stamps, and shows the level as its priority.
                plain.without_time().with_level(false).format_event(context, text, event)?;
            }
        }
        writeln!(writer, "{}", OneLine(line.trim_end()))
    }
}

/// Text with its control characters escaped.
struct OneLine<'a>(&'a str);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|character| match character.is_control() {
            true => write!(f, "{}", character.escape_default()),
            false => f.write_char(character),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Read;
    use std::os::unix::fs::MetadataExt;
    use std::sync::Arc;

    fn logged(reader: LogReader, log: impl FnOnce()) -> String {
        let mut file = tempfile::tempfile().unwrap();
        let writer = Arc::new(file.try_clone().unwrap());
        tracing::subscriber::with_default(subscriber(reader, Level::TRACE, writer), log);
        io::Seek::rewind(&mut file).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        text
    }

    fn log_at_every_level() {
        tracing::error!("e");
        tracing::warn!("w");
        tracing::info!("i");
        tracing::debug!("d");
        tracing::trace!("t");
    }

    #[test]
    fn journal_line_begins_with_its_priority() {
        let text = logged(LogReader::Journal, log_at_every_level);
        assert_eq!(text, "<3>e\n<4>w\n<6>i\n<7>d\n<7>t\n");
    }

    #[test]
    fn journal_line_names_guest_and_device() {
        let text = logged(LogReader::Journal, || {
            let span = tracing::info_span!("device", guest = 7, name = "virtio_disk/51712");
            span.in_scope(|| tracing::warn!(reason = "no room", "device refused"));
        });
        assert!(text.starts_with("<4>"), "{text}");
        for part in ["guest=7", "virtio_disk/51712", "device refused", "no room"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn line_for_a_person_has_level_and_no_priority() {
        let text = logged(LogReader::Person, log_at_every_level);
        assert_eq!(text.lines().count(), 5);
        assert!(text.lines().all(|line| !line.starts_with('<')), "{text}");
        assert!(text.lines().next().unwrap().ends_with("ERROR e"), "{text}");
    }

    #[test]
    fn control_characters_are_escaped() {
        for reader in [LogReader::Person, LogReader::Journal] {
            let text = logged(reader, || tracing::info!("it says {}", "a\n<0>b\r\u{1b}[2J\0"));
            assert_eq!(text.lines().count(), 1, "{text:?}");
            let controls = text.trim_end().chars().filter(|character| character.is_control());
            assert_eq!(controls.count(), 0, "{text:?}");
        }
    }

    #[test]
    fn journal_is_detected_by_its_stream_only() {
        let file = tempfile::tempfile().unwrap();
        let stream = |file: &File| {
            let metadata = file.metadata().unwrap();
            format!("{}:{}", metadata.dev(), metadata.ino())
        };
        let reader = |named: &str| LogReader::of(&file, Some(OsStr::new(named)));
        assert_eq!(reader(&stream(&file)), LogReader::Journal);
        let other = tempfile::tempfile().unwrap();
        for named in [&stream(&other), "", "1", "1:2:3", "a:b"] {
            assert_eq!(reader(named), LogReader::Person, "{named:?}");
        }
        assert_eq!(LogReader::of(&file, None), LogReader::Person);
    }
}
