//! Sets of cores, going to some, and starting a thread where one is.

use std::marker::PhantomData;

use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};

/// Whether `core` is in `all`. A set names so many cores and no more; of a host with more it is empty.
#[must_use]
pub fn is_in(all: &CpuSet, core: usize) -> bool {
    core < CpuSet::MAX_CPU && all.is_set(core)
}

/// Cores that are in `some` and in `others`.
#[must_use]
pub fn common(some: &CpuSet, others: &CpuSet) -> CpuSet {
    of(some, |core| others.is_set(core))
}

/// Cores of `all` that are not in `some`.
#[must_use]
pub fn difference(all: &CpuSet, some: &CpuSet) -> CpuSet {
    of(all, |core| !some.is_set(core))
}

fn of(all: &CpuSet, stays: impl Fn(usize) -> bool) -> CpuSet {
    let mut rest = *all;
    (0..CpuSet::MAX_CPU).filter(|core| !stays(*core)).for_each(|core| rest.unset(core));
    rest
}

/// A set of these, without those that no set can name.
#[must_use]
pub fn these(cores: impl IntoIterator<Item = usize>) -> CpuSet {
    let mut these = CpuSet::new();
    cores.into_iter().filter(|core| *core < CpuSet::MAX_CPU).for_each(|core| these.set(core));
    these
}

/// A set of one.
#[must_use]
pub fn only(core: usize) -> CpuSet {
    these([core])
}

/// The calling thread goes on at one of `cores`, if it may use any. The scheduler may move it on: it has all the cores again that it had,
/// though as its own choice from then on, of which one that is added to the host later is no part.
pub fn go_to(cores: &CpuSet) {
    let Ok(all) = sched_getaffinity(None) else { return };
    let some = common(&all, cores);
    if some.count() > 0 && sched_setaffinity(None, &some).is_ok() {
        let _ = sched_setaffinity(None, &all);
    }
}

/// The calling thread [goes on](go_to) at another core than `core`, if it is there and has another.
pub fn leave(core: usize) {
    let Ok(mut others) = sched_getaffinity(None) else { return };
    if sched_getcpu() == core && core < CpuSet::MAX_CPU {
        others.unset(core);
        go_to(&others);
    }
}

/// Wraps the `work` of a new thread, which then begins on the calling thread's core. What comes with it is to be held until the thread
/// has been started.
///
/// Linux begins a new thread on the core with the least to do. Where there are two, and whoever starts it has woken somebody
/// besides, that is the one of a vCPU, which never rests: there the thread waits for the scheduler's next tick (4 ms where HZ is
/// 250), even if this core idles by then, because whoever starts a thread mostly waits for it. So where the calling thread may use two
/// cores the new one begins here, and may go on at the other from then on, as may the calling thread; both have those two as their own
/// choice afterwards, of which one that is added later is no part. With one core, or more than two, nothing is changed: among more,
/// Linux finds an idle one.
pub fn near<T>(work: impl FnOnce() -> T) -> (impl FnOnce() -> T, Here) {
    let stay = Stay::here();
    let near = move || {
        stay.end();
        work()
    };
    (near, Here(stay, PhantomData))
}

/// Keeps the calling thread on its core until it is dropped there.
#[derive(Debug)]
#[must_use = "it is to last until the thread is started"]
pub struct Here(Stay, PhantomData<*const ()>);

impl Drop for Here {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Of a thread on its core.
#[derive(Debug, Clone, Copy, Default)]
struct Stay {
    /// The core, and those that the thread had. None where it was not told to stay.
    told: Option<(CpuSet, CpuSet)>,
}

impl Stay {
    /// The calling thread stays where it is, if it may use one other core.
    fn here() -> Self {
        let (all, core) = (sched_getaffinity(None).unwrap_or_default(), sched_getcpu());
        let one = only(core);
        let stays = all.count() == 2 && is_in(&all, core) && sched_setaffinity(None, &one).is_ok();
        Self { told: stays.then_some((one, all)) }
    }

    /// The calling thread has its cores back, unless somebody has given it others meanwhile.
    fn end(self) {
        if let Some((one, all)) = self.told
            && sched_getaffinity(None).is_ok_and(|now| now == one)
        {
            // Who could narrow them can have them back.
            let _ = sched_setaffinity(None, &all);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cores() -> CpuSet {
        sched_getaffinity(None).unwrap()
    }

    /// On threads of their own, which nobody else has.
    fn apart(work: impl FnOnce() + Send) {
        std::thread::scope(|scope| scope.spawn(work).join().unwrap());
    }

    #[test]
    fn who_leaves_a_core_may_come_back() {
        apart(|| {
            let before = cores();
            for _ in 0..10 {
                leave(sched_getcpu());
                assert_eq!(cores(), before);
            }
        });
    }

    #[test]
    fn who_has_one_core_stays() {
        apart(|| {
            let core = sched_getcpu();
            sched_setaffinity(None, &only(core)).unwrap();
            leave(core);
            assert_eq!((sched_getcpu(), cores()), (core, only(core)));
        });
    }

    /// Those of them that the calling thread may use, at most so many.
    fn first(many: usize) -> CpuSet {
        let all = cores();
        these((0..CpuSet::MAX_CPU).filter(|core| is_in(&all, *core)).take(many))
    }

    #[test]
    fn a_thread_begins_where_its_starter_is_and_both_may_go_on_at_the_other_core() {
        apart(|| {
            let two = first(2);
            sched_setaffinity(None, &two).unwrap();
            let (work, here) = near(cores);
            // Kept there, it stays there.
            let begins = if two.count() == 2 { only(sched_getcpu()) } else { two };
            assert_eq!(cores(), begins);
            std::thread::scope(|scope| {
                assert_eq!(scope.spawn(cores).join().unwrap(), begins, "who does nothing about it");
                assert_eq!(scope.spawn(work).join().unwrap(), two);
            });
            drop(here);
            assert_eq!(cores(), two);
        });
    }

    #[test]
    fn where_there_is_no_choice_or_much_of_it_nobody_is_kept() {
        for many in [1, 3] {
            apart(|| {
                let some = first(many);
                if some.count() == 2 {
                    return; // Of three there are two here.
                }
                sched_setaffinity(None, &some).unwrap();
                let (work, here) = near(cores);
                assert_eq!((cores(), work()), (some, some));
                drop(here);
                assert_eq!(cores(), some);
            });
        }
    }

    #[test]
    fn who_was_given_other_cores_meanwhile_keeps_those() {
        apart(|| {
            let two = first(2);
            sched_setaffinity(None, &two).unwrap();
            let (_, here) = near(cores);
            let given = difference(&two, &cores());
            if given.count() == 1 {
                sched_setaffinity(None, &given).unwrap();
                drop(here);
                assert_eq!(cores(), given);
            }
        });
    }

    #[test]
    fn sets_of_cores_meet_and_part() {
        let (some, others) = (these([0, 2, 5]), these([2, 3]));
        assert_eq!((common(&some, &others), difference(&some, &others)), (only(2), these([0, 5])));
        assert!(is_in(&some, 5) && !is_in(&some, 3) && !is_in(&some, CpuSet::MAX_CPU));
        assert_eq!(only(CpuSet::MAX_CPU).count(), 0);
    }
}
