//! How the kernel shares a core between a vCPU, the threads that it waits for, and those that move memory.
//!
//! A thread that is woken gets the core of a running one at once if its turns are shorter than that one's (Linux 6.12); else it
//! waits until that one has had its turn.

#![expect(unsafe_code, reason = "sched_getattr and sched_setattr take a pointer")]

/// How long a thread's turns are. Usual ones are 1 to 3 ms.
#[derive(Debug, Clone, Copy)]
pub enum Turn {
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
pub fn take_turns(turn: Turn) {
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
