//! Captures the daemon's log by the thread that writes it and the guest that it names.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::sync::{Condvar, Mutex, MutexGuard, Once};
use std::thread;
use std::time::Duration;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

/// Maximum time to wait for a line.
const LIMIT: Duration = Duration::from_secs(2);

/// Lines by the names of threads.
type Lines = BTreeMap<String, Vec<String>>;

static LINES: Mutex<Lines> = Mutex::new(BTreeMap::new());
static MORE: Condvar = Condvar::new();

fn lines() -> MutexGuard<'static, Lines> {
    LINES.lock().unwrap()
}

/// The name of the server's thread for this guest.
pub(super) fn server_thread(guest: u16) -> String {
    format!("server-of-{guest}")
}

/// Captures the lines of this process's threads that the log shows by default. Sets the global
/// subscriber, which no other test sets.
pub(super) fn capture() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let subscriber = tracing_subscriber::registry().with(Capture);
        tracing::subscriber::set_global_default(subscriber).unwrap();
    });
}

/// The threads of this guest: its server's and its devices', which are named after it.
fn threads(all: &Lines, guest: u16) -> Vec<String> {
    let (server, device) = (server_thread(guest), format!("{guest}-"));
    let is_ours = |name: &&String| **name == server || name.starts_with(&device);
    all.keys().filter(is_ours).cloned().collect()
}

/// Waits for a line about this guest; returns whether there is one.
pub(super) fn wait(guest: u16) -> bool {
    let none = |all: &mut Lines| threads(all, guest).is_empty();
    !MORE.wait_timeout_while(lines(), LIMIT, none).unwrap().1.timed_out()
}

/// Takes the lines about this guest.
pub(super) fn take(guest: u16) -> Vec<String> {
    let mut all = lines();
    threads(&all, guest).iter().flat_map(|name| all.remove(name).unwrap()).collect()
}

struct Capture;

impl<S: Subscriber> Layer<S> for Capture {
    fn enabled(&self, metadata: &tracing::Metadata<'_>, _: Context<'_, S>) -> bool {
        *metadata.level() <= Level::INFO
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        // A device that starts and ends logs that at INFO.
        if *event.metadata().level() > Level::WARN {
            return;
        }
        let name = thread::current().name().unwrap_or_default().to_owned();
        let mut line = Line(String::new());
        event.record(&mut line);
        lines().entry(name).or_default().push(line.0);
        MORE.notify_all();
    }
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = write!(self.0, "{field}={value:?} ");
    }
}
