//! Where the guest writes what it measures: addresses, offsets and codes, defined once.
//!
//! This file is compiled into the kernel (which writes), into the timer's assembly (through
//! `const` operands) and into the host library (which reads). So it holds constants only, and the
//! layout's description is at the front of the library. All fields are little-endian `u64`.

/// First byte of the telemetry: the header page.
pub const TELEMETRY_GPA: u64 = 0x10_0000;
/// First vCPU's page; vCPU `i` has the page `i * VCPU_PAGE_STRIDE` further on.
pub const VCPU_PAGES_GPA: u64 = TELEMETRY_GPA + PAGE_SIZE;
/// Distance between the pages of two neighbouring vCPUs.
pub const VCPU_PAGE_STRIDE: u64 = PAGE_SIZE;
/// vCPUs there is room for; any further ones are parked at boot.
pub const MAX_VCPUS: usize = 64;
/// The field a host writes to open a new measuring window.
pub const WINDOW_REQUEST_GPA: u64 = TELEMETRY_GPA + header::WINDOW_REQUEST as u64;
/// Bytes in a page, of the guest's memory and of the telemetry.
pub const PAGE_SIZE: u64 = 4096;
/// The header's first field, as a little-endian number: "VMTELEM1".
pub const MAGIC: u64 = u64::from_le_bytes(*b"VMTELEM1");
/// Version of this layout. It grows with every change that an older reader would misread.
pub const VERSION: u64 = 1;
/// Entries in the ring of past readings of each vCPU.
pub const HISTORY_ENTRIES: usize = 64;
/// Guest time between two entries of that ring.
pub const HISTORY_PERIOD_MS: u64 = 50;

/// Bytes of guest memory the telemetry of this many vCPUs takes, from [`TELEMETRY_GPA`].
pub const fn telemetry_span(vcpus: usize) -> usize {
    PAGE_SIZE as usize * (1 + vcpus)
}

/// Byte offsets in the header page.
pub mod header {
    /// [`super::MAGIC`], written last of the constant fields.
    pub const MAGIC: usize = 0x00;
    /// [`super::VERSION`].
    pub const VERSION: usize = 0x08;
    /// vCPUs that take part; 0 until all have been counted.
    pub const VCPUS: usize = 0x10;
    /// TSC frequency in kHz; 0 until known.
    pub const TSC_KHZ: usize = 0x18;
    /// Written by the host: any new value opens a window.
    pub const WINDOW_REQUEST: usize = 0x20;
    /// One of [`super::state`].
    pub const STATE: usize = 0x28;
    /// Violations found since boot.
    pub const CORRUPTIONS: usize = 0x30;
    /// The first violation: one of [`super::corruption`].
    pub const FIRST_KIND: usize = 0x38;
    /// The first violation: page number, or vCPU where the kind has no page.
    pub const FIRST_PAGE: usize = 0x40;
    /// The first violation: what should have been there.
    pub const FIRST_EXPECTED: usize = 0x48;
    /// The first violation: what was there.
    pub const FIRST_FOUND: usize = 0x50;
    /// Pages filled so far.
    pub const FILLED_PAGES: usize = 0x58;
    /// Pages of the working set.
    pub const WORKING_SET_PAGES: usize = 0x60;
    /// Console lines sent in full.
    pub const CONSOLE_LINES: usize = 0x68;
    /// One of [`super::workload`].
    pub const WORKLOAD: usize = 0x70;
    /// Period of the timer tick in microseconds.
    pub const TICK_US: usize = 0x78;
    /// Pages of RAM the guest was given.
    pub const MEMORY_PAGES: usize = 0x80;
}

/// Byte offsets in a vCPU's page.
pub mod vcpu {
    /// TSC at the last turn of the work loop.
    pub const LAST_TSC: usize = 0x00;
    /// Timer ticks since boot.
    pub const TICKS: usize = 0x08;
    /// Pages dirtied, units computed or idle turns, since work began.
    pub const WORK: usize = 0x10;
    /// Pages checked in the background.
    pub const VERIFIED: usize = 0x18;
    /// Longest gap between two turns since work began, in TSC cycles.
    pub const GAP_MAX: usize = 0x20;
    /// The same since the last console report.
    pub const GAP_REPORT: usize = 0x28;
    /// Longest gap between two ticks since work began, in TSC cycles.
    pub const TICK_GAP_MAX: usize = 0x30;
    /// The same since the last console report.
    pub const TICK_GAP_REPORT: usize = 0x38;
    /// The window request this vCPU has seen last.
    pub const WINDOW_ACK: usize = 0x40;
    /// Longest gap between two turns since that acknowledgement.
    pub const WINDOW_GAP: usize = 0x48;
    /// Longest time without a tick since that acknowledgement.
    pub const WINDOW_TICK_GAP: usize = 0x50;
    /// Private: TSC from which the next [`WINDOW_TICK_GAP`] counts.
    pub const WINDOW_TICK_FROM: usize = 0x58;
    /// TSC at the last tick.
    pub const LAST_TICK_TSC: usize = 0x60;
    /// Ticks whose TSC was lower than that of the tick before.
    pub const TICKS_BACKWARDS: usize = 0x68;
    /// History entries written so far; the next goes to this index modulo the ring's size.
    pub const HISTORY_INDEX: usize = 0x70;
    /// Private: top of the ring-3 stack.
    pub const USER_STACK: usize = 0x78;
    /// After a fault: its vector.
    pub const FAULT_VECTOR: usize = 0x80;
    /// After a fault: its error code, 0 where it has none.
    pub const FAULT_ERROR: usize = 0x88;
    /// After a fault: the address of the instruction.
    pub const FAULT_RIP: usize = 0x90;
    /// After a fault: CR2.
    pub const FAULT_CR2: usize = 0x98;
    /// TSC at which [`WINDOW_GAP`] began.
    pub const WINDOW_GAP_FROM: usize = 0xa0;
    /// The ring: [`super::HISTORY_ENTRIES`] pairs of TSC and [`WORK`].
    pub const HISTORY: usize = 0x100;
    /// From here to the end of the page: the ring-0 stack.
    pub const RING0_STACK: usize = 0xc00;
}

/// Values of [`header::STATE`].
pub mod state {
    /// Starting the vCPUs.
    pub const BOOTING: u64 = 0;
    /// Filling memory.
    pub const FILLING: u64 = 1;
    /// At work, all well.
    pub const WORKING: u64 = 2;
    /// At work, but a violation was found. Never goes back.
    pub const CORRUPT: u64 = 3;
    /// A vCPU took a fault and stopped. Never goes back.
    pub const FAULT: u64 = 4;
}

/// Values of [`header::WORKLOAD`].
pub mod workload {
    /// Only reads the TSC.
    pub const IDLE: u64 = 0;
    /// Writes pages of a working set.
    pub const DIRTY: u64 = 1;
    /// Computes, and checks what it computed.
    pub const COMPUTE: u64 = 2;
}

/// Values of [`header::FIRST_KIND`].
pub mod corruption {
    /// A stamp names another page.
    pub const PAGE_NUMBER: u64 = 1;
    /// A stamp has another generation than the last one written.
    pub const GENERATION: u64 = 2;
    /// A filled page has other content.
    pub const CONTENT: u64 = 3;
    /// The TSC went backwards between two turns of the work loop.
    pub const TSC: u64 = 4;
    /// The TSC went backwards between two ticks.
    pub const TICK_TSC: u64 = 5;
    /// The tick count went backwards.
    pub const TICK_COUNT: u64 = 6;
    /// A computation had another result than the time before.
    pub const COMPUTE: u64 = 7;
}
