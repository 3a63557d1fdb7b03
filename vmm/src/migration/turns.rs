//! How the kernel shares a core between a thread that moves memory and others.

#![expect(unsafe_code, reason = "sched_getattr and sched_setattr take a pointer")]

/// What a thread asks for: the shortest that Linux gives. Its usual one is 1 to 3 ms, during which nobody else has the core.
const TURN_NS: u64 = 100_000;

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

/// From here on the calling thread takes short turns. Best effort: kernels before 6.12 have one length for all.
pub(super) fn be_short() {
    let mut attributes = Attributes::default();
    let size = size_of::<Attributes>() as u32;
    let at = &raw mut attributes;
    // SAFETY: 0 is the calling thread; the kernel writes at most `size` bytes to `attributes`, which has as many.
    if unsafe { libc::syscall(libc::SYS_sched_getattr, 0, at, size, 0) } != 0 {
        return;
    }
    attributes.runtime_ns = TURN_NS;
    attributes.flags = 0;
    // SAFETY: the kernel only reads `attributes`, which says its own size.
    let _ = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
}
