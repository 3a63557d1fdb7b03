//! Whether memory is what it should be, and what is said when it is not.
//!
//! A page of the working set carries three stamps: its number and its generation, at the start,
//! the middle and the end. All are checked before the page is written again. The generation that
//! must be there is kept apart from the page, so a page that arrives late or twice is found out.
//! Filled pages can be checked word for word at any time, stamps excepted.

use crate::console;
use crate::content::{BLOCK_WORDS, BLOCKS, Block, Content, with_content};
use crate::cpu::header;
use crate::plan::Plan;
use crate::telemetry::{corruption, header as page_header, state};
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

/// Stamps begin at these words of a page and take two words each.
const STAMPS: [usize; 3] = [0, 256, 510];
/// Distinguishes a stamp from filling.
const STAMP_MARK: u64 = 0x5354_414d_0000_0000;
/// Lines about violations; beyond, they are only counted. Else a lost host floods the console.
const LINES_MAX: u64 = 64;

/// Writes a page of the working set: checks its stamps and renews them.
#[inline(always)]
pub(crate) fn dirty(plan: &Plan, page: u64) {
    check_stamps(plan, page);
    stamp(plan, page);
}

/// Gives a page its next generation.
#[inline(always)]
pub(crate) fn stamp(plan: &Plan, page: u64) {
    let generation = plan.generation(page);
    let next = generation.load(Relaxed).wrapping_add(1).max(1);
    for at in STAMPS {
        word(plan, page, at).store(STAMP_MARK ^ page, Relaxed);
        word(plan, page, at + 1).store(u64::from(next), Relaxed);
    }
    generation.store(next, Relaxed);
}

/// Whether the stamps of a page of the working set are right. Generation 0 means it has none yet.
#[inline(always)]
fn check_stamps(plan: &Plan, page: u64) -> bool {
    let expected = u64::from(plan.generation(page).load(Relaxed));
    if expected == 0 {
        return true;
    }
    for at in STAMPS {
        let (number, generation) =
            (word(plan, page, at).load(Relaxed), word(plan, page, at + 1).load(Relaxed));
        if number != STAMP_MARK ^ page {
            violation(corruption::PAGE_NUMBER, page, page, number ^ STAMP_MARK);
            return false;
        }
        if generation != expected {
            violation(corruption::GENERATION, page, expected, generation);
            return false;
        }
    }
    true
}

#[inline(always)]
pub(crate) fn word(plan: &Plan, page: u64, at: usize) -> &AtomicU64 {
    assert!(at < BLOCKS * BLOCK_WORDS);
    // SAFETY: the page is RAM taken for work, mapped and aligned; `at` is within it.
    unsafe { AtomicU64::from_ptr(plan.address(page).add(at)) }
}

/// Fills a page of this vCPU's share.
pub(crate) fn fill(plan: &Plan, page: u64) {
    let to = plan.address(page).cast::<Block>();
    with_content!(plan.filling, C => {
        let mut content = C::of_page(page);
        for i in 0..BLOCKS {
            // SAFETY: within the page, which only its owner touches.
            unsafe { to.add(i).write(content.next()) };
        }
    });
}

/// Checks a page whatever it is: its filling, its stamps, or both. What was wrong is put right, so
/// that each violation is told once.
pub(crate) fn verify(plan: &Plan, page: u64) {
    let stamped = page < plan.working_set;
    if stamped && !check_stamps(plan, page) {
        stamp(plan, page);
    }
    if page < plan.filled {
        let difference = with_content!(plan.filling, C => compare::<C>(plan, page, stamped));
        if let Some((expected, found)) = difference {
            violation(corruption::CONTENT, page, expected, found);
            fill(plan, page);
            if stamped {
                stamp(plan, page);
            }
        }
    }
}

/// The first word that differs, as (expected, found).
#[inline(always)]
fn compare<C: Content>(plan: &Plan, page: u64, stamped: bool) -> Option<(u64, u64)> {
    let from = plan.address(page).cast::<Block>();
    let mut content = C::of_page(page);
    for i in 0..BLOCKS {
        // SAFETY: within the page, which only its owner writes.
        let mut found = unsafe { from.add(i).read() };
        let expected = content.next();
        if stamped {
            excuse_stamps(i, &expected, &mut found);
        }
        let difference = expected.iter().zip(&found).fold(0, |all, (e, f)| all | (e ^ f));
        if difference != 0 {
            return expected.into_iter().zip(found).find(|(e, f)| e != f);
        }
    }
    None
}

#[inline(always)]
fn excuse_stamps(block: usize, expected: &Block, found: &mut Block) {
    for at in STAMPS {
        if at / BLOCK_WORDS == block {
            let at = at % BLOCK_WORDS;
            found[at..at + 2].copy_from_slice(&expected[at..at + 2]);
        }
    }
}

/// Tells of a violation at once, and counts it.
#[cold]
#[inline(never)]
pub(crate) fn violation(kind: u64, place: u64, expected: u64, found: u64) {
    let before = header(page_header::CORRUPTIONS).fetch_add(1, Relaxed);
    if before == 0 {
        header(page_header::FIRST_PAGE).store(place, Relaxed);
        header(page_header::FIRST_EXPECTED).store(expected, Relaxed);
        header(page_header::FIRST_FOUND).store(found, Relaxed);
        header(page_header::FIRST_KIND).store(kind, Relaxed);
    }
    header(page_header::STATE).fetch_max(state::CORRUPT, Relaxed);
    if before >= LINES_MAX {
        return;
    }
    let (what, place_is) = match kind {
        corruption::PAGE_NUMBER => ("page-number", "page"),
        corruption::GENERATION => ("generation", "page"),
        corruption::CONTENT => ("content", "page"),
        corruption::TSC => ("tsc", "vcpu"),
        corruption::TICK_TSC => ("tick-tsc", "vcpu"),
        corruption::TICK_COUNT => ("tick-count", "vcpu"),
        _ => ("compute", "vcpu"),
    };
    console::line(format_args!("CORRUPT {what} {place_is}={place} expected={expected:#x} found={found:#x}"));
}
