//! The cores that a vCPU's thread keeps to for a while, by its owner's word, and the one it is on.
//!
//! A thread may choose its own cores and nobody else's (the sandbox sees to that), so the vCPU's thread goes there itself, before it
//! runs the guest next.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use scheduling::{common, go_to, these};

use super::{Order, Vcpu, Vcpus};

/// How often a vCPU is called out of the guest to go to its cores, and how long it has for that. It takes it 0.05 ms.
const CALLS: u32 = 10;
const BETWEEN_CALLS: Duration = Duration::from_micros(200);

/// Where a vCPU's thread is to run.
#[derive(Debug, Default)]
pub(super) struct Cores {
    state: Mutex<State>,
    /// Whether it is to go there yet, for who only asks that.
    waits: AtomicBool,
    settled: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// None: wherever it could run before.
    wanted: Option<CpuSet>,
    /// It is to go there once.
    visit: Option<CpuSet>,
    /// What it had before, and what it was left with.
    home: Option<(CpuSet, CpuSet)>,
    /// Where it was when it saw to this last; none: it was asked since.
    at: Option<usize>,
}

impl Cores {
    /// Owner: it is to keep to those; none: to what it had before.
    fn want(&self, cores: Option<CpuSet>) {
        let mut state = self.state();
        if state.wanted != cores {
            state.wanted = cores;
            self.waits.store(true, Ordering::Release);
        }
    }

    /// Owner: it is to go to one of those, unless it keeps to some.
    fn want_visit(&self, cores: CpuSet) {
        let mut state = self.state();
        state.visit = Some(cores);
        self.waits.store(true, Ordering::Release);
    }

    /// Owner: it is to tell where it is.
    fn ask(&self) {
        let mut state = self.state();
        state.at = None;
        self.waits.store(true, Ordering::Release);
    }

    /// Whether the thread has not seen to it yet.
    fn waits(&self) -> bool {
        self.waits.load(Ordering::Acquire)
    }

    /// The vCPU's thread, before it runs the guest.
    pub(super) fn settle(&self) {
        if !self.waits() {
            return;
        }
        let mut state = self.state();
        if self.waits.swap(false, Ordering::AcqRel) {
            state.settle();
            state.at = Some(sched_getcpu());
            self.settled.notify_all();
        }
    }

    /// Whether the thread has seen to it, within so much time.
    fn has_settled(&self, limit: Duration) -> bool {
        let state = self.state();
        let waited = self.settled.wait_timeout_while(state, limit, |_| self.waits());
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Best effort: a thread that may not choose, or may use none of them, runs where it did. It has its own back as its own choice, of
    /// which a core that is added to the host later is no part.
    fn settle(&mut self) {
        let visit = self.visit.take();
        let Ok(now) = sched_getaffinity(None) else { return };
        // Who has been given other cores meanwhile keeps those.
        let before = self.home.take().filter(|(_, left)| *left == now).map_or(now, |(before, _)| before);
        let kept = self.wanted.map_or(before, |wanted| common(&before, &wanted));
        let moved = kept != now && kept.count() > 0 && sched_setaffinity(None, &kept).is_ok();
        self.home = self.wanted.map(|_| (before, if moved { kept } else { now }));
        if let (Some(cores), None) = (visit, self.wanted) {
            go_to(&cores);
        }
    }
}

impl Vcpus {
    /// Where they are; one that is late is left out.
    pub(crate) fn are_on(&self) -> CpuSet {
        self.all.iter().for_each(|vcpu| vcpu.cores.ask());
        self.see_to_cores();
        these(self.all.iter().filter_map(|vcpu| vcpu.cores.state().at))
    }

    /// Has each go to these cores, as far as it may use them; from there it may go on wherever it could run before.
    pub(crate) fn send_to(&self, cores: &CpuSet) {
        self.all.iter().for_each(|vcpu| vcpu.cores.want_visit(*cores));
        self.see_to_cores();
    }

    /// Has each keep to these cores, as far as it may use them; none: wherever it could run before.
    pub(crate) fn keep_to(&self, cores: Option<&CpuSet>) {
        self.all.iter().for_each(|vcpu| vcpu.cores.want(cores.copied()));
        self.see_to_cores();
    }

    /// They are where they were told to go when this returns, as a rule; one that is late, in the kernel perhaps, goes there before it
    /// runs the guest next.
    fn see_to_cores(&self) {
        let late = || self.all.iter().filter(|vcpu| vcpu.cores.waits());
        if late().count() == 0 {
            return;
        }
        // For those that are parked.
        self.orders.give_where_none(|| Order::Settle);
        for _ in 0..CALLS {
            // Not heard by a thread that is about to enter the guest: hence called several times.
            late().for_each(Vcpu::call_out);
            if self.all.iter().all(|vcpu| vcpu.cores.has_settled(BETWEEN_CALLS)) {
                return;
            }
        }
    }
}

#[cfg(test)]
impl Vcpus {
    /// What each keeps to now, once it has seen to what it was told last.
    pub(crate) fn kept(&self) -> Vec<Option<Option<CpuSet>>> {
        let kept = |cores: &Cores| {
            let state = cores.state();
            (!cores.waits()).then(|| state.home.map(|(_, left)| left))
        };
        self.all.iter().map(|vcpu| kept(&vcpu.cores)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use scheduling::only as one;

    use super::*;

    fn now() -> CpuSet {
        sched_getaffinity(None).expect("of this thread")
    }

    /// On a thread of its own, which nobody else has.
    fn apart(work: impl FnOnce(&Cores, CpuSet, Vec<usize>) + Send) {
        thread::scope(|scope| {
            let all = now();
            let cores = (0..CpuSet::MAX_CPU).filter(|core| all.is_set(*core)).collect();
            scope.spawn(move || work(&Cores::default(), all, cores)).join().unwrap();
        });
    }

    #[test]
    fn it_keeps_to_them_until_it_has_all_again() {
        apart(|cores, all, each| {
            for core in each {
                cores.want(Some(one(core)));
                assert_eq!(now(), all, "by its own doing only");
                cores.settle();
                assert_eq!((now(), cores.waits()), (one(core), false));
                // Its own were not seen to before it was told the same again.
                cores.want(None);
                cores.want(Some(one(core)));
                cores.settle();
                assert_eq!(now(), one(core));
                cores.want(None);
                cores.settle();
                assert_eq!(now(), all);
            }
        });
    }

    #[test]
    fn who_is_sent_goes_there_and_may_go_on() {
        apart(|cores, all, each| {
            for core in each {
                // The scheduler may have moved it on before it is looked at.
                let is_there = || {
                    cores.want_visit(one(core));
                    cores.settle();
                    assert_eq!((now(), cores.waits()), (all, false));
                    sched_getcpu() == core
                };
                assert!((0..1000).any(|_| is_there()), "core {core}");
            }
            let first = one((0..CpuSet::MAX_CPU).find(|core| all.is_set(*core)).expect("it runs"));
            cores.want(Some(first));
            cores.want_visit(all);
            cores.settle();
            assert_eq!(now(), first, "it keeps to it");
        });
    }

    #[test]
    fn who_is_asked_tells_where_it_is() {
        apart(|cores, all, each| {
            for core in each {
                sched_setaffinity(None, &one(core)).unwrap();
                cores.ask();
                assert_eq!(cores.state().at, None, "what it told before is old");
                cores.settle();
                assert_eq!((cores.state().at, cores.waits()), (Some(core), false));
            }
            sched_setaffinity(None, &all).unwrap();
        });
    }

    #[test]
    fn who_may_use_none_of_them_stays_where_it_is() {
        apart(|cores, all, _| {
            let other =
                (0..CpuSet::MAX_CPU).find(|core| !all.is_set(*core)).expect("a host with fewer cores");
            for wanted in [Some(one(other)), None] {
                cores.want(wanted);
                cores.settle();
                assert_eq!(now(), all);
            }
        });
    }

    #[test]
    fn who_was_given_others_meanwhile_keeps_those() {
        apart(|cores, _, each| {
            cores.want(Some(one(each[0])));
            cores.settle();
            let other = one(each[each.len() - 1]);
            sched_setaffinity(None, &other).unwrap();
            cores.want(None);
            cores.settle();
            assert_eq!(now(), other);
        });
    }
}
