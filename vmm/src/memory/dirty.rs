//! Which pages were written: KVM's dirty log with manual protection, joined with the VMM's own writes.
//!
//! With manual protection *get* only reads the log; *clear* takes bits out of it and starts watching those pages
//! anew. So reading forgets nothing: a page leaves the log only when [`DirtyLog::protect`] names it, which comes
//! just before the page is read (Documentation/virt/kvm/api.rst, 4.117 and 7.20).

#![expect(unsafe_code, reason = "KVM_GET_DIRTY_LOG and KVM_CLEAR_DIRTY_LOG take pointers to bitmaps")]

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_clear_dirty_log, kvm_dirty_log};
use kvm_ioctls::VmFd;
use vmm_sys_util::ioctl::ioctl_with_ref;

use self::numbers::{KVM_CLEAR_DIRTY_LOG, KVM_GET_DIRTY_LOG};
use super::ram::GuestRam;
use super::{MemoryError, PAGE};

/// Numbers of linux/kvm.h. kvm-ioctls wraps only the first, and allocates at each call.
mod numbers {
    use kvm_bindings::{KVMIO, kvm_clear_dirty_log, kvm_dirty_log};
    use vmm_sys_util::{ioctl_iow_nr, ioctl_iowr_nr};

    ioctl_iow_nr!(KVM_GET_DIRTY_LOG, KVMIO, 0x42, kvm_dirty_log);
    ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xc0, kvm_clear_dirty_log);
}

/// Pages in one bitmap word; clears start on such a boundary.
pub const PAGES_PER_WORD: u64 = 64;

/// The dirty log of one machine.
#[derive(Debug)]
pub struct DirtyLog {
    vm: Arc<VmFd>,
    ram: Arc<GuestRam>,
    /// What KVM has written its log of a slot to. Kept as long as it logs, because a pause has no time for memory that was never
    /// touched.
    bitmap: Mutex<Vec<u64>>,
}

impl DirtyLog {
    /// For a VM in which `ram` is registered and manual protection is enabled.
    #[must_use]
    pub fn new(vm: Arc<VmFd>, ram: Arc<GuestRam>) -> Self {
        Self { vm, ram, bitmap: Mutex::default() }
    }

    /// Starts logging. All pages count as dirty until protected (`KVM_DIRTY_LOG_INITIALLY_SET`).
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn start(&self) -> Result<(), MemoryError> {
        self.ram.register_with_flags(&self.vm, KVM_MEM_LOG_DIRTY_PAGES)
    }

    /// Stops logging.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn stop(&self) -> Result<(), MemoryError> {
        *self.bitmap.lock().unwrap_or_else(PoisonError::into_inner) = Vec::new();
        self.ram.register_with_flags(&self.vm, 0)
    }

    /// Calls `each(first gfn, bitmap)` for every slot with what is in KVM's log, which stays as it is; and again
    /// with the VMM's own writes, which are forgotten.
    ///
    /// # Errors
    /// When KVM refuses, for instance because logging is off.
    pub fn read(&self, mut each: impl FnMut(u64, &[u64])) -> Result<(), MemoryError> {
        let mut kept = self.bitmap.lock().unwrap_or_else(PoisonError::into_inner);
        for (slot, span) in self.ram.spans().iter().enumerate() {
            let words = (span.bytes / PAGE).div_ceil(PAGES_PER_WORD) as usize;
            if kept.len() < words {
                kept.resize(words, 0);
            }
            // All of it is written over.
            let bitmap = &mut kept[..words];
            let request = kvm_dirty_log {
                slot: slot as u32,
                padding1: 0,
                __bindgen_anon_1: kvm_bindings::kvm_dirty_log__bindgen_ty_1 {
                    dirty_bitmap: bitmap.as_mut_ptr().cast(),
                },
            };
            // SAFETY: the bitmap has a bit for every page of the slot and lives until the call returns.
            let answer = unsafe { ioctl_with_ref(&*self.vm, KVM_GET_DIRTY_LOG(), &request) };
            check(answer, "read KVM's dirty log")?;
            each(span.start / PAGE, bitmap);
        }
        self.ram.take_own_writes(each);
        Ok(())
    }

    /// Takes the pages of `bits` out of the log and watches them anew. Bit 0 of `bits[0]` is page `first`, a
    /// multiple of 64; only bits that were read from the log may be given. What is not RAM is passed over.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn protect(&self, first: u64, bits: &[u64]) -> Result<(), MemoryError> {
        let end = first + bits.len() as u64 * PAGES_PER_WORD;
        for (slot, span) in self.ram.spans().iter().enumerate() {
            // RAM starts on a multiple of 2 MiB and has such a length, so that every word is whole.
            let (start, pages) = (span.start / PAGE, span.bytes / PAGE);
            let (from, to) = (first.max(start), end.min(start + pages));
            if from >= to {
                continue;
            }
            let bits =
                &bits[((from - first) / PAGES_PER_WORD) as usize..((to - first) / PAGES_PER_WORD) as usize];
            if bits.iter().all(|word| *word == 0) {
                continue;
            }
            let request = kvm_clear_dirty_log {
                slot: slot as u32,
                num_pages: (to - from) as u32,
                first_page: from - start,
                __bindgen_anon_1: kvm_bindings::kvm_clear_dirty_log__bindgen_ty_1 {
                    dirty_bitmap: bits.as_ptr().cast_mut().cast(),
                },
            };
            // SAFETY: KVM reads `num_pages` bits from the bitmap, which `bits` has, and writes nothing.
            let answer = unsafe { ioctl_with_ref(&*self.vm, KVM_CLEAR_DIRTY_LOG(), &request) };
            check(answer, "clear KVM's dirty log")?;
        }
        Ok(())
    }
}

fn check(answer: libc::c_int, what: &'static str) -> Result<(), MemoryError> {
    if answer < 0 { Err(MemoryError::host(what)(io::Error::last_os_error())) } else { Ok(()) }
}
