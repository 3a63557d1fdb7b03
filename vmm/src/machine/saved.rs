//! Saving and restoring a paused machine: the sections in the order of `docs/state.md`.

use vm_memory::{Bytes, GuestAddress};

use super::MachineError;
use super::board::Board;
use super::chips::{self, ChipsImage, PausedClock};
use super::description::MachineDescription;
use crate::devices::virtio::{BLOCK_KIND, CONSOLE_KIND, NET_KIND, RNG_KIND};
use crate::devices::{POWER_KIND, PowerState, SERIAL_KIND, SerialState};
use crate::state::{Kind, Section, SectionWriter, StateError, Stream, StreamWriter};
use crate::vcpu::{KIND as VCPU, SourceClock, StoodStill, VcpuImage, Vcpus};

/// What the state belongs to.
pub(super) const MACHINE: Kind = Kind { name: "machine", version: 1, tags: &[1, 2, 3] };

/// All sections there are.
pub(crate) const KINDS: [Kind; 10] = [
    MACHINE,
    VCPU,
    chips::CHIPS,
    chips::CLOCK,
    SERIAL_KIND,
    POWER_KIND,
    RNG_KIND,
    BLOCK_KIND,
    NET_KIND,
    CONSOLE_KIND,
];

/// More than a vCPU's section takes on most hosts: so that the buffer need not grow during the pause.
const USUAL_VCPU_BYTES: usize = 16 << 10;

pub(super) fn save(board: &Board, vcpus: &Vcpus, clock: PausedClock) -> Result<Vec<u8>, MachineError> {
    let shape = board.shape();
    let mut stream = StreamWriter::new(Vec::with_capacity((1 + shape.vcpus as usize) * USUAL_VCPU_BYTES));
    stream.section(&MACHINE, 0, |section| write_shape(section, shape));
    let mut others = Vec::with_capacity(4096);
    let chips = chips::save(board.vm_fd(), clock, &mut others)?;
    vcpus.save(&mut stream)?;
    stream.append(chips, &others);
    stream.section(&SERIAL_KIND, 0, |section| board.serial().state().write(section));
    stream.section(&POWER_KIND, 0, |section| board.power().state().write(section));
    board.virtio().save(&mut stream);
    Ok(stream.finish())
}

/// A saved state as far as it needs no device to be read: checked, ready to be put in place.
pub(crate) struct Saved<'a> {
    #[expect(clippy::vec_box, reason = "each is handed to its vCPU's thread as it is")]
    pub(crate) vcpus: Vec<Box<VcpuImage>>,
    chips: ChipsImage<'a>,
    pub(crate) serial: SerialState,
    pub(crate) power: PowerState,
}

impl<'a> Saved<'a> {
    /// Of a machine of this shape.
    pub(crate) fn read(stream: &Stream<'a>, shape: &MachineDescription) -> Result<Self, StateError> {
        check_shape(stream.section(&MACHINE, 0)?, shape)?;
        let vcpus = vcpus(stream, shape)?;
        let chips =
            ChipsImage::from_sections(stream.section(&chips::CHIPS, 0)?, stream.section(&chips::CLOCK, 0)?)?;
        let serial = SerialState::read(stream.section(&SERIAL_KIND, 0)?)?;
        // A guest of a host without a button has never heard of one.
        let power =
            stream.section(&POWER_KIND, 0).ok().map_or(Ok(PowerState::default()), PowerState::read)?;
        Ok(Self { vcpus, chips, serial, power })
    }
}

#[expect(clippy::vec_box, reason = "each is handed to its vCPU's thread as it is")]
fn vcpus(stream: &Stream<'_>, shape: &MachineDescription) -> Result<Vec<Box<VcpuImage>>, StateError> {
    let image = |number| VcpuImage::from_section(stream.section(&VCPU, number)?, shape.xsave_bytes as usize);
    (0..shape.vcpus).map(image).collect()
}

/// `source`: the clock by which the guest stood still, where it was told.
pub(super) fn restore(
    board: &Board,
    vcpus: &Vcpus,
    state: &[u8],
    source: Option<SourceClock>,
) -> Result<(), MachineError> {
    let stream = Stream::read(state, &KINDS)?;
    let saved = Saved::read(&stream, board.shape())?;
    let virtio = board.virtio().images(&stream)?;

    // A guest whose time of day is to be right by both hosts' clocks may keep it by the TSC.
    let by_wall_clocks = saved.chips.read_at.map(|_| StoodStill::ByWallClocks);
    let told = source.map_or(StoodStill::Untold, StoodStill::By);
    vcpus.restore(saved.vcpus, by_wall_clocks.unwrap_or(told))?;
    saved.chips.restore(board.vm_fd())?;
    board.serial().set_state(saved.serial);
    board.power().set_state(saved.power);
    board.virtio().restore(virtio);
    Ok(())
}

/// What the guest of this state touches first. As far as it can be told: a hint.
pub(super) fn first_pages(board: &Board, state: &[u8]) -> Result<Vec<u64>, StateError> {
    let stream = Stream::read(state, &KINDS)?;
    let read = |gpa| board.ram().mmap().read_obj(GuestAddress(gpa)).ok();
    Ok(vcpus(&stream, board.shape())?.iter().flat_map(|vcpu| vcpu.first_pages(read)).collect())
}

pub(super) fn write_shape(section: &mut SectionWriter<'_>, shape: &MachineDescription) {
    section.required(1, &shape.vcpus.to_le_bytes());
    section.required(2, &shape.memory.to_le_bytes());
    section.required(3, &shape.cpuid_crc().to_le_bytes());
}

/// Refuses the state of another machine by name.
pub(super) fn check_shape(section: &Section<'_>, shape: &MachineDescription) -> Result<(), StateError> {
    let same = StateError::unless_same;
    same("number of vCPUs", section.number::<4>(1, "vcpus")?, shape.vcpus.into())?;
    same("bytes of RAM", section.number::<8>(2, "memory")?, shape.memory)?;
    same("checksum of CPUID", section.number::<4>(3, "cpuid")?, shape.cpuid_crc().into())
}
