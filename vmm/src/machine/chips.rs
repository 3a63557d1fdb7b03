//! The state that belongs to the VM, not to a vCPU: interrupt controllers, timer, clock.

use std::io;
use std::os::fd::BorrowedFd;

use crate::kvm::{KvmError, ioctl};
use crate::state::{Kind, Section, SectionWriter, StateError};
use crate::vcpu::realtime_ns;

/// Interrupt controllers and timer.
pub(super) const CHIPS: Kind = Kind { name: "chips", version: 1, tags: &[1, 2, 3, 4] };
/// kvmclock.
pub(super) const CLOCK: Kind = Kind { name: "clock", version: 1, tags: &[1, 2] };

/// What the guest's kvmclock does while it stands still. Its TSC always goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PausedClock {
    /// It goes on from where it stopped.
    StandsStill,
    /// It goes on as if it had not stopped, by the hosts' `CLOCK_REALTIME`.
    RunsOn,
}

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
pub(super) fn save(vm: BorrowedFd<'_>, paused: PausedClock, into: &mut Vec<u8>) -> Result<u32, KvmError> {
    SectionWriter::write(into, &CHIPS, 0, |section| save_chips(vm, section))?;
    SectionWriter::write(into, &CLOCK, 0, |section| {
        let mut clock = [0; CLOCK_BYTES];
        ioctl::get(vm, ioctl::GET_CLOCK, &mut clock).map_err(refused("read the clock"))?;
        section.required(1, &clock[..8]);
        if paused == PausedClock::RunsOn {
            section.required(2, &realtime_ns().to_le_bytes());
        }
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
    /// `CLOCK_REALTIME` when it was read, if it is to have gone on since.
    pub(super) read_at: Option<u64>,
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
        let read_at = clock.optional(2).map(|_| clock.number::<8>(2, "time of kvmclock")).transpose()?;
        Ok(Self { irqchips, pit, clock: clock.number::<8>(1, "kvmclock")?, read_at })
    }

    /// After the vCPUs: setting the IOAPIC delivers what was pending in it to their LAPICs.
    pub(super) fn restore(&self, vm: BorrowedFd<'_>) -> Result<(), KvmError> {
        for chip in self.irqchips {
            ioctl::set(vm, ioctl::SET_IRQCHIP, chip).map_err(refused("set an interrupt controller"))?;
        }
        ioctl::set(vm, ioctl::SET_PIT2, self.pit).map_err(refused("set the timer"))?;
        // No flags: KVM_CLOCK_REALTIME would do the same as is done here, on some hosts.
        let mut clock = [0; CLOCK_BYTES];
        clock[..8].copy_from_slice(&self.clock_at(realtime_ns()).to_le_bytes());
        ioctl::set(vm, ioctl::SET_CLOCK, &clock).map_err(refused("set the clock"))
    }
}

impl ChipsImage<'_> {
    /// What the clock is to show at this `CLOCK_REALTIME`. Never less than it has shown: hosts' clocks may differ.
    fn clock_at(&self, now: u64) -> u64 {
        let passed = self.read_at.map_or(0, |read_at| now.saturating_sub(read_at));
        self.clock.saturating_add(passed)
    }
}

fn refused(what: &'static str) -> impl FnOnce(io::Error) -> KvmError {
    KvmError::refused(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_stands_still_or_goes_on_and_never_goes_back() {
        let image = |read_at| ChipsImage { irqchips: [&[]; 3], pit: &[], clock: 1_000, read_at };
        assert_eq!(image(None).clock_at(99_999), 1_000);
        assert_eq!(image(Some(500)).clock_at(700), 1_200);
        assert_eq!(image(Some(500)).clock_at(400), 1_000, "the other host's clock is ahead");
        assert_eq!(image(Some(0)).clock_at(u64::MAX), u64::MAX);
    }
}
