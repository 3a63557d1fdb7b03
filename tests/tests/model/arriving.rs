//! The destination as the engine has it: when it says what, around its table, and what its journal says after it.

use migrate::handover::{Destination, DestinationAction, DestinationEvent};

use super::world::{Answer, Duty, Record, Said, There, World};

impl World {
    pub(crate) fn destination_hears(&mut self, at: usize, starts: bool) -> Option<()> {
        let line = self.lines[at].as_mut().filter(|line| line.destination_end && self.destination_lives)?;
        let said = line.to_destination.pop_front()?;
        let (session, number, lapsed) = (line.session, line.number, line.lapsed);
        (starts || said == Said::Commit).then_some(())?;
        let mine = self.arrival.as_ref().is_some_and(|there| there.line == Some(at));
        match said {
            Said::Offer => self.offered(at, session),
            Said::State if mine => {
                self.befalls(DestinationEvent::Restored);
                self.answer(Answer::Ready);
            }
            Said::Commit if mine && (self.has_lapsed(lapsed) || !self.waits_for_commit()) => {
                self.destination_loses()
            }
            Said::Commit if mine => self.runs_there(DestinationEvent::Commit, starts),
            Said::Ask => self.asked(at, session, number),
            Said::Keep | Said::Superseded => {
                let there = self
                    .arrival
                    .as_ref()
                    .filter(|there| there.session == session && (mine || number > there.number));
                if there.is_some_and(|there| there.state.on(DestinationEvent::Disowned).is_some()) {
                    self.befalls(DestinationEvent::Disowned);
                    self.hang_up();
                }
                self.answer_on(at, Answer::NotRunning);
                self.line(at).destination_end = false;
            }
            _ => self.line(at).destination_end = false,
        }
        Some(())
    }

    pub(crate) fn has_lapsed(&self, lapsed: bool) -> bool {
        lapsed && self.left.without != Some(Duty::Lapse)
    }

    pub(crate) fn waits_for_commit(&self) -> bool {
        self.arrival
            .as_ref()
            .is_some_and(|there| matches!(there.state, Destination::Ready | Destination::Held))
    }

    pub(crate) fn offered(&mut self, at: usize, session: u8) {
        let free = self
            .arrival
            .as_ref()
            .is_none_or(|there| there.state == Destination::Discarded && session > there.session);
        if !free {
            self.line(at).destination_end = false;
            return;
        }
        self.arrival = Some(There { state: Destination::Arriving, session, number: 0, line: Some(at) });
        self.written = Record::Arriving { session, this_boot: true };
        self.synced = self.written;
        self.answer(Answer::Accept);
    }

    pub(crate) fn asked(&mut self, at: usize, session: u8, number: u8) {
        let known = self.arrival.as_ref().filter(|there| there.session == session);
        let Some((state, last)) = known.map(|there| (there.state, there.number)) else {
            let answer = self.journal_says(session);
            self.answer_on(at, answer);
            self.line(at).destination_end = false;
            return;
        };
        if number <= last {
            self.line(at).destination_end = false;
            return;
        }
        if self.arrival.as_ref().is_some_and(|there| there.line.is_some()) {
            self.destination_loses();
        }
        let state = self.arrival.as_ref().map_or(state, |there| there.state);
        if let Some(there) = &mut self.arrival {
            (there.number, there.line) = (number, Some(at));
        }
        let answer = match state {
            Destination::Held => Answer::Held,
            Destination::Bereft | Destination::Orphaned => Answer::Running,
            Destination::Arrived => Answer::Complete,
            Destination::Discarded => Answer::NotRunning,
            state => panic!("asked in {state:?}"),
        };
        if matches!(state, Destination::Held | Destination::Bereft | Destination::Orphaned) {
            self.befalls(DestinationEvent::Rejoined);
        }
        self.answer(answer);
        if matches!(answer, Answer::NotRunning) {
            self.hang_up();
        }
    }

    /// What a process that knows nothing of a session can say of it.
    pub(crate) fn journal_says(&mut self, of: u8) -> Answer {
        match self.written {
            Record::Arriving { session, this_boot: true } if session == of => {
                self.written = Record::Discarded { session };
                Answer::NotRunning
            }
            Record::Discarded { session } if session == of => Answer::NotRunning,
            Record::Ran { session } if session == of => Answer::Gone,
            _ => Answer::Nothing,
        }
    }

    pub(crate) fn runs_there(&mut self, event: DestinationEvent, starts: bool) {
        let Some(session) = self.arrival.as_ref().map(|there| there.session) else { return };
        if self.left.without != Some(Duty::WriteAhead) {
            self.written = Record::Ran { session };
        }
        self.befalls(event);
        if starts {
            self.ran_there = session;
            self.answer(Answer::Running);
        } else {
            self.befalls(DestinationEvent::NotStarted);
            self.answer(Answer::NotRunning);
            self.hang_up();
        }
    }

    pub(crate) fn destination_loses(&mut self) {
        self.hang_up();
        self.befalls(DestinationEvent::Failed);
    }

    /// The destination's end of the arrival's connection is gone.
    pub(crate) fn hang_up(&mut self) {
        if let Some(line) = self.arrival.as_mut().and_then(|there| there.line.take()) {
            self.line(line).destination_end = false;
        }
    }

    /// The destination's table decides.
    pub(crate) fn befalls(&mut self, event: DestinationEvent) {
        let Some(there) = &mut self.arrival else { return };
        let Some((state, action)) = there.state.on(event) else { panic!("{event:?} in {:?}", there.state) };
        there.state = state;
        if matches!(action, DestinationAction::ThrowAway | DestinationAction::SendNotRunning) {
            self.written = Record::Discarded { session: there.session };
        }
    }

    pub(crate) fn answer(&mut self, answer: Answer) {
        if let Some(line) = self.arrival.as_ref().and_then(|there| there.line) {
            self.answer_on(line, answer);
        }
    }

    pub(crate) fn answer_on(&mut self, line: usize, answer: Answer) {
        let line = self.line(line);
        if line.source_end {
            line.to_source.push_back(answer);
        }
    }

    pub(crate) fn destination_dies(&mut self, power: bool) -> Option<()> {
        (self.destination_lives && (self.left.power || !power)).then_some(())?;
        self.left.crashes = self.left.crashes.checked_sub(1)?;
        self.destination_lives = false;
        self.arrival = None;
        self.lines.iter_mut().flatten().for_each(|line| line.destination_end = false);
        if power {
            self.written = match self.synced {
                Record::Arriving { session, .. } => {
                    Record::Arriving { session, this_boot: self.left.without == Some(Duty::BootId) }
                }
                record => record,
            };
            self.synced = self.written;
        }
        Some(())
    }
}
