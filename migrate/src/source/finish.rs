//! After the guest has moved: comparison (post-copy), its own figures, the last packets, goodbye.
//!
//! The guest is on the destination whatever happens here; a failure only costs figures, and the
//! comparison, which the report then calls not done.

use super::connect::Lines;
use super::in_flight::Forwarding;
use super::{Journey, us_since};
use crate::failure::Failure;
use crate::guest::Telemetry;
use crate::report::{GuestMeasured, Phase};
use crate::verify::send_hashes;
use crate::wire::{Kind, Message};

impl Journey<'_> {
    /// Comparison, figures, packets, goodbye.
    ///
    /// # Errors
    /// When RAM differs: the guest has moved, but somebody should know.
    pub(super) fn last_words(&mut self, lines: &Lines, forwarding: Forwarding<'_>) -> Result<(), Failure> {
        self.logbook.enter(Phase::Finish);
        self.logbook.stop_clock();
        self.logbook.leave_alone();
        // The guest has moved: what cannot be heard any more stays absent from the report.
        let heard = self.hear_figures(lines);
        self.end_forwarding(forwarding);
        match heard.and_then(|figures| lines.control.tell(&Message::Bye).map(|()| figures)) {
            Ok((end, settled)) => {
                self.custody.conclude();
                let before = self.logbook.before.take();
                self.logbook.report.guest_measured = measured(before, end, settled);
            }
            Err(failure) => self.logbook.unheard = Some(self.context.alarm.explain(failure)),
        }
        let differs = self.logbook.report.verification.clone().filter(|found| found.mismatched > 0);
        differs.map_or(Ok(()), |found| Err(Failure::Mismatch(found)))
    }

    fn hear_figures(&mut self, lines: &Lines) -> Result<(Option<Telemetry>, Option<Telemetry>), Failure> {
        let control = &lines.control;
        if self.postcopy() && self.context.options.verify && self.calls == 0 {
            let since = std::time::Instant::now();
            send_hashes(&self.map()?, self.context.ram(), control)?;
            match control.hear()? {
                Message::Verified(verification) => self.logbook.report.verification = Some(verification),
                other => return Err(control.unexpected(other.kind(), Kind::Verified.word())),
            }
            self.logbook.report.total_us += us_since(since);
        }
        control.tell(&Message::Finish)?;
        let end = match control.hear()? {
            Message::Figures(figures) => {
                self.logbook.report.takeover = figures.takeover;
                figures.telemetry
            }
            other => return Err(control.unexpected(other.kind(), Kind::Figures.word())),
        };
        let settled = match control.hear()? {
            Message::Settled(figures) => figures.telemetry,
            other => return Err(control.unexpected(other.kind(), Kind::Settled.word())),
        };
        Ok((end, settled))
    }
}

/// What the guest measured, from three of its readings: before, at the end, and after it has settled.
fn measured(
    before: Option<Telemetry>,
    end: Option<Telemetry>,
    settled: Option<Telemetry>,
) -> Option<GuestMeasured> {
    let (before, end, settled) = (before?, end?, settled?);
    // A guest that wrote no figures since it arrived is measured until it has settled.
    let until = if end.tsc > before.tsc { &end } else { &settled };
    let lost_s = match before.work_per_s {
        rate if rate > 0.0 => until.seconds_since(&before) - until.work_since(&before) / rate,
        _ => 0.0,
    };
    Some(GuestMeasured {
        downtime_us: settled.window_gap_us,
        downtime_at_us: settled.window_gap_from.saturating_sub(before.tsc) as f64 * 1e3
            / before.tsc_khz.max(1) as f64,
        tick_gap_us: settled.window_tick_gap_us,
        work_before_per_s: before.work_per_s,
        work_during_per_s: until.pace_since(&before),
        work_after_per_s: settled.pace_since(&end),
        work_lost_ms: lost_s.max(0.0) * 1e3,
        corruptions: settled.corruptions,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(tsc: u64, work: u64) -> Telemetry {
        Telemetry {
            tsc,
            tsc_khz: 1_000,
            work,
            work_per_s: 1_000.0,
            window_gap_us: 800.0,
            ..Default::default()
        }
    }

    #[test]
    fn lost_work_is_counted_at_the_pace_before() {
        let figures =
            measured(Some(reading(0, 0)), Some(reading(2_000_000, 1_500)), Some(reading(2_500_000, 2_000)));
        let figures = figures.expect("all three readings");
        assert!((figures.work_lost_ms - 500.0).abs() < 1e-6, "{figures:?}");
        assert!((figures.work_during_per_s - 750.0).abs() < 1e-6);
        assert!((figures.work_after_per_s - 1_000.0).abs() < 1e-6);
        assert!((figures.downtime_us - 800.0).abs() < 1e-6);
    }

    #[test]
    fn nothing_is_guessed() {
        assert_eq!(measured(None, Some(reading(1, 1)), Some(reading(2, 2))), None);
    }
}
