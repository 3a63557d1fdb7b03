//! A report in words: the ending first, then the figures in the order of the migration.

use super::layout::{Page, Row};
use super::{bytes, count, micros, mode, phase};
use crate::options::InFlightPolicy;
use crate::report::{GuestMeasured, InFlight, Outcome, Postcopy, Report, Switchover, Verification};

/// A report for people, several lines.
#[must_use]
pub fn report(report: &Report) -> String {
    let mut page = Page::default();
    outcome(&mut page, report);
    downtime(&mut page, report);
    phases(&mut page, report);
    rounds(&mut page, report);
    if let Some(it) = &report.switchover {
        switchover(&mut page, it);
    }
    traffic(&mut page, report);
    if let Some(it) = &report.postcopy {
        postcopy(&mut page, it);
    }
    if let Some(it) = &report.in_flight {
        in_flight(&mut page, it);
    }
    if let Some(it) = &report.guest_measured {
        guest(&mut page, it);
    }
    checks(&mut page, report);
    page.finish()
}

/// How it ended, in one line.
pub(super) fn headline(report: &Report) -> String {
    let Report { guest, destination, .. } = report;
    match report.outcome {
        Outcome::Moved => format!("moved: {guest} runs on {destination}"),
        Outcome::Kept => format!("kept: {guest} runs here, it did not move to {destination}"),
        Outcome::Unknown => {
            format!("not known: {guest} is paused here because {destination} may be running it")
        }
    }
}

fn outcome(page: &mut Page, report: &Report) {
    page.line(&headline(report));
    let streams = if report.streams == 1 { "stream" } else { "streams" };
    page.line(&format!(
        "{}, {} {streams}, {} in all",
        mode(report.mode),
        report.streams,
        us(report.total_us)
    ));
    if let Some(done) = report.on_timeout {
        page.line(&format!("--on-timeout: {}", super::on_timeout(done)));
    }
    let held_back = report.rounds.iter().map(|round| round.throttle).max().unwrap_or(0);
    if held_back > 0 {
        page.line(&format!(
            "--throttle: vCPUs that write were held back for up to {held_back} % of their time"
        ));
    }
    if let Some(reason) = &report.reason {
        page.line(&format!("because {reason}"));
    }
    if report.outcome == Outcome::Unknown {
        page.line(
            "migrate recover asks there again, and goes on or brings it back; where that host is gone for good: \
             migrate resolve --force-source",
        );
    }
}

fn downtime(page: &mut Page, report: &Report) {
    let guest = match &report.guest_measured {
        Some(it) => {
            let rest = format!(
                "{} after the start; between timer ticks {}",
                micros(it.downtime_at_us),
                micros(it.tick_gap_us)
            );
            row("the guest measured", micros(it.downtime_us), &rest)
        }
        None => row("the guest measured", "-".into(), "no figures from it"),
    };
    let host = match &report.switchover {
        Some(it) => row("the host saw", us(it.downtime_us), &format!("expected {}", us(it.estimated_us))),
        None => row("the host saw", "-".into(), "the guest was not paused"),
    };
    page.section("Downtime", [guest, host]);
}

fn phases(page: &mut Page, report: &Report) {
    if !report.phases.is_empty() {
        page.section("Phases", report.phases.iter().map(|it| row(phase(it.phase), us(it.us), "")));
    }
}

fn rounds(page: &mut Page, report: &Report) {
    if report.rounds.is_empty() {
        return;
    }
    let cells = |it: &crate::report::Round| {
        [
            it.number.to_string(),
            count(it.pages),
            count(it.zero_pages),
            bytes(it.bytes as f64),
            us(it.us),
            count(it.dirtied),
            count(it.dirty_rate as u64),
        ]
    };
    let head = ["round", "pages", "zero pages", "sent", "time", "dirtied", "dirtied/s"];
    page.table("Rounds", head, &report.rounds.iter().map(cells).collect::<Vec<_>>());
}

fn switchover(page: &mut Page, it: &Switchover) {
    let rows = [
        row("pause the vCPUs", us(it.pause_us), ""),
        row("save the state", us(it.save_us), &bytes(it.state_bytes as f64)),
        row("harvest the dirty log", us(it.harvest_us), ""),
        row("send", us(it.send_us), &format!("{} pages", count(it.pages))),
        row("until it is ready", us(it.ready_us), &format!("restoring took {} of it", us(it.restore_us))),
        row("until it runs", us(it.resume_us), ""),
    ];
    page.section("Switchover", rows);
}

fn traffic(page: &mut Page, report: &Report) {
    let traffic = &report.traffic;
    let rate = if report.total_us == 0 { 0.0 } else { traffic.bytes as f64 * 1e6 / report.total_us as f64 };
    let mut rows = vec![
        row("sent", bytes(traffic.bytes as f64), &format!("{}/s on average", bytes(rate))),
        row("pages", count(traffic.pages), "repeats counted"),
        row("zero pages", count(traffic.zero_pages), "sent as marks"),
    ];
    if traffic.packed_pages > 0 {
        let deltas = format!("{} of them as differences", count(traffic.delta_pages));
        rows.push(row("packed pages", count(traffic.packed_pages), &deltas));
        rows.push(row("not sent", bytes(traffic.saved_bytes as f64), "because they were packed"));
    }
    page.section("Traffic", rows);
}

fn postcopy(page: &mut Page, it: &Postcopy) {
    let mut rows = vec![
        row("missing at the start", count(it.missing_pages), "pages"),
        row("page requests", count(it.faults), ""),
        row("fault p50", us(it.fault_p50_us), ""),
        row("fault p90", us(it.fault_p90_us), ""),
        row("fault p99", us(it.fault_p99_us), ""),
        row("longest fault", us(it.fault_max_us), ""),
        row("until the last page", us(it.last_page_us), ""),
    ];
    if it.duplicate_pages > 0 {
        rows.push(row("sent again", count(it.duplicate_pages), "pages that were waited for on their way"));
    }
    page.section("Post-copy", rows);
}

fn in_flight(page: &mut Page, it: &InFlight) {
    let rows = match it.policy {
        InFlightPolicy::Forward => vec![
            row("sent after the guest", count(it.packets), &bytes(it.bytes as f64)),
            row("until the last one came", us(it.last_us), "after the guest's start there"),
        ],
        InFlightPolicy::Drop => vec![row("sent after the guest", "-".into(), "dropped, as was asked for")],
    };
    page.section("Packets in flight", rows);
}

fn guest(page: &mut Page, it: &GuestMeasured) {
    let pace = |rate: f64| match it.work_before_per_s {
        before if before > 0.0 => format!("{:.0} %", rate / before * 100.0),
        _ => String::new(),
    };
    let work = |rate: f64| format!("{}/s", count(rate.max(0.0) as u64));
    let oracle = if it.corruptions == 0 { "memory is as it left it" } else { "MEMORY IS NOT AS IT LEFT IT" };
    let rows = [
        row("work before", work(it.work_before_per_s), ""),
        row("work during", work(it.work_during_per_s), &pace(it.work_during_per_s)),
        row("work after", work(it.work_after_per_s), &pace(it.work_after_per_s)),
        row("work lost", micros(it.work_lost_ms.max(0.0) * 1e3), "at the pace before"),
        row("corruptions", count(it.corruptions), oracle),
    ];
    page.section("Guest", rows);
}

fn checks(page: &mut Page, report: &Report) {
    let mut rows = Vec::new();
    match (&report.verification, &report.unverified) {
        (Some(it), _) => verification(&mut rows, it),
        (None, why) => rows.push(row("verification", "-".into(), &not_verified(report.outcome, why))),
    }
    if report.outcome == Outcome::Moved {
        rows.push(match report.residual_bytes {
            0 => row("left on the source", "nothing".into(), ""),
            left => row("left on the source", bytes(left as f64), "THE GUEST STILL NEEDS THE SOURCE"),
        });
    }
    page.section("Checks", rows);
}

fn verification(rows: &mut Vec<Row>, it: &Verification) {
    rows.push(row("pages compared", count(it.pages), &format!("in {}", us(it.us))));
    if it.skipped > 0 {
        rows.push(row("pages not compared", count(it.skipped), "written before they could be"));
    }
    let first = it.first_mismatches.iter().map(|gfn| format!("{gfn:#x}")).collect::<Vec<_>>().join(" ");
    let remark =
        if it.mismatched == 0 { String::new() } else { format!("MEMORY DIFFERS, first frames: {first}") };
    rows.push(row("pages that differ", count(it.mismatched), &remark));
}

/// Of a guest that has not moved it is said elsewhere why it came to nothing.
fn not_verified(outcome: Outcome, why: &Option<String>) -> String {
    match why {
        None => "not asked for (--verify)".to_owned(),
        Some(why) if outcome == Outcome::Moved => format!("ASKED FOR, BUT NOT DONE: {why}"),
        Some(_) => "asked for, but it did not come to that".to_owned(),
    }
}

fn row(label: &'static str, figure: String, remark: &str) -> Row {
    (label, figure, remark.to_owned())
}

fn us(us: u64) -> String {
    micros(us as f64)
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn a_guest_that_moved() {
        assert_eq!(report(&sample::moved()), include_str!("moved.txt"));
    }

    #[test]
    fn a_guest_that_stayed() {
        assert_eq!(report(&sample::kept()), include_str!("kept.txt"));
    }

    #[test]
    fn what_is_wrong_stands_out() {
        let mut bad = sample::moved();
        bad.residual_bytes = 4096;
        bad.guest_measured.as_mut().unwrap().corruptions = 1;
        let verification = bad.verification.as_mut().unwrap();
        (verification.mismatched, verification.first_mismatches) = (2, vec![16, 17]);
        let words = report(&bad);
        for shout in
            ["STILL NEEDS THE SOURCE", "NOT AS IT LEFT IT", "MEMORY DIFFERS, first frames: 0x10 0x11"]
        {
            assert!(words.contains(shout), "{words}");
        }
    }

    #[test]
    fn a_comparison_that_was_not_done_is_not_called_unwanted() {
        let mut report = sample::moved();
        report.verification = None;
        let why = "10.0.0.2:7000 closed the connection";
        report.unverified = Some(why.to_owned());
        let words = super::report(&report);
        assert!(words.contains(&format!("ASKED FOR, BUT NOT DONE: {why}")), "{words}");
        assert!(!words.contains("not asked for"), "{words}");
        report.outcome = Outcome::Kept;
        let words = super::report(&report);
        assert!(words.contains("asked for, but it did not come to that"), "{words}");
    }

    #[test]
    fn a_guest_in_doubt_comes_with_the_way_out() {
        let mut doubt = sample::kept();
        doubt.outcome = Outcome::Unknown;
        assert!(report(&doubt).contains("migrate recover"));
    }
}
