//! The address map: which guest-physical ranges are RAM.
//!
//! ```text
//! 0            3 GiB          4 GiB
//! |    RAM      |   hole       |    RAM (what did not fit below)  …
//!                ^ virtio 0xd0000000, IOAPIC 0xfec00000, LAPIC 0xfee00000, KVM's own pages
//! ```

use super::MemoryError;

/// Where the hole for devices begins: the lowest address that PCs keep for them.
pub const HOLE_START: u64 = 3 << 30;
/// Where virtio devices are, inside the hole, far from its start and from what PCs have at its end.
pub const VIRTIO_START: u64 = 0xd000_0000;
/// Where RAM goes on above the hole.
pub const HOLE_END: u64 = 4 << 30;
/// Three pages for KVM's task state segment, inside the hole (needed by Intel hosts without unrestricted guest).
pub const KVM_TSS_ADDRESS: u64 = 0xfffb_d000;
/// One page for KVM's identity map, just below it.
pub const KVM_IDENTITY_ADDRESS: u64 = 0xfffb_c000;

/// RAM comes in huge pages' size, so that the host can back it with them.
const GRAIN: u64 = 2 << 20;
pub(crate) const MIN_BYTES: u64 = 16 << 20;
/// Far below every x86-64 host's physical address width (at least 36 bits), above what is tested.
const MAX_GIB: u64 = 1024;

/// One contiguous range of RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegionSpec {
    /// Guest-physical address of its first byte.
    pub start: u64,
    /// Size.
    pub bytes: u64,
}

/// Where RAM lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    regions: Vec<RegionSpec>,
}

impl Layout {
    /// The layout for a guest with this much RAM.
    ///
    /// # Errors
    /// When it is not a multiple of 2 MiB, too little or too much.
    pub fn for_bytes(bytes: u64) -> Result<Self, MemoryError> {
        if !bytes.is_multiple_of(GRAIN) || !(MIN_BYTES..=MAX_GIB << 30).contains(&bytes) {
            return Err(MemoryError::Size { bytes, max_gib: MAX_GIB });
        }
        let low = bytes.min(HOLE_START);
        let mut regions = vec![RegionSpec { start: 0, bytes: low }];
        if bytes > low {
            regions.push(RegionSpec { start: HOLE_END, bytes: bytes - low });
        }
        Ok(Self { regions })
    }

    /// RAM, ascending.
    #[must_use]
    pub fn regions(&self) -> &[RegionSpec] {
        &self.regions
    }

    /// One past the last address of RAM.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.regions.iter().map(|region| region.start + region.bytes).max().unwrap_or(0)
    }

    /// All of RAM, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.regions.iter().map(|r| r.bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_beyond_three_gib_goes_above_the_hole() {
        let layout = Layout::for_bytes(8 << 30).unwrap();
        let [low, high] = layout.regions() else { panic!("two regions") };
        assert_eq!((low.start, low.bytes), (0, HOLE_START));
        assert_eq!((high.start, high.bytes), (HOLE_END, 5 << 30));
        assert_eq!(layout.bytes(), 8 << 30);
    }

    #[test]
    fn odd_sizes_are_refused_with_the_way_out() {
        let error = Layout::for_bytes((16 << 20) + 4096).unwrap_err().to_string();
        assert!(error.contains("16781312") && error.contains("multiple of 2 MiB"), "{error}");
        assert!(Layout::for_bytes(0).is_err());
        assert!(Layout::for_bytes(u64::MAX - (2 << 20) + 1).is_err());
    }
}
