//! Simulated guest memory: words that any thread may read and write, a dirty log, and missing pages.

use std::io::{self, ErrorKind};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use migrate::guest::{BLOCK_PAGES, BLOCK_PARTS, Faults, GuestError, Ram, Result, Stage};
use migrate::pages::{AtomicPageSet, PAGE_SIZE, PageRun, PageSet};

const WORDS: usize = PAGE_SIZE / 8;

pub(crate) struct SimRam {
    words: Vec<AtomicU64>,
    pages: u64,
    touched: AtomicPageSet,
    dirty: AtomicPageSet,
    /// What the VMM has written itself, which is told once.
    own: AtomicPageSet,
    logging: AtomicBool,
    absent: AtomicPageSet,
    faults: Mutex<FaultQueue>,
    changed: Condvar,
    /// Blocks that were placed whole.
    pub(crate) moved_blocks: AtomicU64,
    /// Breaks waits for absent pages: the machine stops or is thrown away.
    pub(crate) stopping: AtomicBool,
}

#[derive(Default)]
struct FaultQueue {
    catching: bool,
    touched: Vec<u64>,
}

impl SimRam {
    pub(crate) fn new(pages: u64) -> Self {
        Self {
            words: (0..pages as usize * WORDS).map(|_| AtomicU64::new(0)).collect(),
            pages,
            touched: AtomicPageSet::new(pages),
            dirty: AtomicPageSet::new(pages),
            own: AtomicPageSet::new(pages),
            logging: AtomicBool::new(false),
            absent: AtomicPageSet::new(pages),
            faults: Mutex::default(),
            changed: Condvar::new(),
            moved_blocks: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
        }
    }

    fn page(&self, gfn: u64) -> &[AtomicU64] {
        &self.words[gfn as usize * WORDS..][..WORDS]
    }

    fn queue(&self) -> MutexGuard<'_, FaultQueue> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the page is here; false when the machine stops meanwhile.
    fn need(&self, gfn: u64) -> bool {
        if !self.absent.contains(gfn) {
            return true;
        }
        let mut queue = self.queue();
        queue.touched.push(gfn);
        self.changed.notify_all();
        while self.absent.contains(gfn) {
            if self.stopping.load(Ordering::Acquire) {
                return false;
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        true
    }

    /// What the guest reads: the value all words of the page have, `None` when it cannot read, an error when they differ.
    pub(crate) fn read(&self, gfn: u64) -> Option<std::result::Result<u64, String>> {
        self.need(gfn).then(|| {
            let page = self.page(gfn);
            let first = page[0].load(Ordering::Acquire);
            match page.iter().position(|word| word.load(Ordering::Acquire) != first) {
                None => Ok(first),
                Some(at) => Err(format!("page {gfn}: word {at} is not {first:#x} as word 0")),
            }
        })
    }

    /// What the guest writes.
    pub(crate) fn write(&self, gfn: u64, value: u64) {
        let page = PageRun { first: gfn, count: 1 };
        self.touched.insert_run(page);
        // Before and after: a page protected while it is being written is dirty again.
        self.mark(page);
        self.page(gfn).iter().for_each(|word| word.store(value, Ordering::Release));
        self.mark(page);
    }

    /// What the VMM writes for the guest, as a disk does.
    pub(crate) fn write_as_vmm(&self, gfn: u64, value: u64) {
        let page = PageRun { first: gfn, count: 1 };
        self.touched.insert_run(page);
        self.page(gfn).iter().for_each(|word| word.store(value, Ordering::Release));
        self.own.insert_run(page);
    }

    fn mark(&self, page: PageRun) {
        if self.logging.load(Ordering::Acquire) {
            self.dirty.insert_run(page);
        }
    }

    /// As KVM with initially-all-set: all is dirty until it is protected. A fresh log otherwise.
    pub(crate) fn start_log(&self, all_set: bool) {
        if all_set {
            self.dirty.insert_run(PageRun { first: 0, count: self.pages });
        }
        self.logging.store(true, Ordering::Release);
    }

    pub(crate) fn stop_log(&self) {
        self.logging.store(false, Ordering::Release);
        self.dirty.claim_run(PageRun { first: 0, count: self.pages });
    }

    pub(crate) fn is_logging(&self) -> bool {
        self.logging.load(Ordering::Acquire)
    }

    /// Forgets what the VMM has written itself, and nothing else.
    pub(crate) fn harvest(&self) -> PageSet {
        let mut set = self.dirty.snapshot();
        let own = self.own.claim_run(PageRun { first: 0, count: self.pages });
        own.into_iter().for_each(|run| set.insert_run(run));
        set
    }

    pub(crate) fn protect(&self, set: &PageSet, window: PageRun) {
        set.runs_within(window).for_each(|run| drop(self.dirty.claim_run(run)));
    }

    pub(crate) fn catch(&self, missing: &PageSet) {
        self.discard(missing);
        self.queue().catching = true;
    }

    pub(crate) fn last(&self) -> u64 {
        self.pages - 1
    }

    /// The page exists from here on, and shows in the log.
    pub(crate) fn touch(&self, gfn: u64) {
        let page = PageRun { first: gfn, count: 1 };
        self.touched.insert_run(page);
        self.dirty.insert_run(page);
    }

    fn discard(&self, missing: &PageSet) {
        for run in missing.runs() {
            self.store(run, &vec![0xee; run.bytes() as usize]);
            self.absent.insert_run(run);
        }
    }

    /// The machine goes: nobody may hang in a fault.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        drop(self.queue());
        self.changed.notify_all();
    }

    /// It stays after all.
    pub(crate) fn go_on(&self) {
        self.stopping.store(false, Ordering::Release);
    }

    fn store(&self, run: PageRun, from: &[u8]) {
        let words = &self.words[run.first as usize * WORDS..run.end() as usize * WORDS];
        for (word, bytes) in words.iter().zip(from.chunks_exact(8)) {
            word.store(u64::from_le_bytes(bytes.try_into().expect("8 bytes")), Ordering::Release);
        }
    }

    fn is_zero(&self, gfn: u64) -> bool {
        self.page(gfn).iter().all(|word| word.load(Ordering::Acquire) == 0)
    }
}

impl Ram for SimRam {
    fn populated(&self) -> Result<PageSet> {
        Ok(self.touched.snapshot())
    }

    fn split_zeros(&self, run: PageRun, zeros: &mut Vec<PageRun>, data: &mut Vec<PageRun>) {
        for gfn in run.first..run.end() {
            let into = if self.is_zero(gfn) { &mut *zeros } else { &mut *data };
            match into.last_mut() {
                Some(last) if last.end() == gfn => last.count += 1,
                _ => into.push(PageRun { first: gfn, count: 1 }),
            }
        }
    }

    fn send(&self, head: &[u8], runs: &[PageRun], socket: BorrowedFd<'_>) -> io::Result<()> {
        let mut frame = head.to_vec();
        for run in runs {
            let at = frame.len();
            frame.resize(at + run.bytes() as usize, 0);
            self.copy_out(*run, &mut frame[at..]);
        }
        let mut rest = &frame[..];
        while !rest.is_empty() {
            match rustix::net::send(socket, rest, rustix::net::SendFlags::NOSIGNAL) {
                Ok(sent) => rest = &rest[sent..],
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn receive(&self, runs: &[PageRun], socket: BorrowedFd<'_>) -> io::Result<()> {
        for run in runs {
            let mut bytes = vec![0; run.bytes() as usize];
            let mut rest = &mut bytes[..];
            while !rest.is_empty() {
                match rustix::io::read(socket, &mut *rest) {
                    Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                    Ok(got) => rest = &mut rest[got..],
                    Err(rustix::io::Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            self.copy_in(*run, &bytes);
        }
        Ok(())
    }

    fn copy_out(&self, run: PageRun, into: &mut [u8]) {
        let words = &self.words[run.first as usize * WORDS..run.end() as usize * WORDS];
        for (word, bytes) in words.iter().zip(into.chunks_exact_mut(8)) {
            bytes.copy_from_slice(&word.load(Ordering::Acquire).to_le_bytes());
        }
    }

    fn copy_in(&self, run: PageRun, from: &[u8]) {
        self.touched.insert_run(run);
        self.store(run, from);
    }

    fn clear(&self, run: PageRun) -> Result<()> {
        self.store(run, &vec![0; run.bytes() as usize]);
        Ok(())
    }

    fn prepare(&self, run: PageRun) {
        assert!(run.end() <= self.pages);
    }

    fn hash(&self, run: PageRun, into: &mut Vec<u64>) {
        for gfn in run.first..run.end() {
            let mix = |hash: u64, word: &AtomicU64| {
                (hash ^ word.load(Ordering::Acquire)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23)
            };
            into.push(self.page(gfn).iter().fold(0, mix));
        }
    }
}

/// Faults on a [`SimRam`].
pub(crate) struct SimFaults(pub(crate) Arc<SimRam>);

impl SimFaults {
    /// As the kernel does: a page that is there is not replaced, and whoever wants to is told.
    fn put(&self, run: PageRun, content: impl Fn(u64) -> Vec<u8>) -> Result<()> {
        let ram = &self.0;
        for gfn in run.first..run.end() {
            let page = PageRun { first: gfn, count: 1 };
            if !ram.absent.contains(gfn) {
                return Err(GuestError(format!("page {gfn:#x} was already there")));
            }
            ram.store(page, &content(gfn - run.first));
            ram.touched.insert_run(page);
            ram.absent.claim(gfn);
        }
        drop(ram.queue());
        ram.changed.notify_all();
        Ok(())
    }
}

impl Faults for SimFaults {
    fn wait(&self, wait: Duration, touched: &mut Vec<u64>) -> Result<()> {
        let ram = &self.0;
        let queue = ram.queue();
        let idle = |queue: &mut FaultQueue| queue.touched.is_empty() && queue.catching;
        let (mut queue, _) =
            ram.changed.wait_timeout_while(queue, wait, idle).unwrap_or_else(PoisonError::into_inner);
        touched.append(&mut queue.touched);
        if !queue.catching {
            // A touch may have been seen just before the end.
            touched.push(ram.last() - 1);
        }
        Ok(())
    }

    fn discard(&self, pages: &PageSet) -> Result<()> {
        // A host takes its time; a page that comes meanwhile must not be taken for one that came before.
        std::thread::sleep(Duration::from_millis(5));
        self.0.discard(pages);
        Ok(())
    }

    fn stage(&self, first: u64) -> Option<Arc<dyn Stage>> {
        let part = || Mutex::new(vec![0xee; (BLOCK_PAGES / BLOCK_PARTS) as usize * PAGE_SIZE]);
        let parts = (0..BLOCK_PARTS).map(|_| part()).collect();
        Some(Arc::new(SimStage { ram: Arc::clone(&self.0), first, parts }))
    }

    fn fill_hole(&self, gfn: u64) -> Result<()> {
        if !self.0.queue().catching {
            return Err(GuestError("nothing is caught any more".to_owned()));
        }
        // Another touch may have done so before.
        let _ = self.place_zeros(PageRun { first: gfn, count: 1 });
        Ok(())
    }

    fn place(&self, run: PageRun, data: &[u8]) -> Result<()> {
        self.put(run, |page| data[page as usize * PAGE_SIZE..][..PAGE_SIZE].to_vec())
    }

    fn place_zeros(&self, run: PageRun) -> Result<()> {
        self.put(run, |_| vec![0; PAGE_SIZE])
    }

    fn close(&self) {
        let ram = &self.0;
        ram.absent.claim_run(PageRun { first: 0, count: ram.pages });
        ram.queue().catching = false;
        ram.changed.notify_all();
    }
}

/// Room for a block of a [`SimRam`].
struct SimStage {
    ram: Arc<SimRam>,
    first: u64,
    parts: Vec<Mutex<Vec<u8>>>,
}

impl Stage for SimStage {
    fn with_part(&self, part: u64, with: &mut dyn FnMut(&mut [u8])) {
        with(&mut self.parts[part as usize].lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn place(&self) -> Result<()> {
        let mut content = Vec::new();
        for part in 0..BLOCK_PARTS {
            self.with_part(part, &mut |bytes| content.extend_from_slice(bytes));
        }
        let run = PageRun { first: self.first, count: BLOCK_PAGES };
        assert!((run.first..run.end()).all(|gfn| self.ram.absent.contains(gfn)), "each page once");
        self.ram.moved_blocks.fetch_add(1, Ordering::Relaxed);
        SimFaults(Arc::clone(&self.ram)).place(run, &content)
    }
}
