//! What the boot protocol says of the machine: its RAM and the command line.
//!
//! PVH (Xen's include/public/arch-x86/hvm/start_info.h): loaders put the structures wherever they
//! like, possibly where the guest is about to work. So everything is copied out first.

use crate::ring0;
use crate::telemetry::PAGE_SIZE;
use core::ptr::{addr_of, read_unaligned};

const START_MAGIC: u32 = 0x336e_c578;
const TYPE_RAM: u32 = 1;
const MAX_SPANS: usize = 16;
const COMMAND_LINE_MAX: usize = 1024;

#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    module_list: u64,
    command_line: u64,
    rsdp: u64,
    memory_map: u64,
    memory_map_entries: u32,
}

#[repr(C)]
struct MemoryMapEntry {
    address: u64,
    size: u64,
    kind: u32,
    reserved: u32,
}

/// A stretch of RAM in whole pages.
#[derive(Clone, Copy, Default)]
pub(crate) struct Span {
    pub(crate) base: u64,
    pub(crate) pages: u64,
}

impl Span {
    pub(crate) fn end(&self) -> u64 {
        self.base + self.pages * PAGE_SIZE
    }
}

/// The machine as booted.
pub(crate) struct Machine {
    pub(crate) command_line: &'static str,
    /// All RAM, that below 1 MiB and the image included.
    pub(crate) memory_pages: u64,
    /// RAM the guest may use: above the image, lowest first; shrinks as it is taken.
    pub(crate) spans: [Span; MAX_SPANS],
}

impl Machine {
    /// # Safety
    /// `start_info` is what the boot protocol passed, read before any memory is written.
    pub(crate) unsafe fn from_start_info(start_info: u64) -> Self {
        // SAFETY: the protocol promises this structure there; it is plain numbers.
        let info = unsafe { read_unaligned(start_info as *const StartInfo) };
        assert!(info.magic == START_MAGIC, "no PVH start info");
        // SAFETY: a loader that gives a command line gives a string that ends with a zero byte.
        let command_line = unsafe { copy_command_line(info.command_line) };
        let mut machine = Self { command_line, memory_pages: 0, spans: [Span::default(); MAX_SPANS] };
        for i in 0..u64::from(info.memory_map_entries) {
            let at = info.memory_map + i * size_of::<MemoryMapEntry>() as u64;
            // SAFETY: the protocol promises that many entries there; they are plain numbers.
            let entry = unsafe { read_unaligned(at as *const MemoryMapEntry) };
            if entry.kind == TYPE_RAM {
                machine.add(entry.address, entry.size);
            }
        }
        machine
    }

    fn add(&mut self, address: u64, size: u64) {
        self.memory_pages += size / PAGE_SIZE;
        let image_end = addr_of!(ring0::image_end) as u64;
        let base = address.max(image_end).next_multiple_of(PAGE_SIZE);
        let pages = (address + size).saturating_sub(base) / PAGE_SIZE;
        let free = self.spans.iter().position(|span| span.pages == 0);
        if let (Some(free), true) = (free, pages > 0) {
            self.spans[free] = Span { base, pages };
            self.spans[..=free].sort_unstable_by_key(|span| span.base);
        }
    }

    /// Takes pages from the lowest span that has enough, for good. They are as the loader left them.
    pub(crate) fn take(&mut self, pages: u64) -> Option<u64> {
        let span = self.spans.iter_mut().find(|span| span.pages >= pages)?;
        let base = span.base;
        span.base += pages * PAGE_SIZE;
        span.pages -= pages;
        Some(base)
    }

    /// Pages not taken.
    pub(crate) fn free_pages(&self) -> u64 {
        self.spans.iter().map(|span| span.pages).sum()
    }
}

/// # Safety
/// `from` is 0 or the address of a string that ends with a zero byte. Called once.
unsafe fn copy_command_line(from: u64) -> &'static str {
    static mut COPY: [u8; COMMAND_LINE_MAX] = [0; COMMAND_LINE_MAX];
    let mut length = 0;
    let copy = &raw mut COPY;
    while from != 0 && length < COMMAND_LINE_MAX {
        // SAFETY: the bytes before this one were not zero, so it belongs to the string.
        let byte = unsafe { (from as *const u8).add(length).read() };
        if byte == 0 {
            break;
        }
        // SAFETY: only this call knows the buffer, and `length` is within it.
        unsafe { (*copy)[length] = if byte.is_ascii_graphic() { byte } else { b' ' } };
        length += 1;
    }
    // SAFETY: all bytes are ASCII, and nobody writes the buffer after this.
    unsafe { core::str::from_utf8_unchecked(core::slice::from_raw_parts(copy.cast(), length)) }
}
