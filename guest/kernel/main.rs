//! The demo guest's kernel: boots, starts every vCPU, fills memory, works, and watches itself.
//!
//! Its subject is time and memory. Whoever pauses, moves or restores it can read off afterwards
//! how long it stood still (from its own TSC and ticks), and whether any page, the TSC, the ticks
//! or a register came back wrong. All Rust here runs in ring 3; ring 0 is `ring0`'s few hundred
//! bytes of assembly. There is no idle state and no scheduler: each vCPU turns its work loop.
//!
//! ```text
//! pvh_entry (ring 0) -> user_main: machine, console, tables, timer, other vCPUs -+
//! SIPI -> trampoline (ring 0) -> ap_main: timer, wait ---------------------------+-> fill -> work
//! ```

#![no_std]
#![no_main]
#![deny(unsafe_op_in_unsafe_fn)]

mod apic;
mod args;
mod console;
mod content;
mod cpu;
mod faults;
mod machine;
mod memory;
mod oracle;
mod plan;
mod pulse;
mod report;
mod ring0;
mod roster;
mod tables;
#[path = "../src/telemetry.rs"]
#[allow(dead_code, reason = "the host library uses the rest")]
mod telemetry;
mod work;

use crate::plan::Plan;
use crate::telemetry::{header, state};
use core::sync::atomic::Ordering::Relaxed;

/// The boot vCPU arrives here from ring 0.
#[unsafe(no_mangle)]
extern "C" fn user_main(_vcpu: usize, start_info: u64) -> ! {
    console::init();
    // SAFETY: ring 0 passes on the address the boot protocol put into ebx, untouched.
    let mut machine = unsafe { machine::Machine::from_start_info(start_info) };
    console::greet(&machine);
    let args = args::Args::parse(machine.command_line);
    tables::complete(&mut machine);
    let tsc_khz = apic::start(args.tsc_khz);
    apic::start_timer(0, args.tick_us);
    let vcpus = roster::gather(args.cpus, tsc_khz);
    let plan = plan::publish(Plan::new(&args, machine, vcpus, tsc_khz));
    run(0, plan)
}

/// Every other vCPU arrives here from ring 0.
#[unsafe(no_mangle)]
extern "C" fn ap_main(vcpu: usize) -> ! {
    apic::enable();
    roster::arrive();
    let plan = plan::wait();
    apic::start_timer(vcpu, plan.tick_us);
    run(vcpu, plan)
}

/// The life of a vCPU once the plan is known.
fn run(vcpu: usize, plan: &'static Plan) -> ! {
    let mut pulse = pulse::Pulse::new(vcpu, plan);
    let start = pulse.last;
    work::fill(plan, &mut pulse);
    roster::meet(plan.vcpus, &mut pulse);
    if vcpu == 0 {
        cpu::header(header::STATE).compare_exchange(state::FILLING, state::WORKING, Relaxed, Relaxed).ok();
        console::line(format_args!("filled in {} ms, working", (pulse.last - start) / plan.tsc_khz));
    }
    pulse.begin_work();
    work::work(plan, &mut pulse)
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    cpu::header(header::STATE).store(state::FAULT, Relaxed);
    console::line(format_args!("FAULT panic {info}"));
    faults::stop()
}
