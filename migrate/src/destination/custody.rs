//! The destination's hold on the guest: does what `handover` says, and nothing else does.

use std::sync::Arc;

use crate::failure::Failure;
use crate::guest::Arriving;
use crate::handover::{Destination, DestinationAction, DestinationEvent};

pub(super) struct Custody {
    guest: Arc<dyn Arriving>,
    state: Destination,
}

impl Custody {
    pub(super) fn new(guest: Arc<dyn Arriving>) -> Self {
        Self { guest, state: Destination::Arriving }
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
            DestinationAction::RunHere => {
                if let Err(error) = self.guest.resume() {
                    self.on(DestinationEvent::NotStarted)?;
                    return Err(Failure::guest("start the guest")(error));
                }
            }
            DestinationAction::ThrowAway | DestinationAction::SendNotRunning => self.guest.discard(),
            DestinationAction::Suspend => self.guest.suspend(),
            DestinationAction::None | DestinationAction::SendReady => {}
        }
        Ok(())
    }

    /// Something went wrong.
    pub(super) fn fail(&mut self) {
        // Every state knows this event.
        let _ = self.on(DestinationEvent::Failed);
    }
}
