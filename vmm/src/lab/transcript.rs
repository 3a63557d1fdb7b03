//! What the demo guest said on all hosts it was on, put together in order.
//!
//! The guest numbers its lines and never leaves out a number. So a line that was lost, said twice or torn in a
//! move shows; and so does whatever its own oracle has to complain about.

/// Reads the console of one guest across hosts.
#[derive(Debug, Clone, Default)]
pub struct Transcript {
    partial: Vec<u8>,
    last: Option<u64>,
    problems: Vec<String>,
}

/// Problems kept in words; a guest that went wrong says the same thing again and again.
const MOST_PROBLEMS: usize = 32;
/// Longest line a demo guest writes, and more. What is longer did not come from one.
const LONGEST_LINE: usize = 4096;

impl Transcript {
    /// Goes on with what came next, from the same host or from the one the guest has moved to.
    pub fn read(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' || self.partial.len() == LONGEST_LINE {
                let line = std::mem::take(&mut self.partial);
                self.line(String::from_utf8_lossy(&line).trim_end());
            } else {
                self.partial.push(byte);
            }
        }
    }

    /// Lines read in full.
    #[must_use]
    pub fn lines(&self) -> u64 {
        self.last.unwrap_or(0)
    }

    /// What is wrong with them; empty when all is well.
    #[must_use]
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    fn line(&mut self, line: &str) {
        let Some((number, text)) = numbered(line) else {
            return self.problem(format!("console: not a line of the guest: {line:?}"));
        };
        let expected = self.last.map_or(1, |last| last + 1);
        if number != expected {
            self.problem(format!("console: line {number} where {expected} was due"));
        }
        self.last = Some(number);
        if is_complaint(text) {
            self.problem(format!("console: {line}"));
        }
    }

    fn problem(&mut self, what: String) {
        if self.problems.len() < MOST_PROBLEMS {
            self.problems.push(what);
        }
    }
}

/// Whether the guest reports from its work: memory is filled, the load is on.
#[must_use]
pub fn reports(console: &[u8]) -> usize {
    let lines = console.split(|&byte| byte == b'\n');
    lines.filter(|line| String::from_utf8_lossy(line).contains("] t=")).count()
}

/// The longest time the guest stood still in the time of its last report, µs, as it says there.
#[must_use]
pub fn last_gap_us(console: &[u8]) -> Option<f64> {
    let text = String::from_utf8_lossy(console);
    // The last line may still be on its way.
    let whole = text.rsplit_once('\n')?.0;
    let report = whole.lines().rfind(|line| line.contains("] t="))?;
    let gap = report.split(' ').find_map(|word| word.strip_prefix("gap="))?;
    gap.strip_suffix("us")?.parse().ok()
}

fn numbered(line: &str) -> Option<(u64, &str)> {
    let (number, text) = line.strip_prefix('[')?.split_once("] ")?;
    Some((number.parse().ok()?, text))
}

fn is_complaint(text: &str) -> bool {
    ["CORRUPT", "FAULT", "PANIC"].iter().any(|word| text.starts_with(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(parts: &[&str]) -> Vec<String> {
        let mut transcript = Transcript::default();
        parts.iter().for_each(|part| transcript.read(part.as_bytes()));
        transcript.problems().to_vec()
    }

    #[test]
    fn a_line_torn_by_a_move_is_whole() {
        let mut transcript = Transcript::default();
        transcript.read(b"[000001] demo guest\r\n[0000");
        transcript.read(b"02] t=1.0s work=5\r\n[000003] t=");
        assert_eq!((transcript.lines(), transcript.problems()), (2, &[][..]));
    }

    #[test]
    fn lost_and_repeated_lines_show() {
        assert_eq!(problems(&["[000001] a\r\n", "[000003] b\r\n"]), ["console: line 3 where 2 was due"]);
        assert_eq!(problems(&["[000001] a\r\n", "[000001] a\r\n"]), ["console: line 1 where 2 was due"]);
        assert_eq!(problems(&["[000001] a\r\n[00[000002] b\r\n"]).len(), 1);
    }

    #[test]
    fn what_the_guest_complains_of_shows() {
        let said = "[000001] CORRUPT content page=5 expected=0x1 found=0x0\r\n[000002] FAULT vector=14\r\n";
        assert_eq!(problems(&[said]).len(), 2);
        let endless = "[000001] CORRUPT\r\n".repeat(1000);
        assert_eq!(problems(&[&endless]).len(), MOST_PROBLEMS);
    }

    #[test]
    fn work_begins_with_the_first_report() {
        assert_eq!(reports(b"[000001] demo guest, command line: t=5\r\n"), 0);
        assert_eq!(reports(b"[000002] t=0.5s work=0/s\r\n[000004] t=1.5s work=1/s\r\n"), 2);
    }

    #[test]
    fn how_long_it_stood_still_of_late() {
        let line = |gap| {
            format!("[000012] t=3.0s work=10000/s gap={gap}us tick-gap=10.1ms verified=9800 corrupt=0\r\n")
        };
        assert_eq!(last_gap_us((line(35) + &line(70)).as_bytes()), Some(70.0));
        assert_eq!(last_gap_us((line(35) + "[000013] t=4.0s work=1/s gap=9").as_bytes()), Some(35.0));
        assert_eq!(last_gap_us(b"[000001] demo guest\r\n"), None);
    }
}
