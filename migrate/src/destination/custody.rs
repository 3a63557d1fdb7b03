//! The destination's hold on the guest: does what `handover` says, and nothing else does. What is promised is in the journal
//! before it is done.

use std::sync::Arc;
use std::time::Duration;

use crate::failure::Failure;
use crate::guest::{Arriving, GuestError};
use crate::handover::{Destination, DestinationAction, DestinationEvent};
use crate::journal::{Journal, Promise, now};
use crate::wire::limits::PROMISE;

pub(super) struct Custody {
    guest: Arc<dyn Arriving>,
    state: Destination,
    journal: Journal,
    /// It stands still until nothing is missing.
    suspended: bool,
    promised: Duration,
}

impl Custody {
    pub(super) fn new(guest: Arc<dyn Arriving>, journal: Journal) -> Self {
        Self { guest, state: Destination::Arriving, journal, suspended: false, promised: Duration::ZERO }
    }

    pub(super) fn state(&self) -> Destination {
        self.state
    }

    /// Takes an event and does to the guest what is due. What is due to be said, the caller says.
    pub(super) fn on(&mut self, event: DestinationEvent) -> Result<(), Failure> {
        let Some((state, action)) = self.state.on(event) else {
            return Err(Failure::Bug(format!("{event:?} in state {:?}", self.state)));
        };
        self.state = state;
        match action {
            DestinationAction::RunHere => self.run()?,
            DestinationAction::ThrowAway | DestinationAction::SendNotRunning => {
                self.guest.discard();
                // A source that asks later hears the same of a record that was lost, from this process.
                let _ = self.journal.write(Promise::Discarded);
            }
            DestinationAction::Suspend => {
                self.guest.suspend();
                self.suspended = true;
            }
            DestinationAction::RunOn | DestinationAction::None | DestinationAction::SendReady => {}
        }
        if state == Destination::Arrived && event == DestinationEvent::Complete {
            self.arrive()?;
        }
        Ok(())
    }

    /// When it was last promised to obey commit.
    pub(super) fn promise(&mut self) {
        self.promised = now();
    }

    /// Whether a commit would come too late.
    pub(super) fn has_lapsed(&self) -> bool {
        now().saturating_sub(self.promised) > PROMISE
    }

    /// The record first: a process that dies in between has not run it, and one that comes after knows no better. It may
    /// have taken long: the promise is looked at once more, just before the guest runs.
    fn run(&mut self) -> Result<(), Failure> {
        let written = self.journal.write(Promise::Running).map_err(GuestError::from);
        if self.has_lapsed() {
            let _ = self.journal.write(Promise::Arriving);
            self.state = Destination::Held;
            return Err(Failure::Lapsed { peer: "the source".to_owned(), after: PROMISE });
        }
        if let Err(error) = written.and_then(|()| self.guest.resume()) {
            self.on(DestinationEvent::NotStarted)?;
            return Err(Failure::guest("start the guest")(error));
        }
        Ok(())
    }

    /// The operator's word that the source does not run it and never will. Where it cannot be started it stays held.
    pub(super) fn force(&mut self) -> Result<(), Failure> {
        if self.state.on(DestinationEvent::Forced).is_none() {
            return Err(Failure::Bug(format!("Forced in state {:?}", self.state)));
        }
        let written = self.journal.write(Promise::Running).map_err(GuestError::from);
        if let Err(error) = written.and_then(|()| self.guest.resume()) {
            let _ = self.journal.write(Promise::Arriving);
            return Err(Failure::guest("start the guest")(error));
        }
        self.promise();
        // It runs already, and is not started twice.
        self.on(DestinationEvent::Forced)
    }

    fn arrive(&mut self) -> Result<(), Failure> {
        if std::mem::take(&mut self.suspended) {
            self.guest.run_on().map_err(Failure::guest("run the guest on"))?;
        }
        // It says no more than that it ran here, which is on record.
        let _ = self.journal.write(Promise::Arrived);
        Ok(())
    }

    /// The source has said its last word: nobody will ask any more.
    pub(super) fn conclude(&mut self) {
        self.journal.remove();
    }

    /// Puts on stable storage what was only written in the pause.
    pub(super) fn sync(&self) {
        // As long as this process lives it needs no record.
        let _ = self.journal.sync();
    }

    /// Something went wrong: the conversation, or this side itself.
    pub(super) fn fail(&mut self, failure: &Failure) {
        let event = match failure {
            // A source gives up only before commit, and then it keeps its guest.
            Failure::Aborted { .. }
                if self.state.on(DestinationEvent::Disowned).is_some() && !self.state.runs() =>
            {
                DestinationEvent::Disowned
            }
            failure if failure.is_of_conversation() => DestinationEvent::Failed,
            _ => DestinationEvent::Broken,
        };
        let known = self.state.on(event).is_some();
        // Every state knows this event.
        let _ = self.on(if known { event } else { DestinationEvent::Failed });
    }
}
