//! Where the words go: a progress bar on a terminal, plain lines elsewhere, or JSON.
//!
//! Progress goes to standard error, the report (and all JSON) to standard output. A reader who hangs up does
//! not end the command: the migration is worth more than its description.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::words;
use crate::progress::{Event, Progress};
use crate::report::Report;

/// Plain lines: at most one for progress in this time.
const LINE_EVERY: Duration = Duration::from_secs(1);

/// A way to show a migration.
#[derive(Debug)]
pub(super) enum Show {
    Bar(ProgressBar),
    Lines { last: Option<Instant> },
    Json,
}

impl Show {
    pub(super) fn new(json: bool) -> Self {
        if json {
            Self::Json
        } else if io::stderr().is_terminal() {
            Self::Bar(bar())
        } else {
            Self::Lines { last: None }
        }
    }

    /// Something happened, and it is not over.
    pub(super) fn tell(&mut self, event: &Event) {
        match (self, event) {
            (Self::Json, event) => print_json(event),
            (Self::Bar(bar), Event::Progress(progress)) => advance(bar, progress),
            (Self::Bar(bar), event) => bar.println(words::event(event)),
            (Self::Lines { last }, Event::Progress(progress)) => {
                if last.is_none_or(|last| last.elapsed() >= LINE_EVERY) {
                    *last = Some(Instant::now());
                    line(&words::progress(progress));
                }
            }
            (Self::Lines { .. }, event) => line(&words::event(event)),
        }
    }

    /// It is over.
    pub(super) fn end(&mut self, report: Report) -> Report {
        match self {
            Self::Json => print_json(&Event::Ended { report: Box::new(report.clone()) }),
            Self::Bar(_) | Self::Lines { .. } => {
                self.clear();
                let _ = io::stdout().write_all(words::report(&report).as_bytes());
            }
        }
        report
    }

    /// Something this command has to say itself.
    pub(super) fn note(&mut self, words: &str) {
        match self {
            Self::Bar(bar) => bar.suspend(|| line(words)),
            Self::Lines { .. } | Self::Json => line(words),
        }
    }

    fn clear(&mut self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Show {
    fn drop(&mut self) {
        self.clear();
    }
}

fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix:>10} [{bar:12}] {wide_msg}");
    let bar = ProgressBar::new(0);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
    bar
}

fn advance(bar: &ProgressBar, progress: &Progress) {
    bar.set_length(progress.pages_total);
    bar.set_position(progress.pages_total.saturating_sub(progress.pages_left));
    bar.set_prefix(words::place(progress));
    bar.set_message(words::brief(progress));
}

fn print_json(event: &Event) {
    let mut out = io::stdout().lock();
    if serde_json::to_writer(&mut out, event).is_ok() {
        let _ = out.write_all(b"\n").and_then(|()| out.flush());
    }
}

fn line(words: &str) {
    let _ = writeln!(io::stderr(), "{words}");
}
