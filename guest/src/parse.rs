//! The host's reading of the telemetry: bytes of guest memory to figures.
//!
//! The guest goes on writing while a host reads, and a guest may be broken or hostile: every
//! number is taken as found and bounded before it is used, none can make the reader fail.

use crate::kinds::{Corruption, State, Workload};
use crate::telemetry::{HISTORY_ENTRIES, MAGIC, MAX_VCPUS, PAGE_SIZE, VERSION, header, vcpu};
use std::fmt;
use std::time::Duration;

/// All the guest tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Telemetry {
    /// TSC frequency in kHz, never 0.
    pub tsc_khz: u64,
    /// What the guest is doing.
    pub state: State,
    /// What it is asked to do.
    pub workload: Workload,
    /// Violations found since boot.
    pub corruptions: u64,
    /// The first of them.
    pub first_corruption: Option<Corruption>,
    /// Pages filled so far.
    pub filled_pages: u64,
    /// Pages of the working set.
    pub working_set_pages: u64,
    /// Pages of RAM given to the guest.
    pub memory_pages: u64,
    /// Console lines sent in full.
    pub console_lines: u64,
    /// Period of the timer tick in microseconds.
    pub tick_us: u64,
    /// The window the host asked for last.
    pub window_request: u64,
    /// One for each vCPU.
    pub vcpus: Vec<VcpuTelemetry>,
}

/// What one vCPU tells. Times are TSC cycles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VcpuTelemetry {
    /// TSC at the last turn of the work loop.
    pub last_tsc: u64,
    /// Timer ticks since boot.
    pub ticks: u64,
    /// TSC at the last tick.
    pub last_tick_tsc: u64,
    /// Pages dirtied, units computed or idle turns.
    pub work: u64,
    /// Pages checked in the background.
    pub verified: u64,
    /// Longest gap between two turns since work began.
    pub gap_max: u64,
    /// Longest gap between two ticks since work began.
    pub tick_gap_max: u64,
    /// The last window this vCPU acknowledged.
    pub window_ack: u64,
    /// Longest gap between two turns in that window.
    pub window_gap: u64,
    /// TSC at which it began.
    pub window_gap_from: u64,
    /// Longest time without a tick in that window.
    pub window_tick_gap: u64,
    /// Readings every 50 ms, oldest first, at most 63: the one being overwritten is left out.
    pub history: Vec<HistoryEntry>,
    /// Set if the vCPU stopped; meaningful in [`State::Fault`].
    pub fault: Fault,
}

/// A past reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryEntry {
    /// When, in TSC cycles.
    pub tsc: u64,
    /// Work done by then.
    pub work: u64,
}

/// Where and why a vCPU stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    /// Vector of the exception.
    pub vector: u64,
    /// Its error code, 0 where it has none.
    pub error: u64,
    /// The instruction.
    pub rip: u64,
    /// CR2 at the time.
    pub cr2: u64,
}

/// Why there is nothing to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParseError {
    /// No magic: not the demo guest, or it has not got that far.
    NotReady,
    /// The guest writes another layout.
    Version(u64),
    /// The bytes given for a page are fewer than a page: the header, or that of a vCPU.
    Short(Option<usize>),
    /// A figure no guest of this version writes: its name and value.
    Implausible(&'static str, u64),
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotReady => write!(f, "no telemetry in guest memory yet"),
            Self::Version(found) => write!(f, "telemetry version {found}, this reader knows {VERSION}"),
            Self::Short(None) => write!(f, "telemetry header is shorter than a page"),
            Self::Short(Some(vcpu)) => {
                write!(f, "telemetry of vcpu {vcpu} is missing or shorter than a page")
            }
            Self::Implausible(name, found) => write!(f, "telemetry field {name} is {found}"),
        }
    }
}

impl std::error::Error for ParseError {}

impl Telemetry {
    /// Reads the header page, and each vCPU's page, which `vcpu_page` fetches from
    /// `VCPU_PAGES_GPA + vcpu * VCPU_PAGE_STRIDE`.
    ///
    /// # Errors
    /// See [`ParseError`]; [`ParseError::NotReady`] is normal for a booting guest.
    pub fn parse(
        header_page: &[u8],
        mut vcpu_page: impl FnMut(usize) -> Option<Vec<u8>>,
    ) -> Result<Self, ParseError> {
        let head = Page::new(header_page).ok_or(ParseError::Short(None))?;
        let vcpus = plausible_header(head)?;
        let vcpus = (0..vcpus).map(|i| {
            let bytes = vcpu_page(i).ok_or(ParseError::Short(Some(i)))?;
            Page::new(&bytes).map(VcpuTelemetry::parse).ok_or(ParseError::Short(Some(i)))
        });
        let corruptions = head.get(header::CORRUPTIONS);
        Ok(Self {
            tsc_khz: head.get(header::TSC_KHZ),
            state: State::from_code(head.get(header::STATE)),
            workload: Workload::from_code(head.get(header::WORKLOAD)),
            corruptions,
            first_corruption: (corruptions > 0).then(|| Corruption::parse(head)),
            filled_pages: head.get(header::FILLED_PAGES),
            working_set_pages: head.get(header::WORKING_SET_PAGES),
            memory_pages: head.get(header::MEMORY_PAGES),
            console_lines: head.get(header::CONSOLE_LINES),
            tick_us: head.get(header::TICK_US),
            window_request: head.get(header::WINDOW_REQUEST),
            vcpus: vcpus.collect::<Result<_, _>>()?,
        })
    }

    /// Reads one stretch of memory that begins at [`crate::TELEMETRY_GPA`] and is at least
    /// [`crate::telemetry_span`] of the guest's vCPUs long.
    ///
    /// # Errors
    /// As [`Telemetry::parse`].
    pub fn parse_span(span: &[u8]) -> Result<Self, ParseError> {
        let page = |i: usize| {
            let start = i * PAGE_SIZE as usize;
            span.get(start..start + PAGE_SIZE as usize)
        };
        Self::parse(page(0).ok_or(ParseError::Short(None))?, |vcpu| page(1 + vcpu).map(<[u8]>::to_vec))
    }

    /// Work done by all vCPUs.
    pub fn work(&self) -> u64 {
        self.vcpus.iter().fold(0, |sum, vcpu| sum.wrapping_add(vcpu.work))
    }

    /// Pages checked in the background by all vCPUs.
    pub fn verified(&self) -> u64 {
        self.vcpus.iter().fold(0, |sum, vcpu| sum.wrapping_add(vcpu.verified))
    }

    /// Work per second over the recent past, at most `span` and at most three seconds of it, to a
    /// twentieth of a second. None until every vCPU has two readings that far.
    pub fn work_rate(&self, span: Duration) -> Option<f64> {
        let cycles = (span.as_secs_f64() * self.tsc_khz as f64 * 1000.0) as u64;
        self.vcpus.iter().map(|vcpu| Some(vcpu.work_per_cycle(cycles)? * self.tsc_khz as f64 * 1000.0)).sum()
    }

    /// Whether every vCPU is in the window the host asked for last.
    pub fn window_open(&self) -> bool {
        self.vcpus.iter().all(|vcpu| vcpu.window_ack == self.window_request)
    }

    /// The longest any vCPU stood still in the current window; None until all are in it.
    /// A stall that still lasts is not in it: it ends when the vCPU runs again.
    pub fn window_gap_us(&self) -> Option<f64> {
        self.window_max(|vcpu| vcpu.window_gap)
    }

    /// The TSC at which that began; None until all are in it.
    pub fn window_gap_from(&self) -> Option<u64> {
        let longest = self.vcpus.iter().max_by_key(|vcpu| vcpu.window_gap);
        longest.filter(|_| self.window_open()).map(|vcpu| vcpu.window_gap_from)
    }

    /// The longest any vCPU was without a tick in the current window; None until all are in it.
    pub fn window_tick_gap_us(&self) -> Option<f64> {
        self.window_max(|vcpu| vcpu.window_tick_gap)
    }

    /// The longest any vCPU stood still since work began.
    pub fn gap_max_us(&self) -> f64 {
        self.us(self.vcpus.iter().map(|vcpu| vcpu.gap_max).max().unwrap_or(0))
    }

    /// TSC cycles as microseconds.
    pub fn us(&self, cycles: u64) -> f64 {
        cycles as f64 * 1000.0 / self.tsc_khz as f64
    }

    fn window_max(&self, figure: impl Fn(&VcpuTelemetry) -> u64) -> Option<f64> {
        self.window_open().then(|| self.us(self.vcpus.iter().map(figure).max().unwrap_or(0)))
    }
}

impl VcpuTelemetry {
    fn parse(page: Page<'_>) -> Self {
        Self {
            last_tsc: page.get(vcpu::LAST_TSC),
            ticks: page.get(vcpu::TICKS),
            last_tick_tsc: page.get(vcpu::LAST_TICK_TSC),
            work: page.get(vcpu::WORK),
            verified: page.get(vcpu::VERIFIED),
            gap_max: page.get(vcpu::GAP_MAX),
            tick_gap_max: page.get(vcpu::TICK_GAP_MAX),
            window_ack: page.get(vcpu::WINDOW_ACK),
            window_gap: page.get(vcpu::WINDOW_GAP),
            window_gap_from: page.get(vcpu::WINDOW_GAP_FROM),
            window_tick_gap: page.get(vcpu::WINDOW_TICK_GAP),
            history: history(page),
            fault: Fault {
                vector: page.get(vcpu::FAULT_VECTOR),
                error: page.get(vcpu::FAULT_ERROR),
                rip: page.get(vcpu::FAULT_RIP),
                cr2: page.get(vcpu::FAULT_CR2),
            },
        }
    }

    /// Between the newest entry and the oldest one that is at most `cycles` before it.
    fn work_per_cycle(&self, cycles: u64) -> Option<f64> {
        let newest = self.history.last()?;
        let since = newest.tsc.saturating_sub(cycles);
        let oldest = self.history.iter().find(|entry| entry.tsc >= since)?;
        let elapsed = newest.tsc.checked_sub(oldest.tsc).filter(|&elapsed| elapsed > 0)?;
        Some(newest.work.saturating_sub(oldest.work) as f64 / elapsed as f64)
    }
}

fn history(page: Page<'_>) -> Vec<HistoryEntry> {
    let end = page.get(vcpu::HISTORY_INDEX);
    let first = end.saturating_sub(HISTORY_ENTRIES as u64 - 1);
    let entry = |index: u64| {
        let at = vcpu::HISTORY + (index % HISTORY_ENTRIES as u64) as usize * 16;
        HistoryEntry { tsc: page.get(at), work: page.get(at + 8) }
    };
    (first..end).map(entry).collect()
}

/// The number of vCPUs, if the header makes sense.
fn plausible_header(head: Page<'_>) -> Result<usize, ParseError> {
    if head.get(header::MAGIC) != MAGIC {
        return Err(ParseError::NotReady);
    }
    let version = head.get(header::VERSION);
    if version != VERSION {
        return Err(ParseError::Version(version));
    }
    let (vcpus, tsc_khz) = (head.get(header::VCPUS), head.get(header::TSC_KHZ));
    if !(1..=MAX_VCPUS as u64).contains(&vcpus) {
        return Err(ParseError::Implausible("vcpus", vcpus));
    }
    if tsc_khz == 0 {
        return Err(ParseError::Implausible("tsc_khz", tsc_khz));
    }
    Ok(vcpus as usize)
}

/// A page of guest memory, read as numbers.
#[derive(Clone, Copy)]
pub(crate) struct Page<'a>(&'a [u8; PAGE_SIZE as usize]);

impl<'a> Page<'a> {
    fn new(bytes: &'a [u8]) -> Option<Self> {
        bytes.first_chunk().map(Self)
    }

    /// The field at this offset, one of the layout's constants.
    pub(crate) fn get(self, offset: usize) -> u64 {
        let bytes = self.0[offset..].first_chunk().expect("fields lie within the page");
        u64::from_le_bytes(*bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::CorruptionKind;
    use crate::telemetry::{corruption, state};

    const KHZ: u64 = 2_000_000;
    const ENTRY: u64 = KHZ * 50;

    struct Guest(Vec<u8>);

    impl Guest {
        fn working(vcpus: u64) -> Self {
            let mut guest = Self(vec![0; crate::telemetry_span(vcpus as usize)]);
            guest.set(header::MAGIC, MAGIC);
            guest.set(header::VERSION, VERSION);
            guest.set(header::VCPUS, vcpus);
            guest.set(header::TSC_KHZ, KHZ);
            guest.set(header::STATE, state::WORKING);
            guest
        }

        fn set(&mut self, at: usize, value: u64) {
            self.0[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }

        fn set_vcpu(&mut self, vcpu: usize, at: usize, value: u64) {
            self.set((1 + vcpu) * PAGE_SIZE as usize + at, value);
        }

        /// `entries` readings, `step` units of work apart.
        fn add_history(&mut self, vcpu: usize, entries: u64, step: u64) {
            for i in 0..entries {
                let at = vcpu::HISTORY + i as usize % HISTORY_ENTRIES * 16;
                self.set_vcpu(vcpu, at, 1_000_000 + i * ENTRY);
                self.set_vcpu(vcpu, at + 8, i * step);
            }
            self.set_vcpu(vcpu, vcpu::HISTORY_INDEX, entries);
        }

        fn parse(&self) -> Result<Telemetry, ParseError> {
            Telemetry::parse_span(&self.0)
        }
    }

    #[test]
    fn untouched_memory_is_not_ready() {
        assert_eq!(Telemetry::parse_span(&[0; 8192]), Err(ParseError::NotReady));
        assert_eq!(Telemetry::parse_span(&[]), Err(ParseError::Short(None)));
    }

    #[test]
    fn implausible_figures_are_refused() {
        let broken = |at, value| {
            let mut guest = Guest::working(1);
            guest.set(at, value);
            guest.parse().unwrap_err()
        };
        assert_eq!(broken(header::VERSION, 2), ParseError::Version(2));
        assert_eq!(broken(header::VCPUS, 0), ParseError::Implausible("vcpus", 0));
        assert_eq!(broken(header::VCPUS, 65), ParseError::Implausible("vcpus", 65));
        assert_eq!(broken(header::VCPUS, 2), ParseError::Short(Some(1)));
        assert_eq!(broken(header::TSC_KHZ, 0), ParseError::Implausible("tsc_khz", 0));
    }

    #[test]
    fn rate_is_that_of_the_last_second_of_all_vcpus() {
        let mut guest = Guest::working(2);
        guest.add_history(0, 30, 100);
        guest.add_history(1, 200, 400);
        let telemetry = guest.parse().unwrap();
        let rate = telemetry.work_rate(Duration::from_secs(1)).unwrap();
        assert!((rate - 20.0 * 500.0).abs() < 1e-6, "{rate}");
        assert_eq!(telemetry.vcpus[0].history.len(), 30);
        assert_eq!(telemetry.vcpus[1].history.len(), 63);
        assert_eq!(telemetry.vcpus[1].history[0].work, 137 * 400);
    }

    #[test]
    fn rate_needs_two_readings_of_every_vcpu() {
        let mut guest = Guest::working(2);
        guest.add_history(0, 30, 100);
        guest.add_history(1, 1, 100);
        assert_eq!(guest.parse().unwrap().work_rate(Duration::from_secs(1)), None);
    }

    #[test]
    fn window_counts_once_all_have_acknowledged() {
        let mut guest = Guest::working(2);
        guest.set(header::WINDOW_REQUEST, 7);
        guest.set_vcpu(0, vcpu::WINDOW_ACK, 7);
        guest.set_vcpu(0, vcpu::WINDOW_GAP, KHZ);
        guest.set_vcpu(1, vcpu::WINDOW_GAP, KHZ * 9);
        assert_eq!(guest.parse().unwrap().window_gap_us(), None);
        guest.set_vcpu(1, vcpu::WINDOW_ACK, 7);
        guest.set_vcpu(1, vcpu::WINDOW_GAP, KHZ * 3);
        guest.set_vcpu(0, vcpu::WINDOW_GAP_FROM, 7);
        guest.set_vcpu(1, vcpu::WINDOW_GAP_FROM, 8);
        assert_eq!(guest.parse().unwrap().window_gap_us(), Some(3000.0));
        assert_eq!(
            guest.parse().unwrap().window_gap_from(),
            Some(8),
            "that of the vCPU that stood still longest"
        );
        assert_eq!(guest.parse().unwrap().window_tick_gap_us(), Some(0.0));
    }

    #[test]
    fn first_corruption_is_told() {
        let mut guest = Guest::working(1);
        assert_eq!(guest.parse().unwrap().first_corruption, None);
        guest.set(header::STATE, state::CORRUPT);
        guest.set(header::CORRUPTIONS, 3);
        guest.set(header::FIRST_KIND, corruption::GENERATION);
        guest.set(header::FIRST_PAGE, 12);
        guest.set(header::FIRST_EXPECTED, 5);
        guest.set(header::FIRST_FOUND, 4);
        let telemetry = guest.parse().unwrap();
        let first = Corruption { kind: CorruptionKind::Generation, place: 12, expected: 5, found: 4 };
        assert_eq!((telemetry.state, telemetry.corruptions), (State::Corrupt, 3));
        assert_eq!(telemetry.first_corruption, Some(first));
    }

    #[test]
    fn any_bytes_are_read_without_panic() {
        let mut guest = Guest::working(1);
        let seed =
            std::iter::successors(Some(1_u64), |x| Some(x.wrapping_mul(6_364_136_223_846_793_005) + 1));
        for (at, value) in (0..guest.0.len() / 8).zip(seed).filter(|(at, _)| *at > 4) {
            guest.set(at * 8, value);
        }
        guest.set_vcpu(0, vcpu::HISTORY_INDEX, u64::MAX);
        let telemetry = guest.parse().unwrap();
        assert!(matches!(telemetry.state, State::Other(_)));
        let _ = telemetry.work_rate(Duration::from_secs(1));
    }
}
