//! What all couriers share about packing: the judge, what was sent before, and whether differences may be sent.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use super::kept::Kept;
use crate::options::{Mode, Options};
use crate::packing::{About, Judge, Way};
use crate::pages::{PAGE_SIZE, PageRun};

/// There is one where both sides have agreed on how pages may be packed.
pub(super) struct Packing {
    /// One for all connections: they share the link. Locked a few times a frame.
    judge: Mutex<Judge>,
    /// Shared, because a page may be sent by another courier the next time. There from when the link is seen to be slow.
    kept: OnceLock<Mutex<Kept>>,
    /// Pages that may be kept.
    room: u64,
    /// A packed frame was sent while the guest ran.
    has_packed: AtomicBool,
}

impl Packing {
    /// For a guest of so many pages.
    pub(super) fn new(options: &Options, pages: u64, about: About) -> Self {
        // In the other modes no page is sent twice.
        let rounds = matches!(options.mode, Mode::Precopy | Mode::Hybrid);
        let room = if rounds { (options.delta_cache / PAGE_SIZE as u64).min(pages) } else { 0 };
        Self {
            judge: Mutex::new(Judge::new(options.compression, about)),
            kept: OnceLock::new(),
            room,
            has_packed: AtomicBool::new(false),
        }
    }

    /// How the next frame goes.
    pub(super) fn way(&self, hurried: bool) -> Way {
        self.judge().way(hurried)
    }

    /// Whether frames go as they are, and nothing is tried: the link is known to be fast.
    pub(super) fn is_idle(&self) -> bool {
        self.judge().is_idle()
    }

    /// The level of zstd at which the next frame is packed.
    pub(super) fn level(&self) -> i32 {
        self.judge().level()
    }

    /// What the link takes, bytes per second, once that is known.
    pub(super) fn link_rate(&self) -> Option<f64> {
        self.judge().link_rate()
    }

    /// Packing so much was tried.
    pub(super) fn tried(&self, content: usize, smaller: bool, took: Duration) {
        self.judge().tried(content, smaller, took);
    }

    /// A packed frame was sent.
    pub(super) fn sent_packed(&self, bytes: usize, packing: Duration, sending: Duration) {
        self.judge().sent_packed(bytes, packing, sending);
    }

    /// Another frame was sent.
    pub(super) fn sent(&self, bytes: usize, packing: Duration, sending: Duration) {
        self.judge().sent(bytes, packing, sending);
    }

    /// The destination was waited for.
    pub(super) fn waited(&self, time: Duration) {
        self.judge().waited(time);
    }

    /// The pages of `runs` are sent in this round, and are `plain`. `mixed` is the same; where one was kept from before it is
    /// the difference after this, and has its bit in what is returned.
    pub(super) fn mix(&self, round: u32, runs: &[PageRun], plain: &[u8], mixed: &mut [u8]) -> u64 {
        if !self.keeps() || (self.kept.get().is_none() && !self.judge().is_slow()) {
            return 0;
        }
        let mut kept = lock(self.kept.get_or_init(|| Mutex::new(Kept::new(self.room))));
        let gfns = runs.iter().flat_map(|run| run.first..run.end());
        let pages = plain.chunks_exact(PAGE_SIZE).zip(mixed.chunks_exact_mut(PAGE_SIZE));
        let bits = gfns
            .zip(pages)
            .enumerate()
            .map(|(at, (gfn, (plain, mixed)))| u64::from(kept.mix(round, gfn, plain, mixed)) << at);
        bits.fold(0, |all, bit| all | bit)
    }

    /// A packed frame is sent while the guest runs.
    pub(super) fn note_packed(&self) {
        self.has_packed.store(true, Ordering::Relaxed);
    }

    /// As [`mix`](Self::mix), in the pause. There are differences only if packed frames came before it: a destination that has
    /// had one restores the state when all have landed, because restoring writes memory.
    pub(super) fn mix_last(&self, round: u32, runs: &[PageRun], plain: &[u8], mixed: &mut [u8]) -> u64 {
        if self.has_packed.load(Ordering::Relaxed) { self.mix(round, runs, plain, mixed) } else { 0 }
    }

    /// Whether what is sent may be kept.
    pub(super) fn keeps(&self) -> bool {
        self.room > 0
    }

    /// These pages are sent without a copy, or as zero marks.
    pub(super) fn forget(&self, runs: &[PageRun]) {
        if let Some(kept) = self.kept.get() {
            lock(kept).forget(runs);
        }
    }

    fn judge(&self) -> MutexGuard<'_, Judge> {
        lock(&self.judge)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
