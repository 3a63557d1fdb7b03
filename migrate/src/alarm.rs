//! The alarm of one migration: the first thing that goes wrong is kept, and everyone who waits is woken.
//!
//! Threads of a migration wait in two ways only: on a link, or here. Tripping the alarm shuts the watched
//! links and wakes the waiters, so a cancel, a time limit or a broken connection is noticed by all at once.
//! The alarm has one lock because cause, seal and waiters must be seen together.
//!
//! [`Alarm::seal`] is the point of no return: from then on cancel and time limit are refused.
//!
//! The operator's word to go on comes the same way: [`Alarm::await_word`] is where a migration waits for it.

use std::net::Shutdown;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::channel::Link;
use crate::failure::Failure;

/// Stops one migration from outside, or lets it go on where it waits for that. Clones do so to the same one.
#[derive(Debug, Clone, Default)]
pub struct Cancel {
    alarm: Arc<Alarm>,
}

/// The guest cannot be called back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TooLate {
    /// It has been handed over.
    #[error(
        "too late to cancel: the guest has been handed to {to}; `migrate status` says how it goes on, and if that ends \
         in doubt, `migrate resolve` decides"
    )]
    HandedOver {
        /// `HOST:PORT` of the destination.
        to: String,
    },
    /// There is nothing to call back.
    #[error("too late to cancel: the migration is over; `migrate status` says how it ended")]
    Over,
}

/// There is nothing to let go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the migration does not wait for `migrate continue`: it has not come so far, or was not started with \
     --pause-before-switchover; `migrate status` says where it is"
)]
pub struct NotWaiting;

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
        self.alarm.recall(Failure::Cancelled(why.to_owned()))
    }

    /// Lets the migration go on that waits before it switches over.
    ///
    /// # Errors
    /// [`NotWaiting`] when it does not.
    pub fn go_on(&self) -> Result<(), NotWaiting> {
        self.alarm.give_word()
    }

    /// Calls the destination now, perhaps at another address, instead of after the present rest. Only while the link is lost.
    pub fn call_now(&self, to: Option<String>) {
        self.alarm.order(Order::Call(to));
    }

    /// Does not wait any longer for what became of the guest: the migration ends in doubt. Only while the link is lost.
    pub fn give_up(&self) {
        self.alarm.order(Order::GiveUp);
    }

    /// Takes [`give_up`](Self::give_up) back.
    pub fn do_not_give_up(&self) {
        self.alarm.forget_order();
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
    /// To whom the guest has been handed.
    sealed: Option<String>,
    over: bool,
    word: Word,
    links: Vec<(Arc<dyn Link>, Shutdown)>,
    /// What the operator wants while the link is lost.
    order: Option<Order>,
}

/// What the operator may want while the link is lost.
#[derive(Debug)]
enum Order {
    /// To have the other side called now; perhaps elsewhere.
    Call(Option<String>),
    /// To decide about the guest.
    GiveUp,
}

/// How a rest before a call has ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Rested {
    /// It is time to call, perhaps at another address.
    Call(Option<String>),
    /// The operator does not want to wait any longer.
    GiveUp,
}

/// The operator's word to go on.
#[derive(Debug, Default, PartialEq, Eq)]
enum Word {
    #[default]
    NotAwaited,
    Awaited,
    Given,
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

    /// Trips unless sealed or over. Seen and done under one lock: a seal in between would have its guest called back
    /// after all.
    ///
    /// # Errors
    /// Why it did not.
    pub(crate) fn recall(&self, cause: Failure) -> Result<(), TooLate> {
        let mut state = self.lock();
        match &state.sealed {
            // Over or not: another conversation may follow.
            Some(to) => Err(TooLate::HandedOver { to: to.clone() }),
            None if state.over => Err(TooLate::Over),
            None => {
                self.ring(&mut state, cause);
                Ok(())
            }
        }
    }

    /// Waits until the operator has given the word to go on, for `limit` at most. From the first time on it can be given.
    pub(crate) fn await_word(&self, limit: Duration) -> Woken {
        {
            let mut state = self.lock();
            if state.word == Word::NotAwaited {
                state.word = Word::Awaited;
            }
        }
        self.wait(limit, |state| state.word == Word::Given)
    }

    fn give_word(&self) -> Result<(), NotWaiting> {
        let mut state = self.lock();
        if state.word != Word::Awaited || state.cause.is_some() || state.over {
            return Err(NotWaiting);
        }
        state.word = Word::Given;
        self.changed.notify_all();
        Ok(())
    }

    /// The point of no return: the guest is handed to `to`.
    ///
    /// # Errors
    /// What tripped the alarm before.
    pub(crate) fn seal(&self, to: &str) -> Result<(), Failure> {
        let mut state = self.lock();
        if let Some(cause) = &state.cause {
            return Err(cause.clone());
        }
        state.sealed = Some(to.to_owned());
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

    /// Somebody may be stuck in writing on a link that was left open for last words: it is shut wholly if the migration is
    /// not over soon after the alarm has tripped.
    pub(crate) fn insist(&self, grace: Duration) {
        let state = self.lock();
        let over = self.changed.wait_timeout_while(state, grace, |state| !state.over);
        let (state, waited) = over.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            state.links.iter().for_each(|(link, _)| link.shut(Shutdown::Both));
        }
    }

    /// Another conversation begins, when all who took part in the one before are gone. Cancel stays refused.
    pub(crate) fn renew(&self) {
        let mut state = self.lock();
        (state.cause, state.over) = (None, false);
        state.links.clear();
    }

    /// Rests before another call, unless the operator wants something else.
    pub(crate) fn rest_before_call(&self, limit: Duration) -> Rested {
        let rested = self.changed.wait_timeout_while(self.lock(), limit, |state| state.order.is_none());
        match rested.unwrap_or_else(PoisonError::into_inner).0.order.take() {
            Some(Order::GiveUp) => Rested::GiveUp,
            Some(Order::Call(to)) => Rested::Call(to),
            None => Rested::Call(None),
        }
    }

    /// An order of the outage before does not hold for this one.
    pub(crate) fn forget_order(&self) {
        self.lock().order = None;
    }

    fn order(&self, order: Order) {
        self.lock().order = Some(order);
        self.changed.notify_all();
    }

    /// Runs what a thread of the migration does. Should it die of a defect, everyone learns so instead of waiting for it.
    pub(crate) fn guard(&self, what: &str, work: impl FnOnce()) {
        let done = || {
            work();
            Ok(())
        };
        if let Err(died) = survived(&format!("the thread that {what}"), done) {
            self.trip(died);
        }
    }

    /// Whether it has been tripped or ended.
    pub(crate) fn is_stopped(&self) -> bool {
        let state = self.lock();
        state.cause.is_some() || state.over
    }

    /// Waits until `done` says so. Whoever changes what `done` looks at calls [`nudge`](Self::nudge).
    pub(crate) fn wait_until(&self, limit: Duration, mut done: impl FnMut() -> bool) -> Woken {
        self.wait(limit, |_| done())
    }

    fn wait(&self, limit: Duration, mut done: impl FnMut(&State) -> bool) -> Woken {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        loop {
            if state.cause.is_some() || state.over {
                return Woken::Stopped;
            }
            if done(&state) {
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

/// What `work` says; should it die of a defect, that `who` has.
pub(crate) fn survived(who: &str, work: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    let died = |_| Err(Failure::Bug(format!("{who} has died; its message is on standard error")));
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(died)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_cause_is_kept_and_cancel_is_refused_after_the_seal() {
        let cancel = Cancel::new();
        assert_eq!(cancel.alarm().seal("there:7000"), Ok(()));
        let refused = cancel.cancel("late").expect_err("sealed").to_string();
        assert!(
            refused.contains("handed to there:7000; `migrate status`")
                && refused.contains("`migrate resolve`")
        );
        cancel.alarm().end();
        assert_eq!(
            cancel.cancel("between two calls"),
            Err(TooLate::HandedOver { to: "there:7000".to_owned() })
        );
        cancel.alarm().trip(Failure::Bug("first".to_owned()));
        cancel.alarm().trip(Failure::Bug("second".to_owned()));
        assert_eq!(cancel.alarm().cause(), Some(Failure::Bug("first".to_owned())));
    }

    #[test]
    fn a_thread_that_dies_is_missed() {
        let alarm = Alarm::default();
        alarm.guard("counts to one", || {});
        assert_eq!(alarm.cause(), None);
        alarm.guard("counts to two", || panic!("a defect, on purpose"));
        let cause = alarm.cause().map(|cause| cause.to_string()).unwrap_or_default();
        assert!(cause.contains("the thread that counts to two has died"), "{cause}");
    }

    #[test]
    fn a_cancelled_migration_cannot_be_sealed() {
        let cancel = Cancel::new();
        assert_eq!(cancel.cancel("enough"), Ok(()));
        assert_eq!(cancel.alarm().seal("there"), Err(Failure::Cancelled("enough".to_owned())));
        assert_eq!(cancel.alarm().rest(Duration::from_secs(9)), Woken::Stopped);
        cancel.alarm().end();
        assert_eq!(cancel.cancel("again"), Err(TooLate::Over));
    }

    #[test]
    fn who_is_stuck_in_writing_is_let_go_soon_after_the_alarm() {
        let (alarm, (near, _far)) = (Alarm::default(), crate::channel::memory::pair());
        alarm.watch(&near, Shutdown::Read);
        std::thread::scope(|scope| {
            // More than is taken unread, and nobody reads.
            let writing = scope.spawn(|| near.send(&vec![0; 1 << 20]));
            alarm.trip(Failure::Cancelled("enough".to_owned()));
            alarm.insist(Duration::from_millis(10));
            let error = writing.join().expect("no panic").expect_err("cut off").kind();
            assert_eq!(error, std::io::ErrorKind::BrokenPipe);
        });
    }

    #[test]
    fn the_word_to_go_on_can_be_given_while_it_is_awaited_and_only_then() {
        let cancel = Cancel::new();
        assert_eq!(cancel.go_on(), Err(NotWaiting), "nobody waits yet");
        assert_eq!(cancel.alarm().await_word(Duration::ZERO), Woken::TimeUp);
        assert_eq!(cancel.go_on(), Ok(()));
        assert_eq!(cancel.go_on(), Err(NotWaiting), "given once");
        assert_eq!(cancel.alarm().await_word(Duration::from_secs(9)), Woken::Done);
        let cancelled = Cancel::new();
        assert_eq!(cancelled.alarm().await_word(Duration::ZERO), Woken::TimeUp);
        assert_eq!(cancelled.cancel("enough"), Ok(()));
        assert_eq!(cancelled.go_on(), Err(NotWaiting), "it does not go on any more");
        assert_eq!(cancelled.alarm().await_word(Duration::from_secs(9)), Woken::Stopped);
    }
}
