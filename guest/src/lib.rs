//! The demo guest, and the contract between it and whoever hosts it.
//!
//! The guest measures what a migration does to it: it knows how long it stood still, and whether
//! every page, the TSC, the ticks and the registers came back right. [`IMAGE`] is the guest, an ELF
//! file with a PVH entry note; [`Telemetry`] is what a host reads out of its memory.
//!
//! # Command line
//!
//! Words separated by spaces; unknown words are ignored.
//!
//! | Word | Meaning | Default |
//! |---|---|---|
//! | `idle`, `dirty`, `compute` | the workload: only read the TSC; write pages; compute and check the result | `idle` |
//! | `ws=<MiB>` | `dirty`: working set, the first pages of the filled region (and beyond it) | 64 |
//! | `rate=<pages/s>` or `rate=max` | `dirty`: pages written, by all vCPUs together. A stall is not made up for | 10000 |
//! | `pattern=seq`, `random`, `hot` | `dirty`: which page is next; `hot` is 90 % of writes to 10 % of the set | `random` |
//! | `fill=<MiB>` | RAM filled before work begins | 0 |
//! | `content=random`, `text`, `zero` | with what: incompressible, compressible, nothing | `random` |
//! | `cpus=<n>` | vCPUs to wait for at boot; without it the guest waits 50 ms for a further one | |
//! | `tsc_khz=<n>` | frequency of the TSC; else CPUID 0x15, CPUID 0x40000010, or measured against the APIC timer | |
//! | `tick=<ms>` | period of the timer tick, 1 to 1000 | 10 |
//! | `reset-after=<s>` | after so many seconds of work say `resetting` and reset the machine, by port 0x64 | |
//! | `sabotage=stamp`, `generation`, `content`, `ticks`, `tsc`, `fault` | the oracle's own test: after 2 s of work break one thing, which then must be reported. `1` is `stamp` | |
//!
//! # Console
//!
//! A 16550 at port 0x3f8. Every line begins with its number, `[000001] `, and ends with CR LF; numbers
//! have no holes. Every second of work a report:
//! `[000012] t=3.0s work=10000/s gap=35us tick-gap=10.1ms verified=9800 corrupt=0`, where the gaps are
//! the longest since the report before. A violation is a line
//! `CORRUPT <what> page=<n> expected=<hex> found=<hex>` (`vcpu=<n>` where it is not about a page), a fault
//! a line `FAULT vector=<n> error=<hex> rip=<hex> cr2=<hex> vcpu=<n>`.
//!
//! # Telemetry
//!
//! At guest-physical [`TELEMETRY_GPA`]: a header page, then a page for each vCPU. All fields are
//! little-endian `u64`, written whole; times are TSC cycles. A host may read at any time.
//!
//! | Header | Field |
//! |---|---|
//! | 0x00 | magic, "VMTELEM1"; before it is there nothing else means anything but the state |
//! | 0x08 | version of this layout, [`VERSION`] |
//! | 0x10 | vCPUs that take part |
//! | 0x18 | TSC frequency, kHz |
//! | 0x20 | **window request: written by the host** |
//! | 0x28 | state: 0 booting, 1 filling, 2 working, 3 corrupt, 4 fault |
//! | 0x30 | violations found |
//! | 0x38, 0x40, 0x48, 0x50 | the first one: kind (see [`CorruptionKind`]), page or vCPU, expected, found |
//! | 0x58 | pages filled so far |
//! | 0x60 | pages of the working set |
//! | 0x68 | console lines sent in full |
//! | 0x70 | workload: 0 idle, 1 dirty, 2 compute |
//! | 0x78 | tick period, microseconds |
//! | 0x80 | pages of RAM given to the guest |
//!
//! | vCPU page | Field |
//! |---|---|
//! | 0x00 | TSC at the last turn of the work loop |
//! | 0x08 | timer ticks |
//! | 0x10 | work: pages dirtied, units computed, or idle turns |
//! | 0x18 | pages verified in the background |
//! | 0x20, 0x28 | longest gap between two turns: since work began; since the last report |
//! | 0x30, 0x38 | longest gap between two ticks: likewise |
//! | 0x40 | window acknowledged |
//! | 0x48, 0x50 | in that window: longest gap between turns; longest time without a tick |
//! | 0x58 | private: where the next tick gap of the window begins |
//! | 0x60 | TSC at the last tick |
//! | 0x68 | ticks whose TSC was below that of the tick before |
//! | 0x70 | history entries written |
//! | 0x78 | private: ring-3 stack |
//! | 0x80, 0x88, 0x90, 0x98 | after a fault: vector, error code, instruction, CR2 |
//! | 0xa0 | in that window: TSC at which the longest gap between turns began |
//! | 0x100 to 0x4ff | history: 64 entries {TSC, work}, one every 50 ms; entry `n` is at `n mod 64` |
//! | 0xc00 to 0xfff | ring-0 stack |
//!
//! **Windows.** To measure what an operation costs the guest, a host writes a value it has not used
//! before to [`WINDOW_REQUEST_GPA`] and waits until every vCPU has acknowledged it. Each vCPU then counts
//! only what happens after its acknowledgement: a stall that ended before is in no window, one that
//! began after it or that the acknowledgement falls into counts from there.
//!
//! **What an idle guest dirties**: of each vCPU the telemetry page and one page of stack; with every
//! report the header and the console's ring. A working set needs four bytes more for each page (the table of generations).

mod kinds;
mod parse;
pub mod telemetry;

pub use kinds::{Corruption, CorruptionKind, State, Workload};
pub use parse::{Fault, HistoryEntry, ParseError, Telemetry, VcpuTelemetry};
pub use telemetry::{
    HISTORY_ENTRIES, HISTORY_PERIOD_MS, MAGIC, MAX_VCPUS, PAGE_SIZE, TELEMETRY_GPA, VCPU_PAGE_STRIDE,
    VCPU_PAGES_GPA, VERSION, WINDOW_REQUEST_GPA, telemetry_span,
};

/// The guest: a static ELF file for 1 MiB and up, with a PVH note for its 32-bit entry.
pub static IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest.elf"));
