//! Holding vCPUs back: each runs for a while, then stands still for a while, so that a guest that writes faster than it can be
//! sent is caught all the same.
//!
//! A thread of its own calls the vCPUs that are held back out of the guest, all at once, and says until when each is to wait;
//! a vCPU's thread waits for that between two turns of `KVM_RUN`. Whoever wants the vCPU to leave the guest ends the wait.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vmm_sys_util::signal::Killable;

use super::kick::{self, Kick};
use super::{Vcpu, Vcpus};

/// How long a vCPU runs between two waits. To call one out of the guest takes a tenth of this; and the guest's longest standstill
/// is as many times this as the wait is: 1 ms at 50 %, 19 at 95.
const RUN: Duration = Duration::from_millis(1);

/// What makes one vCPU wait.
#[derive(Debug, Default)]
pub(super) struct Brake {
    until: Mutex<Option<Instant>>,
    changed: Condvar,
    /// Whether there is such a time, for who only asks that.
    holds: AtomicBool,
}

impl Brake {
    /// The vCPU's thread, before it runs the guest: waits, if it is to.
    pub(super) fn wait(&self, kick: &Kick) {
        if !self.holds.load(Ordering::Acquire) {
            return;
        }
        let mut until = lock(&self.until);
        // What is said meanwhile is for the turn after this: who is late has run for less, and does not wait twice.
        let end = *until;
        while let Some(left) = end.and_then(|end| end.checked_duration_since(Instant::now()))
            && until.is_some()
            && !kick.is_asked()
        {
            until = self.changed.wait_timeout(until, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        self.set(&mut until, None);
    }

    /// Before it runs the guest again it is to wait until so much time has passed from now on.
    fn hold(&self, time: Duration) {
        self.set(&mut lock(&self.until), Some(Instant::now() + time));
    }

    /// Ends the wait. Where the vCPU is to leave the guest it was asked to before.
    pub(super) fn release(&self) {
        self.set(&mut lock(&self.until), None);
        self.changed.notify_all();
    }

    fn set(&self, until: &mut Option<Instant>, to: Option<Instant>) {
        *until = to;
        self.holds.store(to.is_some(), Ordering::Release);
    }
}

/// A vCPU that can be held back.
pub(super) struct Braked {
    pub(super) brake: Arc<Brake>,
    pub(super) thread: Arc<JoinHandle<()>>,
}

/// Holds vCPUs back until it is dropped.
pub(super) struct Throttle {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    orders: Mutex<Orders>,
    changed: Condvar,
}

struct Orders {
    /// How long a wait is; none while nobody is held back.
    wait: Option<Duration>,
    /// Who waits, by number.
    whom: Vec<bool>,
    over: bool,
}

impl Throttle {
    /// For these vCPUs, in the order of their numbers. Nobody is held back yet; from when anybody is all are.
    ///
    /// # Errors
    /// When the host refuses a thread.
    pub(super) fn start(vcpus: Vec<Braked>) -> io::Result<Self> {
        let orders = Orders { wait: None, whom: vec![true; vcpus.len()], over: false };
        let shared = Arc::new(Shared { orders: Mutex::new(orders), changed: Condvar::new() });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("throttle".to_owned());
        let thread = thread.spawn(move || theirs.drive(&vcpus))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Holds those of `whom` back for `percent` of their time, less than 100; `None`: the same as before.
    pub(super) fn set(&self, percent: u8, whom: Option<Vec<bool>>) {
        self.shared.order(|orders| {
            orders.wait = Some(wait(percent));
            if let Some(whom) = whom {
                orders.whom = whom;
            }
        });
    }

    /// Holds nobody back any more, without waiting for anything: who waits now does so to the end of it.
    pub(super) fn rest(&self) {
        lock(&self.shared.orders).wait = None;
    }
}

impl Vcpus {
    /// Faults that each has taken since this was asked last: while writes are logged, whoever has many writes. None where the host
    /// does not count them.
    pub fn new_faults(&self) -> Vec<Option<u64>> {
        self.all.iter().map(Vcpu::new_faults).collect()
    }

    /// Holds those that have `written` so many pages since [`new_faults`](Self::new_faults) or this was called last back for so many
    /// percent of their time, below 100; 0: nobody any more. When all leave the guest that ends, too.
    ///
    /// # Errors
    /// When the host refuses a thread for it.
    pub fn throttle(&self, percent: u8, written: u64) -> io::Result<()> {
        if percent == 0 {
            self.throttle.take();
            return Ok(());
        }
        self.hold_back(percent, writers(&self.new_faults(), written))
    }

    /// `whom`, by number; none: the same as before, or all.
    pub(crate) fn hold_back(&self, percent: u8, whom: Option<Vec<bool>>) -> io::Result<()> {
        let mut throttle = self.throttle.borrow_mut();
        let throttle = match &mut *throttle {
            Some(throttle) => throttle,
            none => none.insert(Throttle::start(self.all.iter().filter_map(Vcpu::braked).collect())?),
        };
        throttle.set(percent, whom);
        Ok(())
    }
}

impl Vcpu {
    fn braked(&self) -> Option<Braked> {
        Some(Braked { brake: Arc::clone(&self.brake), thread: Arc::clone(self.thread.as_ref()?) })
    }

    /// Faults since this was asked last. None where the host does not count them.
    fn new_faults(&self) -> Option<u64> {
        let now = self.faults.as_ref()?.count()?;
        Some(now.wrapping_sub(self.seen.replace(now)))
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        self.shared.order(|orders| orders.over = true);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Shared {
    fn order(&self, change: impl FnOnce(&mut Orders)) {
        change(&mut lock(&self.orders));
        self.changed.notify_all();
    }

    fn drive(&self, vcpus: &[Braked]) {
        let (mut orders, mut next) = (lock(&self.orders), Instant::now());
        while !orders.over {
            let Some(wait) = orders.wait else {
                orders = self.changed.wait(orders).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            // Other orders change nothing about the turn under way.
            let left = next.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                orders = self.changed.wait_timeout(orders, left).unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            // A pause that is about to begin does not wait for this.
            let whom = orders.whom.clone();
            drop(orders);
            for (vcpu, _) in vcpus.iter().zip(whom).filter(|(_, held)| *held) {
                vcpu.brake.hold(wait);
                // Fails only for a thread that has ended, which runs no guest either.
                let _ = vcpu.thread.kill(kick::signal());
            }
            next = Instant::now() + wait + RUN;
            orders = lock(&self.orders);
        }
        drop(orders);
        vcpus.iter().for_each(|vcpu| vcpu.brake.release());
    }
}

/// How long a vCPU waits that is held back for so many percent of its time.
fn wait(percent: u8) -> Duration {
    let percent = u32::from(percent.min(99));
    RUN * percent / (100 - percent)
}

/// Which vCPUs write so much that holding them back makes a difference: those with a quarter of an even share or more of the faults
/// that each took meanwhile. None where little was `written`, by which nothing can be told. All of them where the faults do not
/// explain what was: not counted, or not by all; or written without any, by devices, or on a host that logs without them (Intel's page
/// modification log).
pub(super) fn writers(faults: &[Option<u64>], written: u64) -> Option<Vec<bool>> {
    const TELLING: u64 = 512;
    if written < TELLING {
        return None;
    }
    let (all, vcpus): (u64, _) = (faults.iter().flatten().sum(), faults.len() as u64);
    let explained = all >= written / 2 && faults.iter().all(Option::is_some);
    Some(faults.iter().map(|own| !explained || own.unwrap_or(0).saturating_mul(4 * vcpus) >= all).collect())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_is_the_share_of_the_time_that_was_asked_for() {
        let ms = |percent| wait(percent).as_secs_f64() * 1e3;
        assert_eq!([ms(0), ms(50), ms(80), ms(99), ms(255)], [0.0, 1.0, 4.0, 99.0, 99.0]);
    }

    #[test]
    fn only_who_writes_is_held_back() {
        let of = |faults: &[u64]| {
            let counted: Vec<_> = faults.iter().map(|own| Some(*own)).collect();
            writers(&counted, 50_000).expect("enough was written")
        };
        assert_eq!(of(&[90_000, 10]), [true, false]);
        assert_eq!(of(&[90_000, 15_000]), [true, true]);
        assert_eq!(of(&[90_000, 10, 0, 3_000]), [true, false, false, false]);
        assert_eq!(of(&[50_000]), [true]);
    }

    #[test]
    fn where_faults_do_not_say_who_has_written_all_are_held_back() {
        assert_eq!(writers(&[Some(90_000), None], 50_000), Some(vec![true, true]));
        assert_eq!(writers(&[Some(2_000), Some(0)], 50_000), Some(vec![true, true]));
        assert_eq!(writers(&[Some(90_000), Some(0)], 500), None, "as before");
    }
}
