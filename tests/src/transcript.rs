//! What a guest said on its console, on all hosts it was on, put together: and that nothing of it is missing.

/// The text of a console. After a move it is the texts of several consoles, one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transcript(String);

/// The report that the guest makes of every second of work.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SecondOfWork {
    /// Seconds since the guest started, by its own clock.
    pub t: f64,
    /// Units of work per second.
    pub work_per_s: u64,
    /// Longest gap between two readings of the TSC since the report before, µs.
    pub gap_us: u64,
    /// Pages it has checked since it started.
    pub verified: u64,
    /// Violations found since it started.
    pub corruptions: u64,
}

impl Transcript {
    /// What the consoles took down, in the order of the guest's way.
    pub fn of(consoles: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Self {
        let bytes: Vec<u8> = consoles.into_iter().flat_map(|console| console.as_ref().to_vec()).collect();
        Self(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.0
    }

    /// The lines that were said to their end.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        let end = self.0.rfind('\n').map_or(0, |end| end + 1);
        self.0[..end].lines()
    }

    /// Whether the guest has filled its memory and begun to work.
    pub fn has_begun(&self) -> bool {
        self.lines().any(|line| line.ends_with(" ms, working"))
    }

    /// The reports of work.
    pub fn work(&self) -> Vec<SecondOfWork> {
        self.lines().filter_map(SecondOfWork::parse).collect()
    }

    /// What is wrong: a line missing, said twice or garbled; a violation; a fault. The first of it.
    ///
    /// # Errors
    /// When something is.
    pub fn check(&self) -> Result<(), String> {
        for (index, line) in self.lines().enumerate() {
            let number = index + 1;
            let Some(words) = line.strip_prefix(&format!("[{number:06}] ")) else {
                return Err(format!("line {number:06} is missing or garbled; in its place: {line:?}"));
            };
            let work = SecondOfWork::parse(line);
            if words.starts_with("CORRUPT")
                || words.starts_with("FAULT")
                || work.is_some_and(|it| it.corruptions > 0)
            {
                return Err(format!("the guest has found damage: {line}"));
            }
            if work.is_none() && words.starts_with("t=") {
                return Err(format!("a report is garbled: {line:?}"));
            }
        }
        Ok(())
    }
}

impl SecondOfWork {
    /// `[000012] t=3.0s work=10000/s gap=35us tick-gap=10.1ms verified=9800 corrupt=0`
    fn parse(line: &str) -> Option<Self> {
        let words: Vec<_> = line.split_once("] ")?.1.split(' ').collect();
        let [t, work, gap, _tick_gap, verified, corrupt] = words.try_into().ok()?;
        Some(Self {
            t: t.strip_prefix("t=")?.strip_suffix('s')?.parse().ok()?,
            work_per_s: work.strip_prefix("work=")?.strip_suffix("/s")?.parse().ok()?,
            gap_us: gap.strip_prefix("gap=")?.strip_suffix("us")?.parse().ok()?,
            verified: verified.strip_prefix("verified=")?.parse().ok()?,
            corruptions: corrupt.strip_prefix("corrupt=")?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: &str = "[000002] t=3.0s work=10000/s gap=35us tick-gap=10.1ms verified=9800 corrupt=0\r\n";

    fn check(text: &str) -> Result<(), String> {
        Transcript::of([text]).check()
    }

    #[test]
    fn a_line_may_be_cut_by_a_move() {
        let told = Transcript::of(["[000001] hello\r\n[0000", &SECOND[5..], "[000003] and so o"]);
        assert_eq!(told.check(), Ok(()));
        let second = SecondOfWork { t: 3.0, work_per_s: 10_000, gap_us: 35, verified: 9800, corruptions: 0 };
        assert_eq!(told.work(), [second]);
        assert_eq!(told.lines().count(), 2);
    }

    #[test]
    fn whatever_is_wrong_is_found() {
        assert!(check("[000001] a\r\n[000003] b\r\n").unwrap_err().contains("000002 is missing"));
        assert!(check("[000001] a\r\n[000001] a\r\n").is_err());
        assert!(check("[000001] a\r\n[00\r\n").is_err());
        assert!(check("[000001] CORRUPT content page=1 expected=0x1 found=0x2\r\n").is_err());
        assert!(check("[000001] FAULT vector=14 error=0x0 rip=0x1 cr2=0x2 vcpu=0\r\n").is_err());
        let first = SECOND.replace("[000002]", "[000001]");
        assert_eq!(check(&first), Ok(()));
        assert!(check(&first.replace("corrupt=0", "corrupt=1")).is_err());
        assert!(check(&first.replace("work=10000/s", "work=1000")).is_err());
    }
}
