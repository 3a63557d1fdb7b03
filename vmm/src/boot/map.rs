//! The memory map as firmware would tell it: what is RAM, and what a kernel must keep off.

use super::acpi;
use crate::memory::layout::Layout;

/// Type of usable RAM, in E820 and in PVH's map alike.
pub(super) const RAM: u32 = 1;
/// Type of memory with ACPI tables that a kernel may use once it has read them.
const ACPI: u32 = 3;

/// Conventional memory ends here: above lies what kernels take for the BIOS data area.
const CONVENTIONAL_END: u64 = 0x9_fc00;
const HIGH: u64 = super::HIGH;

/// One range of the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: u64,
    pub(super) bytes: u64,
    pub(super) kind: u32,
}

/// The map for this layout.
pub(super) fn of(layout: &Layout) -> Vec<Range> {
    let mut map = vec![
        Range { start: 0, bytes: CONVENTIONAL_END, kind: RAM },
        Range { start: acpi::AT, bytes: HIGH - acpi::AT, kind: ACPI },
    ];
    for region in layout.regions() {
        let start = region.start.max(HIGH);
        map.push(Range { start, bytes: region.start + region.bytes - start, kind: RAM });
    }
    map
}

/// Where RAM below the hole ends.
pub(super) fn low_end(layout: &Layout) -> u64 {
    layout.regions().first().map_or(0, |region| region.start + region.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_leaves_out_the_bios_and_the_hole() {
        let map = of(&Layout::for_bytes(5 << 30).unwrap());
        let ranges: Vec<_> = map.iter().map(|r| (r.start, r.start + r.bytes)).collect();
        assert_eq!(ranges, [(0, 0x9fc00), (0xe_0000, 0x10_0000), (0x10_0000, 3 << 30), (4 << 30, 6 << 30)]);
    }
}
