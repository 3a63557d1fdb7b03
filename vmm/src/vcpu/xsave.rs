//! Leaf 0xd: the register state that XSAVE keeps, and how large it is (SDM volume 1, chapter 13).
//!
//! A component is there only if XSAVE is and if its feature is; the sizes are those of the components that are there.
//! Where one lies in the standard format is the CPU's own: AMD places PKRU otherwise on a CPU without AVX-512. The guest
//! keeps areas in that format and is never asked, so a host on which it is another is no host for it.

use super::features::{Feature, Register, Word};
use super::template::Template;

/// The legacy area and the header: what is always there.
const SMALLEST: u32 = 576;

/// x87 and SSE: there without XSAVE, too.
const LEGACY: u64 = 0b11;

/// Components that are of use only together (SDM volume 1, section 13.3: XCR0 takes all or none).
const TOGETHER: [u64; 3] = [0b11 << 3, 0b111 << 5, 0b11 << 17];

/// Features that keep state in each component. Without any of them it is not there.
const COMPONENTS: [(u32, &[&str]); 13] = [
    (2, &["avx"]),
    (3, &["mpx"]),
    (4, &["mpx"]),
    (5, &["avx512f"]),
    (6, &["avx512f"]),
    (7, &["avx512f"]),
    (8, &["intel-pt"]),
    (9, &["pku"]),
    (11, &["cet-ss", "cet-ibt"]),
    (12, &["cet-ss"]),
    (17, &["amx-tile"]),
    (18, &["amx-tile"]),
    (19, &["apx"]),
];

/// Makes leaf 0xd say what the features need.
pub(super) fn settle(cpu: &mut Template) {
    if !cpu.has_named("xsave") || cpu.leaf(0xd, 0).is_none() {
        cpu.cpuid.retain(|entry| entry.function != 0xd);
        return;
    }
    let (xcr0, xss) = (useful(cpu, user_components(cpu)), useful(cpu, supervisor_components(cpu)));
    cpu.cpuid
        .retain(|entry| entry.function != 0xd || entry.index < 2 || (xcr0 | xss) >> entry.index & 1 != 0);
    let whole = standard_size(cpu, xcr0);
    if let Some(entry) = cpu.leaf_mut(0xd, 0) {
        // EBX is the size for the components that are switched on: after reset, none but the first.
        (entry.eax, entry.ebx, entry.ecx, entry.edx) = (xcr0 as u32, SMALLEST, whole, (xcr0 >> 32) as u32);
    }
    let compact = cpu.has_named("xsavec") || cpu.has_named("xsaves");
    if let Some(entry) = cpu.leaf_mut(0xd, 1) {
        (entry.ebx, entry.ecx, entry.edx) =
            (if compact { SMALLEST } else { 0 }, xss as u32, (xss >> 32) as u32);
    }
}

/// The components that XCR0 may have, as a mask.
pub(crate) fn user_components(cpu: &Template) -> u64 {
    cpu.leaf(0xd, 0).map_or(0, |entry| u64::from(entry.eax) | u64::from(entry.edx) << 32)
}

/// The components that IA32_XSS may have, as a mask.
fn supervisor_components(cpu: &Template) -> u64 {
    let mask = cpu.leaf(0xd, 1).map_or(0, |entry| u64::from(entry.ecx) | u64::from(entry.edx) << 32);
    if cpu.has_named("xsaves") { mask } else { 0 }
}

/// How the area keeps one component: subleaf of leaf 0xd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    bytes: u32,
    offset: u32,
    /// ECX: whether it is for the supervisor, and aligned in the compacted format. Bit 2 follows XFD, a feature.
    flags: u32,
}

fn place(cpu: &Template, component: u32) -> Place {
    let (bytes, offset, flags) =
        cpu.leaf(0xd, component).map_or((0, 0, 0), |entry| (entry.eax, entry.ebx, entry.ecx & 0b11));
    Place { bytes, offset, flags }
}

/// The components that both have and keep otherwise.
fn differing(one: &Template, other: &Template) -> impl Iterator<Item = u32> {
    let both = user_components(one) & user_components(other) & !LEGACY;
    (0..64)
        .filter(move |component| both >> component & 1 != 0)
        .filter(|component| place(one, *component) != place(other, *component))
}

/// The same, as the bits of XCR0 that stand for them.
pub(super) fn displaced(one: &Template, other: &Template) -> Vec<Feature> {
    differing(one, other).map(bit_of).collect()
}

/// One line for each difference between where the guest's CPU keeps a component and where this host's does.
pub(super) fn displacements(given: &Template, here: &Template) -> Vec<String> {
    let lines = differing(given, here).flat_map(|component| {
        let name = bit_of(component).name().and_then(|name| name.strip_prefix("xsave-"));
        let name = name.map(|name| format!(" ({name})")).unwrap_or_default();
        let (there, here) = (place(given, component), place(here, component));
        let line = |there: u32, here: u32, words: String| {
            (there != here).then(|| format!("XSAVE component {component}{name} {words}"))
        };
        [
            line(
                there.offset,
                here.offset,
                format!("lies at {} bytes, here at {}", there.offset, here.offset),
            ),
            line(there.bytes, here.bytes, format!("has {} bytes, here {}", there.bytes, here.bytes)),
            line(
                there.flags,
                here.flags,
                format!("has flags {:#x} (ECX), here {:#x}", there.flags, here.flags),
            ),
        ]
    });
    lines.flatten().collect()
}

/// The bit of XCR0 for a component, as CPUID tells it.
fn bit_of(component: u32) -> Feature {
    let register = if component < 32 { Register::Eax } else { Register::Edx };
    Feature { word: Word::Cpuid(0xd, 0, register), bit: component % 32 }
}

/// Drops from a saved area what is of components that the guest's CPU does not have: they are as after reset, but some
/// kernels count them in, and a host without them would refuse the area.
pub(super) fn keep(area: &mut [u8], components: u64) {
    // XSTATE_BV: the first eight bytes of the header (SDM volume 1, section 13.4.2).
    if let Some(Ok(place)) = area.get_mut(512..520).map(<&mut [u8; 8]>::try_from) {
        *place = (u64::from_le_bytes(*place) & (components | LEGACY)).to_le_bytes();
    }
}

/// Those whose features are there, and whose companions are.
fn useful(cpu: &Template, mask: u64) -> u64 {
    let used = |component: u32| {
        let known = COMPONENTS.iter().find(|(known, _)| *known == component);
        known.is_none_or(|(_, features)| {
            features.iter().filter_map(|name| Feature::named(name)).any(|f| cpu.has(f))
        })
    };
    let mask = (0..64).filter(|component| used(*component)).fold(0, |all, one| all | mask & 1 << one);
    TOGETHER.into_iter().fold(mask, |mask, all| if mask & all == all { mask } else { mask & !all })
}

/// Bytes of the area in the standard format: to the end of the last component.
fn standard_size(cpu: &Template, xcr0: u64) -> u32 {
    let ends = cpu.cpuid.iter().filter(|entry| entry.function == 0xd && (2..64).contains(&entry.index));
    let ends = ends.filter(|entry| xcr0 >> entry.index & 1 != 0);
    ends.map(|entry| entry.ebx.saturating_add(entry.eax)).max().unwrap_or(0).max(SMALLEST)
}
