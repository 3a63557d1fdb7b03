//! Golden files of the machine's own sections, and that there are all of them.

use crate::state::{Stream, StreamWriter, golden};
use crate::vcpu::{CpuidEntry, KIND as VCPU, Template};

use super::chips::{CHIPS, CLOCK, ChipsImage};
use super::*;

/// XSAVE, MSRs, TSC: how much of it there is depends on the host.
const HOST: [u16; 3] = [4, 8, 9];

fn shape(vcpus: u32) -> MachineDescription {
    let leaf = CpuidEntry { function: 1, index: 2, flags: 3, eax: 4, ebx: 5, ecx: 6, edx: 7 };
    let cpu = Template { cpuid: vec![leaf], ..Template::default() };
    MachineDescription::new(3 << 30, vcpus, cpu, Vec::new(), 2_000_000, false, 4096)
}

#[test]
fn golden_machine() {
    let mut stream = StreamWriter::new(Vec::new());
    stream.section(&saved::MACHINE, 0, |section| saved::write_shape(section, &shape(5)));
    let written = stream.finish();
    golden::holds(&saved::MACHINE, &written, |bytes| {
        let stream = Stream::read(bytes, &[saved::MACHINE]).unwrap();
        let section = stream.section(&saved::MACHINE, 0).unwrap();
        saved::check_shape(section, &shape(5)).unwrap();
        assert!(saved::check_shape(section, &shape(6)).is_err());
        written.clone()
    });
}

/// The state of the demo guest, which writes the files of KVM's parts anew where that is asked for.
#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn golden_files_of_kvm_s_state_have_the_form_of_what_is_saved_now() {
    let (machine, _) = busy(1);
    let state = pause(machine).save().unwrap();
    let [vcpu, chips, clock] = [&VCPU, &CHIPS, &CLOCK].map(|kind| golden::only(kind, &state));
    golden::record(&VCPU, &crate::vcpu::with_every_field(&vcpu));
    golden::record(&CHIPS, &chips);
    golden::record(&CLOCK, &clock);
    golden::has_form(&VCPU, &vcpu, &HOST);
    golden::has_form(&CHIPS, &chips, &[]);
    golden::has_form(&CLOCK, &clock, &[]);
}

/// What is read of the chips and the clock is all of them.
#[test]
fn golden_chips_and_clock_are_read_wholly() {
    for ((chips_path, chips), (clock_path, clock)) in golden::of(&CHIPS)
        .iter()
        .flat_map(|chips| golden::of(&CLOCK).into_iter().map(move |clock| (chips, clock)))
    {
        let (read_chips, read_clock) =
            (Stream::read(chips, &[CHIPS]).unwrap(), Stream::read(&clock, &[CLOCK]).unwrap());
        let sections = (read_chips.section(&CHIPS, 0).unwrap(), read_clock.section(&CLOCK, 0).unwrap());
        let image = ChipsImage::from_sections(sections.0, sections.1).unwrap();
        let mut again = [StreamWriter::new(Vec::new()), StreamWriter::new(Vec::new())];
        again[0].section(&CHIPS, 0, |section| {
            section.required(4, image.pit);
            (1..).zip(image.irqchips).for_each(|(tag, chip)| section.required(tag, chip));
        });
        again[1].section(&CLOCK, 0, |section| section.required(1, &image.clock.to_le_bytes()));
        let again = again.map(StreamWriter::finish);
        assert!(*chips_path != golden::path(&CHIPS) || again[0] == *chips, "{}", chips_path.display());
        assert!(clock_path != golden::path(&CLOCK) || again[1] == clock, "{}", clock_path.display());
    }
}

#[test]
fn golden_files_are_one_of_each_kind_at_its_version_and_all_can_be_read() {
    for kind in saved::KINDS {
        let (path, name) = (golden::path(&kind), kind.name);
        let there = golden::asked_to_write() || path.exists();
        assert!(there, "section \"{name}\" has no {}: docs/state.md says how to make one", path.display());
    }
    for (path, bytes) in golden::all() {
        let read = Stream::read(&bytes, &saved::KINDS);
        let sections =
            saved::KINDS.iter().filter(|kind| read.as_ref().is_ok_and(|r| r.section(kind, 0).is_ok()));
        assert_eq!(sections.count(), 1, "{}: {:?}", path.display(), read.err());
    }
}
