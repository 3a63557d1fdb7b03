//! What a vCPU touches as soon as it runs: the page it executes, its stack, the tables an interrupt takes it through,
//! and the page tables that lead there. A hint for whoever brings its memory later: each of them would be a
//! fault of its own, one after the other. (Intel SDM vol. 3A, 5.5 "4-Level Paging and 5-Level Paging"; 9.7 "Task Management in 64-bit Mode".)

use std::mem::offset_of;

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};

const PAGE_SHIFT: u32 = 12;
const CR0_PAGING: u64 = 1 << 31;
const CR4_FIVE_LEVELS: u64 = 1 << 12;
const EFER_LONG_MODE_ACTIVE: u64 = 1 << 10;
const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
/// The physical address in an entry.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Where a 64-bit TSS has the stack that an interrupt of ring 3 uses.
const TSS_RSP0: u64 = 4;

/// Frame numbers of those pages, ascending. `read` reads eight bytes of guest-physical memory, where there is RAM.
/// Other paging than that of 64-bit mode is not walked.
pub(super) fn first_pages(regs: &[u8], sregs: &[u8], read: impl Fn(u64) -> Option<u64>) -> Vec<u64> {
    let at = |bytes: &[u8], offset: usize| {
        bytes
            .get(offset..offset + 8)
            .map_or(0, |field| u64::from_le_bytes(field.try_into().expect("eight bytes")))
    };
    let walk = Walk {
        cr0: at(sregs, offset_of!(kvm_sregs, cr0)),
        cr3: at(sregs, offset_of!(kvm_sregs, cr3)),
        cr4: at(sregs, offset_of!(kvm_sregs, cr4)),
        efer: at(sregs, offset_of!(kvm_sregs, efer)),
        read,
    };
    let table = |of: usize| at(sregs, of + offset_of!(kvm_dtable, base));
    let tss = at(sregs, offset_of!(kvm_sregs, tr) + offset_of!(kvm_segment, base));
    let touched = [
        at(regs, offset_of!(kvm_regs, rip)),
        at(regs, offset_of!(kvm_regs, rsp)),
        table(offset_of!(kvm_sregs, gdt)),
        table(offset_of!(kvm_sregs, idt)),
        tss,
    ];
    let mut pages = Vec::new();
    for linear in touched {
        walk.to(linear, &mut pages);
    }
    let stack = walk.to(tss.wrapping_add(TSS_RSP0), &mut pages).and_then(&walk.read);
    // A stack grows down from its end.
    stack.and_then(|end| walk.to(end.wrapping_sub(8), &mut pages));
    pages.sort_unstable();
    pages.dedup();
    pages
}

struct Walk<Read> {
    cr0: u64,
    cr3: u64,
    cr4: u64,
    efer: u64,
    read: Read,
}

impl<Read: Fn(u64) -> Option<u64>> Walk<Read> {
    /// Adds the frames touched on the way to a linear address, and returns the physical one.
    fn to(&self, linear: u64, pages: &mut Vec<u64>) -> Option<u64> {
        let physical = self.physical(linear, pages)?;
        (self.read)(physical & !7)?;
        pages.push(physical >> PAGE_SHIFT);
        Some(physical)
    }

    fn physical(&self, linear: u64, pages: &mut Vec<u64>) -> Option<u64> {
        if self.cr0 & CR0_PAGING == 0 {
            return Some(linear);
        }
        if self.efer & EFER_LONG_MODE_ACTIVE == 0 {
            return None;
        }
        let levels = if self.cr4 & CR4_FIVE_LEVELS == 0 { 4 } else { 5 };
        let mut table = self.cr3 & ADDRESS;
        for level in (0..levels).rev() {
            let shift = PAGE_SHIFT + 9 * level;
            let entry = (self.read)(table + (linear >> shift & 0x1ff) * 8)?;
            pages.push(table >> PAGE_SHIFT);
            if entry & PRESENT == 0 {
                return None;
            }
            let inside = (1 << shift) - 1;
            if level == 0 || (level <= 2 && entry & LARGE != 0) {
                return Some(entry & ADDRESS & !inside | linear & inside);
            }
            table = entry & ADDRESS;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    /// Memory of 64 MiB with these words, and registers as KVM gives them.
    fn pages(words: &[(u64, u64)], fields: &[(usize, u64)], rip: u64, rsp: u64) -> Vec<u64> {
        let words: HashMap<_, _> = words.iter().copied().collect();
        let mut regs = vec![0; size_of::<kvm_regs>()];
        let mut sregs = vec![0; size_of::<kvm_sregs>()];
        let put = |bytes: &mut Vec<u8>, at: usize, value: u64| {
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        };
        put(&mut regs, offset_of!(kvm_regs, rip), rip);
        put(&mut regs, offset_of!(kvm_regs, rsp), rsp);
        fields.iter().for_each(|(at, value)| put(&mut sregs, *at, *value));
        first_pages(&regs, &sregs, |gpa| (gpa < 64 << 20).then(|| words.get(&gpa).copied().unwrap_or(0)))
    }

    const LONG: [(usize, u64); 3] = [
        (offset_of!(kvm_sregs, cr0), CR0_PAGING),
        (offset_of!(kvm_sregs, efer), EFER_LONG_MODE_ACTIVE),
        (offset_of!(kvm_sregs, cr3), 0x1000),
    ];

    #[test]
    fn the_page_tables_on_the_way_are_touched_too() {
        // 0x40_0000 + 0x5123 by four levels, 0x20_0000 by a large page, the TSS with its stack in the large page.
        let words = [
            (0x1000, 0x2003),
            (0x2000, 0x3003),
            (0x3000 + 8, 0x0200_0083),
            (0x3000 + 16, 0x4003),
            (0x4000 + 5 * 8, 0x9003),
            (0x0200_0000 + 0x3004, 0x20_8000),
        ];
        let tss = (offset_of!(kvm_sregs, tr) + offset_of!(kvm_segment, base), 0x20_3000);
        let found = pages(&words, &[LONG[0], LONG[1], LONG[2], tss], 0x40_5123, 0x20_1000);
        assert_eq!(found, [1, 2, 3, 4, 9, 0x2001, 0x2003, 0x2007]);
    }

    #[test]
    fn nothing_is_made_up() {
        // No page table entry is present; then CR3 outside RAM.
        assert_eq!(pages(&[], &LONG, 0x40_5123, 0), [1]);
        let outside = [LONG[0], LONG[1], (offset_of!(kvm_sregs, cr3), 1 << 40)];
        assert_eq!(pages(&[(0x1000, 0x2003)], &outside, 0x40_5123, 0), [0_u64; 0]);
        // Without paging addresses are physical.
        assert_eq!(pages(&[], &[], 0x10_0123, 0x9_0000), [0, 0x90, 0x100]);
    }
}
