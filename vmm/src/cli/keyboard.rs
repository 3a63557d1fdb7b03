//! What is typed, on its way to a guest.

use std::io::{self, IsTerminal, Read};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior};

use super::escape::Escape;
use crate::sandbox::{self, ThreadKind};

/// Something typed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Typed {
    /// For the guest.
    Bytes(Vec<u8>),
    /// For us: Ctrl-A x.
    Leave,
}

/// Bytes that one typing takes at most, and that wait here before the keyboard does.
const MOST_AT_ONCE: usize = 64 << 10;

/// How soon it is tried again.
const AGAIN: Duration = Duration::from_millis(50);

/// When it is tried again. Nothing is made up for of the time when there was nothing to try.
pub(super) fn again() -> Interval {
    let mut again = tokio::time::interval(AGAIN);
    again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    again
}

/// What was typed and the guest has no room for yet: held back, in order, and given as it reads.
#[derive(Debug, Default)]
pub(super) struct Held(Vec<u8>);

impl Held {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    pub(super) fn bytes(&self) -> usize {
        self.0.len()
    }

    /// Whether the keyboard is to wait: a guest that never reads must not fill memory. Ctrl-A x waits too, then, but a
    /// person does not type so much.
    pub(super) fn is_full(&self) -> bool {
        self.bytes() >= MOST_AT_ONCE
    }

    /// Gives as much as is taken: `take` is called once and says how much that is.
    pub(super) async fn give<E>(
        &mut self,
        take: impl AsyncFnOnce(Vec<u8>) -> Result<usize, E>,
    ) -> Result<(), E> {
        let taken = take(self.0[..self.bytes().min(MOST_AT_ONCE)].to_vec()).await?;
        self.0.drain(..taken.min(self.bytes()));
        Ok(())
    }
}

/// Listens on standard input, until it ends. On a thread of its own, because a terminal cannot be read
/// otherwise without changing it for all who share it; the thread ends with the process.
pub(super) fn listen() -> mpsc::Receiver<Typed> {
    let (sender, receiver) = mpsc::channel(16);
    let mut escape = io::stdin().is_terminal().then(Escape::default);
    std::thread::spawn(move || {
        sandbox::confine(ThreadKind::Device);
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = io::stdin().read(&mut buffer) {
            let (bytes, leave) = match &mut escape {
                Some(escape) => escape.feed(&buffer[..count]),
                None => (buffer[..count].to_vec(), false),
            };
            let said = (!bytes.is_empty()).then_some(Typed::Bytes(bytes));
            for typed in said.into_iter().chain(leave.then_some(Typed::Leave)) {
                if sender.blocking_send(typed).is_err() {
                    return;
                }
            }
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    #[tokio::test]
    async fn what_is_not_taken_is_given_again_in_order() {
        let (mut held, mut guest) = (Held::default(), Vec::new());
        held.push(b"hel");
        held.push(b"lo");
        for room in [3, 0, 1, 9] {
            let take = async |bytes: Vec<u8>| {
                let taken = bytes.len().min(room);
                guest.extend_from_slice(&bytes[..taken]);
                Ok::<_, Infallible>(taken)
            };
            held.give(take).await.unwrap();
        }
        assert_eq!((guest.as_slice(), held.bytes()), (&b"hello"[..], 0));
    }

    #[tokio::test]
    async fn the_keyboard_waits_for_a_guest_that_does_not_read() {
        let mut held = Held::default();
        held.push(&[b'x'; MOST_AT_ONCE - 1]);
        assert!(!held.is_full());
        held.push(&[b'x'; 4096]);
        assert!(held.is_full());
        held.give(async |bytes| Ok::<_, Infallible>(bytes.len())).await.unwrap();
        assert_eq!((held.bytes(), held.is_full()), (4095, false));
    }
}
