//! Everything that runs in ring 0: entry, the way to ring 3, the timer tick, faults, AP start.
//!
//! It is all assembly and all short, because some hosts emulate ring 0 an instruction at a time
//! (about 1.7 million a second, and no SSE), while ring 3 runs natively everywhere. So the tables
//! are initialised data where the linker can do it, ring 3 fills the rest before it is needed
//! (all memory is user-writable), and interrupt handlers do what only they can do.
//!
//! Per-vCPU data costs nothing to find: the ring-0 stack of a vCPU is the end of its telemetry
//! page, so `rsp` rounded down is the page. And a tick dirties that one page only.

use crate::telemetry::{VCPU_PAGES_GPA, header, vcpu};
use core::arch::global_asm;

/// Ring-3 selectors, at the places Linux has them: some hosts run only these natively.
pub(crate) const USER_DATA: u64 = 0x2b;
pub(crate) const USER_CODE: u64 = 0x33;
/// In ring 3: interrupts on, and IOPL 3. The ports are open twice, for no host honours both ways all the time: KVM without
/// hardware virtualization knows only the bitmap, and QEMU's emulated processors lose the bitmap of a guest that has
/// moved (they want the task not busy, which KVM saves as busy).
const USER_RFLAGS: u64 = 0x3202;
/// Ring-0 64-bit code.
pub(crate) const KERNEL_CODE: u16 = 0x10;
/// Selector of vCPU 0's task; the others follow, 16 bytes each.
pub(crate) const FIRST_TASK: u64 = 0x40;
/// Vector of the timer tick.
pub(crate) const TIMER_VECTOR: u8 = 0x20;
/// Where ring 3 copies the trampoline: any page below 1 MiB; its number is the SIPI vector.
pub(crate) const TRAMPOLINE: u64 = 0x8000;
/// Bytes of ring-3 stack of a vCPU.
pub(crate) const USER_STACK_SIZE: usize = 0x4000;
/// Fault vectors, each with a stub of [`FAULT_STUB_SIZE`] bytes.
pub(crate) const FAULTS: usize = 32;
pub(crate) const FAULT_STUB_SIZE: usize = 16;

unsafe extern "C" {
    pub(crate) static mut gdt: [u64; 8 + 2 * crate::telemetry::MAX_VCPUS];
    pub(crate) static mut idt: [[u64; 2]; 256];
    pub(crate) static mut identity_pdpt: [u64; 512];
    pub(crate) static fault_stubs: u8;
    pub(crate) static timer_tick: u8;
    pub(crate) static stray_interrupt: u8;
    pub(crate) static trampoline_start: u8;
    pub(crate) static trampoline_end: u8;
    pub(crate) static image_end: u8;
}

// Telemetry, tables, and the note by which loaders find the entry
// (XEN_ELFNOTE_PHYS32_ENTRY = 18, Xen's include/public/elfnote.h).
global_asm!(
    ".section .telemetry, \"aw\", @nobits",
    ".skip {VCPU_PAGES} - 0x100000 + 64 * 4096",

    ".section .note.Xen, \"a\", @note",
    ".balign 4",
    ".long 4, 8, 18",
    ".asciz \"Xen\"",
    ".quad pvh_entry",

    // 104 bytes of task state: only the ring-0 stack matters. Then the I/O permission bitmap, all
    // ports open (see USER_RFLAGS). It ends with a byte of ones.
    // Only vCPU 0 has one, for it alone owns the console.
    ".section .tss, \"aw\"",
    ".balign 4096",
    ".global vcpu0_tss",
    "vcpu0_tss:",
    ".long 0",
    ".quad {VCPU_PAGES} + 0x1000",
    ".skip 90",
    ".word 104",
    ".skip 8192",
    ".byte 0xff",

    // Accessed and dirty bits are set beforehand, so that the tables need never be written.
    ".section .tables, \"aw\"",
    ".balign 4096",
    "identity_pml4: .quad identity_pdpt + 0x27",
    ".skip 511 * 8",
    ".global identity_pdpt",
    "identity_pdpt: .quad identity_pd + 0x27, identity_pd + 0x1027, identity_pd + 0x2027, identity_pd + 0x3027",
    ".skip 508 * 8",
    // 4 GiB of 2 MiB pages: present, writable, user; the local APIC's page uncached.
    "identity_pd:",
    ".set page, 0",
    ".rept 2039",
    ".quad page * 0x200000 + 0xe7",
    ".set page, page + 1",
    ".endr",
    ".quad page * 0x200000 + 0xff",
    ".set page, page + 1",
    ".rept 8",
    ".quad page * 0x200000 + 0xe7",
    ".set page, page + 1",
    ".endr",

    ".balign 16",
    ".global gdt",
    "gdt: .quad 0",
    ".quad 0x00cf9b000000ffff", // 0x08 ring-0 code, 32 bit
    ".quad 0x00af9b000000ffff", // 0x10 ring-0 code, 64 bit
    ".quad 0x00cf93000000ffff", // 0x18 ring-0 data
    ".quad 0",
    ".quad 0x00cff3000000ffff", // 0x2b ring-3 data
    ".quad 0x00affb000000ffff", // 0x33 ring-3 code, 64 bit
    ".quad 0",
    ".quad 0x0000891410002068, 0", // 0x40 task of vCPU 0: base 0x141000, limit 104 + 8192
    ".skip 63 * 16",
    ".balign 8",
    ".word 0",
    "gdt_pointer: .word 8 * 8 + 64 * 16 - 1",
    ".long gdt",
    ".balign 8",
    ".word 0, 0, 0",
    "idt_pointer: .word 256 * 16 - 1",
    ".quad idt",
    // Next vCPU to arrive; the boot vCPU is number 0.
    ".balign 8",
    ".global next_vcpu",
    "next_vcpu: .quad 1",

    ".section .bss",
    ".balign 4096",
    ".global idt",
    "idt: .skip 4096",

    // Last of what is zeroed, so that what a guest with few vCPUs uses lies together: in a huge page of the host's, where it has them.
    ".section .stacks, \"aw\", @nobits",
    ".balign 4096",
    "user_stacks: .skip 64 * {USER_STACK_SIZE}",

    VCPU_PAGES = const VCPU_PAGES_GPA,
    USER_STACK_SIZE = const USER_STACK_SIZE,
);

// Entry (32 bit, paging off, ebx = start info), the common way into long mode, and to ring 3.
global_asm!(
    ".section .ring0, \"ax\"",
    ".code32",
    ".global pvh_entry",
    "pvh_entry:",
    "cli",
    "cld",
    "lgdt [gdt_pointer]",
    // The BIOS's interrupt controllers stay silent for good.
    "mov al, 0xff",
    "out 0x21, al",
    "out 0xa1, al",
    "xor edi, edi",
    "mov esi, offset user_main",

    // edi = vCPU, esi = where to go in ring 3, ebx = its second argument
    "enter_long_mode:",
    "mov eax, 0x620", // PAE, OSFXSR, OSXMMEXCPT
    "mov cr4, eax",
    "mov eax, offset identity_pml4",
    "mov cr3, eax",
    "mov ecx, 0xc0000080", // EFER
    "mov eax, 0x100",      // LME
    "xor edx, edx",
    "wrmsr",
    "mov eax, 0x80000033", // PG, NE, ET, MP, PE
    "mov cr0, eax",
    ".byte 0xea",
    ".long to_ring3",
    ".word {KERNEL_CODE}",

    ".code64",
    "to_ring3:",
    "mov eax, edi",
    "shl eax, 4",
    "add eax, {FIRST_TASK}",
    "ltr ax",
    "lidt [idt_pointer]",
    "mov edx, edi",
    "shl edx, 12",
    "add edx, {VCPU_PAGES}", // this vCPU's page
    "lea rsp, [rdx + 0x1000]",
    "lea eax, [rdi + 1]",
    "imul eax, eax, {USER_STACK_SIZE}",
    "add eax, offset user_stacks - 8", // as after a call: the ABI wants rsp + 8 aligned
    "mov [rdx + {USER_STACK}], rax",
    "push {USER_DATA}",
    "push rax",
    "push {RFLAGS}",
    "push {USER_CODE}",
    "push rsi",
    "mov esi, ebx",
    "iretq",

    KERNEL_CODE = const KERNEL_CODE,
    FIRST_TASK = const FIRST_TASK,
    VCPU_PAGES = const VCPU_PAGES_GPA,
    USER_STACK_SIZE = const USER_STACK_SIZE,
    USER_STACK = const vcpu::USER_STACK,
    USER_DATA = const USER_DATA,
    USER_CODE = const USER_CODE,
    RFLAGS = const USER_RFLAGS,
);

// The other vCPUs: from real mode at TRAMPOLINE, each taking the next number.
global_asm!(
    ".section .ring0, \"ax\"",
    ".code16",
    ".global trampoline_start, trampoline_end",
    "trampoline_start:",
    "cli",
    "xor ax, ax",
    "mov ds, ax",
    // 66 0f 01 16: lgdt with a 32-bit base from a 16-bit address
    ".byte 0x66, 0x0f, 0x01, 0x16",
    ".word {TRAMPOLINE} + (trampoline_gdt - trampoline_start)",
    "mov eax, 0x11", // ET, PE
    "mov cr0, eax",
    ".byte 0x66, 0xea",
    ".long ap_protected",
    ".word 0x08",
    "trampoline_gdt: .word 8 * 8 + 64 * 16 - 1",
    ".long gdt",
    "trampoline_end:",

    ".code32",
    "ap_protected:",
    "mov eax, 0x18",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "mov edi, 1",
    "lock xadd dword ptr [next_vcpu], edi",
    "cmp edi, 64",
    "jae ap_park",
    "mov esi, offset ap_main",
    "jmp enter_long_mode",
    // Too late or one too many.
    "ap_park:",
    "cli",
    "hlt",
    "jmp ap_park",
    ".code64",

    TRAMPOLINE = const TRAMPOLINE,
);

// The tick: count it, measure the gap to the one before, acknowledge it.
global_asm!(
    ".section .ring0, \"ax\"",
    ".code64",
    ".global timer_tick, stray_interrupt",
    "timer_tick:",
    "push rax",
    "push rbx",
    "push rcx",
    "push rdx",
    "mov rbx, rsp",
    "and rbx, -4096",
    "rdtsc",
    "shl rdx, 32",
    "or rax, rdx",
    "inc qword ptr [rbx + {TICKS}]",
    "mov rcx, rax",
    "sub rcx, [rbx + {LAST_TICK_TSC}]",
    "mov [rbx + {LAST_TICK_TSC}], rax",
    "jb 8f",
    "cmp rcx, [rbx + {TICK_GAP_MAX}]",
    "jbe 2f",
    "mov [rbx + {TICK_GAP_MAX}], rcx",
    "2:",
    "cmp rcx, [rbx + {TICK_GAP_REPORT}]",
    "jbe 3f",
    "mov [rbx + {TICK_GAP_REPORT}], rcx",
    "3:",
    // In a window only that part of a gap counts that lies in the window.
    "mov rcx, rax",
    "sub rcx, [rbx + {WINDOW_TICK_FROM}]",
    "cmp rcx, [rbx + {WINDOW_TICK_GAP}]",
    "jbe 4f",
    "mov [rbx + {WINDOW_TICK_GAP}], rcx",
    "4:",
    "mov [rbx + {WINDOW_TICK_FROM}], rax",
    "mov eax, 0xfee000b0", // end of interrupt
    "mov dword ptr [rax], 0",
    "pop rdx",
    "pop rcx",
    "pop rbx",
    "pop rax",
    "stray_interrupt:",
    "iretq",
    "8:",
    "inc qword ptr [rbx + {TICKS_BACKWARDS}]",
    "jmp 4b",

    TICKS = const vcpu::TICKS,
    LAST_TICK_TSC = const vcpu::LAST_TICK_TSC,
    TICK_GAP_MAX = const vcpu::TICK_GAP_MAX,
    TICK_GAP_REPORT = const vcpu::TICK_GAP_REPORT,
    WINDOW_TICK_FROM = const vcpu::WINDOW_TICK_FROM,
    WINDOW_TICK_GAP = const vcpu::WINDOW_TICK_GAP,
    TICKS_BACKWARDS = const vcpu::TICKS_BACKWARDS,
);

// Faults: none is expected. What is known goes to the vCPU's page, ring 3 tells it.
global_asm!(
    ".section .ring0, \"ax\"",
    ".code64",
    ".global fault_stubs",
    ".balign 16",
    "fault_stubs:",
    ".set vector, 0",
    ".rept {FAULTS}",
    ".balign {FAULT_STUB_SIZE}",
    // These push an error code themselves (AMD APM volume 2, 8.2): 8, 10-14, 17, 21, 29, 30.
    ".if ((0x60227d00 >> vector) & 1) == 0",
    "push 0",
    ".endif",
    "push vector",
    "jmp fault_common",
    ".set vector, vector + 1",
    ".endr",
    ".balign {FAULT_STUB_SIZE}",

    "fault_common:",
    "mov rbx, rsp",
    "and rbx, -4096",
    "pop rax",
    "mov [rbx + {FAULT_VECTOR}], rax",
    "pop rax",
    "mov [rbx + {FAULT_ERROR}], rax",
    "pop rax",
    "mov [rbx + {FAULT_RIP}], rax",
    "mov rax, cr2",
    "mov [rbx + {FAULT_CR2}], rax",
    "mov dword ptr [{HEADER_STATE}], 4",
    "lea rsp, [rbx + 0x1000]",
    "push {USER_DATA}",
    "push qword ptr [rbx + {USER_STACK}]",
    "push {RFLAGS}",
    "push {USER_CODE}",
    "push offset fault_report",
    "mov rdi, rbx",
    "iretq",

    FAULTS = const FAULTS,
    FAULT_STUB_SIZE = const FAULT_STUB_SIZE,
    FAULT_VECTOR = const vcpu::FAULT_VECTOR,
    FAULT_ERROR = const vcpu::FAULT_ERROR,
    FAULT_RIP = const vcpu::FAULT_RIP,
    FAULT_CR2 = const vcpu::FAULT_CR2,
    USER_STACK = const vcpu::USER_STACK,
    USER_DATA = const USER_DATA,
    USER_CODE = const USER_CODE,
    RFLAGS = const USER_RFLAGS,
    HEADER_STATE = const crate::telemetry::TELEMETRY_GPA as usize + header::STATE,
);
