//! Shows the progress of long steps: a spinner for each on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::minutes::Minutes;

/// The interval at which a spinner moves.
const TICK: Duration = Duration::from_millis(200);

/// The display. Steps can run at the same time.
pub(crate) struct Progress {
    bars: Option<MultiProgress>,
    minutes: Minutes,
}

impl Progress {
    /// Returns a display on standard error: spinners if that is a terminal, else plain lines.
    pub(crate) fn new() -> Progress {
        let bars = std::io::stderr().is_terminal().then(MultiProgress::new);
        Progress { bars, minutes: Minutes::default() }
    }

    /// Starts the step `name`. It counts as failed if it is dropped without [`Step::done`].
    pub(crate) fn step(&self, name: &str) -> Step {
        let bar = self.bars.as_ref().map(|bars| bars.add(spinner(name)));
        if bar.is_none() {
            eprintln!("{name} …");
        }
        Step { name: name.to_owned(), bar, start: Instant::now(), finished: false }
    }

    /// Returns the times of the command's parts.
    pub(crate) fn minutes(&self) -> &Minutes {
        &self.minutes
    }

    /// Prints a line above the steps.
    pub(crate) fn line(&self, text: &str) {
        match &self.bars {
            Some(bars) => bars.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }
}

fn spinner(name: &str) -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_message(name.to_owned());
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(TICK);
    bar
}

/// A running step.
pub(crate) struct Step {
    name: String,
    bar: Option<ProgressBar>,
    start: Instant,
    finished: bool,
}

impl Step {
    /// Shows the current activity of the step. Plain output leaves it out.
    pub(crate) fn at(&self, what: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{}: {what}", self.name));
        }
    }

    /// Ends the step as successful.
    pub(crate) fn done(mut self) {
        self.finished = true;
        self.end("done in");
    }

    fn end(&self, how: &str) {
        let line = format!("{}: {how} {:.0} s", self.name, self.start.elapsed().as_secs_f32());
        match &self.bar {
            Some(bar) => {
                bar.suspend(|| eprintln!("{line}"));
                bar.finish_and_clear();
            }
            None => eprintln!("{line}"),
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if !self.finished {
            self.end("failed after");
        }
    }
}
