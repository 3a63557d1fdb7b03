//! Where a guest is in its life here, and what may be asked of it there.

use std::sync::Arc;

use migrate::client::types::Life;

use crate::control::Refusal;
use crate::migration::Resident;

use super::doubt::Doubt;

/// Where the guest is.
#[derive(Clone)]
pub(super) enum Stage {
    /// None yet.
    Waiting,
    /// Its machine is built, it is on its way.
    Arriving(Arc<Resident>),
    /// It lives here, running or paused by its operator.
    Here(Arc<Resident>),
    /// It is being moved away.
    Leaving(Arc<Resident>),
    /// Paused: another host may be running it, or has part of its memory.
    InDoubt(Doubt),
    /// It is not here any more.
    Ended,
}

impl Stage {
    /// The guest, in whatever state.
    pub(super) fn guest(&self) -> Option<&Arc<Resident>> {
        match self {
            Self::Arriving(guest) | Self::Here(guest) | Self::Leaving(guest) => Some(guest),
            Self::InDoubt(doubt) => Some(doubt.guest()),
            Self::Waiting | Self::Ended => None,
        }
    }

    /// For people. Asks the guest, so not under the lock that its vCPUs take when it ends.
    pub(super) fn life(&self) -> Life {
        match self {
            Self::Waiting => Life::Waiting,
            Self::Arriving(_) => Life::Arriving,
            Self::Here(guest) if guest.is_running() => Life::Running,
            Self::Here(_) => Life::Paused,
            Self::Leaving(_) => Life::Leaving,
            Self::InDoubt(_) => Life::Unknown,
            Self::Ended => Life::Stopped,
        }
    }

    /// The guest, if its operator may do something with it now; `what` is for the refusal.
    pub(super) fn at_hand(&self, what: &str) -> Result<&Arc<Resident>, Refusal> {
        let why = match self {
            Self::Here(guest) => return Ok(guest),
            Self::Waiting => "there is no guest yet",
            Self::Arriving(_) => "the guest is still arriving",
            Self::Leaving(_) => {
                "the guest is being moved away; `migrate cancel` keeps it here unless it has been handed over"
            }
            Self::InDoubt(_) => {
                "the guest is in doubt: another host may run it; see `migrate recover` and `migrate resolve`"
            }
            Self::Ended => "the guest is not here any more",
        };
        Err(Refusal::Conflict(format!("cannot {what}: {why}")))
    }
}
