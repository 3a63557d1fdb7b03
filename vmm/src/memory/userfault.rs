//! Catching touches of pages that are not here yet, by vCPUs and by the kernel on their behalf, with userfaultfd.
//!
//! ```text
//!   vCPU touches a page that is not there ──► kernel stops it ──► [`Userfault::wait`] ──► who has the page?
//!   vCPU goes on  ◄── kernel maps the page whole and wakes ◄── [`Userfault::place`] ◄── its bytes arrived
//! ```
//! Invariants: what is missing is discarded before anybody can touch it; a page appears whole or not at all; whoever handles
//! faults never touches guest memory itself, or it would wait for itself.
//! (Documentation/admin-guide/mm/userfaultfd.rst; constants from linux/userfaultfd.h.)

#![expect(unsafe_code, reason = "userfaultfd is a set of ioctls on addresses")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::ram::GuestRam;
use super::{MemoryError, PAGE, present};

const UFFD_API: u64 = 0xaa;
/// Pages can be moved to where they are missing (Linux 6.8).
const UFFD_FEATURE_MOVE: u64 = 1 << 16;
const UFFDIO_REGISTER_MODE_MISSING: u64 = 1;
const UFFD_EVENT_PAGEFAULT: u8 = 0x12;
/// Bytes of one event, and where the faulting address stands in it (struct uffd_msg).
const EVENT_BYTES: usize = 32;
const EVENT_ADDRESS: usize = 16;
/// Events read at once.
const BATCH: usize = 64;

const USERFAULTFD_IOC_NEW: u64 = ioc(0, 0x00, 0);
const UFFDIO_API: u64 = ioc(3, 0x3f, 24);
const UFFDIO_REGISTER: u64 = ioc(3, 0x00, 32);
const UFFDIO_UNREGISTER: u64 = ioc(2, 0x01, 16);
const UFFDIO_WAKE: u64 = ioc(2, 0x02, 16);
const UFFDIO_COPY: u64 = ioc(3, 0x03, 40);
const UFFDIO_MOVE: u64 = ioc(3, 0x05, 40);
const UFFDIO_ZEROPAGE: u64 = ioc(3, 0x04, 32);

/// `_IOC(dir, 0xaa, nr, size)` of asm-generic/ioctl.h: 1 writes, 2 reads, 3 both.
const fn ioc(dir: u64, nr: u64, size: u64) -> u64 {
    dir << 30 | size << 16 | UFFD_API << 8 | nr
}

/// Faults on a guest's RAM. Dropping it, or [`close`](Self::close), ends the catching.
#[derive(Debug)]
pub struct Userfault {
    fd: OwnedFd,
    ram: Arc<GuestRam>,
    closing: OwnedFd,
    /// The kernel moves pages. No longer once it has refused to.
    moves: AtomicBool,
}

impl Userfault {
    /// Whether this host can catch faults, the kernel's own included; otherwise why not.
    ///
    /// # Errors
    /// [`MemoryError::NoUserfault`] with the way out.
    pub fn check() -> Result<(), MemoryError> {
        open().map(drop)
    }

    /// From here on catches every touch of a page of `ram` that does not exist, because it was discarded or never touched.
    ///
    /// # Errors
    /// When the kernel has no userfaultfd, or refuses.
    pub fn catch(ram: Arc<GuestRam>) -> Result<Self, MemoryError> {
        // A huge page would bring neighbours into being that nobody has sent.
        ram.forbid_huge_pages();
        let (fd, moves) = open()?;
        for span in ram.spans() {
            let mut request = [span.host as u64, span.bytes, UFFDIO_REGISTER_MODE_MISSING, 0];
            ioctl(&fd, UFFDIO_REGISTER, &mut request)
                .map_err(MemoryError::host("register guest memory with userfaultfd"))?;
        }
        let closing = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(MemoryError::host("make an event"))?;
        Ok(Self { fd, ram, closing, moves: AtomicBool::new(moves) })
    }

    /// The memory whose touches are caught.
    #[must_use]
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// Waits for touches and appends the guest-physical page addresses; none after `wait` or when closed.
    ///
    /// # Errors
    /// When the descriptor fails.
    pub fn wait(&self, wait: Duration, touched: &mut Vec<u64>) -> io::Result<()> {
        let timeout =
            Timespec::try_from(wait).unwrap_or(Timespec { tv_sec: i64::from(i32::MAX), tv_nsec: 0 });
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN), PollFd::new(&self.closing, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        if !fds[1].revents().is_empty() || fds[0].revents().is_empty() {
            return Ok(());
        }
        self.read_events(touched)
    }

    fn read_events(&self, touched: &mut Vec<u64>) -> io::Result<()> {
        let mut buffer = [0; EVENT_BYTES * BATCH];
        let bytes = match rustix::io::read(&self.fd, &mut buffer) {
            Ok(bytes) => bytes,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => 0,
            Err(error) => return Err(error.into()),
        };
        for event in buffer[..bytes].chunks_exact(EVENT_BYTES).filter(|e| e[0] == UFFD_EVENT_PAGEFAULT) {
            let address = event[EVENT_ADDRESS..EVENT_ADDRESS + 8].try_into().expect("eight bytes");
            touched
                .extend(self.ram.gpa_of(u64::from_le_bytes(address) as usize).map(|gpa| gpa & !(PAGE - 1)));
        }
        Ok(())
    }

    /// Places missing pages whole and wakes who waits for them. Each page once.
    ///
    /// # Errors
    /// When the kernel refuses, for instance for want of memory; or a page was there already: whatever it holds,
    /// it is not what is placed here.
    pub fn place(&self, gpa: u64, data: &[u8]) -> io::Result<()> {
        self.copy(gpa, data.as_ptr() as u64, data.len() as u64)
    }

    fn copy(&self, gpa: u64, from: u64, bytes: u64) -> io::Result<()> {
        self.resolve(gpa, bytes, |host, done, left| {
            let mut request = [host, from + done, left, 0, 0];
            let result = ioctl(&self.fd, UFFDIO_COPY, &mut request);
            (result, request[4].cast_signed())
        })
    }

    /// Whether pages can be placed by moving them.
    pub(super) fn moves(&self) -> bool {
        self.moves.load(Ordering::Relaxed)
    }

    /// Places missing pages by moving those at host address `from` there; from a huge page a huge page, where nothing of it
    /// was there before. What the kernel does not move is copied. Nobody else changes what is at `from`.
    ///
    /// # Errors
    /// As for [`place`](Self::place).
    pub(super) fn place_moved(&self, gpa: u64, from: usize, bytes: u64) -> io::Result<()> {
        let moved = self.resolve(gpa, bytes, |host, done, left| {
            let mut request = [host, from as u64 + done, left, 0, 0];
            let result = ioctl(&self.fd, UFFDIO_MOVE, &mut request);
            (result, request[4].cast_signed())
        });
        let Err(error) = moved else { return Ok(()) };
        match error.raw_os_error() {
            // A page that was there, perhaps; perhaps one that the kernel has just moved itself: 6.18 up to 6.18.50 say so when
            // the first touch of the range comes at that moment (mended by "reset err to be 0 when move_pages_ptes succeeded").
            None if error.kind() == io::ErrorKind::AlreadyExists => {}
            // Somebody else looks at the page just now.
            Some(libc::EBUSY) => {}
            Some(libc::EINVAL | libc::ENOMEM) => self.moves.store(false, Ordering::Relaxed),
            _ => return Err(error),
        }
        self.copy_the_rest(gpa, from, bytes).map_err(|why| match why.kind() {
            io::ErrorKind::Unsupported => error,
            _ => why,
        })
    }

    /// What was moved is gone from where it was. The rest is copied.
    fn copy_the_rest(&self, gpa: u64, from: usize, bytes: u64) -> io::Result<()> {
        let mut rest = Vec::new();
        let told = present::each_existing(from, bytes, |at, bytes| rest.push((at, bytes)));
        told.map_err(|error| io::Error::new(io::ErrorKind::Unsupported, error))?;
        // The kernel has not woken who waits for what it moved.
        self.wake(self.ram.host(gpa, bytes) as u64, bytes)?;
        rest.iter().try_for_each(|(at, bytes)| self.copy(gpa + (at - from) as u64, *at as u64, *bytes))
    }

    /// Places missing pages of zeros and wakes who waits for them. Each page once.
    ///
    /// # Errors
    /// As for [`place`](Self::place).
    pub fn place_zeros(&self, gpa: u64, bytes: u64) -> io::Result<()> {
        self.resolve(gpa, bytes, |host, _, left| {
            let mut request = [host, left, 0, 0];
            let result = ioctl(&self.fd, UFFDIO_ZEROPAGE, &mut request);
            (result, request[3].cast_signed())
        })
    }

    /// Makes a touched page that never was missing read as zero. Another touch may have done so before.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn fill_hole(&self, gpa: u64) -> io::Result<()> {
        match self.place_zeros(gpa, PAGE) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.wake(self.ram.host(gpa, PAGE) as u64, PAGE)
            }
            result => result,
        }
    }

    /// Calls `step(host address, done, left)` until all of a run is resolved. A step answers with what the kernel
    /// said and how many bytes it got through (or a negated error number).
    fn resolve(
        &self,
        gpa: u64,
        bytes: u64,
        step: impl Fn(u64, u64, u64) -> (io::Result<()>, i64),
    ) -> io::Result<()> {
        let base = self.ram.host(gpa, bytes) as u64;
        let mut done = 0;
        while done < bytes {
            match step(base + done, done, bytes - done) {
                (Ok(()), _) => return Ok(()),
                (Err(_), moved) if moved > 0 => done += moved.cast_unsigned(),
                (Err(error), _) if error.raw_os_error() == Some(libc::EEXIST) => {
                    let page = (gpa + done) / PAGE;
                    let words = format!("page {page:#x} was already there");
                    return Err(io::Error::new(io::ErrorKind::AlreadyExists, words));
                }
                // The address space was changing under the call: try again.
                (Err(error), _) if error.raw_os_error() == Some(libc::EAGAIN) => {}
                (Err(error), _) => return Err(error),
            }
        }
        Ok(())
    }

    fn wake(&self, host: u64, bytes: u64) -> io::Result<()> {
        ioctl(&self.fd, UFFDIO_WAKE, &mut [host, bytes])
    }

    /// Stops catching: touches find what is there, or zeros. Wakes everyone who waits, [`wait`](Self::wait) too.
    pub fn close(&self) {
        let _ = rustix::io::write(&self.closing, &1_u64.to_ne_bytes());
        for span in self.ram.spans() {
            // Unregistering wakes all who wait. It fails only when it was done before.
            let _ = ioctl(&self.fd, UFFDIO_UNREGISTER, &mut [span.host as u64, span.bytes]);
        }
        // The kernel's own thread joins what was placed page by page, in time.
        self.ram.allow_huge_pages();
    }
}

/// A userfaultfd that also sees the kernel's own touches (KVM's, and later the devices'), and whether it moves pages.
fn open() -> Result<(OwnedFd, bool), MemoryError> {
    let fd = open_device().or_else(|_| open_syscall()).map_err(|error| MemoryError::NoUserfault { error })?;
    // A kernel that does not know what is asked for refuses, and may be asked for less.
    let ask = |features| ioctl(&fd, UFFDIO_API, &mut [UFFD_API, features, 0]);
    let moves = ask(UFFD_FEATURE_MOVE).is_ok();
    if !moves {
        ask(0).map_err(|error| MemoryError::NoUserfault { error })?;
    }
    Ok((fd, moves))
}

fn open_device() -> io::Result<OwnedFd> {
    let device = std::fs::OpenOptions::new().read(true).write(true).open("/dev/userfaultfd")?;
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: this ioctl takes flags by value and returns a new descriptor or an error.
    let fd = unsafe { libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW, flags) };
    owned(fd.into())
}

fn open_syscall() -> io::Result<OwnedFd> {
    // SAFETY: the system call takes flags and returns a new descriptor or an error.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
    owned(fd)
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// An ioctl whose argument is an array of 64-bit fields.
fn ioctl<const N: usize>(fd: &OwnedFd, number: u64, argument: &mut [u64; N]) -> io::Result<()> {
    assert_eq!(number >> 16 & 0x3fff, 8 * N as u64, "the ioctl's size is the argument's");
    // SAFETY: the argument has the size the number says; addresses in it are guest memory mapped by `GuestRam`
    // or a slice the caller holds, and the kernel checks the ranges.
    match unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), number, argument.as_mut_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::bulk;
    use crate::memory::layout::Layout;

    #[test]
    #[cfg_attr(no_userfaultfd, ignore = "needs userfaultfd")]
    fn a_touch_of_a_missing_page_waits_for_its_content() {
        let ram = GuestRam::new(Layout::for_bytes(32 << 20).unwrap()).unwrap();
        bulk::copy_in(&ram, 0, &[9; 3 * PAGE as usize]);
        ram.discard(PAGE, PAGE).unwrap();
        let faults = Userfault::catch(Arc::clone(&ram)).unwrap();
        std::thread::scope(|scope| {
            let toucher = scope.spawn(|| {
                let mut pages = [0; 3 * PAGE as usize];
                bulk::copy_out(&ram, 0, &mut pages);
                [pages[0], pages[PAGE as usize], pages[2 * PAGE as usize]]
            });
            let mut touched = Vec::new();
            while touched.is_empty() {
                faults.wait(Duration::from_secs(5), &mut touched).unwrap();
            }
            assert_eq!(touched, [PAGE]);
            faults.place(PAGE, &[5; PAGE as usize]).unwrap();
            assert_eq!(toucher.join().unwrap(), [9, 5, 9]);
        });
        let twice = faults.place(0, &[7; PAGE as usize]).unwrap_err();
        assert_eq!(twice.to_string(), "page 0x0 was already there");
        let twice = faults.place_zeros(8 * PAGE, PAGE).and_then(|()| faults.place_zeros(7 * PAGE, 2 * PAGE));
        assert_eq!(twice.unwrap_err().to_string(), "page 0x8 was already there");
        faults.fill_hole(9 * PAGE).and_then(|()| faults.fill_hole(9 * PAGE)).unwrap();
        faults.close();
        assert!(ram.is_zero_page(10 * PAGE), "after closing a touch finds zeros");
    }
}
