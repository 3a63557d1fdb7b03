//! Making a vCPU leave the guest, and knowing that it has.
//!
//! Each vCPU's `kvm_run` page has a byte, `immediate_exit`: while it is not zero, `KVM_RUN` completes the guest's
//! pending I/O and returns `EINTR`. A signal makes a vCPU that is inside the guest look at it. The byte is the whole
//! protocol between the owner and the vCPU's thread:
//!
//! ```text
//! 0 run  ──owner: ask──>  1 leave  ──thread: agree──>  2 left  ──owner: let_run──> 0
//!        <──owner: withdraw──
//! ```
//!
//! Both arrows out of 1 are compare-exchanges, so that a request withdrawn is never obeyed later.

#![expect(unsafe_code, reason = "maps kvm_run for its immediate_exit byte, and sets signal masks")]

use std::io;
use std::mem::offset_of;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

const RUN: u8 = 0;
const LEAVE: u8 = 1;
const LEFT: u8 = 2;

/// The first page of `kvm_run` is enough.
const MAPPED: usize = 4096;

/// The `immediate_exit` byte of one vCPU.
#[derive(Debug)]
pub(super) struct Kick {
    page: NonNull<u8>,
}

// SAFETY: the mapping belongs to this value alone and is reached only through an atomic.
unsafe impl Send for Kick {}
// SAFETY: as above; an atomic may be used from several threads.
unsafe impl Sync for Kick {}

impl Kick {
    /// Maps the byte. The state is "left": the thread waits for its first order.
    pub(super) fn new(vcpu: &VcpuFd) -> io::Result<Self> {
        // SAFETY: a new shared mapping at an address the kernel picks; nothing existing is touched.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                MAPPED,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let page = NonNull::new(address.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        let kick = Self { page };
        kick.byte().store(LEFT, Ordering::SeqCst);
        Ok(kick)
    }

    fn byte(&self) -> &AtomicU8 {
        const { assert!(offset_of!(kvm_run, immediate_exit) < MAPPED) };
        // SAFETY: the offset is inside the mapped page.
        let byte = unsafe { self.page.add(offset_of!(kvm_run, immediate_exit)) };
        // SAFETY: the byte is mapped for as long as `self` lives, and user space reaches it only through this
        // atomic (kvm-ioctls' setter is never called); the kernel reads it with READ_ONCE.
        unsafe { AtomicU8::from_ptr(byte.as_ptr()) }
    }

    /// Owner: asks the vCPU to leave. The signal comes after this.
    pub(super) fn ask(&self) {
        // A vCPU that has left by itself stays left.
        let _ = self.byte().compare_exchange(RUN, LEAVE, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// Owner: takes the request back. False when the vCPU has already agreed.
    pub(super) fn withdraw(&self) -> bool {
        self.byte().compare_exchange(LEAVE, RUN, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Owner: before the order to run.
    pub(super) fn let_run(&self) {
        self.byte().store(RUN, Ordering::SeqCst);
    }

    /// Thread: whether `KVM_RUN` would return at once.
    pub(super) fn stays_out(&self) -> bool {
        self.byte().load(Ordering::SeqCst) != RUN
    }

    /// Thread: whether it was asked to leave, and has not yet.
    pub(super) fn is_asked(&self) -> bool {
        self.byte().load(Ordering::SeqCst) == LEAVE
    }

    /// Thread: agrees to leave if asked.
    pub(super) fn agree(&self) -> bool {
        self.byte().compare_exchange(LEAVE, LEFT, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Thread: leaves by itself, because the guest has ended.
    pub(super) fn leave(&self) {
        self.byte().store(LEFT, Ordering::SeqCst);
    }
}

impl Drop for Kick {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new`, is of this size, and no reference into it outlives `self`.
        unsafe { libc::munmap(self.page.as_ptr().cast(), MAPPED) };
    }
}

/// The signal that makes a vCPU look at its byte.
pub(super) fn signal() -> libc::c_int {
    SIGRTMIN()
}

/// Installs the handler of [`signal`], once a process. It does nothing: that `KVM_RUN` is interrupted is enough,
/// and it is installed without `SA_RESTART`.
pub(super) fn install_handler() -> io::Result<()> {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    let installed =
        INSTALLED.get_or_init(|| register_signal_handler(signal(), nothing).map_err(|e| e.errno()));
    installed.map_err(io::Error::from_raw_os_error)
}

/// Lets only [`signal`] (and those that tell of faults) reach the calling thread.
pub(super) fn take_only_kicks() -> io::Result<()> {
    // SAFETY: sigset_t is plain old data; sigfillset below initialises it anyway.
    let mut mask: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is ours.
    unsafe { libc::sigfillset(&raw mut mask) };
    let faults = [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGABRT, libc::SIGSYS];
    for number in faults.into_iter().chain([signal()]) {
        // SAFETY: the set is ours and initialised, the numbers are valid.
        unsafe { libc::sigdelset(&raw mut mask, number) };
    }
    // SAFETY: only the calling thread's mask changes, to an initialised set.
    match unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const mask, std::ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}
