//! The guest's clock as the host sees it: jumps at a move, whatever the guest believes of them.
//!
//! The guest says its clock on its console, and [`run`] notes by the host's clock when it has read that. What a line needs
//! to get there varies (CPUs are shared), but it is never less than nothing: among the lines said at one station, the one that
//! was fastest shows how far apart both clocks are. [`judge`] compares this distance from station to station.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::time::Duration;

use rustix::time::ClockId;

use crate::clock::reading;

/// Between two looks at the consoles.
const LOOK: Duration = Duration::from_millis(2);

/// Follows consoles, one for each station on the guest's way, which need not be there yet. For each line of the clock that
/// is said to its end it says: station, host's clock, guest's clock, ns. Goes on until it is killed.
pub(crate) fn run(consoles: &[&str]) -> io::Result<()> {
    let mut open: Vec<(Option<BufReader<File>>, String)> =
        consoles.iter().map(|_| (None, String::new())).collect();
    loop {
        for (station, (reader, line)) in open.iter_mut().enumerate() {
            if reader.is_none() {
                *reader = File::open(consoles[station]).ok().map(BufReader::new);
            }
            while let Some(reader) = reader
                && reader.read_line(line)? > 0
                && line.ends_with('\n')
            {
                if let Some(guest) = monotonic_in(line) {
                    println!("{station} {} {guest}", reading(ClockId::Monotonic));
                }
                line.clear();
            }
        }
        std::thread::sleep(LOOK);
    }
}

/// The time said in a line, if it is one of the clock's.
fn monotonic_in(line: &str) -> Option<i64> {
    line.strip_prefix("inner at ")?.trim_end().parse().ok()
}

/// Whether the guest's clock went, at each move, no further ahead of the host's than the slack, and no further behind than
/// the downtime of that move and the slack.
pub(crate) fn judge(samples: &Path, slack_ms: u64, downtimes_ms: &[u64]) -> io::Result<()> {
    let text = fs::read_to_string(samples)?;
    let distances = distances(&text)?;
    if distances.len() != downtimes_ms.len() + 1 {
        let (stations, moves) = (distances.len(), downtimes_ms.len());
        return Err(io::Error::other(format!("the clock was heard at {stations} stations of {moves} moves")));
    }
    let mut wrong = 0;
    for (number, (pair, downtime)) in distances.windows(2).zip(downtimes_ms).enumerate() {
        let behind_us = (pair[1] - pair[0]) / 1000;
        let (slack_us, most_us) = (slack_ms as i64 * 1000, (downtime + slack_ms) as i64 * 1000);
        println!("move {}: the guest's clock lost {behind_us} us, the pause was {downtime} ms", number + 1);
        wrong += u32::from(!(-slack_us..=most_us).contains(&behind_us));
    }
    if wrong > 0 {
        return Err(io::Error::other(format!(
            "{wrong} moves made the clock jump by more than their pause and {slack_ms} ms"
        )));
    }
    Ok(())
}

/// How far the guest's clock is behind the host's at each station, ns: the least of what was seen.
fn distances(samples: &str) -> io::Result<Vec<i64>> {
    let mut least: BTreeMap<i64, i64> = BTreeMap::new();
    for line in samples.lines() {
        let numbers: Result<Vec<i64>, _> = line.split(' ').map(str::parse).collect();
        let Ok([station, host, guest]) = numbers.as_deref() else {
            return Err(io::Error::other(format!("no sample: {line:?}")));
        };
        let distance = least.entry(*station).or_insert(i64::MAX);
        *distance = (*distance).min(host - guest);
    }
    Ok(least.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: i64 = 1_000_000;

    fn judged(behind_ms: [i64; 3], downtimes_ms: &[u64]) -> io::Result<()> {
        let mut text = String::new();
        for (station, behind) in behind_ms.into_iter().enumerate() {
            for late in [30, 0, 7] {
                text.push_str(&format!("{station} {} {}\n", (1000 + behind + late) * MS, 1000 * MS));
            }
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        judge(file.path(), 10, downtimes_ms)
    }

    #[test]
    fn a_clock_may_stand_still_for_the_pause_or_go_on() {
        judged([0, 0, 0], &[50, 50]).unwrap();
        judged([0, 50, 100], &[50, 50]).unwrap();
        judged([100, 91, 151], &[0, 50]).unwrap();
    }

    #[test]
    fn jumps_are_found() {
        assert!(judged([0, -11, -11], &[50, 50]).is_err(), "ahead");
        assert!(judged([0, 61, 61], &[50, 50]).is_err(), "behind");
        assert!(judged([0, 0, 0], &[50]).is_err(), "a station was not heard");
    }

    #[test]
    fn only_the_clocks_lines_count() {
        assert_eq!(monotonic_in("inner at 123\r\n"), Some(123));
        assert_eq!(monotonic_in("inner second 3: churn round 7 digest 00\r\n"), None);
    }
}
