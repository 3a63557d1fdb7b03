//! Sets and runs of guest pages, by guest frame number.
//!
//! A [`PageSet`] is the one currency for "which pages": a harvest of the dirty log, what a round
//! must send, what post-copy still misses. It is a bitmap: a guest of 1 TiB costs 32.5 MiB.
//! An [`AtomicPageSet`] is the same with concurrent claims: whoever clears a bit owns the page.

mod atomic;
mod set;

use serde::{Deserialize, Serialize};

pub use self::atomic::AtomicPageSet;
pub use self::set::{PageSet, Runs};

/// Bytes in a page. x86-64's base page: the dirty log, userfaultfd and the wire all count in it.
pub const PAGE_SIZE: usize = 4096;

/// A run of consecutive guest pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRun {
    /// The first guest frame number (guest-physical address / 4096).
    pub first: u64,
    /// How many pages.
    pub count: u64,
}

impl PageRun {
    /// The frame number just past the run.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.first + self.count
    }

    /// Bytes in the run.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.count * PAGE_SIZE as u64
    }
}

/// Calls `f(word index, mask)` for each word that `run` touches.
fn for_words(run: PageRun, mut f: impl FnMut(usize, u64)) {
    let mut gfn = run.first;
    while gfn < run.end() {
        let bit = gfn % 64;
        let count = (64 - bit).min(run.end() - gfn);
        f((gfn / 64) as usize, mask(bit, count));
        gfn += count;
    }
}

/// `count` (1..=64) ones starting at `bit`.
fn mask(bit: u64, count: u64) -> u64 {
    (u64::MAX >> (64 - count)) << bit
}
