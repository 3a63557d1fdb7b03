//! The image is what loaders expect and what the contract promises.

use guest::{IMAGE, MAX_VCPUS, TELEMETRY_GPA, telemetry_span};

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// `XEN_ELFNOTE_PHYS32_ENTRY` of Xen's include/public/elfnote.h.
const PHYS32_ENTRY: u32 = 18;

struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    physical: u64,
    in_file: u64,
    in_memory: u64,
}

fn number<const N: usize>(at: u64) -> [u8; N] {
    *IMAGE[at as usize..].first_chunk().expect("within the image")
}

fn u64_at(at: u64) -> u64 {
    u64::from_le_bytes(number(at))
}

fn u32_at(at: u64) -> u32 {
    u32::from_le_bytes(number(at))
}

fn segments() -> Vec<Segment> {
    let table = u64_at(32);
    let count = u64::from(u16::from_le_bytes(number(56)));
    (0..count)
        .map(|i| table + i * 56)
        .map(|at| Segment {
            kind: u32_at(at),
            offset: u64_at(at + 8),
            address: u64_at(at + 16),
            physical: u64_at(at + 24),
            in_file: u64_at(at + 32),
            in_memory: u64_at(at + 40),
        })
        .collect()
}

#[test]
fn is_a_static_64_bit_elf() {
    assert_eq!(&IMAGE[..6], b"\x7fELF\x02\x01");
    assert_eq!(u16::from_le_bytes(number(16)), 2, "an executable at fixed addresses");
    assert_eq!(u16::from_le_bytes(number(18)), 62, "for x86-64");
    assert!(segments().iter().all(|s| s.kind == PT_LOAD || s.kind == PT_NOTE), "nothing to interpret");
}

#[test]
fn telemetry_is_at_its_address_and_zero() {
    let first = segments().into_iter().find(|s| s.kind == PT_LOAD).expect("something to load");
    assert_eq!(first.physical, TELEMETRY_GPA);
    assert_eq!(first.in_file, 0);
    assert_eq!(first.in_memory, telemetry_span(MAX_VCPUS) as u64);
}

#[test]
fn segments_lie_where_they_run_without_overlap() {
    let loads: Vec<_> = segments().into_iter().filter(|s| s.kind == PT_LOAD).collect();
    assert!(loads.iter().all(|s| s.address == s.physical && s.in_file <= s.in_memory));
    assert!(loads.iter().all(|s| s.offset + s.in_file <= IMAGE.len() as u64));
    assert!(loads.windows(2).all(|pair| pair[0].physical + pair[0].in_memory <= pair[1].physical));
}

#[test]
fn note_names_an_entry_in_the_image() {
    let note = segments().into_iter().find(|s| s.kind == PT_NOTE).expect("a note");
    let (name, size, kind) = (u32_at(note.offset), u32_at(note.offset + 4), u32_at(note.offset + 8));
    assert_eq!((name, size, kind), (4, 8, PHYS32_ENTRY));
    assert_eq!(&number::<4>(note.offset + 12), b"Xen\0");
    let entry = u64_at(note.offset + 16);
    let in_file = |s: &Segment| (s.physical..s.physical + s.in_file).contains(&entry);
    assert!(segments().iter().any(|s| s.kind == PT_LOAD && in_file(s)), "{entry:#x}");
    assert_eq!(u64_at(24), entry, "the ELF entry is the same");
}
