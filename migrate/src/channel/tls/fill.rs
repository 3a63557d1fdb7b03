//! Where decrypted bytes go: a buffer, or pages of guest memory.

use crate::guest::Ram;
use crate::pages::{PAGE_SIZE, PageRun};

/// Something that takes bytes until it is full.
pub(super) trait Fill {
    /// Takes what it needs of `bytes`, from their start, and says how many that were.
    fn take(&mut self, bytes: &[u8]) -> usize;

    /// How many it takes in all.
    fn bytes(&self) -> u64;

    /// Whether it needs no more.
    fn is_full(&self) -> bool;

    /// Whether it has taken any.
    fn has_begun(&self) -> bool;
}

/// A buffer.
pub(super) struct Buffer<'a> {
    pub(super) into: &'a mut [u8],
    pub(super) done: usize,
}

impl Fill for Buffer<'_> {
    fn take(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.into.len() - self.done);
        self.into[self.done..][..count].copy_from_slice(&bytes[..count]);
        self.done += count;
        count
    }

    fn bytes(&self) -> u64 {
        self.into.len() as u64
    }

    fn is_full(&self) -> bool {
        self.done == self.into.len()
    }

    fn has_begun(&self) -> bool {
        self.done > 0
    }
}

/// Pages. Whole ones are copied from where they were decrypted; one that comes in pieces is put together first.
pub(super) struct Pages<'a> {
    ram: &'a dyn Ram,
    runs: &'a [PageRun],
    /// Pages of the first of `runs` that are there.
    done: u64,
    begun: bool,
    piece: [u8; PAGE_SIZE],
    pieced: usize,
}

impl<'a> Pages<'a> {
    pub(super) fn new(ram: &'a dyn Ram, runs: &'a [PageRun]) -> Self {
        Self { ram, runs, done: 0, begun: false, piece: [0; PAGE_SIZE], pieced: 0 }
    }

    /// What is left of the run that is being filled, but at most `count` pages.
    fn next(&self, count: u64) -> PageRun {
        let run = self.runs[0];
        PageRun { first: run.first + self.done, count: count.min(run.count - self.done) }
    }

    fn advance(&mut self, count: u64) {
        self.done += count;
        while self.runs.first().is_some_and(|run| run.count == self.done) {
            self.runs = &self.runs[1..];
            self.done = 0;
        }
    }
}

impl Fill for Pages<'_> {
    fn take(&mut self, bytes: &[u8]) -> usize {
        let mut left = bytes;
        while !left.is_empty() && !self.is_full() {
            self.begun = true;
            if self.pieced == 0 && left.len() >= PAGE_SIZE {
                let run = self.next((left.len() / PAGE_SIZE) as u64);
                let (whole, rest) = left.split_at(run.bytes() as usize);
                self.ram.copy_in(run, whole);
                self.advance(run.count);
                left = rest;
                continue;
            }
            let (part, rest) = left.split_at(left.len().min(PAGE_SIZE - self.pieced));
            self.piece[self.pieced..][..part.len()].copy_from_slice(part);
            self.pieced += part.len();
            left = rest;
            if self.pieced == PAGE_SIZE {
                self.ram.copy_in(self.next(1), &self.piece);
                self.advance(1);
                self.pieced = 0;
            }
        }
        bytes.len() - left.len()
    }

    fn bytes(&self) -> u64 {
        self.runs.iter().map(PageRun::bytes).sum()
    }

    fn is_full(&self) -> bool {
        self.runs.is_empty()
    }

    fn has_begun(&self) -> bool {
        self.begun
    }
}
