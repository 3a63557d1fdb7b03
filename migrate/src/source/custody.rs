//! The source's hold on the guest: does what `handover` says, and nothing else does. What is promised is in the journal
//! before it is done.

use std::io;
use std::time::Duration;

use uuid::Uuid;

use super::logbook::Standing;
use crate::failure::Failure;
use crate::guest::{Departing, Description};
use crate::handover::{Source, SourceAction, SourceEvent};
use crate::journal::{Journal, Journals, Promise, now};
use crate::report::Outcome;
use crate::wire::limits::PROMISE;

/// Two hosts' clocks drift apart by less than this while a commit lapses.
const DRIFT: Duration = Duration::from_secs(1);

pub(super) struct Custody<'a> {
    guest: &'a dyn Departing,
    hold: Hold,
}

/// What is kept of it while nobody but an operator can say more.
#[derive(Debug, Default)]
pub(super) struct Hold {
    state: Source,
    journal: Option<Journal>,
    /// When commit was sent last, by a clock that goes on while the host is suspended.
    committed: Option<Duration>,
    /// It has been paused: the destination may wait for it.
    paused: bool,
    /// Why the guest could not be resumed although it should.
    trouble: Option<String>,
    /// The record is kept when it has moved.
    remembers: bool,
}

impl Hold {
    /// Of a guest about which nothing is known, but that it was to go to `peer`.
    pub(super) fn astray(guest: &Description, journals: &Journals, peer: &str) -> Self {
        // The record of the engine that died says no more than this one, and without one the epoch keeps its word all the same.
        let journal = journals
            .open(guest.uuid, Uuid::nil(), guest.epoch.saturating_add(1), Promise::Committed, peer)
            .ok();
        let remembers = journals.remembers();
        Self {
            state: Source::Unknown,
            journal,
            committed: Some(now()),
            paused: true,
            remembers,
            ..Self::default()
        }
    }

    pub(super) fn state(&self) -> Source {
        self.state
    }

    /// Whether only the destination or an operator can say more.
    pub(super) fn is_in_doubt(&self) -> bool {
        matches!(self.state, Source::Unknown | Source::Stranded)
    }
}

impl<'a> Custody<'a> {
    pub(super) fn new(guest: &'a dyn Departing) -> Self {
        Self { guest, hold: Hold::default() }
    }

    /// Goes on with a guest that was left in doubt.
    pub(super) fn resumed(guest: &'a dyn Departing, hold: Hold) -> Self {
        Self { guest, hold }
    }

    pub(super) fn into_hold(self) -> Hold {
        self.hold
    }

    /// The destination has accepted: from here on something may be promised.
    pub(super) fn keep_journal(
        &mut self,
        journals: &Journals,
        session: Uuid,
        peer: &str,
    ) -> Result<(), Failure> {
        let Description { uuid, epoch, .. } = self.guest.description();
        let opened = journals.open(uuid, session, epoch.saturating_add(1), Promise::Leaving, peer);
        self.hold.remembers = journals.remembers();
        self.hold.journal = Some(opened.map_err(|error| Failure::journal(journals, &error))?);
        Ok(())
    }

    pub(super) fn state(&self) -> Source {
        self.hold.state
    }

    /// Takes an event, notes what is promised, and runs the guest on here if that is due.
    pub(super) fn on(&mut self, event: SourceEvent) -> Result<SourceAction, Failure> {
        let Some((state, action)) = self.hold.state.on(event) else {
            return Err(Failure::Bug(format!("{event:?} in state {:?}", self.hold.state)));
        };
        if action == SourceAction::SendCommit {
            self.note(Promise::Committed)
                .map_err(|error| Failure::Guest { doing: "write the journal", why: error.to_string() })?;
            self.hold.committed = Some(now());
        }
        self.hold.paused |= event == SourceEvent::Paused;
        self.hold.state = state;
        match action {
            SourceAction::RunHere => {
                self.hold.trouble = self.guest.resume().err().map(|error| error.0);
            }
            SourceAction::LetGo => {
                // The guest runs there whether or not this can be written.
                let _ = self.note(Promise::Moved).and_then(|()| self.sync());
            }
            _ => {}
        }
        if state == Source::Kept && event != SourceEvent::Forced {
            self.hold.journal.take().iter_mut().for_each(Journal::remove);
        }
        Ok(action)
    }

    /// The operator's word that the destination does not run it and never will: it runs on here, as a later incarnation.
    pub(super) fn force(&mut self) -> Result<(), Failure> {
        if let Some(left) = self.hold.committed.and_then(|at| (at + PROMISE + DRIFT).checked_sub(now())) {
            return Err(Failure::Pending { left });
        }
        let epoch = self.guest.description().epoch.saturating_add(2);
        let forced = self.hold.journal.as_mut().map_or(Ok(()), |journal| journal.force(epoch));
        forced.map_err(|error| Failure::Guest { doing: "write the journal", why: error.to_string() })?;
        self.guest.set_epoch(epoch);
        // Where it cannot be run nothing is decided: its disks may be in use, by the other side perhaps.
        self.guest.resume().map_err(Failure::guest("run the guest here"))?;
        // The record stays; who moves the guest on keeps one of its own.
        self.hold.journal = None;
        self.on(SourceEvent::Forced).map(drop)
    }

    /// Something went wrong.
    pub(super) fn fail(&mut self) {
        // Every state knows this event.
        let _ = self.on(SourceEvent::Failed);
    }

    /// Puts on stable storage what was only written in the pause.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.hold.journal.as_ref().map_or(Ok(()), Journal::sync)
    }

    fn note(&mut self, promise: Promise) -> io::Result<()> {
        self.hold.journal.as_mut().map_or(Ok(()), |journal| journal.write(promise))
    }

    /// Whether the destination may still hold the guest although it runs here.
    pub(super) fn may_be_held(&self) -> bool {
        self.hold.paused && self.hold.state == Source::Kept
    }

    /// Whether only the destination or an operator can say more.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.hold.is_in_doubt()
    }

    /// How it ended, or stands.
    pub(super) fn outcome(&self) -> Outcome {
        match self.hold.state {
            Source::Moved => Outcome::Moved,
            Source::Here | Source::Kept if self.hold.trouble.is_none() => Outcome::Kept,
            _ => Outcome::Unknown,
        }
    }

    /// The destination has said its last word: nobody will ask any more.
    pub(super) fn conclude(&mut self) {
        if !self.hold.remembers {
            self.hold.journal.take().iter_mut().for_each(Journal::remove);
        }
    }

    /// How the guest stands here.
    pub(super) fn standing(&self) -> Standing<'_> {
        Standing { trouble: self.hold.trouble.as_deref(), has_left: self.hold.state == Source::Stranded }
    }
}
