//! After the guest runs here: the rest of its memory (post-copy), comparison, its own figures, goodbye.

use std::time::{Duration, Instant};

use super::session::Session;
use crate::failure::Failure;
use crate::guest::Telemetry;
use crate::handover::{Destination, DestinationEvent};
use crate::report::Phase;
use crate::verify::{compare, judge};
use crate::wire::message::Figures;
use crate::wire::{Kind, Message};

/// How often, and how far apart, a guest that has just arrived is looked at for its first figures here.
const LOOKS: u32 = 50;
const LOOK_AGAIN: Duration = Duration::from_millis(1);

impl Session<'_> {
    /// Waits until nothing is missing. The thread that places the last page says so to the source; what the source
    /// says next shows that it has heard.
    pub(super) fn wait_complete(&mut self) -> Result<(), Failure> {
        let context = self.context;
        if context.placing.get().is_some() {
            context.enter(Phase::Postcopy);
            if context.preflight.verify && !self.is_again() {
                self.verify_running()?;
            }
        } else if self.custody.state() != Destination::Arrived {
            self.custody.on(DestinationEvent::Complete)?;
        }
        match context.control.hear()? {
            Message::Finish => {}
            other => return Err(context.control.unexpected(other.kind(), Kind::Finish.word())),
        }
        context.guest.keep_vcpus_to(None);
        match context.placing.get() {
            Some(placing) if placing.remaining() > 0 => {
                Err(context.control.unexpected(Kind::Finish, "missing pages"))
            }
            Some(_) if self.custody.state() != Destination::Arrived => {
                if self.is_again() && context.preflight.verify {
                    // Nothing is compared after a lost link.
                    context.guest.stop_dirty_log();
                }
                self.custody.on(DestinationEvent::Complete)
            }
            _ => Ok(()),
        }
    }

    /// The guest's figures now, and once more when it has settled.
    pub(super) fn last_words(&mut self) -> Result<(), Failure> {
        let context = self.context;
        context.enter(Phase::Finish);
        let telemetry = self.fresh_telemetry();
        let measures = telemetry.is_some();
        context
            .control
            .tell(&Message::Figures(Figures { telemetry, takeover: Some(self.report.takeover) }))?;
        if measures {
            context.alarm.rest(context.deadlines.settle);
        }
        let settled = Figures { telemetry: context.guest.telemetry(), takeover: None };
        context.control.tell(&Message::Settled(settled))?;
        match context.control.hear()? {
            Message::Bye => {
                self.custody.conclude();
                Ok(())
            }
            other => Err(context.control.unexpected(other.kind(), Kind::Bye.word())),
        }
    }

    /// The guest's figures once it has written some here: its last ones may be from before the pause. It cannot
    /// tell us when, so it is looked at again and again, for a short time.
    fn fresh_telemetry(&self) -> Option<Telemetry> {
        let context = self.context;
        let mut told = context.guest.telemetry()?;
        let stale = told.tsc;
        for _ in 0..LOOKS {
            told = context.guest.telemetry()?;
            if told.tsc != stale {
                break;
            }
            context.alarm.rest(LOOK_AGAIN);
        }
        Some(told)
    }

    /// Compares all pages that the guest has not written here. What it wrote is asked after all are hashed, so
    /// that a page written meanwhile is not called different.
    fn verify_running(&mut self) -> Result<(), Failure> {
        let context = self.context;
        let since = Instant::now();
        let compared = compare(&context.map, &*context.ram, &context.control);
        let written = context.guest.harvest().map_err(Failure::guest("read the dirty log"));
        // Whatever came of it, the guest is as fast as before. A vCPU that waits for a page would hold this up for as
        // long: but a guest that still misses pages will be suspended, and runs no more.
        if context.placing.get().is_none_or(|placing| placing.remaining() == 0) {
            context.guest.stop_dirty_log();
        }
        let (differing, written) = (compared?, written?);
        let verification = judge(&context.map, differing, &written, since);
        context.control.tell(&Message::Verified(verification.clone()))?;
        self.report.verification = Some(verification);
        Ok(())
    }
}
