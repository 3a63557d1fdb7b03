//! Which pages the VMM itself has written: devices, and the engine as it fills memory. KVM's log sees the guest's writes only.
//!
//! vm-memory has a bitmap for this, which takes an atomic operation for each 64 pages to read: a quarter of a millisecond of the
//! pause at 8 GiB. Here a smaller bitmap says which words are in use.

use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::bitmap::{Bitmap, NewBitmap, RefSlice, WithBitmapSlice};

use super::PAGE;
use super::dirty::PAGES_PER_WORD;

/// The pages of one region that were written.
#[derive(Debug, Default)]
pub struct OwnWrites {
    words: Vec<AtomicU64>,
    /// Bit `b` of word `w`: word `w * 64 + b` may be in use. Set after the word is, and cleared before it is taken.
    used: Vec<AtomicU64>,
}

impl OwnWrites {
    /// Calls `each(page, bits)` for every word in use, which it is not any more: bit 0 is the page.
    pub(super) fn take(&self, mut each: impl FnMut(u64, u64)) {
        for (at, used) in self.used.iter().enumerate() {
            if used.load(Ordering::SeqCst) == 0 {
                continue;
            }
            let mut left = used.swap(0, Ordering::SeqCst);
            while left != 0 {
                let index = at * 64 + left.trailing_zeros() as usize;
                left &= left - 1;
                each(index as u64 * PAGES_PER_WORD, self.words[index].swap(0, Ordering::SeqCst));
            }
        }
    }

    /// Pages past the end are left out.
    fn insert(&self, page: u64) {
        let (index, bit) = ((page / PAGES_PER_WORD) as usize, 1 << (page % PAGES_PER_WORD));
        let Some(word) = self.words.get(index) else { return };
        word.fetch_or(bit, Ordering::SeqCst);
        // Not only by whoever was the first in this word, and may be held up before it comes to this.
        let (used, in_use) = (&self.used[index / 64], 1 << (index % 64));
        if used.load(Ordering::SeqCst) & in_use == 0 {
            used.fetch_or(in_use, Ordering::SeqCst);
        }
    }
}

impl Bitmap for OwnWrites {
    fn mark_dirty(&self, offset: usize, len: usize) {
        if let Some(last) = len.checked_sub(1) {
            let (first, last) = (offset as u64 / PAGE, (offset as u64).saturating_add(last as u64) / PAGE);
            let end = (self.words.len() as u64 * PAGES_PER_WORD).min(last + 1);
            (first..end).for_each(|page| self.insert(page));
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let page = offset as u64 / PAGE;
        let word = self.words.get((page / PAGES_PER_WORD) as usize);
        word.is_some_and(|word| word.load(Ordering::SeqCst) & 1 << (page % PAGES_PER_WORD) != 0)
    }

    fn slice_at(&self, offset: usize) -> RefSlice<'_, Self> {
        RefSlice::new(self, offset)
    }
}

impl NewBitmap for OwnWrites {
    fn with_len(bytes: usize) -> Self {
        let zeros = |count: u64| (0..count).map(|_| AtomicU64::new(0)).collect::<Vec<_>>();
        let words = (bytes as u64).div_ceil(PAGE).div_ceil(PAGES_PER_WORD);
        Self { words: zeros(words), used: zeros(words.div_ceil(64)) }
    }
}

impl<'a> WithBitmapSlice<'a> for OwnWrites {
    type S = RefSlice<'a, Self>;
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    const PAGES: u64 = 5000;

    fn taken(writes: &OwnWrites) -> Vec<u64> {
        let mut pages = Vec::new();
        writes.take(|first, bits| {
            pages.extend((0..PAGES_PER_WORD).filter(|bit| bits >> bit & 1 == 1).map(|bit| first + bit))
        });
        pages
    }

    #[test]
    fn pages_written_are_told_once() {
        let writes = OwnWrites::with_len((PAGES * PAGE) as usize);
        writes.mark_dirty(5 * PAGE as usize + 4000, 100);
        writes.mark_dirty(4999 * PAGE as usize, 1 << 20);
        writes.slice_at(100 * PAGE as usize).mark_dirty(28 * PAGE as usize, 1);
        writes.mark_dirty(7, 0);
        writes.mark_dirty(usize::MAX, usize::MAX);
        assert!(writes.dirty_at(6 * PAGE as usize) && !writes.dirty_at(7 * PAGE as usize));
        // The last word has room for more pages than there are.
        assert_eq!(taken(&writes), [[5, 6, 128].as_slice(), &(4999..5056).collect::<Vec<_>>()].concat());
        assert!(taken(&writes).is_empty());
        writes.mark_dirty(6 * PAGE as usize, 1);
        assert_eq!(taken(&writes), [6]);
    }

    #[test]
    fn a_write_beside_the_taking_is_told_by_it_or_by_the_next() {
        let writes = OwnWrites::with_len((PAGES * PAGE) as usize);
        let (mut told, over) = (vec![false; PAGES as usize], AtomicU64::new(0));
        thread::scope(|scope| {
            // Two, in the same words.
            for odd in 0..2 {
                let (writes, over) = (&writes, &over);
                scope.spawn(move || {
                    for page in (odd..PAGES).step_by(2) {
                        writes.mark_dirty((page * PAGE) as usize, 1);
                    }
                    over.fetch_add(1, Ordering::Release);
                });
            }
            while over.load(Ordering::Acquire) < 2 {
                taken(&writes).into_iter().for_each(|page| told[page as usize] = true);
            }
        });
        taken(&writes).into_iter().for_each(|page| told[page as usize] = true);
        assert!(told.into_iter().all(|told| told));
    }
}
