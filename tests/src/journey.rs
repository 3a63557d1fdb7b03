//! One guest on its way: the VMMs it was on, in order, and the proof that it arrived as it left.

use migrate::report::Report;

use crate::{Ending, Guest, Transcript, Vm, World, until};

/// A guest and the VMMs it has been on, the last being where it is.
#[derive(Debug)]
pub struct Journey<'a> {
    world: &'a World,
    stations: Vec<Vm>,
}

impl<'a> Journey<'a> {
    /// Starts a guest and waits until it works.
    #[must_use]
    #[track_caller]
    pub fn begin(world: &'a World, guest: Guest) -> Self {
        let journey = Self::early(world, guest);
        until("the guest to work", || journey.here().transcript().has_begun().then_some(()));
        journey
    }

    /// Starts a guest and waits for nothing more.
    #[must_use]
    #[track_caller]
    pub fn early(world: &'a World, guest: Guest) -> Self {
        Self { world, stations: vec![world.run("vm0", guest)] }
    }

    /// Where the guest is.
    ///
    /// # Panics
    /// Never.
    pub fn here(&self) -> &Vm {
        self.stations.last().expect("the first station")
    }

    /// Where the guest is, to do something to it.
    ///
    /// # Panics
    /// Never.
    pub fn here_mut(&mut self) -> &mut Vm {
        self.stations.last_mut().expect("the first station")
    }

    /// Tries to move the guest to an address where it will not get to, or not for certain.
    #[must_use]
    #[track_caller]
    pub fn attempt(&self, to: &str, words: &str) -> Ending {
        self.world.migrate(self.here(), to, words).end()
    }

    /// Moves the guest to a fresh VMM and makes sure that it arrived whole: see [`arrive`](Self::arrive).
    #[track_caller]
    pub fn hop(&mut self, words: &str) -> Report {
        let next = self.world.receive(&format!("vm{}", self.stations.len()));
        let report = self.attempt(&next.address(), words).moved();
        self.arrive(next);
        report
    }

    /// The guest has moved there: the VMM it left has ended well, and it [works on](Self::goes_on) there.
    ///
    /// # Panics
    /// When any of that is not so.
    #[track_caller]
    pub fn arrive(&mut self, next: Vm) {
        let left = self.here_mut().end();
        assert_eq!(left.code, Some(0), "a VMM whose guest has moved ends well: {}", left.err);
        self.stations.push(next);
        self.goes_on();
    }

    /// The guest works on here for a second at least, and no line of its console is missing from any station, none is said
    /// twice, and it has found no damage.
    ///
    /// # Panics
    /// When any of that is not so.
    #[track_caller]
    pub fn goes_on(&self) {
        let second = self.here().works_on();
        assert!(second.work_per_s > 0, "the guest does no work: {second:?}");
        let told = Transcript::of(self.stations.iter().map(Vm::console));
        told.check().unwrap_or_else(|wrong| panic!("{wrong}\n{}", told.text()));
        assert_eq!(self.here().info().corruptions, Some(0), "as the VMM sees it");
    }
}
