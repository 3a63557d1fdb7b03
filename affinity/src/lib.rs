//! Which cores of a host the calling thread runs on: sets of cores, going to some, and starting a thread where one is.
//!
//! No thread chooses another's cores, and all of it is best effort: one that may not choose runs anywhere.

use rustix::thread::{sched_getaffinity, sched_getcpu, sched_setaffinity};

pub use rustix::thread::CpuSet;

/// Cores of a host that counts as small, at most. A larger one has other guests, and room for the scheduler to choose.
pub const FEW: u32 = 4;

/// Whether `core` is in `all`. A set names so many cores and no more; of a host with more it is empty.
#[must_use]
pub fn is_in(all: &CpuSet, core: usize) -> bool {
    core < CpuSet::MAX_CPU && all.is_set(core)
}

/// Cores that are in `some` and in `others`.
#[must_use]
pub fn both(some: &CpuSet, others: &CpuSet) -> CpuSet {
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

/// A set of one.
#[must_use]
pub fn only(core: usize) -> CpuSet {
    let mut only = CpuSet::new();
    if core < CpuSet::MAX_CPU {
        only.set(core);
    }
    only
}

/// The calling thread goes on at one of `cores`, if it may use any. The scheduler may move it on: it has all the cores again that it had,
/// though as its own choice from then on, of which one that is added to the host later is no part.
pub fn go_to(cores: &CpuSet) {
    let Ok(all) = sched_getaffinity(None) else { return };
    let some = both(&all, cores);
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

/// What a thread is to do that begins on the core of this one, which starts it while it holds what comes with that.
///
/// Linux begins a new thread on the core with the least to do. Where there are few of them, and this one has woken somebody
/// besides, that is a vCPU's, which never rests: there the thread waits for the scheduler's next tick (4 ms where HZ is
/// 250), even if this core idles by then, because whoever starts a thread mostly waits for it. From its first moment on it may go
/// on anywhere. On a host with more than a few cores Linux finds an idle one.
pub fn near<T>(work: impl FnOnce() -> T) -> (impl FnOnce() -> T, Here) {
    let all = stay_here();
    let near = move || {
        go_on(all.as_ref());
        work()
    };
    (near, Here(all))
}

/// Keeps the calling thread on its core until it is dropped.
#[derive(Debug)]
#[must_use = "it is to last until the thread is started"]
pub struct Here(Option<CpuSet>);

impl Drop for Here {
    fn drop(&mut self) {
        go_on(self.0.as_ref());
    }
}

/// The calling thread stays where it is. The cores that it had, unless there is but one, or more than a few, or it may not choose.
fn stay_here() -> Option<CpuSet> {
    let (all, core) = (sched_getaffinity(None).ok()?, sched_getcpu());
    let is_of_few = (2..=FEW).contains(&all.count()) && is_in(&all, core);
    let stays = is_of_few && sched_setaffinity(None, &only(core)).is_ok();
    stays.then_some(all)
}

fn go_on(all: Option<&CpuSet>) {
    if let Some(all) = all {
        // Who could narrow them can have them back.
        let _ = sched_setaffinity(None, all);
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

    #[test]
    fn a_thread_begins_where_its_starter_is_and_both_may_go_on_anywhere() {
        apart(|| {
            let (all, few) = (cores(), (2..=FEW).contains(&cores().count()));
            let (work, here) = near(|| (sched_getcpu(), cores()));
            let narrowed = cores();
            let (_, begun) = std::thread::scope(|scope| scope.spawn(work).join().unwrap());
            assert_eq!(narrowed.count(), if few { 1 } else { all.count() });
            assert_eq!(begun, all);
            drop(here);
            assert_eq!(cores(), all);
        });
    }

    #[test]
    fn sets_of_cores_meet_and_part() {
        let set = |cores: &[usize]| {
            let mut set = CpuSet::new();
            cores.iter().for_each(|core| set.set(*core));
            set
        };
        let (some, others) = (set(&[0, 2, 5]), set(&[2, 3]));
        assert_eq!((both(&some, &others), difference(&some, &others)), (only(2), set(&[0, 5])));
        assert!(is_in(&some, 5) && !is_in(&some, 3) && !is_in(&some, CpuSet::MAX_CPU));
        assert_eq!(only(CpuSet::MAX_CPU).count(), 0);
    }
}
