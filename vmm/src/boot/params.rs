//! What a kernel is told: memory map, command line, initramfs; in PVH's words or in Linux's.

use super::acpi;
use super::bzimage::HEADER;
use super::initramfs::Placed;
use super::map::Range;
use super::{BootError, CMDLINE, write};
use crate::memory::ram::Mmap;

/// Where PVH's `hvm_start_info` lies.
pub(super) const START_INFO: u64 = 0x6000;
const MODULES: u64 = 0x6100;
const PVH_MAP: u64 = 0x7000;
/// Where Linux's zero page lies.
pub(super) const ZERO_PAGE: u64 = 0x7000;

/// What there is to tell.
pub(super) struct Told {
    pub(super) map: Vec<Range>,
    pub(super) cmdline_bytes: usize,
    pub(super) initramfs: Option<Placed>,
}

/// `XEN_HVM_START_MAGIC_VALUE`.
const START_MAGIC: u32 = 0x336e_c578;

/// Writes `hvm_start_info` and what it points to (xen/include/public/arch-x86/hvm/start_info.h, version 1).
pub(super) fn write_pvh(memory: &Mmap, told: &Told) -> Result<(), BootError> {
    let mut info = Layout::<56>::default();
    info.put32(0, START_MAGIC);
    info.put32(4, 1);
    info.put64(24, CMDLINE);
    info.put64(32, acpi::AT);
    info.put64(40, PVH_MAP);
    info.put32(48, told.map.len() as u32);
    if let Some(initramfs) = told.initramfs {
        info.put32(12, 1);
        info.put64(16, MODULES);
        let mut module = Layout::<32>::default();
        module.put64(0, initramfs.start);
        module.put64(8, initramfs.bytes);
        write(memory, MODULES, &module.0, "the module list")?;
    }
    let entries = told.map.iter().flat_map(|range| {
        let mut entry = Layout::<24>::default();
        entry.put64(0, range.start);
        entry.put64(8, range.bytes);
        entry.put32(16, range.kind);
        entry.0
    });
    write(memory, PVH_MAP, &entries.collect::<Vec<u8>>(), "the memory map")?;
    write(memory, START_INFO, &info.0, "the start information")
}

/// Writes the zero page (Documentation/arch/x86/boot.rst and zero-page.rst), from the header that the kernel brought.
pub(super) fn write_linux(memory: &Mmap, told: &Told, header: &[u8]) -> Result<(), BootError> {
    let mut page = Layout::<4096>::default();
    if header.is_empty() {
        page.put32(0x1fe, 0xaa55); // boot_flag
        page.put32(0x202, 0x5372_6448); // header: "HdrS"
        page.0[0x206..0x208].copy_from_slice(&0x20c_u16.to_le_bytes()); // version
        page.0[0x211] = 1; // loadflags: loaded high
        page.put32(0x230, 0x100_0000); // kernel_alignment
    } else {
        page.0[HEADER..HEADER + header.len()].copy_from_slice(header);
    }
    page.put64(0x70, acpi::AT); // acpi_rsdp_addr
    page.0[0x1e8] = told.map.len() as u8;
    page.0[0x210] = 0xff; // type_of_loader: none of those with a number
    page.put32(0x228, CMDLINE as u32);
    page.put32(0x238, told.cmdline_bytes as u32);
    if let Some(initramfs) = told.initramfs {
        page.put32(0x218, initramfs.start as u32);
        page.put32(0x21c, initramfs.bytes as u32);
    }
    for (index, range) in told.map.iter().enumerate() {
        let at = 0x2d0 + index * 20;
        page.put64(at, range.start);
        page.put64(at + 8, range.bytes);
        page.put32(at + 16, range.kind);
    }
    write(memory, ZERO_PAGE, &page.0, "the zero page")
}

/// A structure written field by field at the offsets its specification gives.
struct Layout<const N: usize>([u8; N]);

impl<const N: usize> Default for Layout<N> {
    fn default() -> Self {
        Self([0; N])
    }
}

impl<const N: usize> Layout<N> {
    fn put32(&mut self, at: usize, value: u32) {
        self.0[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    fn put64(&mut self, at: usize, value: u64) {
        self.0[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
}
