//! RAM: private memory, mapped region by region, registered with KVM as one slot a region.
//!
//! Anonymous, because that is what a host backs best: with huge pages where it may, and a small page costs half of what one of
//! a file does (docs/decisions/anonymous-memory.md). Which pages exist can be asked ([`present`]), pages can be taken away, and
//! userfaultfd sees every touch of a page that is not there.

#![expect(unsafe_code, reason = "maps guest memory, registers it with KVM, and reads it by address")]

use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::bitmap::Bitmap;
use vm_memory::mmap::MmapRegion;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::huge::{Pace, Size};
use super::layout::Layout;
use super::own_writes::OwnWrites;
use super::{MemoryError, PAGE, present};

/// Guest memory as rust-vmm's crates see it. Its bitmap records the VMM's own writes.
pub type Mmap = GuestMemoryMmap<OwnWrites>;

/// A guest's RAM.
#[derive(Debug)]
pub struct GuestRam {
    layout: Layout,
    mmap: Mmap,
    spans: Vec<Span>,
    /// How fast memory is made ready here; nothing while their size does not follow it.
    pace: Mutex<Option<Pace>>,
}

/// One region in host memory. The address is kept as a number: only [`GuestRam::host`] makes a pointer of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    pub(super) start: u64,
    pub(super) bytes: u64,
    pub(super) host: usize,
}

impl GuestRam {
    /// Sets up RAM that reads as zero and takes no host memory until it is touched.
    ///
    /// # Errors
    /// When the host refuses the mapping.
    pub fn new(layout: Layout) -> Result<Arc<Self>, MemoryError> {
        let ranges =
            layout.regions().iter().map(|region| (GuestAddress(region.start), region.bytes as usize));
        let mmap = Mmap::from_ranges(&ranges.collect::<Vec<_>>())
            .map_err(|error| io::Error::other(error.to_string()))
            .map_err(MemoryError::host("map guest memory"))?;
        let spans = spans_of(&layout, &mmap)?;
        let ram = Self { layout, mmap, spans, pace: Mutex::new(Some(Pace::default())) };
        ram.advise(libc::MADV_DONTDUMP, "keep guest memory out of core dumps")?;
        ram.choose(Size::Huge);
        Ok(Arc::new(ram))
    }

    /// Where it lies.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// For devices and loaders.
    #[must_use]
    pub fn mmap(&self) -> &Mmap {
        &self.mmap
    }

    /// Calls `each(first gfn, bitmap)` for every piece with the VMM's own writes since the last call.
    pub(super) fn take_own_writes(&self, mut each: impl FnMut(u64, &[u64])) {
        for region in self.mmap.iter() {
            let (start, mapping): (_, &MmapRegion<OwnWrites>) = (region.start_addr().0 / PAGE, region);
            mapping.bitmap().take(|first, bits| each(start + first, &[bits]));
        }
    }

    /// The pages that these are.
    #[cfg(test)]
    pub(crate) fn own_writes(&self) -> Vec<u64> {
        let mut pages = Vec::new();
        self.take_own_writes(|first, bits| {
            let written = |page: &u64| bits[*page as usize / 64] >> (page % 64) & 1 == 1;
            pages.extend((0..bits.len() as u64 * 64).filter(written).map(|page| first + page));
        });
        pages
    }

    /// Says that the VMM wrote there by another way than [`mmap`](Self::mmap), which knows by itself.
    ///
    /// # Panics
    /// When it is not RAM.
    pub(super) fn mark_written(&self, gpa: u64, bytes: u64) {
        let region =
            self.mmap.find_region(GuestAddress(gpa)).unwrap_or_else(|| panic!("{gpa:#x} is not RAM"));
        let mapping: &MmapRegion<OwnWrites> = region;
        mapping.bitmap().mark_dirty((gpa - region.start_addr().0) as usize, bytes as usize);
    }

    /// Makes it the guest's physical memory: region *i* is KVM's slot *i*.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn register(&self, vm: &VmFd) -> Result<(), MemoryError> {
        self.register_with_flags(vm, 0)
    }

    /// Registers all slots with `flags` (`KVM_MEM_LOG_DIRTY_PAGES` or none).
    pub(super) fn register_with_flags(&self, vm: &VmFd, flags: u32) -> Result<(), MemoryError> {
        for (slot, span) in self.spans.iter().enumerate() {
            let region = kvm_userspace_memory_region {
                slot: slot as u32,
                flags,
                guest_phys_addr: span.start,
                memory_size: span.bytes,
                userspace_addr: span.host as u64,
            };
            // SAFETY: the range is mapped by `self.mmap`, which whoever owns the VM keeps for as long as the VM
            // lives (both are held by the machine), and regions do not overlap (Layout).
            unsafe { vm.set_user_memory_region(region) }
                .map_err(|e| io::Error::from_raw_os_error(e.errno()))
                .map_err(MemoryError::host("give guest memory to KVM"))?;
        }
        Ok(())
    }

    /// From here on the host backs RAM with small pages only.
    pub(super) fn forbid_huge_pages(&self) {
        self.settle(None, Size::Small);
    }

    /// From here on the host backs RAM with huge pages again, where it has them.
    pub(super) fn allow_huge_pages(&self) {
        self.settle(Some(Pace::default()), Size::Huge);
    }

    /// Memory is taken in huge pages at whatever pace the host gives them.
    pub fn only_huge(&self) {
        self.settle(None, Size::Huge);
    }

    /// All that was to be made ready is: small pages are no longer chosen for the host's pace, only where they were asked for.
    pub fn end_making_ready(&self) {
        let mut pace = self.pace();
        if pace.as_mut().is_some_and(|pace| pace.begin_anew() == Size::Small) {
            self.choose(Size::Huge);
        }
    }

    fn settle(&self, pace: Option<Pace>, size: Size) {
        let mut known = self.pace();
        *known = pace;
        self.choose(size);
    }

    /// Under the lock of [`pace`](Self::pace): choices of two threads must not cross.
    fn choose(&self, size: Size) {
        let advice = match size {
            Size::Huge => libc::MADV_HUGEPAGE,
            Size::Small => libc::MADV_NOHUGEPAGE,
        };
        // A kernel without transparent huge pages answers EINVAL: then there is nothing to choose.
        let _ = self.advise(advice, "choose the page size");
    }

    fn pace(&self) -> MutexGuard<'_, Option<Pace>> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn advise(&self, advice: libc::c_int, what: &'static str) -> Result<(), MemoryError> {
        for span in &self.spans {
            madvise(span.host, span.bytes, advice).map_err(MemoryError::host(what))?;
        }
        Ok(())
    }

    /// The host address of `bytes` bytes at guest-physical `gpa`.
    ///
    /// # Panics
    /// When they do not lie inside one region: callers check what comes from outside before.
    pub(super) fn host(&self, gpa: u64, bytes: u64) -> *mut u8 {
        let span = self.span(gpa, bytes);
        (span.host + (gpa - span.start) as usize) as *mut u8
    }

    /// The guest-physical address of a host address inside RAM.
    pub(super) fn gpa_of(&self, host: usize) -> Option<u64> {
        let span = self.spans.iter().find(|s| (s.host..s.host + s.bytes as usize).contains(&host))?;
        Some(span.start + (host - span.host) as u64)
    }

    fn span(&self, gpa: u64, bytes: u64) -> &Span {
        self.spans
            .iter()
            .find(|s| gpa >= s.start && gpa.checked_add(bytes).is_some_and(|end| end <= s.start + s.bytes))
            .unwrap_or_else(|| panic!("guest memory {gpa:#x}+{bytes:#x} is not RAM"))
    }

    pub(super) fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// Calls `each(gpa, bytes)` for the parts of `gpa..gpa + bytes` that exist: that were written, or lie in a huge page beside
    /// what was.
    ///
    /// # Errors
    /// When the host does not say.
    pub fn populated_within(&self, gpa: u64, bytes: u64, mut each: impl FnMut(u64, u64)) -> io::Result<()> {
        let host = self.host(gpa, bytes) as usize;
        present::each_existing(host, bytes, |at, bytes| each(gpa + (at - host) as u64, bytes))
    }

    /// Takes the pages away: the next touch finds zeros, or a userfault where that is on.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn discard(&self, gpa: u64, bytes: u64) -> io::Result<()> {
        let host = self.host(gpa, bytes);
        // SAFETY: `host` checked that the range is mapped RAM, which is only ever accessed through raw pointers and atomics;
        // it stays mapped, and reads as zero.
        match unsafe { libc::madvise(host.cast(), bytes as usize, libc::MADV_DONTNEED) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Makes host memory present and writable without changing what it holds. Best effort.
    pub fn populate(&self, gpa: u64, bytes: u64) {
        let host = self.host(gpa, bytes) as usize;
        let start = Instant::now();
        // A failure (no memory now, kernel before 5.14) only means that the touch will be slower.
        if madvise(host, bytes, libc::MADV_POPULATE_WRITE).is_err() {
            return;
        }
        let took = start.elapsed();
        let mut pace = self.pace();
        if let Some(size) = pace.as_mut().and_then(|pace| pace.note(bytes, took)) {
            self.choose(size);
        }
    }

    /// Has the beginning of each page fetched from memory, for whoever is about to read them: all at the same time, and not one after
    /// the other as they are read. What a core fetches ahead by itself ends with the page.
    pub fn fetch_beginnings(&self, gpa: u64, bytes: u64) {
        let host = self.host(gpa, bytes);
        for at in (0..bytes as usize).step_by(PAGE as usize) {
            // SAFETY: `host` checked that the range is mapped RAM.
            let line = unsafe { host.add(at) };
            // SAFETY: a hint, which reads nothing and never faults; every x86-64 has it.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) };
        }
    }

    /// Whether a page is all zero at this moment. Leaves at the first word that is not.
    #[must_use]
    pub fn is_zero_page(&self, gpa: u64) -> bool {
        let words = self.host(gpa, PAGE).cast::<u64>();
        (0..PAGE as usize / 8).step_by(8).all(|base| {
            let line = (base..base + 8).fold(0, |bits, i| {
                // SAFETY: `host` checked that the page is mapped RAM; `i` stays inside it and it is page-aligned.
                let word = unsafe { words.add(i) };
                // SAFETY: as above; the guest may write it at the same time, hence the atomic load.
                bits | unsafe { AtomicU64::from_ptr(word) }.load(Ordering::Relaxed)
            });
            line == 0
        })
    }
}

fn spans_of(layout: &Layout, mmap: &Mmap) -> Result<Vec<Span>, MemoryError> {
    layout
        .regions()
        .iter()
        .map(|region| {
            let mapped = mmap.find_region(GuestAddress(region.start)).expect("each region was just mapped");
            debug_assert_eq!(mapped.len(), region.bytes);
            let host = mmap
                .get_host_address(GuestAddress(region.start))
                .map_err(|error| io::Error::other(error.to_string()))
                .map_err(MemoryError::host("find guest memory in this process"))?;
            Ok(Span { start: region.start, bytes: region.bytes, host: host as usize })
        })
        .collect()
}

/// `madvise` with advice that keeps the content.
pub(super) fn madvise(host: usize, bytes: u64, advice: libc::c_int) -> io::Result<()> {
    // SAFETY: only called with ranges that `GuestRam` or `staging` has mapped, and with advice that neither unmaps
    // nor discards (DONTDUMP, HUGEPAGE, NOHUGEPAGE, POPULATE_WRITE).
    match unsafe { libc::madvise(host as *mut libc::c_void, bytes as usize, advice) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn only_touched_pages_are_populated_and_discarding_takes_them_away() {
        let ram = GuestRam::new(Layout::for_bytes(32 << 20).unwrap()).unwrap();
        ram.forbid_huge_pages();
        ram.mmap().write_obj(7_u64, GuestAddress(5 * PAGE)).unwrap();
        let mut seen = Vec::new();
        ram.populated_within(0, 32 << 20, |gpa, bytes| seen.push((gpa, bytes))).unwrap();
        assert_eq!(seen, [(5 * PAGE, PAGE)]);
        assert!(!ram.is_zero_page(5 * PAGE));

        ram.discard(5 * PAGE, PAGE).unwrap();
        seen.clear();
        ram.populated_within(0, 32 << 20, |gpa, bytes| seen.push((gpa, bytes))).unwrap();
        assert!(seen.is_empty());
        assert!(ram.is_zero_page(5 * PAGE));
    }

    #[test]
    fn guest_memory_is_in_no_core_dump() {
        let ram = GuestRam::new(Layout::for_bytes(32 << 20).unwrap()).unwrap();
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        for span in ram.spans() {
            // Another test's RAM may lie beside it, in one mapping for the kernel.
            let holds = |line: &&str| {
                let range = line.split(' ').next().and_then(|range| range.split_once('-'));
                let bound = |text| usize::from_str_radix(text, 16).ok();
                range.and_then(|(from, to)| Some((bound(from)?..bound(to)?).contains(&span.host)))
                    == Some(true)
            };
            let mut lines = smaps.lines().skip_while(|line| !holds(line));
            let flags = lines.find(|line| line.starts_with("VmFlags:")).expect("its mapping, and its flags");
            // proc_pid_smaps(5): do not include the area into a core dump.
            assert!(flags.split(' ').any(|flag| flag == "dd"), "{flags}");
        }
    }

    #[test]
    #[should_panic(expected = "is not RAM")]
    fn an_address_in_the_hole_is_not_ram() {
        let ram = GuestRam::new(Layout::for_bytes(32 << 20).unwrap()).unwrap();
        let _ = ram.is_zero_page(32 << 20);
    }
}
