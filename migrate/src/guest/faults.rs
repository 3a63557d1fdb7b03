//! Post-copy's part of the seam: catching touches of missing pages, and placing what they miss.

use std::sync::Arc;
use std::time::Duration;

use super::Result;
use crate::pages::{PageRun, PageSet};

/// Pages of a block, which is what a host backs with one huge page: 2 MiB.
pub const BLOCK_PAGES: u64 = 512;

/// Parts that a block's content comes in.
pub const BLOCK_PARTS: u64 = 8;

/// Pages of a part.
pub const PART_PAGES: u64 = BLOCK_PAGES / BLOCK_PARTS;

/// Memory beside the guest's for the content of one block, which then becomes the guest's as it is.
pub trait Stage: Send + Sync {
    /// Lets `with` have the bytes of a part, which nobody else has meanwhile.
    fn with_part(&self, part: u64, with: &mut dyn FnMut(&mut [u8]));

    /// Places the whole block and wakes who waits for it. What the stage holds is lost. Once.
    ///
    /// # Errors
    /// As for [`Faults::place`].
    fn place(&self) -> Result<()>;
}

/// Faults on missing pages, and the way to resolve them.
pub trait Faults: Send + Sync {
    /// Waits for touches of missing pages and appends their frame numbers (repeats are possible).
    /// Returns with none when `wait` has passed or [`close`](Self::close) was called.
    ///
    /// # Errors
    /// When the kernel's side is gone.
    fn wait(&self, wait: Duration, touched: &mut Vec<u64>) -> Result<()>;

    /// Discards more pages: they are missing too. Before the guest runs.
    ///
    /// # Errors
    /// When the host refuses.
    fn discard(&self, pages: &PageSet) -> Result<()>;

    /// Places a page run whose content is `data` and wakes who waits for it. The guest never sees half a page.
    /// Each page once.
    ///
    /// # Errors
    /// When the kernel refuses; or a page was there already, with content that is not this.
    fn place(&self, run: PageRun, data: &[u8]) -> Result<()>;

    /// Memory for the content of the block of [`BLOCK_PAGES`] pages that begins at `first`, a multiple of that. All of them are
    /// missing. None where this host has nothing better than [`place`](Self::place).
    fn stage(&self, first: u64) -> Option<Arc<dyn Stage>> {
        let _ = first;
        None
    }

    /// Makes a touched page that never was missing read as zero. Another touch may have done so before.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn fill_hole(&self, gfn: u64) -> Result<()>;

    /// Places zero pages.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn place_zeros(&self, run: PageRun) -> Result<()>;

    /// Nothing is missing any more: stops catching, wakes everyone.
    fn close(&self);
}
