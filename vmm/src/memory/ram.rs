//! RAM: one memfd, mapped region by region, registered with KVM as one slot a region.
//!
//! The memfd makes host memory a thing with a name: which pages exist can be asked (`SEEK_DATA`), pages can be
//! taken out (`PUNCH_HOLE`), and userfaultfd sees every touch of a page that is not there.

#![expect(unsafe_code, reason = "maps guest memory, registers it with KVM, and reads it by address")]

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use rustix::fs::{FallocateFlags, MemfdFlags, Mode, SeekFrom};
use vm_memory::bitmap::{AtomicBitmap, Bitmap};
use vm_memory::mmap::MmapRegion;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::layout::Layout;
use super::{MemoryError, PAGE};

/// Guest memory as rust-vmm's crates see it. Its bitmap records the VMM's own writes.
pub type Mmap = GuestMemoryMmap<AtomicBitmap>;

/// A guest's RAM.
#[derive(Debug)]
pub struct GuestRam {
    layout: Layout,
    file: Arc<File>,
    mmap: Mmap,
    spans: Vec<Span>,
}

/// One region in host memory. The address is kept as a number: only [`GuestRam::host`] makes a pointer of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    pub(super) start: u64,
    pub(super) bytes: u64,
    pub(super) host: usize,
    pub(super) file_offset: u64,
}

impl GuestRam {
    /// Sets up RAM that reads as zero and takes no host memory until it is touched.
    ///
    /// # Errors
    /// When the host refuses the file or the mapping.
    pub fn new(layout: Layout) -> Result<Arc<Self>, MemoryError> {
        let fd = rustix::fs::memfd_create("guest-ram", MemfdFlags::CLOEXEC)
            .map_err(MemoryError::host("create the file for guest memory"))?;
        // For whoever finds it in /proc/PID/fd: no other user's.
        rustix::fs::fchmod(&fd, Mode::RUSR | Mode::WUSR)
            .map_err(MemoryError::host("keep other users from guest memory"))?;
        rustix::fs::ftruncate(&fd, layout.bytes())
            .map_err(MemoryError::host("size the file for guest memory"))?;
        let file = Arc::new(File::from(fd));
        let ranges = layout.regions().iter().map(|region| {
            let backing = FileOffset::from_arc(Arc::clone(&file), region.file_offset);
            (GuestAddress(region.start), region.bytes as usize, Some(backing))
        });
        let mmap = Mmap::from_ranges_with_files(ranges)
            .map_err(|error| io::Error::other(error.to_string()))
            .map_err(MemoryError::host("map guest memory"))?;
        let spans = spans_of(&layout, &mmap)?;
        let ram = Self { layout, file, mmap, spans };
        ram.advise(libc::MADV_DONTDUMP, "keep guest memory out of core dumps")?;
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

    /// Calls `each(first gfn, bitmap)` for every region with the VMM's own writes since the last call.
    pub(super) fn take_own_writes(&self, mut each: impl FnMut(u64, &[u64])) {
        for region in self.mmap.iter() {
            let mapping: &MmapRegion<AtomicBitmap> = region;
            each(region.start_addr().0 / PAGE, &mapping.bitmap().get_and_reset());
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
        let mapping: &MmapRegion<AtomicBitmap> = region;
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
        // A kernel without transparent huge pages answers EINVAL: then there is nothing to forbid.
        let _ = self.advise(libc::MADV_NOHUGEPAGE, "choose the page size");
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

    /// Calls `each(gpa, bytes)` for the parts of `gpa..gpa + bytes` that exist in the file: that were ever touched.
    ///
    /// # Errors
    /// When the file cannot be asked.
    pub fn populated_within(&self, gpa: u64, bytes: u64, mut each: impl FnMut(u64, u64)) -> io::Result<()> {
        let span = self.span(gpa, bytes);
        let base = span.file_offset + (gpa - span.start);
        let end = base + bytes;
        let mut at = base;
        while at < end {
            let start = match rustix::fs::seek(&self.file, SeekFrom::Data(at)) {
                Ok(start) if start < end => start,
                Ok(_) | Err(rustix::io::Errno::NXIO) => break,
                Err(error) => return Err(error.into()),
            };
            let stop = rustix::fs::seek(&self.file, SeekFrom::Hole(start))?.min(end);
            each(gpa + (start - base), stop - start);
            at = stop;
        }
        Ok(())
    }

    /// Takes the pages away: the next touch finds zeros, or a userfault where that is on.
    ///
    /// # Errors
    /// When the file refuses.
    pub fn punch(&self, gpa: u64, bytes: u64) -> io::Result<()> {
        let span = self.span(gpa, bytes);
        let offset = span.file_offset + (gpa - span.start);
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(&self.file, flags, offset, bytes)?)
    }

    /// Makes host memory present and writable without changing what it holds. Best effort.
    pub fn populate(&self, gpa: u64, bytes: u64) {
        let host = self.host(gpa, bytes) as usize;
        // A failure (no memory now, kernel before 5.14) only means that the touch will be slower.
        let _ = madvise(host, bytes, libc::MADV_POPULATE_WRITE);
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
            Ok(Span {
                start: region.start,
                bytes: region.bytes,
                host: host as usize,
                file_offset: region.file_offset,
            })
        })
        .collect()
}

/// `madvise` on guest memory with advice that keeps its content.
fn madvise(host: usize, bytes: u64, advice: libc::c_int) -> io::Result<()> {
    // SAFETY: only called with ranges that `GuestRam` has mapped, and with advice that neither unmaps
    // nor discards (DONTDUMP, NOHUGEPAGE, POPULATE_WRITE).
    match unsafe { libc::madvise(host as *mut libc::c_void, bytes as usize, advice) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn only_touched_pages_are_populated_and_punching_takes_them_away() {
        let ram = GuestRam::new(Layout::for_bytes(32 << 20).unwrap()).unwrap();
        ram.mmap().write_obj(7_u64, GuestAddress(5 * PAGE)).unwrap();
        let mut seen = Vec::new();
        ram.populated_within(0, 32 << 20, |gpa, bytes| seen.push((gpa, bytes))).unwrap();
        assert_eq!(seen, [(5 * PAGE, PAGE)]);
        assert!(!ram.is_zero_page(5 * PAGE));

        ram.punch(5 * PAGE, PAGE).unwrap();
        seen.clear();
        ram.populated_within(0, 32 << 20, |gpa, bytes| seen.push((gpa, bytes))).unwrap();
        assert!(seen.is_empty());
        assert!(ram.is_zero_page(5 * PAGE));
    }

    #[test]
    fn guest_memory_is_in_no_core_dump_and_is_the_users_alone() {
        let ram = GuestRam::new(Layout::for_bytes(32 << 20).unwrap()).unwrap();
        let mode = ram.file.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        for span in ram.spans() {
            let from = smaps.find(&format!("{:x}-", span.host)).expect("its mapping");
            let flags = smaps[from..].lines().find(|line| line.starts_with("VmFlags:")).expect("its flags");
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
