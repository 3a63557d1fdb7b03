//! The alarm of one migration: the first thing that goes wrong is kept, and everyone who waits is woken.
//!
//! Threads of a migration wait in two ways only: on a link, or here. Tripping the alarm shuts the watched
//! links and wakes the waiters, so a cancel, a time limit or a broken connection is noticed by all at once.
//! The alarm has one lock because cause, seal and waiters must be seen together.
//!
//! [`Alarm::seal`] is the point of no return: from then on cancel and time limit are refused.

use std::net::Shutdown;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::channel::Link;
use crate::failure::Failure;

/// Stops one migration from outside. Clones stop the same one.
#[derive(Debug, Clone, Default)]
pub struct Cancel {
    alarm: Arc<Alarm>,
}

/// The guest has been handed over: it cannot be called back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too late to cancel: the guest has been handed to the destination")]
pub struct TooLate;

impl Cancel {
    /// A handle for one migration: use each once.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Stops the migration at once, if the guest has not been handed over. `why` is for the report.
    ///
    /// # Errors
    /// [`TooLate`] from commit on.
    pub fn cancel(&self, why: &str) -> Result<(), TooLate> {
        if self.alarm.recall(Failure::Cancelled(why.to_owned())) { Ok(()) } else { Err(TooLate) }
    }

    pub(crate) fn alarm(&self) -> Arc<Alarm> {
        Arc::clone(&self.alarm)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Alarm {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    cause: Option<Failure>,
    sealed: bool,
    over: bool,
    links: Vec<(Arc<dyn Link>, Shutdown)>,
}

/// How a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Woken {
    /// What was waited for is true.
    Done,
    /// The time has passed.
    TimeUp,
    /// The alarm was tripped, or the migration is over.
    Stopped,
}

impl Alarm {
    /// Shuts `link` in the given way when the alarm trips; at once if it already has.
    pub(crate) fn watch(&self, link: &Arc<dyn Link>, how: Shutdown) {
        let mut state = self.lock();
        if state.cause.is_some() {
            link.shut(Shutdown::Both);
        }
        state.links.push((Arc::clone(link), how));
    }

    /// Something went wrong. The first cause is kept; everyone wakes.
    pub(crate) fn trip(&self, cause: Failure) {
        self.ring(&mut self.lock(), cause);
    }

    fn ring(&self, state: &mut State, cause: Failure) {
        state.cause.get_or_insert(cause);
        for (link, how) in &state.links {
            link.shut(*how);
        }
        self.changed.notify_all();
    }

    /// Trips unless sealed or over; says whether it did. Seen and done under one lock: a seal in between
    /// would have its guest called back after all.
    pub(crate) fn recall(&self, cause: Failure) -> bool {
        let mut state = self.lock();
        let possible = !state.sealed && !state.over;
        if possible {
            self.ring(&mut state, cause);
        }
        possible
    }

    /// The point of no return.
    ///
    /// # Errors
    /// What tripped the alarm before.
    pub(crate) fn seal(&self) -> Result<(), Failure> {
        let mut state = self.lock();
        if let Some(cause) = &state.cause {
            return Err(cause.clone());
        }
        state.sealed = true;
        Ok(())
    }

    /// What tripped it.
    pub(crate) fn cause(&self) -> Option<Failure> {
        self.lock().cause.clone()
    }

    /// The best account of `failure`: where it only says that a connection ended, the alarm may know why.
    pub(crate) fn explain(&self, failure: Failure) -> Failure {
        if failure.is_bare() { self.cause().unwrap_or(failure) } else { failure }
    }

    /// The migration is over: shuts all links, wakes everyone, refuses cancel.
    pub(crate) fn end(&self) {
        let mut state = self.lock();
        state.over = true;
        for (link, _) in state.links.drain(..) {
            link.shut(Shutdown::Both);
        }
        self.changed.notify_all();
    }

    /// Whether it has been tripped or ended.
    pub(crate) fn is_stopped(&self) -> bool {
        let state = self.lock();
        state.cause.is_some() || state.over
    }

    /// Waits until `done` says so. Whoever changes what `done` looks at calls [`nudge`](Self::nudge).
    pub(crate) fn wait_until(&self, limit: Duration, mut done: impl FnMut() -> bool) -> Woken {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        loop {
            if state.cause.is_some() || state.over {
                return Woken::Stopped;
            }
            if done() {
                return Woken::Done;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Woken::TimeUp;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for `limit`, unless stopped before.
    pub(crate) fn rest(&self, limit: Duration) -> Woken {
        self.wait_until(limit, || false)
    }

    /// Makes everyone look again.
    pub(crate) fn nudge(&self) {
        drop(self.lock());
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_cause_is_kept_and_cancel_is_refused_after_the_seal() {
        let cancel = Cancel::new();
        assert_eq!(cancel.alarm().seal(), Ok(()));
        assert_eq!(cancel.cancel("late"), Err(TooLate));
        cancel.alarm().trip(Failure::Bug("first".to_owned()));
        cancel.alarm().trip(Failure::Bug("second".to_owned()));
        assert_eq!(cancel.alarm().cause(), Some(Failure::Bug("first".to_owned())));
    }

    #[test]
    fn a_cancelled_migration_cannot_be_sealed() {
        let cancel = Cancel::new();
        assert_eq!(cancel.cancel("enough"), Ok(()));
        assert_eq!(cancel.alarm().seal(), Err(Failure::Cancelled("enough".to_owned())));
        assert_eq!(cancel.alarm().rest(Duration::from_secs(9)), Woken::Stopped);
    }
}
