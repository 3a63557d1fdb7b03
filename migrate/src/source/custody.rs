//! The source's hold on the guest: does what `handover` says, and nothing else does.

use crate::failure::Failure;
use crate::guest::Departing;
use crate::handover::{Source, SourceAction, SourceEvent};
use crate::report::Outcome;

pub(super) struct Custody<'a> {
    guest: &'a dyn Departing,
    state: Source,
    /// Why the guest could not be resumed although it should.
    trouble: Option<String>,
}

impl<'a> Custody<'a> {
    pub(super) fn new(guest: &'a dyn Departing) -> Self {
        Self { guest, state: Source::Here, trouble: None }
    }

    /// Takes an event and runs the guest on here if that is due.
    pub(super) fn on(&mut self, event: SourceEvent) -> Result<SourceAction, Failure> {
        let Some((state, action)) = self.state.on(event) else {
            return Err(Failure::Bug(format!("{event:?} in state {:?}", self.state)));
        };
        self.state = state;
        if action == SourceAction::RunHere {
            self.trouble = self.guest.resume().err().map(|error| error.0);
        }
        Ok(action)
    }

    /// Something went wrong.
    pub(super) fn fail(&mut self) {
        // Every state knows this event.
        let _ = self.on(SourceEvent::Failed);
    }

    /// How it ended.
    pub(super) fn outcome(&self) -> Outcome {
        match self.state {
            Source::Moved => Outcome::Moved,
            Source::Here | Source::Kept if self.trouble.is_none() => Outcome::Kept,
            _ => Outcome::Unknown,
        }
    }

    /// Why the guest does not run here although it should.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }
}
