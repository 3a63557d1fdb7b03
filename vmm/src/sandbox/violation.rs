//! A forbidden system call, told: `vmm: thread vcpu0 made the forbidden system call 59 (0x…, 0x…): …`.
//!
//! The kernel does not make the call; it sends SIGSYS to the thread (`SECCOMP_RET_TRAP`, seccomp(2)). The handler says which
//! call that was, and the process dies of the same signal. It uses nothing but the stack and calls that signal-safety(7) lists.
//! Where a thread has the signal blocked (within glibc, while it starts a thread, say) the kernel kills without a word.

#![expect(unsafe_code, reason = "a signal handler, and what the kernel tells it by address")]

use std::fmt::{self, Write};
use std::io;
use std::mem::MaybeUninit;
use std::ptr;

/// `SYS_SECCOMP` of asm-generic/siginfo.h: the signal comes from a filter.
const SYS_SECCOMP: libc::c_int = 1;

/// The part of `siginfo_t` that tells of a system call (sigaction(2)); libc has no fields for it.
#[repr(C)]
struct Told {
    signal: libc::c_int,
    errno: libc::c_int,
    code: libc::c_int,
    _pad: libc::c_int,
    address: *const libc::c_void,
    number: libc::c_int,
    arch: libc::c_uint,
}

/// Installs the handler, for the whole process.
pub(super) fn tell() -> io::Result<()> {
    // SAFETY: all zeros are a sigaction without flags and with an empty mask.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = on_forbidden as *const () as libc::sighandler_t;
    // Not deferred: the handler ends the process with the same signal.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
    // SAFETY: the action is initialised, and its handler has the type that SA_SIGINFO asks for.
    match unsafe { libc::sigaction(libc::SIGSYS, &raw const action, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes a file that may not grow (RLIMIT_FSIZE) an error of its write, which by default ends the process.
pub(super) fn outlive_limits_of_files() {
    // SAFETY: to ignore a valid signal runs nothing.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

extern "C" fn on_forbidden(_: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel gives a siginfo_t, which is larger than `Told` and begins with the same fields for SIGSYS.
    let told = unsafe { &*info.cast::<Told>() };
    if told.code == SYS_SECCOMP {
        // SAFETY: with SA_SIGINFO the third argument is a ucontext_t, valid while the handler runs.
        let context = unsafe { &*context.cast::<libc::ucontext_t>() };
        let register = |number: libc::c_int| context.uc_mcontext.gregs[number as usize];
        say(told.number, register(libc::REG_RDI), register(libc::REG_RSI));
    }
    // SAFETY: the default action of a valid signal.
    unsafe { libc::signal(libc::SIGSYS, libc::SIG_DFL) };
    // SAFETY: sends a signal to this thread; nothing comes after it.
    unsafe { libc::raise(libc::SIGSYS) };
    // SAFETY: ends the process at once, should the signal be blocked.
    unsafe { libc::_exit(128 + libc::SIGSYS) }
}

fn say(number: libc::c_int, first: i64, second: i64) {
    let mut name = [0_u8; 16];
    // SAFETY: PR_GET_NAME writes at most 16 bytes, which the buffer has.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    let name = name.split(|byte| *byte == 0).next().and_then(|name| str::from_utf8(name).ok()).unwrap_or("?");
    let mut line = Line { bytes: [0; 256], used: 0 };
    let _ = writeln!(
        line,
        "vmm: thread {name} made the forbidden system call {number} ({first:#x}, {second:#x}): the VMM ends; \
         if this is a mistake of its own, --seccomp log goes on and has the kernel log such calls"
    );
    // SAFETY: the bytes are initialised and live until the call returns.
    unsafe { libc::write(libc::STDERR_FILENO, line.bytes.as_ptr().cast(), line.used) };
}

/// Text on the stack. What does not fit is left out.
struct Line {
    bytes: [u8; 256],
    used: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let fits = text.len().min(self.bytes.len() - self.used);
        self.bytes[self.used..self.used + fits].copy_from_slice(&text.as_bytes()[..fits]);
        self.used += fits;
        Ok(())
    }
}
