//! KVM's ioctls on plain byte buffers: the wall behind which state is read and written.
//!
//! State travels as the kernel's own structs, byte for byte, so it is read straight into the buffer that will be
//! sent and written straight from the buffer that came. The size of each struct is part of the ioctl's number:
//! the two functions here check it against the buffer, so that no caller can make the kernel reach beyond it.

#![expect(
    unsafe_code,
    reason = "ioctls whose argument is a byte buffer, a number, or a device attribute, or that open a file"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, kvm_device_attr};

/// An ioctl number of KVM's (`linux/kvm.h`): direction, size of the argument, number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request(u32);

const KVMIO: u32 = 0xae;
const NONE: u32 = 0;
const TO_KERNEL: u32 = 1;
const FROM_KERNEL: u32 = 2;
const BOTH: u32 = 3;

impl Request {
    const fn new(direction: u32, number: u32, bytes: usize) -> Self {
        Self(direction << 30 | (bytes as u32) << 16 | KVMIO << 8 | number)
    }

    /// Bytes the kernel reads or writes: at least this many, more where a struct has an open end.
    const fn bytes(self) -> usize {
        (self.0 >> 16 & 0x3fff) as usize
    }
}

/// `KVM_GET_MP_STATE`.
pub const GET_MP_STATE: Request = Request::new(FROM_KERNEL, 0x98, 4);
/// `KVM_SET_MP_STATE`.
pub const SET_MP_STATE: Request = Request::new(TO_KERNEL, 0x99, 4);
/// `KVM_GET_REGS`.
pub const GET_REGS: Request = Request::new(FROM_KERNEL, 0x81, 144);
/// `KVM_SET_REGS`.
pub const SET_REGS: Request = Request::new(TO_KERNEL, 0x82, 144);
/// `KVM_GET_SREGS`.
pub const GET_SREGS: Request = Request::new(FROM_KERNEL, 0x83, 312);
/// `KVM_SET_SREGS`.
pub const SET_SREGS: Request = Request::new(TO_KERNEL, 0x84, 312);
/// `KVM_GET_XSAVE2`: open end, see [`get_xsave`].
const GET_XSAVE2: Request = Request::new(FROM_KERNEL, 0xcf, 4096);
/// `KVM_SET_XSAVE`: open end, see [`set_xsave`].
const SET_XSAVE: Request = Request::new(TO_KERNEL, 0xa5, 4096);
/// `KVM_GET_XCRS`.
pub const GET_XCRS: Request = Request::new(FROM_KERNEL, 0xa6, 392);
/// `KVM_SET_XCRS`.
pub const SET_XCRS: Request = Request::new(TO_KERNEL, 0xa7, 392);
/// `KVM_GET_DEBUGREGS`.
pub const GET_DEBUGREGS: Request = Request::new(FROM_KERNEL, 0xa1, 128);
/// `KVM_SET_DEBUGREGS`.
pub const SET_DEBUGREGS: Request = Request::new(TO_KERNEL, 0xa2, 128);
/// `KVM_GET_LAPIC`.
pub const GET_LAPIC: Request = Request::new(FROM_KERNEL, 0x8e, 1024);
/// `KVM_SET_LAPIC`.
pub const SET_LAPIC: Request = Request::new(TO_KERNEL, 0x8f, 1024);
/// `KVM_GET_VCPU_EVENTS`.
pub const GET_VCPU_EVENTS: Request = Request::new(FROM_KERNEL, 0x9f, 64);
/// `KVM_SET_VCPU_EVENTS`.
pub const SET_VCPU_EVENTS: Request = Request::new(TO_KERNEL, 0xa0, 64);
/// `KVM_GET_IRQCHIP`: the first four bytes of the buffer say which chip.
pub const GET_IRQCHIP: Request = Request::new(BOTH, 0x62, 520);
/// `KVM_SET_IRQCHIP`. (Its direction says "from kernel" by an old mistake in the ABI.)
pub const SET_IRQCHIP: Request = Request::new(FROM_KERNEL, 0x63, 520);
/// `KVM_GET_PIT2`.
pub const GET_PIT2: Request = Request::new(FROM_KERNEL, 0x9f, 112);
/// `KVM_SET_PIT2`.
pub const SET_PIT2: Request = Request::new(TO_KERNEL, 0xa0, 112);
/// `KVM_GET_CLOCK`.
pub const GET_CLOCK: Request = Request::new(FROM_KERNEL, 0x7c, 48);
/// `KVM_SET_CLOCK`.
pub const SET_CLOCK: Request = Request::new(TO_KERNEL, 0x7b, 48);

const GET_MSRS: Request = Request::new(BOTH, 0x88, MSRS_HEAD);
const SET_MSRS: Request = Request::new(TO_KERNEL, 0x89, MSRS_HEAD);
const GET_STATS_FD: Request = Request::new(NONE, 0xce, 0);
const PRE_FAULT_MEMORY: Request = Request::new(BOTH, 0xd5, size_of::<PreFault>());
const SET_TSC_KHZ: Request = Request::new(NONE, 0xa2, 0);
const SET_DEVICE_ATTR: Request = Request::new(TO_KERNEL, 0xe1, 24);
const GET_DEVICE_ATTR: Request = Request::new(TO_KERNEL, 0xe2, 24);
const HAS_DEVICE_ATTR: Request = Request::new(TO_KERNEL, 0xe3, 24);

/// Bytes of `kvm_msrs` before its entries: the count and padding.
pub const MSRS_HEAD: usize = 8;
/// Bytes of a `kvm_msr_entry`.
pub const MSR_BYTES: usize = 16;

/// Fills `buffer` with one of KVM's structs.
///
/// # Errors
/// As the kernel refuses.
///
/// # Panics
/// When the buffer is not of the struct's size.
pub fn get(fd: BorrowedFd<'_>, request: Request, buffer: &mut [u8]) -> io::Result<()> {
    assert_eq!(buffer.len(), request.bytes(), "{request:x?} has another size");
    // SAFETY: the kernel writes `request.bytes()` bytes, which is what the buffer has; any bytes are valid u8s.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), number(request), buffer.as_mut_ptr()) }).map(drop)
}

/// Hands one of KVM's structs to the kernel.
///
/// # Errors
/// As the kernel refuses.
///
/// # Panics
/// When the buffer is not of the struct's size.
pub fn set(fd: BorrowedFd<'_>, request: Request, buffer: &[u8]) -> io::Result<()> {
    assert_eq!(buffer.len(), request.bytes(), "{request:x?} has another size");
    // SAFETY: the kernel only reads `request.bytes()` bytes, which is what the buffer has.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), number(request), buffer.as_ptr()) }).map(drop)
}

/// Reads the extended FPU state. `buffer` has the size that `KVM_CAP_XSAVE2` gave for this VM.
///
/// # Errors
/// As the kernel refuses.
pub fn get_xsave(fd: BorrowedFd<'_>, vm_xsave_bytes: usize, buffer: &mut [u8]) -> io::Result<()> {
    assert!(
        buffer.len() == vm_xsave_bytes && buffer.len() >= GET_XSAVE2.bytes(),
        "xsave area has another size"
    );
    // SAFETY: the kernel writes KVM_CAP_XSAVE2 bytes, which is what the buffer has: no feature that would make
    // the area larger is enabled (by arch_prctl) after that size was asked for, anywhere in this crate.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), number(GET_XSAVE2), buffer.as_mut_ptr()) }).map(drop)
}

/// Sets the extended FPU state. `buffer` has the size that `KVM_CAP_XSAVE2` gave for this VM.
///
/// # Errors
/// As the kernel refuses.
pub fn set_xsave(fd: BorrowedFd<'_>, vm_xsave_bytes: usize, buffer: &[u8]) -> io::Result<()> {
    assert!(
        buffer.len() == vm_xsave_bytes && buffer.len() >= SET_XSAVE.bytes(),
        "xsave area has another size"
    );
    // SAFETY: the kernel reads at most KVM_CAP_XSAVE2 bytes, which is what the buffer has (see `get_xsave`).
    check(unsafe { libc::ioctl(fd.as_raw_fd(), number(SET_XSAVE), buffer.as_ptr()) }).map(drop)
}

/// Reads MSRs: `buffer` is a `kvm_msrs` with the indices in place. How many were read before one failed.
///
/// # Errors
/// As the kernel refuses.
pub fn get_msrs(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    stamp_msr_count(buffer);
    // SAFETY: the kernel reads and writes the head and as many entries as the count in it says, which was just
    // set to what the buffer holds.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), number(GET_MSRS), buffer.as_mut_ptr()) })
}

/// Writes MSRs: `buffer` is a `kvm_msrs`. How many were written before one failed.
///
/// # Errors
/// As the kernel refuses.
pub fn set_msrs(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    stamp_msr_count(buffer);
    // SAFETY: the kernel reads the head and as many entries as the count in it says, which was just set to what
    // the buffer holds.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), number(SET_MSRS), buffer.as_ptr()) })
}

fn stamp_msr_count(buffer: &mut [u8]) {
    let entries = (buffer.len() - MSRS_HEAD) / MSR_BYTES;
    buffer[..MSRS_HEAD].copy_from_slice(&(entries as u64).to_le_bytes());
}

/// Sets the frequency at which the guest's TSC counts.
///
/// # Errors
/// When the host cannot scale to it.
pub fn set_tsc_khz(fd: BorrowedFd<'_>, khz: u32) -> io::Result<()> {
    // SAFETY: the argument is a number, no memory is involved.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), number(SET_TSC_KHZ), libc::c_ulong::from(khz)) }).map(drop)
}

/// Whether the TSC offset of this vCPU can be read and set.
#[must_use]
pub fn has_tsc_offset(fd: BorrowedFd<'_>) -> bool {
    tsc_offset_attr(fd, HAS_DEVICE_ATTR, &mut 0).is_ok()
}

/// What is added to the (scaled) host TSC to give the guest's.
///
/// # Errors
/// When the host has no such attribute.
pub fn tsc_offset(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut offset = 0;
    tsc_offset_attr(fd, GET_DEVICE_ATTR, &mut offset).map(|()| offset)
}

/// Sets what is added to the (scaled) host TSC to give the guest's.
///
/// # Errors
/// When the host has no such attribute.
pub fn set_tsc_offset(fd: BorrowedFd<'_>, mut offset: u64) -> io::Result<()> {
    tsc_offset_attr(fd, SET_DEVICE_ATTR, &mut offset)
}

fn tsc_offset_attr(fd: BorrowedFd<'_>, request: Request, value: &mut u64) -> io::Result<()> {
    let attr = kvm_device_attr {
        flags: 0,
        group: KVM_VCPU_TSC_CTRL,
        attr: u64::from(KVM_VCPU_TSC_OFFSET),
        addr: std::ptr::from_mut(value) as u64,
    };
    // SAFETY: `attr` is the struct these three requests take, and its address points at a live, exclusively
    // borrowed u64, which is all this attribute reads or writes.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), number(request), &attr) }).map(drop)
}

/// A file with the kernel's statistics of this vCPU (Documentation/virt/kvm/api.rst, 4.133).
///
/// # Errors
/// When the kernel keeps none (before 5.14).
pub fn stats(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: there is no argument, no memory is involved.
    let stats = check(unsafe { libc::ioctl(fd.as_raw_fd(), number(GET_STATS_FD), 0) })?;
    // SAFETY: the kernel has just opened this descriptor for the caller, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(stats as RawFd) })
}

/// `kvm_pre_fault_memory`.
#[repr(C)]
struct PreFault {
    gpa: u64,
    bytes: u64,
    flags: u64,
    padding: [u64; 5],
}

/// Has KVM make ready for this vCPU, by the registers it has now, what else it would make on the way into the guest: the root of its
/// page tables and a stock of pages for more of them. `nowhere` is a page where the guest has no memory: no page of the guest is touched.
///
/// That is the first step of `KVM_PRE_FAULT_MEMORY` (Linux 6.11), the only one that shadow page tables know.
///
/// # Errors
/// Always: after that step (`EOPNOTSUPP` from shadow page tables, else `ENOENT`), or because the kernel has nothing of it (`ENOTTY`).
/// The way into the guest is as long as before then.
pub fn load_mmu(fd: BorrowedFd<'_>, nowhere: u64) -> io::Result<()> {
    let mut range = PreFault { gpa: nowhere, bytes: 4096, flags: 0, padding: [0; 5] };
    // SAFETY: the struct is what this request reads and writes, live and exclusively borrowed.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), number(PRE_FAULT_MEMORY), &raw mut range) }).map(drop)
}

/// The host's time stamp counter.
#[must_use]
pub fn host_tsc() -> u64 {
    // SAFETY: every x86-64 CPU has RDTSC; Linux lets user space use it (CR4.TSD is clear unless asked for).
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// Borrows a descriptor whose owner has no `AsFd`.
pub(crate) fn borrow<T: AsRawFd>(owner: &T) -> BorrowedFd<'_> {
    let raw: RawFd = owner.as_raw_fd();
    // SAFETY: the owner keeps the descriptor open for as long as it is borrowed, which is the result's lifetime.
    unsafe { BorrowedFd::borrow_raw(raw) }
}

fn number(request: Request) -> libc::Ioctl {
    libc::Ioctl::from(request.0)
}

fn check(result: libc::c_int) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_kernel_headers() {
        let known = [
            (GET_XSAVE2, 0x9000_aecf),
            (GET_MSRS, 0xc008_ae88),
            (SET_MSRS, 0x4008_ae89),
            (GET_IRQCHIP, 0xc208_ae62),
            (SET_IRQCHIP, 0x8208_ae63),
            (GET_PIT2, 0x8070_ae9f),
            (SET_PIT2, 0x4070_aea0),
            (GET_CLOCK, 0x8030_ae7c),
            (SET_CLOCK, 0x4030_ae7b),
            (GET_DEVICE_ATTR, 0x4018_aee2),
            (PRE_FAULT_MEMORY, 0xc040_aed5),
        ];
        assert!(known.iter().all(|(request, number)| request.0 == *number));
    }

    /// The kernel understands what it is asked, or has nothing of it.
    #[test]
    #[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
    fn an_mmu_is_loaded_for_no_page() {
        let kvm = crate::kvm::KvmHost::open().unwrap();
        let vm = kvm.create_vm().unwrap();
        vm.create_irq_chip().unwrap();
        let vcpu = kvm.create_vcpu(&vm, 0).unwrap();
        let error = load_mmu(borrow(&vcpu), crate::memory::layout::HOLE_START).unwrap_err();
        // This VM has no memory, and so no room for shadow page tables: the first step ends there (ENOSPC).
        let known = [libc::ENOSPC, libc::EOPNOTSUPP, libc::ENOENT, libc::ENOTTY].map(Some);
        assert!(known.contains(&error.raw_os_error()), "{error}");
    }
}
