//! The source as the engine has it: when it says what, around its table.

use std::collections::VecDeque;

use migrate::handover::{Destination, Source, SourceAction, SourceEvent};

use super::world::{Answer, Duty, Here, Line, Said, World};

impl World {
    pub(crate) fn begin(&mut self) -> Option<()> {
        let here = self.source.as_ref().filter(|here| here.line.is_none() && here.state.runs())?;
        let owes = here.owes;
        self.left.attempts = self.left.attempts.checked_sub(1)?;
        self.session += 1;
        let line = self.open(Line {
            session: self.session,
            number: 0,
            to_destination: VecDeque::new(),
            to_source: VecDeque::new(),
            source_end: true,
            destination_end: true,
            lapsed: false,
            said: Vec::new(),
        });
        self.source = Some(Here { state: Source::Here, line: Some(line), accepted: false, owes });
        self.say(Said::Offer);
        Some(())
    }

    pub(crate) fn call(&mut self, said: Said, session: u8) -> Option<()> {
        (self.calls < self.left.calls).then_some(())?;
        self.calls += 1;
        let line = self.open(Line {
            session,
            number: self.calls,
            to_destination: VecDeque::new(),
            to_source: VecDeque::new(),
            source_end: true,
            destination_end: true,
            lapsed: false,
            said: Vec::new(),
        });
        self.source.as_mut()?.line = Some(line);
        self.say(said);
        Some(())
    }

    pub(crate) fn force_here(&mut self) -> Option<()> {
        self.waits_for_operator()?;
        // The operator's word is true: it does not run there, and nobody there is about to make it run. A commit that is
        // still on its way has lapsed: that is what the VMM waits for.
        let runs = self
            .arrival
            .as_ref()
            .is_some_and(|there| there.state.runs() || there.state == Destination::Orphaned);
        let pending =
            self.lines.iter().flatten().any(|line| {
                line.destination_end && !line.lapsed && line.to_destination.contains(&Said::Commit)
            });
        let true_word = !runs && !pending;
        self.left.forces = self.left.forces.checked_sub(1).filter(|_| true_word)?;
        self.forced_here = true;
        self.meets(SourceEvent::Forced);
        self.source.as_mut()?.owes = Some((Said::Superseded, self.session));
        Some(())
    }

    pub(crate) fn waits_for_operator(&self) -> Option<()> {
        let state = self.source.as_ref()?.state;
        matches!(state, Source::Unknown | Source::Stranded).then_some(())
    }

    pub(crate) fn source_hears(&mut self) -> Option<()> {
        let (line, state) = self.source.as_ref().map(|here| (here.line, here.state))?;
        let answer = self.line(line?).to_source.pop_front()?;
        match (answer, state) {
            (Answer::Accept, Source::Here) => self.source.as_mut()?.accepted = true,
            (Answer::Ready, Source::Paused) => {
                self.meets(SourceEvent::Commit);
            }
            (Answer::Held, Source::Asking) => self.meets(SourceEvent::Held),
            (Answer::Running, Source::InDoubt | Source::Asking | Source::Severed) => {
                self.meets(SourceEvent::Running)
            }
            (Answer::Complete, Source::Leaving) => self.meets(SourceEvent::Complete),
            (Answer::Complete, Source::Asking | Source::Severed) => {
                self.meets(SourceEvent::Running);
                self.meets(SourceEvent::Complete);
            }
            (Answer::NotRunning, Source::InDoubt | Source::Asking) => {
                self.given_back = true;
                self.lied |= self.ran_there == self.session;
                self.meets(SourceEvent::NotRunning);
                self.source.as_mut()?.owes = None;
                self.drop_line();
            }
            (Answer::Gone | Answer::Nothing | Answer::NotRunning, Source::Asking | Source::Severed) => {
                self.meets(SourceEvent::Gone);
                self.drop_line();
            }
            (Answer::NotRunning, Source::Kept) => {
                self.source.as_mut()?.owes = None;
                self.drop_line();
            }
            // Whatever else is said ends the conversation.
            _ => self.source_loses(),
        }
        Some(())
    }

    /// The source's end of its connection is gone.
    pub(crate) fn source_loses(&mut self) {
        self.drop_line();
        self.meets(SourceEvent::Failed);
    }

    pub(crate) fn drop_line(&mut self) {
        if let Some(line) = self.source.as_mut().and_then(|here| here.line.take()) {
            self.line(line).source_end = false;
        }
    }

    /// The source's table decides; what is to be said is said.
    pub(crate) fn meets(&mut self, event: SourceEvent) {
        let session = self.session;
        let Some(here) = &mut self.source else { return };
        let Some((state, action)) = here.state.on(event) else { panic!("{event:?} in {:?}", here.state) };
        if state == Source::Kept && matches!(here.state, Source::Paused) {
            // It may have been ready there.
            here.owes = (self.left.without != Some(Duty::TellKept)).then_some((Said::Keep, session));
        }
        here.state = state;
        match action {
            SourceAction::SendCommit => {
                self.in_doubt_once = true;
                self.say(Said::Commit);
            }
            SourceAction::LetGo => self.drop_line(),
            _ => {}
        }
    }

    pub(crate) fn say(&mut self, said: Said) {
        let Some(line) = self.source.as_ref().and_then(|here| here.line) else { return };
        let line = self.line(line);
        line.said.push(said);
        if line.destination_end {
            line.to_destination.push_back(said);
        }
    }
}
