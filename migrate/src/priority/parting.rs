//! How a small host's cores are parted during a move: some for the guest's vCPUs and whoever they wait for, the others for bulk data.
//! All of them keep to theirs while pages are missing. Within one host bulk data does so from the start, unless the guest stands still
//! meanwhile, and vCPUs are sent to theirs when it begins.
//!
//! Where there is not a core for each busy thread, the scheduler has a thread that moves bulk data on a vCPU's core now and then, for
//! some milliseconds, be the other core idle (docs/decisions/cores-are-parted.md). Which cores are whose follows from their numbers,
//! so that source and destination that may use the same ones agree without a word.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::{core_beyond, cores_here};
use crate::options::Mode;

/// Cores of a host that is parted, at most: a larger one has other guests, and room for the scheduler to choose.
const FEW: u32 = 4;

/// The cores of a small host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Parting {
    /// For vCPUs, and whoever brings them what they wait for: the last ones, as many as there are vCPUs. A host's interrupts and
    /// housekeeping are on the first, as a rule.
    guest: CpuSet,
    /// The others.
    bulk: CpuSet,
}

impl Parting {
    /// Of the cores that the calling thread may use, for a guest with so many vCPUs and a migration with so many data connections.
    /// None where there is a core besides one for each vCPU and each connection, or the vCPUs need all; nor where the process has less
    /// time than its cores.
    pub(crate) fn here(vcpus: u32, streams: u32) -> Option<Self> {
        let all = sched_getaffinity(None).ok()?;
        let few = !core_beyond(vcpus.saturating_add(streams)) && all.count() == cores_here();
        few.then(|| Self::of(&all, vcpus)).flatten()
    }

    fn of(all: &CpuSet, vcpus: u32) -> Option<Self> {
        let fits = (1..all.count()).contains(&vcpus) && all.count() <= FEW;
        let (mut guest, mut bulk) = (CpuSet::new(), CpuSet::new());
        let cores = (0..CpuSet::MAX_CPU).rev().filter(|core| all.is_set(*core));
        for (nth, core) in cores.enumerate() {
            if nth < vcpus as usize { &mut guest } else { &mut bulk }.set(core);
        }
        fits.then_some(Self { guest, bulk })
    }

    /// How they are parted before pages are missing. Only within one host does whoever receives have to make room for a guest, and whoever
    /// sends have another core than it; and in stop-and-copy nobody runs.
    pub(crate) fn at_the_start(&self, mode: Mode, is_within_host: bool) -> Option<&Self> {
        (is_within_host && mode != Mode::Stopcopy).then_some(self)
    }

    /// Where vCPUs are to run.
    pub(crate) fn for_vcpus(&self) -> &CpuSet {
        &self.guest
    }

    /// Where bulk data is to be moved.
    pub(super) fn for_bulk(&self) -> &CpuSet {
        &self.bulk
    }

    /// The calling thread keeps to the cores of vCPUs. Best effort: one that may not choose runs anywhere.
    pub(super) fn serve_vcpus(&self) {
        let _ = sched_setaffinity(None, &self.guest);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::super::Turns;
    use super::*;

    fn set(cores: impl IntoIterator<Item = usize>) -> CpuSet {
        let mut set = CpuSet::new();
        cores.into_iter().for_each(|core| set.set(core));
        set
    }

    #[test]
    fn the_last_cores_are_for_vcpus_and_the_others_for_bulk_data() {
        let parted = |all: &[usize], vcpus| {
            let parting = Parting::of(&set(all.iter().copied()), vcpus)?;
            let cores = |of: CpuSet| (0..CpuSet::MAX_CPU).filter(|core| of.is_set(*core)).collect::<Vec<_>>();
            Some((cores(parting.guest), cores(parting.bulk)))
        };
        assert_eq!(parted(&[0, 1], 1), Some((vec![1], vec![0])));
        assert_eq!(parted(&[2, 5, 7], 1), Some((vec![7], vec![2, 5])));
        assert_eq!(parted(&[0, 1, 2, 3], 3), Some((vec![1, 2, 3], vec![0])));
        assert_eq!(parted(&[0, 1], 2), None, "the vCPUs need all");
        assert_eq!(parted(&[3], 1), None, "there is one core");
        assert_eq!(parted(&[0, 1], 0), None, "nobody to make room for");
        assert_eq!(parted(&[0, 1, 2, 3, 4], 1), None, "there is room to choose");
    }

    #[test]
    fn threads_keep_to_their_part() {
        // On a thread of its own, which nobody else has.
        thread::scope(|scope| {
            scope.spawn(|| {
                let now = || sched_getaffinity(None).expect("of this thread");
                let all = now();
                let mut cores = (0..CpuSet::MAX_CPU).filter(|core| all.is_set(*core));
                let (first, last) = (cores.next().expect("it runs"), cores.next_back());
                // Of a host with one core both parts are that one.
                let parting = Parting { guest: set([last.unwrap_or(first)]), bulk: set([first]) };
                let mut turns = Turns::beside(1);
                turns.part(None);
                assert_eq!(now(), all);
                turns.part(Some(&parting));
                turns.part(Some(&Parting { bulk: parting.guest, ..parting }));
                assert_eq!(now(), parting.bulk, "as it was told first");
                drop(turns);
                assert_eq!(now(), all);
                parting.serve_vcpus();
                assert_eq!(now(), parting.guest);
            });
        });
    }
}
