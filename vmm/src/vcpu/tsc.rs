//! The guest's time stamp counter across hosts.
//!
//! The guest reads *base + offset*: base is the host's TSC at the guest's frequency. One pair of base and wall clock is
//! taken for all vCPUs of a machine, by whichever comes first, so that the offsets on the destination keep the
//! differences they had (the kernel's recipe, Documentation/virt/kvm/devices/vcpu.rst, section KVM_VCPU_TSC_OFFSET,
//! with the base measured in guest cycles so that it holds for scaled TSCs too).

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{SystemTime, UNIX_EPOCH};

use super::msrs;
use crate::kvm::ioctl;

/// IA32_TIME_STAMP_COUNTER.
pub(super) const IA32_TSC: u32 = 0x10;
/// IA32_TSC_DEADLINE.
pub(super) const IA32_TSC_DEADLINE: u32 = 0x6e0;

/// A moment, as the TSC and as the wall clock see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Base {
    /// The host's TSC in guest cycles.
    pub(super) tsc: u64,
    /// `CLOCK_REALTIME`, ns.
    pub(super) realtime_ns: u64,
}

/// A vCPU's TSC as it travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SavedTsc {
    /// Added to the base: what the guest reads.
    pub(super) offset: u64,
    /// When.
    pub(super) base: Base,
}

impl SavedTsc {
    pub(super) const BYTES: usize = 24;

    pub(super) fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        for (place, value) in
            bytes.chunks_exact_mut(8).zip([self.offset, self.base.tsc, self.base.realtime_ns])
        {
            place.copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::BYTES] = bytes.try_into().ok()?;
        let (words, _) = bytes.as_chunks::<8>();
        let [offset, tsc, realtime_ns] = [words[0], words[1], words[2]].map(u64::from_le_bytes);
        Some(Self { offset, base: Base { tsc, realtime_ns } })
    }

    /// The offset with which the guest's TSC goes on at `here`, time passed since included.
    pub(super) fn offset_at(self, here: Base, khz: u32) -> u64 {
        let passed_ns = here.realtime_ns.saturating_sub(self.base.realtime_ns);
        let cycles = u128::from(passed_ns) * u128::from(khz) / 1_000_000;
        self.offset.wrapping_add(self.base.tsc).wrapping_sub(here.tsc).wrapping_add(cycles as u64)
    }
}

/// Takes the pair through a vCPU.
pub(super) fn sample(fd: BorrowedFd<'_>) -> io::Result<Base> {
    let guest = msrs::read_one(fd, IA32_TSC)?;
    let realtime_ns = realtime_ns();
    Ok(Base { tsc: guest.wrapping_sub(ioctl::tsc_offset(fd)?), realtime_ns })
}

/// `CLOCK_REALTIME` in ns.
pub(crate) fn realtime_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_tsc_goes_on_by_the_time_passed(offset: u64, tsc: u64, other: u64, passed_us in 0_u64..1 << 40) {
            let there = Base { tsc, realtime_ns: 1 << 60 };
            let here = Base { tsc: other, realtime_ns: there.realtime_ns + passed_us * 1000 };
            let saved = SavedTsc { offset, base: there };
            let before = tsc.wrapping_add(offset);
            let after = other.wrapping_add(saved.offset_at(here, 2_000_000));
            prop_assert_eq!(after.wrapping_sub(before), passed_us * 2000);
        }
    }

    #[test]
    fn a_wall_clock_behind_does_not_turn_the_tsc_back() {
        let saved = SavedTsc { offset: 5, base: Base { tsc: 100, realtime_ns: 1000 } };
        let here = Base { tsc: 40, realtime_ns: 0 };
        assert_eq!(saved.offset_at(here, 1_000_000) + 40, 105);
    }

    #[test]
    fn bytes_there_and_back() {
        let saved = SavedTsc { offset: u64::MAX, base: Base { tsc: 2, realtime_ns: 3 } };
        assert_eq!(SavedTsc::from_bytes(&saved.to_bytes()), Some(saved));
        assert_eq!(SavedTsc::from_bytes(&[0; 23]), None);
    }
}
