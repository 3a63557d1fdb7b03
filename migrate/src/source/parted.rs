//! A guest that its migration has left in doubt, and what can still become of it.

use uuid::Uuid;

use super::context::Context;
use super::custody::{Custody, Hold};
use super::logbook::Logbook;
use super::{Departure, Journey, Route};
use crate::alarm::Cancel;
use crate::failure::Failure;
use crate::guest::Departing;
use crate::handover::{Source, SourceEvent};
use crate::journal::Journals;
use crate::options::Options;
use crate::priority::Parting;
use crate::progress::{Observer, Silent};
use crate::report::Report;
use crate::wire::rejoin::{Fate, Told};

/// What came of telling a destination that the guest it may hold runs on its source.
#[derive(Debug)]
pub enum Disowned {
    /// It has let go of it, or does not have it.
    Heard,
    /// It could not be reached, or does not know: it is to be told again.
    Unreached(Box<Parted>),
    /// It runs the guest as well: an operator's word was not true.
    RunsThere,
}

/// What is needed to go on with it.
#[derive(Debug)]
pub struct Parted {
    hold: Hold,
    session: Uuid,
    calls: u32,
    rest_follows: bool,
    report: Report,
    /// What has parted it.
    failure: Option<Failure>,
    /// How the host's cores are, as the destination knows.
    parting: Option<Parting>,
}

impl Parted {
    pub(super) fn of(
        context: &Context<'_>,
        custody: Custody<'_>,
        calls: u32,
        rest_follows: bool,
        report: Report,
        failure: Option<Failure>,
    ) -> Self {
        let Context { session, parting, .. } = *context;
        Self { hold: custody.into_hold(), session, calls, rest_follows, report, failure, parting }
    }

    /// Of a guest whose engine has died of a defect, nobody knows how far it had come: for all that is known here commit was
    /// sent just now. `report` is what is said of it.
    #[must_use]
    pub fn astray(guest: &dyn Departing, journals: &Journals, report: Report) -> Self {
        let hold = Hold::astray(&guest.description(), journals, &report.destination);
        Self {
            hold,
            session: Uuid::nil(),
            calls: 0,
            rest_follows: true,
            report,
            failure: None,
            parting: None,
        }
    }

    /// Whether the guest is paused because nobody here can know. Otherwise it runs here, and only the destination is to be
    /// [told](Self::disown).
    #[must_use]
    pub fn is_in_doubt(&self) -> bool {
        self.hold.is_in_doubt()
    }

    /// Whether the guest has run on the destination, so that what is left here is what it was when it left.
    #[must_use]
    pub fn has_left(&self) -> bool {
        self.hold.state() == Source::Stranded
    }

    /// Calls the destination again, for as long as [`Options::recovery`].
    #[must_use]
    pub fn recover(
        self,
        guest: &dyn Departing,
        options: &Options,
        route: Route<'_>,
        cancel: &Cancel,
        observer: &dyn Observer,
    ) -> Departure {
        let silent = Failure::Closed { peer: options.to.clone() };
        let before = self.failure.clone().unwrap_or(silent);
        self.resumed(guest, options, route, cancel, observer, |journey| {
            journey.custody.on(SourceEvent::Recover)?;
            journey.recover(before)
        })
    }

    /// The destination could not even be called: it is as it was.
    #[must_use]
    pub fn left_as_it_was(self, why: String) -> Departure {
        let report = Report { reason: Some(why), ..self.report.clone() };
        Departure { report, parted: Some(self) }
    }

    /// The operator's word that the destination does not run it and never will: runs it here, as a later incarnation.
    /// The destination is to be [told](Self::disown) afterwards.
    ///
    /// # Errors
    /// Where a commit that was sent may still be obeyed, or the journal cannot be written: it stays as it was.
    pub fn force(&mut self, guest: &dyn Departing) -> Result<(), Failure> {
        self.with_custody(guest, |custody| custody.force())
    }

    /// The operator's word that the destination runs it: nothing of it is needed here.
    ///
    /// # Errors
    /// When there is no doubt.
    pub fn let_go(&mut self, guest: &dyn Departing) -> Result<(), Failure> {
        self.with_custody(guest, |custody| custody.on(SourceEvent::Disowned).map(drop))
    }

    /// Tells a destination that may hold the guest that it runs here.
    #[must_use]
    pub fn disown(self, guest: &dyn Departing, options: &Options, route: Route<'_>) -> Disowned {
        let mut told = None;
        let after = self.resumed(guest, options, route, &Cancel::new(), &Silent, |journey| {
            told = journey.disown();
            Ok(())
        });
        match (told, after.parted) {
            (Some(Told { fate: Fate::Running | Fate::Arrived, .. }), _) => Disowned::RunsThere,
            (None, Some(parted)) => Disowned::Unreached(Box::new(parted)),
            _ => Disowned::Heard,
        }
    }

    fn resumed(
        self,
        guest: &dyn Departing,
        options: &Options,
        route: Route<'_>,
        cancel: &Cancel,
        observer: &dyn Observer,
        work: impl FnOnce(&mut Journey<'_>) -> Result<(), Failure>,
    ) -> Departure {
        let context =
            Context::new(guest, options, route, cancel.alarm(), observer, self.session, self.parting);
        // Whoever is in doubt, or runs here, is past the point of no return.
        let _ = context.alarm.seal(route.dial.to());
        let mut journey = Journey {
            context: &context,
            custody: Custody::resumed(guest, self.hold),
            logbook: Logbook::resumed(&context, self.report),
            lines: None,
            calls: self.calls,
            may_switch: true,
            rest_follows: self.rest_follows,
        };
        let result = work(&mut journey);
        journey.close(result)
    }

    fn with_custody(
        &mut self,
        guest: &dyn Departing,
        work: impl FnOnce(&mut Custody<'_>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut custody = Custody::resumed(guest, std::mem::take(&mut self.hold));
        let result = work(&mut custody);
        self.hold = custody.into_hold();
        result
    }
}
