//! All that is said to a person about a migration. One place, so that one thing has one name.

mod layout;
mod report;
#[cfg(test)]
pub(crate) mod sample;
mod units;

use std::time::Duration;

pub use self::report::report;
pub use self::units::{bytes, count, micros};
use crate::client::types::{Resolution, Salvage};
use crate::options::{Mode, OnTimeout};
use crate::progress::{Event, Progress};
use crate::report::{Outcome, Phase, Report, Round, Switchover};

/// Under way, and nothing to say yet.
pub const STARTING: &str = "the migration is starting";

/// The first Ctrl-C.
pub const CANCELLING: &str = "asking to cancel the migration; press Ctrl-C again to leave without waiting";

/// The VMM has accepted.
pub const CANCEL_ASKED: &str = "cancelling: the guest stays here unless it switches over first";

/// The VMM lets the migration go on that waited.
pub const CONTINUED: &str = "the migration goes on: the guest switches over";

/// The second Ctrl-C.
pub const LEFT: &str =
    "the migration goes on without this command; migrate watch follows it, migrate status says how it ended";

/// The VMM has not accepted.
#[must_use]
pub fn cannot_cancel(reason: &str) -> String {
    format!("cannot cancel: {reason}")
}

/// There is nothing to tell.
#[must_use]
pub fn no_migration(name: &str) -> String {
    format!("{name}: no migration so far")
}

/// A guest is on its way here: there is nothing to follow.
#[must_use]
pub fn arriving(name: &str) -> String {
    format!("{name}: a guest is arriving here; watch it on its source")
}

/// The VMM ended the conversation without a last word.
#[must_use]
pub fn hung_up(name: &str) -> String {
    format!("VM {name} ended before it said how the migration did")
}

/// The VMM fell silent before it said how the migration ended.
#[must_use]
pub fn not_known(reason: &str) -> String {
    format!(
        "outcome not known: {reason}\n\
         look on both hosts with vmm list before starting the guest anywhere again"
    )
}

/// The operator has decided.
#[must_use]
pub fn resolved(name: &str, resolution: Resolution) -> String {
    match resolution {
        Resolution::ForceSource | Resolution::ForceDestination => format!("{name}: the guest runs here"),
        Resolution::Discard => format!("{name}: the guest was discarded here"),
    }
}

/// What the operator answers for.
#[must_use]
pub fn warning(resolution: Resolution) -> Option<&'static str> {
    match resolution {
        Resolution::ForceSource => Some(
            "warning: this is your word that the destination does not run the guest and never will. What the guest has done there, \
             if it has run there, is undone, but not what its disks and peers have seen of it",
        ),
        Resolution::ForceDestination => {
            Some("warning: this is your word that the source does not run the guest and never will")
        }
        Resolution::Discard => None,
    }
}

/// What was kept of a guest that is there in part.
#[must_use]
pub fn salvaged(kept: &Salvage) -> String {
    format!(
        "{} pages of memory are in {}; the {} that are missing are listed in {}",
        count(kept.pages),
        kept.memory.display(),
        count(kept.missing_pages),
        kept.list.display()
    )
}

/// Why `--fail-above` is not content; `None` when it is, or the guest has not moved.
#[must_use]
pub fn too_slow(report: &Report, limit: Option<Duration>) -> Option<String> {
    let limit = limit.filter(|_| report.outcome == Outcome::Moved)?.as_secs_f64() * 1e6;
    match report.guest_measured {
        None => Some(format!("--fail-above {}: the guest measured no downtime", micros(limit))),
        Some(guest) if guest.downtime_us > limit => {
            Some(format!("--fail-above {}: the guest measured {}", micros(limit), micros(guest.downtime_us)))
        }
        Some(_) => None,
    }
}

/// A mode's name.
#[must_use]
pub fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Precopy => "pre-copy",
        Mode::Stopcopy => "stop-and-copy",
        Mode::Postcopy => "post-copy",
        Mode::Hybrid => "hybrid",
    }
}

/// What was done when time was up.
#[must_use]
pub(crate) fn on_timeout(done: OnTimeout) -> &'static str {
    match done {
        OnTimeout::Cancel => "given up",
        OnTimeout::Postcopy => "what was left followed by post-copy",
        OnTimeout::Force => "what was left was copied in the pause, however long it got",
    }
}

/// A phase's name.
#[must_use]
pub fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Connect => "connect",
        Phase::Precopy => "pre-copy",
        Phase::Waiting => "waiting",
        Phase::Switchover => "switchover",
        Phase::Postcopy => "post-copy",
        Phase::Finish => "finish",
    }
}

/// One event in one line.
#[must_use]
pub fn event(event: &Event) -> String {
    match event {
        Event::Phase { phase } => began(*phase).to_owned(),
        Event::Progress(figures) => progress(figures),
        Event::Round { round: figures, decision } => round(figures, decision),
        Event::Switched { switchover } => switched(switchover),
        Event::TurnedAway { peer, reason } => format!("{peer} was turned away: {reason}"),
        Event::Lost { cause } => lost(cause),
        Event::Found { us, calls } => {
            format!("found again after {} ({calls} calls)", micros(*us as f64))
        }
        Event::Ended { report } => report::headline(report),
    }
}

/// The destination is called again.
#[must_use]
pub fn lost(cause: &str) -> String {
    format!("the link was lost: {cause}; calling again")
}

fn began(phase: Phase) -> &'static str {
    match phase {
        Phase::Connect => "connect: asking the destination whether it can take the guest",
        Phase::Precopy => "pre-copy: copying memory while the guest runs",
        Phase::Waiting => {
            "waiting: `migrate continue` lets the guest switch over, `migrate cancel` keeps it here"
        }
        Phase::Switchover => "switchover: pausing the guest and handing it over",
        Phase::Postcopy => "post-copy: the guest runs on the destination, its memory follows",
        Phase::Finish => "finish: checking, last figures, goodbye",
    }
}

fn round(round: &Round, decision: &str) -> String {
    format!(
        "round {}: {} pages and {} zero pages ({}) in {}, {} dirtied meanwhile: {decision}",
        round.number,
        count(round.pages),
        count(round.zero_pages),
        bytes(round.bytes as f64),
        micros(round.us as f64),
        count(round.dirtied),
    )
}

fn switched(switchover: &Switchover) -> String {
    format!(
        "switched over: the guest runs on the destination after {}",
        micros(switchover.downtime_us as f64)
    )
}

/// Where a migration is and how fast it goes, in one line.
#[must_use]
pub fn progress(progress: &Progress) -> String {
    match progress.phase {
        Phase::Waiting => format!("waiting for `migrate continue`: {}", figures(progress)),
        _ => format!("{}: {}", place(progress), figures(progress)),
    }
}

/// Phase and round.
#[must_use]
pub fn place(progress: &Progress) -> String {
    match progress.phase {
        Phase::Precopy => format!("round {}", progress.round),
        other => phase(other).to_owned(),
    }
}

/// [`figures`] beside a bar, in what is left of 80 columns.
#[must_use]
pub fn brief(progress: &Progress) -> String {
    if progress.pages_total == 0 {
        return figures(progress);
    }
    let mut words = format!("{} pages left, {}/s", count(progress.pages_left), bytes(progress.bytes_per_s));
    if matches!(progress.phase, Phase::Precopy) {
        words += &format!(", {}/s dirtied", count(progress.dirty_rate as u64));
        words += &held_back(progress.throttle);
    }
    if let Some(eta) = progress.eta_ms {
        words += &format!(", {}", micros(eta as f64 * 1e3));
    }
    words
}

/// That vCPUs are held back, if they are.
fn held_back(percent: u8) -> String {
    if percent == 0 { String::new() } else { format!(", held back {percent} %") }
}

/// How fast it goes, and how long it will take. Without pages to count, only what was sent.
#[must_use]
pub fn figures(progress: &Progress) -> String {
    let sent = format!("{} sent", bytes(progress.bytes as f64));
    if progress.pages_total == 0 {
        return sent;
    }
    let (left, total) = (count(progress.pages_left), count(progress.pages_total));
    let mut words = format!("{left} of {total} pages left, {sent}, {}/s", bytes(progress.bytes_per_s));
    if matches!(progress.phase, Phase::Precopy) {
        words += &format!(", {} pages/s dirtied", count(progress.dirty_rate as u64));
        words += &held_back(progress.throttle);
    }
    if let Some(eta) = progress.eta_ms {
        words += &format!(", {} to go", micros(eta as f64 * 1e3));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_in_a_line() {
        let mut now = sample::progress();
        let line = "round 1: 12,345 of 65,536 pages left, 256.0 MiB sent, 1.10 GiB/s, 30,000 pages/s dirtied, 44.0 ms to go";
        assert_eq!(progress(&now), line);
        assert_eq!(brief(&now), "12,345 pages left, 1.10 GiB/s, 30,000/s dirtied, 44.0 ms");
        (now.phase, now.eta_ms) = (Phase::Postcopy, None);
        assert_eq!(progress(&now), "post-copy: 12,345 of 65,536 pages left, 256.0 MiB sent, 1.10 GiB/s");
        (now.phase, now.pages_left) = (Phase::Waiting, 12);
        let waiting = "waiting for `migrate continue`: 12 of 65,536 pages left, 256.0 MiB sent, 1.10 GiB/s";
        assert_eq!(progress(&now), waiting);
        (now.phase, now.pages_total) = (Phase::Finish, 0);
        assert_eq!((progress(&now), brief(&now)), ("finish: 256.0 MiB sent".into(), "256.0 MiB sent".into()));
    }

    #[test]
    fn a_round_in_a_line() {
        let report = sample::moved();
        let line = "round 0: 65,536 pages and 196,608 zero pages (256.2 MiB) in 231 ms, 2,048 dirtied meanwhile: again";
        assert_eq!(round(&report.rounds[0], "again"), line);
    }

    #[test]
    fn too_much_downtime_is_said_with_both_figures() {
        let mut report = sample::moved();
        let limit = |ms| Some(Duration::from_millis(ms));
        assert_eq!(too_slow(&report, None), None);
        assert_eq!(too_slow(&report, limit(13)), None);
        assert_eq!(too_slow(&report, limit(5)).unwrap(), "--fail-above 5.00 ms: the guest measured 12.4 ms");
        report.guest_measured = None;
        assert_eq!(
            too_slow(&report, limit(5)).unwrap(),
            "--fail-above 5.00 ms: the guest measured no downtime"
        );
        report.outcome = Outcome::Kept;
        assert_eq!(too_slow(&report, limit(5)), None);
    }
}
