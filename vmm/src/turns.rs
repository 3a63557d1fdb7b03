//! How the kernel shares a core between a vCPU, the threads that it waits for, and those that move memory.
//!
//! A thread that is woken gets the core of a running one at once if its turns are shorter than that one's (Linux 6.12); else it
//! waits until that one has had its turn.

#![expect(unsafe_code, reason = "sched_getattr and sched_setattr take a pointer")]

use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};

/// How long a thread's turns are. Usual ones are 1 to 3 ms.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Turn {
    /// Of a vCPU, and of whoever brings it what it waits for: the shortest that Linux gives.
    Waited,
    /// Of a thread that moves memory: short, and longer than those.
    Bulk,
}

impl Turn {
    fn ns(self) -> u64 {
        match self {
            Self::Waited => 100_000,
            Self::Bulk => 200_000,
        }
    }
}

/// `struct sched_attr` of linux/sched/types.h as it was first; the kernel knows its size.
#[derive(Default)]
#[repr(C)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime_ns: u64,
    deadline_ns: u64,
    period_ns: u64,
}

/// From here on the calling thread has such turns. Best effort: kernels before 6.12 have one length for all.
pub(crate) fn take(turn: Turn) {
    let mut attributes = Attributes::default();
    let size = size_of::<Attributes>() as u32;
    let at = &raw mut attributes;
    // SAFETY: 0 is the calling thread; the kernel writes at most `size` bytes to `attributes`, which has as many.
    if unsafe { libc::syscall(libc::SYS_sched_getattr, 0, at, size, 0) } != 0 {
        return;
    }
    attributes.runtime_ns = turn.ns();
    attributes.flags = 0;
    // SAFETY: the kernel only reads `attributes`, which says its own size.
    let _ = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
}

/// The calling thread goes on at one of `cores`, if it may use any. The scheduler may move it on: it has all the cores again that it had,
/// though as its own choice from then on, of which one that is added to the host later is no part.
pub(crate) fn go_to(cores: &CpuSet) {
    let Ok(all) = sched_getaffinity(None) else { return };
    let some = both(&all, cores);
    if some.count() > 0 && sched_setaffinity(None, &some).is_ok() {
        let _ = sched_setaffinity(None, &all);
    }
}

/// The calling thread [goes on](go_to) at another core than `core`, if it is there and has another.
pub(crate) fn leave(core: usize) {
    let Ok(mut others) = sched_getaffinity(None) else { return };
    if sched_getcpu() == core && core < CpuSet::MAX_CPU {
        others.unset(core);
        go_to(&others);
    }
}

/// Cores that are in `some` and in `others`.
pub(crate) fn both(some: &CpuSet, others: &CpuSet) -> CpuSet {
    let mut both = *some;
    (0..CpuSet::MAX_CPU).filter(|core| !others.is_set(*core)).for_each(|core| both.unset(core));
    both
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
            let (core, mut only) = (sched_getcpu(), CpuSet::new());
            only.set(core);
            sched_setaffinity(None, &only).unwrap();
            leave(core);
            assert_eq!((sched_getcpu(), cores()), (core, only));
        });
    }
}
