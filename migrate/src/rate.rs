//! What a link, or a thread, takes of late: an average over some frames of pages.

use std::time::Duration;

/// Frames that a rate is taken from, more or less: 4 MiB at least, which sockets' buffers may have room for. A thread that was away
/// for a moment tells little among them.
const MEMORY: f64 = 16.0;

/// So many frames say something about the link.
pub(crate) const TELLING: u32 = 16;

/// Bytes per second of late.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Rate {
    bytes: f64,
    seconds: f64,
    noted: u32,
}

impl Rate {
    /// A frame of so many bytes took so long.
    pub(crate) fn note(&mut self, bytes: usize, time: Duration) {
        let kept = 1.0 - 1.0 / MEMORY;
        self.bytes = self.bytes * kept + bytes as f64;
        self.seconds = self.seconds * kept + time.as_secs_f64();
        self.noted = self.noted.saturating_add(1);
    }

    /// The frames so far took longer by so much.
    pub(crate) fn waited(&mut self, time: Duration) {
        self.seconds += time.as_secs_f64();
    }

    pub(crate) fn bytes_per_s(&self) -> f64 {
        self.bytes / self.seconds.max(1e-9)
    }

    /// Whether there was a frame.
    pub(crate) fn has_begun(&self) -> bool {
        self.noted > 0
    }

    /// Whether there were enough to tell.
    pub(crate) fn tells(&self) -> bool {
        self.noted >= TELLING
    }
}
