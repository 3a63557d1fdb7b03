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
        if action == DestinationAction::RunHere
            && let Err(failure) = self.start(event)
        {
            return self.not_started(event, state, failure);
        }
        self.state = state;
        match action {
            DestinationAction::ThrowAway | DestinationAction::SendNotRunning => {
                self.guest.discard();
                // A source that asks later hears the same of a record that was lost, from this process.
                let _ = self.journal.write(Promise::Discarded);
            }
            DestinationAction::Suspend => {
                self.guest.suspend();
                self.suspended = true;
            }
            DestinationAction::RunHere
            | DestinationAction::RunOn
            | DestinationAction::None
            | DestinationAction::SendReady => {}
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

    /// The record first: a process that dies in between has not run it, and one that comes after knows no better. Writing may
    /// take long: whether the commit comes too late is looked at after it, just before the guest runs.
    fn start(&mut self, event: DestinationEvent) -> Result<(), Failure> {
        let written = self.journal.write(Promise::Running).map_err(GuestError::from);
        if event == DestinationEvent::Commit && now().saturating_sub(self.promised) > PROMISE {
            return Err(Failure::Lapsed { peer: "the source".to_owned(), after: PROMISE });
        }
        written.and_then(|()| self.guest.resume()).map_err(Failure::guest("start the guest"))
    }

    /// It did not run. After a commit that came in time nobody waits for it any more; otherwise it is held as before.
    fn not_started(
        &mut self,
        event: DestinationEvent,
        state: Destination,
        failure: Failure,
    ) -> Result<(), Failure> {
        if event == DestinationEvent::Commit && !matches!(failure, Failure::Lapsed { .. }) {
            self.state = state;
            self.on(DestinationEvent::NotStarted)?;
        } else {
            // A record that stays `running` says no more than that nobody can know.
            let _ = self.journal.write(Promise::Arriving);
        }
        Err(failure)
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
