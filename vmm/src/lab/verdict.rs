//! Whether a move was good: what must be true of it, each broken promise in a sentence.

use migrate::client::types::{Life, VmInfo};
use migrate::report::{Outcome, Report};

/// Judges a report. `verify`: the comparison of all RAM had been asked for.
#[must_use]
pub fn of_report(report: &Report, verify: bool) -> Vec<String> {
    if report.outcome != Outcome::Moved {
        let reason = report.reason.as_deref().unwrap_or("no reason was given");
        let who = if report.outcome == Outcome::Kept { "the guest stayed" } else { "the guest is in doubt" };
        return vec![format!("{who}: {reason}")];
    }
    let mut problems = Vec::new();
    if report.residual_bytes > 0 {
        problems.push(format!("{} bytes of the guest are left on the source", report.residual_bytes));
    }
    if let Some(postcopy) = report.postcopy.filter(|postcopy| postcopy.duplicate_pages > postcopy.faults) {
        problems.push(format!(
            "{} pages arrived twice, {} were requested",
            postcopy.duplicate_pages, postcopy.faults
        ));
    }
    match report.guest_measured {
        None => problems.push("the guest measured nothing".to_owned()),
        Some(measured) => problems.extend(corruptions(measured.corruptions)),
    }
    if verify {
        problems.extend(of_comparison(report));
    }
    problems
}

/// Judges what a VMM says of its guest, which should run and be sound.
#[must_use]
pub fn of_info(info: &VmInfo) -> Vec<String> {
    let mut problems = Vec::new();
    if info.life != Life::Running {
        problems.push(format!("the guest should run on {} but is {:?}", info.name, info.life));
    }
    match info.corruptions {
        None => problems.push(format!("the guest on {} does not say whether its memory is sound", info.name)),
        Some(found) => problems.extend(corruptions(found)),
    }
    problems
}

fn of_comparison(report: &Report) -> Option<String> {
    match &report.verification {
        None => {
            let why = report.unverified.as_ref().map_or_else(String::new, |why| format!(": {why}"));
            Some(format!("memory was not compared{why}"))
        }
        Some(compared) if compared.mismatched > 0 => {
            let (mismatched, pages) = (compared.mismatched, compared.pages);
            Some(format!("{mismatched} of {pages} pages differ, first {:?}", compared.first_mismatches))
        }
        Some(compared) if compared.pages == 0 => Some("no page was compared".to_owned()),
        Some(_) => None,
    }
}

fn corruptions(found: u64) -> Option<String> {
    (found > 0).then(|| format!("the guest found {found} violations"))
}

#[cfg(test)]
pub(crate) mod tests {
    use migrate::options::Mode;
    use migrate::report::{GuestMeasured, Postcopy, Traffic, Verification};

    use super::*;

    /// A move with nothing wrong.
    pub(crate) fn good() -> Report {
        Report {
            outcome: Outcome::Moved,
            total_us: 400_000,
            traffic: Traffic { bytes: 1 << 30, pages: 1 << 18, ..Traffic::default() },
            postcopy: Some(Postcopy::default()),
            guest_measured: Some(GuestMeasured { downtime_us: 5000.0, ..GuestMeasured::default() }),
            verification: Some(Verification {
                pages: 9,
                skipped: 0,
                mismatched: 0,
                first_mismatches: Vec::new(),
                us: 1,
            }),
            ..Report::blank("demo", "127.0.0.1:1", Mode::Postcopy, 2)
        }
    }

    fn spoiled(spoil: impl FnOnce(&mut Report)) -> String {
        let mut report = good();
        spoil(&mut report);
        of_report(&report, true).join("; ")
    }

    #[test]
    fn every_broken_promise_is_named() {
        assert_eq!(spoiled(|_| ()), "");
        assert_eq!(spoiled(|r| r.residual_bytes = 7), "7 bytes of the guest are left on the source");
        assert_eq!(
            spoiled(|r| r.postcopy.as_mut().unwrap().duplicate_pages = 1),
            "1 pages arrived twice, 0 were requested"
        );
        assert_eq!(spoiled(|r| r.guest_measured = None), "the guest measured nothing");
        assert_eq!(
            spoiled(|r| r.guest_measured.as_mut().unwrap().corruptions = 2),
            "the guest found 2 violations"
        );
        assert_eq!(spoiled(|r| r.verification = None), "memory was not compared");
        let cut = |r: &mut Report| (r.verification, r.unverified) = (None, Some("cut".to_owned()));
        assert_eq!(spoiled(cut), "memory was not compared: cut");
        assert_eq!(spoiled(|r| r.verification.as_mut().unwrap().pages = 0), "no page was compared");
        let differ = |r: &mut Report| {
            let compared = r.verification.as_mut().unwrap();
            (compared.mismatched, compared.first_mismatches) = (1, vec![42]);
        };
        assert_eq!(spoiled(differ), "1 of 9 pages differ, first [42]");
    }

    #[test]
    fn a_guest_that_did_not_move_says_why_and_no_more() {
        let kept = |r: &mut Report| (r.outcome, r.reason) = (Outcome::Kept, Some("cancelled".to_owned()));
        assert_eq!(spoiled(kept), "the guest stayed: cancelled");
        assert_eq!(spoiled(|r| r.outcome = Outcome::Unknown), "the guest is in doubt: no reason was given");
    }

    #[test]
    fn what_was_not_asked_for_is_not_missed() {
        let mut report = good();
        report.verification = None;
        assert!(of_report(&report, false).is_empty());
    }
}
