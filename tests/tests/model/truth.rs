//! What must be true of every world that can be reached.

use migrate::handover::{Destination, Source};

use super::world::{Action, Budget, World};

impl World {
    pub(crate) fn runners(&self) -> u32 {
        let here = self.source.as_ref().is_some_and(|here| here.state.runs());
        u32::from(here) + u32::from(self.runs_at_destination())
    }

    fn runs_at_destination(&self) -> bool {
        self.arrival.as_ref().is_some_and(|there| there.state.runs())
    }

    /// Somebody runs it, or some side has it and says so, or whoever had it is dead.
    pub(crate) fn is_accounted_for(&self) -> bool {
        let died_with_source = self.source.is_none();
        let kept_here = self.source.as_ref().is_some_and(|here| here.state != Source::Moved);
        let has_it_there = self.arrival.as_ref().is_some_and(|there| there.state == Destination::Orphaned);
        let died_there =
            self.source.as_ref().is_some_and(|here| here.state == Source::Moved) && self.arrival.is_none();
        self.runners() == 1 || died_with_source || kept_here || has_it_there || died_there
    }

    pub(crate) fn gave_back_truly(&self) -> bool {
        !self.lied
    }

    pub(crate) fn moved_truly(&self) -> bool {
        self.source.as_ref().is_none_or(|here| here.state != Source::Moved || self.ran_there == self.session)
    }

    pub(crate) fn has_moved(&self) -> bool {
        self.source.as_ref().is_some_and(|here| here.state == Source::Moved)
    }

    pub(crate) fn was_given_back(&self) -> bool {
        self.given_back && self.in_doubt_once
    }

    pub(crate) fn is_unknown(&self) -> bool {
        self.waits_for_operator().is_some()
    }

    pub(crate) fn was_forced_here(&self) -> bool {
        self.forced_here
    }

    pub(crate) fn was_forced_there(&self) -> bool {
        self.forced_there
    }

    /// With both processes alive and a network that works they find out; the operator says no more than `migrate recover`.
    pub(crate) fn heals(&self) -> bool {
        let mut world = self.clone();
        if world.source.is_none() {
            return true;
        }
        world.destination_lives = true;
        world.left = Budget {
            attempts: 0,
            calls: u8::MAX,
            crashes: 0,
            power: false,
            forces: 0,
            repeats: 0,
            ..self.left
        };
        // What is on its way does not come any more; both sides notice.
        if world.source.as_ref().is_some_and(|here| here.line.is_some()) {
            world.source_loses();
        }
        if world.arrival.as_ref().is_some_and(|there| there.line.is_some()) {
            world.destination_loses();
        }
        world.lines.clear();
        let _ = world.act(Action::Recover);
        for _ in 0..12 {
            let hears = [0, 1].map(|line| Action::DestinationHears { line, starts: true });
            for action in [Action::Call, Action::TellKept, Action::SourceHears, Action::Complete]
                .into_iter()
                .chain(hears)
            {
                let possible =
                    !matches!(action, Action::DestinationHears { line, .. } if line >= world.lines.len());
                if possible && world.clone().act(action).is_some() {
                    let _ = world.act(action);
                    world.sweep();
                }
            }
        }
        let lost_there = world.arrival.as_ref().is_none_or(|there| there.state == Destination::Discarded);
        let still_held = world.arrival.as_ref().is_some_and(|there| there.state == Destination::Held);
        !still_held && world.runners() == 1 || (lost_there && (world.is_unknown() || world.has_moved()))
    }
}
