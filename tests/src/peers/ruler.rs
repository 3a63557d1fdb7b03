//! The ruler, the same for every VMM: what the guest itself says on its console, a line a second.
//!
//! ```text
//! reports   │ before │ before │     covered     │ after │
//!                             ^ start    ^ end
//! ```
//!
//! A move is begun right after a report. The reports that cover it go from the next one to the first that begins its
//! line after the end. The guest reports when a second of its own clock is over, so a stall makes a report late, and
//! the line takes some 12 ms to be written; a line that is on its way at the end was measured before it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::error::PeersError;
use super::{DESTINATION, SOURCE};
use crate::{SecondOfWork, Transcript, World};

/// For how many undisturbed reports the guest works before it is moved, and after those that cover the move.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rhythm {
    pub(super) before: usize,
    pub(super) after: usize,
}

impl Rhythm {
    pub(super) const FULL: Self = Self { before: 2, after: 1 };
    pub(super) const BRIEF: Self = Self { before: 1, after: 0 };
}

/// Between two looks at a console.
const PAUSE: Duration = Duration::from_millis(10);

/// What the guest measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct GuestFigures {
    /// Longest time it stood still in the reports that cover the move, ms.
    pub gap_ms: f64,
    /// The same in those right before: what the host's own noise is worth.
    pub gap_before_ms: f64,
    /// Work not done in the reports that cover the move, ms at the pace before; 0 when it did more.
    pub work_lost_ms: f64,
    /// Work a second before.
    pub work_before_per_s: f64,
    /// … in the reports that cover the move.
    pub work_during_per_s: f64,
    /// … in the report after those, where it was waited for.
    pub work_after_per_s: Option<f64>,
}

/// The consoles of a guest, in the order of its way.
#[derive(Debug)]
pub(super) struct Consoles([PathBuf; 2]);

/// Where the guest's console in this process is written to.
pub(super) fn console(world: &World, name: &str) -> PathBuf {
    world.path(&format!("{name}.console"))
}

impl Consoles {
    pub(super) fn of(world: &World) -> Self {
        Self([SOURCE, DESTINATION].map(|name| console(world, name)))
    }

    pub(super) fn transcript(&self) -> Transcript {
        Transcript::of(self.0.iter().map(|path| std::fs::read(path).unwrap_or_default()))
    }

    /// Reports that were measured by now: those said, and one that is just being said.
    pub(super) fn measured(&self) -> usize {
        let transcript = self.transcript();
        let saying = !transcript.text().is_empty() && !transcript.text().ends_with('\n');
        transcript.work().len() + usize::from(saying)
    }

    /// Waits until the guest has made so many reports.
    pub(super) async fn hear(&self, reports: usize, limit: Duration, what: &str) -> Result<(), PeersError> {
        let start = Instant::now();
        while self.transcript().work().len() < reports {
            if start.elapsed() > limit {
                return Err(PeersError::Late { what: what.to_owned(), after: limit });
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }
}

/// The figures of a move that began after `start` reports, `before` of which were undisturbed, and was over when `end` were
/// measured. The one that covers the end must be there.
pub(super) fn measure(
    reports: &[SecondOfWork],
    before: usize,
    start: usize,
    end: usize,
) -> Option<GuestFigures> {
    let before = reports.get(start.checked_sub(before)?..start)?;
    let covered = reports.get(start..=end)?;
    let longest = |part: &[SecondOfWork]| part.iter().map(|it| it.gap_us).max().unwrap_or(0) as f64 / 1e3;
    let pace = before.iter().map(|it| it.work_per_s as f64).sum::<f64>() / before.len() as f64;
    let (mut time, mut work) = (0.0, 0.0);
    for (at, report) in covered.iter().enumerate() {
        // Said in tenths of a second; never less than a second was measured.
        let seconds = (report.t - reports[start + at - 1].t).max(1.0);
        time += seconds;
        work += report.work_per_s as f64 * seconds;
    }
    Some(GuestFigures {
        gap_ms: longest(covered),
        gap_before_ms: longest(before),
        work_lost_ms: (1e3 * (time - work / pace)).max(0.0),
        work_before_per_s: pace,
        work_during_per_s: work / time,
        work_after_per_s: reports.get(end + 1).map(|after| after.work_per_s as f64),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(t: f64, work_per_s: u64, gap_us: u64) -> SecondOfWork {
        SecondOfWork { t, work_per_s, gap_us, verified: 0, corruptions: 0 }
    }

    #[test]
    fn a_move_counts_by_the_reports_that_cover_it() {
        let reports = [
            second(1.0, 1000, 90_000),
            second(2.0, 1000, 40),
            second(3.0, 1000, 60),
            second(4.0, 900, 30_000),
            second(5.2, 500, 200_000),
            second(6.2, 990, 70_000),
        ];
        let figures = measure(&reports, 2, 3, 4).unwrap();
        assert_eq!((figures.gap_ms, figures.gap_before_ms), (200.0, 0.06));
        assert!((figures.work_lost_ms - 700.0).abs() < 1.0, "{figures:?}");
        assert_eq!((figures.work_before_per_s, figures.work_after_per_s), (1000.0, Some(990.0)));
        assert_eq!(measure(&reports, 2, 3, 3).unwrap().gap_ms, 30.0);
        assert_eq!(measure(&reports, 2, 3, 5).unwrap().work_after_per_s, None);
        assert_eq!(measure(&reports, 1, 1, 2).unwrap().gap_before_ms, 90.0);
        assert_eq!((measure(&reports, 2, 3, 6), measure(&reports, 2, 1, 2)), (None, None));
    }
}
