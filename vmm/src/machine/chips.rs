//! The state that belongs to the VM, not to a vCPU: interrupt controllers, timer, clock.

use std::io;
use std::os::fd::BorrowedFd;

use crate::kvm::{KvmError, ioctl};
use crate::state::{Kind, Section, SectionWriter, StateError};

/// Interrupt controllers and timer.
pub(super) const CHIPS: Kind = Kind { name: "chips", version: 1, tags: &[1, 2, 3, 4] };
/// kvmclock.
pub(super) const CLOCK: Kind = Kind { name: "clock", version: 1, tags: &[1] };

/// Tag, name and KVM's number of each interrupt controller, in the order in which they are set.
const IRQCHIPS: [(u16, &str, u32); 3] = [(1, "pic master", 0), (2, "pic slave", 1), (3, "ioapic", 2)];
const IRQCHIP_BYTES: usize = 520;
const PIT: u16 = 4;
const PIT_BYTES: usize = 112;
const CLOCK_BYTES: usize = 48;

/// Appends the sections `chips` and `clock`. How many there are.
///
/// The timer runs on while the guest is paused: it is read before the interrupt controllers, and all of them before the
/// LAPICs, so that an interrupt on its way is seen twice at worst, never lost.
pub(super) fn save(vm: BorrowedFd<'_>, into: &mut Vec<u8>) -> Result<u32, KvmError> {
    SectionWriter::write(into, &CHIPS, 0, |section| save_chips(vm, section))?;
    SectionWriter::write(into, &CLOCK, 0, |section| {
        let mut clock = [0; CLOCK_BYTES];
        ioctl::get(vm, ioctl::GET_CLOCK, &mut clock).map_err(refused("read the clock"))?;
        section.required(1, &clock[..8]);
        Ok::<(), KvmError>(())
    })?;
    Ok(2)
}

fn save_chips(vm: BorrowedFd<'_>, section: &mut SectionWriter<'_>) -> Result<(), KvmError> {
    ioctl::get(vm, ioctl::GET_PIT2, section.room(PIT, PIT_BYTES)).map_err(refused("read the timer"))?;
    for (tag, _, number) in IRQCHIPS {
        let chip = section.room(tag, IRQCHIP_BYTES);
        chip[..4].copy_from_slice(&number.to_le_bytes());
        ioctl::get(vm, ioctl::GET_IRQCHIP, chip).map_err(refused("read an interrupt controller"))?;
    }
    Ok(())
}

/// The state of the chips and the clock, checked, ready to be put in place.
pub(super) struct ChipsImage<'a> {
    pub(super) irqchips: [&'a [u8]; 3],
    pub(super) pit: &'a [u8],
    pub(super) clock: u64,
}

impl<'a> ChipsImage<'a> {
    pub(super) fn from_sections(chips: &Section<'a>, clock: &Section<'a>) -> Result<Self, StateError> {
        let mut irqchips: [&[u8]; 3] = [&[]; 3];
        for (place, (tag, name, number)) in irqchips.iter_mut().zip(IRQCHIPS) {
            let chip = chips.exactly(tag, name, IRQCHIP_BYTES)?;
            if chip[..4] != number.to_le_bytes() {
                return Err(chips.impossible("number of an interrupt controller"));
            }
            *place = chip;
        }
        let pit = chips.exactly(PIT, "pit", PIT_BYTES)?;
        Ok(Self { irqchips, pit, clock: clock.number::<8>(1, "kvmclock")? })
    }

    /// After the vCPUs: setting the IOAPIC delivers what was pending in it to their LAPICs.
    pub(super) fn restore(&self, vm: BorrowedFd<'_>) -> Result<(), KvmError> {
        for chip in self.irqchips {
            ioctl::set(vm, ioctl::SET_IRQCHIP, chip).map_err(refused("set an interrupt controller"))?;
        }
        ioctl::set(vm, ioctl::SET_PIT2, self.pit).map_err(refused("set the timer"))?;
        // No flags: not KVM_CLOCK_REALTIME, which would let the guest's monotonic clock jump by the time of the move.
        let mut clock = [0; CLOCK_BYTES];
        clock[..8].copy_from_slice(&self.clock.to_le_bytes());
        ioctl::set(vm, ioctl::SET_CLOCK, &clock).map_err(refused("set the clock"))
    }
}

fn refused(what: &'static str) -> impl FnOnce(io::Error) -> KvmError {
    KvmError::refused(what)
}
