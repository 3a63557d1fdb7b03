//! Rounds of copying while the guest runs.
//!
//! What must not be lost: a page written after it was read. So a page is watched anew *before* it is read, and
//! a harvest is a value that the next round, or the pause, sends. Round 0 goes by what is populated, asked
//! *after* everything is watched: a page first touched later shows in the harvest.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::connect::Lines;
use super::courier::{Courier, Manner};
use super::crew::{Crew, Round, next_to_watch};
use super::time_limit::Passing;
use super::{Journey, us_since};
use crate::convergence::{Decision, Figures, Terms};
use crate::failure::Failure;
use crate::guest::Rehearsal;
use crate::options::{Mode, OnTimeout};
use crate::pages::PageSet;
use crate::priority::Turns;
use crate::report::{self, Phase};
use crate::wire::limits::BITMAP_WORDS;
use crate::wire::runs::bitmap_frames;
use crate::wire::{Kind, Message};

/// Rounds of so few pages go on the control connection, from the calling thread: nobody needs to be woken.
pub(super) const SMALL_ROUND: u64 = 64;

/// The destination's word on its rehearsal is not believed beyond this.
const LONGEST_REHEARSAL: Duration = Duration::from_secs(10);

/// Why the guest is paused although the policy would go on.
const TIME_IS_UP: &str = "the time limit has passed";

/// What the pause has to deal with.
pub(super) struct Left {
    /// Pages that were not sent, or were written since.
    pub(super) pages: PageSet,
    /// Those of them that the destination knows to be missing.
    pub(super) told: PageSet,
    /// What the downtime is expected to be.
    pub(super) estimate: Duration,
    /// Number of the next round.
    pub(super) round: u32,
}

impl Journey<'_> {
    /// Pre-copy: round after round, until the policy says that the rest is for the pause.
    pub(super) fn copy_while_it_runs(&mut self, lines: &Lines, crew: &Crew) -> Result<Left, Failure> {
        self.logbook.enter(Phase::Precopy);
        let turns = self.make_room(lines);
        let mut pages = self.survey()?;
        let watch = self.watch_samples(&mut pages)?;
        self.announce(lines, &pages)?;
        let mut hot =
            watch.map_or_else(|| Ok(PageSet::default()), |it| self.set_hot_aside(&it, &mut pages))?;
        drop(turns);
        let terms = self.terms(lines);
        if self.context.options.on_timeout != OnTimeout::Cancel {
            self.context.time().set_passing(Passing::EndsRounds);
        }
        let (mut history, mut number) = (Vec::new(), 0);
        loop {
            self.context.settle()?;
            let round = self.round(lines, crew, number, &mut pages, std::mem::take(&mut hot))?;
            history.push(Figures::of(&round, history.last(), lines.round_trip));
            match self.decide(&terms, &history) {
                Decision::Again { throttle, why } => {
                    self.logbook.decided(round, format!("another round: {why}"));
                    self.context.hold_back(throttle, round.dirtied)?;
                }
                Decision::SwitchOver { why, .. } if !self.may_switch => {
                    self.logbook.decided(round, format!("wait: {why}"));
                    number = self.copy_until_told(lines, crew, number, &mut pages, &mut history)?;
                }
                Decision::SwitchOver { estimate, follows, why } => {
                    self.logbook.decided(round, format!("switch over: {why}"));
                    self.rest_follows = follows;
                    return Ok(Left { estimate, round: number + 1, ..self.left(pages) });
                }
                Decision::GiveUp { why } => {
                    self.logbook.decided(round, "give up".to_owned());
                    return Err(Failure::NotConverging(why));
                }
            }
            number += 1;
        }
    }

    /// What the policy says; or, when time is up or the policy has given up, what the operator has said for that.
    fn decide(&mut self, terms: &Terms, history: &[Figures]) -> Decision {
        let policy = terms.decide(history);
        let mut time = self.context.time();
        let up = time.passed(Instant::now()) == Some(Passing::EndsRounds);
        let why = match &policy {
            // It has been done, and the operator has been waited for since.
            _ if self.logbook.report.on_timeout.is_some() => "--on-timeout, as before".to_owned(),
            Decision::GiveUp { why } if time.passing() == Passing::EndsRounds => why.clone(),
            // Hybrid would leave to post-copy what a round cut short has left as what any other has.
            Decision::Again { .. } | Decision::SwitchOver { follows: true, .. } if up && terms.hybrid => {
                TIME_IS_UP.to_owned()
            }
            Decision::Again { .. } if up => TIME_IS_UP.to_owned(),
            _ => return policy,
        };
        time.set_passing(Passing::DoesNothing);
        let on_timeout = self.context.options.on_timeout;
        self.logbook.report.on_timeout = Some(on_timeout);
        let now = history.last().expect("a round has ended");
        let estimate = if on_timeout == OnTimeout::Force { terms.downtime(now) } else { terms.fixed(now) };
        Decision::SwitchOver { estimate, follows: on_timeout != OnTimeout::Force, why }
    }

    /// Post-copy at once: all of RAM follows later.
    pub(super) fn survey_all(&mut self, lines: &Lines) -> Result<Left, Failure> {
        let round = self.wait_until_told(lines)?;
        let _turns = self.make_room(lines);
        let pages = self.survey()?;
        Ok(Left { round, ..self.left(pages) })
    }

    /// Stop-and-copy: what is populated is asked in the pause.
    pub(super) fn nothing_yet(&mut self, lines: &Lines) -> Result<Left, Failure> {
        let round = self.wait_until_told(lines)?;
        Ok(Left { round, ..self.left(PageSet::new(self.context.description.gfn_limit())) })
    }

    fn left(&self, pages: PageSet) -> Left {
        let told = PageSet::new(self.context.description.gfn_limit());
        Left { pages, told, estimate: Duration::ZERO, round: 0 }
    }

    /// What comes now may take milliseconds in the kernel, again and again, which lets nobody else on the core meanwhile: the guest has
    /// another. The turns of the calling thread until then.
    fn make_room(&self, lines: &Lines) -> Turns {
        let link = lines.control.link();
        self.context.send_vcpus(link);
        let mut turns = self.context.turns_of_bulk(link);
        turns.step_aside();
        turns
    }

    /// What is populated, with everything else watched: what is first touched from here on shows in the harvest.
    ///
    /// Populated pages stay in the log as it begins, with every page in it, until they are read (but for a few that are looked at:
    /// `hot`); watching them now would only cost the guest a fault each. A page first touched in between is in the second answer.
    fn survey(&self) -> Result<PageSet, Failure> {
        let context = self.context;
        context.start_log()?;
        let mut untouched = PageSet::of_runs(context.description.gfn_limit(), &context.description.ram);
        untouched.subtract(&self.everything());
        self.watch(&untouched)?;
        Ok(self.everything())
    }

    /// Watches pages anew.
    pub(super) fn watch(&self, pages: &PageSet) -> Result<(), Failure> {
        let mut first = 0;
        while first < pages.limit() {
            let some = next_to_watch(pages, first, u64::MAX);
            let watched = self.context.guest.protect(pages, some);
            watched.map_err(Failure::guest("watch pages for writes"))?;
            first = some.end();
        }
        Ok(())
    }

    /// Tells the destination what round 0 will bring.
    fn announce(&self, lines: &Lines, pages: &PageSet) -> Result<(), Failure> {
        debug_assert!(BITMAP_WORDS * 8 <= Kind::Populated.limit());
        for (first, words) in bitmap_frames(pages) {
            lines.control.tell(&Message::Populated { first, words: words.to_vec() })?;
        }
        Ok(())
    }

    /// Sends `pages`, then `hot` ones, waits until they have landed, and leaves in `pages` what was written meanwhile.
    pub(super) fn round(
        &mut self,
        lines: &Lines,
        crew: &Crew,
        number: u32,
        pages: &mut PageSet,
        hot: PageSet,
    ) -> Result<report::Round, Failure> {
        let round = Arc::new(Round::new(number, false, std::mem::take(pages)).ending_with(hot));
        let count = round.len();
        self.logbook.begin_round(number, count);
        if count <= SMALL_ROUND {
            let mut courier = Courier::new(self.context, lines.control.link(), Manner::Land);
            round.send(self.context, &mut courier)?;
        } else {
            self.context.set_round(Some(&round));
            crew.send(&round);
        }
        await_round(lines, number)?;
        self.context.set_round(None);
        let took = self.logbook.round_began().elapsed();
        *pages = round.unsent();
        let harvesting = Instant::now();
        self.context.harvest(pages)?;
        let harvest_us = us_since(harvesting);
        Ok(self.logbook.end_round(number, took, pages.len(), harvest_us))
    }

    fn terms(&self, lines: &Lines) -> Terms {
        Terms {
            max_downtime: self.context.options.max_downtime,
            state: rehearsed(lines.rehearsal),
            round_trip: lines.round_trip,
            hybrid: self.context.options.mode == Mode::Hybrid,
            verify: self.context.options.verify,
            max_throttle: self.context.options.throttle,
        }
    }

    /// All that is populated; all of RAM where the host cannot say, whose zeros then cost time and no more.
    pub(super) fn everything(&self) -> PageSet {
        let description = &self.context.description;
        let all = |_| PageSet::of_runs(description.gfn_limit(), &description.ram);
        self.context.ram().populated().unwrap_or_else(all)
    }

    /// Notes the round of stop-and-copy.
    pub(super) fn note_last_round(&mut self, number: u32) {
        let took = Duration::from_micros(us_since(self.logbook.round_began()));
        self.logbook.end_round(number, took, 0, 0);
    }
}

/// Waits until the round has landed.
pub(super) fn await_round(lines: &Lines, number: u32) -> Result<(), Failure> {
    match lines.control.hear()? {
        Message::RoundDone { round } if round == number => Ok(()),
        other => Err(lines.control.unexpected(other.kind(), "the end of the round")),
    }
}

/// Save and restore together, as the destination says.
fn rehearsed(rehearsal: Rehearsal) -> Duration {
    Duration::from_micros(rehearsal.save_us.saturating_add(rehearsal.restore_us)).min(LONGEST_REHEARSAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_cannot_name_a_rehearsal_without_end() {
        let endless = Rehearsal { save_us: u64::MAX, restore_us: u64::MAX };
        assert_eq!(rehearsed(endless), LONGEST_REHEARSAL);
    }
}
