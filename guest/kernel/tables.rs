//! Completes from ring 3 the tables that ring 0 loaded unfinished: page tables for RAM above
//! 4 GiB, the interrupt table, the tasks of the other vCPUs.

use crate::machine::Machine;
use crate::ring0;
use crate::telemetry::{MAX_VCPUS, PAGE_SIZE, VCPU_PAGE_STRIDE, VCPU_PAGES_GPA};
use core::ptr::{addr_of, addr_of_mut};

const GIB: u64 = 1 << 30;
/// One page of page directory pointers maps this much; the guest uses no more.
const MAPPABLE: u64 = 512 * GIB;
/// The task state without an I/O permission bitmap: 104 bytes (APM volume 2, 12.2.5).
const TASK_SIZE: usize = 104;
static mut TASKS: [[u8; TASK_SIZE]; MAX_VCPUS] = [[0; TASK_SIZE]; MAX_VCPUS];

/// Before this, interrupts would have nowhere to go and RAM above 4 GiB cannot be touched.
pub(crate) fn complete(machine: &mut Machine) {
    map_high_memory(machine);
    fill_interrupt_table();
    (1..MAX_VCPUS).for_each(add_task);
}

fn map_high_memory(machine: &mut Machine) {
    for i in 0..machine.spans.len() {
        let span = &mut machine.spans[i];
        if span.end() > MAPPABLE {
            span.pages = MAPPABLE.saturating_sub(span.base) / PAGE_SIZE;
        }
        let (first, end) = (span.base / GIB, span.end().div_ceil(GIB));
        for gib in first.max(4)..end {
            map_gib(machine, gib);
        }
    }
}

fn map_gib(machine: &mut Machine, gib: u64) {
    // SAFETY: only the boot vCPU runs yet, and `gib` is below 512.
    let slot = unsafe { addr_of_mut!(ring0::identity_pdpt).cast::<u64>().add(gib as usize) };
    // SAFETY: the slot is in the table.
    if unsafe { slot.read() } != 0 {
        return;
    }
    let directory = machine.take(1).expect("a page below 4 GiB for a page directory") as *mut u64;
    for i in 0..512 {
        // SAFETY: a page of ours, mapped: spans are taken lowest first and the lowest lie below
        // 4 GiB. Present, writable, user, accessed, dirty, 2 MiB.
        unsafe { directory.add(i).write((gib * GIB + i as u64 * (GIB / 512)) | 0xe7) };
    }
    // SAFETY: as above. From not present to present needs no invalidation (APM volume 2, 5.5).
    unsafe { slot.write_volatile(directory as u64 | 0x27) };
}

fn fill_interrupt_table() {
    let stubs = addr_of!(ring0::fault_stubs) as u64;
    let stray = addr_of!(ring0::stray_interrupt) as u64;
    for vector in 0..256 {
        let handler = match vector {
            v if v < ring0::FAULTS => stubs + (v * ring0::FAULT_STUB_SIZE) as u64,
            v if v == usize::from(ring0::TIMER_VECTOR) => addr_of!(ring0::timer_tick) as u64,
            _ => stray,
        };
        // 64-bit interrupt gate, present, DPL 0, no interrupt stack table.
        let low = (handler & 0xffff)
            | u64::from(ring0::KERNEL_CODE) << 16
            | 0x8e00 << 32
            | (handler & 0xffff_0000) << 32;
        // SAFETY: within the table; only the boot vCPU runs yet and no interrupt source is on.
        unsafe { addr_of_mut!(ring0::idt).cast::<[u64; 2]>().add(vector).write([low, handler >> 32]) };
    }
}

fn add_task(vcpu: usize) {
    let stack = VCPU_PAGES_GPA + (vcpu as u64 + 1) * VCPU_PAGE_STRIDE;
    // SAFETY: only the boot vCPU runs yet, and `vcpu` is below MAX_VCPUS.
    let task = unsafe { addr_of_mut!(TASKS).cast::<[u8; TASK_SIZE]>().add(vcpu).cast::<u8>() };
    // SAFETY: the ring-0 stack pointer is at offset 4 of the task, unaligned.
    unsafe { task.add(4).cast::<u64>().write_unaligned(stack) };
    // SAFETY: the offset of the I/O bitmap, at 102; past the limit means none.
    unsafe { task.add(102).cast::<u16>().write_unaligned(TASK_SIZE as u16) };
    let base = task as u64;
    // Available 64-bit task state segment, present.
    let low = (TASK_SIZE as u64 - 1) | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base & 0xff00_0000) << 32;
    let slot = ring0::FIRST_TASK as usize / 8 + 2 * vcpu;
    // SAFETY: the GDT has two entries for each of MAX_VCPUS tasks; this vCPU has not started.
    let entry = unsafe { addr_of_mut!(ring0::gdt).cast::<u64>().add(slot) };
    // SAFETY: as above.
    unsafe { entry.cast::<[u64; 2]>().write([low, base >> 32]) };
}
