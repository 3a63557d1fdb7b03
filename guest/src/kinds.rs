//! What the record's codes mean: the guest's state, its workload, and what it found wrong.

use crate::parse::Page;
use crate::telemetry::{corruption, header, state, workload};
/// What the guest is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Starting its vCPUs.
    Booting,
    /// Filling memory.
    Filling,
    /// At work, all well.
    Working,
    /// At work, and has found a violation.
    Corrupt,
    /// A vCPU took a fault and stopped.
    Fault,
    /// A value this reader does not know.
    Other(u64),
}

/// What the guest was asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// Only reads the TSC.
    Idle,
    /// Writes pages.
    Dirty,
    /// Computes.
    Compute,
    /// A value this reader does not know.
    Other(u64),
}

/// A violation the guest found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Corruption {
    /// What was wrong.
    pub kind: CorruptionKind,
    /// The page, counted over the guest's filled and working-set pages; or the vCPU.
    pub place: u64,
    /// What should have been found.
    pub expected: u64,
    /// What was.
    pub found: u64,
}

/// Kinds of violation; the numbers are those of the telemetry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CorruptionKind {
    /// 1: a page of the working set is another page.
    PageNumber,
    /// 2: a page of the working set is older or newer than it must be.
    Generation,
    /// 3: a filled page has changed.
    Content,
    /// 4: the TSC went backwards.
    Tsc,
    /// 5: the TSC went backwards between two ticks.
    TickTsc,
    /// 6: the tick count went backwards.
    TickCount,
    /// 7: a computation had another result.
    Compute,
    /// A kind this reader does not know.
    Other(u64),
}

impl Corruption {
    pub(crate) fn parse(head: Page<'_>) -> Self {
        Self {
            kind: CorruptionKind::from_code(head.get(header::FIRST_KIND)),
            place: head.get(header::FIRST_PAGE),
            expected: head.get(header::FIRST_EXPECTED),
            found: head.get(header::FIRST_FOUND),
        }
    }
}

impl State {
    pub(crate) fn from_code(code: u64) -> Self {
        match code {
            state::BOOTING => Self::Booting,
            state::FILLING => Self::Filling,
            state::WORKING => Self::Working,
            state::CORRUPT => Self::Corrupt,
            state::FAULT => Self::Fault,
            other => Self::Other(other),
        }
    }
}

impl Workload {
    pub(crate) fn from_code(code: u64) -> Self {
        match code {
            workload::IDLE => Self::Idle,
            workload::DIRTY => Self::Dirty,
            workload::COMPUTE => Self::Compute,
            other => Self::Other(other),
        }
    }
}

impl CorruptionKind {
    pub(crate) fn from_code(code: u64) -> Self {
        match code {
            corruption::PAGE_NUMBER => Self::PageNumber,
            corruption::GENERATION => Self::Generation,
            corruption::CONTENT => Self::Content,
            corruption::TSC => Self::Tsc,
            corruption::TICK_TSC => Self::TickTsc,
            corruption::TICK_COUNT => Self::TickCount,
            corruption::COMPUTE => Self::Compute,
            other => Self::Other(other),
        }
    }
}
