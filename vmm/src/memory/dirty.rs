//! Which pages were written: KVM's dirty log with manual protection, joined with the VMM's own writes.
//!
//! With manual protection *get* only reads the log; *clear* takes bits out of it and starts watching those pages
//! anew. So reading forgets nothing: a page leaves the log only when [`DirtyLog::protect`] names it, which comes
//! before the page is read (Documentation/virt/kvm/api.rst, 4.117 and 7.20).

#![expect(unsafe_code, reason = "KVM_GET_DIRTY_LOG and KVM_CLEAR_DIRTY_LOG take pointers to bitmaps")]

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_clear_dirty_log, kvm_dirty_log};
use kvm_ioctls::VmFd;
use vmm_sys_util::ioctl::ioctl_with_ref;

use self::numbers::{KVM_CLEAR_DIRTY_LOG, KVM_GET_DIRTY_LOG};
use super::ram::{GuestRam, Span};
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
        for part in parts(self.ram.spans(), first, bits) {
            let request = kvm_clear_dirty_log {
                slot: part.slot,
                num_pages: (part.bits.len() as u64 * PAGES_PER_WORD) as u32,
                first_page: part.first,
                __bindgen_anon_1: kvm_bindings::kvm_clear_dirty_log__bindgen_ty_1 {
                    dirty_bitmap: part.bits.as_ptr().cast_mut().cast(),
                },
            };
            // SAFETY: KVM reads `num_pages` bits from the bitmap, which `bits` has, and writes nothing.
            let answer = unsafe { ioctl_with_ref(&*self.vm, KVM_CLEAR_DIRTY_LOG(), &request) };
            check(answer, "clear KVM's dirty log")?;
        }
        Ok(())
    }
}

/// What a bitmap says of one slot.
#[derive(Debug, PartialEq)]
struct Part<'a> {
    slot: u32,
    /// The page of the slot that bit 0 is.
    first: u64,
    bits: &'a [u64],
}

/// What a bitmap whose bit 0 is page `first` says of each slot, of which it has pages. RAM starts on a multiple of 2 MiB and has such
/// a length, so that every word is of one slot.
fn parts<'a>(spans: &[Span], first: u64, bits: &'a [u64]) -> impl Iterator<Item = Part<'a>> {
    let end = first + bits.len() as u64 * PAGES_PER_WORD;
    spans.iter().enumerate().filter_map(move |(slot, span)| {
        let (start, pages) = (span.start / PAGE, span.bytes / PAGE);
        let (from, to) = (first.max(start), end.min(start + pages));
        let words = |page: u64| ((page - first) / PAGES_PER_WORD) as usize;
        let bits = (from < to).then(|| &bits[words(from)..words(to)])?;
        bits.iter().any(|word| *word != 0).then(|| Part { slot: slot as u32, first: from - start, bits })
    })
}

fn check(answer: libc::c_int, what: &'static str) -> Result<(), MemoryError> {
    if answer < 0 { Err(MemoryError::host(what)(io::Error::last_os_error())) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bitmap_is_cut_where_slots_begin_and_end() {
        let span = |start, bytes| Span { start, bytes, host: 0 };
        // Pages 0 to 1023, and 2048 to 2559: words 0 to 15, and 32 to 39.
        let spans = [span(0, 4 << 20), span(8 << 20, 2 << 20)];
        let bits: Vec<u64> = (0..48).map(|word| word + 1).collect();
        let part = |slot, first, range: std::ops::Range<usize>| Part { slot, first, bits: &bits[range] };
        let cut = |range: std::ops::Range<usize>| {
            parts(&spans, range.start as u64 * 64, &bits[range]).collect::<Vec<_>>()
        };
        assert_eq!(cut(0..48), [part(0, 0, 0..16), part(1, 0, 32..40)]);
        assert_eq!(cut(10..34), [part(0, 640, 10..16), part(1, 0, 32..34)]);
        assert_eq!(cut(3..5), [part(0, 192, 3..5)]);
        assert_eq!(cut(33..47), [part(1, 64, 33..40)]);
        assert_eq!(cut(16..32), [], "the hole");
        assert_eq!(cut(40..48), [], "beyond RAM");
        assert_eq!(cut(7..7), []);
        let mut few = [0; 48];
        few[35] = 4;
        let found: Vec<_> = parts(&spans, 0, &few).collect();
        assert_eq!(found, [Part { slot: 1, first: 0, bits: &few[32..40] }], "who has none is not asked");
    }
}
