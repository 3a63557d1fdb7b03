//! What ring 3 does about a fault: tell, and stop this vCPU. The others go on.

use crate::telemetry::{VCPU_PAGE_STRIDE, VCPU_PAGES_GPA, vcpu};
use crate::{apic, console, cpu};
use core::sync::atomic::Ordering::Relaxed;

/// Ring 0 arrives here with a fresh stack, after it has noted the fault in the vCPU's page.
#[unsafe(no_mangle)]
extern "C" fn fault_report(page: u64) -> ! {
    let index = ((page - VCPU_PAGES_GPA) / VCPU_PAGE_STRIDE) as usize;
    let get = |offset| cpu::vcpu(index, offset).load(Relaxed);
    console::line(format_args!(
        "FAULT vector={} error={:#x} rip={:#x} cr2={:#x} vcpu={index}",
        get(vcpu::FAULT_VECTOR),
        get(vcpu::FAULT_ERROR),
        get(vcpu::FAULT_RIP),
        get(vcpu::FAULT_CR2),
    ));
    stop()
}

/// Turns no more. The boot vCPU still empties the console.
pub(crate) fn stop() -> ! {
    loop {
        if apic::is_boot_vcpu() {
            console::flush();
        }
        core::hint::spin_loop();
    }
}
