//! How a small host's cores are parted during a move: some for the guest's vCPUs and whoever they wait for, the others for bulk data.
//! All of them keep to theirs while pages are missing. Within one host bulk data does so from the start, unless the guest stands still
//! meanwhile, and vCPUs are sent to theirs when it begins.
//!
//! Where there is not a core for each busy thread, the scheduler has a thread that moves bulk data on a vCPU's core now and then, for
//! some milliseconds, be the other core idle (docs/decisions/cores-are-parted.md). vCPUs stay where they are: the host's housekeeping
//! has come to the other cores meanwhile, and bulk data gives way to it. Within one host the source tells the destination which these are.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use scheduling::{common, difference, go_to, these};

use super::{core_beyond, cores_here};
use crate::options::Mode;
use crate::wire::message::Preflight;

/// Cores of a host that is parted, at most: a larger one has other guests, and room for the scheduler to choose.
const FEW: u32 = 4;

/// The cores of a small host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Parting {
    /// For vCPUs, and whoever brings them what they wait for: those that they are on, if each has one; else, or where that is not known,
    /// as many of the last ones. A host's interrupts are on the first, as a rule.
    guest: CpuSet,
    /// The others.
    bulk: CpuSet,
}

impl Parting {
    /// Of the cores that the calling thread may use, for a guest with so many vCPUs and a migration with so many data connections.
    /// None where there is a core besides one for each vCPU and each connection, or the vCPUs need all; nor where the process has less
    /// time than its cores. Where they are parted it is asked which ones vCPUs are `on`.
    pub(crate) fn here(vcpus: u32, streams: u32, on: impl FnOnce() -> CpuSet) -> Option<Self> {
        let all = sched_getaffinity(None).ok()?;
        let few = !core_beyond(vcpus.saturating_add(streams)) && all.count() == cores_here();
        (few && fits(&all, vcpus)).then(|| Self::of(&all, vcpus, &on()))
    }

    /// As the source has parted them, if it is on this host and may use the same.
    pub(crate) fn as_told(preflight: &Preflight) -> Option<Self> {
        Self::here(preflight.description.vcpus, preflight.streams, || {
            these(preflight.vcpu_cores.iter().map(|core| *core as usize))
        })
    }

    fn of(all: &CpuSet, vcpus: u32, on: &CpuSet) -> Self {
        let each_has_one = |on: &CpuSet| on.count() == vcpus;
        let guest = Some(common(all, on)).filter(each_has_one).unwrap_or_else(|| last(all, vcpus));
        Self { guest, bulk: difference(all, &guest) }
    }

    /// How they are parted before pages are missing. Only within one host does whoever receives have to make room for a guest, and whoever
    /// sends have another core than it; and in stop-and-copy nobody runs.
    pub(crate) fn at_the_start(&self, mode: Mode, is_within_host: bool) -> Option<&Self> {
        (is_within_host && mode != Mode::Stopcopy).then_some(self)
    }

    /// What the destination is [told](Self::as_told).
    pub(crate) fn vcpu_cores(&self) -> Vec<u32> {
        let theirs = (0..CpuSet::MAX_CPU).filter(|core| self.guest.is_set(*core));
        theirs.map(|core| core as u32).collect()
    }

    /// Where vCPUs are to run.
    pub(crate) fn for_vcpus(&self) -> &CpuSet {
        &self.guest
    }

    /// Where bulk data is to be moved.
    pub(super) fn for_bulk(&self) -> &CpuSet {
        &self.bulk
    }

    /// The calling thread goes on where bulk data is moved, and may go anywhere from there: a thread that is woken begins where it was last,
    /// on a vCPU's core perhaps.
    pub(crate) fn leave_vcpu_cores(&self) {
        go_to(&self.bulk);
    }

    /// The calling thread keeps to the cores of vCPUs. Best effort: one that may not choose runs anywhere.
    pub(super) fn serve_vcpus(&self) {
        let _ = sched_setaffinity(None, &self.guest);
    }
}

/// So many of the last ones.
fn last(all: &CpuSet, number: u32) -> CpuSet {
    these((0..CpuSet::MAX_CPU).rev().filter(|core| all.is_set(*core)).take(number as usize))
}

/// Whether so many cores can be parted for so many vCPUs.
fn fits(all: &CpuSet, vcpus: u32) -> bool {
    (1..all.count()).contains(&vcpus) && all.count() <= FEW
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::super::Turns;
    use super::*;

    #[test]
    fn the_cores_that_vcpus_are_on_are_theirs_or_the_last_and_the_others_are_for_bulk_data() {
        let parted = |all: &[usize], vcpus, on: &[usize]| {
            let parting = Parting::of(&these(all.iter().copied()), vcpus, &these(on.iter().copied()));
            let cores = |of: CpuSet| (0..CpuSet::MAX_CPU).filter(|core| of.is_set(*core)).collect::<Vec<_>>();
            assert_eq!(
                parting.vcpu_cores(),
                cores(parting.guest).into_iter().map(|core| core as u32).collect::<Vec<_>>()
            );
            (cores(parting.guest), cores(parting.bulk))
        };
        assert_eq!(parted(&[0, 1], 1, &[0]), (vec![0], vec![1]));
        assert_eq!(parted(&[0, 1], 1, &[1]), (vec![1], vec![0]));
        assert_eq!(parted(&[0, 1], 1, &[]), (vec![1], vec![0]), "it is not known");
        assert_eq!(parted(&[2, 5, 7], 1, &[4]), (vec![7], vec![2, 5]), "it is another's");
        assert_eq!(parted(&[0, 1, 2, 3], 3, &[0]), (vec![1, 2, 3], vec![0]), "they share one");
        assert_eq!(parted(&[0, 1, 2, 3], 3, &[0, 2, 3]), (vec![0, 2, 3], vec![1]));
        assert_eq!(parted(&[0, 1, 2], 1, &[0, 1]), (vec![2], vec![0, 1]), "it was told of too many");
    }

    #[test]
    fn a_host_is_parted_if_it_has_few_cores_and_one_to_spare() {
        let fits = |all: &[usize], vcpus| super::fits(&these(all.iter().copied()), vcpus);
        assert!(fits(&[0, 1], 1) && fits(&[2, 5, 7], 1) && fits(&[0, 1, 2, 3], 3));
        assert!(!fits(&[0, 1], 2), "the vCPUs need all");
        assert!(!fits(&[3], 1), "there is one core");
        assert!(!fits(&[0, 1], 0), "nobody to make room for");
        assert!(!fits(&[0, 1, 2, 3, 4], 1), "there is room to choose");
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
                let parting = Parting { guest: these([last.unwrap_or(first)]), bulk: these([first]) };
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
