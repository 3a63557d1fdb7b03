//! The pause: from stopping the guest here until it runs there.
//!
//! The last harvest comes after the state is saved: the kernel and devices write guest memory while both
//! stop. Nothing is told, logged or joined in between; few pages go ahead of the state on the same connection, so
//! that the destination is woken once. From commit on the source may not run the guest on a guess.

use std::sync::Arc;
use std::time::Instant;

use super::connect::Lines;
use super::context::Context;
use super::courier::{Courier, Manner};
use super::crew::{Crew, Round};
use super::missing::{Missing, tell_missing};
use super::precopy::{Left, SMALL_ROUND};
use super::time_limit::Passing;
use super::{Journey, us_since};
use crate::channel::line::Line;
use crate::failure::Failure;
use crate::handover::SourceEvent;
use crate::options::{Mode, OnTimeout, Options};
use crate::pages::PageSet;
use crate::report::{Phase, Switchover};
use crate::verify::send_hashes;
use crate::wire::{Kind, Message, RamMap};

/// What is known before the pause of the pages that the destination lacks, by when they come.
enum Rest {
    /// Before the guest runs there.
    Sent(PageSet),
    /// After.
    Missing(Missing),
}

/// More than is allocated in the pause of most guests, bytes, and in what pieces: of larger ones an allocator may have the kernel map each.
const AT_HAND: usize = 512 << 10;
const PIECE: usize = 64 << 10;

/// This thread's heap has free memory that was touched before, until what is returned is dropped. In the pause it would grow else, by a
/// few pages at a time, of which KVM is told each time: 5 to 15 us, eight times.
///
/// Returned is the last piece: an allocator gives back to the kernel what is free at the end of a heap.
fn memory_at_hand() -> Vec<u8> {
    let pieces: Vec<_> = (0..AT_HAND / PIECE).map(|_| vec![1_u8; PIECE]).collect();
    std::hint::black_box(pieces).pop().unwrap_or_default()
}

impl Journey<'_> {
    /// Pauses, moves what is left, commits.
    pub(super) fn switch_over(&mut self, lines: &Lines, crew: &Crew, left: Left) -> Result<(), Failure> {
        if matches!(self.mode(), Mode::Postcopy | Mode::Stopcopy) {
            self.context.settle()?;
        }
        let left = if self.postcopy() { self.miss_ahead(lines, left)? } else { left };
        self.logbook.enter(Phase::Switchover);
        let mut times = Switchover { estimated_us: left.estimate.as_micros() as u64, ..Default::default() };
        let round = left.round;
        // Made before the pause and dropped after it: of a large guest either takes long.
        let mut late = PageSet::new(self.context.description.gfn_limit());
        let mut rest =
            if self.postcopy() { Rest::Missing(Missing::of(left)) } else { Rest::Sent(left.pages) };
        let at_hand = memory_at_hand();
        self.prepare_pause(lines)?;
        let began = Instant::now();
        let state = self.freeze(&mut late, &mut times)?;
        times.state_bytes = state.len() as u64;
        let sending = Instant::now();
        match &mut rest {
            Rest::Missing(missing) => self.send_missing(lines, crew, missing, &late, state)?,
            Rest::Sent(pages) => {
                pages.union(&late);
                times.pages = pages.len();
                self.send_rest(lines, crew, round, pages, state)?;
            }
        }
        times.send_us = us_since(sending);
        let waiting = Instant::now();
        // While the destination restores.
        self.context.settle()?;
        self.wait_ready(lines, &mut times)?;
        times.ready_us = us_since(waiting);
        let committing = Instant::now();
        self.commit(lines, &mut times)?;
        times.resume_us = us_since(committing);
        times.downtime_us = us_since(began);
        drop(at_hand);
        self.start_forwarding();
        if self.mode() == Mode::Stopcopy {
            self.note_last_round(round);
        }
        self.logbook.switched(times);
        self.start_pushing(crew);
        Ok(())
    }

    /// All that can be done before the guest stops.
    fn prepare_pause(&self, lines: &Lines) -> Result<(), Failure> {
        let deadlines = &self.context.route.deadlines;
        lines.control.set_limit(deadlines.pause)?;
        // How long a whole copy or comparison takes is for the general time limit.
        let Options { on_timeout, verify, .. } = *self.context.options;
        let done = self.logbook.report.on_timeout;
        let bounded = done.map_or(self.mode() != Mode::Stopcopy && !verify, |done| done != OnTimeout::Force);
        let mut time = self.context.time();
        if time.passing() == Passing::EndsRounds {
            let ends = bounded || on_timeout == OnTimeout::Force;
            time.set_passing(if ends { Passing::DoesNothing } else { Passing::GivesUp });
        }
        drop(time);
        if bounded {
            let allowed = self.context.options.max_downtime.saturating_mul(2);
            self.context.limit_pause(deadlines.pause.max(allowed));
        }
        // So late that the clocks of two hosts cannot drift apart until the restore, and before the pause is timed.
        lines.control.tell(&Message::Clock { shown_ns: self.context.guest.clock_ns() })
    }

    /// Stops the guest; its state. Pages written last are added to `late`.
    fn freeze(&mut self, late: &mut PageSet, times: &mut Switchover) -> Result<Vec<u8>, Failure> {
        let Context { guest, .. } = self.context;
        let pausing = Instant::now();
        guest.pause().map_err(Failure::guest("pause the guest"))?;
        self.custody.on(SourceEvent::Paused)?;
        times.pause_us = us_since(pausing);
        let saving = Instant::now();
        let state =
            guest.save(self.context.options.clock).map_err(Failure::guest("save the guest's state"))?;
        times.save_us = us_since(saving);
        let harvesting = Instant::now();
        if self.mode() == Mode::Stopcopy {
            *late = self.everything();
        } else {
            self.context.harvest(late)?;
        }
        times.harvest_us = us_since(harvesting);
        Ok(state)
    }

    /// Hands the state and the list of pages that were not told ahead to the network; then, while the destination
    /// restores, the pages that it will want first.
    fn send_missing(
        &mut self,
        lines: &Lines,
        crew: &Crew,
        missing: &mut Missing,
        late: &PageSet,
        state: Vec<u8>,
    ) -> Result<(), Failure> {
        missing.add(late);
        let unsent = self.context.unsent.get_or_init(|| Arc::clone(&missing.unsent));
        self.context.meter.begin(0, missing.pages);
        tell_missing(&lines.control, &missing.untold)?;
        let state = Message::State { after_round: None, blob: state };
        lines.control.tell(&state)?;
        if let Message::State { blob, .. } = state {
            crew.send_first(unsent, self.first_pages(&blob, late, &missing.told));
        }
        Ok(())
    }

    /// Hands the last pages and the state to the network.
    fn send_rest(
        &mut self,
        lines: &Lines,
        crew: &Crew,
        round: u32,
        pages: &mut PageSet,
        state: Vec<u8>,
    ) -> Result<(), Failure> {
        let (control, count) = (&lines.control, pages.len());
        let mut after_round = None;
        if count <= SMALL_ROUND {
            self.logbook.begin_round(round, count);
            let mut courier = Courier::new(self.context, control.link(), Manner::LandAtOnce);
            pages.runs().try_for_each(|run| courier.add(run))?;
            courier.flush()?;
        } else {
            self.logbook.begin_round(round, count);
            crew.send(&Arc::new(Round::new(round, true, std::mem::take(pages))));
            after_round = Some(round);
        }
        control.tell(&Message::State { after_round, blob: state })?;
        if self.context.options.verify {
            send_hashes(&self.map()?, self.context.ram(), control)?;
        }
        Ok(())
    }

    /// Waits until pages and state are in place there, and the same as here if that is compared.
    fn wait_ready(&mut self, lines: &Lines, times: &mut Switchover) -> Result<(), Failure> {
        let control = &lines.control;
        loop {
            match control.hear()? {
                Message::Ready(_) if self.must_be_verified() => {
                    return Err(control.unexpected(Kind::Ready, Kind::Verified.word()));
                }
                Message::Ready(ready) => {
                    times.restore_us = ready.restore_us;
                    return Ok(());
                }
                Message::Verified(verification) if self.context.options.verify => {
                    self.logbook.report.verification = Some(verification.clone());
                    if verification.mismatched > 0 {
                        return Err(Failure::Mismatch(verification));
                    }
                }
                other => return Err(control.unexpected(other.kind(), Kind::Ready.word())),
            }
        }
    }

    /// Whether memory is to be compared before the guest runs there, and was not yet.
    fn must_be_verified(&self) -> bool {
        self.context.options.verify && !self.postcopy() && self.logbook.report.verification.is_none()
    }

    /// Hands the guest over. From the seal on nobody can call it back.
    fn commit(&mut self, lines: &Lines, times: &mut Switchover) -> Result<(), Failure> {
        let (control, since) = (&lines.control, Instant::now());
        self.context.hand_over()?;
        self.context.alarm.seal(self.context.route.dial.to())?;
        self.custody.on(SourceEvent::Commit)?;
        times.commit_us = us_since(since);
        self.await_verdict(control)
    }

    /// Commit is due: says it, and hears what comes of it.
    pub(super) fn await_verdict(&mut self, control: &Line) -> Result<(), Failure> {
        control.tell(&Message::Commit)?;
        control.set_limit(self.context.route.deadlines.idle)?;
        match self.verdict(control)? {
            Message::Running => self.custody.on(SourceEvent::Running).map(|_| ()),
            other => Err(control.unexpected(other.kind(), Kind::Running.word())),
        }
    }

    /// What the destination says to commit. If it says that it does not run the guest, it runs on here at once.
    /// `abort` says so too: a destination that runs the guest never says it.
    fn verdict(&mut self, control: &Line) -> Result<Message, Failure> {
        let heard = control.hear();
        let refusal = match heard {
            Ok(Message::NotRunning(refusal)) => {
                Failure::Aborted { peer: control.peer().to_owned(), reason: refusal.reason }
            }
            Err(aborted @ Failure::Aborted { .. }) => aborted,
            other => return other,
        };
        self.custody.on(SourceEvent::NotRunning)?;
        Err(refusal)
    }

    /// Whether pages follow after the switchover.
    pub(super) fn postcopy(&self) -> bool {
        self.mode() == Mode::Postcopy || self.mode() == Mode::Hybrid && self.rest_follows
    }

    /// How it moves: as asked for, unless time was up.
    pub(super) fn mode(&self) -> Mode {
        match self.logbook.report.on_timeout {
            Some(OnTimeout::Postcopy) => Mode::Hybrid,
            _ => self.context.options.mode,
        }
    }

    /// The map of RAM.
    pub(super) fn map(&self) -> Result<RamMap, Failure> {
        let why = |why| Failure::Guest { doing: "describe the guest", why };
        RamMap::of(&self.context.description).map_err(why)
    }
}
