//! A guest's memory without a guest: it believes what the engine promises, and ends the process where that is not true.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use migrate::guest::{Faults, GuestError, Ram, Result};
use migrate::pages::{PAGE_SIZE, PageRun, PageSet};

/// Two regions, so that there is a hole that is not RAM.
pub(crate) fn regions() -> Vec<PageRun> {
    vec![PageRun { first: 0, count: 24 }, PageRun { first: 64, count: 8 }]
}

/// Pages in regions like those.
pub(crate) struct Memory {
    regions: Vec<PageRun>,
    inner: Mutex<Inner>,
    changed: Condvar,
}

struct Inner {
    bytes: Vec<u8>,
    missing: PageSet,
    /// Missing pages that were not touched yet.
    untouched: Vec<u64>,
    catching: bool,
}

impl Memory {
    pub(crate) fn new(regions: Vec<PageRun>) -> Self {
        let pages: u64 = regions.iter().map(|run| run.count).sum();
        let limit = regions.last().map_or(0, PageRun::end);
        let inner = Inner {
            bytes: vec![0; pages as usize * PAGE_SIZE],
            missing: PageSet::new(limit),
            untouched: Vec::new(),
            catching: false,
        };
        Self { regions, inner: Mutex::new(inner), changed: Condvar::new() }
    }

    pub(crate) fn limit(&self) -> u64 {
        self.regions.last().map_or(0, PageRun::end)
    }

    /// All pages.
    pub(crate) fn all(&self) -> PageSet {
        PageSet::of_runs(self.limit(), &self.regions)
    }

    /// From here on touches of `missing` are caught: all of them are touched, one after the other.
    pub(crate) fn catch(&self, missing: &PageSet) {
        let mut inner = self.lock();
        inner.catching = true;
        drop(inner);
        self.miss(missing);
    }

    /// How many pages are missing.
    pub(crate) fn missing(&self) -> u64 {
        self.lock().missing.len()
    }

    fn miss(&self, missing: &PageSet) {
        let mut inner = self.lock();
        for run in missing.runs() {
            assert!(self.holds(run), "{run:?} is missing and not RAM");
            inner.missing.insert_run(run);
            inner.untouched.extend(run.first..run.end());
        }
        self.changed.notify_all();
    }

    /// Whether the guest would wait where it touches what is missing.
    pub(crate) fn is_guarded(&self) -> bool {
        let inner = self.lock();
        inner.catching || inner.missing.is_empty()
    }

    /// The kernel refuses it once faults are not caught any more: an arrival has failed then, and page frames may be on the
    /// way still.
    fn put(&self, run: PageRun, content: &[u8]) -> Result<()> {
        assert_eq!(content.len() as u64, run.bytes(), "{run:?}");
        let at = self.place(run);
        let mut inner = self.lock();
        for gfn in run.first..run.end() {
            assert!(inner.missing.contains(gfn), "page {gfn} is placed and not missing");
        }
        if !inner.catching {
            return Err(GuestError("no faults are caught any more".to_owned()));
        }
        inner.missing.remove_run(run);
        inner.bytes[at..at + content.len()].copy_from_slice(content);
        Ok(())
    }

    fn holds(&self, run: PageRun) -> bool {
        self.regions.iter().any(|region| region.first <= run.first && run.end() <= region.end())
    }

    /// Where a run is in the bytes.
    fn place(&self, run: PageRun) -> usize {
        assert!(run.count > 0 && self.holds(run), "{run:?} is not RAM");
        let before = self.regions.iter().take_while(|region| region.end() <= run.first);
        let before: u64 = before.map(|region| region.count).sum();
        let region = self.regions.iter().find(|region| run.first < region.end()).expect("RAM");
        (before + run.first - region.first) as usize * PAGE_SIZE
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ram for Memory {
    fn populated(&self) -> Result<PageSet> {
        Ok(self.all())
    }

    fn split_zeros(&self, run: PageRun, zeros: &mut Vec<PageRun>, data: &mut Vec<PageRun>) {
        self.place(run);
        for gfn in run.first..run.end() {
            if gfn % 2 == 0 { &mut *zeros } else { &mut *data }.push(PageRun { first: gfn, count: 1 });
        }
    }

    fn send(&self, _: &[u8], _: &[PageRun], _: BorrowedFd<'_>) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn receive(&self, _: &[PageRun], _: BorrowedFd<'_>) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn copy_out(&self, run: PageRun, into: &mut [u8]) {
        let at = self.place(run);
        into.copy_from_slice(&self.lock().bytes[at..at + run.bytes() as usize]);
    }

    fn copy_in(&self, run: PageRun, from: &[u8]) {
        let at = self.place(run);
        let mut inner = self.lock();
        assert!(!inner.catching, "{run:?} lands, and faults are caught");
        inner.bytes[at..at + run.bytes() as usize].copy_from_slice(from);
    }

    fn clear(&self, run: PageRun) -> Result<()> {
        let at = self.place(run);
        self.lock().bytes[at..at + run.bytes() as usize].fill(0);
        Ok(())
    }

    fn prepare(&self, run: PageRun) {
        self.place(run);
    }

    fn hash(&self, run: PageRun, into: &mut Vec<u64>) {
        let at = self.place(run);
        let inner = self.lock();
        let pages = inner.bytes[at..at + run.bytes() as usize].chunks(PAGE_SIZE);
        into.extend(pages.map(|page| u64::from(crc32fast::hash(page))));
    }
}

/// Faults on such memory.
pub(crate) struct Touches(pub(crate) std::sync::Arc<Memory>);

impl Faults for Touches {
    fn wait(&self, wait: Duration, touched: &mut Vec<u64>) -> Result<()> {
        let idle = |inner: &mut Inner| inner.untouched.is_empty() && inner.catching;
        let waited = self.0.changed.wait_timeout_while(self.0.lock(), wait, idle);
        let (mut inner, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if let Some(gfn) = inner.untouched.pop() {
            // Seen twice, as by two vCPUs.
            touched.extend([gfn, gfn]);
        }
        Ok(())
    }

    fn discard(&self, pages: &PageSet) -> Result<()> {
        self.0.miss(pages);
        Ok(())
    }

    fn place(&self, run: PageRun, data: &[u8]) -> Result<()> {
        self.0.put(run, data)
    }

    fn fill_hole(&self, gfn: u64) -> Result<()> {
        self.0.place(PageRun { first: gfn, count: 1 });
        Ok(())
    }

    fn place_zeros(&self, run: PageRun) -> Result<()> {
        self.0.place(run);
        self.0.put(run, &vec![0; run.bytes() as usize])
    }

    fn close(&self) {
        let mut inner = self.0.lock();
        inner.catching = false;
        drop(inner);
        self.0.changed.notify_all();
    }
}
