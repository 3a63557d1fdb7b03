//! Orders from the owner to all vCPU threads at once.
//!
//! One lock and one wake-up for all: the kernel makes every thread runnable before the owner can be preempted by the
//! first of them, so that no vCPU starts milliseconds after the others on a busy host. (A channel for each did that.)

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// What a vCPU's thread is to do next.
pub(super) struct Orders<T> {
    /// Shared by all threads of a machine by design; held to take one order.
    slots: Mutex<Slots<T>>,
    changed: Condvar,
    /// How often orders were given, for who waits awake.
    given: AtomicU64,
}

struct Slots<T> {
    orders: Vec<Option<T>>,
    /// No more will come.
    closed: bool,
}

impl<T> Orders<T> {
    pub(super) fn new(threads: usize) -> Self {
        let orders = (0..threads).map(|_| None).collect();
        Self {
            slots: Mutex::new(Slots { orders, closed: false }),
            changed: Condvar::new(),
            given: AtomicU64::new(0),
        }
    }

    /// Gives an order to each thread for which `order` has one, in place of one that it has not taken yet.
    pub(super) fn give(&self, mut order: impl FnMut(usize) -> Option<T>) {
        self.give_with(|thread, slot| *slot = order(thread).or(slot.take()));
    }

    /// Gives each thread an order, unless it has one that it has not taken yet.
    pub(super) fn give_where_none(&self, mut order: impl FnMut() -> T) {
        self.give_with(|_, slot| {
            slot.get_or_insert_with(&mut order);
        });
    }

    fn give_with(&self, mut give: impl FnMut(usize, &mut Option<T>)) {
        let mut slots = self.slots();
        slots.orders.iter_mut().enumerate().for_each(|(thread, slot)| give(thread, slot));
        drop(slots);
        self.given.fetch_add(1, Ordering::Release);
        self.changed.notify_all();
    }

    /// How often orders were given so far.
    pub(super) fn given(&self) -> u64 {
        self.given.load(Ordering::Acquire)
    }

    /// Waits awake, at most `limit`, until orders were given more often than `given` times. Whoever else waits for the core has it
    /// all the while.
    pub(super) fn stand_by(&self, given: u64, limit: Duration) {
        let until = Instant::now() + limit;
        while self.given() <= given && Instant::now() < until {
            thread::yield_now();
        }
    }

    /// No thread gets another order.
    pub(super) fn close(&self) {
        self.slots().closed = true;
        self.changed.notify_all();
    }

    /// Waits for the thread's next order. None: the owner is gone.
    pub(super) fn take(&self, thread: usize) -> Option<T> {
        let mut slots = self.slots();
        loop {
            if slots.closed {
                return None;
            }
            if let Some(order) = slots.orders.get_mut(thread).and_then(Option::take) {
                return Some(order);
            }
            slots = self.changed.wait(slots).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A slot is written whole, whatever happens elsewhere.
    fn slots(&self) -> MutexGuard<'_, Slots<T>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_that_was_not_taken_gives_way_to_one_that_matters_only() {
        let orders = Orders::new(2);
        orders.give(|thread| (thread == 0).then_some("run"));
        orders.give_where_none(|| "settle");
        assert_eq!((orders.take(0), orders.take(1)), (Some("run"), Some("settle")));
        orders.give_where_none(|| "settle");
        orders.give(|_| Some("run"));
        assert_eq!((orders.take(0), orders.take(1)), (Some("run"), Some("run")));
    }

    #[test]
    fn who_stands_by_is_there_for_the_next_order_and_not_forever() {
        let orders = Orders::new(1);
        orders.give(|_| Some(1));
        assert_eq!((orders.take(0), orders.given()), (Some(1), 1));
        orders.stand_by(orders.given(), Duration::from_millis(1));
        std::thread::scope(|scope| {
            let standing = scope.spawn(|| orders.stand_by(1, Duration::from_secs(3600)));
            orders.give(|_| Some(2));
            standing.join().unwrap();
        });
        assert_eq!(orders.take(0), Some(2));
    }
}
