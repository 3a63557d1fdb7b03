//! What a witness says: a line a second, numbered, and a line about damage.

use std::time::{Duration, Instant};

/// A witness's lines. The numbers show whether one is missing or said twice.
pub(crate) struct Seconds {
    name: &'static str,
    told: u64,
    last: Instant,
}

impl Seconds {
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, told: 0, last: Instant::now() }
    }

    /// Says `words` if a second has passed since it last said something.
    pub(crate) fn tell(&mut self, words: impl FnOnce() -> String) {
        if self.last.elapsed() >= Duration::from_secs(1) {
            self.last = Instant::now();
            self.told += 1;
            println!("inner second {}: {} {}", self.told, self.name, words());
        }
    }
}

/// Says that something is not as it was left.
pub(crate) fn corrupt(name: &str, words: &str) {
    println!("inner CORRUPT: {name} {words}");
}
