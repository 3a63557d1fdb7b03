//! The first vCPU's registers at the kernel's first instruction, and the tables they point to.

use std::io;

use kvm_bindings::{kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;

use super::params::{START_INFO, ZERO_PAGE};
use super::{BootError, write};
use crate::memory::ram::Mmap;

const GDT: u64 = 0x500;
const PML4: u64 = 0x9000;
const PDPT: u64 = 0xa000;
/// Four page directories, one a GiB.
const DIRECTORIES: u64 = 0xb000;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// RFLAGS: bit 1 is always set.
const RFLAGS: u64 = 2;

/// Where a kernel begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    rip: u64,
    /// 64-bit mode with paging, or 32-bit without.
    long: bool,
    /// PVH: address of the start information.
    rbx: u64,
    /// Linux: address of the zero page.
    rsi: u64,
}

/// Segment descriptors by selector / 8: none, none, code, data (as Linux's boot protocol has them), task state.
const CODE_32: u64 = 0x00cf_9b00_0000_ffff;
const CODE_64: u64 = 0x00af_9b00_0000_ffff;
const DATA: u64 = 0x00cf_9300_0000_ffff;
const TASK: u64 = 0x0000_8b00_0000_0067;

pub(super) fn write_pvh(memory: &Mmap, rip: u64) -> Result<Entry, BootError> {
    write_gdt(memory, CODE_32)?;
    Ok(Entry { rip, long: false, rbx: START_INFO, rsi: 0 })
}

pub(super) fn write_linux64(memory: &Mmap, rip: u64) -> Result<Entry, BootError> {
    write_gdt(memory, CODE_64)?;
    write_page_tables(memory)?;
    Ok(Entry { rip, long: true, rbx: 0, rsi: ZERO_PAGE })
}

fn write_gdt(memory: &Mmap, code: u64) -> Result<(), BootError> {
    let table: Vec<u8> =
        [0, 0, code, DATA, TASK].iter().flat_map(|entry: &u64| entry.to_le_bytes()).collect();
    write(memory, GDT, &table, "the descriptor table")
}

/// The first 4 GiB at their own addresses, in pages of 2 MiB.
fn write_page_tables(memory: &Mmap) -> Result<(), BootError> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    let bytes = |entries: Vec<u64>| entries.into_iter().flat_map(u64::to_le_bytes).collect::<Vec<u8>>();
    let directories = (0..4).map(|n| (DIRECTORIES + n * 4096) | PRESENT_WRITABLE).collect();
    let pages = (0..4 * 512).map(|n| n << 21 | PRESENT_WRITABLE | LARGE).collect();
    write(memory, PML4, &bytes(vec![PDPT | PRESENT_WRITABLE]), "page tables")?;
    write(memory, PDPT, &bytes(directories), "page tables")?;
    write(memory, DIRECTORIES, &bytes(pages), "page tables")
}

impl Entry {
    /// Sets the registers of the vCPU that boots.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn apply(&self, vcpu: &VcpuFd) -> io::Result<()> {
        let mut sregs = vcpu.get_sregs()?;
        self.shape(&mut sregs);
        vcpu.set_sregs(&sregs)?;
        let mut regs = vcpu.get_regs()?;
        (regs.rip, regs.rbx, regs.rsi, regs.rflags) = (self.rip, self.rbx, self.rsi, RFLAGS);
        Ok(vcpu.set_regs(&regs)?)
    }

    fn shape(&self, sregs: &mut kvm_sregs) {
        sregs.gdt.base = GDT;
        sregs.gdt.limit = 5 * 8 - 1;
        sregs.cs = segment(0x10, 0xb, self.long);
        let data = segment(0x18, 3, false);
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        sregs.tr = kvm_segment { selector: 0x20, limit: 0x67, type_: 0xb, present: 1, ..Default::default() };
        sregs.cr0 = CR0_PE | CR0_ET;
        if self.long {
            sregs.cr0 |= CR0_PG;
            sregs.cr3 = PML4;
            sregs.cr4 |= CR4_PAE;
            sregs.efer |= EFER_LME | EFER_LMA;
        }
    }
}

/// A flat segment.
fn segment(selector: u16, type_: u8, long: bool) -> kvm_segment {
    kvm_segment {
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        s: 1,
        db: u8::from(!long),
        l: u8::from(long),
        g: 1,
        ..Default::default()
    }
}
