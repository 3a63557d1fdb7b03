//! A vCPU's state: read and set in the order `docs/state.md` gives, straight from and into the saved bytes.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::OnceLock;

use super::tsc::{self, Here, IA32_TSC, IA32_TSC_DEADLINE, SavedTsc, StoodStill};
use super::{Surroundings, VcpuError, msrs, reach, xsave};
use crate::kvm::ioctl::{self, MSR_BYTES, MSRS_HEAD, Request};
use crate::state::{Kind, Section, SectionWriter, StateError};

/// One of the parts that are a KVM struct of fixed size.
struct Part {
    tag: u16,
    name: &'static str,
    bytes: usize,
    get: Request,
    set: Request,
}

const fn part(tag: u16, name: &'static str, bytes: usize, get: Request, set: Request) -> Part {
    Part { tag, name, bytes, get, set }
}

const MP_STATE: Part = part(1, "mp_state", 4, ioctl::GET_MP_STATE, ioctl::SET_MP_STATE);
const REGS: Part = part(2, "regs", 144, ioctl::GET_REGS, ioctl::SET_REGS);
const SREGS: Part = part(3, "sregs", 312, ioctl::GET_SREGS, ioctl::SET_SREGS);
const XCRS: Part = part(5, "xcrs", 392, ioctl::GET_XCRS, ioctl::SET_XCRS);
const DEBUGREGS: Part = part(6, "debugregs", 128, ioctl::GET_DEBUGREGS, ioctl::SET_DEBUGREGS);
const LAPIC: Part = part(7, "lapic", 1024, ioctl::GET_LAPIC, ioctl::SET_LAPIC);
const EVENTS: Part = part(10, "vcpu_events", 64, ioctl::GET_VCPU_EVENTS, ioctl::SET_VCPU_EVENTS);

/// Places of the fixed parts in [`VcpuImage`].
const PARTS: [&Part; 7] = [&MP_STATE, &REGS, &SREGS, &XCRS, &DEBUGREGS, &LAPIC, &EVENTS];

const XSAVE: u16 = 4;
const MSRS: u16 = 8;
const TSC: u16 = 9;

/// The section of one vCPU.
pub const KIND: Kind = Kind { name: "vcpu", version: 1, tags: &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10] };

/// A vCPU as whoever saves or restores it sees it.
pub(super) struct Handle<'a> {
    pub(super) vcpu: u32,
    pub(super) fd: BorrowedFd<'a>,
    pub(super) with: &'a Surroundings,
}

/// Appends the vCPU's section to `into`.
///
/// Timers run on while the guest is paused. The LAPIC comes after all that raises interrupts in it (here the MSR with
/// the deadline, before this the VM's chips): one that fires meanwhile is seen twice, never lost.
///
/// # Errors
/// When the kernel refuses a part.
pub(super) fn save(vcpu: &Handle<'_>, into: &mut Vec<u8>, base: &OnceLock<Here>) -> Result<(), VcpuError> {
    SectionWriter::write(into, &KIND, vcpu.vcpu, |section| {
        vcpu.get(section, &MP_STATE)?;
        vcpu.get(section, &REGS)?;
        vcpu.get(section, &SREGS)?;
        vcpu.get_xsave(section)?;
        vcpu.get(section, &XCRS)?;
        vcpu.get(section, &DEBUGREGS)?;
        vcpu.get_msrs(section)?;
        vcpu.get_tsc(section, base)?;
        vcpu.get(section, &LAPIC)?;
        vcpu.get(section, &EVENTS)
    })
}

/// Puts a vCPU's state in place.
///
/// # Errors
/// When the kernel refuses a part.
pub(super) fn restore(
    vcpu: &Handle<'_>,
    image: &VcpuImage,
    base: &OnceLock<Here>,
    stood_still: StoodStill,
) -> Result<(), VcpuError> {
    vcpu.set(image, &SREGS)?;
    vcpu.set(image, &REGS)?;
    vcpu.set_xsave(image)?;
    vcpu.set(image, &XCRS)?;
    vcpu.set(image, &DEBUGREGS)?;
    vcpu.set(image, &LAPIC)?;
    let went_on = vcpu.set_tsc(image, base, stood_still)?;
    vcpu.set_msrs(image, went_on)?;
    vcpu.set(image, &MP_STATE)?;
    vcpu.set(image, &EVENTS)
}

impl Handle<'_> {
    fn refused(&self, what: &'static str) -> impl FnOnce(io::Error) -> VcpuError {
        let vcpu = self.vcpu;
        move |error| VcpuError::Refused { vcpu, what, error }
    }

    fn get(&self, section: &mut SectionWriter<'_>, part: &Part) -> Result<(), VcpuError> {
        ioctl::get(self.fd, part.get, section.room(part.tag, part.bytes)).map_err(self.refused(part.name))
    }

    fn set(&self, image: &VcpuImage, part: &Part) -> Result<(), VcpuError> {
        let at = PARTS.iter().position(|known| known.tag == part.tag).unwrap_or_default();
        ioctl::set(self.fd, part.set, &image.parts[at]).map_err(self.refused(part.name))
    }

    fn get_xsave(&self, section: &mut SectionWriter<'_>) -> Result<(), VcpuError> {
        let bytes = self.with.xsave_bytes;
        let area = section.room(XSAVE, bytes);
        ioctl::get_xsave(self.fd, bytes, area).map_err(self.refused("read xsave"))?;
        xsave::keep(area, self.with.components);
        Ok(())
    }

    fn set_xsave(&self, image: &VcpuImage) -> Result<(), VcpuError> {
        ioctl::set_xsave(self.fd, self.with.xsave_bytes, &image.xsave).map_err(self.refused("set xsave"))
    }

    fn get_msrs(&self, section: &mut SectionWriter<'_>) -> Result<(), VcpuError> {
        let mut buffer = msrs::room_for(&self.with.msrs);
        let done = ioctl::get_msrs(self.fd, &mut buffer).map_err(self.refused("read MSRs"))?;
        if let Some(index) = self.with.msrs.get(done) {
            return Err(VcpuError::Msr { vcpu: self.vcpu, what: "read", index: *index });
        }
        section.required(MSRS, &buffer[MSRS_HEAD..]);
        Ok(())
    }

    /// Sets all MSRs, but not the TSC where its offset was set.
    fn set_msrs(&self, image: &VcpuImage, tsc_is_set: bool) -> Result<(), VcpuError> {
        let mut buffer = vec![0; MSRS_HEAD];
        let entries = image.msrs.chunks_exact(MSR_BYTES);
        entries
            .filter(|entry| !(tsc_is_set && msrs::index_of(entry) == IA32_TSC))
            .for_each(|entry| buffer.extend_from_slice(entry));
        let done = ioctl::set_msrs(self.fd, &mut buffer).map_err(self.refused("set MSRs"))?;
        match buffer[MSRS_HEAD..].chunks_exact(MSR_BYTES).nth(done) {
            Some(entry) => Err(VcpuError::Msr { vcpu: self.vcpu, what: "set", index: msrs::index_of(entry) }),
            None => Ok(()),
        }
    }

    fn get_tsc(&self, section: &mut SectionWriter<'_>, base: &OnceLock<Here>) -> Result<(), VcpuError> {
        if self.with.tsc_offset {
            let base = self.base(base)?.base;
            let offset = ioctl::tsc_offset(self.fd).map_err(self.refused("read the TSC offset"))?;
            section.optional(TSC, &SavedTsc { offset, base }.to_bytes());
        }
        Ok(())
    }

    /// True if the guest's TSC goes on through its offset.
    fn set_tsc(
        &self,
        image: &VcpuImage,
        base: &OnceLock<Here>,
        stood_still: StoodStill,
    ) -> Result<bool, VcpuError> {
        let (Some(saved), true) = (image.tsc, self.with.tsc_offset) else { return Ok(false) };
        let offset = saved.offset_at(self.base(base)?, stood_still, self.with.tsc_khz);
        ioctl::set_tsc_offset(self.fd, offset).map_err(self.refused("set the TSC offset"))?;
        Ok(true)
    }

    /// The pair all vCPUs use: taken by the first that comes, before it changes its own offset.
    fn base(&self, shared: &OnceLock<Here>) -> Result<Here, VcpuError> {
        if let Some(base) = shared.get() {
            return Ok(*base);
        }
        let mine = tsc::sample(self.fd).map_err(self.refused("read the TSC"))?;
        Ok(*shared.get_or_init(|| mine))
    }
}

/// A vCPU's state, checked in size, ready to be put in place.
#[derive(Debug, Default)]
pub struct VcpuImage {
    parts: [Vec<u8>; PARTS.len()],
    xsave: Vec<u8>,
    msrs: Vec<u8>,
    tsc: Option<SavedTsc>,
}

impl VcpuImage {
    /// Takes a vCPU's section for a VM whose extended FPU state has `xsave_bytes`.
    ///
    /// # Errors
    /// When a part is missing or cannot be.
    pub fn from_section(section: &Section<'_>, xsave_bytes: usize) -> Result<Box<Self>, StateError> {
        let mut image = Box::<Self>::default();
        for (place, part) in image.parts.iter_mut().zip(PARTS) {
            *place = section.exactly(part.tag, part.name, part.bytes)?.to_vec();
        }
        image.xsave = xsave(section, xsave_bytes)?;
        image.msrs = msr_entries(section)?;
        let tsc = section.optional(TSC);
        image.tsc = tsc.and_then(SavedTsc::from_bytes);
        if tsc.is_some() && image.tsc.is_none() {
            return Err(section.impossible("TSC"));
        }
        Ok(image)
    }
}

impl VcpuImage {
    /// Frame numbers of the pages this vCPU touches as soon as it runs, as far as its registers tell.
    pub fn first_pages(&self, read: impl Fn(u64) -> Option<u64>) -> Vec<u64> {
        let part = |part: &Part| {
            PARTS.iter().position(|known| known.tag == part.tag).map_or(&[][..], |at| &self.parts[at])
        };
        reach::first_pages(part(&REGS), part(&SREGS), read)
    }
}

/// The extended FPU state, padded to this host's size.
fn xsave(section: &Section<'_>, bytes: usize) -> Result<Vec<u8>, StateError> {
    let saved = section.required(XSAVE, "xsave")?;
    let rest = saved.get(bytes..).unwrap_or_default();
    if saved.len() < 4096 || rest.iter().any(|byte| *byte != 0) {
        return Err(section.impossible("xsave area: this host's CPU has fewer registers"));
    }
    let mut area = saved[..saved.len().min(bytes)].to_vec();
    area.resize(bytes, 0);
    Ok(area)
}

/// The MSRs: whole entries, few enough for one call, the TSC deadline last if it is there.
fn msr_entries(section: &Section<'_>) -> Result<Vec<u8>, StateError> {
    let saved = section.required(MSRS, "msrs")?;
    let (entries, rest) = saved.as_chunks::<MSR_BYTES>();
    let deadline = entries.iter().position(|entry| msrs::index_of(entry) == IA32_TSC_DEADLINE);
    let misplaced = deadline.is_some_and(|at| at + 1 != entries.len());
    if !rest.is_empty() || entries.len() > msrs::MAX_MSRS || misplaced {
        return Err(section.impossible("list of MSRs"));
    }
    Ok(saved.to_vec())
}

#[cfg(test)]
pub(crate) use golden::with_every_field;
#[cfg(test)]
mod golden;
