//! Which parts of guest memory exist: asked of this process's page tables, without touching a page.
//!
//! A page exists that holds something: it is in memory or in swap. One that was never touched, was taken away, or was
//! only ever read (the kernel shows its one page of zeros then) reads as zero and need not be sent. Some kernels count a huge
//! page of zeros among those that exist, which costs time and no more.
//! (Documentation/admin-guide/mm/pagemap.rst; constants from linux/fs.h.)

#![expect(unsafe_code, reason = "PAGEMAP_SCAN takes pointers")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::LazyLock;

use super::PAGE;

/// `_IOWR('f', 16, struct pm_scan_arg)`. Since Linux 6.7.
const PAGEMAP_SCAN: u64 = 0xc060_6610;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_PFNZERO: u64 = 1 << 5;
/// Of an entry of the file: the page is in memory, or in swap.
const ENTRY_EXISTS: u64 = 1 << 63 | 1 << 62;

/// Ranges of one answer, entries of one read.
const AT_ONCE: usize = 512;

/// The page tables of this process, as a file. Of the process and not of a memory: so are they.
static PAGEMAP: LazyLock<io::Result<File>> = LazyLock::new(|| File::open("/proc/self/pagemap"));

/// From here on the question can be asked, also where the process loses sight of its files later.
pub fn be_able_to_ask() {
    LazyLock::force(&PAGEMAP);
}

/// The part of the kernel's answer that is looked at.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// Calls `each(host address, bytes)` for the parts of a range that exist, ascending.
///
/// # Errors
/// When the kernel does not say.
pub(super) fn each_existing(host: usize, bytes: u64, mut each: impl FnMut(usize, u64)) -> io::Result<()> {
    let pagemap = PAGEMAP.as_ref().map_err(|error| io::Error::new(error.kind(), error.to_string()))?;
    match scan(pagemap, host as u64, bytes, &mut each) {
        // A kernel that knows no such question.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)) => {
            read(pagemap, host, bytes, each)
        }
        result => result,
    }
}

fn scan(pagemap: &File, host: u64, bytes: u64, each: &mut impl FnMut(usize, u64)) -> io::Result<()> {
    let mut regions = [Region::default(); AT_ONCE];
    let (mut at, end) = (host, host + bytes);
    while at < end {
        // struct pm_scan_arg: size, flags, start, end, walk_end, vec, vec_len, max_pages, inverted, all of, any of, told.
        let exists = PAGE_IS_PRESENT | PAGE_IS_SWAPPED;
        let vector = regions.as_mut_ptr() as u64;
        let (zero, told) = (PAGE_IS_PFNZERO, exists);
        let mut request = [96, 0, at, end, 0, vector, AT_ONCE as u64, 0, zero, zero, exists, told];
        // SAFETY: the argument has the size that it and the number say; the kernel writes `AT_ONCE` regions at most to
        // `regions`, which lives until the call returns, and the end of its walk to the argument.
        let found = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, request.as_mut_ptr()) };
        let found = usize::try_from(found).map_err(|_| io::Error::last_os_error())?;
        for region in &regions[..found] {
            each(region.start as usize, region.end - region.start);
        }
        if request[4] <= at {
            // It looked at nothing: no page may be passed over.
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        at = request[4];
    }
    Ok(())
}

/// The same for kernels before 6.7, page by page. A page of zeros that was only read counts as one that exists.
fn read(pagemap: &File, host: usize, bytes: u64, mut each: impl FnMut(usize, u64)) -> io::Result<()> {
    let mut entries = [0; 8 * AT_ONCE];
    let (mut run, pages) = (None, bytes / PAGE);
    for first in (0..pages).step_by(AT_ONCE) {
        let count = (pages - first).min(AT_ONCE as u64);
        let entries = &mut entries[..8 * count as usize];
        pagemap.read_exact_at(entries, (host as u64 / PAGE + first) * 8)?;
        for (page, entry) in (first..).zip(entries.chunks_exact(8)) {
            let exists = u64::from_ne_bytes(entry.try_into().expect("eight bytes")) & ENTRY_EXISTS != 0;
            match (run, exists) {
                (None, true) => run = Some(page),
                (Some(start), false) => {
                    each(host + (start * PAGE) as usize, (page - start) * PAGE);
                    run = None;
                }
                _ => {}
            }
        }
    }
    if let Some(start) = run {
        each(host + (start * PAGE) as usize, (pages - start) * PAGE);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::bulk;
    use crate::memory::layout::Layout;
    use crate::memory::ram::GuestRam;

    #[test]
    fn both_questions_are_answered_alike() {
        let bytes = 16 << 20;
        let ram = GuestRam::new(Layout::for_bytes(bytes).unwrap()).unwrap();
        ram.forbid_huge_pages();
        for page in [0, 1, 2, 511, 512, 1023, 2048, 4095] {
            bulk::copy_in(&ram, page * PAGE, &[1]);
        }
        let host = ram.host(0, bytes) as usize;
        let pagemap = PAGEMAP.as_ref().unwrap();
        let (mut scanned, mut listed) = (Vec::new(), Vec::new());
        read(pagemap, host, bytes, |at, len| listed.push(((at - host) as u64 / PAGE, len / PAGE))).unwrap();
        assert_eq!(listed, [(0, 3), (511, 2), (1023, 1), (2048, 1), (4095, 1)]);
        match scan(pagemap, host as u64, bytes, &mut |at, len| {
            scanned.push(((at - host) as u64 / PAGE, len / PAGE));
        }) {
            Ok(()) => assert_eq!(scanned, listed),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENOTTY), "{error}"),
        }
    }
}
