//! Room beside guest memory where the content of whole blocks waits until it becomes the guest's, by moving pages instead of
//! copying bytes.
//!
//! A block is one huge page where the host has them: then the guest gets it as one, too. Whether that is worth it the host's
//! pace says ([`huge`](super::huge)): a page that was moved away must be made anew.

#![expect(unsafe_code, reason = "memory that several threads fill part by part")]

use std::io;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use scheduling::thread_time;

use super::huge::{HUGE, Pace, Size};
use super::ram::madvise;
use super::userfault::Userfault;

/// Bytes of a block: of a huge page.
pub const BLOCK: u64 = HUGE;

/// Parts of a block, each of which has one owner at a time.
pub const PARTS: u64 = 8;

const PART: usize = (BLOCK / PARTS) as usize;

/// Blocks there are.
const BLOCKS: usize = 8;

/// Room that is made and moved slower than this, by CPU time, is not worth it: `UFFDIO_COPY` makes and fills small pages at 3 to 5 GB/s.
const SLOW_BYTES_PER_S: f64 = 3e9;

/// Room for a few blocks.
#[derive(Debug)]
pub struct Staging(Arc<Area>);

/// The room for one block of guest memory.
#[derive(Debug)]
pub struct Block {
    area: Arc<Area>,
    gpa: u64,
    host: usize,
    /// Whoever has one may use the bytes of that part.
    parts: [Mutex<()>; PARTS as usize],
}

#[derive(Debug)]
struct Area {
    faults: Arc<Userfault>,
    /// What was mapped: a block more than is used, because it need not begin at the beginning of one.
    mapped: usize,
    free: Mutex<Vec<usize>>,
    pace: Mutex<Pace>,
}

impl Staging {
    /// Room beside the memory whose faults these are; none where the kernel cannot move pages or has no huge ones.
    #[must_use]
    pub fn beside(faults: Arc<Userfault>) -> Option<Self> {
        if !faults.moves() {
            return None;
        }
        let mapped = map(Area::BYTES)?;
        let first = mapped.next_multiple_of(BLOCK as usize);
        let area = Area {
            faults,
            mapped,
            free: Mutex::new((0..BLOCKS).map(|at| first + at * BLOCK as usize).collect()),
            pace: Mutex::new(Pace::slow_below(SLOW_BYTES_PER_S)),
        };
        let advised = |advice| madvise(mapped, Area::BYTES as u64, advice).is_ok();
        (advised(libc::MADV_HUGEPAGE) && advised(libc::MADV_DONTDUMP)).then(|| Self(Arc::new(area)))
    }

    /// Room for the block at `gpa`, made ready; none where it is not worth it, or all is in use.
    #[must_use]
    pub fn block(&self, gpa: u64) -> Option<Block> {
        let area = &self.0;
        let aligned = (area.faults.ram().host(gpa, BLOCK) as u64).is_multiple_of(BLOCK);
        if !aligned || !area.faults.moves() {
            return None;
        }
        {
            let mut pace = lock(&area.pace);
            if pace.size() == Size::Small {
                // This block will be copied, which counts as respite.
                pace.note(BLOCK, Duration::ZERO);
                return None;
            }
        }
        let host = lock(&area.free).pop()?;
        let block = Block { area: Arc::clone(area), gpa, host, parts: Default::default() };
        area.timed(BLOCK, || madvise(host, BLOCK, libc::MADV_POPULATE_WRITE)).ok()?;
        Some(block)
    }
}

impl Block {
    /// Lets `with` have the bytes of a part, alone.
    ///
    /// # Panics
    /// When there is no such part.
    pub fn with_part(&self, part: u64, with: &mut dyn FnMut(&mut [u8])) {
        let _mine = lock(&self.parts[part as usize]);
        let bytes = (self.host + part as usize * PART) as *mut u8;
        // SAFETY: the part lies in memory that `area` keeps mapped, readable and writable, and that is this block's as long as
        // it lives; the lock is held, so nobody else refers to it or moves it away.
        with(unsafe { std::slice::from_raw_parts_mut(bytes, PART) });
    }

    /// Places the whole block. What it holds is lost.
    ///
    /// # Errors
    /// As for [`Userfault::place`].
    pub fn place(&self) -> io::Result<()> {
        let _all = self.parts.each_ref().map(|part| lock(part));
        // A huge page that must be split costs as much as many small ones.
        self.area.timed(0, || self.area.faults.place_moved(self.gpa, self.host, BLOCK))
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        lock(&self.area.free).push(self.host);
    }
}

impl Area {
    const BYTES: usize = (BLOCKS + 1) * BLOCK as usize;

    /// Does part of what `bytes` cost, and notes what it took.
    fn timed<T>(&self, bytes: u64, work: impl FnOnce() -> T) -> T {
        let (start, before) = (Instant::now(), thread_time());
        let done = work();
        // Others may have had the core meanwhile, which says nothing against the host; but not for that long.
        let took = thread_time().saturating_sub(before).max(start.elapsed() / 4);
        lock(&self.pace).note(bytes, took);
        done
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: mapped by `map`, and every block, which alone refers to it, has kept `self`.
        unsafe { libc::munmap(self.mapped as *mut libc::c_void, Self::BYTES) };
    }
}

/// Private memory like the guest's: pages move between like mappings only.
fn map(bytes: usize) -> Option<usize> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping where the kernel chooses; nothing that exists is replaced.
    let at = unsafe { libc::mmap(ptr::null_mut(), bytes, protection, flags, -1, 0) };
    (at != libc::MAP_FAILED).then_some(at as usize)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::bulk;
    use crate::memory::layout::Layout;
    use crate::memory::ram::GuestRam;

    fn faults() -> Arc<Userfault> {
        let ram = GuestRam::new(Layout::for_bytes(32 << 20).unwrap()).unwrap();
        Arc::new(Userfault::catch(ram).unwrap())
    }

    /// A block at `gpa` whose parts hold their number and one.
    fn filled(staging: &Staging, gpa: u64) -> Block {
        let block = staging.block(gpa).expect("room");
        (0..PARTS).for_each(|part| block.with_part(part, &mut |bytes| bytes.fill(part as u8 + 1)));
        block
    }

    fn block_of_parts() -> Vec<u8> {
        (0..PARTS).flat_map(|part| vec![part as u8 + 1; PART]).collect()
    }

    /// None where the kernel moves nothing, which is before Linux 6.8.
    fn staging(faults: &Arc<Userfault>) -> Option<Staging> {
        let staging = Staging::beside(Arc::clone(faults));
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>());
        let release = (numbers.next().unwrap().unwrap(), numbers.next().unwrap().unwrap());
        assert!(staging.is_some() || release < (6, 8), "Linux {release:?} moves pages");
        staging
    }

    /// Bytes that the mapping around `host` has in huge pages.
    fn huge_bytes(host: usize) -> u64 {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let holds = |line: &&str| {
            let range = line.split(' ').next().and_then(|range| range.split_once('-'));
            let bound = |text| usize::from_str_radix(text, 16).ok();
            range.is_some_and(|(from, to)| bound(from) <= Some(host) && Some(host) < bound(to))
        };
        let mut lines = smaps.lines().skip_while(|line| !holds(line));
        let kib = lines.find_map(|line| line.strip_prefix("AnonHugePages:")).expect("its mapping");
        kib.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() << 10
    }

    #[test]
    #[cfg_attr(no_userfaultfd, ignore = "needs userfaultfd")]
    fn a_block_is_moved_whole_and_wakes_who_waits_for_it() {
        let faults = faults();
        let Some(staging) = staging(&faults) else { return };
        let block = filled(&staging, 2 * BLOCK);
        std::thread::scope(|scope| {
            let toucher = scope.spawn(|| {
                let mut page = [0; 4096];
                bulk::copy_out(faults.ram(), 2 * BLOCK + 5 * PART as u64, &mut page);
                page
            });
            let mut touched = Vec::new();
            while touched.is_empty() {
                faults.wait(Duration::from_secs(5), &mut touched).unwrap();
            }
            assert_eq!(touched, [2 * BLOCK + 5 * PART as u64]);
            block.place().unwrap();
            assert_eq!(toucher.join().unwrap(), [6; 4096]);
        });
        let mut content = vec![0; BLOCK as usize];
        bulk::copy_out(faults.ram(), 2 * BLOCK, &mut content);
        assert!(content.chunks(PART).zip(1..).all(|(part, number)| part.iter().all(|byte| *byte == number)));
        assert!(faults.moves(), "nothing had to be copied");

        let untouched = filled(&staging, 4 * BLOCK);
        let was_huge = huge_bytes(untouched.host) >= BLOCK;
        untouched.place().unwrap();
        let guest = faults.ram().host(4 * BLOCK, BLOCK) as usize;
        assert_eq!(huge_bytes(guest) >= BLOCK, was_huge, "a huge page stays one");
    }

    #[test]
    #[cfg_attr(no_userfaultfd, ignore = "needs userfaultfd")]
    fn a_page_that_is_there_is_not_replaced() {
        let faults = faults();
        let Some(staging) = staging(&faults) else { return };
        faults.place(BLOCK + 3 * 4096, &[9; 4096]).unwrap();
        let error = filled(&staging, BLOCK).place().unwrap_err();
        assert_eq!(error.to_string(), "page 0x203 was already there");
        assert!(faults.moves(), "that is no want of the kernel's");
        let mut page = [0; 4096];
        bulk::copy_out(faults.ram(), BLOCK + 3 * 4096, &mut page);
        assert_eq!(page, [9; 4096]);
    }

    #[test]
    #[cfg_attr(no_userfaultfd, ignore = "needs userfaultfd")]
    fn what_the_kernel_does_not_move_is_copied_and_nothing_is_gathered_any_more() {
        #[repr(align(4096))]
        struct OfTheProgram([u8; 8192]);
        static CONTENT: OfTheProgram = OfTheProgram([7; 8192]);
        let faults = faults();
        let staging = staging(&faults);
        assert_eq!(std::hint::black_box(&CONTENT).0[4096..], [7; 4096], "it is in memory");
        faults.place_moved(4096, CONTENT.0.as_ptr() as usize, 8192).unwrap();
        let mut pages = [0; 8192];
        bulk::copy_out(faults.ram(), 4096, &mut pages);
        assert_eq!(pages, [7; 8192]);
        assert!(staging.is_none_or(|staging| staging.block(BLOCK).is_none()));
        assert!(Staging::beside(faults).is_none());
    }

    /// Where the kernel says of pages it has just moved that they were there, the guest would be lost.
    #[test]
    #[cfg_attr(no_userfaultfd, ignore = "needs userfaultfd")]
    fn a_first_touch_while_a_block_is_moved_does_no_harm() {
        const ROUNDS: u64 = 200;
        const MOVED: u64 = 12;
        let parts = block_of_parts();
        for round in 0..ROUNDS {
            let faults = faults();
            let Some(staging) = staging(&faults) else { return };
            let barrier = std::sync::Barrier::new(2);
            std::thread::scope(|scope| {
                let toucher = scope.spawn(|| {
                    for at in 0..MOVED {
                        barrier.wait();
                        (0..round % 16 * 40).for_each(|_| std::hint::spin_loop());
                        let mut byte = [0];
                        bulk::copy_out(
                            faults.ram(),
                            at * BLOCK + (at + round) % PARTS * PART as u64,
                            &mut byte,
                        );
                        assert_eq!(u64::from(byte[0]), (at + round) % PARTS + 1);
                    }
                });
                for at in 0..MOVED {
                    let Some(block) = staging.block(at * BLOCK) else {
                        barrier.wait();
                        faults.place(at * BLOCK, &parts).unwrap();
                        continue;
                    };
                    (0..PARTS)
                        .for_each(|part| block.with_part(part, &mut |bytes| bytes.fill(part as u8 + 1)));
                    barrier.wait();
                    block.place().unwrap();
                }
                toucher.join().unwrap();
            });
            for at in 0..MOVED {
                let mut content = vec![0; BLOCK as usize];
                bulk::copy_out(faults.ram(), at * BLOCK, &mut content);
                assert!(content == parts, "block {at} of round {round}");
            }
        }
    }

    #[test]
    #[cfg_attr(no_userfaultfd, ignore = "needs userfaultfd")]
    fn there_is_room_for_a_few_blocks_and_again_when_they_are_done_with() {
        let Some(staging) = staging(&faults()) else { return };
        let blocks: Vec<_> = (0..BLOCKS as u64).map_while(|at| staging.block(at * BLOCK)).collect();
        if blocks.len() == BLOCKS {
            assert!(staging.block(9 * BLOCK).is_none());
        }
        drop(blocks);
        // On a host where huge pages are slow there is none for now.
        assert!(staging.block(9 * BLOCK).is_some() || lock(&staging.0.pace).size() == Size::Small);
    }
}
