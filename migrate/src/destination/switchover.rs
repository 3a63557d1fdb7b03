//! The pause as the destination sees it: restore, ready, commit, run. Mirrors the source's.

use std::sync::Arc;
use std::thread::Scope;
use std::time::Instant;

use super::fault::Placing;
use super::session::{Cargo, Session};
use crate::alarm::Woken;
use crate::channel::line::Line;
use crate::failure::Failure;
use crate::handover::{Destination, DestinationEvent};
use crate::pages::PageSet;
use crate::priority::{LEFT_ALONE, serve_vcpus};
use crate::progress::Event;
use crate::report::{Phase, Switchover};
use crate::threads::start;
use crate::verify::{compare, judge};
use crate::wire::message::{Ready, Reason, tame};
use crate::wire::{Kind, Message};

impl<'a> Session<'a> {
    /// Post-copy: `missing` will come only after the guest runs. The first time, which is before the pause, nothing
    /// lands from here on, and touches of missing pages are caught and served; the restore may touch some.
    pub(super) fn miss<'scope>(
        &mut self,
        scope: &'scope Scope<'scope, 'a>,
        missing: &PageSet,
        urgent: Option<&Line>,
    ) -> Result<(), Failure>
    where
        'a: 'scope,
    {
        let context = self.context;
        if let Some(placing) = context.placing.get() {
            return placing.miss(missing);
        }
        context.landing.close();
        let faults = context.guest.catch_faults(missing).map_err(Failure::guest("catch page faults"))?;
        let placing = context.placing.get_or_init(|| Arc::new(Placing::new(faults, missing)));
        if let Some(urgent) = urgent.cloned() {
            self.watch_faults(scope, placing, urgent)?;
        }
        Ok(())
    }

    /// Starts the thread that sees touches of missing pages.
    pub(super) fn watch_faults<'scope>(
        &self,
        scope: &'scope Scope<'scope, 'a>,
        placing: &'a Placing,
        urgent: Line,
    ) -> Result<(), Failure>
    where
        'a: 'scope,
    {
        let context = self.context;
        start(scope, "faults", move || {
            serve_vcpus(context.parting.as_ref());
            context.alarm.guard("sees page faults", || placing.watch(context, &urgent));
        })?;
        if let Some(parting) = &context.parting {
            context.guest.keep_vcpus_to(Some(parting.for_vcpus()));
        }
        Ok(())
    }

    /// Puts the state in place when the last pages are, and says ready. What is compared is compared before:
    /// the kernel writes guest memory while it restores.
    pub(super) fn restore(&mut self, cargo: &Cargo) -> Result<(), Failure> {
        let context = self.context;
        if context.preflight.verify {
            self.wait_last_round(cargo)?;
            self.verify_paused(cargo)?;
        }
        if context.landing.unpacked.any() {
            // The restore must not write what a difference is to.
            self.wait_last_round(cargo)?;
        }
        let since = Instant::now();
        let restored = context.guest.restore(&cargo.blob, cargo.source);
        restored.map_err(Failure::guest("restore the guest's state"))?;
        self.report.restore_us = since.elapsed().as_micros() as u64;
        self.report.state_bytes = cargo.blob.len() as u64;
        self.wait_last_round(cargo)?;
        context.landing.close();
        if let Some(cause) = context.alarm.cause() {
            return Err(cause);
        }
        if context.placing.get().is_some_and(|placing| !placing.set_ready()) {
            let cause = context.alarm.cause();
            return Err(cause.unwrap_or_else(|| Failure::Bug("faults were let go for no cause".to_owned())));
        }
        self.custody.on(DestinationEvent::Restored)?;
        self.custody.promise();
        context.control.tell(&Message::Ready(Ready { restore_us: self.report.restore_us }))?;
        context.guest.stand_by();
        Ok(())
    }

    /// Waits for the last round, if it comes on the data connections, as long as bytes come.
    fn wait_last_round(&mut self, cargo: &Cargo) -> Result<(), Failure> {
        let (context, since) = (self.context, Instant::now());
        let idle = context.deadlines.idle;
        let mut before = None;
        while cargo.after_round.is_some() {
            let bytes = context.landing.traffic().bytes;
            let silent = Failure::Silent { peer: context.control.peer().to_owned(), after: idle };
            if before.replace(bytes) == Some(bytes) {
                return Err(silent);
            }
            match context.alarm.wait_until(idle, || context.landing.last_round_over()) {
                Woken::Done => break,
                Woken::Stopped => return Err(context.alarm.cause().unwrap_or(silent)),
                Woken::TimeUp => {}
            }
        }
        // Where memory is compared this is asked twice.
        self.report.takeover.last_pages_us += since.elapsed().as_micros() as u64;
        Ok(())
    }

    /// With all pages here they are compared now; in post-copy what the guest writes from now on is noted, for later.
    fn verify_paused(&mut self, cargo: &Cargo) -> Result<(), Failure> {
        let context = self.context;
        if cargo.postcopy {
            return context.guest.start_dirty_log().map_err(Failure::guest("start dirty logging"));
        }
        let since = Instant::now();
        let differing = compare(&context.map, &*context.ram, &context.control)?;
        let verification = judge(&context.map, differing, &PageSet::default(), since);
        context.control.tell(&Message::Verified(verification.clone()))?;
        self.report.verification = Some(verification.clone());
        if verification.mismatched > 0 {
            return Err(Failure::Mismatch(verification));
        }
        Ok(())
    }

    /// Nothing else makes the guest run here.
    pub(super) fn wait_commit(&mut self) -> Result<(), Failure> {
        let control = &self.context.control;
        match control.hear()? {
            Message::Commit => Ok(()),
            other => Err(control.unexpected(other.kind(), Kind::Commit.word())),
        }
    }

    /// Runs the guest, and says so.
    pub(super) fn run_guest(&mut self) -> Result<(), Failure> {
        let context = self.context;
        let since = Instant::now();
        if let Err(failure) = self.custody.on(DestinationEvent::Commit) {
            // One that came too late leaves it held.
            if self.custody.state() == Destination::Discarded {
                self.tell_not_running(&failure);
            }
            return Err(failure);
        }
        let running = Instant::now();
        context.control.tell(&Message::Running)?;
        self.report.takeover.start_us = running.duration_since(since).as_micros() as u64;
        if let Some(placing) = context.placing.get() {
            placing.set_running(running, context)?;
        }
        context.alarm.rest(LEFT_ALONE);
        self.custody.sync();
        self.tell_switched();
        Ok(())
    }

    fn tell_switched(&self) {
        self.context.enter(Phase::Switchover);
        let switchover = Switchover {
            restore_us: self.report.restore_us,
            resume_us: self.report.takeover.start_us,
            state_bytes: self.report.state_bytes,
            ..Switchover::default()
        };
        self.context.observer.tell(Event::Switched { switchover });
    }

    fn tell_not_running(&self, failure: &Failure) {
        let reason = tame(&failure.to_string());
        // Without this word the source stays in doubt: safe, and all that can be done.
        let _ = self.context.control.tell(&Message::NotRunning(Reason { reason }));
    }
}
