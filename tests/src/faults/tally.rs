//! What a run of faults has come to.

use std::fmt;
use std::time::Duration;

use super::plan::{End, Fault, Sort};

/// Counts by sort.
#[derive(Debug, Default)]
pub struct Tally {
    rows: Vec<(Sort, Row)>,
    /// What must not have been: the fault, what was wrong, and the command that repeats it.
    pub violations: Vec<String>,
    /// How long it took.
    pub time: Duration,
}

#[derive(Debug, Default, Clone, Copy)]
struct Row {
    injected: u32,
    not_met: u32,
    moved: u32,
    kept: u32,
    resolved: u32,
    died: u32,
    violations: u32,
}

impl Tally {
    /// Faults that happened.
    #[must_use]
    pub fn injected(&self) -> u32 {
        self.rows.iter().map(|(_, row)| row.injected).sum()
    }

    /// One attempt: how it ended, and whether what was to go wrong did.
    pub(super) fn count(&mut self, fault: &Fault, end: Result<(End, bool), String>) {
        let index = self.rows.iter().position(|(sort, _)| *sort == fault.sort).unwrap_or_else(|| {
            self.rows.push((fault.sort, Row::default()));
            self.rows.len() - 1
        });
        let row = &mut self.rows[index].1;
        match end {
            Ok((_, false)) => row.not_met += 1,
            Ok((end, true)) => {
                row.injected += 1;
                *match end {
                    End::Moved => &mut row.moved,
                    End::Kept => &mut row.kept,
                    End::Resolved => &mut row.resolved,
                    End::Died => &mut row.died,
                } += 1;
            }
            Err(wrong) => {
                row.injected += 1;
                row.violations += 1;
                self.violations.push(wrong);
            }
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| fault | injected | moved | kept | in doubt, resolved | died with its host | violations |"
        )?;
        writeln!(f, "|---|---|---|---|---|---|---|")?;
        let mut all = Row::default();
        for (sort, row) in &self.rows {
            let Row { injected, not_met, moved, kept, resolved, died, violations } = row;
            let word = sort.word();
            writeln!(f, "| {word} | {injected} | {moved} | {kept} | {resolved} | {died} | {violations} |")?;
            all.injected += injected;
            all.not_met += not_met;
            all.moved += moved;
            all.kept += kept;
            all.resolved += resolved;
            all.died += died;
            all.violations += violations;
        }
        let Row { injected, not_met, moved, kept, resolved, died, violations } = all;
        writeln!(f, "| all | {injected} | {moved} | {kept} | {resolved} | {died} | {violations} |")?;
        let seconds = self.time.as_secs_f64();
        let rate = f64::from(injected) / seconds;
        write!(
            f,
            "{injected} faults in {seconds:.0} s, {rate:.1} a second; {not_met} attempts did not meet their fault"
        )
    }
}
