//! Orders from the owner to all vCPU threads at once.
//!
//! One lock and one wake-up for all: the kernel makes every thread runnable before the owner can be preempted by the
//! first of them, so that no vCPU starts milliseconds after the others on a busy host. (A channel for each did that.)

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// What a vCPU's thread is to do next.
pub(super) struct Orders<T> {
    /// Shared by all threads of a machine by design; held to take one order.
    slots: Mutex<Slots<T>>,
    changed: Condvar,
}

struct Slots<T> {
    orders: Vec<Option<T>>,
    /// No more will come.
    closed: bool,
}

impl<T> Orders<T> {
    pub(super) fn new(threads: usize) -> Self {
        let orders = (0..threads).map(|_| None).collect();
        Self { slots: Mutex::new(Slots { orders, closed: false }), changed: Condvar::new() }
    }

    /// Gives an order to each thread for which `order` has one.
    pub(super) fn give(&self, mut order: impl FnMut(usize) -> Option<T>) {
        let mut slots = self.slots();
        for (thread, slot) in slots.orders.iter_mut().enumerate() {
            *slot = order(thread).or(slot.take());
        }
        drop(slots);
        self.changed.notify_all();
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
