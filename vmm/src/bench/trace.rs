//! The pause step by step: where its time goes over all runs of a cell, and how evenly.

use super::figures::STEPS;
use super::record::CellRecord;
use super::show::way;
use crate::lab::stats::Spread;
use crate::lab::table::Table;

pub(super) const NOTE: &str = "\
The pause: by the hosts' clocks, of the good runs. What is indented is a part: of send and until ready together, and of until\n\
it runs. A column of the histogram is a power of two: from 1 µs (or less) to a second (or more); a whole bar is the most\n\
frequent one of its step.";

/// Where 1 µs, 1 ms and 1 s are among the columns (a power of two is a little more than a decimal thousand).
const AXIS: &str = "1 µs      1 ms      1 s";
/// Powers of two from 2^0 to 2^20.
const COLUMNS: usize = 21;
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Each step of a cell's pauses; none where no run was good.
pub(super) fn words(cell: &CellRecord) -> Option<String> {
    let mut table = Table::new(1, &["step", "median µs", "p90 µs", "max µs", AXIS]);
    for step in STEPS {
        let us: Vec<f64> = cell.values(step.figure).collect();
        let Some(spread) = Spread::of(us.iter().copied()) else { continue };
        let whole = |us: f64| format!("{us:.0}");
        let figures = [spread.median, spread.p90, spread.max].map(whole);
        table.row([&[step.label.to_owned()], &figures[..], &[histogram(&us)]].concat());
    }
    let (way, streams, runs) = (way(&cell.cell), cell.cell.streams, cell.good_runs());
    (runs > 0).then(|| format!("\nthe pause: {way}, streams: {streams}, good runs: {runs}\n{table}"))
}

/// How many of `us` are in each power of two, as wide as [`AXIS`].
fn histogram(us: &[f64]) -> String {
    let mut counts = [0; COLUMNS];
    us.iter().for_each(|us| counts[column(*us)] += 1);
    let most = counts.iter().copied().max().unwrap_or(0);
    let bar = |count: usize| match count {
        0 => '·',
        some => BARS[(some * BARS.len()).div_ceil(most) - 1],
    };
    let bars: String = counts.into_iter().map(bar).collect();
    format!("{bars:<width$}", width = AXIS.chars().count())
}

fn column(us: f64) -> usize {
    (us.max(1.0).log2() as usize).min(COLUMNS - 1)
}

#[cfg(test)]
mod tests {
    use migrate::report::{Switchover, Takeover};

    use super::*;
    use crate::bench::record::tests::{cell_of, run_of};

    #[test]
    fn a_column_is_a_power_of_two() {
        assert_eq!([0.0, 1.0, 1.9, 2.0, 1023.0, 1024.0].map(column), [0, 0, 0, 1, 9, 10]);
        assert_eq!([(1 << 20) as f64, 1e12].map(column), [20, 20]);
    }

    #[test]
    fn rare_ones_are_seen_and_the_most_frequent_fill_the_line() {
        let mut us = vec![5.0; 100];
        us.extend([300.0, 2e6]);
        us.extend([10.0; 50]);
        assert_eq!(histogram(&us), "··█▄····▁···········▁  ");
        assert_eq!(histogram(&us).chars().count(), AXIS.chars().count());
    }

    #[test]
    fn what_is_left_of_a_step_was_on_the_way() {
        let switchover = Switchover {
            pause_us: 100,
            save_us: 200,
            harvest_us: 30,
            send_us: 50,
            ready_us: 400,
            restore_us: 250,
            resume_us: 90,
            commit_us: 10,
            downtime_us: 880,
            ..Switchover::default()
        };
        let takeover = Takeover { missing_us: 40, last_pages_us: 60, start_us: 35 };
        let shown = words(&cell_of(vec![run_of(switchover, takeover)])).expect("a good run");
        let lines: Vec<_> =
            shown.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        let has = |start: &str| lines.iter().filter(|line| line.starts_with(start)).count();
        assert_eq!(lines[1], "the pause: post-copy, streams: 2, good runs: 1");
        assert_eq!(has("on the way 100 100 100 ······█·"), 1, "{shown}");
        assert_eq!(has("on the way 45 45 45 ·····█·"), 1, "{shown}");
        assert_eq!(has("between the steps 10 10 10 ···█·"), 1, "{shown}");
        assert_eq!(has("the whole pause 880 880 880 ·········█·"), 1, "{shown}");
    }

    #[test]
    fn where_no_run_was_good_there_is_nothing_to_show() {
        assert_eq!(words(&cell_of(Vec::new())), None);
    }
}
