//! Waiting for the operator before the guest is paused. It runs on here meanwhile.
//!
//! Pre-copy and hybrid keep what is left small: they go on with rounds, at a modest pace. The other modes send rounds
//! without pages, so that a destination that is gone is noticed here too. The time limit stands all the while.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Journey;
use super::connect::Lines;
use super::crew::Crew;
use super::precopy::await_round;
use crate::alarm::Woken;
use crate::convergence::Figures;
use crate::failure::Failure;
use crate::pages::PageSet;
use crate::report::Phase;
use crate::wire::Message;

/// From the end of a round until the next.
const PACE: Duration = Duration::from_millis(100);

impl Journey<'_> {
    /// Pre-copy: sends what is written, in rounds after round `number`, until the guest may switch over. The last round, and
    /// its figures in place of all before.
    pub(super) fn copy_until_told(
        &mut self,
        lines: &Lines,
        crew: &Crew,
        mut number: u32,
        pages: &mut PageSet,
        history: &mut Vec<Figures>,
    ) -> Result<u32, Failure> {
        self.begin_waiting();
        // Which may take hours. What is written then is for the rounds after it.
        self.context.hold_back(0, 0)?;
        while !self.is_told()? {
            self.add_written(pages)?;
            number += 1;
            let round = self.round(lines, crew, number, pages, PageSet::default())?;
            *history = vec![Figures::of(&round, history.last(), lines.round_trip)];
        }
        self.add_written(pages)?;
        history.drain(..history.len().saturating_sub(1));
        self.end_waiting();
        self.context.send_vcpus(lines.control.link());
        self.logbook.enter(Phase::Precopy);
        Ok(number)
    }

    /// The other modes: waits, if that is asked for, until the guest may switch over. The number of the next round.
    pub(super) fn wait_until_told(&mut self, lines: &Lines) -> Result<u32, Failure> {
        let mut number = 0;
        if self.may_switch {
            return Ok(number);
        }
        self.begin_waiting();
        while !self.is_told()? {
            lines.control.tell(&Message::RoundEnd { round: number, last: false })?;
            await_round(lines, number)?;
            number += 1;
        }
        self.end_waiting();
        Ok(number)
    }

    fn begin_waiting(&mut self) {
        self.context.time().stand(Instant::now());
        self.logbook.enter(Phase::Waiting);
    }

    fn end_waiting(&mut self) {
        self.may_switch = true;
        self.context.time().run(Instant::now());
    }

    /// Waits a little for the operator's word; whether it has been given.
    fn is_told(&self) -> Result<bool, Failure> {
        let alarm = Arc::clone(&self.context.alarm);
        match alarm.await_word(PACE) {
            Woken::Done => Ok(true),
            Woken::TimeUp => Ok(false),
            Woken::Stopped => {
                Err(alarm.cause().unwrap_or_else(|| Failure::Bug("waited after the end".to_owned())))
            }
        }
    }

    /// Adds what was written since the last harvest, so that the next round tells how fast the guest writes.
    fn add_written(&self, pages: &mut PageSet) -> Result<(), Failure> {
        self.context.harvest(pages)
    }
}
