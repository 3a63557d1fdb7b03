//! One `migrate` command: what it tells while it lasts, and how it ends.

use migrate::progress::Event;
use migrate::report::{Outcome, Report};

use crate::{Process, until};

/// A `migrate --json` under way.
#[derive(Debug)]
pub struct Migration {
    process: Process,
}

/// How it ended.
#[derive(Debug)]
pub struct Ending {
    /// Its exit status.
    pub code: i32,
    /// All it told, the report last.
    pub events: Vec<Event>,
    /// What it said to people.
    pub words: String,
}

impl Migration {
    pub(crate) fn new(process: Process) -> Self {
        Self { process }
    }

    /// The command itself.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Waits until it has told something like this.
    ///
    /// # Panics
    /// When it ends without that, or neither happens in time.
    #[track_caller]
    pub fn wait_for(&mut self, what: &str, like: impl Fn(&Event) -> bool) {
        until(what, || {
            // In this order: what it says last is read.
            let ended = self.process.has_ended();
            let told = events(&self.process.out()).iter().any(&like);
            assert!(told || ended.is_none(), "the migration ended before {what}: {}", self.process.out());
            told.then_some(())
        });
    }

    /// Waits until it is over.
    ///
    /// # Panics
    /// When it is not over in time, or told something that is no event.
    #[track_caller]
    pub fn end(mut self) -> Ending {
        let output = self.process.end();
        let code = output.code.expect("an exit status");
        Ending { code, events: events(&output.out), words: output.err }
    }
}

impl Ending {
    /// The report.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    #[track_caller]
    pub fn report(&self) -> Report {
        match self.events.last() {
            Some(Event::Ended { report }) => (**report).clone(),
            _ => panic!("no report, status {}: {}", self.code, self.words),
        }
    }

    /// The report of a guest that has moved.
    ///
    /// # Panics
    /// When it has not.
    #[must_use]
    #[track_caller]
    pub fn moved(&self) -> Report {
        self.ended_with(Outcome::Moved, 0)
    }

    /// The reason why the guest was kept.
    ///
    /// # Panics
    /// When it was not, or without a reason.
    #[must_use]
    #[track_caller]
    pub fn kept(&self) -> String {
        self.reason(Outcome::Kept, 1)
    }

    /// The reason why it is not known where the guest runs.
    ///
    /// # Panics
    /// When it is known, or unknown without a reason.
    #[must_use]
    #[track_caller]
    pub fn unknown(&self) -> String {
        self.reason(Outcome::Unknown, 3)
    }

    #[track_caller]
    fn reason(&self, outcome: Outcome, code: i32) -> String {
        let reason = self.ended_with(outcome, code).reason.expect("a reason");
        assert!(!reason.trim().is_empty() && !reason.contains('\n'), "a reason is one line: {reason:?}");
        reason
    }

    #[track_caller]
    fn ended_with(&self, outcome: Outcome, code: i32) -> Report {
        let report = self.report();
        let told = (report.outcome, self.code);
        assert_eq!(told, (outcome, code), "because {:?}; {}", report.reason, self.words);
        report
    }
}

/// The events in this text, which may end within a line.
#[track_caller]
fn events(text: &str) -> Vec<Event> {
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let parse = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("no event: {error}: {line}"));
    whole.lines().map(parse).collect()
}
