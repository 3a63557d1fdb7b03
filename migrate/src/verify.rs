//! Comparison of RAM on both sides by page hashes, in step: one side hashes and sends, the other hashes and compares.

use std::time::Instant;

use crate::channel::line::Line;
use crate::failure::Failure;
use crate::guest::Ram;
use crate::pages::{PageRun, PageSet};
use crate::report::Verification;
use crate::wire::limits::HASHES_PER_FRAME;
use crate::wire::{Message, RamMap};

/// How many differing frame numbers are named.
const NAMED: usize = 8;

/// RAM in the pieces whose hashes share a frame, ascending.
fn pieces(map: &RamMap) -> impl Iterator<Item = PageRun> {
    let most = HASHES_PER_FRAME as u64;
    map.regions().iter().flat_map(move |region| {
        let firsts = (region.first..region.end()).step_by(HASHES_PER_FRAME);
        firsts.map(move |first| PageRun { first, count: most.min(region.end() - first) })
    })
}

/// Sends the hashes of all RAM.
pub(crate) fn send_hashes(map: &RamMap, ram: &dyn Ram, control: &Line) -> Result<(), Failure> {
    for piece in pieces(map) {
        let mut hashes = Vec::with_capacity(piece.count as usize);
        ram.hash(piece, &mut hashes);
        control.tell(&Message::Hashes { first: piece.first, hashes })?;
    }
    Ok(())
}

/// Hears the hashes of all RAM and says which pages differ here.
pub(crate) fn compare(map: &RamMap, ram: &dyn Ram, control: &Line) -> Result<PageSet, Failure> {
    let mut differing = PageSet::new(map.limit());
    let mut mine = Vec::new();
    for piece in pieces(map) {
        let theirs = match control.hear()? {
            Message::Hashes { first, hashes }
                if first == piece.first && hashes.len() as u64 == piece.count =>
            {
                hashes
            }
            other => {
                return Err(control.unexpected(other.kind(), "the hashes of the next part of RAM"));
            }
        };
        mine.clear();
        ram.hash(piece, &mut mine);
        let differ = mine.iter().zip(&theirs).enumerate().filter(|(_, (mine, theirs))| mine != theirs);
        differ.for_each(|(at, _)| differing.insert(piece.first + at as u64));
    }
    Ok(differing)
}

/// The result, without the pages in `skip`.
pub(crate) fn judge(map: &RamMap, mut differing: PageSet, skip: &PageSet, since: Instant) -> Verification {
    differing.subtract(skip);
    let skipped = skip.len();
    Verification {
        pages: map.regions().iter().map(|region| region.count).sum::<u64>().saturating_sub(skipped),
        skipped,
        mismatched: differing.len(),
        first_mismatches: differing.runs().flat_map(|run| run.first..run.end()).take(NAMED).collect(),
        us: since.elapsed().as_micros() as u64,
    }
}
